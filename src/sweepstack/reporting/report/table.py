"""The table of all trials, as data that report.js draws a page of at a time.

A column is {"t": title, "v": values}; "x": 1 hides it at first. Of text, "l" holds the different
texts and "v" an index into them, -1 where there is none; of numbers, "v" holds them with six
digits, null where there is none, "Infinity" as text.
"""

from __future__ import annotations

import json
import math
from typing import Any

import pandas as pd

from sweepstack.reporting.report.markup import clean, label, text
from sweepstack.study.tables import METRICS, applies, published

LEFT_OUT = ("config_hash", "feasible", "retried")
FIRST = ("std", "test_accuracy", "val_accuracy", "val_loss", "train_loss", "seconds", "error")
"""Attributes that are shown at once, in this order; others when they are asked for."""


def data(df: pd.DataFrame) -> tuple[str, str]:
    """The table as JSON, and as HTML what is the same in every trial and therefore not in it."""
    shown = _arranged(df)
    columns, same = [], []
    for title, (values, extra) in shown.items():
        if values.isna().all():
            continue
        column = _column(title, values)
        if len(df) > 1 and title not in ("number", "state") and _is_constant(column):
            only = column["l"][0] if "l" in column else values.iloc[0]
            same.append(f"<code>{text(title)}</code> {label(only)}")
            continue
        columns.append({**column, "x": 1} if extra else column)
    return json.dumps({"columns": columns}, separators=(",", ":")), ", ".join(same)


def _arranged(df: pd.DataFrame) -> dict[str, tuple[pd.Series, bool]]:
    """The columns in their order, each with whether it is hidden at first."""
    goals, keys = df.attrs["objectives"], df.attrs["keys"]
    shown = {"number": (df["number"], False)}
    used = {"number", *LEFT_OUT}
    if applies(df):
        known = published(df)
        shown |= {name: (known[name], False) for name in known}
        used |= {"model.hidden", *METRICS}
        for key in ("model.activation", "batch.size", *keys):
            if key == "optimizer" or key.rpartition(".")[2] in (*known, "size"):
                used.add(key)
    first = ["state", *goals, *keys, *FIRST]
    for name in (*first, *df):
        if name in df and name not in used:
            shown[str(name)] = (df[name], name not in first)
            used.add(name)
    return shown


def _is_constant(column: dict[str, Any]) -> bool:
    first, *rest = column["v"]
    return first not in (None, -1) and all(value == first for value in rest)


def _column(title: str, values: pd.Series) -> dict[str, Any]:
    is_number = pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values)
    if is_number:
        return {"t": clean(title), "v": [_number(value) for value in values.tolist()]}
    if pd.api.types.is_datetime64_any_dtype(values):
        values = values.dt.strftime("%Y-%m-%d %H:%M:%S")
    words = [_word(value) for value in values.tolist()]
    rank = {word: index for index, word in enumerate(dict.fromkeys(words)) if word is not None}
    labels = list(rank)
    index = {word: place for place, word in enumerate(labels)}
    return {
        "t": clean(title),
        "l": labels,
        "v": [-1 if word is None else index[word] for word in words],
    }


def _number(value: float) -> float | int | str | None:
    if value is None or math.isnan(value):
        return None
    if math.isinf(value):
        return "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, int) or value.is_integer():
        return int(value) if abs(value) < 2**53 else float(value)
    return float(f"{value:.6g}")


def _word(value: Any) -> str | None:
    if value is None or (isinstance(value, float) and math.isnan(value)) or value is pd.NaT:
        return None
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list):
        return ", ".join(str(_word(entry)) for entry in value)
    return clean(str(value).lower() if isinstance(value, bool) else value)
