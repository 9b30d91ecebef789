"""A worker with many places: trials are claimed together, and what ended is written together."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState
from sweep_support import QUICK, states

from sweepstack import storage
from sweepstack.config.errors import EXIT_INTERRUPTED
from sweepstack.study.attributes import LOST, RETRIED, RETRIES
from sweepstack.study.book.book import Book
from sweepstack.sweep import plan, studies
from sweepstack.sweep.worker import Asked, Outcome, Stop
from sweepstack.sweep.worker.worker import Worker

pytestmark = pytest.mark.slow

WIDTH = 4


@pytest.fixture(autouse=True)
def claims_no_more_than_there_is_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trials that end sooner than a claim takes are claimed ahead, more on a slow machine."""
    monkeypatch.setattr(Worker, "_ahead", lambda self: 0)


Engine = Callable[[Iterator[Asked], Worker], Iterator[Outcome]]


def complete(asked: Asked) -> Outcome:
    return Outcome(asked, "complete", (float(asked.trial.params["x"]),))


def stacked(asked: Iterator[Asked], worker: Worker) -> Iterator[Outcome]:
    """Stacks of WIDTH, all of whose trials report and end together."""
    while True:
        worker.room = WIDTH
        stack = list(islice(asked, WIDTH))
        if not stack:
            return
        for each in stack:
            worker.decisions.report(each, 1, 0.5)
        yield from map(complete, stack)
        worker.write()


class App:
    """An application whose trials are what `engine` makes of them."""

    def __init__(self, engine: Engine):
        self.engine = engine

    def runner(self, plan: Any, folder: Path, worker: Worker) -> Any:
        class Runner:
            equal = None

            def run(_, asked: Iterator[Asked]) -> Iterator[Outcome]:
                return self.engine(asked, worker)

            def close(_) -> None:
                pass

        return Runner()

    def config(self, plan: Any) -> Any:
        return {}

    def checkpointed(self, folder: Path, number: int) -> int:
        return 0


class Sweep:
    """A study of 10 points, to be worked at by one worker after the other."""

    def __init__(self, folder: Path, **settings: Any):
        self.folder = folder
        node = {"storage": f"sqlite:///{folder}/studies.db", **settings}
        read = plan.read(node, ["x=range(0,10)"], "app")
        self.plan = replace(read, study="study", directions=("minimize",), objectives=("value",))
        self.told: list[Counter[str]] = []

    def open(self) -> Book:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        assert self.plan.storage is not None
        opened = storage.connect(self.plan.storage)
        study = studies.open_study(opened, "study", ["minimize"], {})
        return studies.open_book(self.plan, study, opened, lambda number: 0)

    def work(self, engine: Engine, stop: Stop | None = None) -> None:
        Worker(
            self.plan,
            App(engine),
            self.open(),
            self.folder,
            stop or Stop(),
            notify=lambda _: self.told.append(self.states),
        ).work()

    @property
    def trials(self) -> list[optuna.trial.FrozenTrial]:
        return self.open().study.trials

    @property
    def states(self) -> Counter[str]:
        """How many trials are in each state, without those that others replace."""
        return Counter(t.state.name for t in self.trials if RETRIED not in t.user_attrs)

    def is_whole(self) -> bool:
        """Whether each point was completed once."""
        done = [t.value for t in self.trials if t.state == TrialState.COMPLETE]
        return sorted(done) == [float(x) for x in range(10)] and sum(self.states.values()) == 10


@pytest.fixture(params=["grid", "random", "tpe"])
def any_sweep(request: pytest.FixtureRequest, tmp_path: Path) -> Sweep:
    if request.param == "grid":
        return Sweep(tmp_path)
    return Sweep(tmp_path, sampler=request.param, n_trials=10)


def test_a_full_stack_begins_and_ends_together(any_sweep: Sweep) -> None:
    seen = []

    def engine(asked: Iterator[Asked], worker: Worker) -> Iterator[Outcome]:
        for number, outcome in enumerate(stacked(asked, worker)):
            if number % WIDTH == 0:
                seen.append(dict(any_sweep.states))
            yield outcome

    any_sweep.work(engine)

    assert seen == [{"RUNNING": 4}, {"COMPLETE": 4, "RUNNING": 4}, {"COMPLETE": 8, "RUNNING": 2}]
    assert [dict(told) for told in any_sweep.told] == [
        {"COMPLETE": 4},  # and only then is anybody told
        {"COMPLETE": 8},
        {"COMPLETE": 10},
    ]
    assert all(t.params.keys() == {"x"} for t in any_sweep.trials)
    assert all(t.intermediate_values == {1: 0.5} for t in any_sweep.trials)


