"""Made-up studies for the tests of the doctor: a space, and what each trial came to."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import TrialState, create_trial

from sweepstack import storage as storages
from sweepstack.analysis.doctor import Finding, examine
from sweepstack.config.space import declare
from sweepstack.study.view import StudyView

STEPS = 100
CONFIG: dict[str, Any] = {
    "schedule": {"name": "constant", "warmup_steps": 0},
    "regularization": {"dropout": 0.0, "weight_decay": 0.0},
    "training": {"max_steps": STEPS, "max_epochs": 30},
}


def made(
    arguments: Sequence[str],
    trials: Sequence[Mapping[str, Any]],
    *,
    params: Mapping[str, Any] | None = None,
    asked: Mapping[str, Any] | None = None,
    direction: str = "maximize",
    storage: str | None = None,
    name: str = "made",
) -> StudyView:
    """A study of sweepstack as the sweeper leaves it.

    Args:
        arguments: the sweep's, with what is swept.
        trials: each with "params" (by Optuna's name), and "value", or "state"; "attrs", "curve".
        params: `hydra.sweeper.params`.
        asked: changes what the study keeps of how it was asked.
    """
    parsed = declare.parse(arguments, params)
    kept = storage and storages.connect(storage)
    study = optuna.create_study(direction=direction, storage=kept, study_name=name)
    signature = parsed.signature()
    identity = {"space": signature, "objectives": ["val_accuracy"], "config": CONFIG}
    study.set_user_attr("sweepstack.identity", identity)
    told = {
        "arguments": list(arguments),
        "application": {"name": "sweepstack", "config_dir": None, "config_name": "config"},
        "sampler": {"name": "tpe", "seed": 0},
        "pruner": {"name": "none"},
        "n_trials": len(trials),
        "grid": parsed.is_finite,
    }
    study.set_user_attr("sweepstack.sweep", {**told, **(asked or {})})
    study.add_trials([_trial(signature, trial) for trial in trials])
    return StudyView(study, "memory", kept or None)


def _trial(signature: Mapping[str, Any], trial: Mapping[str, Any]) -> optuna.trial.FrozenTrial:
    state = trial.get("state", TrialState.COMPLETE)
    names = trial["params"]
    return create_trial(
        state=state,
        value=trial.get("value"),
        params=dict(names),
        distributions={key: _distribution(signature[key]) for key in names},
        intermediate_values=dict(trial.get("curve", {})),
        user_attrs=dict(trial.get("attrs", {})),
    )


def _distribution(entry: Mapping[str, Any]) -> BaseDistribution:
    if entry["kind"] == "choice":
        return CategoricalDistribution(entry["choices"])
    if entry["kind"] == "int":
        return IntDistribution(entry["low"], entry["high"], entry["log"], entry["step"] or 1)
    return FloatDistribution(entry["low"], entry["high"], entry["log"], entry["step"])


def with_histories(
    opened: StudyView, folder: Path, histories: Mapping[int, Sequence[Mapping[str, float]]]
) -> StudyView:
    """The same study beside a folder of its trials with a history.csv each."""
    opened.study.set_user_attr("sweepstack.folder", "made")
    for number, rows in histories.items():
        place = folder / "studies" / "made" / str(number)
        place.mkdir(parents=True)
        with (place / "history.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    return StudyView(opened.study, str(folder / "studies.db"))


def said(opened: StudyView, kind: str, *levels: str) -> list[Finding]:
    """Findings of a kind, by default problems and hints."""
    wanted = levels or ("problem", "hint")
    return [f for f in examine(opened) if f.kind == kind and f.level in wanted]


def loud(opened: StudyView) -> list[Finding]:
    """What is no mere fact."""
    return [finding for finding in examine(opened) if finding.level != "fact"]
