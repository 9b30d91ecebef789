"""The records of a study in Optuna's own tables: many rows in one transaction.

Optuna's public functions take one transaction per row and per value; a stack of trials has many at
once. What is written here is row for row what they write (a test compares them). Left out is the
samplers' `after_trial`: what it does concerns `constraints_func`, which we do not use, and
`Study.stop`.

Where Optuna's tables are not as they are used here (`tables.missing`), `public.py` does the same,
slower. A transaction that changes records holds the study: BEGIN IMMEDIATE on SQLite (see
`storage`), a lock on the study's row elsewhere.
"""

from __future__ import annotations

import functools
import json
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from functools import lru_cache
from typing import Any

import optuna
import sqlalchemy as sa
from optuna import pruners
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    distribution_to_json,
    json_to_distribution,
)
from optuna.samplers import RandomSampler
from optuna.storages import RDBStorage
from optuna.storages._rdb import models
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import Connection, func, insert, select

from sweepstack.storage import again, is_transient, quick_transaction, single
from sweepstack.study.attributes import AGAIN, CONTINUES, EFFECT, EQUALS, LOST, RETRIED, WORKER
from sweepstack.study.book import Ending, Owner, Record, Report, Row, Tally, processes
from sweepstack.study.book.book import Book
from sweepstack.study.book.tables import (
    AT_ONCE,
    BEATS,
    NEEDED,
    OF_STUDY,
    PARAMETERS,
    REPORTS,
    SYSTEM,
    TRIALS,
    USER,
    VALUES,
    add_attributes,
    frozen_trial,
    hold,
    insert_rows,
    json_of,
    new_reports,
    report_row,
    rows_of,
    silent_s,
    stored,
    update_rows,
    utc,
    write_endings,
)

MAX_BEHIND = 50
"""Trials that may still run while all others as old as they have ended, see `_tally`."""
_OPEN = (TrialState.RUNNING, TrialState.WAITING)
_HANDED: set[tuple[sa.URL, int]] = set()
"""Database and row id of the trials that books of this process have handed out."""
_UNKNOWN = "requeued: the database failed while it was claimed"


