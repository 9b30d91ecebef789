"""Many SIGKILLs with trials in hand: exact totals, nothing acknowledged lost, nobody blamed."""

from __future__ import annotations

import random
import signal
from functools import partial
from pathlib import Path

import pytest
from fault_support import HELD, Row, Sweep, rows, running, states

pytestmark = pytest.mark.slow

KILLS = {1: 10, 2: 5, 4: 3}
"""By workers: each start of several takes longer. The book alone is killed 40 times in its own
tests (study/book/test_contract_shared.py)."""
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
    ("command", "book", "jobs"),
    [
        pytest.param(GRID, {}, 1, id="grid"),
        pytest.param(ASHA, {"PUBLIC": ""}, 1, id="tpe+asha-public"),
        pytest.param(ASHA, {}, 2, id="tpe+asha-2-workers"),
        pytest.param(GRID, {}, 4, id="grid-4-workers"),
    ],
)
def test_a_sweep_that_is_killed_again_and_again_ends_as_if_nothing_had_happened(
    tmp_path: Path, command: list[str], book: dict[str, str], jobs: int
) -> None:
    # The last trials are killed again and again, also before they have taken a step.
    limits = [f"hydra.sweeper.n_jobs={jobs}", "hydra.sweeper.max_restarts=100"]
    words = [*HELD, *command, *limits]
    moments = random.Random(jobs)
    acknowledged: dict[int, Row] = {}
    kills = KILLS[jobs]
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

        sweep = Sweep(words, tmp_path, hold={"finished": wanted, "reports": reports}, **book)
        sweep.catch(signal.SIGKILL, is_due, "the moment to kill")
        sweep.ends()
        now = finished(tmp_path)
        assert {number: now.get(number) for number in acknowledged} == acknowledged
        acknowledged = now
    Sweep(words, tmp_path, **book).succeeds()

    final = finished(tmp_path)
    assert len(final) == sum(states(tmp_path).values()) == TRIALS  # none failed, none waits
    assert {number: final.get(number) for number in acknowledged} == acknowledged
    assert len({row.params for row in final.values()}) == TRIALS
    (study,) = (tmp_path / "outputs" / "studies").iterdir()
    folders = {place.name for place in study.iterdir() if place.is_dir()}
    assert folders == {str(number) for number in final}
    left = [p for kind in ("*.tmp", "checkpoints") for p in (tmp_path / "outputs").rglob(kind)]
    assert not left


def checkpointed(folder: Path) -> int:
    """The step that both trials of a stack have checkpointed."""
    found = (folder / "outputs" / "studies").glob("*/*/checkpoints")
    newest = [max((int(f.stem[5:]) for f in place.glob("step_*.pt")), default=0) for place in found]
    return min(newest) if len(newest) == 2 else 0


def test_a_stack_that_is_further_at_each_kill_completes(tmp_path: Path) -> None:
    steps = ("data=quadratic", "training.max_steps=20000", "training.eval_every=10000")
    words = [*HELD, "-m", *steps, "training.seed=0,1", "training.width=2"]
    words += ["training.checkpoint_every=100", "hydra.sweeper.max_restarts=3"]
    for _ in range(6):
        before = checkpointed(tmp_path)
        sweep = Sweep(words, tmp_path, hold={"steps": before + 200})
        further = partial(lambda before: checkpointed(tmp_path) > before, before)
        sweep.catch(signal.SIGKILL, further, "both moved on")
        sweep.ends()
    Sweep(words, tmp_path).succeeds()
    assert states(tmp_path) == {"COMPLETE": 2}