def test_without_room_trials_are_claimed_one_by_one(tmp_path: Path) -> None:
    seen = []
    sweep = Sweep(tmp_path)

    def engine(asked: Iterator[Asked], worker: Worker) -> Iterator[Outcome]:
        for each in asked:
            seen.append(dict(sweep.states))
            yield complete(each)

    sweep.work(engine)
    after = [{"RUNNING": 1, "COMPLETE": done} for done in range(1, 10)]
    assert seen == [{"RUNNING": 1}, *after]


def test_a_trial_presumed_dead_spoils_no_other_of_its_stack(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sweep, stolen = Sweep(tmp_path), []

    def engine(asked: Iterator[Asked], worker: Worker) -> Iterator[Outcome]:
        for outcome in stacked(asked, worker):
            if outcome.asked.number == 1:
                sweep.open().release(outcome.asked.trial)
                stolen.append(outcome.asked.number)
            yield outcome

    with caplog.at_level(logging.WARNING, logger="sweepstack"):
        sweep.work(engine)
    assert stolen == [1]
    assert caplog.messages == ["trial 1 was presumed dead; another runs in its place"]
    assert sweep.is_whole()
    lost = sweep.trials[1]
    assert (lost.state, lost.values) == (TrialState.FAIL, None)
    assert lost.intermediate_values == {}
    assert "sweepstack.overrides" not in lost.user_attrs


def test_trials_claimed_but_not_begun_are_requeued_on_ctrl_c(any_sweep: Sweep) -> None:
    stop = Stop()

    def engine(asked: Iterator[Asked], worker: Worker) -> Iterator[Outcome]:
        worker.room = WIDTH
        ended, running = next(asked), next(asked)
        yield complete(ended)
        stop.ask(EXIT_INTERRUPTED)
        assert next(asked, None) is None  # nothing begins any more
        assert running.number == 1
        raise KeyboardInterrupt

    any_sweep.work(engine, stop)

    assert stop.code == EXIT_INTERRUPTED
    requeued = any_sweep.states
    assert requeued["RUNNING"] == 0
    assert requeued["COMPLETE"] == 1
    assert requeued["WAITING"] >= 1
    again = [t for t in any_sweep.trials if t.state == TrialState.WAITING]
    assert {t.user_attrs[RETRIES] for t in again} == {0}
    any_sweep.work(stacked)
    assert any_sweep.states == {"COMPLETE": 10}


def test_an_unknown_error_costs_those_that_ended_and_those_not_begun_nothing(
    tmp_path: Path,
) -> None:
    sweep = Sweep(tmp_path)

    def engine(asked: Iterator[Asked], worker: Worker) -> Iterator[Outcome]:
        worker.room = WIDTH
        ended, _ = next(asked), next(asked)
        yield complete(ended)
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        sweep.work(engine)
    first, begun, *rest = sweep.trials
    assert first.state == TrialState.COMPLETE
    assert begun.state == TrialState.RUNNING  # it may be the one to blame: it counts as lost
    assert [t.state.name for t in rest] == ["FAIL", "FAIL", "WAITING", "WAITING"]
    assert all("requeued" in t.user_attrs[LOST] for t in rest[:2])


def test_pruners_see_the_reports_of_a_stack_before_its_end(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, pruner={"name": "threshold", "upper": 4.5})

    def engine(asked: Iterator[Asked], worker: Worker) -> Iterator[Outcome]:
        while True:
            worker.room = WIDTH
            stack = list(islice(asked, WIDTH))
            if not stack:
                return
            for each in stack:
                worker.decisions.report(each, 1, float(each.trial.params["x"]))
            for each in stack:
                yield Outcome(each, "pruned") if worker.decisions.ends(each) else complete(each)

    sweep.work(engine)
    assert [t.state.name for t in sweep.trials] == ["COMPLETE"] * 5 + ["PRUNED"] * 5
    assert [t.value for t in sweep.trials] == [float(x) for x in range(10)]


def test_room_counts_trials_where_each_is_several_seeds(main, tmp_path, monkeypatch) -> None:
    from sweepstack.engine import train

    original, seen = train.train, []

    def spied(specs: Any, monitor: Any, **named: Any) -> Any:
        def watched() -> Any:
            for spec in specs:
                seen.append(Counter(states(tmp_path))["RUNNING"])
                yield spec

        return original(watched(), monitor, **named)

    monkeypatch.setattr(train, "train", spied)
    words = ("optimizer.lr=0.001,0.002,0.003,0.004", "training.seeds=3", "training.width=6")
    ended = main("-m", *QUICK, *words)
    assert ended.code == 0, ended.err
    assert seen == [2] * 12  # the width is known before the first one
    assert states(tmp_path) == ["COMPLETE"] * 4