class BulkBook(Book):
    """The records of one study of a database."""

    def __init__(self, study: optuna.Study, storage: RDBStorage, *given: Any, **named: Any):
        super().__init__(study, storage, *given, **named)
        self._engine, self._single = storage.engine, single(storage.engine)
        self._mine = TRIALS.c.study_id == self.study_id
        self._effects_up_to = -1
        self._tries = threading.local()
        self._unsure: set[str] = set()
        """Methods whose last call was given up: what they were to write may be there."""
        self._counting = threading.RLock()  # the heartbeat's thread forgets, a display counts
        self._forget()

    @property
    def _again(self) -> bool:
        """Whether what is written now may have been written by a try whose end is unknown."""
        return getattr(self._tries, "before", 0) > 0

    def _claim(self, most: int, max_steps: int | None, alone: bool, begun: int) -> list[Any]:
        if self._again:  # what an earlier try may have taken is nobody's
            with self._held() as page:
                running = self._records(page, TrialState.RUNNING)
                me = processes.this_process()
                mine = [r for r in running if r.attributes.get(WORKER) == me]
                orphans = [(r, _UNKNOWN) for r in mine if (self._engine.url, r.id) not in _HANDED]
                self._requeue(page, orphans, restarts=0)
        trials = super()._claim(most, max_steps, alone, begun)
        _HANDED.update((self._engine.url, trial._trial_id) for trial in trials)
        return trials

    def _forget(self) -> None:
        with self._counting:
            self._floor, self._size, self._retried = -1, 0, -1
            self._near: Any = self._mine
            """Which trials of the study may run or wait."""
            self._settled: Counter[TrialState] = Counter()

    @contextmanager
    def _held(self) -> Iterator[Connection]:
        with quick_transaction(self._engine) as page:
            hold(page, self.study_id)
            yield page

    @contextmanager
    def _read(self) -> Iterator[Connection]:
        with self._single.begin() as page:
            yield page

    def _id(self, trial: optuna.Trial) -> int:
        return trial._trial_id

    # --- reading ---------------------------------------------------------------------------------

    def _tally(self, page: Connection) -> Tally:
        """Count without looking at all again: a finished trial stays finished. What is counted
        anew, by the database, is what is newer than the oldest that waited or ran lately, but for
        at most `MAX_BEHIND` that run for longer than others. All of it, once failed trials have got
        others in their place: a sweep was started again, here or elsewhere."""
        with self._counting:
            retried = (
                (self._kept(page, AGAIN) or 0) if self._settled[TrialState.FAIL] else self._retried
            )
            if retried != self._retried:
                self._forget()
                self._retried = retried
            return self._counted(page)

    def _counted(self, page: Connection) -> Tally:
        near = self._near
        states, size, last, waiting = self._numbers(page, near)
        found = Tally(self._settled + states, self._size + size, max(self._floor, last), waiting)
        if size > 4 * sum(states[state] for state in _OPEN) + AT_ONCE:
            query = select(TRIALS.c.trial_id).where(near, TRIALS.c.state.in_(_OPEN))
            query = query.order_by(TRIALS.c.trial_id).limit(MAX_BEHIND + 1)
            still = list(page.scalars(query))
            floor = still.pop() - 1 if len(still) > MAX_BEHIND else last
            ended = (near, TRIALS.c.trial_id <= floor, TRIALS.c.trial_id.not_in(still))
            settled, count, *_ = self._numbers(page, sa.and_(*ended))
            self._settled, self._size = self._settled + settled, self._size + count
            newer = sa.or_(TRIALS.c.trial_id > floor, TRIALS.c.trial_id.in_(still))
            self._floor, self._near = floor, sa.and_(self._mine, newer)
        return found

    def _numbers(self, page: Connection, which: Any) -> tuple[Counter[TrialState], int, int, Any]:
        """Of some trials: states, how many, the last one's id, and the ids of those that wait."""
        named = TRIALS.c.state.in_((TrialState.WAITING, TrialState.FAIL))
        one = sa.case((named, TRIALS.c.trial_id), else_=-1).label("one")
        # One statement, or a trial that is replaced in between would be counted twice, or never.
        query = select(one, TRIALS.c.state, func.count(), func.max(TRIALS.c.trial_id))
        rows = page.execute(query.where(which).group_by("one", TRIALS.c.state)).all()
        failed = [trial_id for trial_id, state, *_ in rows if state == TrialState.FAIL]
        replaced = self._attributes(page, failed, (RETRIED,))
        states: Counter[TrialState] = Counter()
        for trial_id, state, count, _ in rows:
            states[state] += 0 if trial_id in replaced else count
        waiting = sorted(trial_id for trial_id, state, *_ in rows if state == TrialState.WAITING)
        size, last = sum(row[2] for row in rows), max([-1, *(row[3] for row in rows)])
        return states, size, last, waiting

    def _records(
        self, page: Connection, state: TrialState, ids: Sequence[int] | None = None
    ) -> list[Record]:
        query = select(TRIALS.c.trial_id, TRIALS.c.number)
        # For update, or what ends at this moment would be taken for lost.
        which = self._mine if state.is_finished() else self._near
        query = query.where(which, TRIALS.c.state == state).with_for_update()
        some: Any = page.execute(query) if ids is None else rows_of(page, query, ids)
        rows = sorted((trial_id, number) for trial_id, number in some)
        found = [trial_id for trial_id, _ in rows]
        known = self._attributes(page, found)
        beats = dict(rows_of(page, select(BEATS.c.trial_id, BEATS.c.heartbeat), found))
        silences = silent_s(page, beats)
        return [Record(i, n, known.get(i, {}), silences.get(i)) for i, n in rows]

    def _at_work(self, page: Connection) -> list[tuple[Any, float | None]]:
        query = select(USER.c.value_json, func.min(BEATS.c.heartbeat)).group_by(USER.c.value_json)
        query = query.join(TRIALS, TRIALS.c.trial_id == USER.c.trial_id)
        query = query.join(BEATS, BEATS.c.trial_id == TRIALS.c.trial_id, isouter=True)
        running = (self._near, TRIALS.c.state == TrialState.RUNNING, USER.c.key == WORKER)
        found = page.execute(query.where(*running)).all()
        silences = silent_s(page, dict(map(tuple, found)))
        return [(json.loads(text), seconds) for text, seconds in silences.items()]

    def _attributes(
        self, page: Connection, ids: Sequence[int], keys: Sequence[str] = (), model: Any = USER
    ) -> dict[int, dict[str, Any]]:
        found: dict[int, dict[str, Any]] = {}
        query = select(model.c.trial_id, model.c.key, model.c.value_json)
        if keys:
            query = query.where(model.c.key.in_(keys))
        for trial_id, key, text in rows_of(page, query, ids):
            found.setdefault(trial_id, {})[key] = json.loads(text)
        return found

    def _values(self, page: Connection, key: str, after: int = -1) -> list[tuple[int, Any]]:
        query = select(TRIALS.c.trial_id, USER.c.value_json)
        query = query.join(USER, USER.c.trial_id == TRIALS.c.trial_id)
        query = query.where(self._mine, USER.c.key == key, TRIALS.c.trial_id > after)
        return [(trial_id, json.loads(text)) for trial_id, text in page.execute(query)]

    def _parameters(self, page: Connection, ids: Sequence[int]) -> dict[int, dict[str, Any]]:
        system = self._attributes(page, ids, ("fixed_params",), SYSTEM)
        found = {trial_id: dict(known["fixed_params"]) for trial_id, known in system.items()}
        query = select(*(PARAMETERS.c[name] for name in NEEDED["TrialParamModel"]))
        for trial_id, name, value, text in rows_of(page, query, ids):
            internal = json_to_distribution(text)
            found.setdefault(trial_id, {})[name] = internal.to_external_repr(value)
        return found

    def _last_steps(self, page: Connection, ids: Sequence[int]) -> dict[int, int]:
        query = select(REPORTS.c.trial_id, func.max(REPORTS.c.step)).group_by(REPORTS.c.trial_id)
        return dict(rows_of(page, query, ids))

    def _steps(self, page: Connection) -> int:
        query = select(USER.c.value_json).join(TRIALS, TRIALS.c.trial_id == USER.c.trial_id)
        other = USER.alias().c
        equal = sa.exists().where(other.trial_id == USER.c.trial_id, other.key == EQUALS)
        query = query.where(self._mine, USER.c.key == "steps", ~equal)
        return sum(json.loads(text) or 0 for text in page.scalars(query))

    def _states(self, page: Connection, ids: Sequence[int]) -> dict[int, TrialState]:
        return dict(rows_of(page, select(TRIALS.c.trial_id, TRIALS.c.state), ids))

    def _new_effects(self, page: Connection) -> Iterator[tuple[str, Owner]]:
        # Two queries by primary keys: joined, the database might look through the whole study.
        id_ = USER.c.trial_user_attribute_id
        query = select(id_, USER.c.trial_id, USER.c.value_json).order_by(id_)
        up_to = self._effects_up_to
        query = query.where(id_ > up_to, USER.c.key == EFFECT)
        if up_to < 0:  # but the first time, or it looks through all studies
            query = query.join(TRIALS, TRIALS.c.trial_id == USER.c.trial_id).where(self._mine)
            up_to = page.scalar(select(func.max(id_))) or 0
        effects: dict[int, str] = {}
        for at, trial_id, text in page.execute(query):
            up_to, effect = max(at, up_to), json.loads(text)
            known = self._owners.get(effect)
            if known is None or known.id != trial_id:  # else it is one of this process's
                effects[trial_id] = effect
        columns = select(TRIALS.c.trial_id, TRIALS.c.number, TRIALS.c.state).where(self._mine)
        owners = {row[0]: Owner(*row) for row in rows_of(page, columns, list(effects))}
        self._effects_up_to = up_to  # now that all of it is read
        # As they were written: of a failed trial's effect the next owner comes after it.
        yield from ((effect, owners[i]) for i, effect in effects.items() if i in owners)

    def best(self, direction: str) -> float | None:
        extreme = func.max if direction == "maximize" else func.min
        query = select(extreme(VALUES.c.value)).join(TRIALS, TRIALS.c.trial_id == VALUES.c.trial_id)
        violated = select(SYSTEM.c.trial_id).where(
            SYSTEM.c.key.startswith("constraints:"), sa.cast(SYSTEM.c.value_json, sa.Float) > 0
        )
        complete = (self._mine, TRIALS.c.state == TrialState.COMPLETE)
        with self._read() as page:
            found: float | None = page.scalar(
                query.where(*complete, TRIALS.c.trial_id.not_in(violated))
            )
        return found

    def others_at_work(self) -> bool:
        query = select(TRIALS.c.trial_id).join(BEATS, BEATS.c.trial_id == TRIALS.c.trial_id)
        query = query.where(self._near, TRIALS.c.state == TrialState.RUNNING)
        with self._read() as page:
            return page.scalar(query.limit(1)) is not None

    def attributes(self, *keys: str, prefix: str | None = None) -> Mapping[str, Any]:
        key = OF_STUDY.c.key
        which = key.in_(keys) if prefix is None else key.startswith(prefix, autoescape=True)
        mine = (OF_STUDY.c.study_id == self.study_id, which)
        with self._read() as page:
            rows = page.execute(select(OF_STUDY.c.key, OF_STUDY.c.value_json).where(*mine))
            return {key: json.loads(text) for key, text in rows}

    def _kept(self, page: Connection, key: str) -> Any:
        mine = (OF_STUDY.c.study_id == self.study_id, OF_STUDY.c.key == key)
        return json.loads(page.scalar(select(OF_STUDY.c.value_json).where(*mine)) or "null")

    def _keep(self, page: Connection, key: str, value: Any) -> None:
        row = {"study_id": self.study_id, "key": key, "value_json": json.dumps(value)}
        insert_rows(page, OF_STUDY, [row])

    def numbers_with(self, key: str) -> list[int]:
        query = select(TRIALS.c.number).join(USER, USER.c.trial_id == TRIALS.c.trial_id)
        with self._read() as page:
            return list(page.scalars(query.where(self._mine, USER.c.key == key)))

    def reported(self, trial: optuna.Trial) -> FrozenTrial:
        return trial._get_latest_trial()

    # --- claiming and requeueing -----------------------------------------------------------------

    def retry_failed(self) -> int:
        """See `Book.retry_failed`. What `public.py` replaced does not say so itself."""
        with self._held() as page:
            replaced = {number for _, number in self._values(page, CONTINUES)}
            failed = self._records(page, TrialState.FAIL) if replaced else []
            silent = [r for r in failed if r.number in replaced and RETRIED not in r.attributes]
            add_attributes(page, USER, [(record.id, {RETRIED: True}) for record in silent])
        return super().retry_failed()

    def _begin_waiting(self, page: Connection, ids: Sequence[int]) -> list[FrozenTrial]:
        if not ids:
            return []
        mine, start = TRIALS.c.trial_id.in_(ids), datetime.now()
        running = {"state": TrialState.RUNNING, "datetime_start": stored(start)}
        page.execute(sa.update(TRIALS).where(mine).values(running))
        numbers = select(TRIALS.c.trial_id, TRIALS.c.number).where(mine)
        user, system = self._attributes(page, ids), self._attributes(page, ids, (), SYSTEM)
        return [
            frozen_trial(trial_id, number, start, user.get(trial_id, {}), system.get(trial_id, {}))
            for trial_id, number in page.execute(numbers.order_by(TRIALS.c.trial_id))
        ]

    def _begin_new(self, page: Connection, found: Tally, rows: Sequence[Row]) -> list[FrozenTrial]:
        start = datetime.now()
        running = {"state": TrialState.RUNNING, "datetime_start": stored(start)}
        added = self._added(page, running, rows, found) if rows else []
        return [
            frozen_trial(trial_id, number, start, dict(row.attributes), row.system)
            for (trial_id, number), row in zip(added, rows, strict=True)
        ]

    def _add_waiting(self, page: Connection, rows: Sequence[Row]) -> None:
        if rows:
            self._added(page, {"state": TrialState.WAITING}, rows, self._tally(page))

    def _added(
        self, page: Connection, same: Mapping[str, Any], rows: Sequence[Row], found: Tally
    ) -> Sequence[Any]:
        """Add trials with their attributes; row id and number of each, in order."""
        study, first = {"study_id": self.study_id}, found.size
        insert_rows(
            page, TRIALS, [{**study, **same, "number": first + i} for i in range(len(rows))]
        )
        new = select(TRIALS.c.trial_id, TRIALS.c.number)
        new = new.where(self._mine, TRIALS.c.trial_id > found.last).order_by(TRIALS.c.number)
        added = page.execute(new).all()
        pairs = list(zip(added, rows, strict=True))
        add_attributes(page, SYSTEM, [(trial[0], row.system) for trial, row in pairs])
        add_attributes(page, USER, [(trial[0], row.attributes) for trial, row in pairs])
        return added

    def _hand_out(self, page: Connection, trials: Sequence[FrozenTrial]) -> None:
        if not trials:
            return
        beat = insert(BEATS).inline().values(heartbeat=utc(page))
        page.execute(beat, [{"trial_id": trial._trial_id} for trial in trials])
        mine = {WORKER: processes.this_process()}
        add_attributes(page, USER, [(trial._trial_id, mine) for trial in trials])
        for trial in trials:
            trial.user_attrs.update(mine)

    def _live(self, trials: Sequence[FrozenTrial]) -> list[optuna.Trial]:
        self.study._thread_local.cached_all_trials = None  # as `ask`: samplers look again
        return [LiveTrial(self.study, trial) for trial in trials]

    def _replace(
        self, page: Connection, lost: Mapping[int, str], copies: Sequence[tuple[Record, Row]]
    ) -> None:
        failed = {"state": TrialState.FAIL, "datetime_complete": stored(datetime.now())}
        update_rows(page, sa.update(TRIALS).values(failed), lost)
        add_attributes(page, USER, [(trial_id, {LOST: why}) for trial_id, why in lost.items()])
        # First, or a failed trial would be counted before it says that it is replaced.
        add_attributes(page, USER, [(record.id, {RETRIED: True}) for record, _ in copies])
        self._add_waiting(page, [row for _, row in copies])

    def beat(self, trials: Iterable[optuna.Trial], entry: tuple[str, Any] | None = None) -> None:
        with self._single.begin() as page:
            change = sa.update(BEATS).values(heartbeat=utc(page))
            update_rows(page, change, [trial._trial_id for trial in trials])
            if entry is not None:
                mine = (OF_STUDY.c.study_id == self.study_id, OF_STUDY.c.key == entry[0])
                page.execute(sa.update(OF_STUDY).where(*mine).values(value_json=json_of(entry[1])))

    def _delete(self, page: Connection) -> None:
        trials = select(TRIALS.c.trial_id).where(self._mine)
        # What refers to a study goes before the study, a table at a time.
        for table in reversed(models.BaseModel.metadata.sorted_tables):
            if "study_id" in table.c:
                page.execute(sa.delete(table).where(table.c.study_id == self.study_id))
            elif "trial_id" in table.c:
                page.execute(sa.delete(table).where(table.c.trial_id.in_(trials)))

    # --- what trials are, report and end with ----------------------------------------------------

    def begin(self, trials: Sequence[optuna.Trial]) -> None:
        live = [trial for trial in trials if isinstance(trial, LiveTrial)]
        new = [row for trial in live for row in trial.take_parameters()]
        by_id = {id(distribution): distribution for *_, distribution in new}  # shared by many
        texts = {key: distribution_to_json(found) for key, found in by_id.items()}
        names = NEEDED["TrialParamModel"]
        rows = [dict(zip(names, (*row[:3], texts[id(row[3])]), strict=True)) for row in new]
        if rows:
            try:
                with (self._engine if self._again else self._single).begin() as page:
                    if self._again:
                        for row in rows:
                            mine = (PARAMETERS.c[key] == row[key] for key in names[:2])
                            page.execute(sa.delete(PARAMETERS).where(*mine))
                    insert_rows(page, PARAMETERS, rows)
            except BaseException:
                for trial in live:
                    trial.put_back([row for row in new if row[0] == trial._trial_id])
                raise

    def write(self, reports: Iterable[Report] = (), endings: Sequence[Ending] = ()) -> list[int]:
        """See `Book.write`; all of it is one transaction."""
        new = new_reports(reports)
        if not new and not endings:
            return []
        try:
            with (self._engine if self._again or endings else self._single).begin() as page:
                lost = self._not_running(page, [ending.trial for ending in endings])
                if self._again:
                    endings = self._unwritten_endings(page, endings, lost, new)
                rows = [report_row(r) for r in new if r.trial._trial_id not in lost]
                insert_rows(page, REPORTS, rows)
                kept = [ending for ending in endings if ending.trial._trial_id not in lost]
                if kept:
                    write_endings(page, kept)
        except BaseException:
            for trial, step, _ in new:  # they may be written yet
                del trial._cached_frozen_trial.intermediate_values[step]
            raise
        self.study._thread_local.cached_all_trials = None  # as `tell`: samplers look again
        return [ending.trial.number for ending in endings if ending.trial._trial_id in lost]

    def _unwritten_endings(
        self, page: Connection, endings: Sequence[Ending], lost: set[int], new: Sequence[Report]
    ) -> list[Ending]:
        """Those that an earlier try has not written: another that ends a trial says that it was
        lost. Its reports are removed, to be written anew."""
        why = self._attributes(page, list(lost), (LOST,))
        for trial, step, _ in new:
            place = (REPORTS.c.trial_id == trial._trial_id, REPORTS.c.step == step)
            page.execute(sa.delete(REPORTS).where(*place))
        done = lost - set(why)
        lost -= done
        return [ending for ending in endings if ending.trial._trial_id not in done]

    def _not_running(self, page: Connection, trials: Sequence[optuna.Trial]) -> set[int]:
        """Row ids of those that are not; the others stay so until the transaction ends."""
        ids = [trial._trial_id for trial in trials]
        query = select(TRIALS.c.trial_id).where(TRIALS.c.state == TrialState.RUNNING)
        return set(ids) - {row[0] for row in rows_of(page, query.with_for_update(), ids)}

    def _write_effects(self, page: Connection, taken: Sequence[tuple[optuna.Trial, str]]) -> None:
        new = [(t, e) for t, e in taken if EFFECT not in t._cached_frozen_trial.user_attrs]
        if self._again:  # what an earlier try has written may be there or not
            new, ids = list(taken), [trial._trial_id for trial, _ in taken]
            mine = (USER.c.trial_id.in_(ids), USER.c.key == EFFECT)
            page.execute(sa.delete(USER).where(*mine))
        add_attributes(page, USER, [(trial._trial_id, {EFFECT: effect}) for trial, effect in new])
        for trial, effect in taken:  # `write` leaves out what is written
            trial._cached_frozen_trial.user_attrs[EFFECT] = effect


