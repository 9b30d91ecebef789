"""A worker: asks the study for a trial, runs it, tells what came of it, until the total is met.

Runs in the sweeper's own process, in local processes or in a Hydra launcher's jobs. Any number of
them share a study through its database alone.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import logging
import math
import random
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import optuna
from optuna.trial import TrialState

from sweepstack import storage
from sweepstack.config.errors import EXIT_INTERRUPTED, SweepstackError, one_line
from sweepstack.config.space import Space
from sweepstack.config.space.points import Overrides
from sweepstack.reporting.scoreboard import Status, count_finished
from sweepstack.runs import progress, register
from sweepstack.runs.folder import environment, key_of
from sweepstack.runs.register import Membership
from sweepstack.storage.uploads import Uploads
from sweepstack.study.attributes import CONTINUES, ENVIRONMENT, OVERRIDES, RETRIES, WORKERS
from sweepstack.study.book import Ending, is_suspected, processes
from sweepstack.study.book.book import Book
from sweepstack.study.book.processes import BEAT_S
from sweepstack.sweep import pruners, samplers
from sweepstack.sweep.plan import Plan
from sweepstack.sweep.worker import Asked, Decisions, Outcome, Stop
from sweepstack.sweep.worker.duplicates import Duplicates, Equal

log = logging.getLogger(__name__)

AHEAD_S = 0.5
"""Trials that take less are claimed ahead, as many as ended in so many seconds, and those of them
that duplicate others are recorded together: a claim takes as long as many such trials."""
MAX_AHEAD = 512
"""Trials that are claimed at once at most, unless there is room for more."""
AT_ONCE = 64
"""Of so many claimed trials the share of duplicates says what it will be."""
HEED_S = 1.0
"""Seconds between two looks whether a person asked the workers to stop, and at how many work. The
more work, the longer, so that all together ask for no more: for the stop 50 times a second, but at
least with each heartbeat, and for the register, which is as long as they are many, 10 times."""
AWAY_S = 10.0
"""How long a storage that does not answer is waited for, once a place in a stack is free, before no
more trials are claimed while those in training go on."""
RECOVER_S = 2.0
"""Seconds between two looks for dead workers while no more can be deferred."""
TICK_S = 5.0
"""Seconds between two looks for dead workers of this host, of which each looks in turns."""
POLL_S, MOST_POLL_S = 0.2, 20.0
"""Seconds between two questions for a trial that may be requeued: of few workers, of hundreds."""
CLAIM_SHARE = 0.05
"""Claims are to take at most this share of the time: where workers wait for each other longer, each
claims more at once."""
_STATES = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "failed": TrialState.FAIL}


class Runner(Protocol):
    """What runs trials: `trainer.Trainer` or `application.Caller`."""

    @property
    def equal(self) -> Equal | None:
        """What knows which trials do the same; None where nobody can know."""

    def run(self, asked: Iterator[Asked]) -> Iterator[Outcome]:
        """Run trials until no more are asked; each ends in one outcome."""

    def close(self) -> None:
        """No more trials come."""


class App(Protocol):
    """What is swept; it can be pickled."""

    @property
    def prefix(self) -> str:
        """What an unnamed study's name begins with."""

    @property
    def origin(self) -> Mapping[str, str | None]:
        """Where configs come from: `name`; of sweepstack also `config_dir` and `config_name`."""

    def check(self, space: Space) -> None:
        """Check the values of a space."""

    def prepare(self, plan: Plan) -> tuple[Plan, dict[str, Any]]:
        """Check the space; add objectives and directions, and what identifies the question."""

    def repeats(self, plan: Plan) -> int | None:
        """How many points of a grid are duplicates, if that is soon known."""

    def runner(self, plan: Plan, folder: Path, worker: Worker) -> Runner:
        """What this worker runs its trials with."""

    def checkpointed(self, folder: Path, number: int) -> int | None:
        """Steps that the checkpoints of a trial hold, None if it never began; 0 if nobody knows."""

    def config(self, plan: Plan) -> Any:
        """The config without the swept values, for a custom search space."""


