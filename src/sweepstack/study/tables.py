"""Pivots of a study (mean, std and n for each cell), its best trials, and the table of a published
course grid.

std is the sample standard deviation (divisor n - 1) over the n runs of a cell: its trials, or the
seeds of its trials where a trial is itself a mean over seeds.

The course's rows are called such as `he-relu-1-0.01-0.0-5-64-100-adam-False`: init, activation,
number of hidden layers, lr, momentum, a constant 5 of which the course does not say what it is,
batch size, hidden units, optimizer, nesterov. The sweep `mlp_mnist_200_steps` asks the same
question, `published_rows` reruns the eleven rows that the course prints. For example:

    published(sweepstack.results("mlp_mnist_200_steps")).sort_values("val_accuracy")
    compared(sweepstack.results("published_rows"))
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sweepstack.config.errors import InputError, nearest
from sweepstack.study.frame import ranks
from sweepstack.study.read import best_rows

PUBLISHED = {
    "activation": "model.activation",
    "init": "init",
    "batch": "batch.size",
    "layers": "model.hidden",
    "hidden": "model.hidden",
    "lr": "optimizer.lr",
    "momentum": "optimizer.momentum",
    "optimizer": "optimizer",
    "nesterov": "optimizer.nesterov",
}
"""The published columns after the accuracies, and the key that each comes from."""
METRICS = ("val_accuracy", "test_accuracy")
RUN_NAME = (
    *("init", "activation", "layers", "lr", "momentum"),
    *("5", "batch", "hidden", "optimizer", "nesterov"),
)
"""What a run's name is made of; the 5 is the same in all."""
ROWS = Path(__file__).with_name("published_rows.csv")
"""The rows that the course prints, the best of its grid, with the `published` columns."""


def pivot(
    df: pd.DataFrame, rows: str, columns: str | None = None, value: str | None = None
) -> pd.DataFrame:
    """Average the complete trials of each cell.

    Without `columns` the result has the columns mean, std and n. With it each of the three is a
    whole matrix: `pivot(df, "init", "model.activation")["mean"]` is ready for a heatmap.

    Rows and columns stand in the order in which choices were declared, numbers and what has no
    such order ascending, a key that does not exist in a trial last, as NaN. A cell without a
    complete trial has mean NaN and n 0; std is NaN where n < 2.

    Where `value` is the only objective and trials are means over seeds themselves (attributes
    "seeds" and "std"), n counts seeds, and mean and std are those of all of them together:
    (n - 1) std^2 = sum_i (n_i - 1) std_i^2 + n_i (mean_i - mean)^2.

    Args:
        df: from `frame`, filtered at will.
        rows: a column of `df`.
        columns: another column of `df`.
        value: the column to average; the first objective by default.

    Raises:
        InputError: `df` has no such column, or `value` is not of numbers.
    """
    by = [rows] if columns is None else [rows, columns]
    value = value or next(iter(df.attrs.get("objectives", {})), None)
    if value is None:
        raise InputError("value must be said: this frame no longer knows its objective")
    unknown = [name for name in (*by, value) if name not in df]
    if unknown:
        raise InputError([f"no trial has {name}{nearest(name, df)}" for name in unknown])
    if not pd.api.types.is_numeric_dtype(df[value]) and df[value].notna().any():
        raise InputError(f"{value} does not hold numbers and cannot be averaged")
    tried = tried_ones(df, by)
    codes, labels = ranks(tried, by)
    table = statistics(tried, codes, value)
    if columns is not None:
        table = table.unstack(level=-1)
        pairs = [(statistic, labels[1][code]) for statistic, code in table.columns]
        table.columns = pd.MultiIndex.from_tuples(pairs, names=[None, columns])
        counts = [pair for pair in table.columns if pair[0] == "n"]
        table[counts] = table[counts].fillna(0)
        table = table.astype(dict.fromkeys(counts, "int64"))
    table.index = pd.Index([labels[0][code] for code in table.index], name=rows)
    return table


def best(df: pd.DataFrame, n: int = 10) -> pd.DataFrame:
    """The `n` best complete trials, the best first, of equal ones the earlier; of a study with
    constraints those that keep them. The rows and columns are those of `df`.

    Raises:
        InputError: the frame no longer knows its objective, or the study has several.
    """
    goals = df.attrs.get("objectives", {})
    if len(goals) != 1:
        which = f"has several: {', '.join(goals)}" if goals else "no longer knows its objective"
        raise InputError(f"best needs a frame of one objective, this one {which}")
    return best_rows(df).head(n)


