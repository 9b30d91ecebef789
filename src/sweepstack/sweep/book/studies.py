"""Opening a study: a sweep goes on only with trials of the same question.

What makes it the same question is the sweep's identity (search space, objective, directions), kept
as the study's user attribute `sweepstack.identity`. Optuna itself accepts changed ranges and a
flipped direction in silence.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any, Literal

import optuna
from optuna.storages import RDBStorage
from optuna.storages._rdb import models
from optuna.study import StudyDirection
from optuna.trial import TrialState
from sqlalchemy import select
from sqlalchemy.orm import Session

from sweepstack.config.errors import InputError, one_line
from sweepstack.study.attributes import FOLDER, IDENTITY, RETRIED, WORKER
from sweepstack.sweep.book import processes

log = logging.getLogger(__name__)


def open_study(
    storage: RDBStorage,
    name: str,
    directions: Sequence[str],
    identity: Mapping[str, Any],
    on_mismatch: Literal["refuse", "new"] = "refuse",
) -> optuna.Study:
    """Create the study `name`, or load it to go on with it; set its sampler and pruner afterwards.

    `directions` are "minimize" or "maximize", one per objective; `identity` must be JSON. With
    `on_mismatch="new"` a study of another identity is left alone and NAME_2, NAME_3 ... is opened,
    the first that is free or has this identity. Otherwise a study in which no trial has finished
    or runs takes the new question: it is made anew, and a line says so.

    Raises:
        InputError: the study has another identity; one line per difference, nothing is written.
    """
    wanted = json.loads(json.dumps(identity))
    ways = [StudyDirection[direction.upper()] for direction in directions]
    with Session(storage.engine) as session, session.begin():
        for candidate in _names(name):
            differences = _open(session, candidate, ways, wanted)
            if not differences:
                break
            if on_mismatch == "refuse":
                if _forget_unfinished(session, candidate):
                    log.warning("study %s had no finished trial and takes the new question", name)
                    _open(session, candidate, ways, wanted)
                    break
                raise InputError(
                    [
                        f"study '{name}' has trials of another sweep; choose another study name, "
                        "or hydra.sweeper.on_mismatch=new for a new study:",
                        *differences,
                    ]
                )
    return optuna.load_study(study_name=candidate, storage=storage)


def folder_of(storage: RDBStorage, study: optuna.Study, root: Path) -> Path:
    """Where the study's trials leave their files: `root`/STUDY, the same at every start.

    A folder of that name which another study left (its database is gone) is not touched: the
    study then gets STUDY_2, and so on. The choice is kept with the study.
    """
    with Session(storage.engine) as session, session.begin():
        models.StudyModel.find_or_raise_by_id(study._study_id, session, for_update=True)
        kept = models.StudyUserAttributeModel
        mine = select(kept).where(kept.study_id == study._study_id, kept.key == FOLDER)
        found = session.scalar(mine)
        if found is not None:
            return root / str(json.loads(found.value_json))
        for name in _names(study.study_name):
            if not (root / name).exists():
                break
        session.add(kept(study_id=study._study_id, key=FOLDER, value_json=json.dumps(name)))
        return root / name


def _names(name: str) -> Iterator[str]:
    yield name
    for number in count(2):
        yield f"{name}_{number}"


def _open(
    session: Session, name: str, ways: list[StudyDirection], wanted: dict[str, Any]
) -> list[str]:
    """Make sure that study `name` exists with identity `wanted`, or return what is different."""
    record = models.StudyUserAttributeModel(key=IDENTITY, value_json=json.dumps(wanted))
    study = models.StudyModel.find_by_name(name, session)
    if study is None:
        objectives = [
            models.StudyDirectionModel(direction=way, objective=index)
            for index, way in enumerate(ways)
        ]
        study = models.StudyModel(study_name=name, directions=objectives, user_attributes=[record])
        session.add(study)
        return []
    rows = sorted(study.directions, key=lambda row: row.objective)
    there = [row.direction.name.lower() for row in rows]
    here = [way.name.lower() for way in ways]
    for attribute in study.user_attributes:
        if attribute.key == IDENTITY:
            before = json.loads(attribute.value_json)
            found = [*_differences(before, wanted), *_differences(there, here, "directions")]
            return list(dict.fromkeys(found))
    trials = select(models.TrialModel.trial_id).where(models.TrialModel.study_id == study.study_id)
    if session.scalar(trials.limit(1)) is not None:
        return ["it was not made by a sweep of sweepstack, so its search space is not known"]
    if there != here:
        return list(_differences(there, here, "directions"))
    study.user_attributes.append(record)  # empty, for example made in the dashboard: take it over
    return []


def _forget_unfinished(session: Session, name: str) -> bool:
    """Delete the study `name` if no trial of it has finished, or runs in a process that may live.

    A trial that was lost and waits again in another's place has not finished.
    """
    study = models.StudyModel.find_or_raise_by_name(name, session)
    trials = select(models.TrialModel).where(models.TrialModel.study_id == study.study_id)
    for trial in session.scalars(trials.where(models.TrialModel.state != TrialState.WAITING)):
        kept = {a.key: json.loads(a.value_json) for a in trial.user_attributes}
        running = trial.state == TrialState.RUNNING
        gone = running and WORKER in kept and processes.is_gone(kept[WORKER])
        if not (gone if running else RETRIED in kept):
            return False
    session.delete(study)
    session.flush()
    return True


def _differences(there: Any, here: Any, name: str = "") -> Iterator[str]:
    """Yield a line for each value that differs between two JSON values."""
    if isinstance(there, dict) and isinstance(here, dict):
        for key in dict.fromkeys([*here, *there]):
            inner = f"{name}.{key}" if name else key
            if key not in there:
                yield f"{inner}: not in the study, now {_show(here[key])}"
            elif key not in here:
                yield f"{inner}: {_show(there[key])} in the study, not set now"
            else:
                yield from _differences(there[key], here[key], inner)
    elif there != here or type(there) is not type(here):
        yield f"{name}: {_show(there)} in the study, now {_show(here)}"


def _show(value: Any) -> str:
    return one_line(json.dumps(value, ensure_ascii=False), 120)
