"""The records of a study through Optuna's public API: one transaction for each value.

It serves storages without tables (a journal file, a gRPC server) and databases whose tables are not
those that `bulk.py` knows. Totals and rows are the same; it is slower.

Files are held by a lock file beside them, which the operating system takes from a process that
dies. For a server there is none. There what two processes did at the same time is settled by
Optuna's trial numbers, which are given out one by one: of several trials for the same place (in the
total, at a point of a grid, in the place of a lost trial) the lowest number has it, and the others
are withdrawn.

What a trial needs to be told apart is in it from its first moment, and its state is written last,
so a process may be killed between any two writes:

- A trial is replaced once there is one that continues it, whatever its own row says.
- A result counts once its trial has its state.
"""

from __future__ import annotations

import copy
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState, create_trial

from sweepstack.config.errors import EnvironmentFault
from sweepstack.storage import file_of, patience
from sweepstack.study import attributes as attr
from sweepstack.study.book import (
    ENDED,
    Ending,
    Owner,
    Record,
    Report,
    Row,
    Tally,
    last_value,
    processes,
)
from sweepstack.study.book.book import Book

_WITHDRAWN = "withdrawn: another trial has its place"
_UNKNOWN = "requeued: the storage failed while it was claimed"
_DOUBT_S = 15.0
"""A trial that two workers of a server began, so that neither has it, is requeued after so long."""
_HANDED: set[tuple[str, int]] = set()
"""Study and number of the trials that books of this process have handed out."""
_locks = threading.local()
_PLACES = (attr.CONTINUES, attr.POINT, attr.ENQUEUED)
"""Attributes that say in which place a trial is."""


class Page:
    """All trials of a study at one moment; those that do not count are left out of `live`.

    Attributes:
        trials: by number.
        replaced: numbers of trials in whose place others run.
        live: the trials that count.
    """

    def __init__(self, trials: Sequence[FrozenTrial]):
        self.trials = {trial.number: trial for trial in trials}
        continued = {trial.user_attrs.get(attr.CONTINUES) for trial in trials}
        again = continued | {t.number for t in trials if attr.RETRIED in t.user_attrs}
        # A result that its worker wrote meanwhile counts.
        self.replaced = {t.number for t in trials if t.number in again and t.state not in ENDED}
        self.live = [trial for trial in trials if trial.number not in self.replaced]

    def without_place(self, total: int | None) -> set[int]:
        """Numbers of the live trials whose place another has, or that come after the total."""
        found: set[int] = set()
        places: set[tuple[str, Any]] = set()
        kept = 0
        for trial in self.live:
            known = trial.user_attrs
            mine = {(key, known[key]) for key in _PLACES if key in known}
            continued = self.trials.get(known.get(attr.CONTINUES, -1))
            is_late = total is not None and kept >= total
            is_settled = continued is not None and continued.state in ENDED
            if (is_late or is_settled or mine & places) and not trial.state.is_finished():
                found.add(trial.number)
                continue
            places |= mine
            kept += 1
        return found


