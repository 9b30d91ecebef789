"""The system attributes of a study, rows of its database, in which optuna-dashboard keeps its own.

Notes and plots stand in several attributes each, as the dashboard's `save_note` and
`save_plotly_graph_object` write them, since it keeps every one of them short. Those functions cost
a transaction per attribute; here all that is written of a study is one, in which it is also decided
what to write: of two processes that decorate a study at once, one sees what the other has written.

Called by `decorate.py`, which says what is to stand there; `dashboard.py` reads by `chunks`.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from optuna.storages import BaseStorage, RDBStorage
from optuna.trial import TrialState
from sqlalchemy import Connection, func, insert, select, update

from iolaus import storage
from iolaus.analysis import notes
from iolaus.analysis.library import OpenStudy

Attributes = dict[str, Any]
"""System attributes of a study."""


@contextlib.contextmanager
def writable(opened: OpenStudy) -> Iterator[BaseStorage]:
    """The study's storage, opened to write.

    Raises:
        EnvironmentFault: it cannot be.
    """
    if "://" not in opened.where:  # a journal
        yield opened.study._storage
        return
    target = storage.connect(opened.where)
    try:
        yield target
    finally:
        target.engine.dispose()


def ended(target: BaseStorage, study_id: int) -> str:
    """What changes whenever a trial ends: how many ended how, and when the last one did."""
    if isinstance(target, RDBStorage):
        from optuna.storages._rdb import models

        rows = models.TrialModel.__table__.c
        query = select(rows.state, func.count(), func.max(rows.datetime_complete))
        query = query.where(rows.study_id == study_id).group_by(rows.state)
        with target.engine.connect() as connection:
            found = [tuple(row) for row in connection.execute(query)]
    else:
        times_of: dict[TrialState, list[Any]] = {}
        for trial in target.get_all_trials(study_id, deepcopy=False):
            times_of.setdefault(trial.state, []).append(trial.datetime_complete)
        found = [
            (state, len(times), max((time for time in times if time), default=None))
            for state, times in times_of.items()
        ]
    finished = sorted((s.name, count, str(last)) for s, count, last in found if s.is_finished())
    return ", ".join(f"{name} {count} {last}" for name, count, last in finished)


def attribute(target: BaseStorage, study_id: int, key: str) -> Any:
    """One system attribute of a study."""
    if not isinstance(target, RDBStorage):
        return target.get_study_system_attrs(study_id).get(key)
    from optuna.storages._rdb import models

    rows = models.StudySystemAttributeModel.__table__.c
    query = select(rows.value_json).where(rows.study_id == study_id, rows.key == key)
    with target.engine.connect() as connection:
        text = connection.scalar(query)
    return None if text is None else json.loads(text)


def write(
    target: BaseStorage, study_id: int, change: Callable[[Mapping[str, Any]], Attributes]
) -> None:
    """Set the system attributes that `change` makes of those that a study has, in one transaction
    where there are any."""
    if not isinstance(target, RDBStorage):
        for key, value in change(target.get_study_system_attrs(study_id)).items():
            target.set_study_system_attr(study_id, key, value)
        return
    with target.engine.begin() as connection:
        _write_rows(connection, study_id, change)


def _write_rows(
    connection: Connection, study_id: int, change: Callable[[Mapping[str, Any]], Attributes]
) -> None:
    from optuna.storages._rdb import models

    table, studies = models.StudySystemAttributeModel.__table__, models.StudyModel.__table__.c
    # SQLite's transaction holds the whole file already.
    connection.execute(
        select(studies.study_id).where(studies.study_id == study_id).with_for_update()
    )
    query = select(table.c.study_system_attribute_id, table.c.key, table.c.value_json)
    found = connection.execute(query.where(table.c.study_id == study_id)).all()
    rows = {key: row for row, key, _ in found}
    wanted = change({key: json.loads(text) for _, key, text in found})
    texts = {key: json.dumps(value) for key, value in wanted.items()}
    new = [
        {"study_id": study_id, "key": key, "value_json": text}
        for key, text in texts.items()
        if key not in rows
    ]
    if new:
        connection.execute(insert(table), new)
    for key in texts.keys() & rows.keys():
        connection.execute(
            update(table)
            .where(table.c.study_system_attribute_id == rows[key])
            .values(value_json=texts[key])
        )


def changed_notes(texts: Mapping[int | None, str], known: Mapping[str, Any]) -> Attributes:
    """The attributes that turn the notes of a study into `texts`, as `save_note` sets them.

    A note that a person has changed or emptied stays as it is.

    Args:
        texts: by the row of a trial; the study's own by None.
        known: the attributes that the study has.
    """
    from optuna_dashboard import _note as dashboard

    changed: Attributes = {}
    for trial_id, text in texts.items():
        version = dashboard.note_ver_key(trial_id)
        parts = dashboard.split_body(text, trial_id)
        prefix = dashboard.note_str_key_prefix(trial_id)
        old = chunks(known, prefix)
        body = "".join(old)
        if body == text or (version in known and not notes.is_signed(body)):
            continue
        changed[version] = known.get(version, 0) + 1
        changed |= parts | _emptied(prefix, len(parts), len(old))
    return changed


def chunks(known: Mapping[str, Any], prefix: str) -> list[str]:
    """A text that stands in several attributes, since the dashboard keeps each of them short."""
    found: list[str] = []
    while (part := known.get(f"{prefix}{len(found)}")) is not None:
        found.append(str(part))
    return found


def _emptied(prefix: str, first: int, end: int) -> Attributes:
    """What sets the attributes that a text no longer needs."""
    return {f"{prefix}{index}": "" for index in range(first, end)}


def changed_plots(plots: Mapping[str, str], known: Mapping[str, Any]) -> Attributes:
    """The attributes that turn the plots of a study, plotly's JSON by their ids, into `plots`, as
    `save_plotly_graph_object` sets them."""
    from optuna_dashboard import _custom_plot_data as dashboard

    changed: Attributes = {}
    for key, text in plots.items():
        prefix = f"{dashboard.SYSTEM_ATTR_PLOT_DATA}{key}:"
        old = chunks(known, prefix)
        if "".join(old) != text:
            parts = dashboard.split_plot_data(text, prefix)
            changed |= parts | _emptied(prefix, len(parts), len(old))
    return changed
