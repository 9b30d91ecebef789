"""A trial as rows of Optuna's tables, and the attributes by which a sweep keeps its books.

Optuna's public functions take one transaction per row and per value, so `ledger`, which calls this,
writes the rows itself. User attributes of trials:

    iolaus.worker     the process that runs it (`processes.this_process`)
    iolaus.point      its grid point as JSON; passed on to its replacement
    iolaus.enqueued   the point that a person asked to be tried first, as JSON
    iolaus.lost       why it ended without a result of its own
    iolaus.retried    true on a FAIL that another trial replaces, so that it is not finished
    iolaus.retry_of   on a replacement: number of the first trial of the line
    iolaus.continues  on a replacement of a lost trial: that trial's number, in whose folder a
                      checkpoint may be
    iolaus.retries    on a replacement: how often the line was lost
    iolaus.effect     what it does (`effect.py`), of a trial that is or was to be trained
    equals            number of the trial of the same effect whose numbers it has
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from optuna.distributions import json_to_distribution
from optuna.storages._rdb import models
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import Connection, insert, select, update

WORKER = "iolaus.worker"
POINT = "iolaus.point"
ENQUEUED = "iolaus.enqueued"
LOST = "iolaus.lost"
RETRIED = "iolaus.retried"
RETRY_OF = "iolaus.retry_of"
CONTINUES = "iolaus.continues"
RETRIES = "iolaus.retries"
EFFECT = "iolaus.effect"
EQUALS = "equals"

Trials = models.TrialModel
UserAttributes = models.TrialUserAttributeModel
SystemAttributes = models.TrialSystemAttributeModel
Heartbeats = models.TrialHeartbeatModel

Row = tuple[Mapping[str, Any], Mapping[str, Any]]
"""A waiting trial to be: its fixed parameters and its user attributes."""


def waiting_trial(study_id: int, number: int, row: Row) -> Any:
    """Return trial `number` of a study, waiting, as `Study.enqueue_trial` would make it."""
    parameters, attributes = row
    fixed = {"fixed_params": dict(parameters)} if parameters else {}
    return Trials(
        study_id=study_id,
        number=number,
        state=TrialState.WAITING,
        system_attributes=_rows(SystemAttributes, fixed),
        user_attributes=_rows(UserAttributes, attributes),
    )


def parameters_of(trial: Any) -> dict[str, Any]:
    """Return the parameters that were fixed for a `trial`, and those it was given since."""
    system = {row.key: json.loads(row.value_json) for row in trial.system_attributes}
    parameters: dict[str, Any] = dict(system.get("fixed_params", {}))
    for row in trial.params:
        distribution = json_to_distribution(row.distribution_json)
        parameters[row.param_name] = distribution.to_external_repr(row.param_value)
    return parameters


def attributes_of(trial: Any) -> dict[str, Any]:
    """Return the user attributes of a `trial`."""
    return {row.key: json.loads(row.value_json) for row in trial.user_attributes}


def _rows(model: Any, attributes: Mapping[str, Any]) -> list[Any]:
    return [model(key=key, value_json=json.dumps(value)) for key, value in attributes.items()]


def set_attribute(trial: Any, key: str, value: Any) -> None:
    """Give a `trial` the user attribute `key`, which it must not have yet."""
    trial.user_attributes.extend(_rows(UserAttributes, {key: value}))


def hold(connection: Connection, study_id: int) -> None:
    """Hold the study until the transaction ends; SQLite holds all of itself already."""
    studies = models.StudyModel.__table__
    connection.execute(
        select(studies.c.study_id).where(studies.c.study_id == study_id).with_for_update()
    )


def begin_waiting(connection: Connection, trial_id: int) -> FrozenTrial:
    """Make a waiting trial RUNNING and return what its row holds."""
    rows, now = Trials.__table__, datetime.now()
    connection.execute(
        update(rows)
        .where(rows.c.trial_id == trial_id)
        .values(state=TrialState.RUNNING, datetime_start=now)
    )
    number = connection.scalar(select(rows.c.number).where(rows.c.trial_id == trial_id))
    return _frozen(
        trial_id,
        number,
        now,
        _attributes(connection, UserAttributes, trial_id),
        _attributes(connection, SystemAttributes, trial_id),
    )


def begin_new(connection: Connection, study_id: int, number: int) -> FrozenTrial:
    """Add a RUNNING trial to a study, and return what its row holds."""
    now = datetime.now()
    added = connection.execute(
        insert(Trials.__table__).values(
            number=number, study_id=study_id, state=TrialState.RUNNING, datetime_start=now
        )
    )
    key = added.inserted_primary_key
    assert key is not None
    return _frozen(int(key[0]), number, now, {}, {})


def hand_to(connection: Connection, trial: FrozenTrial, worker: str) -> None:
    """Note who runs a trial, with the first sign of life."""
    connection.execute(insert(Heartbeats.__table__).values(trial_id=trial._trial_id))
    add_attributes(connection, UserAttributes, trial._trial_id, {WORKER: worker})
    trial.user_attrs[WORKER] = worker


def add_attributes(
    connection: Connection, model: Any, trial_id: int, attributes: Mapping[str, Any]
) -> None:
    """Give a trial attributes, none of which it has yet."""
    if attributes:
        rows = [
            {"trial_id": trial_id, "key": key, "value_json": json.dumps(value)}
            for key, value in attributes.items()
        ]
        connection.execute(insert(model.__table__), rows)


def _attributes(connection: Connection, model: Any, trial_id: int) -> dict[str, Any]:
    table = model.__table__
    query = select(table.c.key, table.c.value_json).where(table.c.trial_id == trial_id)
    return {key: json.loads(text) for key, text in connection.execute(query)}


def _frozen(
    trial_id: int,
    number: Any,
    start: datetime,
    user: dict[str, Any],
    system: dict[str, Any],
) -> FrozenTrial:
    return FrozenTrial(
        number=int(number),
        state=TrialState.RUNNING,
        value=None,
        datetime_start=start,
        datetime_complete=None,
        params={},
        distributions={},
        user_attrs=user,
        system_attrs=system,
        intermediate_values={},
        trial_id=trial_id,
    )
