"""A budget of steps is overshot by less than one trial, however many workers there are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna
import pytest
from book_support import KINDS, end, open_book, suggest
from sweep_support import QUICK, states, study

from sweepstack.study.attributes import PLANNED
from sweepstack.study.book import processes
from sweepstack.study.book.book import Book


class Crew:
    """Three workers of one study, each with a process of its own."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, kind: str, most: int):
        self.monkeypatch, self.most = monkeypatch, most
        url = f"sqlite:///{folder}/studies.db"
        self.books = {name: open_book(url, total=None, kind=kind) for name in "abc"}

    def claim(self, name: str) -> optuna.Trial | None:
        here = processes.this_process()
        worker = here if name == "a" else f"{here}{name}"
        with self.monkeypatch.context() as patch:
            patch.setattr(processes, "this_process", lambda: worker)
            patch.setattr(processes, "is_gone", lambda worker: False)
            return next(iter(self.books[name].claim(max_steps=self.most)), None)

    def plan(self, trial: optuna.Trial | None, steps: int) -> optuna.Trial:
        assert trial is not None
        trial.set_user_attr(PLANNED, steps)
        return trial


@pytest.fixture(params=KINDS)
def crew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Crew:
    return Crew(tmp_path, monkeypatch, request.param, most=20)


def ends(book: Book, trial: optuna.Trial, steps: int, **more: Any) -> None:
    suggest(book, trial)
    end(book, trial, steps=steps, **more)


def test_what_others_may_take_counts(crew: Crew) -> None:
    for name in "ab":
        crew.plan(crew.claim(name), 8)
    third = crew.plan(crew.claim("a"), 8)  # begins at 16 of 20
    assert crew.claim("b") is None

    ends(crew.books["a"], third, 3)  # pruned, say: 8 + 8 + 3
    assert crew.claim("b") is not None


def test_a_trial_that_has_not_said_yet_counts_as_the_longest(crew: Crew) -> None:
    ends(crew.books["a"], crew.plan(crew.claim("a"), 9), 4)
    crew.claim("b")  # 4 and perhaps 9 of 20
    assert crew.plan(crew.claim("a"), 8)  # 4 + 9 + 8
    assert crew.claim("a") is None


def test_each_worker_that_has_not_said_yet_counts(crew: Crew) -> None:
    ends(crew.books["a"], crew.plan(crew.claim("a"), 9), 4)
    assert crew.claim("b") is not None
    assert crew.claim("c") is not None  # 4 and perhaps 9 of 20
    assert crew.claim("a") is None  # 4 and perhaps twice 9


def test_before_any_trial_has_said_it_one_runs(crew: Crew) -> None:
    first = crew.claim("a")
    assert crew.claim("b") is None
    crew.plan(first, 8)
    assert crew.claim("b") is not None


def test_what_waits_for_its_original_in_this_process_takes_nothing(crew: Crew) -> None:
    assert crew.claim("a") is not None  # deferred: it will not be trained
    assert crew.claim("a") is not None


def test_trials_of_equal_effect_take_nothing(crew: Crew) -> None:
    for _ in range(5):
        ends(crew.books["a"], crew.plan(crew.claim("a"), 8), 8, equals=0)
    assert crew.claim("b") is not None


@pytest.mark.slow
def test_two_workers_end_where_one_would(main, tmp_path):
    words = ["optimizer.lr=interval(0.001,0.02)", "hydra/sweeper/sampler=random"]
    ended = main("-m", *QUICK, *words, "hydra.sweeper.max_steps_total=20", "hydra.sweeper.n_jobs=2")
    assert ended.code == 0, ended.err
    assert states(tmp_path) == ["COMPLETE"] * 3  # of 8 steps each
    assert [t.user_attrs[PLANNED] for t in study(tmp_path).trials] == [8] * 3
