"""A new study, of a copy, a merge or a rename, which is made whole or not at all.

It is made under the name `.unfinished.NAME`, with its files in a folder of that name; the rename of
the rows comes last. Storages without tables cannot rename: there the new study is marked
(`UNFINISHED`) until it is whole. Whatever ends it midway, the same command can be given again.

What depends on a study's name: the folder of its trials (attribute `FOLDER`) and "study" in their
metrics.json, its report, the dashboard's notes and artifacts, and the command that resumes it.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import DuplicatedStudyError
from optuna.storages import BaseStorage, RDBStorage
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import column, delete, insert, select, table, update
from sqlalchemy.exc import IntegrityError

from sweepstack.analysis.doctor import overrides
from sweepstack.config import errors
from sweepstack.config.errors import EnvironmentFault, InputError, one_line
from sweepstack.reporting.dashboard import decorate
from sweepstack.study.attributes import (
    FOLDER,
    HEARTBEAT,
    IDENTITY,
    STOP,
    SWEEP,
    UNFINISHED,
    WORKER,
    WORKERS,
)
from sweepstack.study.view import StudyView
from sweepstack.sweep.studies import names_like

HALF = ".unfinished"
"""File in the folder of a study that is being made."""
_ROWS = table("studies", column("study_id"), column("study_name"))
_USER = table("study_user_attributes", column("study_id"), column("key"), column("value_json"))
_SYSTEM = table("study_system_attributes", column("study_id"), column("key"), column("value_json"))
PASSING = (UNFINISHED, WORKERS, STOP, HEARTBEAT)
"""Beginnings of attributes that are of the processes at work on a study, not of the study."""


@dataclass
class Draft:
    """A study that is to be made.

    Attributes:
        name: the new study's.
        like: the study whose directions it has.
        user, system: attributes; `FOLDER` is added where there are files.
        trials: in the order of their new numbers.
        files: folders to copy, and where to in the study's folder.
        move: what makes the folder that `user` names out of the old one, if it does not copy.
    """

    name: str
    like: StudyView
    user: dict[str, Any]
    system: dict[str, Any] = field(default_factory=dict)
    trials: Sequence[FrozenTrial] = ()
    files: Sequence[tuple[Path, str]] = ()
    move: Callable[[], None] = lambda: None

    def make(self, target: BaseStorage, root: Path) -> Path | None:
        """Make it, whole or not at all; return its folder below `root`, None without files.

        Raises:
            InputError: there is such a study.
            EnvironmentFault: a file cannot be copied.
        """
        building = self._begin(target, root)
        place, done = root / f"{HALF}.{self.name}", None
        try:
            if self.files:
                done = next(p for n in names_like(self.name) if not (p := root / n).exists())
                self._copy_files(place)
                self.user[FOLDER] = done.name
            self._write(target, building)
            if done is not None:
                os.rename(place, done)
            self.move()
            if building != self.name:
                with renaming(target, building, self.name, {}):
                    pass
            else:
                _set_user(target, building, {UNFINISHED: False})
        except BaseException as error:
            # What is at `done` by now may be another process's, which was there first.
            if done is not None and not place.exists() and (done / HALF).is_file():
                shutil.rmtree(done, ignore_errors=True)
            shutil.rmtree(place, ignore_errors=True)
            with contextlib.suppress(Exception):
                optuna.delete_study(study_name=building, storage=target)
            if isinstance(error, OSError):
                said = f"cannot make study {self.name}: {error.strerror or error}"
                raise EnvironmentFault(said) from error
            raise
        if done is not None:
            (done / HALF).unlink(missing_ok=True)
        return done

    def _begin(self, target: BaseStorage, root: Path) -> str:
        """Refuse a name that is taken, remove what a killed process left, and return the name under
        which it is made."""
        building = f"{HALF}.{self.name}" if isinstance(target, RDBStorage) else self.name
        refuse_taken(self.name, target)
        if building in optuna.get_all_study_names(target):
            optuna.delete_study(study_name=building, storage=target)
        shutil.rmtree(root / f"{HALF}.{self.name}", ignore_errors=True)
        if (root / self.name / HALF).is_file():
            shutil.rmtree(root / self.name, ignore_errors=True)
        return building

    def _copy_files(self, place: Path) -> None:
        place.mkdir(parents=True)
        (place / HALF).touch()
        for source, to in self.files:
            shutil.copytree(source, place / to, dirs_exist_ok=True)
        name_in_files(place.glob("*/metrics.json"), self.name)

    def _write(self, target: BaseStorage, building: str) -> None:
        directions = self.like.study.directions
        optuna.create_study(study_name=building, storage=target, directions=directions)
        study_id = target.get_study_id_from_name(building)
        if building == self.name:
            target.set_study_user_attr(study_id, UNFINISHED, True)
        for trial in self.trials:
            new = target.create_new_trial(study_id, template_trial=trial)
            if trial.state == TrialState.RUNNING and WORKER in trial.user_attrs:
                # It was lost, and is found to be when it stays silent.
                if isinstance(target, RDBStorage):
                    target.record_heartbeat(new)
                else:
                    self.user[f"{HEARTBEAT}.{trial.user_attrs[WORKER]}"] = time.time()
        for key, value in self._with_ids(target, study_id).items():
            target.set_study_system_attr(study_id, key, value)
        # Last what makes it a study that a sweep goes on with.
        for key in sorted(self.user, key=lambda key: key == IDENTITY):
            target.set_study_user_attr(study_id, key, self.user[key])

    def _with_ids(self, target: BaseStorage, study_id: int) -> dict[str, Any]:
        """The system attributes; the dashboard's name trials by their ids in the storage."""
        pattern = re.compile(r"(dashboard:(?:artifacts:)?)(\d+)(:.*)")
        if not any(map(pattern.fullmatch, self.system)):
            return self.system
        assert self.like.storage is not None
        before = self.like.storage.get_study_id_from_name(self.like.name)
        old = decorate.trial_ids(self.like.storage, before)
        new = decorate.trial_ids(target, study_id)
        ids = {str(old[number][0]): str(new[number][0]) for number in old.keys() & new.keys()}
        found = {}
        for key, value in self.system.items():
            match = pattern.fullmatch(key)
            if match is None:
                found[key] = value
            elif match[2] in ids:
                found[f"{match[1]}{ids[match[2]]}{match[3]}"] = value
        return found


