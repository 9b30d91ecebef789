"""Trials of equal effect are trained once: who trains which effect, and what becomes of the others.

The worker that is to train a trial writes the trial's effect (`effect.py`) into its attribute
`sweepstack.effect`, in a transaction in which it has seen that no other has it: of all workers one
trains each effect. A trial whose effect another has is its *twin*. It is recorded with the other's
numbers (`equal.py`) once that has ended; until then it is held aside, RUNNING. A trial that fails
lets go of its effect: the next twin is trained, by whoever asks first.
"""

from __future__ import annotations

import json
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.storages import RDBStorage
from optuna.trial import TrialState
from sqlalchemy import Connection, func, insert, select

from sweepstack.engine.spec import State
from sweepstack.study.attributes import EFFECT, EQUALS
from sweepstack.sweep.book import records
from sweepstack.sweep.book.records import Trials, UserAttributes
from sweepstack.sweep.worker.equal import Equal, Original
from sweepstack.sweep.worker.trial import Asked, Outcome

MOST_ASIDE = 1024
"""Trials that are held aside at most; then no other is asked for until some have ended."""
LOOK_S = 0.5
"""Seconds between two looks at what other workers train."""
AT_ONCE = 500
"""Trials that a query names."""
REMEMBERED = 1000
"""Trials of this worker whose numbers are kept, to be given to their twins without a query."""

_ROWS = Trials.__table__.c
_ATTRIBUTES = UserAttributes.__table__.c
_ENDED = (TrialState.COMPLETE, TrialState.PRUNED)


@dataclass
class Entry:
    """The trial that has an effect; `state` as far as this process knows."""

    trial_id: int
    number: int
    state: TrialState


class Register:
    """The effects of a study's trials: read once, then only what is new."""

    def __init__(self, study: optuna.Study):
        backend = getattr(study._storage, "_backend", None)
        assert isinstance(backend, RDBStorage)  # `Ledger` says so to people
        self._engine, self._study_id = backend.engine, study._study_id
        self._of: dict[str, Entry] = {}
        self._read_up_to = -1
        with self._engine.begin() as connection:
            # Or what another has written and not committed yet would be passed over for good.
            records.hold(connection, self._study_id)
            self._read_all(connection)

    def find_or_take(self, wanted: Sequence[tuple[optuna.Trial, str]]) -> list[Entry | None]:
        """For each running trial and its effect the entry of the trial that runs with it or has
        ended with it; None where there was none, and the effect is now this trial's. Those that
        are known to have ended need no query, the others share one transaction."""
        if all(e in self._of and self._of[e].state in _ENDED for _, e in wanted):
            return [self._of[effect] for _, effect in wanted]
        with self._engine.begin() as connection:
            records.hold(connection, self._study_id)
            self._read_new(connection)
            known = {effect: self._of[effect] for _, effect in wanted if effect in self._of}
            self._refresh(connection, list(known.values()))
            found = [self._found_or_taken(trial, effect) for trial, effect in wanted]
            rows = [
                {"trial_id": trial._trial_id, "key": EFFECT, "value_json": json.dumps(effect)}
                for (trial, effect), entry in zip(wanted, found, strict=True)
                if entry is None and EFFECT not in trial._cached_frozen_trial.user_attrs
            ]
            if rows:
                connection.execute(insert(UserAttributes.__table__), rows)
        for (trial, effect), entry in zip(wanted, found, strict=True):
            if entry is None:  # `Journal.end` leaves out what is written
                trial._cached_frozen_trial.user_attrs[EFFECT] = effect
        return found

    def _found_or_taken(self, trial: optuna.Trial, effect: str) -> Entry | None:
        found = self._of.get(effect)
        if found is not None and found.state != TrialState.FAIL:
            return found
        self._of[effect] = Entry(trial._trial_id, trial.number, TrialState.RUNNING)
        return None

    def ended(self, effect: str, number: int, state: TrialState) -> Entry | None:
        """Note how a trial of this process ended; None where it was taken for dead meanwhile, and
        its effect is another's now."""
        entry = self._of[effect]
        if entry.number != number:
            return None
        entry.state = state
        return entry

    def look(self, effects: list[str]) -> dict[str, Entry]:
        """The entries of effects that others train, as they are now."""
        entries = {effect: self._of[effect] for effect in effects}
        if entries:
            with self._engine.begin() as connection:
                self._refresh(connection, list(entries.values()))
        return entries

    def _refresh(self, connection: Connection, entries: list[Entry]) -> None:
        running = {e.trial_id: e for e in entries if e.state == TrialState.RUNNING}
        if running:
            query = select(_ROWS.trial_id, _ROWS.state).where(_ROWS.trial_id.in_(running))
            for trial_id, state in connection.execute(query):
                running[trial_id].state = state

    def _read_all(self, connection: Connection) -> None:
        id_, trial_id = _ATTRIBUTES.trial_user_attribute_id, _ROWS.trial_id
        query = select(_ATTRIBUTES.value_json, trial_id, _ROWS.number, _ROWS.state)
        query = query.join(Trials, trial_id == _ATTRIBUTES.trial_id).where(
            _ROWS.study_id == self._study_id, _ATTRIBUTES.key == EFFECT
        )
        self._read_up_to = connection.scalar(select(func.max(id_))) or -1
        for text, *trial in connection.execute(query.order_by(id_)):
            self._enter(json.loads(text), Entry(*trial))

    def _read_new(self, connection: Connection) -> None:
        # Two queries by primary keys: joined, the database might look through the whole study.
        id_ = _ATTRIBUTES.trial_user_attribute_id
        query = select(id_, _ATTRIBUTES.trial_id, _ATTRIBUTES.value_json)
        query = query.where(id_ > self._read_up_to, _ATTRIBUTES.key == EFFECT)
        effects: dict[int, str] = {}
        for key, trial_id, text in connection.execute(query.order_by(id_)):
            self._read_up_to, effect = key, json.loads(text)
            known = self._of.get(effect)
            if known is None or known.trial_id != trial_id:  # else it is one of this process's
                effects[trial_id] = effect
        for first in range(0, len(effects), AT_ONCE):
            some = list(effects)[first : first + AT_ONCE]
            trials = select(_ROWS.trial_id, _ROWS.number, _ROWS.state)
            trials = trials.where(_ROWS.trial_id.in_(some), _ROWS.study_id == self._study_id)
            for trial in connection.execute(trials.order_by(_ROWS.trial_id)):
                self._enter(effects[trial[0]], Entry(*trial))

    def _enter(self, effect: str, entry: Entry) -> None:
        before = self._of.get(effect)
        if before is None or before.state not in _ENDED:
            self._of[effect] = entry


