"""Loss and objective against the learning rate, by optimizer, with what failed and was pruned."""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from sweepstack.reporting.plots import Plot
from sweepstack.reporting.plots.common import (
    PALETTE,
    floats,
    log_axis,
    spread,
    styled,
    value_axis,
    whole,
)
from sweepstack.reporting.plots.material import Material, thin
from sweepstack.reporting.plots.words import key_title, label, word
from sweepstack.study.frame import ranks

NAMES = ("lr", "learning_rate")
LOST = "failed or diverged"
MOST_POINTS = 1_500
MOST_OPTIMIZERS = len(PALETTE) - 1
"""The last colour is that of failed trials."""


def plot(material: Material) -> Plot | None:
    """The plot, if a learning rate was swept and any trial that had one has ended."""
    key = next((key for key in material.keys if key.rpartition(".")[2] in NAMES), None)
    if key is None:
        return None
    df = material.df[material.df["state"].isin(("complete", "pruned", "failed"))]
    rate = pd.to_numeric(df[key], errors="coerce").astype("float64")
    df = df[np.isfinite(rate) & (rate > 0)]
    metrics = _metrics(material, df)
    if df.empty or not metrics:
        return None
    drawn, left_out = thin(material, df, MOST_POINTS)
    at = rate.loc[drawn.index]
    if drawn[key].nunique() <= 12:  # of a few choices each would hide the others
        at = at * 10 ** (spread(len(at), 0.05) + _beside(material, drawn))
    fig = make_subplots(rows=len(metrics), cols=1, shared_xaxes=True, vertical_spacing=0.05)
    for row, metric in enumerate(metrics, 1):
        _row(fig, row, material, drawn, at, metric)
    styled(fig, 70 + 270 * len(metrics))
    fig.update_xaxes(**log_axis(rate.loc[df.index]))
    fig.update_xaxes(title=key_title(key), row=len(metrics), col=1)
    pruned = int((df["state"] == "pruned").sum())
    says = f"{len(df):,} trials by {word(key)}"
    says += f"; open circles: the {pruned:,} pruned ones at their last evaluation" if pruned else ""
    if any(trace.name == LOST for trace in fig.data):
        says += "; crosses at the worst value: failed or diverged ones"
    return Plot("learning-rate", "Learning rate", f"{says}.{left_out}", fig)


def _metrics(material: Material, df: pd.DataFrame) -> list[str]:
    losses = [name for name in ("val_loss", "val_mse") if name in df]
    names = dict.fromkeys([material.value, *losses[:1]])
    return [name for name in names if np.isfinite(_numbers(df[name])).any()]


def _row(
    fig: go.Figure,
    row: int,
    material: Material,
    df: pd.DataFrame,
    at: pd.Series,
    metric: str,
) -> None:
    values = _numbers(df[metric])
    known = values[np.isfinite(values)]
    lower = material.minimized if metric == material.value else True
    worst = float(known.max() if lower else known.min())
    # A failed trial, and one whose loss is no number, stands at the worst value.
    lost = (df["state"] == "failed") | ((df["state"] == "complete") & ~np.isfinite(values))
    for name, colour, chosen in _optimizers(material, df):
        for state, symbol in (("complete", "circle"), ("pruned", "circle-open")):
            rows = df.index[chosen & ~lost & (df["state"] == state)]
            if len(rows) and np.isfinite(values.loc[rows]).any():
                marker = {"color": colour, "symbol": symbol, "size": 6, "opacity": 0.6}
                words = name if name and state == "complete" else f"{name} {state}".strip()
                y = values.loc[rows]
                _scatter(fig, row, (at.loc[rows], y), df.loc[rows, "number"], words, marker)
    if lost.any():
        marker = {"color": PALETTE[-1], "symbol": "x", "size": 7}
        y = pd.Series(worst, index=df.index)[lost]
        _scatter(fig, row, (at[lost], y), df.loc[lost, "number"], LOST, marker)
    fig.update_yaxes(value_axis(material, known, metric) | {"zeroline": False}, row=row, col=1)


def _optimizers(material: Material, df: pd.DataFrame) -> list[tuple[str, str, pd.Series]]:
    """Name, colour and trials of each optimizer that was swept; else of all trials."""
    key = next((key for key in material.keys if key.rpartition(".")[2] == "optimizer"), None)
    if key is None or material.is_number(key):
        return [("", PALETTE[0], pd.Series(True, index=df.index))]
    codes, labels = ranks(df, [key])
    named = [
        (label(name), PALETTE[code], codes[0] == code)
        for code, name in enumerate(labels[0][:MOST_OPTIMIZERS])
    ]
    others = codes[0] >= MOST_OPTIMIZERS
    return [*named, ("others", "#888888", others)] if others.any() else named


def _beside(material: Material, df: pd.DataFrame) -> pd.Series:
    """What moves the optimizers' points beside each other, in decades."""
    groups = [chosen for _, _, chosen in _optimizers(material, df)]
    shift = pd.Series(0.0, index=df.index)
    for index, chosen in enumerate(groups):
        shift[chosen] = 0.12 * (index - (len(groups) - 1) / 2)
    return shift


def _scatter(
    fig: go.Figure,
    row: int,
    points: tuple[pd.Series, pd.Series],
    numbers: pd.Series,
    name: str,
    marker: dict[str, object],
) -> None:
    fig.add_scatter(
        x=floats(points[0]),
        y=floats(points[1]),
        customdata=whole(numbers),
        mode="markers",
        name=name,
        legendgroup=name,
        showlegend=not any(trace.name == name for trace in fig.data),
        marker=marker,
        hovertemplate=f"trial %{{customdata}}, {name}: %{{y}}, %{{x}}<extra></extra>",
        row=row,
        col=1,
    )


def _numbers(values: pd.Series) -> pd.Series:
    return pd.to_numeric(values, errors="coerce").astype("float64")
