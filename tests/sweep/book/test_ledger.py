"""A study's total is met exactly, each point of a grid once, whoever claims."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import optuna
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ledger_support import finish, open_ledger, run_all, suggest
from optuna.trial import TrialState

from sweepstack.config.errors import InputError
from sweepstack.study import storage
from sweepstack.study.attributes import POINT
from sweepstack.sweep.book.ledger import Ledger
from sweepstack.sweep.book.studies import open_study


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/studies.db"


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
