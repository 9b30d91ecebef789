"""A worker: asks the study for a trial, runs it, tells what came of it, until the total is met.

Launched once per process by `launch.py`, by any Hydra launcher, or run in the sweeper's own
process. Any number of them share a study through its database alone.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import math
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import optuna
from omegaconf import OmegaConf
from optuna.samplers import BaseSampler, RandomSampler
from optuna.trial import TrialState

from iolaus import streams
from iolaus.errors import EXIT_INTERRUPTED, IolausError, one_line
from iolaus.sweep import grammar, hook, order, pruners, samplers, storage
from iolaus.sweep.equal import Equal
from iolaus.sweep.journal import Ending, Journal, Lost
from iolaus.sweep.ledger import Ledger
from iolaus.sweep.plan import Plan
from iolaus.sweep.records import CONTINUES
from iolaus.sweep.trial import Asked, Outcome, Stop, Verdicts
from iolaus.sweep.twins import Twins

log = logging.getLogger(__name__)

BEAT_S = 20.0
"""Seconds between two signs of life, well within the ledger's grace."""

_STATES = {
    "complete": TrialState.COMPLETE,
    "pruned": TrialState.PRUNED,
    "failed": TrialState.FAIL,
}


class Runner(Protocol):
    """What runs trials: `own.Trainer` or `other.Caller`."""

    @property
    def equal(self) -> Equal | None:
        """What knows which trials do the same; None where nobody can know."""
        ...

    def run(self, asked: Iterator[Asked]) -> Iterator[Outcome]:
        """Run trials until no more are asked; each ends in one outcome."""
        ...


class App(Protocol):
    """What is swept, as far as a worker knows it; it can be pickled."""

    def runner(self, plan: Plan, folder: Path, verdicts: Verdicts) -> Runner:
        """What this worker runs its trials with."""
        ...

    def config(self, plan: Plan) -> Any:
        """The config without the swept values, for a custom search space."""
        ...


class Worker:
    """One worker of a study.

    Args:
        plan: the sweep's.
        app: what is swept.
        study: opened, of the plan's storage.
        folder: where trials leave their files.
        stop: asked by signals.
        before: the study's counts when the sweep started; failures since then are judged.
        deadline: `time.time()` after which no trial begins.
        notify: told after every trial, and now and then what the running ones are at.
    """

    def __init__(
        self,
        plan: Plan,
        app: App,
        study: optuna.Study,
        folder: Path,
        stop: Stop,
        *,
        before: dict[str, int] | None = None,
        deadline: float = math.inf,
        notify: Callable[[str], object] = lambda status: None,
    ):
        self.plan, self.app, self.study, self.stop = plan, app, study, stop
        self.before, self.deadline, self.notify = before or {}, deadline, notify
        study.sampler = RandomSampler(0)  # of a grid, whose points are laid out
        study.pruner = pruners.build(plan.pruner.name, plan.pruner.given, plan.directions)
        self.ledger = make_ledger(plan, study)
        self.journal = Journal(study)
        self.verdicts = Verdicts(study, self.journal, stop, notify)
        self.runner = app.runner(plan, folder, self.verdicts)
        once = plan.duplicates == "once"
        equal = self.runner.equal if once else None
        self.twins = None if equal is None else Twins(study, self.journal, equal)
        self._running: dict[int, Asked] = {}
        self._too_many_failed = False
        self._hook: Callable[[Any, optuna.Trial], None] | None = None
        if plan.custom_search_space:
            self._hook = hook.find(plan.custom_search_space)
            self._base = OmegaConf.create(app.config(plan))

    def work(self) -> None:
        """Run trials until the study has its total, a budget is spent, or a signal asks to stop.

        Raises:
            EnvironmentFault: the storage or the disk is gone; trials in hand are put back.
        """
        from iolaus.train import Interrupted

        with storage.named(self.plan.storage or ""), Heart(self.ledger, self._running):
            try:
                while self._more():
                    for outcome in self.runner.run(self._asked()):
                        self._tell(outcome)
                        self._settle()
                    self._settle()
                    if self._more():  # others run what is left: they may yet be lost
                        if self._nothing_left():
                            return
                        time.sleep(0.2)
            except (Interrupted, KeyboardInterrupt):
                self.stop.ask(EXIT_INTERRUPTED)  # unless a signal has: then its own code
            except IolausError:
                self._put_back()
                raise
            # Whatever else is raised may be a trial's doing: left RUNNING, it counts as lost, which
            # is bounded.
            self._put_back()

    def _put_back(self) -> None:
        for asked in list(self._running.values()):
            self.ledger.release(asked.trial)
        self._running.clear()

    def _more(self) -> bool:
        """Whether this worker is to look for another trial."""
        return self.stop.code is None and not self._too_many_failed and not self._spent()

    def _nothing_left(self) -> bool:
        """Whether no trial waits, and none runs that may yet be lost and wait again."""
        counts = self.ledger.counts()
        waits = counts["waiting"] > 0 and counts["remaining"] > 0
        return not waits and not self.ledger.others_at_work()

    def _spent(self) -> bool:
        """Whether a budget other than the total is used up."""
        if time.time() >= self.deadline:
            return True
        most = self.plan.max_steps_total
        return most is not None and self.journal.steps() >= most

    def _asked(self) -> Iterator[Asked]:
        """Trials of the study, each now this worker's."""
        while self._more():
            if self.twins is not None:
                yield from self.twins.ready()
                if self.twins.full:
                    return
            trial = self.ledger.claim()
            if trial is None:
                return
            try:
                point = self.plan.space.suggest(trial)
                words = [*self.plan.space.fixed, *self.plan.space.overrides(point)]
                words += self._suggested_by_hook(trial, set(point))
                self.journal.parameters([trial])
            except (IolausError, ValueError) as error:
                asked = Asked(trial, [])
                self._running[asked.number] = asked
                self._tell(Outcome.failed(asked, one_line(error)))
                continue
            asked = Asked(trial, words, trial.user_attrs.get(CONTINUES))
            self._running[asked.number] = asked
            if self.twins is None or self.twins.admits(asked):
                yield asked
            else:
                self._settle()

    def _settle(self) -> None:
        """Tell of the trials whose effect another had that has ended."""
        if self.twins is not None:
            for outcome in self.twins.settled():
                self._tell(outcome)

    def _suggested_by_hook(self, trial: optuna.Trial, known: set[str]) -> list[str]:
        """Overrides of what the user's own function suggests besides."""
        if self._hook is None:
            return []
        try:
            self._hook(copy.deepcopy(self._base), trial)
        except Exception as error:  # the user's code may raise anything
            raise ValueError(
                f"custom_search_space raised {type(error).__name__}: {error}"
            ) from error
        return [
            f"{name}={grammar.text_of(value)}"
            for name, value in trial.params.items()
            if name not in known
        ]

    def _tell(self, outcome: Outcome) -> None:
        """Make a result last; from here on it is acknowledged."""
        asked = outcome.asked
        self.verdicts.flush()
        state, attributes = outcome.state, dict(outcome.attributes)
        bad = [value for value in outcome.values if not math.isfinite(value)]
        if state == "complete" and (bad or len(outcome.values) != len(self.plan.directions)):
            state = "failed"
            attributes.setdefault("error", f"the objective became {bad[0] if bad else 'nothing'}")
        violations = {
            constraint.name: violation
            for constraint in self.plan.constraints
            if (violation := constraint.violation(outcome.numbers)) is not None
        }
        values = outcome.values if state == "complete" else None
        attributes["iolaus.overrides"] = asked.overrides
        told = _STATES[state]
        ending = Ending(asked.trial, told, values, attributes, violations)
        with contextlib.suppress(KeyError):
            del self._running[asked.number]
        try:
            self.journal.end(ending)
        except Lost as error:
            log.warning("%s", error)
            told = TrialState.FAIL
        self.verdicts.forget(asked)
        if self.twins is not None:
            self.twins.ended(outcome, told)
        if state == "failed":
            what = " ".join(w for w in asked.overrides if w not in self.plan.space.fixed)
            log.warning("trial %d failed: %s (%s)", asked.number, attributes.get("error"), what)
            counts = self.ledger.counts()
            self._too_many_failed = too_many_failed(self.plan, self.before, counts)
        self.notify("")


