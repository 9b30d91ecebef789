"""The books of a study: who may run the next trial, so that its total is met exactly.

`total` counts finished trials (COMPLETE, PRUNED, or FAIL and not tried again), whoever runs them
and however often the sweep is killed and started again. What changes the books happens in one
transaction that holds the study: BEGIN IMMEDIATE on SQLite (see `storage`), a lock on the study's
row elsewhere. Optuna's tables are written directly, because its public functions take one
transaction per row and per value.

A trial never goes back to waiting. It becomes FAIL, and a new trial with the same parameters waits
in its place (`put_back.py`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import optuna
from optuna.samplers import BaseSampler
from optuna.storages import RDBStorage
from optuna.storages._rdb import models
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import Connection, func, select, update
from sqlalchemy.orm import Session

from sweepstack.config.errors import InputError
from sweepstack.study.attributes import ENQUEUED, LOST, RETRIED, RETRIES
from sweepstack.sweep.book import processes, records
from sweepstack.sweep.book.layout import Layout
from sweepstack.sweep.book.live_trial import LiveTrial
from sweepstack.sweep.book.put_back import PutBack
from sweepstack.sweep.book.records import Heartbeats, Row, Trials, UserAttributes
from sweepstack.sweep.book.tally import Counts, Tally
from sweepstack.sweep.book.waking import Waking

_NAMES = {
    "done": TrialState.COMPLETE,
    "pruned": TrialState.PRUNED,
    "failed": TrialState.FAIL,
    "running": TrialState.RUNNING,
    "waiting": TrialState.WAITING,
}


class Ledger:
    """Hands out the trials of one study; every worker has a ledger of its own.

    `total` is the number of trials to finish; None for no limit. `points` are a grid's parameters,
    the same in the same order in every process: each is run once, and nothing besides; those
    that are also in `first` before the others. A trial whose worker died is run again, but not more
    than `max_restarts` times in a row without progress, of which `checkpointed` tells what the
    reports do not (see `PutBack`). A worker that has not called `beat` for `grace_s` seconds counts
    as dead, unless this machine just woke up; one on this host also as soon as its process is gone.
    One that was only held up finds that `Study.tell` refuses its trial: another runs in its place.
    `sampler_of` gives the sampler of a trial by its number, where it is not the study's. Of what is
    left, one of `workers` takes no more than its share at once.

    Raises:
        InputError: the study is not in a database (see `storage.connect`).
    """

    def __init__(
        self,
        study: optuna.Study,
        total: int | None,
        max_restarts: int = 3,
        *,
        points: Sequence[Mapping[str, Any]] | None = None,
        first: Sequence[Mapping[str, Any]] = (),
        grace_s: float = 120.0,
        sampler_of: Callable[[int], BaseSampler] | None = None,
        workers: int = 1,
        checkpointed: Callable[[int], int | None] = lambda number: 0,
    ):
        # Optuna wraps a database in a cache of trials, without a public way to what it wraps.
        backend = getattr(study._storage, "_backend", None)
        if not isinstance(backend, RDBStorage):
            kind = type(study._storage).__name__
            raise InputError(
                f"a sweep's storage must be a database such as sqlite:///studies.db, got {kind}"
            )
        self.study = study
        self.total = total
        self.points = points
        self._first = first
        self.grace_s = grace_s
        self._sampler_of = sampler_of
        self._workers = workers
        self._engine = backend.engine
        self._study_id = study._study_id
        self._tally = Tally(study._study_id)
        self._waking = Waking()
        self._put_back = PutBack(self._tally, max_restarts, checkpointed)
        self._layout: Layout | None = None

    def claim(self) -> LiveTrial | None:
        """Return the next trial to run, or None; see `claim_many`."""
        return next(iter(self.claim_many(1)), None)

    def claim_many(
        self, most: int, may: Callable[[Connection], bool] | None = None, alone: bool = True
    ) -> list[LiveTrial]:
        """Return the next trials to run, which are now RUNNING and this process's.

        Waiting trials come first, in order; then a grid's next points, or else new trials, whose
        parameters the sampler gives when they are suggested; then waiting trials that failed or
        were lost without progress (without a total, these come first). None at all means that
        finished and running trials make up the total, or the grid: ask again while `counts()` knows
        running ones, which may yet be lost. `may` says, in the transaction that claims them,
        whether any may begin.

        Suspects (see `is_suspect`) go only to who is `alone` with them, having no other in hand:
        the more often they were lost, the fewer at once, so that it is found out which of them
        kills its worker.
        """
        trials = self._take_next(most, may, alone)
        if not trials and self.recover():
            trials = self._take_next(most, may, alone)
        return [self._live(trial) for trial in trials]

    def is_suspect(self, trial: optuna.Trial) -> bool:
        """Whether a trial was lost without progress: it may be what ended its worker, or only have
        been beside what did. It is run with no others than its like beside it."""
        return bool(trial.user_attrs.get(RETRIES, 0))

    def retry_failed(self) -> int:
        """Let a grid's failed points wait again and return how many; the sweeper's, once a start.

        Those that were lost `max_restarts` times stay failed.
        """
        with self._books() as session:
            return self._put_back.failed(session)

    def without_result(self) -> tuple[list[int], list[int]]:
        """Numbers of the trials that others replaced, and of those that were lost."""
        numbers = select(Trials.number).where(Trials.study_id == self._study_id)
        has = Trials.user_attributes.any
        with self._engine.begin() as connection:
            replaced, lost = (
                list(connection.scalars(numbers.where(has(UserAttributes.key == key))))
                for key in (RETRIED, LOST)
            )
        return replaced, lost

    def recover(self) -> int:
        """Put back the running trials whose worker is gone; return how many were lost.

        One that was lost more than `max_restarts` times in a row without progress stays FAIL and
        counts as finished.
        """
        with self._books() as session:
            silence_counts = not self._waking.within(self.grace_s)
            return self._put_back.lost(session, self.grace_s if silence_counts else None)

    def release(self, *trials: optuna.Trial) -> None:
        """Put back running `trials` of this process, as on Ctrl-C; that is not a restart."""
        with self._books() as session:
            self._put_back.released(session, [trial._trial_id for trial in trials])

    def enqueue(self, first: Sequence[Mapping[str, Any]]) -> None:
        """Let known points wait before all others, each once in the life of the study."""
        with self._books() as session:
            known = select(UserAttributes.value_json).join(Trials)
            known = known.where(Trials.study_id == self._study_id, UserAttributes.key == ENQUEUED)
            there = set(session.scalars(known))
            rows: list[Row] = []
            for point in first:
                mark = json.dumps(dict(sorted(point.items())))
                if json.dumps(mark) not in there:
                    rows.append((point, {ENQUEUED: mark}))
            self._tally.add_waiting(session.connection(), rows)

    def beat(self, trials: Iterable[optuna.Trial]) -> None:
        """Record that this process is at work on `trials`; call it well within `grace_s`."""
        running = [trial._trial_id for trial in trials]
        with Session(self._engine) as session, session.begin():
            session.execute(
                update(Heartbeats)
                .where(Heartbeats.trial_id.in_(running))
                .values(heartbeat=func.current_timestamp())
            )

    def counts(self) -> dict[str, int]:
        """Return the trials `done`, `pruned`, `failed`, `running`, `waiting` and `remaining`.

        `failed` leaves out those that are tried again. `remaining` is what is not finished of the
        total, running ones included; without a total it is what runs and waits.
        """
        with self._engine.begin() as connection:
            return self._counts(self._tally.read(connection))

    def others_at_work(self) -> bool:
        """Whether trials run that may yet be lost, so that it is worth to wait for them.

        One that was asked for by hand, in a notebook for example, shows no signs of life and can
        never be taken for dead: nobody waits for it.
        """
        alive = select(Trials.trial_id).join(Heartbeats)
        alive = alive.where(Trials.study_id == self._study_id, Trials.state == TrialState.RUNNING)
        with self._engine.begin() as connection:
            return connection.scalar(alive.limit(1)) is not None

    @contextmanager
    def _books(self) -> Iterator[Session]:
        """Open the books: until the block ends no other ledger reads or changes them."""
        with Session(self._engine) as session, session.begin():
            models.StudyModel.find_or_raise_by_id(self._study_id, session, for_update=True)
            yield session

    def _counts(self, found: Counts) -> dict[str, int]:
        counts = {name: found.states[state] for name, state in _NAMES.items()}
        finished = counts["done"] + counts["pruned"] + counts["failed"]
        if self.total is None:
            return counts | {"remaining": counts["running"] + counts["waiting"]}
        return counts | {"remaining": max(0, self.total - finished)}

    def _take_next(
        self, most: int, may: Callable[[Connection], bool] | None, alone: bool
    ) -> list[FrozenTrial]:
        """Make the next trials RUNNING and return what their rows hold."""
        with self._engine.begin() as connection:
            records.hold(connection, self._study_id)
            if may is not None and not may(connection):
                return []
            found = self._tally.read(connection)
            tried = self._put_back.tried(connection, found.waiting)
            fresh = [trial_id for trial_id in found.waiting if trial_id not in tried]
            again = self._company(tried, most) if alone or not all(tried.values()) else []
            if self.total is None:
                if self.points is None and tried:  # new ones have no end
                    fresh, again, most = again, [], len(again)
            else:
                counts = self._counts(found)
                left = counts["remaining"] - counts["running"]
                again = again[: max(0, -(-left // self._workers))]
                most = min(most, -(-max(0, left - len(tried)) // self._workers))
            trials = records.begin_waiting(connection, fresh[:most])
            rows = self._new(connection, most - len(trials))
            trials += records.begin_new(connection, self._study_id, rows, found.size, found.last)
            trials = trials or records.begin_waiting(connection, again)
            records.hand_to(connection, trials, processes.this_process())
        return trials

    def _company(self, tried: Mapping[int, int], most: int) -> list[int]:
        """Those of the tried trials that may run together next, least suspected first."""
        retries = min(tried.values(), default=0)
        last = retries and retries >= self._put_back.max_restarts
        most = 1 if last else max(1, most >> 2 * retries)
        return [trial_id for trial_id, count in tried.items() if count == retries][:most]

    def _new(self, connection: Connection, most: int) -> Sequence[Row]:
        """What new trials are to be, at most `most`."""
        if self.points is None:
            return [({}, {})] * most
        if self._layout is None:
            self._layout = Layout(self._study_id, self.points, self._first)
        return self._layout.next(connection, most) if most else []

    def _live(self, trial: FrozenTrial) -> LiveTrial:
        self.study._thread_local.cached_all_trials = None  # as `ask`: samplers look again
        if self._sampler_of is not None:
            self.study.sampler = self._sampler_of(trial.number)
        return LiveTrial(self.study, trial)
