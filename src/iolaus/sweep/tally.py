"""How many trials of a study are in which state, without reading them all again each time.

A finished trial stays finished, so the states of the oldest trials, up to the first that waits or
runs, are read once and added up; only the rows after them are read again. Called by `ledger.py`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from optuna.trial import TrialState
from sqlalchemy import Connection, select

from iolaus.sweep.records import RETRIED, Trials, UserAttributes

_ROWS = Trials.__table__.c
_ATTRIBUTES = UserAttributes.__table__.c


@dataclass(frozen=True)
class Counts:
    """What a tally says at one moment.

    Attributes:
        states: trials by state; failed ones that another replaces are left out.
        size: trials of all states, which is also the next trial's number.
        waiting: row id of the first waiting trial.
    """

    states: Counter[TrialState]
    size: int
    waiting: int | None


class Tally:
    """The running count of one study, for one process."""

    def __init__(self, study_id: int):
        self._study_id = study_id
        self.restart()

    def restart(self) -> None:
        """Forget what is settled: failed trials have got replacements."""
        self._settled_id, self._size = -1, 0
        self._settled: Counter[TrialState] = Counter()

    def read(self, connection: Connection) -> Counts:
        """Count, within the transaction of `connection`."""
        query = select(_ROWS.trial_id, _ROWS.state)
        query = query.where(_ROWS.study_id == self._study_id, _ROWS.trial_id > self._settled_id)
        rows = connection.execute(query.order_by(_ROWS.trial_id)).all()
        replaced = _replaced(connection, [i for i, state in rows if state == TrialState.FAIL])
        states: Counter[TrialState] = Counter()
        waiting, open_yet, settled_rows = None, False, 0
        for trial_id, state in rows:
            open_yet = open_yet or not state.is_finished()
            if waiting is None and state == TrialState.WAITING:
                waiting = int(trial_id)
            if not open_yet:
                self._settled_id, settled_rows = trial_id, settled_rows + 1
            if trial_id not in replaced:
                (states if open_yet else self._settled)[state] += 1
        size = self._size + len(rows)
        self._size += settled_rows
        return Counts(self._settled + states, size, waiting)


def _replaced(connection: Connection, failed: Sequence[Any]) -> set[Any]:
    """Those of the failed trials in whose place another runs."""
    if not failed:
        return set()
    query = select(_ATTRIBUTES.trial_id).where(
        _ATTRIBUTES.key == RETRIED, _ATTRIBUTES.trial_id.in_(failed)
    )
    return set(connection.scalars(query))
