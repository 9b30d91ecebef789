"""Learning curves: metrics against steps, of the best trials and of pruned ones.

A row for each metric: the objective first, then the losses, the solid line on validation and the
dotted one on training data. Of trials that are means over seeds the curve is the mean.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from sweepstack.reporting.plots import Plot
from sweepstack.reporting.plots.common import (
    GREY,
    PALETTE,
    STATE_COLOURS,
    Floats,
    floats,
    styled,
    value_axis,
    whole,
)
from sweepstack.reporting.plots.material import Material
from sweepstack.reporting.plots.words import label

MOST_BEST = 5
MOST_PRUNED = 20
ROOM = 1.0
"""How far an axis goes beyond the best trials, as a share of their own range."""
MOST_STEPS = 200
"""Evaluations of a curve that are drawn."""


def plot(material: Material) -> Plot | None:
    """The curves, if any trial was evaluated more than once."""
    history = material.opened.history
    best = _best(material)
    state = history["state"]
    pruned = history.loc[state == "pruned", "number"].drop_duplicates().to_numpy()
    count = len(pruned)
    if count > MOST_PRUNED:
        pruned = np.sort(np.random.default_rng(0).choice(pruned, MOST_PRUNED, replace=False))
    wanted = history[history["number"].isin([*best, *pruned])]
    metrics = _metrics(material, wanted)
    if not metrics or wanted.groupby("number")["step"].nunique().max() < 2:
        return None
    means = wanted.groupby(["number", "step"], sort=True)[
        [name for pair in metrics for name in pair if name]
    ].mean()
    fig = make_subplots(rows=len(metrics), cols=1, shared_xaxes=True, vertical_spacing=0.06)
    outside = False
    for row, (validation, training) in enumerate(metrics, 1):
        _pruned(fig, row, means, pruned, validation)
        for place, number in enumerate(best):
            if number in means.index:
                colour = PALETTE[place % len(PALETTE)]
                _curve(fig, row, means.loc[number], (validation, training), number, colour)
        names = [name for name in (validation, training) if name]
        ours = means[means.index.get_level_values("number").isin(best)]
        along = value_axis(material, means[names], validation)
        along["range"], left_out = _range(ours[names], means[names], along.get("type") == "log")
        outside |= left_out
        fig.update_yaxes(along, row=row, col=1)
    styled(fig, 60 + 260 * len(metrics))
    fig.update_xaxes(title={"text": "step"}, row=len(metrics), col=1)
    fig.update_xaxes(zeroline=False, nticks=8)
    says = f"The {len(best)} best trials, best first; solid: validation, dotted: training data."
    says = says if any(training for _, training in metrics) else f"The {len(best)} best trials."
    if count:
        says += f" Thin lines: {len(pruned)} of {count:,} pruned trials, crosses where they ended."
    if not best:
        says = f"No trial is complete; {len(pruned)} of {count:,} pruned trials."
    elif outside:
        says += " The axes follow the best; some of the pruned lie outside."
    return Plot("learning-curves", "Learning curves", says, fig)


def _best(material: Material) -> list[int]:
    """Numbers of the best trials; of several objectives by the first."""
    return [int(x) for x in material.best_first(material.good)["number"].head(MOST_BEST)]


def _range(ours: pd.DataFrame, every: pd.DataFrame, log: bool) -> tuple[list[float] | None, bool]:
    """The range of an axis on which the best trials can be told apart, or None for all that there
    is, and whether anything lies outside: pruned trials may be orders of magnitude away."""
    best, known = (part.to_numpy(dtype="float64") for part in (ours, every))
    best, known = (part[np.isfinite(part)] for part in (best, known))
    if log:
        best, known = (np.log10(part) for part in (best, known))
    if not len(best):
        return None, False
    room = ROOM * max(best.max() - best.min(), 1e-9)
    low, high = max(known.min(), best.min() - room), min(known.max(), best.max() + room)
    if low <= known.min() and high >= known.max():
        return None, False
    edge = 0.05 * (high - low)
    return [float(low - edge), float(high + edge)], True


def _metrics(material: Material, history: pd.DataFrame) -> list[tuple[str, str | None]]:
    """What has a row: a validation metric and, where it is known, the same of training data."""
    losses = [name for name in ("val_loss", "val_mse") if name in history]
    names = dict.fromkeys([*(name for name in material.goals if name in history), *losses])
    known = [name for name in names if history[name].notna().any()]
    partners = [name.replace("val_", "train_", 1) for name in known]
    return [
        (name, partner if partner != name and partner in history else None)
        for name, partner in zip(known, partners, strict=True)
    ]


def _curve(
    fig: go.Figure,
    row: int,
    curve: pd.DataFrame,
    metrics: tuple[str, str | None],
    number: int,
    colour: str,
) -> None:
    curve = _fewer(curve)
    for metric, dash in zip(metrics, ("solid", "dot"), strict=True):
        if metric is None:
            continue
        fig.add_scatter(
            x=floats(curve.index),
            y=floats(curve[metric]),
            mode="lines+markers" if dash == "solid" and len(curve) <= 30 else "lines",
            line={"color": colour, "dash": dash, "width": 2},
            marker={"size": 4},
            name=f"trial {number}",
            legendgroup=f"trial {number}",
            showlegend=row == 1 and dash == "solid",
            hovertemplate=f"trial {number}, {label(metric)}: %{{y}}, step %{{x}}<extra></extra>",
            row=row,
            col=1,
        )


def _pruned(
    fig: go.Figure, row: int, means: pd.DataFrame, numbers: np.ndarray, metric: str
) -> None:
    curves = [_fewer(means.loc[number]) for number in numbers if number in means.index]
    if not curves:
        return
    x, y, who = joined(list(numbers), [(curve.index, curve[metric]) for curve in curves])
    fig.add_scatter(
        x=x,
        y=y,
        customdata=who,
        mode="lines",
        line={"color": GREY, "width": 1},
        opacity=0.6,
        name="pruned",
        legendgroup="pruned",
        showlegend=False,
        hovertemplate="trial %{customdata}, pruned: %{y}, step %{x}<extra></extra>",
        row=row,
        col=1,
    )
    fig.add_scatter(
        x=floats([curve.index[-1] for curve in curves]),
        y=floats([curve[metric].iloc[-1] for curve in curves]),
        customdata=whole(numbers),
        mode="markers",
        marker={"color": STATE_COLOURS["pruned"], "symbol": "x", "size": 7},
        name="pruned",
        legendgroup="pruned",
        showlegend=row == 1,
        hovertemplate="trial %{customdata}, pruned at step %{x}: %{y}<extra></extra>",
        row=row,
        col=1,
    )


def joined(
    numbers: list[int], curves: list[tuple[pd.Index, pd.Series]]
) -> tuple[Floats, Floats, np.ndarray]:
    """Many curves as one trace, NaN between them: x, y and the trial's number."""
    gap = np.array([np.nan])
    x = [part for steps, _ in curves for part in (np.asarray(steps, dtype="float64"), gap)]
    y = [part for _, ys in curves for part in (np.asarray(ys, dtype="float64"), gap)]
    lengths = [len(steps) + 1 for steps, _ in curves]
    return floats(np.concatenate(x)), floats(np.concatenate(y)), whole(np.repeat(numbers, lengths))


def _fewer(curve: pd.DataFrame) -> pd.DataFrame:
    """A curve of at most `MOST_STEPS` evaluations, the first and the last among them."""
    if len(curve) <= MOST_STEPS:
        return curve
    return curve.iloc[np.linspace(0, len(curve) - 1, MOST_STEPS).astype(int)]
