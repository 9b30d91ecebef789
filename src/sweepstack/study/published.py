"""The table of a published course grid: one row per run, named by what it was trained with.

The course's rows are called such as `he-relu-1-0.01-0.0-64-100-adam-False`: init, activation,
number of hidden layers, lr, momentum, batch size, hidden units, optimizer, nesterov. The sweep
`mlp_mnist_200_steps` asks the same question. For example:

    published(sweepstack.results("mlp_mnist_200_steps")).sort_values("val_accuracy")
"""

from __future__ import annotations

import json
from typing import Any

import pandas as pd

from sweepstack.config.errors import InputError, nearest

COLUMNS = {
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
NAME = (
    *("init", "activation", "layers", "lr", "momentum"),
    *("batch", "hidden", "optimizer", "nesterov"),
)
"""What a run's name is made of."""


def applies(df: pd.DataFrame) -> bool:
    """Whether the study swept every key of the published table."""
    return set(COLUMNS.values()) <= set(df.attrs.get("keys", df.columns))


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
    lacking = [key for key in dict.fromkeys(COLUMNS.values()) if key not in df]
    if lacking:
        raise InputError([f"no trial has {key}{nearest(key, df)}" for key in lacking])
    shapes = [_layers(value) for value in df["model.hidden"]]
    found = {name: df[key] for name, key in COLUMNS.items()}
    found["layers"] = pd.Series([layers for layers, _ in shapes], index=df.index)
    found["hidden"] = pd.Series([hidden for _, hidden in shapes], index=df.index)
    rows = zip(*(found[name] for name in NAME), strict=True)
    names = pd.Series(["-".join(map(_word, row)) for row in rows], index=df.index, dtype=object)
    nothing = pd.Series(float("nan"), index=df.index)
    metrics = {name: df.get(name, nothing) for name in METRICS}
    return pd.DataFrame({"name": names, **metrics, **found})


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
