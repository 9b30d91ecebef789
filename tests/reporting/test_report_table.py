"""The report's table of all trials, and the names and columns of the published one."""

from __future__ import annotations

import optuna
import pandas as pd
import pytest
from report_support import new, opened, published_grid

from sweepstack.config.errors import InputError
from sweepstack.reporting.report import content
from sweepstack.study.tables import applies, published


def test_the_table_has_the_published_columns_and_the_rest():
    columns, same = content.trials(published_grid(256))
    titles = [column["t"] for column in columns]
    expected = "name val_accuracy test_accuracy activation init batch layers hidden lr momentum"
    assert titles[:12] == ["number", *expected.split(), "optimizer"]
    assert titles[12:] == ["nesterov", "state", "val_loss", "train_loss", "test_loss", "worker"]
    assert [column["t"] for column in columns if column.get("x")] == ["test_loss", "worker"]
    assert same[0] == ("device", "cpu")
    assert same[-1] == ("started", "2026-11-22 04:23:00")


def test_the_table_keeps_infinity_and_what_is_missing():
    study = new()
    for value in (1.5, float("inf"), -float("inf")):
        study.add_trial(optuna.create_trial(value=value))
    study.add_trial(optuna.create_trial(state=optuna.trial.TrialState.PRUNED))
    columns = content.trials(opened(study))[0]
    [values] = [column["v"] for column in columns if column["t"] == "value"]
    assert values == [1.5, "Infinity", "-Infinity", None]


def test_the_objective_is_shown_with_its_own_test_metric():
    study = new()
    study.set_user_attr("sweepstack.identity", {"objectives": ["val_f1_macro"]})
    for index in range(2):
        found = {"test_accuracy": 0.7, "test_f1_macro": 0.6 + 0.1 * index}
        study.add_trial(optuna.create_trial(value=0.5 + index / 4, user_attrs=found))
    view = opened(study)
    assert ("0.6500 ± 0.0707", "its test_f1_macro") in content.tiles(view)
    assert [cell.text for cell in content.best_table(view).head][1:4] == [
        *("val_f1_macro", "test_f1_macro", "test_accuracy")
    ]


def test_published_rows_are_named_as_in_the_course():
    df = published_grid(256).frame
    assert applies(df)
    rows = published(df)
    assert rows["name"][0] == "he-relu-1-0.1-0.0-5-64-100-adam-False"
    assert rows["name"].nunique() == 256
    two = rows[rows["layers"] == 2]
    assert set(two["hidden"]) == {50}
    assert len(two) == 128
    with pytest.raises(InputError, match=r"no trial has optimizer\.lr"):
        published(df.drop(columns="optimizer.lr"))


def test_published_rows_name_layers_of_different_widths():
    df = published_grid(2).frame
    df["model.hidden"] = ["[100,50]", "deep"]
    rows = published(df)
    assert rows["hidden"].tolist() == ["100-50", "deep"]
    assert rows["layers"][0] == 2
    assert pd.isna(rows["layers"][1])
