"""What is printed at the end of a sweep, and the same as a frame."""

from __future__ import annotations

import math
from io import StringIO
from typing import Any

import optuna
import pandas as pd
import pytest
import yaml
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState, create_trial
from rich.console import Console
from support import REPOSITORY

from sweepstack.analysis.terminal import show
from sweepstack.config.errors import InputError
from sweepstack.study.frame import frame
from sweepstack.study.tables import PUBLISHED, ROWS, compared, pivot, published
from sweepstack.study.view import StudyView

INITS = ["xavier_uniform", "he", "normal", "uniform", "zeros", "ones"]
ACTIVATIONS = ["relu", "tanh", "sigmoid"]
DISTRIBUTIONS = {
    "init": CategoricalDistribution(INITS),
    "model.activation": CategoricalDistribution(ACTIVATIONS),
    "training.seed": IntDistribution(0, 9),
    "optimizer.lr": FloatDistribution(1e-6, 1.0, log=True),
    "a.long.group.optimizer.weight_decay": FloatDistribution(0.0, 1.0),
    "another.long.group.regularization.dropout": FloatDistribution(0.0, 1.0),
}


def add(study: optuna.Study, value: float | None, *labels: Any, **settings: Any) -> None:
    """Add a trial with the `labels` of init, activation and seed; "params" holds others."""
    params = dict(zip(DISTRIBUTIONS, labels, strict=False)) | settings.pop("params", {})
    known = {name: DISTRIBUTIONS[name] for name in params}
    study.add_trial(create_trial(value=value, params=params, distributions=known, **settings))


def new(direction: str = "maximize") -> optuna.Study:
    study = optuna.create_study(direction=direction, study_name="grid")
    study.set_user_attr("sweepstack.identity", {"objectives": ["val_accuracy"]})
    return study


