"""Parallel coordinates: every key and the objective beside each other, a line per trial.

Axes lie across and lines go down, so that names and choices stay readable on a narrow screen, as
they would not with plotly's own (which also needs WebGL). Trials are in groups by the objective,
each a click away in the legend.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pandas as pd
import plotly.graph_objects as go

from iolaus.analysis.plots import Plot
from iolaus.analysis.plots.common import (
    WORST_TO_BEST,
    Material,
    amount,
    axis,
    floats,
    label,
    spread,
    styled,
    whole,
)

MOST_KEYS = 10
MOST_LINES = 200
FEWEST = 3
GROUPS = (("best 10%", 0.1, 6), ("to 25%", 0.25, 4), ("to 50%", 0.5, 2), ("worst 50%", 1.0, 0))
"""Names, the shares of trials up to which they reach, their tones in `WORST_TO_BEST`."""
MOST_TICKS = 8


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
        ticktext=[label(name, 40).replace(".", ".<br>") for name in names],
        range=[len(names) - 0.4, -0.5],
        zeroline=False,
        fixedrange=True,
    )
    says = f"A line per trial through its values, {label(material.value)} at the bottom; the most"
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
            at, labels, log = drawn[key], None, False
        else:
            along = axis(material, key, drawn)
            at, labels, log = along.at, along.labels, along.layout.get("type") == "log"
        if labels is None:
            scaled = np.log10(at) if log else at
            low, high = scaled.min(), scaled.max()
            ticks = np.linspace(low, high, 3) if high > low else np.array([low])
            texts = [amount(10**x if log else x) for x in ticks]
            if key != material.value:
                texts = [label(float(f"{10**x if log else x:.3g}")) for x in ticks]
        else:
            low, high = 0, len(labels) - 1
            ticks, texts = np.arange(len(labels)), labels
            scaled = at + spread(len(at), 0.12)
            every = -(-len(labels) // MOST_TICKS)
            ticks, texts = ticks[::every], texts[::every]
        places[row] = (scaled - low) / (high - low) if high > low else scaled - low + 0.5
        known = [(tick, text) for tick, text in zip(ticks, texts, strict=True) if tick == tick]
        marks += [
            _mark((tick - low) / (high - low) if high > low else 0.5, row, text)
            for tick, text in known
        ]
    return pd.DataFrame(places), marks


def _mark(x: float, row: int, text: str) -> dict[str, object]:
    anchor = "left" if x < 0.02 else "right" if x > 0.98 else "center"
    return {
        "x": x,
        "y": row,
        "text": text,
        "showarrow": False,
        "xanchor": anchor,
        "yanchor": "bottom",
        "yshift": 4,
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
