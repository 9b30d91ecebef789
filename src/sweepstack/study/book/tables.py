"""Optuna's tables: the columns that are used, and how rows are read from them and written.

`bulk.py` says when. Plain rows go straight to SQLite's driver, other databases get SQLAlchemy's
statements; times are the database's own. `missing` tells whether the tables are as they are used
here.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from optuna import pruners
from optuna.storages._rdb import models
from optuna.trial import FrozenTrial, TrialState, create_trial
from sqlalchemy import Connection, bindparam, func, insert, select

from sweepstack.study.book import Ending, Report, last_value

AT_ONCE = 500
"""Trials that a query names; SQLite refuses one that names too many."""
NEEDED = {
    "StudyModel": ("study_id",),
    "TrialModel": (
        *("trial_id", "number", "study_id", "state", "datetime_start", "datetime_complete"),
    ),
    "TrialParamModel": ("trial_id", "param_name", "param_value", "distribution_json"),
    "TrialIntermediateValueModel": (
        *("trial_id", "step", "intermediate_value", "intermediate_value_type"),
    ),
    "TrialValueModel": ("trial_id", "objective", "value", "value_type"),
    "TrialUserAttributeModel": ("trial_user_attribute_id", "trial_id", "key", "value_json"),
    "TrialSystemAttributeModel": ("trial_id", "key", "value_json"),
    "TrialHeartbeatModel": ("trial_id", "heartbeat"),
    "StudyUserAttributeModel": ("study_id", "key", "value_json"),
}
"""Columns by table."""
_STORED_AS = {
    "TrialIntermediateValueModel": "intermediate_value_to_stored_repr",
    "TrialValueModel": "value_to_stored_repr",
}
"""How a table stores NaN and inf."""


def missing() -> list[str]:
    """What this Optuna lacks of what is used here, such as "TrialModel.number"."""
    found = []
    for name, columns in NEEDED.items():
        table = getattr(getattr(models, name, None), "__table__", None)
        there = () if table is None else table.columns.keys()
        found += [f"{name}.{column}" for column in columns if column not in there]
    for name, function in _STORED_AS.items():
        if not hasattr(getattr(models, name, None), function):
            found.append(f"{name}.{function}")
    return found + [n for n in ("_filter_study",) if not hasattr(pruners, n)]


def _table(name: str) -> Any:
    return getattr(getattr(models, name, None), "__table__", None)


STUDIES, TRIALS = _table("StudyModel"), _table("TrialModel")
PARAMETERS, VALUES = _table("TrialParamModel"), _table("TrialValueModel")
REPORTS = _table("TrialIntermediateValueModel")
USER, SYSTEM = _table("TrialUserAttributeModel"), _table("TrialSystemAttributeModel")
BEATS, OF_STUDY = _table("TrialHeartbeatModel"), _table("StudyUserAttributeModel")
_OF_TRIALS = (PARAMETERS, VALUES, REPORTS, USER, SYSTEM)
"""Their rows are numbers and text."""


def silent_s(page: Connection, beats: Mapping[Any, datetime | None]) -> dict[Any, float | None]:
    """How long workers have been silent, by the database's time, as heartbeats have it; not longer
    than its server is up, as before nobody could send it one."""
    if not any(beats.values()):
        return dict.fromkeys(beats)
    now = page.execute(select(utc(page))).scalar_one()
    most = _up_s(page)
    return {
        key: None if beat is None else min(most, (now - beat).total_seconds())
        for key, beat in beats.items()
    }


def utc(page: Connection) -> sa.ColumnElement[datetime]:
    """The database's time, which is the same for sessions of other time zones, also in the night
    when the clocks are changed."""
    if page.dialect.name == "postgresql":
        return func.timezone("utc", func.now(), type_=sa.DateTime())
    if page.dialect.name in ("mysql", "mariadb"):
        return func.utc_timestamp(type_=sa.DateTime())
    return func.current_timestamp()


def _up_s(page: Connection) -> float:
    if page.dialect.name == "postgresql":
        started = "EXTRACT(EPOCH FROM clock_timestamp() - pg_postmaster_start_time())"
        return float(page.scalar(sa.text(f"SELECT {started}")))
    if page.dialect.name in ("mysql", "mariadb"):
        return float(page.execute(sa.text("SHOW GLOBAL STATUS LIKE 'Uptime'")).one()[1])
    return math.inf


def hold(page: Connection, study_id: int) -> None:
    """Hold the study until the transaction ends; SQLite holds all of itself already.

    PostgreSQL does not wait for its disk at the end: a claim that a crash undoes was only a claim,
    and a result that is written waits for all before it. Others may give the study attributes.
    """
    quick = func.set_config("synchronous_commit", "off", True)
    columns = [STUDIES.c.study_id, *([quick] if page.dialect.name == "postgresql" else [])]
    query = select(*columns).where(STUDIES.c.study_id == study_id)
    page.execute(query.with_for_update(key_share=True))


def rows_of(page: Connection, query: sa.Select[Any], ids: Sequence[int]) -> Iterator[Any]:
    """What a query, whose first column is a trial's row id, finds of the trials `ids`."""
    column: Any = query.selected_columns[0]
    for first in range(0, len(ids), AT_ONCE):
        yield from page.execute(query.where(column.in_(ids[first : first + AT_ONCE])))


