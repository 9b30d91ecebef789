"""`sweepstack-study delete`, `rename`, `copy` and `prune-files`: rows and files together.

A study that living workers run is refused. Whatever ends a command midway, nothing is half done,
and the same command can be given again:

- Deleting: all of it goes while the study is held; where a file cannot be removed the rows stay.
- A new study is whole or not there (`draft.py`).
- Renaming moves the folder within the transaction that renames the rows, or, where it has to copy
  the rows, before the new study is whole. A process that is killed between the two leaves
  `RENAMED_FROM` in the folder, by which the next try moves it back, or only deletes the old rows.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import optuna
from optuna.storages import BaseStorage, RDBStorage

from sweepstack import storage
from sweepstack.analysis.doctor.finding import count
from sweepstack.cli.draft import asked_as, copied, name_in_files, refuse_taken, renaming
from sweepstack.config.commands import shell
from sweepstack.config.errors import EXIT_TRAINING, EnvironmentFault, InputError, masked, one_line
from sweepstack.reporting import report
from sweepstack.reporting.dashboard import decorate
from sweepstack.reporting.report.content import command_of
from sweepstack.runs.progress import say, shown
from sweepstack.storage import url as storage_url
from sweepstack.storage.artifacts import Store
from sweepstack.study.attributes import ARTIFACTS, FOLDER, KEEP_MODELS, UNFINISHED
from sweepstack.study.book.book import Book
from sweepstack.study.read import trials_of
from sweepstack.study.view import StudyView, open_study, outputs
from sweepstack.sweep.plan import check_name
from sweepstack.sweep.studies import artifacts_of, book_of, names_like
from sweepstack.sweep.sweep import STUDIES
from sweepstack.sweep.worker import trial_folder

RENAMED_FROM = ".renamed-from"
"""File in a folder that is being renamed: the study's old name."""

# --- delete --------------------------------------------------------------------------------------


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
    with storage.named(opened.where), records(opened) as book:
        refuse_while_running(book.alive(), name)
        paths, store = list(_paths(opened, book)), _own_store(opened, book)
        of = [f"{len(trials_of(opened.study))} trials", *(str(shown(p.absolute())) for p in paths)]
        what = ", ".join([*of, *([f"artifacts in {store.where}"] if store else [])])
        if not is_sure and not _agrees(f"delete study {name} ({what})? [y/N] "):
            say("nothing was deleted")
            return EXIT_TRAINING
        paths += _artifacts(opened, book)  # before the study is held: a second reader would wait
        with book.deletion() as (alive, _):
            refuse_while_running(alive, name)
            if store is not None:
                store.remove_all()
            for path in paths:
                _remove(path)
    say(f"deleted study {name}: {what}")
    return 0


@contextlib.contextmanager
def records(opened: StudyView) -> Iterator[Book]:
    """The records of a study, opened to write."""
    target = storage.connect(_url(opened))
    try:
        study = optuna.load_study(study_name=opened.name, storage=target)
        yield book_of(target)(study, target, None)
    finally:
        storage.close(target)


def _url(opened: StudyView) -> str:
    return opened.where if "://" in opened.where else f"journal:///{opened.where}"


def refuse_while_running(alive: Sequence[str], name: str) -> None:
    """Raise an EnvironmentFault where there are living workers (their owners) of a study."""
    if alive:
        host, pid, *_ = [*alive[0].split(":"), "?"]
        raise EnvironmentFault(
            f"study {name} is at work: {len(alive)} trials run, one in process "
            f"{one_line(pid, 20)} on {one_line(host.partition('/')[0], 80)}; stop the sweep first"
        )


def _paths(opened: StudyView, book: Book) -> Iterator[Path]:
    """The folder of the study's trials, unless another study has it too, and the report."""
    folder = opened.folder
    studies = optuna.get_all_study_summaries(book.storage, include_best_trial=False)
    others = [s.user_attrs.get(FOLDER) for s in studies if s.study_name != opened.name]
    if folder is not None and folder.name not in others:
        yield folder
    if (page := report.place_of(opened)).is_file():
        yield page


def _own_store(opened: StudyView, book: Book) -> Store | None:
    """The study's artifact store, unless another study has it too or it is gone; one that cannot be
    reached stays, with a warning."""
    studies = optuna.get_all_study_summaries(book.storage, include_best_trial=False)
    others = [s.user_attrs.get(ARTIFACTS) for s in studies if s.study_name != opened.name]
    store = opened.store
    if store is None or store.kept in others:
        return None
    try:
        return store if store.sizes() else None
    except EnvironmentFault as error:
        say(f"the artifacts of the study stay: {error}")
        return None


def all_here(opened: StudyView) -> str | None:
    """Take all files of a study that is to be copied from its artifact store; return its place."""
    everything = range(len(opened.trials))
    opened.files(everything, models=everything)
    return opened.store.where if opened.store is not None else None


