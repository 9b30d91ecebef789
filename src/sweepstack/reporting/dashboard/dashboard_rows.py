"""The system attributes of a study, rows of its database, in which optuna-dashboard keeps its own.

Notes and plots stand in several attributes each, as the dashboard's `save_note` and
`save_plotly_graph_object` write them, since it keeps every one of them short. Those functions cost
a transaction per attribute; here all that is written of a study is one, in which it is also decided
what to write: of two processes that decorate a study at once, one sees what the other has written.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from optuna.storages import BaseStorage, RDBStorage
from optuna.trial import TrialState
from sqlalchemy import Connection, func, insert, select, update

from sweepstack.config.errors import EnvironmentFault
from sweepstack.reporting.dashboard import notes
from sweepstack.study import storage
from sweepstack.study.library import OpenStudy

Attributes = dict[str, Any]
"""System attributes of a study."""


@dataclass(frozen=True)
class Rows:
    """The attributes of one study in a storage that can be written to.

    Attributes:
        target: the storage.
        study_id: the study's row there.
        where: what the storage is called.
    """

    target: BaseStorage
    study_id: int
    where: str

    def ended(self) -> str:
        """What changes whenever a trial ends: how many ended how, and when the last one did."""
        found = sorted((s.name, n, str(last)) for s, n, last in self._counted() if s.is_finished())
        return ", ".join(f"{name} {count} {last}" for name, count, last in found)

    def _counted(self) -> list[Any]:
        """(state, trials, when the last one ended) of every state."""
        if isinstance(self.target, RDBStorage):
            from optuna.storages._rdb import models

            rows = models.TrialModel.__table__.c
            query = select(rows.state, func.count(), func.max(rows.datetime_complete))
            query = query.where(rows.study_id == self.study_id).group_by(rows.state)
            with self.target.engine.connect() as connection:
                return [tuple(row) for row in connection.execute(query)]
        ends: dict[TrialState, list[Any]] = {}
        for trial in self.target.get_all_trials(self.study_id, deepcopy=False):
            ends.setdefault(trial.state, []).append(trial.datetime_complete)
        return [
            (state, len(times), max((time for time in times if time), default=None))
            for state, times in ends.items()
        ]

    def attribute(self, key: str) -> Any:
        """One of the attributes, None where there is none."""
        if not isinstance(self.target, RDBStorage):
            return self.target.get_study_system_attrs(self.study_id).get(key)
        from optuna.storages._rdb import models

        rows = models.StudySystemAttributeModel.__table__.c
        query = select(rows.value_json).where(rows.study_id == self.study_id, rows.key == key)
        with self.target.engine.connect() as connection:
            text = connection.scalar(query)
        return None if text is None else json.loads(text)

    def write(self, change: Callable[[Mapping[str, Any]], Attributes]) -> None:
        """Set the attributes that `change` makes of all that there are, in one transaction where
        the storage has any.

        Raises:
            EnvironmentFault: a journal cannot be written.
        """
        if isinstance(self.target, RDBStorage):
            with self.target.engine.begin() as connection:
                _write_rows(connection, self.study_id, change)
            return
        wanted = change(self.target.get_study_system_attrs(self.study_id))
        try:
            for key, value in wanted.items():
                self.target.set_study_system_attr(self.study_id, key, value)
        except OSError as error:
            reason = error.strerror or error
            raise EnvironmentFault(f"cannot write {self.where}: {reason}") from error


@contextlib.contextmanager
def rows_of(opened: OpenStudy) -> Iterator[Rows]:
    """The attributes of a study, whose storage is opened to write.

    Raises:
        EnvironmentFault: it cannot be.
    """
    if "://" not in opened.where:  # a journal
        yield Rows(opened.study._storage, opened.study._study_id, opened.where)
        return
    target = storage.connect(opened.where)
    try:
        yield Rows(target, target.get_study_id_from_name(opened.name), opened.where)
    finally:
        if isinstance(target, RDBStorage):
            target.engine.dispose()


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