def printed(study: optuna.Study, width: int = 80) -> list[str]:
    """The lines that `show` prints, without colour."""
    console = Console(width=width, file=StringIO())
    show(StudyView(study, ""), console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    return [line.rstrip() for line in text.splitlines()]


def grid(last_seed: bool = True) -> optuna.Study:
    """6 x 3 cells of two seeds; `last_seed=False` leaves one run of he, tanh out."""
    study = new()
    for i, init in enumerate(INITS):
        for j, activation in enumerate(ACTIVATIONS):
            for seed in (0, 1):
                value = 0.5 + 0.05 * i + 0.01 * j + 0.02 * seed
                if last_seed or (init, activation, seed) != ("he", "tanh", 1):
                    add(study, value, init, activation, seed)
    return study


def test_a_pivot_holds_mean_std_and_n_in_declared_order() -> None:
    table = pivot(frame(grid(False)), "init", "model.activation")
    assert table.index.tolist() == INITS
    assert table["mean"].columns.tolist() == ACTIVATIONS
    assert table.loc["normal", ("mean", "tanh")] == pytest.approx(0.62)
    assert table.loc["normal", ("std", "tanh")] == pytest.approx(0.02 / 2**0.5)
    assert table["n"].loc["he"].tolist() == [2, 1, 2]
    assert pd.isna(table.loc["he", ("std", "tanh")])


def test_a_pivot_has_other_values_one_key_and_filters() -> None:
    study = new()
    for value, loss in [(0.1, 3.0), (0.2, 5.0)]:
        add(study, value, "he", "relu", 0, user_attrs={"val_loss": loss})
    add(study, None, "ones", "relu", 0, state=TrialState.FAIL)
    table = pivot(frame(study), "init", value="val_loss")
    assert table.loc["he"].tolist() == [4.0, pytest.approx(2**0.5), 2]
    assert table.loc["ones", "n"] == 0
    assert pivot(frame(study).query("val_loss > 4"), "init").loc["he", "mean"] == 0.2


def test_cells_that_only_failed_or_were_never_run_have_n_zero() -> None:
    study = new()
    add(study, 0.5, "he", "relu", 0)
    add(study, None, "ones", "tanh", 0, state=TrialState.FAIL)
    table = pivot(frame(study), "init", "model.activation")
    assert table["n"].to_numpy().tolist() == [[1, 0], [0, 0]]
    assert table["mean"].isna().to_numpy().tolist() == [[False, True], [True, True]]


def test_trials_that_are_means_over_seeds_are_pooled_exactly() -> None:
    runs = {"first": [0.1, 0.2, 0.6], "second": [0.5, 0.9]}
    study = new()
    for values in map(pd.Series, runs.values()):
        attributes = {"seeds": len(values), "std": float(values.std())}
        add(study, float(values.mean()), "he", user_attrs=attributes)
    every = pd.Series([*runs["first"], *runs["second"]])
    expected = [every.mean(), every.std(), 5]
    assert pivot(frame(study), "init").loc["he"].tolist() == pytest.approx(expected)


def test_a_pivot_refuses_what_it_cannot_average() -> None:
    study = new()
    add(study, 0.5, "he", user_attrs={"device": "cpu"})
    df = frame(study)
    with pytest.raises(InputError, match="no trial has inti; did you mean 'init'"):
        pivot(df, "inti")
    with pytest.raises(InputError, match="device does not hold numbers"):
        pivot(df, "init", value="device")
    df.attrs.clear()
    with pytest.raises(InputError, match="value must be said"):
        pivot(df, "init")


def test_a_grid_of_6_by_3_fits_80_columns() -> None:
    lines = printed(grid())
    assert lines[0] == "grid: val_accuracy (maximize), mean ± std, n=2"
    assert lines[2].split() == ["init", *ACTIVATIONS]
    assert [line.split()[0] for line in lines[3:]] == INITS
    assert lines[-1].endswith("0.7800 ± 0.0141*")
    assert sum(line.count("*") for line in lines) == 1
    assert max(map(len, lines)) <= 80


def test_n_stands_in_the_cells_where_it_differs_and_nothing_is_cut() -> None:
    lines = printed(grid(False))
    text = "\n".join(lines)
    assert lines[0] == "grid: val_accuracy (maximize), mean ± std"
    assert (text.count("(n=2)"), text.count("0.5600 (n=1)")) == (17, 1)
    assert "…" not in text
    assert max(map(len, lines)) <= 80
    assert text.count("xavier_uniform") == 2  # the third column stands below the first two


def test_the_best_is_the_smallest_where_it_is_minimized_and_bold() -> None:
    study = new("minimize")
    add(study, 0.25, "he")
    add(study, 0.5, "ones")
    console = Console(width=80, file=StringIO(), force_terminal=True, color_system="standard")
    show(StudyView(study, ""), console)
    assert "\x1b[1m0.2500*" in console.file.getvalue()  # type: ignore[attr-defined]
    assert printed(study)[1:] == ["init  val_accuracy", "he    0.2500*", "ones  0.5000"]


def test_cells_without_a_result_say_how_their_trials_ended() -> None:
    study = new()
    add(study, 0.5, "he", "relu")
    add(study, None, "he", "tanh", state=TrialState.FAIL)
    add(study, 0.9, "ones", "relu", state=TrialState.PRUNED)
    lines = printed(study)
    assert [line.split() for line in lines[3:5]] == [
        ["he", "0.5000*", "failed"],
        ["ones", "pruned"],
    ]
    assert lines[-1] == "1 complete, 1 pruned, 1 failed"


def test_only_seeds_swept_is_one_line() -> None:
    study = new()
    for seed, value in enumerate([0.1, 0.2, 0.3]):
        add(study, value, "he", "relu", seed)
    assert printed(study) == ["grid: val_accuracy (maximize), mean ± std, n=3: 0.2000 ± 0.1000"]


def test_continuous_keys_give_the_ten_best_configurations() -> None:
    study = new()
    for i in range(12):
        for seed in (0, 1):
            lr = {"optimizer.lr": 10.0 ** (-i / 2)}
            add(study, i / 100 + seed, "he" if i else "ones", "relu", seed, params=lr)
    lines = printed(study)
    assert lines[0].endswith("mean ± std, n=2; the best 10 of 12")
    assert lines[1].split() == ["val_accuracy", "optimizer.lr"]
    assert lines[2].split() == ["0.6100", "±", "0.7071", "3.16228e-06"]
    assert lines[12:] == ["the same in all: init=he"]


def test_a_list_has_no_column_for_a_key_of_one_value() -> None:
    study = new()
    for i in range(11):
        long = dict.fromkeys(list(DISTRIBUTIONS)[3:], i / 10) | {"optimizer.lr": 0.5}
        add(study, i / 100, "he" if i else "ones", "relu", params=long)
    lines = printed(study)
    assert lines[-1] == "the same in all: init=he"
    assert "".join(lines).count("val_accuracy") == 2  # in the title and over one table
    assert max(map(len, lines)) <= 80
    assert "…" not in "".join(lines)


def test_several_objectives_give_the_pareto_front() -> None:
    study = optuna.create_study(directions=["maximize", "minimize"], study_name="two")
    for x, values in enumerate([(0.1, 1.0), (0.9, 2.0), (0.5, 3.0)]):
        known = {"x": IntDistribution(0, 9)}
        study.add_trial(create_trial(values=values, params={"x": x}, distributions=known))
    lines = printed(study)
    assert lines[0] == "two: value_0 (maximize), value_1 (minimize); 2 of 2 on the Pareto front"
    assert [line.split() for line in lines[1:]] == [
        ["trial", "value_0", "value_1", "x"],
        ["1", "0.9000", "2.000", "1"],
        ["0", "0.1000", "1.0000", "0"],
    ]


def test_without_a_complete_trial_one_line_says_why() -> None:
    study = new()
    assert printed(study) == ["grid: no trial has completed: there are no trials"]
    for reason in ["loss is nan", "lr must be > 0,\ngot -1", "lr must be > 0,\ngot -1"]:
        add(study, None, state=TrialState.FAIL, user_attrs={"error": reason})
    add(study, 0.5, state=TrialState.PRUNED)
    assert printed(study) == [
        "grid: no trial has completed: 1 pruned, 3 failed,"
        " failed most often with: lr must be > 0, got -1"
    ]


def test_one_trial_of_a_plain_study_is_one_line() -> None:
    study = optuna.create_study(study_name="plain")
    study.optimize(lambda trial: trial.suggest_float("x", 0.5, 0.5), n_trials=1)
    assert printed(study) == ["plain: value (minimize), n=1: 0.5000"]


def test_labels_are_text_and_not_markup_nor_control_codes() -> None:
    study = optuna.create_study(study_name="[red]x")
    known = {"k": CategoricalDistribution(["[bold]a", "b\x1b[2J", None, True, 1e-7])}
    for value, label in enumerate(known["k"].choices):
        study.add_trial(create_trial(value=value, params={"k": label}, distributions=known))
    lines = printed(study)
    assert lines[0].startswith("[red]x:")
    names = [line.split()[0] for line in lines[2:]]
    assert names == ["[bold]a", "b", "null", "true", "1e-07"]


def test_what_breaks_a_constraint_is_not_shown_as_best():
    study = new()
    for value, violation in ((0.9, 5.0), (0.8, -1.0)):
        trial = study.ask(DISTRIBUTIONS)
        trial.set_constraint("num_parameters", violation)
        study.tell(trial, value)
    text = "\n".join(printed(study))
    assert "0.8000" in text
    assert "0.9000" not in text
    assert "1 infeasible" in text
    assert list(frame(study)["feasible"]) == [False, True]


def test_the_longer_side_of_a_pivot_goes_down():
    study = new()
    for activation in ("relu", "tanh", "sigmoid"):
        add(study, 0.5, "he", activation)
        add(study, 0.5, "ones", activation)
    assert "down: model.activation, across: init" in printed(study)


def tied(direction: str) -> optuna.Study:
    """Six trials: the best value came in twice, first with the value that was declared last."""
    study = new(direction)
    best = 1.0 if direction == "maximize" else 0.0
    for number, init in enumerate(("he", "ones", "zeros", "uniform", "xavier_uniform", "normal")):
        value = best if init in ("ones", "xavier_uniform") else 0.5
        add(study, value, init, params={"optimizer.lr": 0.1 + 0.01 * number})
    return study


@pytest.mark.parametrize("direction", ["maximize", "minimize"])
def test_of_equal_trials_the_earlier_is_first_wherever_the_best_are_picked(direction) -> None:
    import sweepstack
    from sweepstack.reporting.overview import Line
    from sweepstack.reporting.report import content
    from sweepstack.study.read import best_trials

    study = tied(direction)
    opened = StudyView(study, "memory")
    df = opened.frame
    expected = [1, 4, 0, 2, 3, 5]
    assert sweepstack.best(df)["number"].tolist() == expected
    assert [trial.number for trial in best_trials(study)] == expected
    rows = [line.split() for line in printed(study)]
    shown = [int(row[0]) for row in rows if row and row[0].isdigit()]
    assert shown == expected
    assert [int(numbers[0]) for numbers in opened.configurations[".numbers"]] == expected
    assert opened.best_first(opened.good)["number"].tolist() == expected
    assert "(trial 1)" in Line.of(opened).best
    assert "trial 1" in content.tiles(opened)[0][1]
    table = content.best_table(opened)
    assert table is not None
    assert [int(row[0].text) for row in table.rows] == expected
    assert table.command == "sweepstack-study rerun grid 1 --storage memory"
    # An order of rows that a person chose is no reason for another best.
    turned = df.iloc[::-1]
    assert sweepstack.best(turned)["number"].tolist() == expected


def test_the_front_is_ordered_by_its_objectives_then_by_the_earlier_trial() -> None:
    from sweepstack.study.read import best_rows, best_trials

    study = optuna.create_study(directions=["maximize", "minimize"], study_name="front")
    for values in ((0.5, 1.0), (0.9, 3.0), (0.5, 1.0), (0.9, 3.0), (0.9, 4.0), (0.7, 2.0)):
        study.add_trial(create_trial(values=values))
    assert [trial.number for trial in best_trials(study)] == [1, 3, 5, 0, 2]
    assert best_rows(frame(study))["number"].tolist() == [1, 3, 5, 0, 2]
    rows = [line.split() for line in printed(study)]
    assert [int(row[0]) for row in rows if row and row[0].isdigit()] == [1, 3, 5, 0, 2]


def test_a_key_of_one_value_is_neither_a_column_nor_an_axis() -> None:
    from sweepstack.reporting.report import content

    study = new()
    for i in range(12):
        params = {"optimizer.lr": 0.1 + 0.01 * i}
        if i % 2:
            params["training.seed"] = 3
        add(study, i / 100, "he" if i else "ones", "relu", params=params)
    lines = printed(study, 200)
    assert lines[1].split() == ["trial", "val_accuracy", "optimizer.lr"]
    assert lines[-1] == "the same in all: init=he"
    opened = StudyView(study, "memory")
    table = content.best_table(opened)
    assert table is not None
    assert "init" not in [cell.text for cell in table.head]
    assert table.caption.endswith("the same in all: init he")
    assert opened.varied == ["init", "optimizer.lr"]
    assert opened.varied_seeds == []
    swept = dict(content.facts(opened))["Swept"]
    assert "model.activation" not in swept
    assert "init" in swept


def test_one_complete_trial_of_four_gives_a_table_and_a_report(tmp_path) -> None:
    from sweepstack.reporting import report

    study = new()
    for i in range(3):
        attrs = {"error": "\x1b[31mtrain_loss became nan\x1b[0m"}
        add(study, None, INITS[i], state=TrialState.FAIL, user_attrs=attrs)
    add(study, 0.5, "ones")
    lines = printed(study)
    assert lines[-1] == "1 complete, 3 failed, failed most often with: train_loss became nan"
    page = report.write(StudyView(study, "memory"), tmp_path / "s.html").read_text()
    assert "\x1b" not in page
    assert "[31m" not in page
    assert "0.5000" in page


def test_the_published_rows_are_compared_in_standard_deviations_of_a_seed():
    theirs = pd.read_csv(ROWS).set_index("name")
    one, other = theirs.index[[0, 2]]
    keys = [key for key in dict.fromkeys(PUBLISHED.values()) if key != "model.hidden"]
    columns = {key: name for name, key in PUBLISHED.items() if key in keys}
    rows = []
    for name, val in ((one, 0.93), (one, 0.95), (other, 0.90), (other, 0.90), (other, 0.93)):
        row = theirs.loc[name]
        shape = f"[{','.join([str(row['hidden'])] * row['layers'])}]"
        known = {key: row[column] for key, column in columns.items()}
        accuracies = {"val_accuracy": val, "test_accuracy": val - 0.01}
        rows.append({"state": "complete", "model.hidden": shape, **known, **accuracies})
    rows.append({**rows[0], "state": "failed", "val_accuracy": math.nan})
    rows.append({**rows[0], "batch.size": 128})  # another row, which the course does not print
    table = compared(pd.DataFrame(rows)).set_index("name")

    assert list(table.index) == [one, other]
    assert table["n"].tolist() == [2, 3]
    assert table["val_accuracy"].tolist() == pytest.approx([0.94, 0.91])
    assert table["val_accuracy_published"].tolist() == [0.9333, 0.9322]
    pooled = math.sqrt((2 * 0.01**2 + 2 * 0.01**2 + 0.02**2) / 3)
    assert table["test_accuracy_std"][one] == pytest.approx(0.02 / math.sqrt(2))
    assert table["val_accuracy_in_std"][other] == pytest.approx((0.91 - 0.9322) / pooled)

    assert compared(pd.DataFrame(rows[:1]))["val_accuracy_in_std"].isna().all()  # one seed
    assert compared(pd.DataFrame(rows[-1:])).empty
    assert compared(pd.DataFrame(rows).drop(columns="init")).empty


def test_the_sweep_of_the_published_rows_has_each_of_them_with_three_seeds():
    sweep = yaml.safe_load((REPOSITORY / "sweeps" / "published_rows.yaml").read_text())["hydra"]
    points = pd.DataFrame(sweep["sweeper"]["enqueue"])
    known = set(sweep["sweeper"]["params"])
    assert set(points) == known
    assert len(points) == sweep["sweeper"]["n_trials"]
    points["model.hidden"] = points["model.hidden"].map(str)
    runs = pd.DataFrame({"name": published(points)["name"], "seed": points["training.seed"]})
    theirs = pd.read_csv(ROWS)
    assert sorted(set(runs["name"])) == sorted(theirs["name"])
    assert {tuple(seeds) for _, seeds in runs.groupby("name")["seed"]} == {(0, 1, 2)}


def test_what_a_study_shares_with_the_published_rows_is_printed():
    points = {"optimizer.lr": 0.01, "optimizer.momentum": 0.0, "optimizer.nesterov": False}
    points |= {"init": "he", "model.activation": "relu", "model.hidden": "[100]"}
    points |= {"optimizer": "adam", "batch.size": 64}
    space = {key: CategoricalDistribution([value]) for key, value in points.items()}
    study = optuna.create_study(direction="maximize")
    study.set_user_attr("sweepstack.identity", {"objectives": ["val_accuracy"]})
    for accuracy in (0.93, 0.92):
        attributes = {"test_accuracy": accuracy}
        trial = create_trial(
            value=accuracy, params=points, distributions=space, user_attrs=attributes
        )
        study.add_trial(trial)
    out = StringIO()
    show(StudyView(study, ""), Console(file=out, width=120))
    (line,) = (text for text in out.getvalue().splitlines() if text.startswith("he-relu"))
    words = line.split()
    assert words[:2] == ["he-relu-1-0.01-0.0-5-64-100-adam-False", "2"]
    assert words[2:7] == ["0.9250", "±", "0.0071", "0.9333", "-1.2"]
