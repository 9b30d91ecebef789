"""Many SIGKILLs with trials in hand: exact totals, nothing acknowledged lost, nobody blamed."""

from __future__ import annotations

import random
import signal
from pathlib import Path

import pytest
from fault_support import SWEEPSTACK, Row, Sweep, rows, running, states

pytestmark = pytest.mark.slow

KILLS = {1: 10, 2: 5, 4: 3}
"""By workers: each start of several takes longer. The book alone is killed 40 times in its own
tests (study/book/test_contract_shared.py)."""
PUBLIC = [str(Path(__file__).parents[1] / "public_app.py")]
TRIALS, MARGIN = 16, 6
STEPS = ("data=quadratic", "training.max_steps=1200", "training.eval_every=20")
GRID = ["-m", *STEPS, f"training.seed=range(0,{TRIALS})", "training.width=2"]
ASHA = [
    *("-m", *STEPS, "optimizer.lr=interval(0.001,0.1)", "training.checkpoint_every=20"),
    *("hydra/sweeper/pruner=asha", "hydra.sweeper.study_name=asha"),
    f"hydra.sweeper.n_trials={TRIALS}",
]


def finished(folder: Path) -> dict[int, Row]:
    return {row.number: row for row in rows(folder) if row.state in ("COMPLETE", "PRUNED")}


# Every kind of sweep, book and number of workers.
@pytest.mark.parametrize(
    ("command", "app", "jobs"),
    [
        pytest.param(GRID, SWEEPSTACK, 1, id="grid"),
        pytest.param(ASHA, PUBLIC, 1, id="tpe+asha-public"),
        pytest.param(ASHA, SWEEPSTACK, 2, id="tpe+asha-2-workers"),
        pytest.param(GRID, SWEEPSTACK, 4, id="grid-4-workers"),
    ],
)
def test_a_sweep_that_is_killed_again_and_again_ends_as_if_nothing_had_happened(
    tmp_path: Path, command: list[str], app: list[str], jobs: int
) -> None:
    # The last trials are killed again and again, also before they have taken a step.
    limits = [f"hydra.sweeper.n_jobs={jobs}", "hydra.sweeper.max_restarts=100"]
    words = [*app, *command, *limits]
    moments = random.Random(jobs)
    acknowledged: dict[int, Row] = {}
    kills, killed = KILLS[jobs], 0
    for kill in range(kills):
        last = max((row.number for row in rows(tmp_path)), default=-1)
        # Some are left for every kill, however many end before one is noticed.
        share = (TRIALS - MARGIN) * (kill + 1) // kills
        wanted = max(len(acknowledged), min(len(acknowledged) + moments.choice([0, 1, 2]), share))
        reports = moments.choice([0, 0, 1, 1, 2])

        def is_due(last: int = last, wanted: int = wanted, reports: int = reports) -> bool:
            own = [row for row in running(tmp_path) if row.number > last]
            reported = any(len(row.reports) >= reports for row in own)
            return len(finished(tmp_path)) >= wanted and reported

        sweep = Sweep(words, tmp_path)
        if not sweep.catch_or_end(signal.SIGKILL, is_due):
            break  # it was faster than its observer: what must hold at the end holds all the same
        sweep.ends()
        now = finished(tmp_path)
        assert {number: now.get(number) for number in acknowledged} == acknowledged
        acknowledged, killed = now, killed + 1
    assert killed >= kills / 2
    Sweep(words, tmp_path).succeeds()

    final = finished(tmp_path)
    assert len(final) == sum(states(tmp_path).values()) == TRIALS  # none failed, none waits
    assert {number: final.get(number) for number in acknowledged} == acknowledged
    assert len({row.params for row in final.values()}) == TRIALS
    (study,) = (tmp_path / "outputs" / "studies").iterdir()
    folders = {place.name for place in study.iterdir() if place.is_dir()}
    assert folders == {str(number) for number in final}
    left = [p for kind in ("*.tmp", "checkpoints") for p in (tmp_path / "outputs").rglob(kind)]
    assert not left
