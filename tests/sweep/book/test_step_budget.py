"""A budget of steps is overshot by less than one trial, however many workers there are."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
from ledger_support import open_ledger, suggest
from optuna.trial import TrialState
from sweep_support import QUICK, states, study

from sweepstack.study.attributes import PLANNED
from sweepstack.sweep.book import processes, step_budget
from sweepstack.sweep.book.journal import Ending, Journal
from sweepstack.sweep.book.ledger import Ledger
from sweepstack.sweep.book.live_trial import LiveTrial


class Crew:
    """Two workers of one study, each with a process of its own."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, most: int):
        self.monkeypatch, self.most = monkeypatch, most
        url = f"sqlite:///{folder}/studies.db"
        self.ledgers = {name: open_ledger(url, total=None) for name in "ab"}

    def claim(self, name: str) -> LiveTrial | None:
        here = processes.this_process()
        with self.monkeypatch.context() as patch:
            patch.setattr(processes, "this_process", lambda: here if name == "a" else f"{here}0")
            patch.setattr(processes, "is_gone", lambda worker: False)
            ledger = self.ledgers[name]
            may = partial(step_budget.allows, study_id=ledger._study_id, most=self.most)
            return next(iter(ledger.claim_many(1, may)), None)

    def plan(self, trial: LiveTrial | None, steps: int) -> LiveTrial:
        assert trial is not None
        trial.set_user_attr(PLANNED, steps)
        return trial


@pytest.fixture
def crew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Crew:
    return Crew(tmp_path, monkeypatch, most=20)


def end(ledger: Ledger, trial: LiveTrial, steps: int, **more: Any) -> None:
    suggest(trial)
    attributes = {"steps": steps, **more}
    Journal(ledger.study).write(endings=[Ending(trial, TrialState.COMPLETE, [0.0], attributes, {})])


def test_what_others_may_take_counts(crew: Crew) -> None:
    for name in "ab":
        crew.plan(crew.claim(name), 8)
    third = crew.plan(crew.claim("a"), 8)  # begins at 16 of 20
    assert crew.claim("b") is None

    end(crew.ledgers["a"], third, 3)  # pruned, say: 8 + 8 + 3
    assert crew.claim("b") is not None


def test_a_trial_that_has_not_said_yet_counts_as_the_longest(crew: Crew) -> None:
    end(crew.ledgers["a"], crew.plan(crew.claim("a"), 9), 4)
    crew.claim("b")  # 4 and perhaps 9 of 20
    assert crew.plan(crew.claim("a"), 8)  # 4 + 9 + 8
    assert crew.claim("a") is None


def test_before_any_trial_has_said_it_one_runs(crew: Crew) -> None:
    first = crew.claim("a")
    assert crew.claim("b") is None
    crew.plan(first, 8)
    assert crew.claim("b") is not None


def test_what_waits_for_its_twin_in_this_process_takes_nothing(crew: Crew) -> None:
    assert crew.claim("a") is not None  # held aside: it will not be trained
    assert crew.claim("a") is not None


def test_trials_of_equal_effect_take_nothing(crew: Crew) -> None:
    for _ in range(5):
        end(crew.ledgers["a"], crew.plan(crew.claim("a"), 8), 8, equals=0)
    assert crew.claim("b") is not None


@pytest.mark.slow
def test_two_workers_end_where_one_would(main, tmp_path):
    words = ["optimizer.lr=interval(0.001,0.02)", "hydra/sweeper/sampler=random"]
    ended = main("-m", *QUICK, *words, "hydra.sweeper.max_steps_total=20", "hydra.sweeper.n_jobs=2")
    assert ended.code == 0, ended.err
    assert states(tmp_path) == ["COMPLETE"] * 3  # of 8 steps each
    assert [t.user_attrs[PLANNED] for t in study(tmp_path).trials] == [8] * 3
