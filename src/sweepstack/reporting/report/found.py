"""Tables of what a study found: the pivot of what was swept, the best trials."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd

from sweepstack.config import commands
from sweepstack.reporting.report.markup import label, number, prose, table, text
from sweepstack.study.attributes import IDENTITY
from sweepstack.study.library import OpenStudy
from sweepstack.study.ranking import best_rows
from sweepstack.study.tables import pivot

BEST = 10
"""Trials that are shown as the best, or of the Pareto front."""
FAVOURITES = ("init", "model.activation")
"""The pair of keys that is shown where it was swept among others."""
LONGEST_SIDE = 60
MOST_COLUMNS = 24


@dataclass(frozen=True)
class Section:
    """A part of the page: HTML under a heading, both ready."""

    key: str
    title: str
    content: str


def varying(df: pd.DataFrame) -> list[str]:
    """Swept keys of which finished trials have more than one value, but for seeds."""
    ended = df[~df["state"].isin(("running", "waiting"))]
    return [
        key
        for key in df.attrs["keys"]
        if ended[key].nunique() > 1 and key.rpartition(".")[2] != "seed"
    ]


def swept(df: pd.DataFrame) -> Section | None:
    """The pivot, in a study of one objective whose keys all have finitely many values."""
    keys = varying(df)
    goals = df.attrs["objectives"]
    if len(goals) != 1 or not keys or not (df["state"] == "complete").any():
        return None
    if not all(df.attrs["keys"][key]["finite"] for key in keys):
        return None
    shown = _pair(df, keys)
    sizes = [df[key].nunique() for key in shown]
    if not shown or max(sizes) > LONGEST_SIDE or min(sizes) > MOST_COLUMNS:
        return None
    # The longer side goes down, as in the terminal.
    shown.sort(key=lambda key: -df[key].nunique())
    others = [key for key in keys if key not in shown]
    [(value, direction)] = goals.items()
    average = "over all other keys" if others else "of each"
    caption = f"{text(value)} ({text(direction)}), mean ± std {average}, n runs"
    content = (_matrix if len(shown) == 2 else _list)(df, shown, value, direction, caption)
    title = f"Means by {' and '.join(text(key) for key in shown)}"
    return Section("pivot", title, content)


def _pair(df: pd.DataFrame, keys: list[str]) -> list[str]:
    """One or two of `keys`: all, else the favourites, else those whose means differ most."""
    if len(keys) <= 2:
        return keys
    if set(FAVOURITES) <= set(keys):
        return list(FAVOURITES)
    spread = {}
    for key in keys:
        means = pivot(df, key)["mean"].to_numpy()
        known = means[np.isfinite(means)]
        spread[key] = float(np.ptp(known)) if len(known) else 0.0
    return sorted(keys, key=lambda key: -spread[key])[:2]


def _matrix(df: pd.DataFrame, keys: list[str], value: str, direction: str, caption: str) -> str:
    means = pivot(df, *keys)
    cells = _cells(means["mean"], means["std"], means["n"], direction)
    rows = [[label(name), *line] for name, line in zip(means.index, cells, strict=True)]
    head = [f"{text(keys[0])} ↓&nbsp; {text(keys[1])} →", *map(label, means["mean"].columns)]
    return table(head, rows, caption, kind="pivot")


def _list(df: pd.DataFrame, keys: list[str], value: str, direction: str, caption: str) -> str:
    means = pivot(df, keys[0])
    cells = _cells(means[["mean"]], means[["std"]], means[["n"]], direction)
    rows = [[label(name), *line] for name, line in zip(means.index, cells, strict=True)]
    return table([text(keys[0]), text(value)], rows, caption, kind="pivot")


def _cells(
    mean: pd.DataFrame, std: pd.DataFrame, n: pd.DataFrame, direction: str
) -> list[list[str]]:
    """Each cell's estimate, with `--t` from 0 (worst) to 1 (best) as its shade."""
    means = mean.to_numpy(dtype=float)
    known = means[np.isfinite(means)]
    low, high = (known.min(), known.max()) if len(known) else (0.0, 0.0)
    best_of = (high if direction == "maximize" else low) if len(known) else math.nan
    found = []
    for line, deviations, sizes in zip(means, std.to_numpy(float), n.to_numpy(), strict=True):
        cells = []
        for value, deviation, count in zip(line, deviations, sizes, strict=True):
            if not count:
                cells.append('<td class="none">–</td>')
                continue
            share = (value - low) / (high - low) if math.isfinite(value) and high > low else 0.0
            share = share if direction == "maximize" else 1 - share
            share = share if math.isfinite(value) else 0.0
            more = "" if math.isnan(deviation) else f" <i>± {number(deviation, value)}</i>"
            kind = ' class="best"' if value == best_of else ""
            shown = f"{number(value)}{more} <small>n {count}</small>"
            cells.append(f'<td{kind} style="--t:{share:.3f}">{shown}</td>')
        found.append(cells)
    return found


