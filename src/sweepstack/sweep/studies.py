"""Opening a study and its records: a sweep goes on only with trials of the same question.

What makes it the same question is the sweep's identity (search space, objective, directions), kept
as the study's user attribute `sweepstack.identity`. Optuna itself accepts changed ranges and a
flipped direction in silence.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any, Literal

import optuna
from optuna.exceptions import DuplicatedStudyError
from optuna.samplers import BaseSampler, RandomSampler
from optuna.storages import BaseStorage, RDBStorage
from optuna.study import StudyDirection
from optuna.trial import TrialState

from sweepstack.config.check import differences
from sweepstack.config.errors import EnvironmentFault, InputError, one_line
from sweepstack.config.space import points
from sweepstack.storage import wait_for_server
from sweepstack.storage.artifacts import SETTING, Store, check
from sweepstack.study.attributes import ARTIFACTS, FOLDER, IDENTITY, RETRIED, WORKER
from sweepstack.study.book import processes
from sweepstack.study.book.book import Book
from sweepstack.study.book.public import PublicBook, held, lock_file
from sweepstack.sweep import samplers
from sweepstack.sweep.plan import Plan

log = logging.getLogger(__name__)


def open_study(
    storage: BaseStorage,
    name: str,
    directions: Sequence[str],
    identity: Mapping[str, Any],
    on_mismatch: Literal["refuse", "new", "join"] = "refuse",
) -> optuna.Study:
    """Create the study `name`, or load it to go on with it; set its sampler and pruner afterwards.

    `directions` are "minimize" or "maximize", one per objective; `identity` must be JSON. With
    `on_mismatch="new"` a study of another identity is left alone and NAME_2, NAME_3 ... is opened,
    the first that is free or has this identity. With "refuse" a study in which no trial has
    finished or runs takes the new question: it is made anew, and a line says so. With "join" it is
    another command's, and stays as it is.

    Raises:
        InputError: the study has another identity; one line per difference, nothing is written.
    """
    wanted = json.loads(json.dumps(identity))
    with held(lock_file(storage)):
        for candidate in names_like(name):
            study, differences = _open(storage, candidate, directions, wanted)
            if not differences:
                return study
            if on_mismatch == "join":
                rule = f"study '{name}' cannot be joined: what it asks is another question here"
                raise InputError([f"{rule} (other code or configs?):", *differences])
            if on_mismatch == "refuse":
                if _is_unfinished(study) and delete_idle(book_of(storage)(study, storage, None)):
                    log.warning("study %s had no finished trial and takes the new question", name)
                    return _open(storage, candidate, directions, wanted)[0]
                raise InputError(
                    [
                        f"study '{name}' has trials of another sweep; choose another study name, "
                        "or hydra.sweeper.on_mismatch=new for a new study:",
                        *differences,
                    ]
                )
    raise AssertionError("there is always another name")


def folder_of(storage: BaseStorage, study: optuna.Study, root: Path) -> Path:
    """Where the study's trials leave their files: `root`/STUDY, the same at every start.

    A folder of that name which another study left (its database is gone) is not touched: the
    study then gets STUDY_2, and so on. The choice is kept with the study.
    """
    with held(lock_file(storage)):
        found = study.user_attrs.get(FOLDER)
        if found is None:
            found = next(
                name for name in names_like(study.study_name) if not (root / name).exists()
            )
            study.set_user_attr(FOLDER, found)
        return root / str(found)


def artifacts_of(book: Book, given: str | None) -> Store | None:
    """Where the study's files are put for all machines: where it has them; else in the place
    `given`, which the study then keeps. A place in which they are too, such as the same folder
    mounted elsewhere, or another to which they were moved, takes the first one's.

    Raises:
        InputError: the study has its files in another place.
        EnvironmentFault: the place cannot be written.
    """
    study = book.study
    store = Store.of(study.user_attrs.get(ARTIFACTS))
    if store is None:
        if given is None:
            return None
        mine = Store.new(given, study.study_name)
        store = Store.of(book.settle(ARTIFACTS, mine.kept))
        if store is None or store.key == mine.key:
            return mine
        if mine.is_folder:  # another start was first
            Path(mine.where, mine.key).rmdir()
    if given in (None, store.where):
        if store.is_folder and not Path(store.where, store.key).is_dir():
            raise EnvironmentFault(
                f"the artifact folder {store.where} of study {study.study_name} is not here: "
                f"mount it, or say where it is by {SETTING}=FOLDER"
            )
        check(store.where)
        return store
    moved = Store(str(given), store.key)
    is_there = Path(moved.where, moved.key).is_dir() if moved.is_folder else moved.sizes()
    if not is_there:
        raise InputError(
            f"study {study.study_name} has its artifacts in {store.where}, and {given} has "
            f"none of them: leave {SETTING} out, or move the folder {store.key} there first"
        )
    study.set_user_attr(ARTIFACTS, moved.kept)
    return moved


def open_book(
    plan: Plan, study: optuna.Study, storage: BaseStorage, checkpointed: Callable[[int], int | None]
) -> Book:
    """The records of the plan's study: its total, its grid in order, each trial's own sampler."""
    # Of a grid the points are fixed.
    study.sampler = RandomSampler(0) if plan.grid else _sampler(plan)
    book = book_of(storage)(
        study,
        storage,
        plan.total,
        plan.max_restarts,
        points=points.arranged(plan.space, plan.order) if plan.grid else None,
        first=plan.enqueue if plan.grid else (),
        workers=plan.n_jobs,
        checkpointed=checkpointed,
    )
    book.patience_s = plan.storage_timeout_s
    if plan.identity is not None:
        book.identity = json.loads(json.dumps(plan.identity))
    wait_for_server(storage, plan.storage_timeout_s)
    return book


def _sampler(plan: Plan) -> BaseSampler:
    name, given = plan.sampler.name, plan.sampler.given

    def build(seed: int | None) -> BaseSampler:
        found = samplers.build_sampler(name, given, seed, trusted_storage=plan.trusted_storage)
        assert found is not None
        return found

    if name == "random" and plan.seed is not None:
        build(plan.seed)  # which checks its settings
        return samplers.SeededByTrial(plan.seed)
    kept = 2048 if name in samplers.BLIND else 1
    return samplers.PerTrial(build, plan.seed, is_shared=name in samplers.SHARED, kept=kept)


def book_of(storage: BaseStorage) -> Callable[..., Book]:
    """The faster of the two books that a storage can have."""
    if not isinstance(storage, RDBStorage) or bulk_problem():
        return PublicBook
    from sweepstack.study.book.bulk import BulkBook

    return BulkBook


@cache
def bulk_problem() -> str:
    """Why the tables of this Optuna cannot be used directly; empty where they can."""
    try:
        from sweepstack.study.book import tables

        found = ", ".join(tables.missing()[:3])
    except (ImportError, AttributeError) as error:
        found = one_line(error)
    if found:
        log.warning(
            "Optuna %s has no %s: using its public API, which is slower", optuna.__version__, found
        )
    return found


def names_like(name: str) -> Iterator[str]:
    """`name`, NAME_2, NAME_3 and so on."""
    yield name
    for number in count(2):
        yield f"{name}_{number}"


def _open(
    storage: BaseStorage, name: str, directions: Sequence[str], wanted: dict[str, Any]
) -> tuple[optuna.Study, list[str]]:
    """Study `name`, made where there is none, and how it differs from identity `wanted`."""
    try:
        study = optuna.load_study(study_name=name, storage=storage)
    except KeyError:
        try:
            study = optuna.create_study(
                study_name=name,
                storage=storage,
                directions=[StudyDirection[way.upper()] for way in directions],
            )
        except DuplicatedStudyError:  # by another process, just now
            study = optuna.load_study(study_name=name, storage=storage)
    there = [way.name.lower() for way in study.directions]
    here = [way.lower() for way in directions]
    before, has_trials = study.user_attrs.get(IDENTITY), False
    if before is None:
        # In this order: another process may write its identity, and then its first trial.
        has_trials = bool(study.get_trials(deepcopy=False))
        before = study.user_attrs.get(IDENTITY)
    if before is not None:
        found = [*differences(before, wanted), *differences(there, here, "directions")]
        return study, list(dict.fromkeys(found))
    if has_trials:
        return study, ["it was not made by a sweep of sweepstack, so its search space is not known"]
    if there != here:
        return study, list(differences(there, here, "directions"))
    study.set_user_attr(IDENTITY, wanted)  # if made in the dashboard, say: take it over
    return study, []


def _is_unfinished(study: optuna.Study) -> bool:
    """Whether no trial of a study has finished, or runs in a process that may live.

    A trial that was lost and waits again in another's place has not finished.
    """
    for trial in study.get_trials(deepcopy=False):
        kept = trial.user_attrs
        if trial.state == TrialState.RUNNING:
            if WORKER not in kept or not processes.is_gone(kept[WORKER]):
                return False
        elif trial.state != TrialState.WAITING and RETRIED not in kept:
            return False
    return True


def delete_idle(book: Book) -> bool:
    """Delete a study unless it is another's by now, or trials of it run or have finished; whether
    it is deleted."""
    with suppress(EnvironmentFault), book.deletion() as begun:
        if any(begun):
            raise EnvironmentFault("trials have begun")
        return True
    return False
