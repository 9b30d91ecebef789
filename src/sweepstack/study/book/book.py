"""The records of a study: who may run the next trial, what trials report and how they end.

`total` counts finished trials (COMPLETE, PRUNED, or FAIL and not tried again), whoever runs them
and however often the sweep is killed and started again. What changes the records happens while the
study is held (`Book._held`), so that no other process reads or changes them meanwhile.

A trial never goes back to waiting. It becomes FAIL, and a new trial with the same parameters waits
in its place, before all others: a sampler wants to know how it ends; `attributes.py` lists what
says so. A trial that is lost again and again without any progress may be what kills its workers.
From the second time on (the last time in any case) it is a suspect: it runs after what was never
tried, in smaller and smaller company, the last time alone. Progress clears it: a report or a
checkpoint beyond the furthest before. A trial that had not begun is not to blame at all.

The policy is here; `bulk.py` and `public.py` are the two ways to read and write the records.
"""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import optuna
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from sweepstack.config.errors import EnvironmentFault
from sweepstack.storage import was_away
from sweepstack.study import attributes as attr
from sweepstack.study.book import (
    ENDED,
    Ending,
    Grid,
    Owner,
    Record,
    Report,
    Row,
    Tally,
    canonical,
    is_suspected,
    processes,
)

GRACE_S = 45.0
"""A worker of another host that has sent no heartbeat for so long is presumed dead."""
GRACE_HERE_S = 120.0
"""The same where its process is known to live."""
_INTERRUPTED = "requeued when the sweep was interrupted"
_NAMES = {
    "done": TrialState.COMPLETE,
    "pruned": TrialState.PRUNED,
    "failed": TrialState.FAIL,
    "running": TrialState.RUNNING,
    "waiting": TrialState.WAITING,
}


