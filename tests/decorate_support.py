"""Made-up studies for the tests of `decorate`, in a database and in a journal, and what
they show."""

from __future__ import annotations

from pathlib import Path

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import create_trial
from optuna_dashboard._note import get_note_from_system_attrs

from sweepstack import storage
from sweepstack.reporting.dashboard import decorate
from sweepstack.study.view import StudyView, open_study

INITS, ACTIVATIONS = ["he", "xavier"], ["relu", "tanh"]
DISTRIBUTIONS = {
    "init": CategoricalDistribution(INITS),
    "model.activation": CategoricalDistribution(ACTIVATIONS),
    "lr": FloatDistribution(0.0, 1.0),
}


@pytest.fixture(autouse=True)
def quick_report(request, monkeypatch):
    """A report of one line; it has tests of its own, and one test here that takes the real one."""

    def write(opened: StudyView, path: Path) -> Path:
        path.write_text(f"{len(opened.frame)} trials")
        return path

    if "whole_report" not in request.fixturenames:
        monkeypatch.setattr(decorate.report, "write", write)


@pytest.fixture
def whole_report() -> None:
    """Asks for the real report."""


@pytest.fixture(params=["sqlite", "journal"])
def where(request, tmp_path) -> str:
    outputs = tmp_path / "outputs"
    outputs.mkdir()
    name = "studies.db" if request.param == "sqlite" else "studies.log"
    return f"sqlite:///{outputs / name}" if request.param == "sqlite" else str(outputs / name)


def connected(where: str) -> optuna.storages.BaseStorage:
    if "://" in where:
        return storage.connect(where)
    return JournalStorage(JournalFileBackend(where))


def new(where: str, name: str = "s", **attributes) -> optuna.Study:
    study = optuna.create_study(storage=connected(where), study_name=name, direction="maximize")
    asked = {
        "arguments": ["init=he,xavier", "optimizer.lr=tag(log, interval(1e-4,1))"],
        "application": {"name": "sweepstack"},
        "sampler": {"name": "tpe", "seed": 0},
    }
    study.set_user_attr("sweepstack.sweep", asked)
    study.set_user_attr("sweepstack.identity", {"objectives": ["val_accuracy"]})
    for key, value in attributes.items():
        study.set_user_attr(f"sweepstack.{key}", value)
    return study


def add(study: optuna.Study, value: float | None = 0.5, **settings) -> None:
    number = len(study.trials)
    params = {"init": INITS[number % 2], "model.activation": ACTIVATIONS[number // 2 % 2]}
    attributes = {
        "sweepstack.overrides": [f"init={params['init']}", f"optimizer.lr=0.{number + 1}"]
    }
    study.add_trial(
        create_trial(
            value=value,
            params=params,
            distributions={name: DISTRIBUTIONS[name] for name in params},
            user_attrs={**attributes, "val_loss": 1.25, **settings.pop("user_attrs", {})},
            **settings,
        )
    )


def rows(study: optuna.Study) -> dict[str, object]:
    return study._storage.get_study_system_attrs(study._study_id)


def decorated(where: str, name: str = "s", **settings) -> bool:
    return decorate.decorate(open_study(name, where), **settings)


def note(study: optuna.Study, number: int) -> str:
    return get_note_from_system_attrs(rows(study), study.trials[number]._trial_id)["body"]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "outputs/artifacts").iterdir()}
