"""Trials that are run again: those that are lost, put back or, of a grid, failed.

A trial never goes back to waiting. It becomes FAIL, and a new trial with the same parameters waits
in its place; `attributes.py` lists what says so. Everything here happens in a transaction that
holds the study, which `ledger.py` opens.

A trial that is lost again and again without any progress may be what kills its workers. It is a
suspect: it runs behind what was never tried, in smaller and smaller company, the last time alone.
Progress clears it: a report or a checkpoint beyond the furthest before. A trial that had not begun
is not to blame at all.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from optuna.trial import TrialState
from sqlalchemy import Connection, func, select
from sqlalchemy.orm import Session, selectinload

from sweepstack.study.attributes import (
    CONTINUES,
    LOST,
    POINT,
    PROGRESS,
    RETRIED,
    RETRIES,
    RETRY_OF,
    WORKER,
)
from sweepstack.sweep.book import processes, records
from sweepstack.sweep.book.records import (
    Reports,
    Row,
    Trials,
    UserAttributes,
    attributes_of,
    parameters_of,
)
from sweepstack.sweep.book.tally import Tally

AT_ONCE = 500
"""Trials that a query names."""

_INTERRUPTED = "put back when the sweep was interrupted"


class PutBack:
    """Lets others wait in the place of trials of one study; each method returns how many ended.

    Args:
        tally: counts the study's trials.
        max_restarts: how often in a row one that is lost without progress is run again.
        checkpointed: steps that a trial's checkpoints hold, by its number; None if it never began.
    """

    def __init__(self, tally: Tally, max_restarts: int, checkpointed: Callable[[int], int | None]):
        self._tally, self.max_restarts = tally, max_restarts
        self._checkpointed = checkpointed

    def failed(self, session: Session) -> int:
        """A grid's points that failed, but for those that used up their restarts."""
        again: list[tuple[Any, dict[str, Any]]] = []
        for trial in self._in_state(session, TrialState.FAIL):
            known = attributes_of(trial)
            retries = known.get(RETRIES, 0) + (LOST in known)
            if POINT in known and RETRIED not in known and retries <= self.max_restarts:
                again.append((trial, {RETRIES: retries} if retries else {}))
        self._replace(session, again)
        return len(again)

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

    def tried(self, connection: Connection, waiting: Sequence[int]) -> dict[int, int]:
        """Those of the waiting trials that failed, or were lost without progress, and how often."""
        known: dict[int, dict[str, int]] = {}
        attributes = UserAttributes.__table__.c
        query = select(attributes.trial_id, attributes.key, attributes.value_json)
        query = query.where(attributes.key.in_((RETRIES, RETRY_OF)))
        for some in _in_parts(waiting):
            for trial, key, text in connection.execute(query.where(attributes.trial_id.in_(some))):
                known.setdefault(trial, {})[key] = json.loads(text)
        return {t: k.get(RETRIES, 0) for t, k in known.items() if k.get(RETRIES) != 0}

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
        reached = self._reports(session, [trial.trial_id for trial, _ in trials])
        reasons: list[tuple[int, dict[str, Any]]] = []
        for trial, why in trials:
            trial.state = TrialState.FAIL
            trial.datetime_complete = datetime.now()
            known, steps = attributes_of(trial), self._checkpointed(trial.number)
            before = known.get(PROGRESS, [0, 0])
            now = [max(before[0], reached.get(trial.trial_id, 0)), max(before[1], steps or 0)]
            blamed = restarts if steps is not None else 0
            retries = 0 if now != before else known.get(RETRIES, 0) + blamed
            if retries <= self.max_restarts:
                progress = {PROGRESS: now} if any(now) else {}
                again.append((trial, {RETRIES: retries, **progress}))
            else:
                restarted = f"after {self.max_restarts} restarts without progress"
                why += f"; given up {restarted} (hydra.sweeper.max_restarts)"
            reasons.append((trial.trial_id, {LOST: why}))
        records.add_attributes(session.connection(), UserAttributes, reasons)
        if again:
            self._replace(session, again)

    def _reports(self, session: Session, ids: Sequence[int]) -> dict[int, int]:
        """The last step that each trial reported."""
        found: dict[int, int] = {}
        query = select(Reports.trial_id, func.max(Reports.step)).group_by(Reports.trial_id)
        for some in _in_parts(ids):
            rows = session.execute(query.where(Reports.trial_id.in_(some)))
            found |= {row[0]: row[1] for row in rows}
        return found

    def _replace(self, session: Session, trials: Sequence[tuple[Any, dict[str, Any]]]) -> None:
        """Let a copy of each trial wait, with new attributes besides those it passes on."""
        whole = (selectinload(Trials.params), selectinload(Trials.system_attributes))
        for some in _in_parts([trial.trial_id for trial, _ in trials]):  # or one by one, below
            session.scalars(select(Trials).where(Trials.trial_id.in_(some)).options(*whole)).all()
        copies: list[Row] = []
        for trial, attributes in trials:
            old = attributes_of(trial)
            passed_on = {POINT: old[POINT]} if POINT in old else {}
            line = {RETRY_OF: old.get(RETRY_OF, trial.number), CONTINUES: trial.number}
            copies.append((parameters_of(trial), {**passed_on, **line, **attributes}))
        # First, or a failed trial would be counted before it says that it is replaced.
        replaced = [(trial.trial_id, {RETRIED: True}) for trial, _ in trials]
        records.add_attributes(session.connection(), UserAttributes, replaced)
        session.flush()
        self._tally.add_waiting(session.connection(), copies)


def checkpointed(folder: Path, number: int) -> int | None:
    """Steps that the checkpoints in a trial's folder hold, of all its seeds together.

    None if the trial never began. One whose study has no folder at all counts as begun: the files
    may lie on another host.
    """
    place = folder / str(number)
    if not place.is_dir():
        return None if folder.is_dir() else 0
    newest: dict[Path, int] = {}
    for file in place.glob("**/checkpoints/step_*.pt"):
        step = int(file.stem.removeprefix("step_"))
        newest[file.parent] = max(step, newest.get(file.parent, 0))
    return sum(newest.values())


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