def _patient(method: Callable[..., Any]) -> Callable[..., Any]:
    """The method, called again where the database's server does not answer."""
    name = method.__name__

    @functools.wraps(method)
    def patient(self: BulkBook, *given: Any, **named: Any) -> Any:
        given = tuple(list(v) if isinstance(v, Iterator) else v for v in given)

        def attempt(tried: int) -> Any:
            self._tries.before = tried + (name in self._unsure)
            if self._tries.before:
                self._forget()
            return method(self, *given, **named)

        try:
            found = again(attempt, self.patience_s)
        except BaseException as error:
            self._forget()  # what was counted may have been undone
            if isinstance(error, Exception) and is_transient(error):
                self._unsure.add(name)
            raise
        finally:
            self._tries.before = 0
        self._unsure.discard(name)
        return found

    return patient


for _name in (
    *("_claim", "recover", "release", "beat", "begin", "write", "take_effects", "owners"),
    *("counts", "steps", "best", "others_at_work", "numbers_with", "retry_failed", "enqueue"),
    "attributes",
    "settle",
):
    setattr(BulkBook, _name, _patient(getattr(BulkBook, _name)))


class LiveTrial(optuna.Trial):
    """A running trial of this process, made from its known row, whose parameters are written
    together.

    `Study.ask` writes a row and reads it back, and each `suggest_*` is a transaction. The book has
    just written the row and says what is in it, and the parameters are kept until `begin` writes
    them. Samplers, pruners and the user's own functions see no difference.
    """

    def __init__(self, study: optuna.Study, frozen: FrozenTrial):
        # What `optuna.Trial.__init__` sets (a test compares), without reading the row again.
        self.study = study
        self._trial_id = frozen._trial_id
        self._unwritten = _Unwritten(study._storage)
        self.storage: Any = self._unwritten
        self._cached_frozen_trial = frozen
        study.sampler.before_trial(pruners._filter_study(study, frozen), frozen)
        self.relative_search_space: dict[str, BaseDistribution] | None = None
        self._relative_params: dict[str, Any] | None = None
        self._fixed_params = frozen.system_attrs.get("fixed_params", {})

    def take_parameters(self) -> list[tuple[int, str, float, BaseDistribution]]:
        """The parameters that are not written yet; from now on they count as written."""
        parameters, self._unwritten.parameters = self._unwritten.parameters, []
        return parameters

    def put_back(self, parameters: list[tuple[int, str, float, BaseDistribution]]) -> None:
        """They could not be written."""
        self._unwritten.parameters = [*parameters, *self._unwritten.parameters]

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        """As Optuna's; trials share the distributions."""
        return self._suggest(name, _categorical(tuple(choices), tuple(map(type, choices))))

    def _suggest(self, name: str, distribution: BaseDistribution) -> Any:
        known = self._cached_frozen_trial
        if name in known.distributions or not self._is_fixed_param(name, distribution):
            return super()._suggest(name, distribution)
        value = known.params[name] = self._fixed_params[name]
        known.distributions[name] = distribution
        stored = distribution.to_internal_repr(value)
        self.storage.set_trial_param(self._trial_id, name, stored, distribution)
        return value


def reseed(sampler: RandomSampler, seed: int) -> None:
    """Let a sampler draw as a new one of that seed would."""
    sampler._rng.rng.seed(seed)


@lru_cache(maxsize=256)
def _categorical(choices: tuple[Any, ...], types: tuple[type, ...]) -> CategoricalDistribution:
    """A distribution; `types` tells 1, 1.0 and True apart."""
    return CategoricalDistribution(choices)


class _Unwritten:
    """The study's storage, but for parameters, which are kept."""

    def __init__(self, storage: Any):
        self._storage = storage
        self.parameters: list[tuple[int, str, float, BaseDistribution]] = []

    def set_trial_param(
        self, trial_id: int, name: str, value: float, distribution: BaseDistribution
    ) -> None:
        self.parameters.append((trial_id, name, value, distribution))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._storage, name)
