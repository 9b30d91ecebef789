"""The books of a study: who may run the next trial, so that its total is met exactly.

`total` counts finished trials (COMPLETE, PRUNED, or FAIL and not tried again), whoever runs them
and however often the sweep is killed and started again. What changes the books happens in one
transaction that holds the study: BEGIN IMMEDIATE on SQLite (see `storage`), a lock on the study's
row elsewhere. Optuna's tables are written directly, because its public functions take one
transaction per row and per value.

A trial never goes back to waiting. It becomes FAIL, and a new trial with the same parameters waits
in its place; `records` lists the attributes that say so.

Called by the sweeper (`retry_failed`) and by every worker (the rest).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any

import optuna
from optuna.samplers import BaseSampler
from optuna.storages import RDBStorage
from optuna.storages._rdb import models
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import Connection, func, select, update
from sqlalchemy.orm import Session, selectinload

from iolaus.attributes import CONTINUES, ENQUEUED, LOST, POINT, RETRIED, RETRIES, RETRY_OF, WORKER
from iolaus.errors import InputError
from iolaus.sweep import processes, records
from iolaus.sweep.layout import Layout
from iolaus.sweep.live_trial import LiveTrial
from iolaus.sweep.records import (
    Heartbeats,
    Row,
    Trials,
    UserAttributes,
    attributes_of,
    parameters_of,
)
from iolaus.sweep.tally import Counts, Tally

AT_ONCE = 500
"""Trials that a query names."""

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
    that are also in `first` before the others. A trial
    whose worker died is run again at most `max_restarts` times. A worker that has not called `beat`
    for `grace_s` seconds counts as dead; one on this host also as soon as its process is gone. One
    that was only held up finds that `Study.tell` refuses its trial: another runs in its place.
    `sampler_of` gives the sampler of a trial by its number, where it is not the study's. Of what
    is left, one of `workers` takes no more than its share at once.

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
        self.max_restarts = max_restarts
        self.grace_s = grace_s
        self._sampler_of = sampler_of
        self._workers = workers
        self._engine = backend.engine
        self._study_id = study._study_id
        self._tally = Tally(study._study_id)
        self._layout: Layout | None = None

    def claim(self) -> LiveTrial | None:
        """Return the next trial to run, or None; see `claim_many`."""
        return next(iter(self.claim_many(1)), None)

    def claim_many(
        self, most: int, may: Callable[[Connection], bool] | None = None
    ) -> list[LiveTrial]:
        """Return the next trials to run, which are now RUNNING and this process's.

        Waiting trials come first, in order; then a grid's next points, or else new trials, whose
        parameters the sampler gives when they are suggested. None at all means that finished and
        running trials make up the total, or the grid: ask again while `counts()` knows running
        ones, which may yet be lost. `may` says, in the transaction that claims them, whether any
        may begin.
        """
        trials = self._take_next(most, may)
        if not trials and self.recover():
            trials = self._take_next(most, may)
        return [self._live(trial) for trial in trials]

    def retry_failed(self) -> int:
        """Let a grid's failed points wait again and return how many; the sweeper's, once a start.

        They have all their restarts before them again, and begin anew.
        """
        with self._books() as session:
            failed = [
                trial
                for trial in self._in_state(session, TrialState.FAIL)
                if POINT in (attributes := attributes_of(trial)) and RETRIED not in attributes
            ]
            self._replace(session, [(trial, {RETRIES: 0}) for trial in failed])
        self._tally.restart()
        return len(failed)

    def tried_again(self) -> int:
        """How many trials wait in the place of failed points, as `retry_failed` made them."""
        mine = (
            select(func.count())
            .select_from(Trials)
            .where(
                Trials.study_id == self._study_id,
                Trials.state == TrialState.WAITING,
                Trials.user_attributes.any(UserAttributes.key == RETRY_OF),
                ~Trials.user_attributes.any(UserAttributes.key == CONTINUES),
            )
        )
        with self._engine.begin() as connection:
            return int(connection.scalar(mine) or 0)

    def recover(self) -> int:
        """Put back the running trials whose worker is gone; return how many were lost.

        One that has been lost more than `max_restarts` times stays FAIL and counts as finished.
        """
        with self._books() as session:
            now = session.scalars(select(func.now())).one().replace(tzinfo=None)
            oldest = now - timedelta(seconds=self.grace_s)
            running = self._in_state(session, TrialState.RUNNING)
            judged = [(trial, _why_lost(trial, oldest)) for trial in running]
            lost = [(trial, why) for trial, why in judged if why is not None]
            self._put_back(session, lost, restarts=1)
        return len(lost)

    def release(self, *trials: optuna.Trial) -> None:
        """Put back running `trials` of this process, as on Ctrl-C; that is not a restart."""
        why, ids = "put back when the sweep was interrupted", [t._trial_id for t in trials]
        with self._books() as session:
            for some in _in_parts(ids):  # one that is not running was lost, and waits already
                running = self._in_state(session, TrialState.RUNNING, some)
                self._put_back(session, [(trial, why) for trial in running], restarts=0)

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
            self._add(session, rows)

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

    def _take_next(self, most: int, may: Callable[[Connection], bool] | None) -> list[FrozenTrial]:
        """Make the next trials RUNNING and return what their rows hold."""
        with self._engine.begin() as connection:
            records.hold(connection, self._study_id)
            if may is not None and not may(connection):
                return []
            found = self._tally.read(connection)
            if self.total is not None:
                counts = self._counts(found)
                left = max(0, counts["remaining"] - counts["running"])
                most = min(most, -(-left // self._workers))
            trials = records.begin_waiting(connection, found.waiting[:most])
            rows = self._new(connection, most - len(trials))
            trials += records.begin_new(connection, self._study_id, rows, found.size, found.last)
            records.hand_to(connection, trials, processes.this_process())
        return trials

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

    def _in_state(
        self, session: Session, state: TrialState, ids: Sequence[int] | None = None
    ) -> list[Any]:
        rows = select(Trials).where(Trials.study_id == self._study_id, Trials.state == state)
        if ids is not None:
            rows = rows.where(Trials.trial_id.in_(ids))
        rows = rows.with_for_update()  # or what ends at this moment would be taken for lost
        rows = rows.options(selectinload(Trials.user_attributes), selectinload(Trials.heartbeats))
        return list(session.scalars(rows.order_by(Trials.trial_id)))

    def _add(self, session: Session, rows: Sequence[Row]) -> None:
        """Add a waiting trial for each of `rows`."""
        session.flush()
        connection = session.connection()
        found = self._tally.read(connection)
        records.add_waiting(connection, self._study_id, rows, found.size, found.last)

    def _replace(self, session: Session, trials: Sequence[tuple[Any, dict[str, Any]]]) -> None:
        """Let a copy of each trial wait, with new attributes besides those it passes on."""
        whole = (selectinload(Trials.params), selectinload(Trials.system_attributes))
        for some in _in_parts([trial.trial_id for trial, _ in trials]):  # or one by one, below
            session.scalars(select(Trials).where(Trials.trial_id.in_(some)).options(*whole)).all()
        copies: list[Row] = []
        for trial, attributes in trials:
            old = attributes_of(trial)
            passed_on = {POINT: old[POINT]} if POINT in old else {}
            line = {RETRY_OF: old.get(RETRY_OF, trial.number)}
            copies.append((parameters_of(trial), {**passed_on, **line, **attributes}))
        # First, or a failed trial would be counted before it says that it is replaced.
        replaced = [(trial.trial_id, {RETRIED: True}) for trial, _ in trials]
        records.add_attributes(session.connection(), UserAttributes, replaced)
        self._add(session, copies)

    def _put_back(self, session: Session, trials: Sequence[tuple[Any, str]], restarts: int) -> None:
        """End trials, each with the reason why, and let others wait in their place."""
        again: list[tuple[Any, dict[str, Any]]] = []
        reasons = [(trial.trial_id, {LOST: why}) for trial, why in trials]
        records.add_attributes(session.connection(), UserAttributes, reasons)
        for trial, _ in trials:
            trial.state = TrialState.FAIL
            trial.datetime_complete = datetime.now()
            retries = attributes_of(trial).get(RETRIES, 0) + restarts
            if retries <= self.max_restarts:
                again.append((trial, {CONTINUES: trial.number, RETRIES: retries}))
        if again:
            self._replace(session, again)


def _in_parts(ids: Sequence[int]) -> Iterator[Sequence[int]]:
    """Row ids, as many at a time as a query may name."""
    for first in range(0, len(ids), AT_ONCE):
        yield ids[first : first + AT_ONCE]


def _why_lost(trial: Any, oldest: datetime) -> str | None:
    """Return why the worker of a running `trial` is taken for dead; None while it is not.

    `oldest` is the earliest heartbeat (UTC) of a living worker. A trial without heartbeats is not
    from a ledger and left alone.
    """
    worker = attributes_of(trial).get(WORKER)
    if worker is not None and processes.is_gone(worker):
        return f"its worker {worker} is gone"
    if any(beat.heartbeat < oldest for beat in trial.heartbeats):
        return (
            f"its worker {worker} has shown no sign of life since {trial.heartbeats[0].heartbeat}"
        )
    return None
