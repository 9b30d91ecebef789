"""A study becomes a frame with one row per trial and one column per swept key."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import optuna
import pandas as pd
import pytest
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import TrialState, create_trial

from sweepstack.study.frame import frame, ranks
from sweepstack.study.keys import objectives, swept_keys


def choice(key: str, *labels: Any, **when: list[str]) -> dict[str, Any]:
    texts = [str(label) for label in labels]
    return {"key": key, "kind": "choice", "choices": list(labels), "texts": texts, "when": when}


SPACE = {
    "optimizer": choice("optimizer", "sgd", "adam"),
    "optimizer.lr[optimizer=sgd]": {
        **{"key": "optimizer.lr", "kind": "float", "low": 0.01, "high": 1.0, "log": True},
        **{"step": None, "when": {"optimizer": ["sgd"]}},
    },
    "optimizer.lr[optimizer=adam]": choice("optimizer.lr", 0.001, 0.01, optimizer=["adam"]),
    "optimizer.momentum": choice("optimizer.momentum", 0, 0.9, optimizer=["sgd"]),
    "training.clip": choice("training.clip", None, 1.0),
    "batch.size": choice("batch.size", 64, 32),
}
LR: dict[str, BaseDistribution] = {
    "sgd": FloatDistribution(0.01, 1.0, log=True),
    "adam": CategoricalDistribution([0.001, 0.01]),
}


def add(study: optuna.Study, params: dict[str, Any], **settings: Any) -> None:
    """Add a complete trial of SPACE; `settings` are those of `create_trial`."""
    known: dict[str, BaseDistribution] = {
        name: CategoricalDistribution(entry["choices"])
        for name, entry in SPACE.items()
        if entry["kind"] == "choice"
    }
    known["optimizer.lr[optimizer=sgd]"] = LR["sgd"]
    distributions = {name: known[name] for name in params}
    study.add_trial(create_trial(params=params, distributions=distributions, **settings))


@pytest.fixture
def study() -> optuna.Study:
    study = optuna.create_study(direction="maximize", study_name="sweep")
    study.set_user_attr("sweepstack.identity", {"space": SPACE, "objectives": ["val_accuracy"]})
    sgd = {"optimizer": "sgd", "optimizer.lr[optimizer=sgd]": 0.1, "optimizer.momentum": 0.9}
    adam = {"optimizer": "adam", "optimizer.lr[optimizer=adam]": 0.001}
    seen = {
        "val_accuracy": 0.2,
        "val_loss": 0.5,
        "optimizer": "taken",
        "sweepstack.worker": "host:1",
    }
    add(study, {**sgd, "training.clip": None, "batch.size": 64}, value=0.9, user_attrs=seen)
    add(study, {**adam, "training.clip": 1.0, "batch.size": 32}, value=0.8)
    pruned = {"value": 0.99, "intermediate_values": {10: 0.99}, "state": TrialState.PRUNED}
    add(study, {**adam, "batch.size": 32}, user_attrs={"val_accuracy": 0.99}, **pruned)
    add(study, sgd, state=TrialState.FAIL, user_attrs={"error": "loss is nan"})
    add(study, sgd, state=TrialState.FAIL, user_attrs={"sweepstack.retried": True})
    study.enqueue_trial({"optimizer": "sgd"})
    return study


def test_each_trial_is_a_row_unless_another_replaces_it(study: optuna.Study) -> None:
    df = frame(study)
    assert df["number"].tolist() == [0, 1, 2, 3, 5]
    assert df["state"].tolist() == ["complete", "complete", "pruned", "failed", "waiting"]
    every = frame(study, retried=True)
    assert every["number"].tolist() == [0, 1, 2, 3, 4, 5]
    assert every["retried"].tolist() == [False, False, False, False, True, False]


def test_cases_of_one_key_are_one_column_in_declared_order(study: optuna.Study) -> None:
    names = ["optimizer", "optimizer.lr", "optimizer.momentum", "training.clip", "batch.size"]
    df = frame(study)
    assert list(swept_keys(study, study.trials)) == names
    assert df.columns.tolist()[:8] == ["number", "state", "val_accuracy", *names]
    assert df["optimizer.lr"].tolist()[:4] == [0.1, 0.001, 0.001, 0.1]
    assert df["optimizer.lr"].dtype == "float64"
    assert df["batch.size"].dtype == "float64"
    assert df["optimizer.momentum"].isna().tolist() == [False, True, True, False, True]


def test_a_choice_of_none_is_not_a_missing_key(study: optuna.Study) -> None:
    clip = frame(study)["training.clip"]
    assert clip.tolist()[:2] == ["null", 1.0]
    assert clip.isna().tolist() == [False, False, True, True, True]


def test_only_complete_trials_have_an_objective(study: optuna.Study) -> None:
    df = frame(study)
    assert df["val_accuracy"].tolist()[:2] == [0.9, 0.8]
    assert df["val_accuracy"].isna().tolist() == [False, False, True, True, True]


def test_attributes_are_columns_that_give_way_to_keys_and_objectives(study: optuna.Study) -> None:
    df = frame(study)
    assert df["val_loss"].tolist()[0] == 0.5
    assert df["optimizer"].tolist()[0] == "sgd"
    assert df["worker"].tolist()[0] == "host:1"
    assert df["error"].dropna().tolist() == ["loss is nan"]
    assert not [name for name in df if name.startswith("sweepstack.")]


def test_times_are_seconds_and_datetimes() -> None:
    study = optuna.create_study()
    start = datetime(2026, 11, 21, 12, 30)
    trial = create_trial(value=1.0)
    trial.datetime_start, trial.datetime_complete = start, start + timedelta(seconds=2.5)
    study.add_trial(trial)
    study.enqueue_trial({})
    df = frame(study)
    assert df["duration_s"].tolist()[0] == 2.5
    assert df["started"].tolist()[0] == pd.Timestamp(start)
    assert df[["duration_s", "started"]].isna().all(axis=1).tolist() == [False, True]


def test_a_study_of_another_program_needs_nothing_of_ours() -> None:
    study = optuna.create_study(directions=["minimize", "maximize"])
    study.optimize(lambda t: (t.suggest_int("width", 1, 8), t.suggest_float("number", 0, 1)), 3)
    df = frame(study)
    assert list(objectives(study).items()) == [("value_0", "minimize"), ("value_1", "maximize")]
    assert list(swept_keys(study, study.trials)) == ["width", "params_number"]
    assert df["number"].tolist() == [0, 1, 2]
    assert df["params_number"].tolist() == df["value_1"].tolist()
    with pytest.warns(optuna.exceptions.ExperimentalWarning):
        study.set_metric_names(["loss", "accuracy"])
    assert list(objectives(study).items()) == [("loss", "minimize"), ("accuracy", "maximize")]
    assert objectives(optuna.create_study()) == {"value": "minimize"}


@pytest.mark.parametrize("identity", [None, "x", {"space": {"lr": [1]}, "objectives": "loss"}])
def test_an_identity_that_is_not_ours_is_left_alone(identity: Any) -> None:
    study = optuna.create_study()
    study.set_user_attr("sweepstack.identity", identity)
    study.optimize(lambda t: t.suggest_float("lr", 0, 1), 1)
    assert frame(study).columns.tolist()[:4] == ["number", "state", "value", "lr"]


def test_an_empty_study_has_the_columns_of_its_space(study: optuna.Study) -> None:
    empty = optuna.create_study()
    empty.set_user_attr("sweepstack.identity", study.user_attrs["sweepstack.identity"])
    df = frame(empty)
    assert df.empty
    assert df.columns.tolist() == [*frame(study).columns[:8], "duration_s", "started"]


def test_what_is_known_of_a_key_goes_with_the_frame(study: optuna.Study) -> None:
    known = frame(study).query("state == 'complete'").attrs
    assert known["objectives"] == {"val_accuracy": "maximize"}
    assert known["study"] == "sweep"
    size, lr = known["keys"]["batch.size"], known["keys"]["optimizer.lr"]
    assert size == {"finite": True, "choices": [64, 32], "low": 32, "high": 64, "log": False}
    assert lr == {"finite": False, "choices": None, "low": 0.001, "high": 1.0, "log": True}


def test_a_whole_number_is_finite_and_a_logarithmic_one_is_not() -> None:
    study = optuna.create_study()
    distributions = {"a": IntDistribution(1, 9), "b": IntDistribution(1, 9, log=True)}
    study.add_trial(create_trial(value=0, params={"a": 1, "b": 2}, distributions=distributions))
    known = frame(study).attrs["keys"]
    assert (known["a"]["finite"], known["b"]["finite"]) == (True, False)


def test_labels_rank_as_declared_then_ascending_then_missing(study: optuna.Study) -> None:
    df = frame(study)
    [sizes, momenta], labels = ranks(df, ["batch.size", "optimizer.momentum"])
    assert labels[0][:2] == [64, 32]
    assert sizes.tolist() == [0, 1, 1, 2, 2]
    assert momenta.tolist() == [0, 1, 1, 0, 1]
    df.attrs.clear()
    assert ranks(df, ["batch.size"])[1][0][:2] == [32, 64]