class PublicBook(Book):
    """The records of one study of any storage."""

    def __init__(self, study: optuna.Study, storage: BaseStorage, *given: Any, **named: Any):
        super().__init__(study, storage, *given, **named)
        self._ids: dict[int, int] = {}
        self._reports: dict[int, set[int]] = {}
        self._beaten = 0.0
        self._doubtful: dict[int, float] = {}
        self._retries = patience.retries
        self._lock = lock_file(storage)

    @contextmanager
    def _held(self) -> Iterator[Page]:
        with held(self._lock):
            yield self._page()

    @contextmanager
    def _read(self) -> Iterator[Page]:
        yield self._page()

    def _page(self) -> Page:
        # Through the study, whose cache of a database reads only what is new.
        try:
            return Page(self.study.get_trials(deepcopy=False))
        except KeyError:
            name = self.study.study_name
            raise EnvironmentFault(f"study {name} was deleted by another command") from None

    def _id(self, trial: optuna.Trial) -> int:
        return trial.number

    def _row(self, number: int) -> int:
        """The storage's id of a trial."""
        if number not in self._ids:
            find = self.storage.get_trial_id_from_study_id_trial_number
            self._ids[number] = find(self.study_id, number)
        return self._ids[number]

    # --- reading ---------------------------------------------------------------------------------

    def _tally(self, page: Page) -> Tally:
        states = Counter(trial.state for trial in page.live)
        size = len(page.trials)
        waiting = [trial.number for trial in page.live if trial.state == TrialState.WAITING]
        return Tally(states, size, size - 1, waiting)

    def _records(
        self, page: Page, state: TrialState, ids: Sequence[int] | None = None
    ) -> list[Record]:
        beats = self.study.user_attrs if state == TrialState.RUNNING else {}
        found = []
        for trial in page.trials.values() if ids is None else map(page.trials.__getitem__, ids):
            known, is_replaced = dict(trial.user_attrs), trial.number in page.replaced
            if trial.state != state or (is_replaced and state != TrialState.RUNNING):
                continue
            beat = beats.get(f"{attr.HEARTBEAT}.{known.get(attr.WORKER, '')}")
            if self._is_nameless(trial) and trial.datetime_start is not None:
                beat = trial.datetime_start.timestamp()
            silent_s = None if beat is None else max(0.0, time.time() - beat)
            found.append(Record(trial.number, trial.number, known, silent_s))
        return found

    def _is_nameless(self, trial: FrozenTrial) -> bool:
        """Whether a worker of a server's study began a trial and, it may be, died before it wrote
        its name. Trials that a person asked for have no place."""
        known = trial.user_attrs
        return self._lock is None and attr.WORKER not in known and bool(known.keys() & _PLACES)

    def _at_work(self, page: Page) -> list[tuple[Any, float | None]]:
        running = self._records(page, TrialState.RUNNING)
        return [(record.attributes.get(attr.WORKER), record.silent_s) for record in running]

    def _attributes(
        self, page: Page, ids: Sequence[int], keys: Sequence[str]
    ) -> dict[int, dict[str, Any]]:
        known = {number: page.trials[number].user_attrs for number in ids}
        return {n: {key: a[key] for key in keys if key in a} for n, a in known.items()}

    def _values(self, page: Page, key: str, after: int = -1) -> list[tuple[int, Any]]:
        # A point whose trial was withdrawn has no trial.
        trials = page.live if key == attr.POINT else page.trials.values()
        return [
            (t.number, t.user_attrs[key])
            for t in trials
            if t.number > after and key in t.user_attrs
        ]

    def _parameters(self, page: Page, ids: Sequence[int]) -> dict[int, dict[str, Any]]:
        trials = [page.trials[number] for number in ids]
        return {t.number: {**t.system_attrs.get("fixed_params", {}), **t.params} for t in trials}

    def _last_steps(self, page: Page, ids: Sequence[int]) -> dict[int, int]:
        return {number: page.trials[number].last_step or 0 for number in ids}

    def _steps(self, page: Page) -> int:
        trained = [t.user_attrs for t in page.trials.values() if attr.EQUALS not in t.user_attrs]
        return sum(attributes.get("steps") or 0 for attributes in trained)

    def _states(self, page: Page, ids: Sequence[int]) -> dict[int, TrialState]:
        return {n: self._state(page, page.trials[n]) for n in ids if n in page.trials}

    def _state(self, page: Page, trial: FrozenTrial) -> TrialState:
        return TrialState.FAIL if trial.number in page.replaced else trial.state

    def _new_effects(self, page: Page) -> Iterator[tuple[str, Owner]]:
        owners = [
            Owner(trial.number, trial.number, self._state(page, trial))
            for trial in page.trials.values()
            if attr.EFFECT in trial.user_attrs and attr.EQUALS not in trial.user_attrs
        ]
        # The last counts: of those that have not failed the lowest number.
        for owner in sorted(owners, key=lambda o: (o.state != TrialState.FAIL, -o.number)):
            yield page.trials[owner.number].user_attrs[attr.EFFECT], owner

    def best(self, direction: str) -> float | None:
        complete = self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        kept = [t.value for t in complete if all(v <= 0 for v in t.constraints.values())]
        values = [value for value in kept if value is not None]
        return (max if direction == "maximize" else min)(values, default=None)

    def others_at_work(self) -> bool:
        live = self._page().live
        running = [trial for trial in live if trial.state == TrialState.RUNNING]
        return any(attr.WORKER in t.user_attrs or self._is_nameless(t) for t in running)

    def numbers_with(self, key: str) -> list[int]:
        page = self._page()
        if key == attr.RETRIED:
            return sorted(page.replaced)
        return [number for number, trial in page.trials.items() if key in trial.user_attrs]

    def reported(self, trial: optuna.Trial) -> FrozenTrial:
        return self.storage.get_trial(self._row(trial.number))

    # --- claiming and requeueing -----------------------------------------------------------------

    def _claim(self, most: int, max_steps: int | None, alone: bool, begun: int) -> list[int]:
        while trials := super()._claim(most, max_steps, alone, begun):
            kept = self._settled(trials, max_steps)
            if kept:
                _HANDED.update((self.study.study_name, number) for number in kept)
                return kept
        return []

    def recover(self) -> int:
        orphans: list[tuple[Record, str]] = []
        retries, due = patience.retries, time.monotonic() - _DOUBT_S
        away = retries != self._retries
        doubtful = {number for number, since in self._doubtful.items() if since < due}
        if away or doubtful:
            with self._held() as page:
                running = self._records(page, TrialState.RUNNING)
                is_nobodys = partial(self._is_nobodys, away=away, doubtful=doubtful)
                orphans = [(record, _UNKNOWN) for record in running if is_nobodys(record)]
                self._requeue(page, orphans, restarts=0)
            if self._lock is None:  # and what a claim that failed added twice, there was
                page = self._page()
                late = page.without_place(self.total)
                for number in late.intersection(self._tally(page).waiting):
                    self._fail(number, _WITHDRAWN)
            for number in doubtful:
                del self._doubtful[number]
            self._retries = retries
        return len(orphans) + super().recover()

    def _is_nobodys(self, record: Record, *, away: bool, doubtful: set[int]) -> bool:
        """Whether a claim that failed has taken a trial, if the storage was away, or two at once
        have left it."""
        worker, key = record.attributes.get(attr.WORKER), (self.study.study_name, record.number)
        if worker is None:
            return record.number in doubtful
        return away and worker == processes.this_process() and key not in _HANDED

    def _settled(self, mine: Sequence[int], max_steps: int | None) -> list[int]:
        """Those of the trials just begun that keep their place; the others are withdrawn."""
        page = self._page()  # which also lets Optuna's cache of a database know the new ones
        if self._lock is not None:
            return list(mine)
        late = page.without_place(self.total)
        if max_steps is not None:
            first = min(mine)
            earlier = Page([t for t in page.trials.values() if t.number <= first])
            late |= set() if self._allows(earlier, max_steps, before=first) else set(mine)
        for number in late.intersection(mine):
            self._fail(number, _WITHDRAWN)
        return [number for number in mine if number not in late]

    def _begin_waiting(self, page: Page, ids: Sequence[int]) -> list[int]:
        late = page.without_place(self.total) if ids and self._lock is None else set()
        for number in late.intersection(ids):
            self._fail(number, _WITHDRAWN)
        self._beat_first(ids)
        return [number for number in ids if number not in late and self._begin(number)]

    def _begin(self, number: int) -> bool:
        """Whether a waiting trial is now this process's."""
        retries = patience.retries
        try:
            if self._lock is not None:  # else another may begin it now, and be its worker
                self._name_worker(number)
            begun = self.storage.set_trial_state_values(self._row(number), TrialState.RUNNING)
            if self._lock is not None:
                return begun
            if begun or (retries != patience.retries and not self._begun_by(number)):
                return self._has_begun_alone(number)
            return False
        except UpdateFinishedTrialError:
            return False

    def _has_begun_alone(self, number: int) -> bool:
        """Whether a trial of a server that runs is this process's and no other's.

        Optuna's server of a SQLite file reads a trial's state before it locks it, so that two who
        begin it at once are both told that they did; and where a try had no answer, nobody knows
        who did. So each says that it did and then looks who else does: of two the later one sees
        both, and leaves it. If both see both, `recover` requeues it.
        """
        mine = f"{attr.BEGUN}.{processes.this_process()}"
        self.storage.set_trial_system_attr(self._row(number), mine, True)
        if self._begun_by(number) == {mine}:
            self._name_worker(number)
            return True
        self._doubtful[number] = time.monotonic()
        return False

    def _begun_by(self, number: int) -> set[str]:
        """What says who has begun a trial of a server."""
        found = self.storage.get_trial(self._row(number))
        named = found.user_attrs.get(attr.WORKER) or found.state != TrialState.RUNNING
        said = {key for key in found.system_attrs if key.startswith(f"{attr.BEGUN}.")}
        return said | ({"another"} if named else set())

    def _begin_new(self, page: Page, found: Tally, rows: Sequence[Row]) -> list[int]:
        self._beat_first(rows)
        return [self._add(TrialState.RUNNING, row) for row in rows]

    def _beat_first(self, trials: Sequence[Any]) -> None:
        """Send a heartbeat before trials begin: nobody would requeue one whose worker, on another
        host, dies before its first."""
        if trials and time.time() > self._beaten + 1.0:
            self.beat(())

    def _add_waiting(self, page: Page, rows: Sequence[Row]) -> None:
        for row in rows:
            self._add(TrialState.WAITING, row)

    def _add(self, state: TrialState, row: Row) -> int:
        """Add a trial and return its number."""
        known = dict(row.attributes)
        if state == TrialState.RUNNING:
            known[attr.WORKER] = processes.this_process()
        new = create_trial(state=state, user_attrs=known, system_attrs=row.system)
        added = self.storage.create_new_trial(self.study_id, new)
        number = self.storage.get_trial(added).number
        self._ids[number] = added
        return number

    def _hand_out(self, page: Page, trials: Sequence[int]) -> None:
        """They got their worker as they began."""

    def _name_worker(self, number: int) -> None:
        self.storage.set_trial_user_attr(self._row(number), attr.WORKER, processes.this_process())

    def _live(self, trials: Sequence[int]) -> list[optuna.Trial]:
        try:
            # A copy shares all but what samplers have read: they look again, as after `ask`.
            return [optuna.Trial(copy.copy(self.study), self._row(number)) for number in trials]
        except BaseException:  # nobody gets them: `recover` is to requeue them
            _HANDED.difference_update((self.study.study_name, number) for number in trials)
            self._retries = -1
            raise

    def _replace(
        self, page: Page, lost: Mapping[int, str], copies: Sequence[tuple[Record, Row]]
    ) -> None:
        again = {record.id for record, _ in copies}
        # First what is in their place: from then on they are replaced, whatever happens here.
        for record, row in copies:
            if record.id not in page.replaced:
                self._add(TrialState.WAITING, row)
        for number, why in lost.items():
            self._fail(number, why, replaced=number in again)

    def _fail(self, number: int, why: str, *, replaced: bool = True) -> None:
        """End a trial that is not to count, or that is given up."""
        trial_id = self._row(number)
        said = {attr.LOST: why} | ({attr.RETRIED: True} if replaced else {})
        try:
            for key, value in said.items():
                self.storage.set_trial_user_attr(trial_id, key, value)
            self.storage.set_trial_state_values(trial_id, TrialState.FAIL)
        except UpdateFinishedTrialError:  # by its worker, which was only held up
            pass

    def beat(self, trials: Iterable[optuna.Trial], entry: tuple[str, Any] | None = None) -> None:
        """See `Book.beat`; one heartbeat of the process is for all of its trials."""
        self._beaten = time.time()
        if entry is not None:
            self.study.set_user_attr(*entry)
        self.study.set_user_attr(f"{attr.HEARTBEAT}.{processes.this_process()}", self._beaten)

    def _kept(self, page: Page, key: str) -> Any:
        return self.storage.get_study_user_attrs(self.study_id).get(key)

    def _keep(self, page: Page, key: str, value: Any) -> None:
        self.storage.set_study_user_attr(self.study_id, key, value)

    def _delete(self, page: Page) -> None:
        self.storage.delete_study(self.study_id)

    # --- effects ---------------------------------------------------------------------------------

    def take_effects(self, wanted: Sequence[tuple[optuna.Trial, str]]) -> list[Owner | None]:
        found = super().take_effects(wanted)
        if self._lock is not None or all(found):
            return found
        page = self._page()  # others may have written theirs meanwhile: the lowest number has it
        owners = dict(self._new_effects(page))
        for place, (mine, effect) in enumerate(wanted):
            first = owners.get(effect)
            if found[place] is None and first is not None and first.number != mine.number:
                found[place] = self._owners[effect] = first
        return found

    def _write_effects(self, page: Page, taken: Sequence[tuple[optuna.Trial, str]]) -> None:
        for trial, effect in taken:
            with suppress(UpdateFinishedTrialError):  # its end will say that it was lost
                trial.set_user_attr(attr.EFFECT, effect)

    # --- what trials are, report and end with ----------------------------------------------------

    def begin(self, trials: Sequence[optuna.Trial]) -> None:
        """See `Book.begin`: they are written when they are suggested."""

    def write(self, reports: Iterable[Report] = (), endings: Sequence[Ending] = ()) -> list[int]:
        """See `Book.write`. A result is kept once its trial has its state, which comes last."""
        reports = list(reports)
        if not reports and not endings:
            return []
        ends = {ending.trial.number: ending for ending in endings}
        lost = self._not_running(ends)
        for trial, step, value in reports:
            if trial.number not in lost:
                self._report(trial.number, step, value)
        for number, ending in ends.items():
            if number not in lost and not self._note(ending):
                lost.append(number)
        with held(self._lock):
            lost = list(dict.fromkeys([*lost, *self._not_running(ends)]))
            for number, ending in ends.items():
                if number not in lost and not self._end(ending):
                    lost.append(number)
        for number in ends:
            self._reports.pop(number, None)
        return lost

    def _not_running(self, ends: Mapping[int, Ending]) -> list[int]:
        """Those that are not running and have not ended so, by a try whose end was unknown."""
        if not ends:
            return []
        page = self._page()
        states = self._states(page, list(ends))
        others = [number for number in ends if states.get(number) != TrialState.RUNNING]
        there = page.trials
        return [n for n in others if n not in there or not _has_ended_so(there[n], ends[n])]

    def _report(self, number: int, step: int, value: float) -> None:
        known = self._reports.setdefault(number, set())
        if step in known:
            return
        try:
            self.storage.set_trial_intermediate_value(self._row(number), step, value)
        except UpdateFinishedTrialError:  # its end will say that it was lost
            return
        known.add(step)

    def _note(self, ending: Ending) -> bool:
        """Write all that a trial ends with but its state; whether it was still running."""
        trial, known = ending.trial, ending.trial.user_attrs
        try:
            for key, value in ending.attributes.items():
                if key not in known:
                    self.storage.set_trial_user_attr(self._row(trial.number), key, value)
            for name, violation in ending.constraints.items():
                trial.set_constraint(name, violation)
        except UpdateFinishedTrialError:
            return _has_ended_so(self.storage.get_trial(self._row(trial.number)), ending)
        return True

    def _end(self, ending: Ending) -> bool:
        trial_id, values = self._row(ending.trial.number), ending.values
        if ending.state == TrialState.PRUNED:
            values = last_value(self.storage.get_trial(trial_id))
        try:
            self.storage.set_trial_state_values(trial_id, ending.state, values or None)
        except UpdateFinishedTrialError:
            return _has_ended_so(self.storage.get_trial(trial_id), ending)
        return True


