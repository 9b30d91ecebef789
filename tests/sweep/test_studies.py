"""A study is gone on with only where it asks the same question."""

from __future__ import annotations

import sqlite3
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages import RDBStorage
from optuna.trial import TrialState

from sweepstack import storage as storages
from sweepstack.config.errors import EnvironmentFault, InputError
from sweepstack.study.attributes import RETRIED, WORKER
from sweepstack.study.book import processes
from sweepstack.sweep import plan, studies
from sweepstack.sweep.studies import open_study

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
    open_study(storage, "grid", ["maximize"], IDENTITY).add_trial(optuna.create_trial(value=1.0))
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


@pytest.mark.parametrize("direction", ["maximize", "minimize"])
def test_an_empty_study_of_the_dashboard_is_taken_over(storage: RDBStorage, direction: str) -> None:
    optuna.create_study(storage=storage, study_name="grid", direction=direction)
    open_study(storage, "grid", ["maximize"], IDENTITY).add_trial(optuna.create_trial(value=1.0))
    with pytest.raises(InputError):
        open_study(storage, "grid", ["maximize"], other(objective="val_loss"))


def test_a_study_of_another_program_is_refused(storage: RDBStorage) -> None:
    study = optuna.create_study(storage=storage, study_name="grid", direction="maximize")
    study.add_trial(optuna.create_trial(value=1.0))
    with pytest.raises(InputError) as caught:
        open_study(storage, "grid", ["maximize"], IDENTITY)
    why = "it was not made by a sweep of sweepstack, so its search space is not known"
    assert caught.value.mistakes[1:] == [why]


@pytest.mark.parametrize(("worker", "is_taken"), [("gone", True), ("here", False), (None, False)])
def test_a_study_without_a_finished_trial_takes_a_new_question(
    storage: RDBStorage, caplog: pytest.LogCaptureFixture, worker: str | None, is_taken: bool
) -> None:
    study = open_study(storage, "grid", ["maximize"], IDENTITY)
    study.enqueue_trial({"lr": 0.1})
    lost = optuna.create_trial(state=TrialState.FAIL, user_attrs={RETRIED: True})
    study.add_trial(lost)
    here = processes.this_process()
    name = here if worker == "here" else f"{here}9"  # a pid's start time that never was
    attrs = {} if worker is None else {WORKER: name}
    study.add_trial(optuna.create_trial(state=TrialState.RUNNING, user_attrs=attrs))

    if not is_taken:
        with pytest.raises(InputError):
            open_study(storage, "grid", ["minimize", "maximize"], other(objective="val_loss"))
        assert len(study.get_trials()) == 3
        return
    again = open_study(storage, "grid", ["minimize", "maximize"], other(objective="val_loss"))
    assert (again.trials, len(again.directions)) == ([], 2)
    assert [r.message for r in caplog.records if "takes the new question" in r.message]


@pytest.mark.parametrize("scheme", ["sqlite", "journal"])
def test_a_sweep_whose_study_took_another_question_before_it_began_runs_nothing(
    tmp_path: Path, scheme: str
) -> None:
    """The jobs of the first wait in a queue; SQLite gives the new study the row id of the old."""
    url = f"{scheme}:///{tmp_path}/studies"

    def begun(**changes: Any) -> studies.Book:
        opened, identity = storages.connect(url), other(**changes)
        asked = plan.read({"storage": url, "study_name": "grid"}, ["lr=0,1"], "app")
        asked = replace(asked, objectives=("value",), directions=("maximize",), identity=identity)
        study = open_study(opened, "grid", ["maximize"], identity)
        return studies.open_book(asked, study, opened, lambda number: 0)

    first, second = begun(), begun(seeds=2)
    with pytest.raises(EnvironmentFault, match="study grid "):
        first.claim()
    assert not studies.delete_idle(first)
    assert second.study.get_trials() == []

    (trial,) = second.claim()
    assert not studies.delete_idle(second)
    with pytest.raises(InputError):
        begun(seeds=3)
    assert [trial.number for trial in second.study.get_trials()] == [trial.number]