def put_artifacts(view: StudyView, where: str | None) -> None:
    """Give a new study artifacts of its own, of the files that were copied for it."""
    if where is None or view.folder is None:
        return
    with records(view) as book:
        try:
            store = artifacts_of(book, where)
        except EnvironmentFault as error:
            say(f"{error}; the files of {view.name} are here alone")
            return
        assert store is not None
        trial_folder.put_rest(book.study, book.storage, store, view.folder)


def _artifacts(opened: StudyView, book: Book) -> Iterator[Path]:
    """The files that the dashboard shows of a study alone; their names come from the database."""
    names = optuna.get_all_study_names(book.storage)
    every = map(book.storage.get_study_id_from_name, names)
    others = [_artifact_names(book.storage, each) for each in every if each != book.study_id]
    for name in sorted(_artifact_names(book.storage, book.study_id) - set().union(*others)):
        yield decorate.artifacts(opened.where) / name


def _artifact_names(opened: BaseStorage, study_id: int) -> set[str]:
    known = opened.get_study_system_attrs(study_id)
    names = {key.rpartition(":")[2] for key in known if "artifacts:" in key}
    return {name for name in names if re.fullmatch(r"[0-9a-f-]{36}", name)}


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


def conclude(view: StudyView, done: str, report_too: bool) -> int:
    """Say what was done and how the study is resumed; write its report where it had one."""
    say(done)
    if report_too:
        decorate.write_report(view)
    if command := command_of(view.asked):
        if storage_url.absolute(_url(view)) != storage_url.absolute(storage.DEFAULT):
            command += " " + shell(f"hydra.sweeper.storage={masked(_url(view))}")
        say(f"resume: {command}")
    return 0


# --- rename --------------------------------------------------------------------------------------


def rename(name: str, new: str, where: str = storage.DEFAULT) -> int:
    """Give a study another name, its folder and report too; the same trials go on under it.

    In a storage without tables its rows are copied and the old ones deleted.

    Raises:
        InputError: there is no such study, or one of the new name; it cannot be a name.
        EnvironmentFault: a living worker runs trials of it, or its folder cannot be moved.
    """
    check_name("the new name", new)
    opened = open_study(name, where)
    with storage.named(opened.where), records(opened) as book:
        refuse_while_running(book.alive(), name)
        half = _half_renamed(opened, new)
        is_copied = half is not None and _is_copied(book.storage, new, half)
        if not is_copied:
            refuse_taken(new, book.storage)
        page, stale = report.place_of(opened), list(_artifacts(opened, book))
        if not is_copied:
            if half is not None:
                os.rename(half, half.parent / str(opened.user_attrs[FOLDER]))
            half = _rename_with_folder(book.storage, opened, new)
        if not isinstance(book.storage, RDBStorage):
            with book.deletion():
                pass
        if half is not None:
            (half / RENAMED_FROM).unlink(missing_ok=True)
        view = open_study(new, where)
        known = _artifact_names(book.storage, book.storage.get_study_id_from_name(new))
        for path in (path for path in stale if path.name not in known):
            path.unlink(missing_ok=True)
        if view.folder is not None:
            name_in_files(view.folder.glob("*/metrics.json"), new)
        name_in_files(outputs(view.where).glob("reruns/*/rerun.json"), new, name)
        had_report = page.is_file()
        page.unlink(missing_ok=True)
    return conclude(view, f"renamed study {name} to {new}{summary(view)}", had_report)


def _half_renamed(opened: StudyView, new: str) -> Path | None:
    """The study's folder under its new name, where a `rename` that was killed had moved it."""
    for root in opened.roots:
        mark = root / new / RENAMED_FROM
        if opened.folder is None and mark.is_file() and mark.read_text("utf-8") == opened.name:
            return root / new
    return None


def _is_copied(target: BaseStorage, new: str, folder: Path) -> bool:
    """Whether a killed `rename` in a storage without tables had only to delete the old rows."""
    if isinstance(target, RDBStorage) or new not in optuna.get_all_study_names(target):
        return False
    known = optuna.load_study(study_name=new, storage=target).user_attrs
    return known.get(UNFINISHED) is False and known.get(FOLDER) == folder.name


def _rename_with_folder(target: BaseStorage, opened: StudyView, new: str) -> Path | None:
    """Rename the rows, or copy them, and move the folder; return where it is if it was moved."""
    folder, user = opened.folder, asked_as(opened, new)
    moved: Path | None = None
    others = optuna.get_all_study_summaries(target, include_best_trial=False)
    shared = {s.user_attrs.get(FOLDER) for s in others if s.study_name not in (opened.name, new)}
    if folder is not None and folder.name not in shared and not folder.is_symlink():
        moved = next(p for n in names_like(new) if not (p := folder.parent / n).exists())
        user[FOLDER] = moved.name

    def move() -> None:
        if folder is not None and moved is not None:
            (folder / RENAMED_FROM).write_text(opened.name, "utf-8")
            os.rename(folder, moved)

    try:
        if isinstance(target, RDBStorage):
            with renaming(target, opened.name, new, user):
                move()
        else:
            draft = copied(opened, new, [])
            draft.user, draft.move = {**draft.user, **user}, move
            draft.make(target, STUDIES.absolute())
    except BaseException as error:
        if folder is not None and moved is not None:
            if moved.is_dir() and not folder.exists():
                os.rename(moved, folder)
            with contextlib.suppress(OSError):
                (folder / RENAMED_FROM).unlink(missing_ok=True)
        if isinstance(error, OSError):
            said = f"cannot move {folder}: {error.strerror or error}; nothing was renamed"
            raise EnvironmentFault(said) from error
        raise
    return moved


