"""What becomes of a trial of another application when a signal, its folder or the disk ends it."""

from __future__ import annotations

import errno
import math
import sqlite3
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
from fault_support import rows
from hydra.core.utils import JobReturn, JobStatus
from omegaconf import OmegaConf
from omegaconf.errors import InterpolationKeyError
from sqlalchemy import event
from sqlalchemy.exc import OperationalError

import sweepstack
from sweepstack import storage
from sweepstack.config.errors import EXIT_INTERRUPTED, EnvironmentFault
from sweepstack.sweep import plan, studies
from sweepstack.sweep.worker import Stop, application
from sweepstack.sweep.worker import worker as workers
from sweepstack.sweep.worker.application import Caller
from sweepstack.sweep.worker.worker import Worker


class App:
    """An application whose job is a function of x, run as Hydra's `run_job` runs one."""

    context = task = None

    def __init__(self, job: Callable[[int], Any]):
        self.job = job

    def compose(self, words: list[str]) -> Any:
        x = int(words[0].removeprefix("x="))
        settings = {"job": {"id": "", "num": 0}, "hydra_logging": None, "verbose": False}
        return OmegaConf.create({"x": x, "hydra": settings})

    def checkpointed(self, folder: Path, number: int) -> int:
        return 0

    def runner(self, plan: Any, folder: Path, worker: Any) -> Caller:
        return Caller(self, worker)  # type: ignore[arg-type]


@pytest.fixture
def worker(tmp_path, monkeypatch):
    """`worker(job)`: one of a sweep over x=0,1,2."""

    def run_job(*, config: Any, task_function: Any, hydra_context: Any, **names: str) -> JobReturn:
        returned = JobReturn()
        try:
            returned.return_value = app.job(config.x)
            returned.status = JobStatus.COMPLETED
        except Escapes as error:
            raise error.args[0] from None
        except Exception as error:
            returned.return_value, returned.status = error, JobStatus.FAILED
        return returned

    monkeypatch.setattr(application, "run_job", run_job)
    monkeypatch.setattr(workers, "CLAIM_SHARE", math.inf)  # no trial is claimed ahead
    monkeypatch.setattr(application, "configure_log", lambda *given: None)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    (tmp_path / "outputs").mkdir()
    app = SimpleNamespace(job=None)

    def make(job: Callable[[int], Any]) -> Worker:
        app.job = job
        url = f"sqlite:///{tmp_path}/outputs/studies.db"
        chosen = plan.read({"storage": url, "study_name": "s"}, ["x=0,1,2"], "app")
        chosen = replace(chosen, objectives=("value",), directions=("minimize",))
        opened = storage.connect(url)
        study = studies.open_study(opened, "s", ["minimize"], {"space": "x"})
        book = studies.open_book(chosen, study, opened, lambda number: 0)
        return Worker(chosen, App(job), book, tmp_path, Stop())  # type: ignore[arg-type]

    return make


class Escapes(Exception):
    """Raises what it holds from Hydra's own part of a job."""


def ctrl_c(made: Worker) -> None:
    """What the handler of the signal does."""
    made.stop.ask(EXIT_INTERRUPTED)


def ends(folder: Path) -> list[tuple[str, bool]]:
    """State of each trial, and whether another runs in its place."""
    return [(row.state, row.is_retried) for row in rows(folder)]


@pytest.mark.parametrize("what", ["returns", "raises", "exits"])
def test_a_job_that_makes_something_of_ctrl_c_is_requeued(tmp_path, worker, what):
    """As Lightning does, which leaves with exit code 1; its result would be of half a training."""

    def job(x: int) -> float:
        if x == 1:
            try:
                ctrl_c(made)
            except KeyboardInterrupt:
                if what == "raises":
                    raise RuntimeError("interrupted") from None
                if what == "exits":
                    raise SystemExit(1) from None
        return float(x)

    made = worker(job)
    made.work()

    assert made.stop.code == EXIT_INTERRUPTED
    assert ends(tmp_path) == [("COMPLETE", False), ("FAIL", True), ("WAITING", False)]


def test_ctrl_c_while_a_report_is_written_loses_nothing(tmp_path, worker):
    def job(x: int) -> float:
        for step in (1, 2):
            sweepstack.report(x + step, step)
        return float(x)

    made = worker(job)

    engine = made.book.storage.engine

    @event.listens_for(engine, "checkin")  # the transaction has ended, and nobody knows it yet
    def returned(*given: Any) -> None:
        if made.decisions._pending and made.decisions._pending[0][0].number == 1:
            ctrl_c(made)

    made.work()

    assert made.stop.code == EXIT_INTERRUPTED
    assert ends(tmp_path) == [("COMPLETE", False), ("FAIL", True), ("WAITING", False)]


def test_a_full_disk_ends_the_sweep_and_fails_no_trial(tmp_path, worker):
    def job(x: int) -> float:
        if x == 1:
            raise Escapes(OSError(errno.ENOSPC, "No space left on device", "multirun/1"))
        return float(x)

    with pytest.raises(EnvironmentFault, match=r"trial 1.*No space left on device"):
        worker(job).work()
    assert ends(tmp_path) == [("COMPLETE", False), ("FAIL", True), ("WAITING", False)]


def test_a_folder_that_cannot_be_named_fails_that_trial_alone(tmp_path, worker):
    def job(x: int) -> float:
        if x == 1:
            raise Escapes(InterpolationKeyError("Interpolation key 'model.name' not found"))
        return float(x)

    worker(job).work()
    assert [state for state, _ in ends(tmp_path)] == ["COMPLETE", "FAIL", "COMPLETE"]
    assert rows(tmp_path)[1].attributes["error"] == "Interpolation key 'model.name' not found"


def test_a_report_that_cannot_be_written_ends_the_sweep_and_fails_no_trial(
    tmp_path, worker, monkeypatch
):
    def job(x: int) -> float:
        sweepstack.report(x, 1)
        return float(x)

    made = worker(job)
    write = made.book.write

    def failing(reports: Any = (), endings: Any = ()) -> list[int]:
        found = list(reports)
        if found and found[0].trial.number == 1 and not endings:
            raise OperationalError("INSERT", {}, sqlite3.OperationalError("database is locked"))
        return write(found, endings)

    monkeypatch.setattr(made.book, "write", failing)
    with pytest.raises(EnvironmentFault, match="database is locked"):
        made.work()
    assert ends(tmp_path) == [("COMPLETE", False), ("FAIL", True), ("WAITING", False)]


def test_a_task_may_go_on_though_a_report_was_not_written(tmp_path, worker, monkeypatch):
    def job(x: int) -> float:
        with suppress(OperationalError):
            sweepstack.report(x, 1)
        if x == 2:
            raise RuntimeError("of its own")
        return float(x)

    made = worker(job)
    write, calls = made.book.write, []

    def failing(reports: Any = (), endings: Any = ()) -> list[int]:
        if found := list(reports):
            calls.append(found)
        if found and len(calls) == 1:
            raise OperationalError("INSERT", {}, sqlite3.OperationalError("database is locked"))
        return write(found, endings)

    monkeypatch.setattr(made.book, "write", failing)
    made.work()
    assert [state for state, _ in ends(tmp_path)] == ["COMPLETE", "COMPLETE", "FAIL"]
    assert [row.reports for row in rows(tmp_path)] == [((1, float(x)),) for x in range(3)]
