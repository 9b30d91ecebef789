"""Trials that are run again: those that are lost, put back or, of a grid, failed.

A trial never goes back to waiting. It becomes FAIL, and a new trial with the same parameters waits
in its place; `attributes.py` lists what says so. Everything here happens in a transaction that
holds the study, which `ledger.py` opens: called by it alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from typing import Any

from optuna.trial import TrialState
from sqlalchemy import Connection, func, select
from sqlalchemy.orm import Session, selectinload

from iolaus.attributes import CONTINUES, LOST, POINT, RETRIED, RETRIES, RETRY_OF, WORKER
from iolaus.sweep import processes, records
from iolaus.sweep.records import Row, Trials, UserAttributes, attributes_of, parameters_of
from iolaus.sweep.tally import Tally

AT_ONCE = 500
"""Trials that a query names."""

_INTERRUPTED = "put back when the sweep was interrupted"


class PutBack:
    """Lets others wait in the place of trials of one study; each method returns how many ended.

    Args:
        tally: counts the study's trials.
        max_restarts: how often one that was lost is run again.
    """

    def __init__(self, tally: Tally, max_restarts: int):
        self._tally, self.max_restarts = tally, max_restarts

    def failed(self, session: Session) -> int:
        """A grid's points that failed: as if they had never been tried."""
        failed = [
            trial
            for trial in self._in_state(session, TrialState.FAIL)
            if POINT in (attributes := attributes_of(trial)) and RETRIED not in attributes
        ]
        self._replace(session, [(trial, {RETRIES: 0}) for trial in failed])
        return len(failed)

    def lost(self, session: Session, grace_s: float | None) -> int:
        """Running ones whose worker is gone, or silent for `grace_s` seconds if that is given."""
        now = session.scalars(select(func.now())).one().replace(tzinfo=None)
        oldest = datetime.min if grace_s is None else now - timedelta(seconds=grace_s)
        running = self._in_state(session, TrialState.RUNNING)
        judged = [(trial, _why_lost(trial, oldest)) for trial in running]
        lost = [(trial, why) for trial, why in judged if why is not None]
        self._end(session, lost, restarts=1)
        return len(lost)

    def released(self, session: Session, trial_ids: Sequence[int]) -> int:
        """Those of the trials that run; one that does not was lost, and waits already."""
        count = 0
        for some in _in_parts(trial_ids):
            running = self._in_state(session, TrialState.RUNNING, some)
            self._end(session, [(trial, _INTERRUPTED) for trial in running], restarts=0)
            count += len(running)
        return count

    def last_chances(self, connection: Connection, waiting: Sequence[int]) -> set[int]:
        """Those of the waiting trials that are not run again when they are lost once more."""
        found: set[int] = set()
        attributes = UserAttributes.__table__.c
        query = select(attributes.trial_id, attributes.value_json).where(attributes.key == RETRIES)
        for some in _in_parts(waiting if self.max_restarts else ()):
            rows = connection.execute(query.where(attributes.trial_id.in_(some)))
            found |= {trial for trial, text in rows if json.loads(text) >= self.max_restarts}
        return found

    def _in_state(
        self, session: Session, state: TrialState, ids: Sequence[int] | None = None
    ) -> list[Any]:
        rows = select(Trials).where(Trials.study_id == self._tally.study_id, Trials.state == state)
        if ids is not None:
            rows = rows.where(Trials.trial_id.in_(ids))
        rows = rows.with_for_update()  # or what ends at this moment would be taken for lost
        rows = rows.options(selectinload(Trials.user_attributes), selectinload(Trials.heartbeats))
        return list(session.scalars(rows.order_by(Trials.trial_id)))

    def _end(self, session: Session, trials: Sequence[tuple[Any, str]], restarts: int) -> None:
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
        session.flush()
        self._tally.add_waiting(session.connection(), copies)


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
