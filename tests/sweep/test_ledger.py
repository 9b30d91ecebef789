"""A study's total is met exactly, and what was lost or put back is run again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ledger_support import finish, open_ledger, run_all, suggest
from optuna.trial import TrialState
from sqlalchemy import event

from iolaus import storage
from iolaus.attributes import CONTINUES, LOST, POINT, RETRIED, RETRIES, RETRY_OF, WORKER
from iolaus.errors import InputError
from iolaus.sweep import processes
from iolaus.sweep.ledger import Ledger
from iolaus.sweep.studies import open_study


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


def test_finished_and_running_trials_make_up_the_total(url: str) -> None:
    ledger = open_ledger(url, total=4)
    trials = [ledger.claim() for _ in range(4)]
    assert ledger.claim() is None
    finish(ledger, trials[0])
    assert trials[1] is not None
    assert trials[2] is not None
    ledger.study.tell(trials[1], state=TrialState.PRUNED)
    ledger.study.tell(trials[2], state=TrialState.FAIL)
    assert ledger.claim() is None
    assert ledger.counts() == {
        "done": 1,
        "pruned": 1,
        "failed": 1,
        "running": 1,
        "waiting": 0,
        "remaining": 1,
    }


def test_a_raised_total_adds_the_difference(url: str) -> None:
    assert len(run_all(open_ledger(url, total=3))) == 3
    assert len(run_all(open_ledger(url, total=3))) == 0
    assert len(run_all(open_ledger(url, total=5))) == 2


def test_waiting_trials_come_first_and_count(url: str) -> None:
    ledger = open_ledger(url, total=3)
    ledger.study.enqueue_trial({"x": 7.0})
    ledger.study.enqueue_trial({"x": 8.0})
    assert ledger.counts()["waiting"] == 2
    assert run_all(ledger)[:2] == [7.0, 8.0]
    assert len(ledger.study.trials) == 3


def test_samplers_see_what_others_have_finished(url: str) -> None:
    seen = []

    class Watching(optuna.samplers.RandomSampler):
        def before_trial(self, study: optuna.Study, trial: Any) -> None:
            finished = study._get_trials(states=(TrialState.COMPLETE,), use_cache=True)  # as TPE
            seen.append([trial.number for trial in finished])

    ledger, other = open_ledger(url, total=3), open_ledger(url, total=3)
    ledger.study.sampler = Watching()
    ledger.claim()
    finish(other, other.claim())
    ledger.claim()
    assert seen == [[], [1]]


@pytest.mark.parametrize("total", [None, 80, 1000])
def test_each_point_of_a_grid_is_run_once_and_nothing_besides(url: str, total: int | None) -> None:
    ledger = open_ledger(url, total, points=80)
    first = [suggest(trial) for trial in [ledger.claim(), ledger.claim()]]
    rest = run_all(open_ledger(url, total, points=80))
    assert first + rest == [float(index) for index in range(80)]
    points = [json.loads(t.user_attrs[POINT]) for t in ledger.study.trials]
    assert points == [{"x": float(index)} for index in range(80)]
    assert [t.number for t in ledger.study.trials] == list(range(80))


def test_many_are_claimed_at_once_and_never_more_than_the_total(url: str) -> None:
    ledger, other = open_ledger(url, total=10), open_ledger(url, total=10)
    assert [t.number for t in ledger.claim_many(4)] == [0, 1, 2, 3]
    assert [t.number for t in other.claim_many(64)] == [4, 5, 6, 7, 8, 9]
    assert ledger.claim_many(64) == other.claim_many(64) == []
    assert ledger.counts()["running"] == 10


def test_of_what_is_left_a_worker_takes_its_share(url: str) -> None:
    ledger = open_ledger(url, total=100, points=100, workers=4)
    assert [len(ledger.claim_many(64)) for _ in range(4)] == [25, 19, 14, 11]
    assert len(ledger.claim_many(2)) == 2
    assert len(run_all(ledger)) == 29


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.permutations(range(12)),
    st.lists(st.tuples(st.integers(0, 1), st.integers(1, 5), st.booleans()), max_size=8),
)
def test_whoever_claims_how_many_each_point_of_a_grid_is_run_once(
    order: list[int], claims: list[tuple[int, int, bool]]
) -> None:
    """Two processes that know the points in different orders; some trials are put back."""
    opened = storage.connect("sqlite://")
    study = open_study(opened, "study", ["minimize"], {})
    points = [{"x": float(x)} for x in range(12)]
    ledgers = [Ledger(study, 12, points=p) for p in (points, [points[i] for i in order])]
    for who, most, put_back in [*claims, (0, 64, False), (1, 64, False)]:
        for trial in ledgers[who].claim_many(most):
            x = suggest(trial)
            if put_back:
                ledgers[1 - who].release(trial)
            else:
                study.tell(trial, x)
    done = [t.value for t in study.trials if t.state == TrialState.COMPLETE]
    assert sorted(done) == [float(x) for x in range(12)]
    assert [t.number for t in study.trials] == list(range(len(study.trials)))


def test_a_grid_that_is_cut_short_keeps_to_its_total(url: str) -> None:
    assert run_all(open_ledger(url, total=5, points=80)) == [0.0, 1.0, 2.0, 3.0, 4.0]


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
    assert ledger.retry_failed() == 1  # a new start gives it another chance
    assert run_all(ledger) == [1.0]


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


def test_a_study_outside_a_database_is_refused() -> None:
    with pytest.raises(InputError, match=r"must be a database .* got InMemoryStorage"):
        Ledger(optuna.create_study(), total=1)


def test_a_grid_goes_on_though_its_parameters_are_declared_in_another_order(url: str) -> None:
    points = [{"x": float(x), "y": float(y)} for x in range(10) for y in range(10)]
    other_way = [{"y": p["y"], "x": p["x"]} for p in sorted(points, key=lambda p: p["y"])]
    for half, order in ((3, points), (97, other_way)):
        ledger = open_ledger(url, total=100)
        ledger.points = order
        for _ in range(half):
            trial = ledger.claim()
            assert trial is not None
            trial.suggest_float("y", 0.0, 1000.0)
            finish(ledger, trial)
    assert ledger.claim() is None
    found = {(t.params["x"], t.params["y"]) for t in ledger.study.trials}
    assert len(found) == len(ledger.study.trials) == 100


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


def test_what_waits_in_the_place_of_failed_points_is_known(url):
    ledger = open_ledger(url, total=4, points=4)
    for _ in range(2):
        ledger.study.tell(ledger.claim(), state=TrialState.FAIL)
    finish(ledger, ledger.claim())
    assert ledger.tried_again() == 0
    ledger.release(ledger.claim())
    assert ledger.tried_again() == 0  # put back, not failed

    assert ledger.retry_failed() == 2
    assert ledger.tried_again() == 2
    assert ledger.counts()["waiting"] == 3