def top(opened: OpenStudy, df: pd.DataFrame) -> Section | None:
    """The best trials; of several objectives the Pareto front."""
    goals = df.attrs["objectives"]
    if not (df["state"] == "complete").any():
        return None
    if len(goals) == 1:
        shown = best_rows(df).head(BEST)
        key, title = "best", "Best trials"
        caption = f"The {len(shown)} best of {(df['state'] == 'complete').sum():,} complete trials"
    else:
        front = best_rows(df)
        shown = front.head(BEST)
        key, title = "front", "Trials of the Pareto front"
        caption = f"{len(shown)} of {len(front):,} trials that no other beats in every objective"
    if shown.empty:
        return None
    metrics = ("std", "test_accuracy", "val_loss", "steps", "seconds")
    seeds = [key for key in df.attrs["keys"] if key.rpartition(".")[2] == "seed"]
    same = {key for key in varying(df) if len(shown) > 1 and shown[key].nunique(dropna=False) == 1}
    keys = [key for key in varying(df) if key not in same]
    columns = [*goals, *keys, *seeds, *(name for name in metrics if name in df)]
    columns = [name for name in dict.fromkeys(columns) if shown[name].notna().any()]
    rows = [
        [str(row["number"]), *(_value(name, row[name], goals) for name in columns)]
        for row in shown.to_dict("records")
    ]
    head = ["trial", *(_title(name, shown[name]) for name in columns)]
    pairs = [f"{text(key)} {label(shown[key].iloc[0])}" for key in varying(df) if key in same]
    caption += f"; the same in all: {', '.join(pairs)}" if pairs else ""
    content = table(head, rows, caption, kind="best-of") + _again(opened, shown["number"].iloc[0])
    return Section(key, title, content)


def _again(opened: OpenStudy, trial: int) -> str:
    """How a trial of sweepstack is trained again, empty for other programs'."""
    if IDENTITY not in opened.user_attrs:
        return ""
    command = commands.study("rerun", opened.name, trial, where=opened.where)
    return f'<p class="note">Trained again alone and compared by <code>{prose(command)}</code>.</p>'


def _title(name: str, values: pd.Series) -> str:
    is_number = pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values)
    kind = ' class="number"' if is_number else ""
    return f'<th scope="col"{kind}>{text(name)}</th>'


def _value(name: str, value: object, goals: dict[str, str]) -> str:
    shown = _short(name, value, goals)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return f'<td class="number">{shown}</td>' if is_number else f"<td>{shown}</td>"


def _short(name: str, value: object, goals: dict[str, str]) -> str:
    is_metric = name in goals or name == "std" or name.endswith(("_accuracy", "_loss"))
    if is_metric and isinstance(value, float) and not math.isnan(value):
        shown = number(value)
        return f"<b>{shown}</b>" if name in goals else shown
    return label(value)
