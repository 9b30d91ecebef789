"""`sweepstack-study delete`: a study's rows, the folder of its trials, its report and its
artifacts.

All of it goes in one transaction that holds the study: no worker can take a trial meanwhile, and
where a file cannot be removed the rows stay, so that the same command can be given again.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

from optuna.storages import RDBStorage
from optuna.storages._rdb.models import BaseModel
from optuna.trial import TrialState
from sqlalchemy import Connection, delete, func, select

from sweepstack.config.errors import EXIT_TRAINING, EnvironmentFault, InputError, one_line
from sweepstack.reporting import report
from sweepstack.reporting.dashboard import decorate
from sweepstack.runs.progress import console, shown
from sweepstack.study import storage
from sweepstack.study.attributes import FOLDER, WORKER
from sweepstack.study.library import OpenStudy, open_study
from sweepstack.study.read import trials_of
from sweepstack.sweep.book import processes, records
from sweepstack.sweep.book.records import Heartbeats, Trials, UserAttributes

GRACE_S = 120
"""A worker that has shown no sign of life for so long is dead; as for `Ledger`."""


def remove(name: str, where: str = storage.DEFAULT, *, is_sure: bool = False) -> int:
    """Delete a study and all that is left of it, once a person has agreed.

    Args:
        name: the study's.
        where: as for `storage.look`.
        is_sure: nobody is asked.

    Returns:
        The exit code: 0, or 1 where the person did not agree.

    Raises:
        InputError: there is no such study, or nobody can be asked.
        EnvironmentFault: a living worker runs trials of it, or something cannot be removed.
    """
    if not is_sure and not sys.stdin.isatty():
        raise InputError("delete asks first and there is no terminal to ask on: add --yes")
    opened = open_study(name, where)
    with storage.named(opened.where), decorate.writable(opened) as (target, study_id):
        with _transaction(target) as connection:
            _refuse_while_running(connection, study_id, name)
        paths = list(_paths(opened))
        what = ", ".join(
            [f"{len(trials_of(opened.study))} trials", *(str(shown(p.absolute())) for p in paths)]
        )
        if not is_sure and not _agrees(f"delete study {name} ({what})? [y/N] "):
            _say("nothing was deleted")
            return EXIT_TRAINING
        with _transaction(target) as connection:
            _refuse_while_running(connection, study_id, name)
            if connection is not None:
                _delete_rows(connection, study_id)
            for path in [*paths, *_artifacts(opened)]:
                _remove(path)
        if connection is None:
            target.delete_study(study_id)
    _say(f"deleted study {name}: {what}")
    return 0


@contextlib.contextmanager
def _transaction(target: Any) -> Iterator[Connection | None]:
    """A transaction of a database; None for a journal, which has none."""
    if not isinstance(target, RDBStorage):
        yield None
        return
    with target.engine.begin() as connection:
        yield connection


def _refuse_while_running(connection: Connection | None, study_id: int, name: str) -> None:
    """Hold the study, and raise an EnvironmentFault if a living worker runs trials of it."""
    if connection is None:
        return
    records.hold(connection, study_id)
    trials, beats, known = (m.__table__.c for m in (Trials, Heartbeats, UserAttributes))
    oldest = connection.execute(select(func.now())).scalar_one().replace(tzinfo=None)
    query = (
        select(trials.trial_id, known.value_json)
        .join(Heartbeats.__table__, beats.trial_id == trials.trial_id)
        .outerjoin(
            UserAttributes.__table__,
            (known.trial_id == trials.trial_id) & (known.key == WORKER),
        )
        .where(trials.study_id == study_id, trials.state == TrialState.RUNNING)
        .where(beats.heartbeat >= oldest - timedelta(seconds=GRACE_S))
    )
    workers = [json.loads(text or "null") for _, text in connection.execute(query)]
    alive = [worker for worker in workers if not _is_gone(worker)]
    if alive:
        host, pid, *_ = [*str(alive[0]).split(":"), "?"]
        raise EnvironmentFault(
            f"study {name} is at work: {len(alive)} trials run, one in process "
            f"{one_line(pid, 20)} on {one_line(host.partition('/')[0], 80)}; stop the sweep first"
        )


def _is_gone(worker: object) -> bool:
    try:
        return isinstance(worker, str) and processes.is_gone(worker)
    except ValueError:  # it comes from the database
        return False


def _delete_rows(connection: Connection, study_id: int) -> None:
    """Delete what refers to a study before the study itself, a table at a time."""
    mine = select(Trials.trial_id).where(Trials.study_id == study_id)
    for table in reversed(BaseModel.metadata.sorted_tables):
        if "study_id" in table.c:
            connection.execute(delete(table).where(table.c.study_id == study_id))
        elif "trial_id" in table.c:
            connection.execute(delete(table).where(table.c.trial_id.in_(mine)))


def _paths(opened: OpenStudy) -> Iterator[Path]:
    """The folder of the study's trials, unless another study has it too, and the report."""
    folder = opened.folder
    others = [s for s in opened.study._storage.get_all_studies() if s.study_name != opened.name]
    if folder is not None and folder.name not in [s.user_attrs.get(FOLDER) for s in others]:
        yield folder
    if (page := report.place_of(opened)).is_file():
        yield page


def _artifacts(opened: OpenStudy) -> Iterator[Path]:
    """The files that the dashboard shows of a study; their names come from the database."""
    known = opened.study._storage.get_study_system_attrs(opened.study._study_id)
    for key in known:
        name = key.rpartition(":")[2]
        if "artifacts:" in key and re.fullmatch(r"[0-9a-f-]{36}", name):
            yield decorate.artifacts(opened.where) / name


def _remove(path: Path) -> None:
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:  # of a link only the link
            path.unlink(missing_ok=True)
    except OSError as error:
        raise EnvironmentFault(
            f"cannot remove {path}: {error.strerror or error}; the study's rows are kept"
        ) from error


def _agrees(question: str) -> bool:
    try:
        return input(question).strip().lower() in ("y", "yes")
    except EOFError:
        return False


def _say(line: str) -> None:
    console().print(line, highlight=False, markup=False, soft_wrap=True)
