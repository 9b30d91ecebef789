"""Sweeps that are killed and started again by the same command end as if nothing had happened."""

from __future__ import annotations

import random
import signal
from pathlib import Path

import pytest
from fault_support import (
    HELD,
    Row,
    Sweep,
    finish,
    rows,
    running,
    states,
)

pytestmark = pytest.mark.slow

DIGITS = [
    *("-m", "model.hidden=[16]", "init=he,zeros", "training.seed=range(0,12)"),
    *("training.max_steps=30", "training.eval_every=10", "training.checkpoint_every=5"),
    "training.width=2",
]
POINTS = 24


def complete(folder: Path) -> dict[int, Row]:
    """Results that the database has acknowledged."""
    return {row.number: row for row in rows(folder) if row.state == "COMPLETE"}


def results(folder: Path) -> dict[tuple[tuple[str, float], ...], float]:
    """Values by parameters, of complete trials."""
    return {row.params: row.values[0] for row in complete(folder).values()}


def check_the_end(folder: Path, trials: int, acknowledged: dict[int, Row]) -> None:
    assert states(folder) == {"COMPLETE": trials}  # so none runs or waits
    final = complete(folder)
    assert {number: final.get(number) for number in acknowledged} == acknowledged
    points = {row.attributes["sweepstack.point"] for row in final.values()}
    assert len(points) == trials == len({row.params for row in final.values()})
    (study,) = (folder / "outputs" / "studies").iterdir()
    for number in final:
        assert (study / str(number) / "metrics.json").exists()
        assert not (study / str(number) / "checkpoints").exists()


def test_a_grid_killed_at_5_random_moments_ends_complete_and_with_the_same_values(
    tmp_path: Path,
) -> None:
    moments = random.Random(3)
    killed, alone = tmp_path / "killed", tmp_path / "alone"
    killed.mkdir()
    alone.mkdir()
    acknowledged: dict[int, Row] = {}
    for _ in range(5):
        wanted = len(acknowledged) + moments.choice([0, 0, 0, 1, 1, 2])
        reports = moments.choice([0, 0, 1, 2])
        sweep = Sweep([*HELD, *DIGITS], killed, hold={"finished": wanted, "reports": reports})

        def is_due(
            pid: int = sweep.process.pid, wanted: int = wanted, reports: int = reports
        ) -> bool:
            at_work = any(row.worker == pid for row in running(killed, reports=reports))
            return at_work and len(complete(killed)) >= wanted

        sweep.catch(signal.SIGKILL, is_due, "the moment to kill")
        sweep.ends()
        now = complete(killed)
        assert {number: now.get(number) for number in acknowledged} == acknowledged
        acknowledged = now
    assert any(row.is_retried for row in rows(killed))  # or no trial was ever hit
    finish(DIGITS, killed)
    check_the_end(killed, POINTS, acknowledged)

    finish(DIGITS, alone)
    assert results(killed) == pytest.approx(results(alone), abs=0.01)  # one sample of 269 more


def test_two_workers_killed_with_their_sweeper_leave_a_study_that_goes_on(tmp_path: Path) -> None:
    command = [*HELD, *DIGITS, "hydra.sweeper.n_jobs=2"]
    moments = random.Random(4)
    acknowledged: dict[int, Row] = {}
    for _ in range(2):
        wanted = len(acknowledged) + moments.randrange(1, 4)
        sweep = Sweep(command, tmp_path, hold={"finished": wanted})
        sweep.catch(
            signal.SIGKILL,
            lambda wanted=wanted: running(tmp_path) and len(complete(tmp_path)) >= wanted,
            "the moment to kill",
        )
        sweep.ends()
        now = complete(tmp_path)
        assert {number: now.get(number) for number in acknowledged} == acknowledged
        acknowledged = now
    sweep = Sweep(command, tmp_path)
    sweep.succeeds()
    check_the_end(tmp_path, POINTS, acknowledged)


def test_a_sampled_study_that_is_killed_and_made_longer_draws_nothing_twice(
    tmp_path: Path,
) -> None:
    def command(n_trials: int) -> list[str]:
        words = "-m data=quadratic optimizer.lr=interval(0.001,0.1) training.seed=range(0,1000)"
        options = "hydra/sweeper/sampler=random hydra.sweeper.study_name=drawn"
        steps = "training.max_steps=800 training.eval_every=40 training.width=1"
        return f"{words} {options} {steps} hydra.sweeper.n_trials={n_trials}".split()

    whole, broken = tmp_path / "whole", tmp_path / "broken"
    whole.mkdir()
    broken.mkdir()
    finish(command(6), whole)
    first = {row.number: row.params for row in rows(whole)}
    finish(command(9), whole)
    drawn = {row.number: row.params for row in rows(whole)}
    assert states(whole) == {"COMPLETE": 9}
    assert drawn.items() >= first.items()
    assert len(set(drawn.values())) == 9

    sweep = Sweep([*HELD, *command(9)], broken, hold={"finished": 3, "reports": 1})
    sweep.catch(
        signal.SIGKILL,
        lambda: len(complete(broken)) >= 3 and running(broken, reports=1),
        "a trial to hit",
    )
    sweep.ends()
    finish(command(9), broken)
    assert states(broken) == {"COMPLETE": 9}
    again = {row.number: row.params for row in rows(broken) if not row.is_retried}
    assert len(set(again.values())) == 9
    # With one worker a number draws the same in every study; a replacement keeps what was drawn.
    (lost,) = (row for row in rows(broken) if row.is_retried)
    assert lost.params == drawn[lost.number]
    assert again[lost.number + 1] == lost.params
    assert all(again[number] == drawn[number] for number in range(lost.number))
