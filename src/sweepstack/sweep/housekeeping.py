"""`sweepstack-study delete`: a study's rows, the folder of its trials, its report and its
artifacts.

All of it goes while the study is held: no worker can take a trial meanwhile, and
where a file cannot be removed the rows stay, so that the same command can be given again.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import optuna

from sweepstack.config.errors import EXIT_TRAINING, EnvironmentFault, InputError, one_line
from sweepstack.reporting import report
from sweepstack.reporting.dashboard import decorate
from sweepstack.runs.progress import say, shown
from sweepstack.study import storage
from sweepstack.study.attributes import FOLDER
from sweepstack.study.book.book import Book
from sweepstack.study.read import trials_of
from sweepstack.study.view import StudyView, open_study
from sweepstack.sweep.studies import book_of


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
    with storage.named(opened.where), _book(opened) as book:
        _refuse_while_running(book.alive(), name)
        paths = list(_paths(opened, book))
        what = ", ".join(
            [f"{len(trials_of(opened.study))} trials", *(str(shown(p.absolute())) for p in paths)]
        )
        if not is_sure and not _agrees(f"delete study {name} ({what})? [y/N] "):
            say("nothing was deleted")
            return EXIT_TRAINING
        paths += _artifacts(opened, book)  # before the study is held: a second reader would wait
        with book.deletion() as alive:
            _refuse_while_running(alive, name)
            for path in paths:
                _remove(path)
    say(f"deleted study {name}: {what}")
    return 0


@contextlib.contextmanager
def _book(opened: StudyView) -> Iterator[Book]:
    """The records of a study, opened to write."""
    where = opened.where if "://" in opened.where else f"journal:///{opened.where}"
    target = storage.connect(where)
    try:
        study = optuna.load_study(study_name=opened.name, storage=target)
        yield book_of(target)(study, target, None)
    finally:
        storage.close(target)


def _refuse_while_running(alive: Sequence[str], name: str) -> None:
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


def _artifacts(opened: StudyView, book: Book) -> Iterator[Path]:
    """The files that the dashboard shows of a study; their names come from the database."""
    known = book.storage.get_study_system_attrs(book.study_id)
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
