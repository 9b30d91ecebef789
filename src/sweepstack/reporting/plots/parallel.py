"""Parallel coordinates: every key and the objective beside each other, a line per trial.

Axes lie across and lines go down, so that names and choices stay readable on a narrow screen, as
they would not with plotly's own (which also needs WebGL). Trials are in groups by the objective,
each a click away in the legend.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pandas as pd
import plotly.graph_objects as go

from sweepstack.reporting.plots import Plot
from sweepstack.reporting.plots.common import (
    WORST_TO_BEST,
    Axis,
    axis,
    floats,
    spread,
    styled,
    value_axis,
    whole,
)
from sweepstack.reporting.plots.material import Material
from sweepstack.reporting.plots.words import key_title, label, word

MOST_KEYS = 10
MOST_LINES = 200
FEWEST = 3
GROUPS = (("best 10%", 0.1, 6), ("to 25%", 0.25, 4), ("to 50%", 0.5, 2), ("worst 50%", 1.0, 1))
"""Names, the shares of trials up to which they reach, their tones in `WORST_TO_BEST`."""
MOST_TICKS = 8
MOST_LETTERS = 34
"""Of all labels of an axis, that stand beside each other on a narrow screen."""


def plot(material: Material) -> Plot | None:
    """The lines of complete trials, if two keys vary and there are a few trials."""
    keys = material.by_importance[:MOST_KEYS]
    if len(keys) < 2 or len(material.good) < FEWEST:
        return None
    ordered = material.best_first(material.good)
    group = pd.Series(
        np.searchsorted([share for _, share, _ in GROUPS], _positions(len(ordered))),
        index=ordered.index,
    )
    drawn = _chosen(ordered, group)
    left_out = ""
    if len(drawn) < len(ordered):
        left_out = f" Drawn are {len(drawn)} of {len(ordered):,} trials, as many of each group as"
        left_out += " there are of the best."
    places, marks = _places(material, drawn, keys)
    fig = go.Figure()
    # The best last, on top.
    for index, (name, _, tone) in reversed(list(enumerate(GROUPS))):
        rows = drawn.index[group.loc[drawn.index] == index]
        if len(rows):
            _lines(fig, places.loc[rows], drawn.loc[rows, "number"], name, WORST_TO_BEST[tone])
    names = [*keys, material.value]
    fig.update_layout(annotations=marks)
    styled(fig, 60 + 64 * len(names), legend_traceorder="reversed")
    fig.update_xaxes(visible=False, range=[-0.04, 1.04], fixedrange=True)
    fig.update_yaxes(
        tickvals=list(range(len(names))),
        ticktext=[key_title(name, 16)["text"] for name in names],
        range=[len(names) - 0.4, -0.5],
        zeroline=False,
        fixedrange=True,
    )
    says = f"A line per trial through its values, {word(material.value)} at the bottom; the most"
    says += " important keys on top. Click a group in the legend to hide it, twice to see it alone."
    if len(material.keys) > len(keys):
        says += f" {len(keys)} of {len(material.keys)} keys."
    return Plot("parallel", "Parallel coordinates", says + left_out + material.of_several, fig)


def _positions(count: int) -> npt.NDArray[np.float64]:
    """Which share of the trials is better than each; the first is always among the best."""
    return np.arange(count) / count + 1e-9 * (np.arange(count) > 0)


def _chosen(ordered: pd.DataFrame, group: pd.Series) -> pd.DataFrame:
    if len(ordered) <= MOST_LINES:
        return ordered
    random, each = np.random.default_rng(0), MOST_LINES // len(GROUPS)
    chosen = [
        random.choice(rows, min(len(rows), each), replace=False)
        for rows in (group.index[group == index].to_numpy() for index in range(len(GROUPS)))
    ]
    return ordered.loc[np.concatenate(chosen)]


def _places(
    material: Material, drawn: pd.DataFrame, keys: list[str]
) -> tuple[pd.DataFrame, list[dict[str, object]]]:
    """Where each trial crosses each axis, in [0, 1], and the axes' labels."""
    places, marks = {}, []
    for row, key in enumerate([*keys, material.value]):
        if key == material.value:
            along = Axis(drawn[key], value_axis(material, drawn[key], key), None)
        else:
            letters = 24 if drawn[key].nunique() <= 4 else 12
            along = axis(material, key, drawn, letters)
        if along.labels is None:
            places[row], ticks = _range(along)
        else:
            count = len(along.labels)
            # Each choice has its part of the axis, its lines the middle of that.
            places[row] = (along.at + 0.5) / count + spread(len(drawn), min(0.03, 0.25 / count))
            ticks = [((tick + 0.5) / count, text) for tick, text in enumerate(along.labels)]
            ticks = ticks[:: -(-count // MOST_TICKS)]
        # Long labels stand in two heights.
        steps = 2 if sum(len(text) for _, text in ticks) > MOST_LETTERS else 1
        marks += [_mark(x, row, text, i % steps) for i, (x, text) in enumerate(ticks)]
    return pd.DataFrame(places), marks


def _range(along: Axis) -> tuple[pd.Series, list[tuple[float, str]]]:
    """Places of numbers between the least and the greatest, and three labels."""
    scaled = along.laid(along.at)
    low, high = float(scaled.min()), float(scaled.max())
    if not high > low:
        value = along.read(low)
        return scaled - low + 0.5, [(0.5, label(value))] if math.isfinite(low) else []
    ticks = [(x, along.read(low + x * (high - low))) for x in (0.0, 0.5, 1.0)]
    texts = [(x, label(float(f"{tick:.3g}"))) for x, tick in ticks]
    return (scaled - low) / (high - low), texts


def _mark(x: float, row: int, text: str, step: int) -> dict[str, object]:
    return {
        "x": x,
        "y": row,
        "text": text,
        "showarrow": False,
        "xanchor": "left" if x < 0.02 else "right" if x > 0.98 else "center",
        "yanchor": "bottom",
        "yshift": 2 + 12 * step,
        # A shadow in the text's opposite: lines run through it.
        "font": {"size": 11, "shadow": "auto"},
    }


def _lines(
    fig: go.Figure, places: pd.DataFrame, numbers: pd.Series, name: str, colour: str
) -> None:
    count, rows = places.shape
    # A column of NaN ends each line.
    x = np.hstack([places.to_numpy(dtype="float64"), np.full((count, 1), np.nan)])
    y = np.tile([*range(rows), np.nan], count)
    fig.add_scatter(
        x=floats(x.ravel()),
        y=floats(y),
        customdata=whole(np.repeat(numbers.to_numpy(), rows + 1)),
        mode="lines+markers",
        marker={"size": 3},
        line={"color": colour, "width": 1.2},
        opacity=0.5,
        name=name,
        hovertemplate="trial %{customdata}<extra></extra>",
    )
