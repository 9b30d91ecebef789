"""A budget of training steps for all trials of a study (`hydra.sweeper.max_steps_total`).

No trial begins once what the finished ones took and the running ones may take makes up the budget:
it is overshot by less than one trial, however many workers there are. For that a trial that begins
says how many steps it may take (`attributes.PLANNED`), and who claims one looks at all of them in
the same transaction.
"""

from __future__ import annotations

import json
from typing import Any

from optuna.trial import TrialState
from sqlalchemy import Connection, exists, select

from sweepstack.study.attributes import EQUALS, PLANNED, WORKER
from sweepstack.sweep.book import processes
from sweepstack.sweep.book.records import Trials, UserAttributes

_ROWS = Trials.__table__.c
_ATTRIBUTES = UserAttributes.__table__.c


def taken(connection: Connection, study_id: int) -> int:
    """Training steps of all finished trials of a study that were trained themselves."""
    mine = select(_ATTRIBUTES.value_json).join(Trials, _ROWS.trial_id == _ATTRIBUTES.trial_id)
    mine = mine.where(_ROWS.study_id == study_id, _ATTRIBUTES.key == "steps")
    other = UserAttributes.__table__.alias().c
    equal = exists().where(other.trial_id == _ATTRIBUTES.trial_id, other.key == EQUALS)
    return sum(json.loads(text) or 0 for text in connection.scalars(mine.where(~equal)))


def allows(connection: Connection, study_id: int, most: int) -> bool:
    """Whether another trial may begin, with `most` steps for all; the transaction holds the study.

    A trial of another worker that has not said yet what it may take counts as the longest of the
    study; before any has said so it alone may run.
    """
    plans = _of_running(connection, study_id)
    silent = [worker for worker, steps in plans if steps is None]
    unknown = len({worker for worker in silent if worker != processes.this_process()})
    planned = sum(steps for _, steps in plans if steps is not None)
    if unknown:
        longest = _longest(connection, study_id)
        if longest is None:
            return False
        planned += unknown * longest
    return taken(connection, study_id) + planned < most


def _of_running(connection: Connection, study_id: int) -> list[tuple[str, int | None]]:
    """Worker and planned steps of the running trials; those of people have no worker."""
    running = select(_ROWS.trial_id).where(
        _ROWS.study_id == study_id, _ROWS.state == TrialState.RUNNING
    )
    query = select(_ATTRIBUTES.trial_id, _ATTRIBUTES.key, _ATTRIBUTES.value_json)
    query = query.where(_ATTRIBUTES.trial_id.in_(running), _ATTRIBUTES.key.in_((WORKER, PLANNED)))
    found: dict[int, dict[str, Any]] = {}
    for trial_id, key, text in connection.execute(query):
        found.setdefault(trial_id, {})[key] = json.loads(text)
    return [(said[WORKER], said.get(PLANNED)) for said in found.values() if WORKER in said]


def _longest(connection: Connection, study_id: int) -> int | None:
    query = select(_ATTRIBUTES.value_json).distinct()
    query = query.join(Trials, _ROWS.trial_id == _ATTRIBUTES.trial_id)
    query = query.where(_ROWS.study_id == study_id, _ATTRIBUTES.key == PLANNED)
    return max((json.loads(text) for text in connection.scalars(query)), default=None)
