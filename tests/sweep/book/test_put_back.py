"""Trials that are lost, put back or, of a grid, failed are run again, and counted once."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy
from ledger_support import finish, open_ledger, run_all, suggest
from optuna.trial import TrialState
from sqlalchemy import event

from sweepstack.study.attributes import CONTINUES, LOST, POINT, RETRIED, RETRIES, RETRY_OF, WORKER
from sweepstack.sweep.book import processes
from sweepstack.sweep.book.journal import Journal, Report
from sweepstack.sweep.book.ledger import Ledger
from sweepstack.sweep.book.live_trial import LiveTrial


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/studies.db"


def worker_dies(trial: optuna.Trial | None) -> None:
    """Make the books say that a process that is gone runs `trial`."""
    assert trial is not None
    host_and_pid, _, start_time = processes.this_process().rpartition(":")
    trial.set_user_attr(WORKER, f"{host_and_pid}:{int(start_time) + 1}")


def falls_silent(ledger: Ledger, trial: optuna.Trial | None) -> None:
    """Let the last heartbeat of `trial` be an hour ago."""
    assert trial is not None
    with ledger._engine.begin() as connection:
        connection.execute(
            sqlalchemy.text(
                "UPDATE trial_heartbeats SET heartbeat = datetime('now', '-1 hour')"
                "WHERE trial_id = :id"
            ),
            {"id": trial._trial_id},
        )


def test_failed_points_are_run_again_once_a_start(url: str) -> None:
    def run_with_point_1_failing(ledger: Ledger) -> list[float]:
        ran = []
        while (trial := ledger.claim()) is not None:
            ran.append(suggest(trial))
            fails = ran[-1] == 1.0
            ledger.study.tell(trial, None if fails else 0.0, TrialState.FAIL if fails else None)
        return ran

    ledger = open_ledger(url, total=3, points=3)
    assert ledger.retry_failed() == 0
    assert run_with_point_1_failing(ledger) == [0.0, 1.0, 2.0]
    assert ledger.counts()["remaining"] == 0
    for _ in range(2):
        ledger = open_ledger(url, total=3, points=3)
        assert ledger.retry_failed() == 1
        assert open_ledger(url, total=3, points=3).retry_failed() == 0  # started at the same time
        assert ledger.counts()["failed"] == 0
        assert run_with_point_1_failing(ledger) == [1.0]
    assert ledger.counts() == {
        "done": 2,
        "pruned": 0,
        "failed": 1,
        "running": 0,
        "waiting": 0,
        "remaining": 0,
    }
    assert json.loads(ledger.study.trials[-1].user_attrs[POINT]) == {"x": 1.0}
    assert ledger.study.trials[-1].user_attrs[RETRY_OF] == 1


def test_failed_trials_outside_a_grid_stay_finished(url: str) -> None:
    ledger = open_ledger(url, total=1)
    trial = ledger.claim()
    assert trial is not None
    ledger.study.tell(trial, state=TrialState.FAIL)
    assert ledger.retry_failed() == 0
    assert ledger.claim() is None


@pytest.mark.parametrize("how", ["process gone", "no heartbeat"])
@pytest.mark.parametrize("points", [None, 2])
def test_a_lost_trial_is_run_again_with_its_parameters(
    url: str, how: str, points: int | None
) -> None:
    ledger = open_ledger(url, total=2, points=points)
    lost, other = ledger.claim(), ledger.claim()
    x = suggest(lost)
    finish(ledger, other)
    assert ledger.claim() is None  # its worker may still be at it
    if how == "process gone":
        worker_dies(lost)
    else:
        falls_silent(ledger, lost)
    again = open_ledger(url, total=2, points=points).claim()
    assert again is not None
    assert suggest(again) == x
    assert {k: v for k, v in again.user_attrs.items() if k != WORKER} == {
        RETRY_OF: 0,
        CONTINUES: 0,
        RETRIES: 1,
        **({} if points is None else {POINT: '{"x": 0.0}'}),
    }
    finish(ledger, again)
    assert ledger.claim() is None
    first = ledger.study.trials[0]
    assert first.state == TrialState.FAIL
    assert first.user_attrs[LOST].startswith("its worker ")
    assert ledger.counts()["failed"] == 0
    assert [t.state.name for t in ledger.study.trials] == ["FAIL", "COMPLETE", "COMPLETE"]


def test_who_was_only_held_up_cannot_tell_the_trial_a_second_time(url: str) -> None:
    ledger = open_ledger(url, total=1)
    trial = ledger.claim()
    assert trial is not None
    falls_silent(ledger, trial)
    finish(ledger, ledger.claim())
    with pytest.raises(ValueError, match="Cannot tell a FAIL trial"):
        ledger.study.tell(trial, 0.0)
    assert ledger.counts()["done"] == 1


def test_a_heartbeat_keeps_a_trial(url: str) -> None:
    ledger = open_ledger(url, total=2)
    kept, lost = ledger.claim(), ledger.claim()
    assert kept is not None
    falls_silent(ledger, kept)
    falls_silent(ledger, lost)
    ledger.beat([kept])
    assert ledger.recover() == 1
    assert [t.state.name for t in ledger.study.trials] == ["RUNNING", "FAIL", "WAITING"]


def test_grace_is_how_long_a_worker_may_be_silent(url: str) -> None:
    ledger = open_ledger(url, total=1, grace_s=7200)
    falls_silent(ledger, ledger.claim())
    assert ledger.recover() == 0
    assert open_ledger(url, total=1, grace_s=1800).recover() == 1


@pytest.mark.parametrize("worker", ["elsewhere/1:1:1", None])
def test_trials_of_other_hosts_and_other_programs_are_left_alone(
    url: str, worker: str | None
) -> None:
    ledger = open_ledger(url, total=1)
    if worker is None:
        ledger.study.ask()
    else:
        trial = ledger.claim()
        assert trial is not None
        trial.set_user_attr(WORKER, worker)
    assert ledger.claim() is None
    assert ledger.counts()["running"] == 1


def test_a_trial_that_kills_its_workers_is_given_up(url: str) -> None:
    ledger = open_ledger(url, total=2, points=2, max_restarts=3)
    finish(ledger, ledger.claim())
    for _ in range(4):
        worker_dies(ledger.claim())
    assert ledger.claim() is None
    assert ledger.counts()["remaining"] == 0
    line = ledger.study.trials[1:]
    assert [t.state for t in line] == [TrialState.FAIL] * 4
    assert [t.user_attrs.get(RETRIES) for t in line] == [None, 1, 2, 3]
    assert [t.user_attrs.get(CONTINUES) for t in line] == [None, 1, 2, 3]
    assert {t.user_attrs.get(RETRY_OF) for t in line[1:]} == {1}
    assert [RETRIED in t.user_attrs for t in line] == [True, True, True, False]
    assert ledger.retry_failed() == 0  # at most so often, in all starts of the command together
    assert open_ledger(url, total=2, points=2, max_restarts=4).retry_failed() == 1
    assert run_all(ledger) == [1.0]


def test_what_kills_its_worker_is_tried_again_behind_what_was_never_tried(url: str) -> None:
    """Each start of the command loses the trial that kills it, and reaches one more point."""

    def start() -> list[float]:
        ledger = open_ledger(url, total=5, points=5, max_restarts=2)
        ledger.recover()
        ledger.retry_failed()
        ran = []
        while (trial := ledger.claim()) is not None:
            ran.append(suggest(trial))
            if ran[-1] == 1.0:
                worker_dies(trial)
                break
            ledger.study.tell(trial, 0.0)
        return ran

    assert [start() for _ in range(5)] == [[0.0, 1.0], [2.0, 3.0, 4.0, 1.0], [1.0], [], []]
    counts = open_ledger(url, total=5, points=5).counts()
    assert (counts["done"], counts["failed"], counts["remaining"]) == (4, 1, 0)


def test_without_a_total_what_kills_its_worker_is_given_up_and_others_go_on(url: str) -> None:
    ledger = open_ledger(url, total=None, max_restarts=2)
    x = []
    for _ in range(4):
        trial = ledger.claim()
        x.append(suggest(trial))
        worker_dies(trial)
        ledger.recover()
    assert x[0] == x[1] == x[2] != x[3]
    assert ledger.counts()["failed"] == 1


def test_failed_points_are_tried_again_behind_what_was_never_tried(url: str) -> None:
    ledger = open_ledger(url, total=4, points=4)
    trial = ledger.claim()
    suggest(trial)
    ledger.study.tell(trial, state=TrialState.FAIL)
    assert ledger.retry_failed() == 1
    assert run_all(ledger) == [1.0, 2.0, 3.0, 0.0]


def reports(trial: LiveTrial, step: int) -> None:
    Journal(trial.study).write([Report(trial, step, 0.5)])


@pytest.mark.parametrize("how", ["reports", "checkpoints"])
def test_only_restarts_without_progress_count(url: str, how: str) -> None:
    steps: dict[int, int | None] = {}
    ledger = open_ledger(url, total=1, max_restarts=1, checkpointed=lambda n: steps.get(n, 0))
    for reached in (0, 10, 10, 30, 40, 40, 40):
        trial = ledger.claim()
        suggest(trial)
        assert trial is not None
        if how == "reports":
            reports(trial, reached)
        else:
            steps[trial.number] = reached
        worker_dies(trial)
    assert ledger.claim() is None
    assert ledger.counts()["failed"] == 1
    assert [t.user_attrs.get(RETRIES) for t in ledger.study.trials] == [None, 1, 0, 1, 0, 0, 1]
    assert "hydra.sweeper.max_restarts" in ledger.study.trials[-1].user_attrs[LOST]


def test_a_trial_that_had_not_begun_is_not_blamed(url: str) -> None:
    ledger = open_ledger(url, total=1, max_restarts=1, checkpointed=lambda number: None)
    for _ in range(5):
        worker_dies(ledger.claim())
    finish(ledger, ledger.claim())
    assert ledger.counts()["done"] == 1


def test_a_trial_that_is_put_back_waits_for_the_next_start(url: str) -> None:
    ledger = open_ledger(url, total=1, max_restarts=3)
    trial = ledger.claim()
    x = suggest(trial)
    for _ in range(5):  # more often than it may be lost: an interrupt is not its fault
        assert trial is not None
        ledger.release(trial)
        ledger.release(trial)  # as when Ctrl-C comes twice
        assert ledger.counts()["waiting"] == ledger.counts()["remaining"] == 1
        trial = open_ledger(url, total=1).claim()
        assert suggest(trial) == x
    finish(ledger, trial)
    assert ledger.counts() == {
        "done": 1,
        "pruned": 0,
        "failed": 0,
        "running": 0,
        "waiting": 0,
        "remaining": 0,
    }


@pytest.mark.parametrize("how", ["release", "recover"])
def test_many_trials_are_put_back_with_as_few_queries_as_one(tmp_path, monkeypatch, how):
    def statements(count: int) -> int:
        ledger = open_ledger(f"sqlite:///{tmp_path}/{how}{count}.db", total=40)
        trials = ledger.claim_many(count)
        for trial in trials:
            suggest(trial)
        done: list[str] = []
        event.listen(ledger._engine, "before_cursor_execute", lambda *given: done.append(given[2]))
        if how == "release":
            ledger.release(*trials)
        else:
            monkeypatch.setattr(processes, "is_gone", lambda worker: True)
            assert ledger.recover() == count
            monkeypatch.undo()
        put_back = len(done)
        assert ledger.counts()["waiting"] == count
        waiting = [t for t in ledger.study.trials if t.state == TrialState.WAITING]
        fixed = [t.system_attrs["fixed_params"] for t in waiting]
        assert fixed == [t.params for t in ledger.study.trials[:count]]
        return put_back

    assert statements(30) == statements(1)


def test_points_that_another_start_tries_again_are_not_counted_as_failed(url):
    ledger, other = open_ledger(url, total=3, points=3), open_ledger(url, total=3, points=3)
    trial = ledger.claim()
    suggest(trial)
    ledger.study.tell(trial, state=TrialState.FAIL)
    finish(ledger, ledger.claim())
    assert ledger.counts()["failed"] == 1

    assert other.retry_failed() == 1
    assert ledger.counts() == other.counts()
    assert ledger.counts()["failed"] == 0
    assert run_all(ledger) == [2.0, 0.0]


def test_more_failed_trials_are_counted_than_a_query_may_name(url):
    ledger = open_ledger(url, total=600, points=600)
    for trial in ledger.claim_many(600):
        ledger.study.tell(trial, state=TrialState.FAIL)
    later = open_ledger(url, total=600, points=600)
    later._engine.dispose()

    @event.listens_for(later._engine, "connect")
    def connected(connection: sqlite3.Connection, _: Any) -> None:
        connection.setlimit(sqlite3.SQLITE_LIMIT_VARIABLE_NUMBER, 550)

    assert later.counts()["failed"] == 600
