"""60 SIGKILLs with trials in hand: exact totals, nothing acknowledged lost, nobody blamed."""

from __future__ import annotations

import random
import signal
import time
from pathlib import Path

import pytest
from fault_support import SWEEPSTACK, Row, Sweep, rows, states

pytestmark = pytest.mark.slow

KILLS = 10  # of each of the six sweeps
STEPS = ("data=quadratic", "training.max_steps=1200", "training.eval_every=20")
GRID = ["-m", *STEPS, "training.seed=range(0,24)", "training.width=2"]
ASHA = [
    *("-m", *STEPS, "optimizer.lr=interval(0.001,0.1)", "training.checkpoint_every=20"),
    *("hydra/sweeper/pruner=asha", "hydra.sweeper.n_trials=24", "hydra.sweeper.study_name=asha"),
]


def finished(folder: Path) -> dict[int, Row]:
    return {row.number: row for row in rows(folder) if row.state in ("COMPLETE", "PRUNED")}


@pytest.mark.parametrize("jobs", [1, 2, 4])
@pytest.mark.parametrize("command", [GRID, ASHA], ids=["grid", "tpe+asha"])
def test_a_sweep_killed_10_times_ends_as_if_nothing_had_happened(
    tmp_path: Path, command: list[str], jobs: int
) -> None:
    words = [*SWEEPSTACK, *command, f"hydra.sweeper.n_jobs={jobs}"]
    moments = random.Random(jobs)
    acknowledged: dict[int, Row] = {}
    for _ in range(KILLS):
        last = max((row.number for row in rows(tmp_path)), default=-1)
        sweep = Sweep(words, tmp_path)
        wanted = len(acknowledged) + moments.choice([0, 0, 1, 1, 2])
        sweep.until(
            lambda wanted=wanted, last=last: (
                len(finished(tmp_path)) >= wanted
                and any(row.number > last for row in rows(tmp_path) if row.state == "RUNNING")
            ),
            "it had trials of its own in hand",
        )
        time.sleep(moments.uniform(0, 0.2))
        assert sweep.process.is_alive(), "the sweep was over before it was killed 10 times"
        sweep.send(signal.SIGKILL)
        sweep.ends()
        now = finished(tmp_path)
        assert {number: now.get(number) for number in acknowledged} == acknowledged
        acknowledged = now
    Sweep(words, tmp_path).succeeds()

    final = finished(tmp_path)
    assert len(final) == sum(states(tmp_path).values()) == 24  # none failed, none waits
    assert {number: final.get(number) for number in acknowledged} == acknowledged
    assert len({row.params for row in final.values()}) == 24
    (study,) = (tmp_path / "outputs" / "studies").iterdir()
    folders = {place.name for place in study.iterdir() if place.is_dir()}
    assert folders == {str(number) for number in final}
    left = [p for kind in ("*.tmp", "checkpoints") for p in (tmp_path / "outputs").rglob(kind)]
    assert not left