def insert_rows(page: Connection, table: Any, rows: Sequence[Mapping[str, Any]]) -> None:
    """Add rows; nobody asks for their keys. Plain values go straight to SQLite's driver: SQLAlchemy
    takes longer for a row than the database does."""
    if not rows:
        return
    if page.dialect.name != "sqlite" or table not in _OF_TRIALS:
        page.execute(insert(table).inline(), rows)
        return
    names = ", ".join(f'"{name}"' for name in rows[0])
    marks = ", ".join("?" * len(rows[0]))
    line = f"INSERT INTO {table.name} ({names}) VALUES ({marks})"
    page.exec_driver_sql(line, [tuple(row.values()) for row in rows])


def update_rows(page: Connection, change: sa.Update, ids: Iterable[int]) -> None:
    """Change the rows of the trials `ids`."""
    mine, column = [{"_id": trial_id} for trial_id in ids], change.table.c["trial_id"]
    if mine:
        page.execute(change.where(column == bindparam("_id")), mine)


def stored(local: datetime) -> datetime:
    """A time as Optuna stores it: UTC, and not saying so."""
    return local.astimezone(UTC).replace(tzinfo=None)


def frozen_trial(
    trial_id: int, number: Any, start: datetime, user: dict[str, Any], system: dict[str, Any]
) -> FrozenTrial:
    """A trial that has just begun, as Optuna would read it."""
    found = create_trial(state=TrialState.RUNNING, user_attrs=user, system_attrs=system)
    found.number, found._trial_id, found.datetime_start = int(number), trial_id, start
    return found


def add_attributes(
    page: Connection, table: Any, attributes: Iterable[tuple[int, Mapping[str, Any]]]
) -> None:
    """Give trials, by row id, attributes that they do not have yet."""
    rows = [
        {"trial_id": trial_id, "key": key, "value_json": json_of(value)}
        for trial_id, given in attributes
        for key, value in given.items()
    ]
    insert_rows(page, table, rows)


def json_of(value: Any) -> str:
    """`json.dumps`, which takes twenty times as long for a number."""
    plain = type(value) is int or (type(value) is float and math.isfinite(value))
    return repr(value) if plain else json.dumps(value)


def new_reports(reports: Iterable[Report]) -> list[Report]:
    """Those of the reports that are new; the trials know them from here on."""
    new = []
    for report in reports:
        known = report.trial._cached_frozen_trial.intermediate_values
        if report.step not in known:
            known[report.step] = report.value
            new.append(report)
    return new


def write_endings(page: Connection, endings: Sequence[Ending]) -> None:
    """Write how trials end, but for the attributes that they have already."""
    attributes, system, finished = [], [], []
    values: list[dict[str, Any]] = []
    now = stored(datetime.now())
    for ending in endings:
        trial_id, frozen = ending.trial._trial_id, ending.trial._cached_frozen_trial
        new = {key: v for key, v in ending.attributes.items() if key not in frozen.user_attrs}
        attributes.append((trial_id, new))
        system.append((trial_id, {f"constraints:{n}": v for n, v in ending.constraints.items()}))
        pruned = ending.state == TrialState.PRUNED
        values += _value_rows(trial_id, last_value(frozen) if pruned else ending.values or ())
        finished.append({"_id": trial_id, "_state": ending.state, "_now": now})
    add_attributes(page, USER, attributes)
    add_attributes(page, SYSTEM, system)
    insert_rows(page, VALUES, values)
    change = sa.update(TRIALS).where(TRIALS.c.trial_id == bindparam("_id"))
    change = change.values(state=bindparam("_state"), datetime_complete=bindparam("_now"))
    page.execute(change, finished)


def report_row(report: Report) -> dict[str, Any]:
    """A report as a row."""
    stored = models.TrialIntermediateValueModel.intermediate_value_to_stored_repr
    value, kind = stored(report.value)
    row = (report.trial._trial_id, report.step, value, kind.name)
    return dict(zip(NEEDED["TrialIntermediateValueModel"], row, strict=True))


def _value_rows(trial_id: int, values: Sequence[float]) -> Iterable[dict[str, Any]]:
    for objective, value in enumerate(values):
        stored, kind = models.TrialValueModel.value_to_stored_repr(value)
        row = (trial_id, objective, stored, kind.name)
        yield dict(zip(NEEDED["TrialValueModel"], row, strict=True))
