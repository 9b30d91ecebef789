"""Trials that are lost, put back or, of a grid, failed are run again, and counted once."""

from __future__ import annotations

import json
import math
import sqlite3
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import book_support
import optuna
import pytest
from book_support import end, falls_silent, finish, one, run_all, suggest
from optuna.trial import TrialState
from sqlalchemy import event

from sweepstack.storage import patience
from sweepstack.study.attributes import CONTINUES, LOST, POINT, RETRIED, RETRIES, RETRY_OF, WORKER
from sweepstack.study.book import (
    Report,
    processes,
)
from sweepstack.study.book.book import Book
from sweepstack.sweep.worker.training_app import TrainingApp
from sweepstack.training.checkpoint import save_trial

pytestmark = pytest.mark.slow


def worker_dies(trial: optuna.Trial | None) -> None:
    """Make the books say that a process that is gone runs `trial`."""
    assert trial is not None
    host_and_pid, _, start_time = processes.this_process().rpartition(":")
    trial.set_user_attr(WORKER, f"{host_and_pid}:{int(start_time) + 1}")


def test_failed_points_are_run_again_once_a_start(open_book: Callable[..., Book]) -> None:
    def run_with_point_1_failing(book: Book) -> list[float]:
        ran = []
        while (trial := one(book)) is not None:
            ran.append(suggest(book, trial))
            fails = ran[-1] == 1.0
            end(book, trial, 0.0, TrialState.FAIL if fails else TrialState.COMPLETE)
        return ran

    book = open_book(total=3, points=3)
    assert book.retry_failed() == 0
    assert run_with_point_1_failing(book) == [0.0, 1.0, 2.0]
    assert book.counts()["remaining"] == 0
    for _ in range(2):
        book = open_book(total=3, points=3)
        assert book.retry_failed() == 1
        assert open_book(total=3, points=3).retry_failed() == 0  # started at the same time
        assert book.counts()["failed"] == 0
        assert run_with_point_1_failing(book) == [1.0]
    assert book.counts() == {
        "done": 2,
        "pruned": 0,
        "failed": 1,
        "running": 0,
        "waiting": 0,
        "remaining": 0,
    }
    assert json.loads(book.study.trials[-1].user_attrs[POINT]) == {"x": 1.0}
    assert book.study.trials[-1].user_attrs[RETRY_OF] == 1


def test_failed_trials_outside_a_grid_stay_finished(open_book: Callable[..., Book]) -> None:
    book = open_book(total=1)
    trial = one(book)
    assert trial is not None
    end(book, trial, None, TrialState.FAIL)
    assert book.retry_failed() == 0
    assert one(book) is None


@pytest.mark.parametrize("how", ["process gone", "no heartbeat"])
@pytest.mark.parametrize("points", [None, 2])
def test_a_lost_trial_is_run_again_with_its_parameters(
    open_book: Callable[..., Book], how: str, points: int | None
) -> None:
    book = open_book(total=2, points=points)
    lost, other = one(book), one(book)
    x = suggest(book, lost)
    finish(book, other)
    assert one(book) is None  # its worker may still be at it
    if how == "process gone":
        worker_dies(lost)
    else:
        falls_silent(book, lost)
    again = one(open_book(total=2, points=points))
    assert again is not None
    assert suggest(book, again) == x
    assert {k: v for k, v in again.user_attrs.items() if k != WORKER} == {
        RETRY_OF: 0,
        CONTINUES: 0,
        RETRIES: 1,
        **({} if points is None else {POINT: '{"x": 0.0}'}),
    }
    finish(book, again)
    assert one(book) is None
    first = book.study.trials[0]
    assert first.state == TrialState.FAIL
    assert first.user_attrs[LOST].startswith("its worker ")
    assert book.counts()["failed"] == 0
    assert [t.state.name for t in book.study.trials] == ["FAIL", "COMPLETE", "COMPLETE"]


def test_who_was_only_held_up_cannot_tell_the_trial_a_second_time(
    open_book: Callable[..., Book],
) -> None:
    book = open_book(total=1)
    trial = one(book)
    assert trial is not None
    falls_silent(book, trial)
    finish(book, one(book))
    assert end(book, trial, 0.0) == [0]
    assert book.counts()["done"] == 1


