"""What tests of `sweepstack-study rerun` share: the command in this process, edits of a study."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import pytest

from sweepstack import storage
from sweepstack.cli import study as cli

FIT = (
    *("data=quadratic", "optimizer=sgd", "model.hidden=[4]", "training.device=cpu"),
    *("training.max_steps=24", "training.eval_every=4", "hydra.sweeper.study_name=s"),
)
"""A question that takes milliseconds."""
NULL: Any = object()
"""A value for `edit`."""
STACK = ("training.width=4", "optimizer.lr=0.01,0.02,0.03,0.04")

_SWEPT: dict[tuple[str, ...], Path] = {}


def sweep(main: Any, *words: str) -> None:
    """`sweepstack -m WORDS` in the working folder, trained once for all tests."""
    if words in _SWEPT:
        shutil.copytree(_SWEPT[words], "outputs")
        return
    assert main("-m", *words).code == 0
    here = Path.cwd()
    kept = here.with_name(f"{here.name}_kept")
    shutil.copytree("outputs", kept)
    _SWEPT[words] = kept


@dataclass
class Said:
    """What the command left: its exit code and what it printed."""

    code: int
    out: str
    err: str

    @property
    def verdict(self) -> str:
        """The last line."""
        return self.out.splitlines()[-1]

    @property
    def line(self) -> str:
        """The only line of stderr."""
        [line] = self.err.splitlines()
        return line


def study(name: str = "s") -> optuna.Study:
    """A study of the working folder."""
    return optuna.load_study(study_name=name, storage=storage.connect(storage.DEFAULT))


def execute(statement: str, values: Sequence[Any] = ()) -> list[Any]:
    """SQL in the database of the working folder."""
    with closing(sqlite3.connect("outputs/studies.db")) as db, db:
        return db.execute(statement, values).fetchall()


def edit(number: int, **attributes: Any) -> None:
    """Change what the database keeps of a trial; None removes it, `NULL` is JSON's null. `__`
    stands for a dot."""
    [[trial]] = execute("SELECT trial_id FROM trials WHERE number = ?", [number])
    for name, value in attributes.items():
        key, mine = name.replace("__", "."), "trial_id = ? AND key = ?"
        execute(f"DELETE FROM trial_user_attributes WHERE {mine}", [trial, key])
        if value is not None:
            text = json.dumps(None if value is NULL else value)
            row, columns = [trial, key, text], "(trial_id, key, value_json)"
            execute(f"INSERT INTO trial_user_attributes {columns} VALUES (?, ?, ?)", row)


def edit_study(key: str, value: Any) -> None:
    """Change what the database keeps of the study."""
    change = "UPDATE study_user_attributes SET value_json = ? WHERE key = ?"
    execute(change, [json.dumps(value), key])


def forget_folders() -> None:
    """As on another machine: the database alone."""
    shutil.rmtree("outputs/studies")


def words_of(number: int) -> list[str]:
    """The overrides that are recorded of a trial."""
    return list(study().trials[number].user_attrs["sweepstack.overrides"])


def reruns() -> list[str]:
    """Names of the folders that reruns left."""
    place = Path("outputs/reruns")
    return sorted(path.name for path in place.iterdir()) if place.exists() else []


def metrics(folder: str = "s-0") -> dict[str, Any]:
    """What a rerun wrote of its metrics."""
    return json.loads(Path("outputs/reruns", folder, "metrics.json").read_text())


@pytest.fixture
def stacked(main):
    """Four trials of one stack, as the study s."""
    sweep(main, *FIT, *STACK)


@pytest.fixture
def again(capsys):
    """`again("s", "0")` is `sweepstack-study rerun s 0`."""

    def run(*words: str) -> Said:
        capsys.readouterr()
        try:
            cli.main(["rerun", *words])
        except SystemExit as stop:
            code = stop.code
        printed = capsys.readouterr()
        assert "Traceback" not in printed.err
        return Said(code, printed.out, printed.err)

    return run