class Twins:
    """What one worker does about trials of equal effect.

    Args:
        study: the sweep's.
        report: notes a twin's report (trial, step, value); it is written with its end.
        equal: knows a trial's effect, and records it as equal to another.
    """

    def __init__(
        self, study: optuna.Study, report: Callable[[Asked, int, float], None], equal: Equal
    ) -> None:
        self._study, self._report, self._equal = study, report, equal
        self._register = Register(study)
        self._training: dict[int, str] = {}  # number -> effect, of this worker's
        self._aside: dict[str, list[Asked]] = {}
        self._due: deque[tuple[Asked, Entry]] = deque()
        self._ready: deque[Asked] = deque()
        self._recent: OrderedDict[int, Original] = OrderedDict()
        self._looked = 0.0

    def admitted(self, batch: Sequence[Asked]) -> list[Asked]:
        """Those of many trials that are to be trained; the others come out of `settled` or
        `ready`."""
        effects = [self._equal.effect_of(asked) for asked in batch]
        wanted = [(a.trial, e) for a, e in zip(batch, effects, strict=True) if e is not None]
        entries = iter(self._register.find_or_take(wanted))
        trained: list[Asked] = []
        for asked, effect in zip(batch, effects, strict=True):
            if effect is None:  # it cannot be composed: whoever is to train it says why
                trained.append(asked)
            elif (entry := next(entries)) is None:
                self._training[asked.number] = effect
                trained.append(asked)
            elif entry.state in _ENDED:
                self._due.append((asked, entry))
            else:
                self._aside.setdefault(effect, []).append(asked)
        return trained

    @property
    def full(self) -> bool:
        """Whether so many trials are held aside that no other should be asked for."""
        return sum(map(len, self._aside.values())) >= MOST_ASIDE

    def ended(self, outcome: Outcome, state: TrialState) -> None:
        """Note how a trial of this worker ended, `state` being what was told."""
        asked = outcome.asked
        effect = self._training.pop(asked.number, None)
        if effect is None:
            return
        entry = self._register.ended(effect, asked.number, state)
        if entry is None:
            return
        if state not in _ENDED:
            self._reconsider(effect)
            return
        reports = dict(asked.trial._cached_frozen_trial.intermediate_values)
        self._recent[entry.trial_id] = Original(
            entry.number, outcome.state, outcome.values, outcome.attributes, reports
        )
        if len(self._recent) > REMEMBERED:
            self._recent.popitem(last=False)
        self._due.extend((twin, entry) for twin in self._aside.pop(effect, ()))

    def settled(self) -> Iterator[Outcome]:
        """Outcomes of trials whose twin has ended; they are to be told."""
        self._look()
        while self._due:
            asked, entry = self._due.popleft()
            original = self._original(entry)
            for step, value in original.reports.items():
                self._report(asked, step, value)
            yield self._equal.outcome(asked, original)

    def ready(self) -> Iterator[Asked]:
        """Trials that were held aside and are to be trained after all."""
        while self._ready:
            yield self._ready.popleft()

    def _reconsider(self, effect: str) -> None:
        """The trial that had an effect has failed: the first twin takes it, here or elsewhere."""
        self._ready.extend(self.admitted(self._aside.pop(effect, ())))

    def _look(self) -> None:
        """See which of the trials that other workers train have ended."""
        if not self._aside or time.monotonic() < self._looked + LOOK_S:
            return
        self._looked = time.monotonic()
        mine = set(self._training.values())
        foreign = [effect for effect in self._aside if effect not in mine]
        for effect, entry in self._register.look(foreign).items():
            if entry.state in _ENDED:
                self._due.extend((twin, entry) for twin in self._aside.pop(effect))
            elif entry.state == TrialState.FAIL:
                self._reconsider(effect)

    def _original(self, entry: Entry) -> Original:
        if entry.trial_id in self._recent:
            return self._recent[entry.trial_id]
        trial = self._study._storage.get_trial(entry.trial_id)
        state: State = "complete" if trial.state == TrialState.COMPLETE else "pruned"
        values = tuple(trial.values or ()) if state == "complete" else ()
        return Original(
            trial.number, state, values, trial.user_attrs, _in_order(trial.intermediate_values)
        )


def _in_order(reports: Mapping[int, float]) -> dict[int, float]:
    return dict(sorted(reports.items()))


def recorded(study: optuna.Study) -> int:
    """How many finished trials of a study were recorded as equal to another."""
    backend: Any = getattr(study._storage, "_backend", None)
    query = select(func.count()).select_from(UserAttributes).join(Trials)
    query = query.where(_ROWS.study_id == study._study_id, _ATTRIBUTES.key == EQUALS)
    with backend.engine.begin() as connection:
        return int(connection.scalar(query) or 0)
