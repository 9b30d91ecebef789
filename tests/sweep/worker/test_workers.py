"""Workers that share a study, are interrupted, or die: what a user is left with."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
from collections import Counter
from pathlib import Path

import pytest
from fault_support import (
    APP,
    HELD,
    PATIENCE_S,
    SWEEPSTACK,
    Row,
    Sweep,
    has_started,
    is_alive,
    rows,
    running,
    states,
    until,
)
from support import make_spec

from sweepstack.sweep.worker.trial_folder import TrialFolder
from sweepstack.training import checkpoint

slow = pytest.mark.slow

LONG = [
    *("data=quadratic", "optimizer=sgd", "optimizer.lr=0.001"),
    *("training.max_steps=1500", "training.eval_every=10"),
]
SEEDS = ["-m", "training.seed=range(0,4)"]


def ran(folder: Path) -> Counter[str]:
    """How often the app was called with each x."""
    return Counter((folder / "ran.txt").read_text().split())


def study_folder(folder: Path) -> Path:
    (study,) = (folder / "outputs" / "studies").iterdir()
    return study


def history(folder: Path) -> list[dict[str, float]]:
    with open(folder / "history.csv", newline="") as file:
        return [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(file)]


def uninterrupted(seed: int) -> list[dict[str, float]]:
    from sweepstack.engine.train import train

    (result,) = train([make_spec(*LONG, f"training.seed={seed}")])
    return result.history


# --- sharing a study -----------------------------------------------------------------------------


@slow
def test_four_workers_run_each_of_120_trials_once(tmp_path: Path) -> None:
    command = [*APP, "-m", "x=range(0,120)", "trouble.wait=[0,1,2,3]", "hydra.sweeper.n_jobs=4"]
    sweep = Sweep(command, tmp_path)
    sweep.until(lambda: len(running(tmp_path)) == 4, "four workers")
    (tmp_path / "go").touch()
    sweep.succeeds()
    assert "locked" not in sweep.err
    assert ran(tmp_path) == {str(x): 1 for x in range(120)}
    trials = rows(tmp_path)
    assert [row.number for row in trials] == list(range(120))
    assert {row.state for row in trials} == {"COMPLETE"}
    assert sorted(row.values for row in trials) == [(float(x),) for x in range(120)]
    assert len({row.worker for row in trials}) == 4


@slow
def test_four_starts_of_one_command_share_its_total(tmp_path: Path) -> None:
    command = [*APP, "-m", "x=interval(0,1)", "hydra.sweeper.n_trials=60"]
    command += ["hydra/sweeper/sampler=random", "hydra.sweeper.study_name=shared"]
    command += [f"hydra.sweeper.storage=sqlite:///{tmp_path}/outputs/studies.db"]
    command += ["trouble.hold=true"]
    sweeps = []
    for number in range(4):  # the file does not exist yet: they also make it together
        (tmp_path / str(number)).mkdir()
        sweeps.append(Sweep(command, tmp_path / str(number)))
    until(lambda: len(running(tmp_path)) == 4, "a trial of each")
    for sweep in sweeps:
        (sweep.folder / "go").touch()
    for sweep in sweeps:
        sweep.succeeds()
        assert "locked" not in sweep.err
    trials = rows(tmp_path)
    assert states(tmp_path) == {"COMPLETE": 60}
    assert [row.number for row in trials] == list(range(60))
    calls = sum((ran(sweep.folder) for sweep in sweeps), Counter())
    assert sorted(map(float, calls.elements())) == sorted(row.values[0] for row in trials)
    assert len(calls) == 60
    assert len({row.worker for row in trials}) == 4


# --- signals -------------------------------------------------------------------------------------


def check_stopped(sweep: Sweep, code: int, stopped: int) -> list[Row]:
    """It ended with the code and put back what it ran; returns what waits to go on."""
    assert sweep.ends() == code, sweep.err
    assert "Traceback" not in sweep.err
    assert "run the same command again to resume" in sweep.err
    left = rows(sweep.folder)
    assert not [row for row in left if row.state == "RUNNING"]
    waiting = [r for r in left if r.state == "WAITING" and "sweepstack.continues" in r.attributes]
    assert len(waiting) == stopped
    for row in waiting:
        before = study_folder(sweep.folder) / str(row.attributes["sweepstack.continues"])
        assert list(before.glob("checkpoints/step_*.pt"))
    return waiting


def check_went_on(folder: Path, waited: list[Row]) -> None:
    """Trials began where those that they replace had stopped, and came to the same numbers."""
    for row in waited:
        place = study_folder(folder) / str(row.number)
        log = (place / "sweepstack.log").read_text()
        assert f"resumes trial {row.attributes['sweepstack.continues']}" in log
        (begun,) = re.findall(r"step (\d+) of 1500, seed", log)
        assert int(begun) > 0
        (final,) = [r for r in rows(folder) if r.number == row.number]
        expected = uninterrupted(int(final.attributes["seed"]))
        assert len(expected) == 150
        assert history(place) == [pytest.approx(line, rel=1e-4) for line in expected]
        assert [s for s, _ in final.reports] == [line["step"] for line in expected]


@slow
@pytest.mark.parametrize(("jobs", "width"), [(1, 1), (2, 1), (1, 3)])
def test_an_interrupted_sweep_goes_on_from_its_checkpoints(
    tmp_path: Path, jobs: int, width: int
) -> None:
    command = [
        *HELD,
        *SEEDS,
        *LONG,
        f"hydra.sweeper.n_jobs={jobs}",
        f"training.width={width}",
    ]

    def is_under_way() -> bool:
        return len(running(tmp_path, reports=3)) == jobs * width

    if jobs > 1:  # Ctrl-C while the workers are starting is nothing to make a noise about
        sweep = Sweep(command, tmp_path, hold={"reports": 3}, COLD_WORKERS="1")
        sweep.until(lambda: has_started(sweep, "numpy"), "the start of a worker")
        sweep.send(signal.SIGINT)
        assert sweep.ends() == 130
        assert len(sweep.err.splitlines()) == 1

    sweep = Sweep(command, tmp_path, hold={"reports": 3})
    sweep.catch(signal.SIGINT, is_under_way, "reports of running trials")
    check_stopped(sweep, 130, jobs * width)

    sweep = Sweep(command, tmp_path, hold={"reports": 3})
    sweep.catch(signal.SIGTERM, is_under_way, "reports of running trials")
    waited = check_stopped(sweep, 143, jobs * width)  # those that were put back go on first

    Sweep(command, tmp_path).succeeds()
    assert states(tmp_path) == {"COMPLETE": 4}
    check_went_on(tmp_path, waited)
    assert not list(study_folder(tmp_path).glob("**/checkpoints"))


@slow
@pytest.mark.parametrize("jobs", [1, 2])
def test_ctrl_c_twice_ends_at_once_what_cannot_be_interrupted(tmp_path: Path, jobs: int) -> None:
    command = [*APP, "-m", "x=range(0,4)", "trouble.stay=[0,1]", f"hydra.sweeper.n_jobs={jobs}"]
    sweep = Sweep(command, tmp_path)
    at_work = sweep.until(
        lambda: len(list(tmp_path.glob("stays_*"))) == jobs and running(tmp_path),
        "trials at work",
    )
    sweep.send(signal.SIGINT)
    sweep.until((tmp_path / "heard").exists, "the first Ctrl-C")
    sweep.send(signal.SIGINT)
    assert sweep.ends() == 130
    assert "Traceback" not in sweep.err
    for row in at_work:
        until(lambda pid=row.worker: not is_alive(pid), "the workers' end")
    (tmp_path / "go").touch()
    Sweep(command, tmp_path).succeeds()
    assert states(tmp_path) == {"COMPLETE": 4}
    assert sum(ran(tmp_path).values()) == 4 + jobs


# --- death ---------------------------------------------------------------------------------------


@slow
def test_a_killed_worker_is_replaced_and_its_trial_run_again(tmp_path: Path) -> None:
    command = [*HELD, *SEEDS, *LONG, "hydra.sweeper.n_jobs=2"]
    sweep = Sweep(command, tmp_path, hold={"reports": 3})
    victim = sweep.until(lambda: running(tmp_path, reports=3), "a trial under way")[0]
    os.kill(victim.worker, signal.SIGKILL)
    (tmp_path / "go").touch()
    sweep.succeeds()
    assert "died (exit code -9); starting another" in sweep.err
    assert states(tmp_path) == {"COMPLETE": 4}
    assert "is gone" in rows(tmp_path)[victim.number].attributes["sweepstack.lost"]


@slow
def test_workers_whose_sweeper_was_killed_requeue_their_trials_and_end(tmp_path: Path) -> None:
    command = [*APP, "-m", "x=range(0,4)", "trouble.wait=[0,1]", "hydra.sweeper.n_jobs=2"]
    sweep = Sweep(command, tmp_path)
    orphans = sweep.until(lambda: len(found := running(tmp_path)) == 2 and found, "two workers")
    sweep.process.kill()
    sweep.process.join(PATIENCE_S)
    for row in orphans:
        until(lambda pid=row.worker: not is_alive(pid), "the workers' end")
    assert not running(tmp_path)
    assert "Traceback" not in sweep.err
    (tmp_path / "go").touch()
    Sweep(command, tmp_path).succeeds()
    assert states(tmp_path) == {"COMPLETE": 4}
    assert {row.attributes.get("sweepstack.retries", 0) for row in rows(tmp_path)} == {0}


@slow
def test_trials_that_end_their_worker_fail_in_the_end_and_the_others_complete(
    tmp_path: Path,
) -> None:
    command = [*APP, "-m", "x=range(0,12)", "trouble.die=[2,5]", "trouble.exit=[3]"]
    command += ["hydra.sweeper.n_jobs=2", "hydra.sweeper.max_restarts=1"]
    sweep = Sweep(command, tmp_path)
    sweep.succeeds()
    assert ran(tmp_path) == {str(x): {2: 2, 5: 2}.get(x, 1) for x in range(12)}
    assert states(tmp_path) == {"COMPLETE": 9, "FAIL": 3}
    failed = [row for row in rows(tmp_path) if row.state == "FAIL" and not row.is_retried]
    by_point = {
        json.loads(row.attributes["sweepstack.point"])["x"]: row.attributes for row in failed
    }
    assert set(by_point) == {2, 3, 5}
    assert "is gone" in by_point[2]["sweepstack.lost"]
    assert "7" in by_point[3]["error"]


# --- checkpoints of lost trials ------------------------------------------------------------------


def leave_checkpoint(study: Path, number: int, *changes: str) -> None:
    """A trial that was lost after its first checkpoint."""
    place = TrialFolder(study / str(number))
    place.begin(make_spec(*changes, number=number), [])
    (place.path / "checkpoints").mkdir()
    (place.path / "checkpoints" / "step_0000000010.pt").touch()


def test_a_trial_that_died_at_its_very_beginning_loses_no_checkpoint(tmp_path: Path) -> None:
    leave_checkpoint(tmp_path, 0)
    # Trial 1 was to go on from 0, and was killed before it had made its folder.
    TrialFolder(tmp_path / "2").begin(make_spec(number=2), [], [1, 0])
    assert (tmp_path / "2" / "checkpoints" / "step_0000000010.pt").exists()
    assert not (tmp_path / "0" / "checkpoints").exists()


def test_a_trial_with_another_config_begins_anew(tmp_path: Path) -> None:
    leave_checkpoint(tmp_path, 0)
    TrialFolder(tmp_path / "1").begin(make_spec("training.checkpoint_every=5"), [], [0])
    assert not (tmp_path / "1" / "checkpoints").exists()


def test_a_checksum_that_a_killed_trial_left_goes_with_its_checkpoints(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "step_0000000010.pt.sha256").touch()
    checkpoint.clear_trial(tmp_path / "checkpoints")
    assert not (tmp_path / "checkpoints").exists()


@slow
def test_deterministic_numbers_are_the_same_on_one_and_on_two_workers(tmp_path: Path) -> None:
    """At a learning rate of 1 too, where one rounding becomes another accuracy."""

    def histories(jobs: int) -> dict[object, str]:
        folder = tmp_path / str(jobs)
        folder.mkdir()
        words = ("optimizer=adam", "optimizer.lr=0.01,1", "training.seed=0,1", "training.width=5")
        words += ("training.max_steps=40", "training.eval_every=20", "training.deterministic=true")
        sweep = Sweep([*SWEEPSTACK, "-m", *words, f"hydra.sweeper.n_jobs={jobs}"], folder)
        sweep.succeeds()
        (study,) = (folder / "outputs" / "studies").iterdir()
        read = {r.params: (study / str(r.number) / "history.csv").read_text() for r in rows(folder)}
        assert len(read) == 4
        return read

    assert histories(1) == histories(2)
