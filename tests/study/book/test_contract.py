"""A study's total is met exactly, each point of a grid once, whoever claims."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import optuna
import pytest
from book_support import end, falls_silent, finish, one, run_all, suggest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from optuna.trial import TrialState

from sweepstack import storage
from sweepstack.study.attributes import POINT
from sweepstack.study.book import (
    Owner,
)
from sweepstack.study.book.book import Book
from sweepstack.study.book.bulk import BulkBook
from sweepstack.sweep.studies import open_study

pytestmark = pytest.mark.slow


def test_finished_and_running_trials_make_up_the_total(open_book: Callable[..., Book]) -> None:
    book = open_book(total=4)
    trials = [one(book) for _ in range(4)]
    assert one(book) is None
    finish(book, trials[0])
    assert trials[1] is not None
    assert trials[2] is not None
    end(book, trials[1], None, TrialState.PRUNED)
    end(book, trials[2], None, TrialState.FAIL)
    assert one(book) is None
    assert book.counts() == {
        "done": 1,
        "pruned": 1,
        "failed": 1,
        "running": 1,
        "waiting": 0,
        "remaining": 1,
    }


def test_a_raised_total_adds_the_difference(open_book: Callable[..., Book]) -> None:
    assert len(run_all(open_book(total=3))) == 3
    assert len(run_all(open_book(total=3))) == 0
    assert len(run_all(open_book(total=5))) == 2


def test_waiting_trials_come_first_and_count(open_book: Callable[..., Book]) -> None:
    book = open_book(total=3)
    book.study.enqueue_trial({"x": 7.0})
    book.study.enqueue_trial({"x": 8.0})
    assert book.counts()["waiting"] == 2
    assert run_all(book)[:2] == [7.0, 8.0]
    assert len(book.study.trials) == 3


def test_samplers_see_what_others_have_finished(open_book: Callable[..., Book]) -> None:
    seen = []

    class Watching(optuna.samplers.RandomSampler):
        def before_trial(self, study: optuna.Study, trial: Any) -> None:
            finished = study._get_trials(states=(TrialState.COMPLETE,), use_cache=True)  # as TPE
            seen.append([trial.number for trial in finished])

    book, other = open_book(total=3), open_book(total=3)
    book.study.sampler = Watching()
    one(book)
    finish(other, one(other))
    one(book)
    assert seen == [[], [1]]


@pytest.mark.parametrize("total", [None, 80, 1000])
def test_each_point_of_a_grid_is_run_once_and_nothing_besides(
    open_book: Callable[..., Book], total: int | None
) -> None:
    book = open_book(total, points=80)
    first = [suggest(book, trial) for trial in [one(book), one(book)]]
    rest = run_all(open_book(total, points=80))
    assert first + rest == [float(index) for index in range(80)]
    points = [json.loads(t.user_attrs[POINT]) for t in book.study.trials]
    assert points == [{"x": float(index)} for index in range(80)]
    assert [t.number for t in book.study.trials] == list(range(80))


def test_many_are_claimed_at_once_and_never_more_than_the_total(
    open_book: Callable[..., Book],
) -> None:
    book, other = open_book(total=10), open_book(total=10)
    assert [t.number for t in book.claim(4)] == [0, 1, 2, 3]
    assert [t.number for t in other.claim(64)] == [4, 5, 6, 7, 8, 9]
    assert book.claim(64) == other.claim(64) == []
    assert book.counts()["running"] == 10


def test_of_what_is_left_a_worker_takes_its_share(open_book: Callable[..., Book]) -> None:
    book = open_book(total=100, points=100, workers=4)
    assert [len(book.claim(64)) for _ in range(4)] == [25, 19, 14, 11]
    assert len(book.claim(2)) == 2
    assert len(run_all(book)) == 29


def test_workers_with_room_for_all_end_together(open_book: Callable[..., Book]) -> None:
    """Each asks again and again while it has room; trials of one time run at once."""
    books = [open_book(total=24, points=24) for _ in range(3)]
    held: list[list[optuna.Trial]] = [[], [], []]
    books[0].workers = 1
    held[0] = books[0].claim(4)  # alone at first
    for book in books:
        book.workers = 3
    rounds = 0
    while True:
        for book, mine in zip(books, held, strict=True):
            while new := book.claim(64 - len(mine), begun=len(mine)):
                mine += new
        if not any(held):
            break
        rounds += 1
        sizes = sorted(len(mine) for mine in held)
        assert sizes[-1] - sizes[0] <= 1, sizes
        for book, mine in zip(books, held, strict=True):
            for trial in mine:
                finish(book, trial)
            mine.clear()
    assert rounds == 1
    assert books[0].counts()["done"] == 24


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.permutations(range(12)),
    st.lists(st.tuples(st.integers(0, 1), st.integers(1, 5), st.booleans()), max_size=8),
)
def test_whoever_claims_how_many_each_point_of_a_grid_is_run_once(
    order: list[int], claims: list[tuple[int, int, bool]]
) -> None:
    """Two processes that know the points in different orders; some trials are requeued."""
    opened = storage.connect("sqlite://")
    study = open_study(opened, "study", ["minimize"], {})
    points = [{"x": float(x)} for x in range(12)]
    orders = (points, [points[i] for i in order])
    books = [BulkBook(study, opened, 12, points=each) for each in orders]
    for who, most, requeued in [*claims, (0, 64, False), (1, 64, False)]:
        for trial in books[who].claim(most):
            x = suggest(books[who], trial)
            if requeued:
                books[1 - who].release(trial)
            else:
                study.tell(trial, x)
    done = [t.value for t in study.trials if t.state == TrialState.COMPLETE]
    assert sorted(done) == [float(x) for x in range(12)]
    assert [t.number for t in study.trials] == list(range(len(study.trials)))


def test_a_grid_that_is_cut_short_keeps_to_its_total(open_book: Callable[..., Book]) -> None:
    assert run_all(open_book(total=5, points=80)) == [0.0, 1.0, 2.0, 3.0, 4.0]


def test_a_grid_goes_on_though_its_parameters_are_declared_in_another_order(
    open_book: Callable[..., Book],
) -> None:
    points = [{"x": float(x), "y": float(y)} for x in range(10) for y in range(10)]
    other_way = [{"y": p["y"], "x": p["x"]} for p in sorted(points, key=lambda p: p["y"])]
    for half, order in ((3, points), (97, other_way)):
        book = open_book(total=100, points=order)
        for _ in range(half):
            trial = one(book)
            assert trial is not None
            trial.suggest_float("y", 0.0, 1000.0)
            finish(book, trial)
    assert one(book) is None
    found = {(t.params["x"], t.params["y"]) for t in book.study.trials}
    assert len(found) == len(book.study.trials) == 100


def test_what_several_starts_settle_is_what_the_first_said(open_book: Callable[..., Book]) -> None:
    book, other = open_book(total=1), open_book(total=1)
    assert book.settle("place", {"key": 1}) == {"key": 1}
    assert other.settle("place", {"key": 2}) == {"key": 1}
    assert other.study.user_attrs["place"] == {"key": 1}


def test_an_effect_is_of_whoever_took_it_last(open_book: Callable[..., Book]) -> None:
    book = open_book(3)
    trials = book.claim(3)
    for trial in trials:
        suggest(book, trial)
    assert book.take_effects([(trials[1], "effect")]) == [None]
    end(book, trials[1], state=TrialState.FAIL)
    book.effect_ended("effect", trials[1].number, TrialState.FAIL)
    assert book.take_effects([(trials[0], "effect")]) == [None]

    other = open_book(3)
    (owner,) = other.take_effects([(trials[2], "effect")])
    assert isinstance(owner, Owner)
    assert (owner.number, owner.state) == (0, TrialState.RUNNING)


def test_a_trial_that_was_presumed_dead_takes_an_effect_and_ends_lost(
    open_book: Callable[..., Book],
) -> None:
    book = open_book(1)
    (trial,) = book.claim()
    suggest(book, trial)
    falls_silent(book, trial)
    assert open_book(1).recover() == 1
    assert book.take_effects([(trial, "effect")]) == [None]
    assert end(book, trial) == [trial.number]
