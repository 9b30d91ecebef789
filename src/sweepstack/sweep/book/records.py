"""A trial as rows of Optuna's tables, and the attributes by which a sweep keeps its books.

Optuna's public functions take one transaction per row and per value, so `ledger`, which calls this,
writes the rows itself.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import optuna
from optuna.distributions import json_to_distribution
from optuna.storages._rdb import models
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import Connection, insert, select, update

from sweepstack.config.errors import EnvironmentFault
from sweepstack.study.attributes import WORKER


def missing(name: str, columns: Iterable[str]) -> list[str]:
    """What a table of this Optuna lacks of the columns, as "TrialModel.number"."""
    table = getattr(models, name, None)
    there = () if table is None else table.__table__.columns.keys()
    return [f"{name}.{column}" for column in columns if column not in there]


def _table(name: str, *columns: str) -> Any:
    """A table of Optuna's with the columns that the books need.

    Raises:
        EnvironmentFault: this Optuna has no such table. There is no way round it: that each trial
            runs once, whoever asks, takes one transaction over several tables, which Optuna's
            public functions do not offer.
    """
    for column in missing(name, columns):
        raise EnvironmentFault(
            f"Optuna {optuna.__version__} has no {column}, where a sweep keeps its books: "
            "pip install 'optuna==5.0.*'"
        )
    return getattr(models, name)


Trials = _table("TrialModel", "trial_id", "study_id", "number", "state", "datetime_start")
UserAttributes = _table("TrialUserAttributeModel", "trial_id", "key", "value_json")
SystemAttributes = _table("TrialSystemAttributeModel", "trial_id", "key", "value_json")
Reports = _table("TrialIntermediateValueModel", "trial_id", "step")
Heartbeats = _table("TrialHeartbeatModel", "trial_id", "heartbeat")

Row = tuple[Mapping[str, Any], Mapping[str, Any]]
"""A waiting trial to be: its fixed parameters and its user attributes."""


def fixed(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """System attributes of a trial whose parameters are known before it is asked for."""
    return {"fixed_params": dict(parameters)} if parameters else {}


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


def hold(connection: Connection, study_id: int) -> None:
    """Hold the study until the transaction ends; SQLite holds all of itself already."""
    studies = models.StudyModel.__table__
    connection.execute(
        select(studies.c.study_id).where(studies.c.study_id == study_id).with_for_update()
    )


def stored(local: datetime) -> datetime:
    """A time as Optuna stores it: UTC, and not saying so."""
    return local.astimezone(UTC).replace(tzinfo=None)


def begin_waiting(connection: Connection, trial_ids: Sequence[int]) -> list[FrozenTrial]:
    """Make waiting trials RUNNING and return what their rows hold."""
    if not trial_ids:
        return []
    rows = Trials.__table__
    mine = rows.c.trial_id.in_(trial_ids)
    start = datetime.now()
    change = update(rows).where(mine)
    connection.execute(change.values(state=TrialState.RUNNING, datetime_start=stored(start)))
    numbers = select(rows.c.trial_id, rows.c.number).where(mine).order_by(rows.c.trial_id)
    user = _attributes(connection, UserAttributes, trial_ids)
    system = _attributes(connection, SystemAttributes, trial_ids)
    return [
        _frozen(trial_id, number, start, user.get(trial_id, {}), system.get(trial_id, {}))
        for trial_id, number in connection.execute(numbers)
    ]


def begin_new(
    connection: Connection, study_id: int, rows: Sequence[Row], number: int, after: int
) -> list[FrozenTrial]:
    """Add RUNNING trials to a study, and return what their rows hold.

    Args:
        connection: of a transaction that holds the study.
        study_id: the study's row.
        rows: fixed parameters and user attributes of each.
        number: of the first of them.
        after: row id of the study's last trial.
    """
    if not rows:
        return []
    start = datetime.now()
    running = {"state": TrialState.RUNNING, "datetime_start": stored(start)}
    found = _added(connection, {"study_id": study_id, **running}, rows, number, after)
    return [
        _frozen(trial_id, number, start, dict(attributes), fixed(parameters))
        for (trial_id, number), (parameters, attributes) in zip(found, rows, strict=True)
    ]


def add_waiting(
    connection: Connection, study_id: int, rows: Sequence[Row], number: int, after: int
) -> None:
    """Add waiting trials, as `Study.enqueue_trial` would make them; see `begin_new`."""
    if rows:
        waiting = {"study_id": study_id, "state": TrialState.WAITING}
        _added(connection, waiting, rows, number, after)


def _added(
    connection: Connection, same: Mapping[str, Any], rows: Sequence[Row], number: int, after: int
) -> Sequence[Any]:
    """Add trials with their attributes; row id and number of each, in order."""
    table = Trials.__table__
    connection.execute(insert(table), [{**same, "number": number + i} for i in range(len(rows))])
    added = select(table.c.trial_id, table.c.number)
    added = added.where(table.c.study_id == same["study_id"], table.c.trial_id > after)
    found = connection.execute(added.order_by(table.c.number)).all()
    system = [(new[0], fixed(row[0])) for new, row in zip(found, rows, strict=True)]
    add_attributes(connection, SystemAttributes, system)
    user = [(new[0], row[1]) for new, row in zip(found, rows, strict=True)]
    add_attributes(connection, UserAttributes, user)
    return found


def hand_to(connection: Connection, trials: Sequence[FrozenTrial], worker: str) -> None:
    """Note who runs trials, with the first sign of life."""
    if not trials:
        return
    beats = [{"trial_id": trial._trial_id} for trial in trials]
    connection.execute(insert(Heartbeats.__table__), beats)
    mine = {WORKER: worker}
    add_attributes(connection, UserAttributes, [(trial._trial_id, mine) for trial in trials])
    for trial in trials:
        trial.user_attrs[WORKER] = worker


def add_attributes(
    connection: Connection, model: Any, attributes: Iterable[tuple[int, Mapping[str, Any]]]
) -> None:
    """Give trials, by row id, attributes that they do not have yet."""
    rows = [
        {"trial_id": trial_id, "key": key, "value_json": json.dumps(value)}
        for trial_id, given in attributes
        for key, value in given.items()
    ]
    if rows:
        connection.execute(insert(model.__table__), rows)


def _attributes(
    connection: Connection, model: Any, trial_ids: Sequence[int]
) -> dict[int, dict[str, Any]]:
    """Attributes by trial."""
    table, found = model.__table__.c, dict[int, dict[str, Any]]()
    query = select(table.trial_id, table.key, table.value_json)
    for trial_id, key, text in connection.execute(query.where(table.trial_id.in_(trial_ids))):
        found.setdefault(trial_id, {})[key] = json.loads(text)
    return found


def _frozen(
    trial_id: int, number: Any, start: datetime, user: dict[str, Any], system: dict[str, Any]
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
