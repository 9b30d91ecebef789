"""A study is gone on with only where it asks the same question."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages import RDBStorage

from iolaus import storage as storages
from iolaus.errors import InputError
from iolaus.sweep.studies import open_study

IDENTITY = {
    "space": {"lr": ["log", 1e-4, 0.1], "init": ("he", "xavier")},
    "objective": "val_accuracy",
    "seeds": 1,
    "directions": ["maximize"],
}


@pytest.fixture
def storage(tmp_path: Path) -> RDBStorage:
    return storages.connect(f"sqlite:///{tmp_path}/studies.db")


def rows(storage: RDBStorage) -> list[str]:
    connection = sqlite3.connect(str(storage.engine.url.database))
    try:
        return list(connection.iterdump())
    finally:
        connection.close()


def other(**changes: Any) -> dict[str, Any]:
    return {**IDENTITY, **changes}


def test_a_study_is_made_once_and_gone_on_with(storage: RDBStorage) -> None:
    study = open_study(storage, "grid", ["maximize"], IDENTITY)
    study.add_trial(optuna.create_trial(value=0.5))
    again = open_study(storage, "grid", ["maximize"], IDENTITY)
    assert again.best_value == 0.5
    assert again.direction == optuna.study.StudyDirection.MAXIMIZE


@pytest.mark.parametrize(
    ("identity", "lines"),
    [
        (
            other(space={"lr": ["log", 1e-4, 0.2], "init": ["he", "xavier"]}),
            ['space.lr: ["log", 0.0001, 0.1] in the study, now ["log", 0.0001, 0.2]'],
        ),
        (
            other(space={"lr": ["log", 1e-4, 0.1], "init": ["xavier", "he"]}),
            ['space.init: ["he", "xavier"] in the study, now ["xavier", "he"]'],
        ),
        (
            other(seeds=1.0),
            ["seeds: 1 in the study, now 1.0"],
        ),
        (
            other(space={"momentum": [0, 0.9], "init": ["he", "xavier"]}, directions=["minimize"]),
            [
                "space.momentum: not in the study, now [0, 0.9]",
                'space.lr: ["log", 0.0001, 0.1] in the study, not set now',
                'directions: ["maximize"] in the study, now ["minimize"]',
            ],
        ),
    ],
)
def test_another_question_is_refused_and_nothing_written(
    storage: RDBStorage, identity: dict[str, Any], lines: list[str]
) -> None:
    open_study(storage, "grid", ["maximize"], IDENTITY)
    before = rows(storage)
    with pytest.raises(InputError) as caught:
        open_study(storage, "grid", identity["directions"], identity)
    assert caught.value.mistakes[0].startswith("study 'grid' has trials of another sweep;")
    assert caught.value.mistakes[1:] == lines
    assert rows(storage) == before


def test_another_question_can_have_a_new_study_and_finds_it_again(storage: RDBStorage) -> None:
    def opened(objective: str) -> str:
        identity = other(objective=objective)
        return open_study(storage, "grid", ["maximize"], identity, "new").study_name

    assert [opened(o) for o in ("a", "b", "c", "b", "a")] == [
        "grid",
        "grid_2",
        "grid_3",
        "grid_2",
        "grid",
    ]


def test_an_empty_study_of_the_dashboard_is_taken_over(storage: RDBStorage) -> None:
    optuna.create_study(storage=storage, study_name="grid", direction="maximize")
    open_study(storage, "grid", ["maximize"], IDENTITY)
    with pytest.raises(InputError):
        open_study(storage, "grid", ["maximize"], other(objective="val_loss"))


@pytest.mark.parametrize(
    ("direction", "trials", "line"),
    [
        ("maximize", 1, "it was not made by a sweep of iolaus, so its search space is not known"),
        ("minimize", 0, 'directions: ["minimize"] in the study, now ["maximize"]'),
    ],
)
def test_a_study_of_another_program_is_refused(
    storage: RDBStorage, direction: str, trials: int, line: str
) -> None:
    study = optuna.create_study(storage=storage, study_name="grid", direction=direction)
    study.add_trials([optuna.create_trial(value=1.0)] * trials)
    with pytest.raises(InputError) as caught:
        open_study(storage, "grid", ["maximize"], IDENTITY)
    assert caught.value.mistakes[1:] == [line]
