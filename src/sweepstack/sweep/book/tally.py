"""How many trials of a study are in which state, without reading them all again each time.

A finished trial stays finished: each trial is read until it is, then it is only counted. What is
read again is what waited or ran the last time, and what is new; all of it, once failed trials have
got others in their place.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from optuna.trial import TrialState
from sqlalchemy import Connection, select, union_all

from sweepstack.study.attributes import RETRIED, RETRY_OF
from sweepstack.sweep.book import records
from sweepstack.sweep.book.records import Row, Trials, UserAttributes

AT_ONCE = 500
"""Trials that a query names; SQLite refuses one that names too many."""
MOST_OPEN = 20_000
"""If more trials wait or run, all are read again: one query has to name them, see `read`."""

_ROWS = Trials.__table__.c
_ATTRIBUTES = UserAttributes.__table__.c


@dataclass(frozen=True)
class Counts:
    """What a tally says at one moment.

    Attributes:
        states: trials by state; failed ones that another replaces are left out.
        size: trials of all states, which is also the next trial's number.
        last: row id of the last trial, -1 when there is none.
        waiting: row ids of the waiting trials, in order.
    """

    states: Counter[TrialState]
    size: int
    last: int
    waiting: list[int]


class Tally:
    """The running count of one study, for one process."""

    def __init__(self, study_id: int):
        self.study_id = study_id
        self._begin()

    def _begin(self) -> None:
        self._last, self._size = -1, 0
        self._open: list[int] = []
        self._settled: Counter[TrialState] = Counter()

    def read(self, connection: Connection) -> Counts:
        """Count, within the transaction of `connection`."""
        mine = select(_ROWS.trial_id, _ROWS.state).where(_ROWS.study_id == self.study_id)
        new = mine.where(_ROWS.trial_id > self._last)
        if len(self._open) > MOST_OPEN:
            self._begin()
            new = mine
        # One statement, or a trial that is replaced in between would be in neither part.
        both = union_all(mine.where(_ROWS.trial_id.in_(self._open)), new) if self._open else new
        rows = sorted((int(trial_id), state) for trial_id, state in connection.execute(both))
        if rows and rows[-1][0] > self._last and self._unsettled(connection):
            self._begin()
            return self.read(connection)
        replaced = _replaced(connection, [i for i, state in rows if state == TrialState.FAIL])
        states: Counter[TrialState] = Counter()
        self._size += sum(trial_id > self._last for trial_id, _ in rows)
        self._last = max([self._last, *(trial_id for trial_id, _ in rows)])
        self._open = [trial_id for trial_id, state in rows if not state.is_finished()]
        for trial_id, state in rows:
            if trial_id not in replaced:
                (self._settled if state.is_finished() else states)[state] += 1
        waiting = [trial_id for trial_id, state in rows if state == TrialState.WAITING]
        return Counts(self._settled + states, self._size, self._last, waiting)

    def _unsettled(self, connection: Connection) -> bool:
        """Whether trials that had failed for good may be replaced since: a sweep was started again,
        here or elsewhere, and let the failed points of a grid wait."""
        if not self._settled[TrialState.FAIL]:
            return False
        query = select(_ATTRIBUTES.trial_id).join(Trials, _ROWS.trial_id == _ATTRIBUTES.trial_id)
        query = query.where(_ROWS.study_id == self.study_id, _ROWS.trial_id > self._last)
        query = query.where(_ATTRIBUTES.key == RETRY_OF)
        return connection.scalar(query.limit(1)) is not None

    def add_waiting(self, connection: Connection, rows: Sequence[Row]) -> None:
        """Add a waiting trial for each of `rows`; the transaction holds the study."""
        found = self.read(connection)
        records.add_waiting(connection, self.study_id, rows, found.size, found.last)


def _replaced(connection: Connection, failed: Sequence[Any]) -> set[Any]:
    """Those of the failed trials in whose place another runs."""
    found: set[Any] = set()
    query = select(_ATTRIBUTES.trial_id).where(_ATTRIBUTES.key == RETRIED)
    for first in range(0, len(failed), AT_ONCE):
        some = failed[first : first + AT_ONCE]
        found.update(connection.scalars(query.where(_ATTRIBUTES.trial_id.in_(some))))
    return found