class Worker:
    """One worker of a study.

    Args:
        plan: the sweep's.
        app: what is swept.
        book: the records of the plan's study.
        folder: where trials leave their files.
        stop: asked by signals.
        deadline: `time.time()` after which no trial begins.
        notify: called after every trial, and now and then with how far the running ones are.
        began: called when the first trial begins.
        crew: the sweep that started it, and how its study's workers were asked to stop by then
            (`Book.stops`).
        member: its entry in the register of workers.
        uploads: what puts the files of ended trials where all machines find them.

    Attributes:
        decisions: what the pruner decides by the reports of trials.
        room: how many trials the runner has places for, so that as many are claimed at once; the
            runner sets it.
        planned: steps that running trials may take, by number, where there is a budget of steps;
            the runner adds to it.
    """

    def __init__(
        self,
        plan: Plan,
        app: App,
        book: Book,
        folder: Path,
        stop: Stop,
        *,
        deadline: float = math.inf,
        notify: Callable[[Status], object] = lambda status: None,
        began: Callable[[], object] = lambda: None,
        crew: tuple[str, Any] = ("", None),
        member: Membership | None = None,
        uploads: Uploads | None = None,
    ):
        self._uploads = uploads
        self._crew, self._member = crew, member
        self._heeded, self._count_at, self._told = time.monotonic(), -math.inf, 0
        self._beaten = time.monotonic() - random.uniform(0, BEAT_S)  # they began together
        self._beside: set[str] = set()
        """Other workers of this host, as far as it is known, which live."""
        self.plan, self.app, self.book, self.stop = plan, app, book, stop
        self.deadline, self.notify, self._began = deadline, notify, began
        self.study = book.study
        self.study.pruner = pruners.build(plan.pruner.name, plan.pruner.given, plan.directions)
        self.decisions = Decisions(book, self._heed)
        self.room = 1
        self.planned: dict[int, int] = {}
        self.runner = app.runner(plan, folder, self)
        # Without a total a sweep ends by what it trains: duplicates alone would never end it.
        once = plan.duplicates == "once" and plan.total is not None
        equal = self.runner.equal if once else None
        self.duplicates = None if equal is None else Duplicates(book, self.decisions.report, equal)
        self._running: dict[int, Asked] = {}
        """Trials in hand, by number: those that wait in `_claimed` or `_ended` too."""
        self._claimed: deque[Asked] = deque()
        self._new: tuple[list[optuna.Trial], list[Asked]] = ([], [])  # claimed, and not begun yet
        self._trained_share = 1.0  # of the trials claimed lately, as others are duplicates
        self._claimed_at = -math.inf
        self._claim_s = 0.0  # how long claims lately took
        self._trained = 0  # how many have ended since, none of them failed
        self._settled = -math.inf
        self._begun: set[int] = set()
        self._ended: list[Outcome] = []
        self._too_many_failed = False
        self._paused = False  # no others were asked for: many are deferred, or there is no answer
        self._recovered = -math.inf
        self._steps: int | None = None
        self._max_steps = plan.max_steps_total if self.runner.equal else None  # others have none
        self._environment = _recorded_environment(self.study)
        self._overrides = Overrides(
            plan.space, plan.custom_search_space, lambda: app.config(plan), storage.FAILURES
        )

    def work(self) -> None:
        """Run trials until the study has its total, a budget is spent, or a signal asks to stop.

        Raises:
            EnvironmentFault: the storage or the disk is gone; trials in hand are requeued.
        """
        from sweepstack.engine.train import Interrupted

        named = functools.partial(storage.named, self.plan.storage or "")
        beating = progress.every(TICK_S, self._tick, "sweepstack-heartbeat")
        uploading = self._uploads or contextlib.nullcontext()
        with uploading, contextlib.closing(self.runner), named(), beating, _kept_loaded():
            try:
                with named():  # within, so that trials are requeued when it has failed for once
                    self._work()
            except (Interrupted, KeyboardInterrupt):
                self.stop.ask(EXIT_INTERRUPTED)  # unless a signal has: then its own code
            except SweepstackError:
                self._requeue(self._running.values())
                raise
            except Exception:
                # It may be a trial's doing: left RUNNING, they count as lost, which is bounded.
                begun = self._begun  # but for those that have not begun
                if begun:  # else it may be the doing of these, again and again
                    self._requeue(a for a in self._running.values() if a.number not in begun)
                raise
            self._requeue(self._running.values())

    def _tick(self) -> None:
        """Send a heartbeat where it is time, and look for workers that died; of those beside this
        one it is seen without the database."""
        now = time.monotonic()
        if now - self._beaten > BEAT_S - TICK_S / 2:
            self._beaten = now
            self._beat()
        gone = {name for name in self._beside if processes.is_gone(name)}
        self._beside -= gone
        self._count_workers()
        if gone or random.random() * self.book.workers < TICK_S:  # one of all in a second
            self.book.recover()

    def _beat(self) -> None:
        trials = [asked.trial for asked in list(self._running.values())]
        self.book.beat(trials, None if self._member is None else self._member.changed())
        self._heeded = time.monotonic()
        if self._is_asked_to_stop():  # where nothing is reported for long
            self.stop.code = self.stop.code or EXIT_INTERRUPTED

    def _is_asked_to_stop(self) -> bool:
        name, before = self._crew
        return before is not None and self.book.stops(name) != before

    def _heed(self) -> None:
        """Stop if a person asked the study's workers to; the study is read every `HEED_S`."""
        if self.stop.code is None and time.monotonic() - self._heeded >= self._heed_s:
            self._heeded = time.monotonic()
            with storage.Tried():
                if self._is_asked_to_stop():
                    self.stop.ask(EXIT_INTERRUPTED)

    @property
    def _heed_s(self) -> float:
        return HEED_S * max(1.0, self.book.workers / 50)

    def _work(self) -> None:
        while self._more():
            self._paused = False
            self._run()
            if self._more():  # others run what is left: they may yet be lost
                if not self._paused and self._nothing_left():
                    return
                others_s = min(MOST_POLL_S, max(POLL_S, self.book.workers / 50))
                time.sleep(0.02 if self._paused else others_s)

    def _run(self) -> None:
        """Run trials until no more are to be had; whatever happens, what ended lasts."""
        try:
            for outcome in self.runner.run(self._asked()):
                self.record(outcome)
        finally:
            self.write(all_of_it=True, waits=True)

    def _requeue(self, trials: Iterable[Asked]) -> None:
        found = list(trials)
        if found:
            self.book.release(*(asked.trial for asked in found))
        for asked in found:
            del self._running[asked.number]
        self._claimed.clear()

    def _more(self) -> bool:
        """Whether this worker is to look for another trial."""
        self._heed()
        return self.stop.code is None and not self._too_many_failed and not self._spent()

    def _nothing_left(self) -> bool:
        """Whether no trial waits, and none runs that may yet be lost and wait again."""
        counts = self.book.counts()
        waits = counts["waiting"] > 0 and counts["remaining"] > 0
        return not waits and not self.book.others_at_work()

    def _spent(self) -> bool:
        """Whether a budget other than the total is used up, or may be: while the storage does not
        answer, trials in training go on, and no other begins."""
        if time.time() >= self.deadline:
            return True
        most = self.plan.max_steps_total
        if most is None:
            return False
        if self._steps is None:  # new trials may have ended
            with self._asking():
                self._steps = self.book.steps()
        return self._steps is None or self._steps + sum(self.planned.values()) >= most

    def _asked(self) -> Iterator[Asked]:
        """Trials of the study, each now this worker's."""
        while True:
            if self._ended and self._ended[-1].state == "failed":
                self.write()  # too many may have failed
            if not self._claimed:
                self.write(all_of_it=True)
                self._steps = None
                if not self._more() or not self._claim():
                    return
            elif not self._more():
                return  # those that have not begun are requeued
            else:
                self.room -= 1
                asked = self._claimed.popleft()
                self._begun.add(asked.number)
                self._began()
                self._began = lambda: None
                yield asked

    def _claim(self) -> bool:
        """Make the trials that there is room for this worker's; whether there was any."""
        if self.duplicates is not None:
            self._claimed.extend(self.duplicates.ready())
            full = not self.duplicates.places
            if self._claimed or full:
                self._paused = full
                if not self._claimed:
                    self._recover_at_times()
                return bool(self._claimed)
        return (bool(self._new[0]) or self._ask()) and self._begin()

    def _ask(self) -> bool:
        """Claim trials, and let the sampler say what they are; whether there were any."""
        # A sampler that learns is asked for one at a time, so that it sees those before.
        # And with a budget of steps, so that what those before will take is known.
        several = self.plan.grid or self.plan.sampler.name in samplers.BLIND
        several = several and self.plan.max_steps_total is None
        room = max(1, self._needed(), self._ahead()) if several else 1
        begun = [self._running[number].trial for number in self._begun]
        retries = max((trial.user_attrs.get(RETRIES, 0) for trial in begun), default=0)
        if is_suspected(retries, self.plan.max_restarts):
            return False  # nothing beside them
        asked_at = time.monotonic()
        trials: list[optuna.Trial] = []
        with self._asking():
            if room > 1:
                self._count_workers()
            trials = self.book.claim(
                room, max_steps=self._max_steps, alone=not begun, begun=len(begun)
            )
        self._claimed_at, self._trained = time.monotonic(), 0
        self._claim_s += 0.3 * (self._claimed_at - asked_at - self._claim_s)
        self._running |= {trial.number: Asked(trial, []) for trial in trials}
        self._new = (trials, claimed := [])
        for trial in trials:
            try:
                asked = Asked(trial, self._overrides.of(trial), trial.user_attrs.get(CONTINUES))
            except (SweepstackError, ValueError) as error:
                failed = Outcome.failed(self._running[trial.number], one_line(error))
                self.record(failed)
                continue
            self._running[asked.number] = asked
            claimed.append(asked)
        return bool(trials)

    def _begin(self) -> bool:
        """Record what new trials are, and keep those that are to be trained; whether it could."""
        trials, claimed = self._new
        with self._asking():
            self.book.begin(trials)
            if self.duplicates is not None:
                of, claimed = len(claimed), self.duplicates.admitted(claimed)
                share = len(claimed) / max(of, 1)
                self._trained_share += (share - self._trained_share) * min(1.0, of / AT_ONCE)
            self._claimed.extend(claimed)
            self._new = ([], [])
        return not self._new[0]

    def _needed(self) -> int:
        """How many trials to claim, that about as many are to be trained as there is room for."""
        if self.duplicates is None:
            return self.room
        most = max(self.room, min(MAX_AHEAD, self.duplicates.places))
        return min(math.ceil(self.room / max(self._trained_share, 1 / MAX_AHEAD)), most)

    def _count_workers(self) -> None:
        """Leave their share to those that joined the study from elsewhere too."""
        if self._member is not None and time.monotonic() >= self._count_at:
            known = register.workers(self.study, self.book.attributes(prefix=f"{WORKERS}."))
            alive = [e.process for e in known if e.is_alive]
            self.book.workers = max(self.plan.n_jobs, len(alive))
            here = processes.this_process()
            self._beside = {name for name in alive if processes.is_here(name) and name != here}
            self._count_at = time.monotonic() + max(self._heed_s, len(known) / 10)

    def _ahead(self) -> int:
        """How many trials lately ended while claims took `CLAIM_SHARE` of the time, or in `AHEAD_S`
        where some may be duplicates; at most twice as many as since the last claim, so that what
        fails at once is not claimed by the hundred.
        """
        passed = max(time.monotonic() - self._claimed_at, 1e-3)
        places, ahead_s = MAX_AHEAD, self._claim_s / CLAIM_SHARE
        if self.duplicates is not None:
            places, ahead_s = min(places, self.duplicates.places), max(ahead_s, AHEAD_S)
        return min(int(self._trained * ahead_s / passed), 2 * self._trained, places)

    def _recover_at_times(self) -> None:
        """Requeue what dead workers ran: trials wait for it here, and nobody else may be there."""
        if time.monotonic() >= self._recovered + RECOVER_S:
            with storage.Tried(self._patience_s(AWAY_S)):
                self.book.recover()
            self._recovered = time.monotonic()

    def record(self, outcome: Outcome) -> None:
        """Note a result; it is written with the others of its block."""
        self._ended.append(outcome)

    def write(self, *, all_of_it: bool = False, waits: bool = False) -> None:
        """Make last what waits to be written; from here on it is acknowledged. Of duplicates,
        which wait for it in the study, `all_of_it` or what a few tenths of a second gathered.

        Where the storage does not answer while trials train, they go on and all of it is written
        later, unless it `waits`."""
        patience_s = None if waits else self._patience_s(AWAY_S if all_of_it else 0.0)
        if not self._write_ended(patience_s) or self.duplicates is None:
            return
        if not (all_of_it or time.monotonic() > self._settled + AHEAD_S):
            return
        while True:  # what others wait for may be among them
            with storage.Tried(patience_s):
                for settled in self.duplicates.settled():
                    self._ended.append(settled)
            if not self._ended or not self._write_ended(patience_s):
                break
        self._settled = time.monotonic()

    @contextlib.contextmanager
    def _asking(self) -> Iterator[None]:
        """Ask the storage for more trials; while it does not answer, those in training go on, and
        then it is asked again."""
        answers = False
        with storage.Tried(self._patience_s(AWAY_S)):
            yield
            answers = True
        self._paused = self._paused or not answers

    def _patience_s(self, seconds: float) -> float | None:
        """How long to wait for the storage: so long while trials train, else as the plan says."""
        training = self._begun - {outcome.asked.number for outcome in self._ended}
        return seconds if training else None

    def _write_ended(self, patience_s: float | None) -> bool:
        """Whether what waits is written; see `Decisions.write`."""
        if self.decisions.prunes:
            self.decisions.flush()
        endings = [self._ending(outcome) for outcome in self._ended]
        lost = self.decisions.write(endings, patience_s)
        if lost is None:
            return False
        ended, self._ended = self._ended, []
        has_failed = any(outcome.state == "failed" for outcome in ended)
        self._trained = 0 if has_failed else self._trained + len(ended)
        for number in lost:
            log.warning("trial %d was presumed dead; another runs in its place", number)
        for outcome, ending in zip(ended, endings, strict=True):
            asked = outcome.asked
            self._running.pop(asked.number, None)
            self._begun.discard(asked.number)
            self.decisions.forget(asked)
            self.planned.pop(asked.number, None)
            recorded = TrialState.FAIL if asked.number in lost else ending.state
            if self._uploads is not None and asked.number not in lost:
                self._uploads.add(asked.number)
            if self.duplicates is not None:
                self.duplicates.ended(outcome, recorded)
            if ending.state == TrialState.FAIL and asked.number not in lost:
                what = " ".join(w for w in asked.overrides if w not in self.plan.space.fixed)
                reason = ending.attributes.get("error")
                trace = f"; traceback: {progress.shown(outcome.trace)}" if outcome.trace else ""
                log.warning(
                    "trial %d failed: %s (%s)%s", asked.number, reason, one_line(what), trace
                )
        if any(ending.state == TrialState.FAIL for ending in endings):
            with storage.Tried(patience_s):
                self._too_many_failed = too_many_failed(self.plan, self.book.counts())
        self._told += len(ended)
        if self._member is not None:
            self._member.entry.trials = self._told  # written with the next sign of life
        if ended:
            self._steps = None
            self.notify(Status())
        return True

    def _ending(self, outcome: Outcome) -> Ending:
        """What is recorded of a trial that ended: an objective that is not finite is a failure,
        constraints are judged, and every trial keeps its overrides and where it was trained."""
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
        attributes[OVERRIDES] = outcome.asked.overrides
        attributes[ENVIRONMENT] = self._environment
        return Ending(outcome.asked.trial, _STATES[state], values, attributes, violations)


@contextlib.contextmanager
def _kept_loaded() -> Iterator[None]:
    """Let the garbage collector pass over all that is loaded by now, which stays."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def too_many_failed(plan: Plan, counts: Mapping[str, int], *, ended: bool = False) -> bool:
    """Whether more than `hydra.sweeper.max_failure_rate` of the study's trials failed for good.

    Until a sweep has `ended`, whether that is certain: were all others of its total to complete, it
    would still be so. Without a total nothing is certain; then the finished trials are judged, as
    soon as there are 20.
    """
    done = count_finished(counts)
    of = done if ended else max(done, 20 if plan.total is None else plan.total)
    return counts["failed"] > plan.max_failure_rate * of


def _recorded_environment(study: optuna.Study) -> str:
    """The key under which the study keeps where this worker's trials are trained."""
    found = environment()
    key = key_of(found)
    name = f"{ENVIRONMENT}.{key}"
    if name not in study.user_attrs:
        study.set_user_attr(name, found)
    return key