class Heart:
    """Shows a sign of life for the trials in hand, from a thread of its own."""

    def __init__(self, ledger: Ledger, running: dict[int, Asked]):
        self._ledger, self._running = ledger, running
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="iolaus-heart", daemon=True)

    def __enter__(self) -> Heart:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()
        self._thread.join()

    def _beat(self) -> None:
        while not self._over.wait(BEAT_S):
            with contextlib.suppress(Exception):  # the next write of the worker itself will say it
                self._ledger.beat([asked.trial for asked in list(self._running.values())])


def make_ledger(plan: Plan, study: optuna.Study) -> Ledger:
    """The books of the plan's study."""

    def sampler_of(number: int) -> BaseSampler:
        """Each trial's own, seeded by its number: whoever asks, it draws the same."""
        name, given = plan.sampler.name, plan.sampler.given
        seed = plan.seed
        if seed is not None and name not in samplers.SHARED:
            seed = streams.derive(seed, number) % 2**32
        found = samplers.build_sampler(name, given, seed, trusted_storage=plan.trusted_storage)
        assert found is not None
        return found

    shared: list[BaseSampler] = []

    def sampler(number: int) -> BaseSampler:
        if plan.sampler.name in samplers.SHARED or plan.seed is None:
            if not shared:
                shared.append(sampler_of(0))
            if plan.sampler.name == "cmaes" and plan.seed is not None:
                # What it draws by itself, start-up trials and choices, is each trial's own.
                own: Any = shared[0]
                own._independent_sampler = RandomSampler(streams.derive(plan.seed, number) % 2**32)
            return shared[0]
        return sampler_of(number)

    return Ledger(
        study,
        plan.total,
        plan.max_restarts,
        points=order.arranged(plan.space, plan.order) if plan.grid else None,
        first=plan.enqueue if plan.grid else (),
        sampler_of=None if plan.grid else sampler,
    )


def too_many_failed(plan: Plan, before: dict[str, int], now: dict[str, int]) -> bool:
    """Whether more than `max_failure_rate` of the trials since the start have failed; one of the
    first 20 weighs as a twentieth (or, in a smaller sweep, as one of all)."""
    since = {state: now[state] - before.get(state, 0) for state in ("done", "pruned", "failed")}
    least = 20 if plan.total is None else min(plan.total, 20)
    return since["failed"] > plan.max_failure_rate * max(sum(since.values()), least)


def open_shared(plan: Plan) -> optuna.Study:
    """The plan's study, which exists, for a worker in another process."""
    assert plan.storage is not None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna.load_study(study_name=plan.study, storage=storage.connect(plan.storage))