def tried_ones(df: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """Finished trials, without those that failed before they had values."""
    ended = df["state"].isin(("pruned", "failed")) & df[list(by)].notna().any(axis=1)
    return df[(df["state"] == "complete") | ended]


def statistics(df: pd.DataFrame, codes: list[pd.Series], value: str) -> pd.DataFrame:
    """mean, std and n of each group of `codes`, sorted by them."""
    values = pd.to_numeric(df[value]).astype("float64").where(df["state"] == "complete")
    runs, within = values.notna().astype("int64"), 0.0
    attributes = set(df).difference(df.attrs.get("keys", ()))
    if list(df.attrs.get("objectives", ())) == [value] and {"seeds", "std"} <= attributes:
        seeds, std = (pd.to_numeric(df[name], errors="coerce") for name in ("seeds", "std"))
        several = values.notna() & (seeds > 1) & std.notna()
        runs = runs.where(~several, seeds.fillna(0)).astype("int64")
        within = ((runs - 1) * std**2).where(several, 0.0)
    groups = runs.groupby(codes)
    n = groups.sum()
    mean = (values * runs).groupby(codes).sum() / n.where(n > 0)
    from_mean = values - mean.to_numpy()[groups.ngroup()]
    squares = (within + runs * from_mean**2).groupby(codes).sum()
    return pd.DataFrame({"mean": mean, "std": np.sqrt(squares / (n - 1).where(n > 1)), "n": n})


def applies(df: pd.DataFrame) -> bool:
    """Whether the study swept every key of the published table."""
    return set(PUBLISHED.values()) <= set(df.attrs.get("keys", df.columns))


def published(df: pd.DataFrame) -> pd.DataFrame:
    """The published columns, for each row of a frame: name, val_accuracy, test_accuracy,
    activation, init, batch, layers, hidden, lr, momentum, optimizer, nesterov.

    `hidden` is the width of all hidden layers, or a text such as "100-50" where they differ. A
    metric that no trial has is missing in every row.

    Args:
        df: from `frame`, filtered and sorted at will; the index is kept.

    Raises:
        InputError: `df` lacks a key.
    """
    lacking = [key for key in dict.fromkeys(PUBLISHED.values()) if key not in df]
    if lacking:
        raise InputError([f"no trial has {key}{nearest(key, df)}" for key in lacking])
    shapes = [_layers(value) for value in df["model.hidden"]]
    found = {name: df[key] for name, key in PUBLISHED.items()}
    found["layers"] = pd.Series([layers for layers, _ in shapes], index=df.index)
    found["hidden"] = pd.Series([hidden for _, hidden in shapes], index=df.index)
    parts = (found.get(name, [name] * len(df)) for name in RUN_NAME)
    rows = zip(*parts, strict=True)
    names = pd.Series(["-".join(map(_word, row)) for row in rows], index=df.index, dtype=object)
    nothing = pd.Series(float("nan"), index=df.index)
    metrics = {name: df.get(name, nothing) for name in METRICS}
    return pd.DataFrame({"name": names, **metrics, **found})


def compared(df: pd.DataFrame) -> pd.DataFrame:
    """The course's rows that a study has trained, as the course prints them, beside its own.

    Columns: name; n, the number of seeds; for val_accuracy and test_accuracy each METRIC, the mean
    over the seeds; METRIC_std, their sample standard deviation; METRIC_published; METRIC_in_std,
    the difference (ours - theirs) in standard deviations of a seed. That is pooled over all rows,
    since one of three seeds says little: √(Σ (x - mean of its row)² / Σ (n - 1)); NaN without a
    second seed. Empty where the study does not have the keys or no such row is complete.
    """
    theirs = pd.read_csv(ROWS).set_index("name")
    ours = published(df[df["state"] == "complete"]) if applies(df) else pd.DataFrame({"name": []})
    ours = ours[ours["name"].isin(theirs.index)]
    if ours.empty:
        return pd.DataFrame()
    groups = ours.groupby("name")
    table = pd.DataFrame({"n": groups.size()})
    for metric in METRICS:
        values = pd.to_numeric(ours[metric]).astype("float64")
        by_name = values.groupby(ours["name"])
        table[metric], table[f"{metric}_std"] = by_name.mean(), by_name.std()
        squares = ((values - by_name.transform("mean")) ** 2).sum()
        spread = np.sqrt(squares / degrees) if (degrees := len(ours) - len(table)) else np.nan
        table[f"{metric}_published"] = theirs[metric]
        table[f"{metric}_in_std"] = (table[metric] - theirs[metric]) / spread
    return table.reindex([name for name in theirs.index if name in table.index]).reset_index()


def _layers(value: Any) -> tuple[int | None, Any]:
    """Number and width of the hidden layers of a label such as "[100,100]"."""
    try:
        widths = json.loads(value) if isinstance(value, str) else value
    except ValueError:
        return None, value
    widths = [widths] if isinstance(widths, int) else widths
    if not isinstance(widths, list) or not all(type(width) is int for width in widths):
        return None, value
    if len(set(widths)) == 1:
        return len(widths), widths[0]
    return len(widths), "-".join(map(str, widths))


def _word(value: Any) -> str:
    return "-" if value is None or value != value else str(value)