def test_a_heartbeat_keeps_a_trial(url: str) -> None:
    book = book_support.open_book(url, total=2)
    kept, lost = one(book), one(book)
    assert kept is not None
    falls_silent(book, kept)
    falls_silent(book, lost)
    book.beat([kept])
    assert book.recover() == 1
    assert [t.state.name for t in book.study.trials] == ["RUNNING", "FAIL", "WAITING"]


def test_a_heartbeat_keeps_the_trials_of_a_worker(open_book: Callable[..., Book]) -> None:
    book = open_book(total=1)
    trial = one(book)
    assert trial is not None
    falls_silent(book, trial)
    book.beat([trial])
    assert book.recover() == 0


def test_grace_is_how_long_a_worker_may_be_silent(open_book: Callable[..., Book]) -> None:
    book = open_book(total=1, grace_s=7200)
    falls_silent(book, one(book))
    assert book.recover() == 0
    assert open_book(total=1, grace_s=1800).recover() == 1


@pytest.mark.parametrize("worker", ["elsewhere/1:1:1", None])
def test_trials_of_other_hosts_and_other_programs_are_left_alone(
    open_book: Callable[..., Book], worker: str | None
) -> None:
    book = open_book(total=1)
    if worker is None:
        book.study.ask()
    else:
        trial = one(book)
        assert trial is not None
        trial.set_user_attr(WORKER, worker)
    assert one(book) is None
    assert book.counts()["running"] == 1


def test_a_trial_that_kills_its_workers_is_given_up(open_book: Callable[..., Book]) -> None:
    book = open_book(total=2, points=2, max_restarts=3)
    finish(book, one(book))
    for _ in range(4):
        worker_dies(one(book))
    assert one(book) is None
    assert book.counts()["remaining"] == 0
    line = book.study.trials[1:]
    assert [t.state for t in line] == [TrialState.FAIL] * 4
    assert [t.user_attrs.get(RETRIES) for t in line] == [None, 1, 2, 3]
    assert [t.user_attrs.get(CONTINUES) for t in line] == [None, 1, 2, 3]
    assert {t.user_attrs.get(RETRY_OF) for t in line[1:]} == {1}
    assert [RETRIED in t.user_attrs for t in line] == [True, True, True, False]
    assert book.retry_failed() == 0  # at most so often, in all starts of the command together
    assert open_book(total=2, points=2, max_restarts=4).retry_failed() == 1
    assert run_all(book) == [1.0]


def test_what_kills_its_worker_is_tried_at_once_and_then_behind_what_was_never_tried(
    open_book: Callable[..., Book],
) -> None:
    """Each start of the command loses the trial that kills it."""

    def start() -> list[float]:
        book = open_book(total=5, points=5, max_restarts=2)
        book.recover()
        book.retry_failed()
        ran = []
        while (trial := one(book)) is not None:
            ran.append(suggest(book, trial))
            if ran[-1] == 1.0:
                worker_dies(trial)
                break
            end(book, trial, 0.0)
        return ran

    assert [start() for _ in range(5)] == [[0.0, 1.0], [1.0], [2.0, 3.0, 4.0, 1.0], [], []]
    counts = open_book(total=5, points=5).counts()
    assert (counts["done"], counts["failed"], counts["remaining"]) == (4, 1, 0)


def test_without_a_total_what_kills_its_worker_is_given_up_and_others_go_on(
    open_book: Callable[..., Book],
) -> None:
    book = open_book(total=None, max_restarts=2)
    x = []
    for _ in range(4):
        trial = one(book)
        x.append(suggest(book, trial))
        worker_dies(trial)
        book.recover()
    assert x[0] == x[1] == x[2] != x[3]
    assert book.counts()["failed"] == 1


@pytest.mark.parametrize("how", ["lost", "put back"])
def test_what_was_requeued_comes_before_all_that_waits(
    open_book: Callable[..., Book], how: str
) -> None:
    """A sampler, and who reads the study, wait for it; others may be enqueued by the hundred."""
    book = open_book(total=6)
    trial = one(book)
    x = suggest(book, trial)
    for value in (901.0, 902.0):
        book.study.enqueue_trial({"x": value})
    if how == "lost":
        worker_dies(trial)
        assert book.recover() == 1
    else:
        assert trial is not None
        book.release(trial)
    assert run_all(book)[:3] == [x, 901.0, 902.0]