def _has_ended_so(trial: FrozenTrial, ending: Ending) -> bool:
    """Whether its worker ended a trial; another that does says that it was lost."""
    return trial.state == ending.state and attr.LOST not in trial.user_attrs


def lock_file(storage: BaseStorage) -> Path | None:
    """The file by which processes hold a storage that is a file; None of a server."""
    file = file_of(storage)
    return None if file is None else file.with_name(f".{file.name}.lock")


@contextmanager
def held(lock: Path | None) -> Iterator[None]:
    """Hold a storage by its lock file, if it has one that this thread does not hold already.

    The lock is SQLite's on an empty database: it works on every system, and ends with the process.
    """
    mine: set[Path] = vars(_locks).setdefault("held", set())
    if lock is None or lock in mine:
        yield
        return
    with closing(_locked(lock)):
        mine.add(lock)
        try:
            yield
        finally:
            mine.remove(lock)


def _locked(lock: Path) -> sqlite3.Connection:
    try:
        connection = sqlite3.connect(lock, timeout=1.0, isolation_level=None)
        while True:
            try:
                connection.execute("BEGIN EXCLUSIVE")
                return connection
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY:
                    raise
    except sqlite3.Error as error:
        raise StorageInternalError(f"cannot lock {lock}: {error}") from None