def summary(view: StudyView) -> str:
    """For example ": 12 trials, outputs/studies/NAME"."""
    folder = "" if view.folder is None else f", {shown(view.folder.absolute())}"
    return f": {count(len(view.trials), 'trial')}{folder}"


# --- copy ----------------------------------------------------------------------------------------


def copy(name: str, new: str, where: str = storage.DEFAULT, to: str | None = None) -> int:
    """Copy a study with its files, in its storage or into another: every trial with its number,
    state, values, reports and attributes.

    Files go beside those of the study, into outputs/studies for another storage.

    Raises:
        InputError: there is no such study, or one of the new name; it cannot be a name.
        EnvironmentFault: a living worker runs trials of it, or files cannot be copied.
    """
    check_name("the new name", new)
    opened = open_study(name, where)
    with storage.named(opened.where), records(opened) as book:
        refuse_while_running(book.alive(), name)
    url = _url(opened) if to is None else to
    place = all_here(opened)
    root = STUDIES.absolute() if opened.folder is None or to is not None else opened.folder.parent
    found = [] if opened.folder is None else [(opened.folder, "")]
    draft = copied(opened, new, found)
    draft.user.pop(ARTIFACTS, None)
    with storage.named(url):
        target = storage.connect(url)
        try:
            draft.make(target, root)
        finally:
            storage.close(target)
        view = open_study(new, url)
        here, there = decorate.artifacts(opened.where), decorate.artifacts(view.where)
        if here.absolute() != there.absolute():
            for key in draft.system:
                source = here / key.rpartition(":")[2]
                if "artifacts:" in key and source.is_file():
                    there.mkdir(parents=True, exist_ok=True)
                    shutil.copy2(source, there / source.name)
        put_artifacts(view, place)
    had_report = report.place_of(opened).is_file()
    return conclude(view, f"copied study {name} to {new}{summary(view)}", had_report)


# --- prune-files ---------------------------------------------------------------------------------


def prune_files(
    name: str,
    where: str = storage.DEFAULT,
    *,
    keep: int = 1,
    dry_run: bool = False,
    is_sure: bool = False,
) -> int:
    """Remove models and TensorBoard logs of all but the `keep` best trials, and checkpoints of
    trials that have ended; rows, histories, configs and logs stay.

    Returns:
        The exit code: 0, or 1 where the person did not agree.

    Raises:
        InputError: there is no such study, or nobody can be asked.
        EnvironmentFault: a living worker runs trials of it, or something cannot be removed.
    """
    opened = open_study(name, where)
    folder = opened.folder
    with storage.named(opened.where), records(opened) as book:
        refuse_while_running(book.alive(), name)
        models, rest, store = [], [], opened.store
        far: dict[str, int] = {}
        if store is not None:
            far = trial_folder.spare_archives(opened.study, store, keep, opened.trials)
        if folder is not None:
            models = trial_folder.spare_models(opened.study, folder, keep, opened.trials)
            rest = trial_folder.spare_checkpoints(folder, opened.trials)
        if not models and not rest and not far:
            say(f"study {name}: no file to remove")
            return 0
        size = sum([*map(_size, [*models, *rest]), *far.values()])
        kinds = {"models": len(models), "checkpoints": len(rest)}
        if store is not None:
            kinds[f"archives in {store.where}"] = len(far)
        of = ", ".join(f"{n} {kind}" for kind, n in kinds.items() if n)
        what = f"{_bytes(size)} of study {name} (files of {of}); the best {keep} keep their models"
        if dry_run:
            say(f"would remove {what}")
            return 0
        if not is_sure and not sys.stdin.isatty():
            raise InputError("prune-files asks first and there is no terminal: add --yes")
        if not is_sure and not _agrees(f"remove {what}? [y/N] "):
            say("nothing was removed")
            return EXIT_TRAINING
        for path in [*models, *rest]:
            _remove(path)
        if store is not None:
            store.remove(far)
        book.study.set_user_attr(KEEP_MODELS, keep)
    say(f"removed {what}")
    return 0


def _size(path: Path) -> int:
    every = [path] if path.is_file() else path.rglob("*")
    return sum(file.stat().st_size for file in every if file.is_file())


def _bytes(size: float) -> str:
    for unit in ("bytes", "KB", "MB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:,.1f} GB"