def refuse_taken(name: str, target: BaseStorage) -> None:
    """Raise an InputError where there is a study of that name, and no remains of a killed copy."""
    if name in optuna.get_all_study_names(target):
        known = optuna.load_study(study_name=name, storage=target).user_attrs
        if isinstance(target, RDBStorage) or known.get(UNFINISHED) is not True:
            raise _exists(name)


def _exists(name: str) -> InputError:
    return InputError(f"study {one_line(name)} exists: choose another name, or delete it first")


@contextlib.contextmanager
def renaming(target: BaseStorage, name: str, new: str, user: Mapping[str, Any]) -> Iterator[None]:
    """The transaction that renames a study of a database, sets user attributes that it has, and
    takes from the dashboard what `decorate` writes anew; committed at the end of the block.

    Raises:
        InputError: there is a study of that name.
    """
    assert isinstance(target, RDBStorage)
    study_id = target.get_study_id_from_name(name)
    known = target.get_study_system_attrs(study_id)
    stale = [key for key in known if is_decoration(key, known[key])]
    try:
        with target.engine.begin() as page:
            rows = page.execute(select(_ROWS).where(_ROWS.c.study_name == new)).first()
            if rows is not None:
                raise _exists(new)
            mine = update(_ROWS).where(_ROWS.c.study_id == study_id)
            page.execute(mine.values(study_name=new))
            for key, value in user.items():
                its = (_USER.c.study_id == study_id, _USER.c.key == key)
                page.execute(delete(_USER).where(*its))
                row = {"study_id": study_id, "key": key, "value_json": json.dumps(value)}
                page.execute(insert(_USER).values(row))
            if name != f"{HALF}.{new}":
                for key in stale:
                    its = (_SYSTEM.c.study_id == study_id, _SYSTEM.c.key == key)
                    page.execute(delete(_SYSTEM).where(*its))
            yield
    except (IntegrityError, DuplicatedStudyError):  # another process, just now
        raise _exists(new) from None


def is_decoration(key: str, value: object) -> bool:
    """Whether a system attribute is a file that `decorate` makes again, or says that it is
    there."""
    if key == decorate.DECORATED:
        return True
    if not key.startswith(("artifacts:", "dashboard:artifacts:")):
        return False
    with contextlib.suppress(ValueError, TypeError):
        found = json.loads(str(value))
        return isinstance(found, dict) and found.get("filename") in decorate.OURS
    return False


def _set_user(target: BaseStorage, name: str, known: Mapping[str, Any]) -> None:
    study_id = target.get_study_id_from_name(name)
    for key, value in known.items():
        target.set_study_user_attr(study_id, key, value)


def name_in_files(files: Iterable[Path], name: str, before: str | None = None) -> None:
    """Write the study's name into files of JSON that name one, or the one of `before`."""
    for path in sorted(files, key=lambda path: path.stat().st_mtime):  # the last stays the last
        with contextlib.suppress(OSError, ValueError):
            known = json.loads(path.read_text("utf-8"))
            if isinstance(known, dict) and known.get("study") not in (None, name):
                if before is not None and known["study"] != before:
                    continue
                text = json.dumps({**known, "study": name}, indent=2)
                errors.write_bytes(path, text.encode(), durable=False)


def asked_as(view: StudyView, new: str) -> dict[str, Any]:
    """The attribute that says how a study was asked for, under its new name."""
    if not view.asked:
        return {}
    hydra = [w for w in view.asked.get("hydra") or () if ".study_name=" not in str(w)]
    word = f"hydra.sweeper.study_name={overrides.quoted(new)}"
    return {SWEEP: {**view.asked, "hydra": [*hydra, word]}}


def copied(opened: StudyView, new: str, files: Sequence[tuple[Path, str]]) -> Draft:
    """That of a copy with these files; without any it names the old folder."""
    user = {key: value for key, value in opened.user_attrs.items() if not key.startswith(PASSING)}
    if files:
        user.pop(FOLDER, None)  # it gets its own
    assert opened.storage is not None
    study_id = opened.storage.get_study_id_from_name(opened.name)
    known = opened.storage.get_study_system_attrs(study_id)
    system = {key: value for key, value in known.items() if not is_decoration(key, value)}
    trials = opened.study.get_trials(deepcopy=False)
    return Draft(new, opened, {**user, **asked_as(opened, new)}, system, trials, files)