def test_who_died_is_looked_for_without_holding_the_study(open_book: Callable[..., Book]) -> None:
    book = open_book(total=3)
    lost, other = one(book), one(book)
    book._held = None  # type: ignore[assignment]
    assert book.recover() == 0
    del book._held
    worker_dies(lost)
    assert book.recover() == 1
    assert other is not None
    assert book.counts()["running"] == 1


def test_silence_while_the_database_was_away_is_no_sign_of_death(
    open_book: Callable[..., Book], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No worker could send a heartbeat; those of other hosts have not done so again yet."""
    book = open_book(total=1)
    trial = one(book)
    assert trial is not None
    trial.set_user_attr(WORKER, "elsewhere/1:7:8")
    falls_silent(book, trial)
    monkeypatch.setattr(patience, "_back", time.monotonic())
    assert book.recover() == 0
    monkeypatch.setattr(patience, "_back", -math.inf)
    assert book.recover() == 1


@pytest.mark.parametrize("host", ["here", "elsewhere"])
def test_a_process_that_is_seen_to_live_may_be_silent_for_longer(
    open_book: Callable[..., Book], host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    book = open_book(total=1)
    trial = one(book)
    assert trial is not None
    if host == "elsewhere":
        trial.set_user_attr(WORKER, "elsewhere/1:7:8")
    monkeypatch.setattr(book, "_at_work", lambda page: [(trial.user_attrs[WORKER], 60.0)])
    held = []
    monkeypatch.setattr(book, "_records", lambda *given: held.append(given) or [])
    book.recover()
    assert len(held) == (host == "elsewhere")


def test_failed_points_are_tried_again_behind_what_was_never_tried(
    open_book: Callable[..., Book],
) -> None:
    book = open_book(total=4, points=4)
    trial = one(book)
    suggest(book, trial)
    end(book, trial, None, TrialState.FAIL)
    assert book.retry_failed() == 1
    assert run_all(book) == [1.0, 2.0, 3.0, 0.0]


def reports(book: Book, trial: optuna.Trial, step: int) -> None:
    book.write([Report(trial, step, 0.5)])


@pytest.mark.parametrize("how", ["reports", "checkpoints"])
def test_only_restarts_without_progress_count(open_book: Callable[..., Book], how: str) -> None:
    steps: dict[int, int | None] = {}
    book = open_book(total=1, max_restarts=1, checkpointed=lambda n: steps.get(n, 0))
    for reached in (0, 10, 10, 30, 40, 40, 40):
        trial = one(book)
        suggest(book, trial)
        assert trial is not None
        if how == "reports":
            reports(book, trial, reached)
        else:
            steps[trial.number] = reached
        worker_dies(trial)
    assert one(book) is None
    assert book.counts()["failed"] == 1
    assert [t.user_attrs.get(RETRIES) for t in book.study.trials] == [None, 1, 0, 1, 0, 0, 1]
    assert "hydra.sweeper.max_restarts" in book.study.trials[-1].user_attrs[LOST]


@pytest.mark.parametrize("how", ["further", "same step", "damaged"])
def test_a_checkpoint_that_moved_on_is_progress_if_it_can_be_read(
    open_book: Callable[..., Book], tmp_path: Path, how: str
) -> None:
    """Three trials of a stack, whose worker is killed six times, or until it finds none."""
    checkpointed = partial(TrainingApp().checkpointed, tmp_path)
    book = open_book(total=3, max_restarts=3, checkpointed=checkpointed)
    for kill in range(1, 7 if how == "further" else 40):  # suspects come back one by one
        if not (trials := book.claim(3)):
            break
        for trial in trials:
            place = tmp_path / str(trial.number)
            before = tmp_path / str(trial.user_attrs.get(CONTINUES))
            if before.exists():
                before.rename(place)
            step = 10 if how == "same step" else 10 * kill
            save_trial(place / "checkpoints", step, {"tensors": {}})
            if how == "damaged":
                file = place / "checkpoints" / f"step_{step:010d}.pt"
                file.write_bytes(file.read_bytes()[:-1])
            worker_dies(trial)
    failed = {"further": 0, "same step": 3, "damaged": 3}[how]
    while (trial := one(book)) is not None:
        assert trial.user_attrs[RETRIES] == 0
        finish(book, trial)
    counts = book.counts()
    assert (counts["done"], counts["failed"]) == (3 - failed, failed)


def test_a_trial_that_had_not_begun_is_not_blamed(open_book: Callable[..., Book]) -> None:
    book = open_book(total=1, max_restarts=1, checkpointed=lambda number: None)
    for _ in range(5):
        worker_dies(one(book))
    finish(book, one(book))
    assert book.counts()["done"] == 1


def test_a_trial_that_is_requeued_waits_for_the_next_start(open_book: Callable[..., Book]) -> None:
    book = open_book(total=1, max_restarts=3)
    trial = one(book)
    x = suggest(book, trial)
    for _ in range(5):  # more often than it may be lost: an interrupt is not its fault
        assert trial is not None
        book.release(trial)
        book.release(trial)  # as when Ctrl-C comes twice
        assert book.counts()["waiting"] == book.counts()["remaining"] == 1
        trial = one(open_book(total=1))
        assert suggest(book, trial) == x
    finish(book, trial)
    assert book.counts() == {
        "done": 1,
        "pruned": 0,
        "failed": 0,
        "running": 0,
        "waiting": 0,
        "remaining": 0,
    }


@pytest.mark.parametrize("how", ["release", "recover"])
def test_many_trials_are_requeued_with_as_few_queries_as_one(tmp_path, monkeypatch, how):
    def statements(count: int) -> int:
        book = book_support.open_book(f"sqlite:///{tmp_path}/{how}{count}.db", total=40)
        trials = book.claim(count)
        for trial in trials:
            suggest(book, trial)
        done: list[str] = []
        event.listen(book._engine, "before_cursor_execute", lambda *given: done.append(given[2]))
        if how == "release":
            book.release(*trials)
        else:
            monkeypatch.setattr(processes, "is_gone", lambda worker: True)
            assert book.recover() == count
            monkeypatch.undo()
        requeued = len(done)
        assert book.counts()["waiting"] == count
        waiting = [t for t in book.study.trials if t.state == TrialState.WAITING]
        fixed = [t.system_attrs["fixed_params"] for t in waiting]
        assert fixed == [t.params for t in book.study.trials[:count]]
        return requeued

    assert statements(30) == statements(1)


def test_points_that_another_start_tries_again_are_not_counted_as_failed(open_book):
    book, other = open_book(total=3, points=3), open_book(total=3, points=3)
    trial = one(book)
    suggest(book, trial)
    end(book, trial, None, TrialState.FAIL)
    finish(book, one(book))
    assert book.counts()["failed"] == 1

    assert other.retry_failed() == 1
    assert book.counts() == other.counts()
    assert book.counts()["failed"] == 0
    assert run_all(book) == [2.0, 0.0]


def test_more_failed_trials_are_counted_than_a_query_may_name(url):
    book = book_support.open_book(url, total=600, points=600)
    for trial in book.claim(600):
        end(book, trial, None, TrialState.FAIL)
    later = book_support.open_book(url, total=600, points=600)
    later._engine.dispose()

    @event.listens_for(later._engine, "connect")
    def connected(connection: sqlite3.Connection, _: Any) -> None:
        connection.setlimit(sqlite3.SQLITE_LIMIT_VARIABLE_NUMBER, 550)

    assert later.counts()["failed"] == 600


def lost_elsewhere(book: Book, trials: list[optuna.Trial]) -> None:
    """Let the worker of trials be one of another host that fell silent."""
    for trial in trials:
        trial.set_user_attr(WORKER, "elsewhere/1:7:8")
        falls_silent(book, trial)
    assert book.recover() == len(trials)


def test_a_trial_that_kills_workers_of_other_hosts_is_not_tried_for_ever(
    open_book: Callable[..., Book],
) -> None:
    """Their folders are not here, so that whether it had begun cannot be seen."""
    book = open_book(total=1, max_restarts=2, checkpointed=lambda number: None)
    for retries in range(3):
        [trial] = book.claim()
        assert trial.user_attrs.get(RETRIES, 0) == retries
        lost_elsewhere(book, [trial])
    assert book.counts()["failed"] == 1
    assert book.claim() == []


def test_of_a_shared_folder_it_is_seen_what_had_begun(open_book: Callable[..., Book]) -> None:
    book = open_book(total=3, checkpointed=lambda number: 0 if number == 0 else None)
    lost_elsewhere(book, book.claim(3))
    waiting = [t for t in book.study.trials if t.state == TrialState.WAITING]
    assert [t.user_attrs[RETRIES] for t in waiting] == [1, 0, 0]