class Book(ABC):
    """Hands out the trials of one study and records them; every worker has a book of its own.

    Args:
        study: with its sampler and pruner.
        storage: what the study was loaded from.
        total: trials to finish; None for no limit.
        max_restarts: how often in a row a trial that is lost without progress is run again.
        points: a grid's parameters, the same in every process: each is run once, nothing besides.
        first: those of the points that come before the others.
        grace_s: a worker that has not called `beat` for so many seconds is presumed dead, unless
            this machine just woke up or the storage was away; one on this host also as soon as its
            process is gone. One that was only held up finds that `write` refuses its trial.
        workers: of what is left, one of so many takes no more than its share at once; to be set
            anew when others join.
        checkpointed: steps that a trial's checkpoints hold, by number; None if it never began.
    """

    def __init__(
        self,
        study: optuna.Study,
        storage: BaseStorage,
        total: int | None,
        max_restarts: int = 3,
        *,
        points: Sequence[Mapping[str, Any]] | None = None,
        first: Sequence[Mapping[str, Any]] = (),
        grace_s: float = GRACE_S,
        workers: int = 1,
        checkpointed: Callable[[int], int | None] = lambda number: 0,
    ):
        self.study, self.storage, self.total = study, storage, total
        self.study_id = storage.get_study_id_from_name(study.study_name)
        self.max_restarts, self.grace_s = max_restarts, grace_s
        self.workers, self._checkpointed = workers, checkpointed
        self._grid = None if points is None else Grid(points, first)
        self._sleep = processes.Sleep()
        self._owners: dict[str, Owner] = {}
        self.patience_s = 0.0  # how long a storage that does not answer is tried again
        self.identity: Any = None  # what the study is to ask, until a trial of this process runs

    # --- claims ----------------------------------------------------------------------------------

    def claim(
        self, most: int = 1, *, max_steps: int | None = None, alone: bool = True, begun: int = 0
    ) -> list[optuna.Trial]:
        """Return the next trials to run, at most `most`, which are now RUNNING and this process's.

        Waiting trials come first, requeued ones before others; then a grid's next points, or else
        new trials, whose parameters the sampler gives when they are suggested; then waiting trials
        that failed, and suspects (without a total, these come first). None at all means that
        finished and running trials make up the total, or the grid: ask again while `counts()` knows
        running ones, which may yet be lost. No trial begins once all trials together may take
        `max_steps` training steps.

        Suspects (see `is_suspected`) go only to who is `alone` with them, having no other in hand:
        the more often they were lost, the fewer at once, so that it is found out which of them
        kills its worker.

        Workers are to end together: of what is not finished none holds more than its share, with
        what it has `begun`.
        """
        trials = self._claim(most, max_steps, alone, begun)
        if not trials and self.recover():
            trials = self._claim(most, max_steps, alone, begun)
        return self._live(trials)

    def enqueue(self, first: Sequence[Mapping[str, Any]]) -> None:
        """Let known points wait before all others, each once in the life of the study."""
        with self._held() as page:
            there = {value for _, value in self._values(page, attr.ENQUEUED)}
            marks = {canonical(point): point for point in first}
            new = [Row(p, {attr.ENQUEUED: mark}) for mark, p in marks.items() if mark not in there]
            self._add_waiting(page, new)

    def retry_failed(self) -> int:
        """Let a grid's failed points wait again and return how many; the sweeper's, once a start.

        Those that were lost `max_restarts` times stay failed.
        """
        with self._held() as page:
            again: list[tuple[Record, dict[str, Any]]] = []
            for record in self._records(page, TrialState.FAIL):
                known = record.attributes
                retries = known.get(attr.RETRIES, 0) + (attr.LOST in known)
                is_final = attr.POINT in known and attr.RETRIED not in known
                if is_final and retries <= self.max_restarts:
                    again.append((record, {attr.RETRIES: retries} if retries else {}))
            self._replace(page, {}, self._copies(page, again))
        if again:  # what has settled counts anew
            before = self.attributes(attr.AGAIN).get(attr.AGAIN, 0)
            self.storage.set_study_user_attr(self.study_id, attr.AGAIN, before + 1)
        return len(again)

    def recover(self) -> int:
        """Requeue the running trials whose worker is gone; return how many were lost. The study is
        held only where there are any.

        One that was lost more than `max_restarts` times in a row without progress stays FAIL and
        counts as finished.
        """
        all_silent = self._sleep.ended_within(self.grace_s) or was_away(self.grace_s)
        grace_s = math.inf if all_silent else self.grace_s
        with self._read() as page:
            if not any(_why_lost(*worker, grace_s) for worker in self._at_work(page)):
                return 0
        with self._held() as page:
            running = self._records(page, TrialState.RUNNING)
            judged = [
                (r, _why_lost(r.attributes.get(attr.WORKER), r.silent_s, grace_s)) for r in running
            ]
            lost = [(record, why) for record, why in judged if why is not None]
            self._requeue(page, lost, restarts=1)
            return len(lost)

    def release(self, *trials: optuna.Trial) -> None:
        """Requeue running `trials` of this process, as on Ctrl-C; that is not a restart. One that
        does not run was lost, and waits already."""
        with self._held() as page:
            ids = [self._id(trial) for trial in trials]
            running = self._records(page, TrialState.RUNNING, ids)
            self._requeue(page, [(record, _INTERRUPTED) for record in running], restarts=0)

    @abstractmethod
    def beat(self, trials: Iterable[optuna.Trial], entry: tuple[str, Any] | None = None) -> None:
        """Record that this process is at work on `trials`; call it well within `grace_s`. Its entry
        among the attributes of the study, which is there, gets a new value with it."""

    # --- reports and ends ------------------------------------------------------------------------

    @abstractmethod
    def begin(self, trials: Sequence[optuna.Trial]) -> None:
        """Record the parameters that were suggested to trials since the last time."""

    @abstractmethod
    def write(self, reports: Iterable[Report] = (), endings: Sequence[Ending] = ()) -> list[int]:
        """Record reports and how trials ended, with all their attributes: from then on these
        results are kept. A step that a trial has reported before keeps its value.

        Returns:
            The numbers of the trials that were not running any more: presumed dead, another runs
            in the place of each. Nothing of them is written.
        """

    @abstractmethod
    def reported(self, trial: optuna.Trial) -> FrozenTrial:
        """A running trial of this process with what it has reported; not to be changed."""

    # --- effects ---------------------------------------------------------------------------------

    def take_effects(self, wanted: Sequence[tuple[optuna.Trial, str]]) -> list[Owner | None]:
        """For each running trial and its effect the trial that runs with it or has ended with it;
        None where there was none, and the effect is now this trial's. Those that are known to have
        ended need no query, the others share one transaction."""
        if wanted and all(e in self._owners and self._owners[e].state in ENDED for _, e in wanted):
            return [self._owners[effect] for _, effect in wanted]
        with self._held() as page:
            self._see_effects(page)
            self._refresh(page, [self._owners[e] for _, e in wanted if e in self._owners])
            found = [self._owner(trial, effect) for trial, effect in wanted]
            taken = [pair for pair, owner in zip(wanted, found, strict=True) if owner is None]
            self._write_effects(page, taken)
        return found

    def effect_ended(self, effect: str, number: int, state: TrialState) -> Owner | None:
        """Note how a trial of this process ended; None where it was presumed dead meanwhile, and
        its effect is another's now."""
        owner = self._owners[effect]
        if owner.number != number:
            return None
        owner.state = state
        return owner

    def owners(self, effects: Sequence[str]) -> dict[str, Owner]:
        """The owners of known effects, as they are now."""
        found = {effect: self._owners[effect] for effect in effects}
        if found:
            with self._read() as page:
                self._refresh(page, list(found.values()))
        return found

    # --- what is asked of the workers -------------------------------------------------------------

    def stop(self, crew: str = "") -> None:
        """Ask the workers of one sweep to stop, or all that work on the study now."""
        self.study.set_user_attr(stop_key(crew), repr(time.time()))

    def stops(self, crew: str = "") -> tuple[Any, Any]:
        """When all workers, and those of one sweep, were last asked to stop: it changes when they
        are asked again. Sweeps that start later go on."""
        known = self.attributes(stop_key(), stop_key(crew))
        return known.get(stop_key()), known.get(stop_key(crew)) if crew else None

    def attributes(self, *keys: str, prefix: str | None = None) -> Mapping[str, Any]:
        """Attributes of the study: those of some names, or whose names begin so; others may be
        among them."""
        return self.storage.get_study_user_attrs(self.study_id)

    def settle(self, key: str, value: Any) -> Any:
        """Give the study an attribute where it has none, and return what it has: that of the first
        of several processes that ask at once."""
        with self._held() as page:
            known = self._kept(page, key)
            if known is None:
                self._keep(page, key, value)
        return value if known is None else known

    # --- looks -----------------------------------------------------------------------------------

    def counts(self) -> dict[str, int]:
        """Return the trials `done`, `pruned`, `failed`, `running`, `waiting` and `remaining`.

        `failed` leaves out those that are tried again. `remaining` is what is not finished of the
        total, running ones included; without a total it is what runs and waits.
        """
        with self._read() as page:
            return self._counts(self._tally(page))

    def steps(self) -> int:
        """Training steps of all finished trials that were trained themselves."""
        with self._read() as page:
            return self._steps(page)

    @abstractmethod
    def best(self, direction: str) -> float | None:
        """The best value of a complete trial that keeps its constraints, of one objective."""

    @abstractmethod
    def others_at_work(self) -> bool:
        """Whether trials run that may yet be lost, so that it is worth to wait for them.

        One that was asked for by hand, in a notebook for example, sends no heartbeats and is never
        presumed dead: nobody waits for it.
        """

    @abstractmethod
    def numbers_with(self, key: str) -> list[int]:
        """Numbers of the trials that have a user attribute."""

    @contextmanager
    def deletion(self) -> Iterator[tuple[list[str], int]]:
        """Hold the study until it is deleted at the end of the block, unless that raises; gives
        what `alive` does, and how many trials have finished."""
        with self._held() as page:
            self._check_identity(page)
            counts = self._counts(self._tally(page))
            yield self._alive(page), counts["done"] + counts["pruned"] + counts["failed"]
            self._delete(page)

    def alive(self) -> list[str]:
        """Names of the living workers that run trials, one for each trial."""
        with self._read() as page:
            return self._alive(page)

    def trial(self, number: int) -> FrozenTrial:
        """A trial of the study by its number."""
        return self.storage.get_trial(
            self.storage.get_trial_id_from_study_id_trial_number(self.study_id, number)
        )

    def line(self, number: int | None) -> list[int]:
        """`number` and the trials that it replaces, the last one first."""
        numbers: list[int] = []
        while number is not None:
            numbers.append(number)
            number = self.trial(number).user_attrs.get(attr.CONTINUES)
        return numbers

    def _alive(self, page: Any) -> list[str]:
        running = self._records(page, TrialState.RUNNING)
        return [
            str(record.attributes.get(attr.WORKER))
            for record in running
            if record.silent_s is not None
            and record.silent_s <= self.grace_s
            and _may_live(record.attributes.get(attr.WORKER))
        ]

    # --- the policy ------------------------------------------------------------------------------

    def _counts(self, found: Tally) -> dict[str, int]:
        counts = {name: found.states[state] for name, state in _NAMES.items()}
        finished = counts["done"] + counts["pruned"] + counts["failed"]
        if self.total is None:
            return counts | {"remaining": counts["running"] + counts["waiting"]}
        return counts | {"remaining": max(0, self.total - finished)}

    def _claim(self, most: int, max_steps: int | None, alone: bool, begun: int) -> list[Any]:
        with self._held() as page:
            self._check_identity(page)
            if max_steps is not None and not self._allows(page, max_steps):
                return []
            found = self._tally(page)
            fresh, tried = self._queue(page, found.waiting)
            again = self._company(tried, most) if alone or not all(tried.values()) else []
            if self.total is None:
                if self._grid is None and tried:  # new ones have no end
                    fresh, again, most = again, [], len(again)
            else:
                counts = self._counts(found)
                left = counts["remaining"] - counts["running"]
                again = again[: max(0, -(-left // self.workers))]
                most = min(most, -(-max(0, left - len(tried)) // self.workers))
                if self.workers > 1:
                    most = min(most, max(0, -(-counts["remaining"] // self.workers) - begun))
            trials = self._begin_waiting(page, fresh[:most])
            trials += self._begin_new(page, found, self._new(page, most - len(trials)))
            trials = trials or self._begin_waiting(page, again)
            self._hand_out(page, trials)
        self.identity = None if trials else self.identity
        return trials

    def _check_identity(self, page: Any) -> None:
        """Raise an EnvironmentFault where the study is gone, or another question's by now: one in
        which no trial has begun may be deleted and made anew, even with the same row id."""
        if self.identity is not None and self._kept(page, attr.IDENTITY) != self.identity:
            raise EnvironmentFault(
                f"study {self.study.study_name} is gone, or was made anew for another question, by "
                "a command that began after this one: run this again, or choose another study name"
            )

    def _queue(self, page: Any, waiting: Sequence[int]) -> tuple[list[int], dict[int, int]]:
        """The waiting trials that come first, requeued ones before others; and those that failed,
        or were lost without progress, and how often."""
        known = self._attributes(page, waiting, (attr.RETRIES, attr.RETRY_OF))
        retries = {id_: kept.get(attr.RETRIES) for id_, kept in known.items() if kept}
        tried = {
            id_: count or 0
            for id_, count in retries.items()
            if count is None or is_suspected(count, self.max_restarts)
        }
        fresh = [id_ for id_ in waiting if id_ not in tried]
        return sorted(fresh, key=lambda id_: id_ not in retries), tried

    def _company(self, tried: Mapping[int, int], most: int) -> list[int]:
        """Those of the tried trials that may run together next, least suspected first."""
        retries = min(tried.values(), default=0)
        last = retries and retries >= self.max_restarts
        most = 1 if last else max(1, most >> 2 * retries)
        return [id_ for id_, count in tried.items() if count == retries][:most]

    def _new(self, page: Any, most: int) -> list[Row]:
        """What new trials are to be, at most `most`."""
        if self._grid is None or most <= 0:
            return [Row({}, {})] * most
        for id_, mark in self._values(page, attr.POINT, after=self._grid.seen):
            self._grid.cover(id_, mark)
        return self._grid.next(most)

    def _allows(self, page: Any, most: int, before: int | None = None) -> bool:
        """Whether another trial may begin, with `most` steps for all.

        A trial of another worker that has not said yet what it may take counts as the longest of
        the study; before any has said so it alone may run. A trial without a worker is a person's.
        """
        plans = [r.attributes for r in self._records(page, TrialState.RUNNING) if r.id != before]
        plans = [known for known in plans if attr.WORKER in known]
        silent = {known[attr.WORKER] for known in plans if attr.PLANNED not in known}
        unknown = len(silent - {processes.this_process()})
        planned = sum(known.get(attr.PLANNED, 0) for known in plans)
        if unknown:
            longest = max((value for _, value in self._values(page, attr.PLANNED)), default=None)
            if longest is None:
                return False
            planned += unknown * longest
        return bool(self._steps(page) + planned < most)

    def _requeue(self, page: Any, lost: Sequence[tuple[Record, str]], restarts: int) -> None:
        """End trials, each with the reason why, and let others wait in their place."""
        again: list[tuple[Record, dict[str, Any]]] = []
        reached = self._last_steps(page, [record.id for record, _ in lost])
        reasons: dict[int, str] = {}
        steps_of = {record.id: self._checkpointed(record.number) for record, _ in lost}
        # What another host trained need not lie here, unless something of that worker does.
        seen = {r.attributes.get(attr.WORKER) for r, _ in lost if steps_of[r.id] is not None}
        for record, why in lost:
            known, steps = record.attributes, steps_of[record.id]
            worker = known.get(attr.WORKER)
            if steps is None and worker not in seen and not _was_here(worker):
                steps = 0
            before = known.get(attr.PROGRESS, [0, 0])
            now = [max(before[0], reached.get(record.id, 0)), max(before[1], steps or 0)]
            blamed = restarts if steps is not None else 0
            retries = 0 if now != before else known.get(attr.RETRIES, 0) + blamed
            if retries <= self.max_restarts:
                progress = {attr.PROGRESS: now} if any(now) else {}
                again.append((record, {attr.RETRIES: retries, **progress}))
            else:
                restarted = f"after {self.max_restarts} restarts without progress"
                why += f"; given up {restarted} (hydra.sweeper.max_restarts)"
            reasons[record.id] = why
        self._replace(page, reasons, self._copies(page, again))

    def _copies(
        self, page: Any, again: Sequence[tuple[Record, dict[str, Any]]]
    ) -> list[tuple[Record, Row]]:
        """What waits in the place of trials, with new attributes besides those it passes on."""
        parameters = self._parameters(page, [record.id for record, _ in again])
        copies: list[tuple[Record, Row]] = []
        for record, attributes in again:
            old = record.attributes
            kept = {attr.POINT: old[attr.POINT]} if attr.POINT in old else {}
            kept[attr.RETRY_OF] = old.get(attr.RETRY_OF, record.number)
            kept[attr.CONTINUES] = record.number
            copies.append((record, Row(parameters.get(record.id, {}), {**kept, **attributes})))
        return copies

    def _owner(self, trial: optuna.Trial, effect: str) -> Owner | None:
        found = self._owners.get(effect)
        if found is not None and found.state != TrialState.FAIL and found.number != trial.number:
            return found
        self._owners[effect] = Owner(self._id(trial), trial.number, TrialState.RUNNING)
        return None

    def _see_effects(self, page: Any) -> None:
        for effect, owner in self._new_effects(page):
            before = self._owners.get(effect)
            if before is None or before.state not in ENDED:
                self._owners[effect] = owner

    def _refresh(self, page: Any, owners: Iterable[Owner]) -> None:
        running = {owner.id: owner for owner in owners if owner.state == TrialState.RUNNING}
        if running:
            for id_, state in self._states(page, list(running)).items():
                running[id_].state = state

    # --- what an implementation reads and writes; a page is what `_held` or `_read` gives --------

    @abstractmethod
    def _kept(self, page: Any, key: str) -> Any:
        """An attribute of the study; None where it has none, or is gone."""

    @abstractmethod
    def _keep(self, page: Any, key: str, value: Any) -> None:
        """Give the study an attribute that it has not."""

    @abstractmethod
    def _delete(self, page: Any) -> None:
        """Delete the study."""

    @abstractmethod
    def _held(self) -> AbstractContextManager[Any]:
        """Hold the study: until the block ends no other book reads or changes it."""

    @abstractmethod
    def _read(self) -> AbstractContextManager[Any]:
        """Read the study as it is at one moment."""

    @abstractmethod
    def _tally(self, page: Any) -> Tally: ...

    @abstractmethod
    def _records(
        self, page: Any, state: TrialState, ids: Sequence[int] | None = None
    ) -> list[Record]:
        """The trials in a state, of all or of some, in order."""

    @abstractmethod
    def _at_work(self, page: Any) -> Iterable[tuple[Any, float | None]]:
        """The workers of running trials, and the longest time since a heartbeat of theirs."""

    @abstractmethod
    def _attributes(
        self, page: Any, ids: Sequence[int], keys: Sequence[str]
    ) -> dict[int, dict[str, Any]]:
        """Some user attributes of trials."""

    @abstractmethod
    def _values(self, page: Any, key: str, after: int = -1) -> list[tuple[int, Any]]:
        """Id and value of a user attribute, of the trials behind `after` that have it."""

    @abstractmethod
    def _parameters(self, page: Any, ids: Sequence[int]) -> dict[int, dict[str, Any]]:
        """The parameters that were fixed for trials, and those they were given since."""

    @abstractmethod
    def _last_steps(self, page: Any, ids: Sequence[int]) -> dict[int, int]:
        """The last step that each trial reported."""

    @abstractmethod
    def _steps(self, page: Any) -> int:
        """See `steps`."""

    @abstractmethod
    def _states(self, page: Any, ids: Sequence[int]) -> dict[int, TrialState]: ...

    @abstractmethod
    def _new_effects(self, page: Any) -> Iterable[tuple[str, Owner]]:
        """The effects that were written since the last time."""

    @abstractmethod
    def _id(self, trial: optuna.Trial) -> int: ...

    @abstractmethod
    def _begin_waiting(self, page: Any, ids: Sequence[int]) -> list[Any]:
        """Make waiting trials RUNNING and this process's."""

    @abstractmethod
    def _begin_new(self, page: Any, found: Tally, rows: Sequence[Row]) -> list[Any]:
        """Add RUNNING trials of this process."""

    @abstractmethod
    def _hand_out(self, page: Any, trials: Sequence[Any]) -> None:
        """Record that this process runs trials, with a heartbeat."""

    @abstractmethod
    def _live(self, trials: Sequence[Any]) -> list[optuna.Trial]:
        """What `_begin_waiting` and `_begin_new` give, as Optuna's trials; not while held."""

    @abstractmethod
    def _add_waiting(self, page: Any, rows: Sequence[Row]) -> None: ...

    @abstractmethod
    def _replace(
        self, page: Any, lost: Mapping[int, str], copies: Sequence[tuple[Record, Row]]
    ) -> None:
        """Let trials wait in the place of others, and end those that are `lost`, by id."""

    @abstractmethod
    def _write_effects(self, page: Any, taken: Sequence[tuple[optuna.Trial, str]]) -> None: ...


def stop_key(crew: str = "") -> str:
    """The attribute of a study by which workers are asked to stop."""
    return f"{attr.STOP}.{crew}" if crew else attr.STOP


def _was_here(worker: object) -> bool:
    """Whether a worker was a process of this host; the name comes from the database."""
    return isinstance(worker, str) and processes.is_here(worker)


def _may_live(worker: object) -> bool:
    """Whether a worker may be alive."""
    return not (isinstance(worker, str) and processes.is_gone(worker))


def _why_lost(worker: Any, silent_s: float | None, grace_s: float) -> str | None:
    """Why the worker of a running trial is presumed dead; None while it is not."""
    if not _may_live(worker):
        return f"its worker {worker} is gone"
    if _was_here(worker):
        grace_s = max(grace_s, GRACE_HERE_S)
    if silent_s is not None and silent_s > grace_s:
        return f"its worker {worker} sent no heartbeat for {silent_s:.0f} s"
    return None
