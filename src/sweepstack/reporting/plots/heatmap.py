"""The mean of the objective for the values of two keys, with std and n: init x activation.

With more than two keys there is a menu of pairs, the most important first; a cell is then the mean
over all values of the others. The numbers are those of `tables.pivot`.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import numpy.typing as npt
import plotly.graph_objects as go

from sweepstack.reporting.plots import Plot
from sweepstack.reporting.plots.common import chooser, colour_bar, floats, scale, styled
from sweepstack.reporting.plots.material import Material
from sweepstack.reporting.plots.words import amount, key_title, label, pair_title, word
from sweepstack.study.tables import pivot

MOST_PAIRS = 10
MOST_NUMBERED = 8
"""Columns up to which a cell has room for its numbers."""
DARK = 0.42
"""The colour scale's part, from the worst, on which white can be read and black cannot."""
TRACES = 4
"""Of one pair: colours, and texts on dark, on bright, on none."""


def plot(material: Material) -> Plot | None:
    """The heatmap, if two keys of few values vary and any trial has a value."""
    keys = [key for key in material.by_importance if material.is_table(key)]
    if len(keys) < 2 or material.good.empty:
        return None
    pairs = list(itertools.combinations(keys, 2))
    shown = pairs[:MOST_PAIRS]
    fig, options = go.Figure(), []
    for index, pair in enumerate(shown):
        traces, layout = _table(material, *pair)
        for trace in traces:
            trace.visible = index == 0
        fig.add_traces(traces)
        visible = [other // TRACES == index for other in range(TRACES * len(shown))]
        options.append((pair_title(pair, keys), {"visible": visible}, layout))
    menu = {"updatemenus": [chooser(options)]} if len(shown) > 1 else {}
    styled(fig, 400, showlegend=False, **menu)
    fig.update_layout(options[0][2])
    says = f"Mean {word(material.value)} ({material.direction}d) ± standard deviation over the n"
    says += " runs of a cell; brighter is better."
    if len(material.keys) > 2:
        says += " Runs of all values of the other keys are averaged."
    if len(pairs) > len(shown):
        says += f" The menu has {len(shown)} of {len(pairs)} pairs, the most important first."
    title = " × ".join(word(key) for key in keys) if len(pairs) == 1 else "Pairs of keys"
    return Plot("heatmap", title, says + material.of_several, fig)


def _table(material: Material, one: str, other: str) -> tuple[list[Any], dict[str, Any]]:
    """A pair's traces and what the layout is told; the key with more values goes down."""
    df = material.df
    across, down = sorted((one, other), key=lambda key: int(df[key].nunique()))
    wanted = (df["state"] != "complete") | df.index.isin(material.good.index)
    table = pivot(df[wanted], down, across, material.value)
    mean, std, n = (table[name].to_numpy() for name in ("mean", "std", "n"))
    columns = [label(name) for name in table["mean"].columns]
    rows = [label(name) for name in table.index]
    narrow = len(columns) > MOST_NUMBERED
    cells = [
        [_cell(*numbers) for numbers in zip(*row, strict=True)]
        for row in zip(mean, std, n, strict=True)
    ]
    low, high = float(np.nanmin(mean)), float(np.nanmax(mean))
    colours = go.Heatmap(
        z=floats(mean),
        x=np.arange(len(columns), dtype="int32"),
        y=np.arange(len(rows), dtype="int32"),
        zmin=low,
        zmax=high,
        text=cells,
        hovertemplate="%{text}<extra></extra>",
        colorscale=scale(material),
        showscale=narrow,
        colorbar=colour_bar(material.value),
        xgap=2,
        ygap=2,
    )
    tone = (mean - low) / (high - low) if high > low else np.where(n > 0, 0.5, np.nan)
    texts = [] if narrow else _texts(cells, 1 - tone if material.minimized else tone)
    axes = {"xaxis": _axis(across, columns), "yaxis": _axis(down, rows)}
    # The first row on top, as it is read.
    axes["yaxis"]["range"] = axes["yaxis"]["range"][::-1]
    height = 110 + len(rows) * (28 if narrow else 58)
    empty = [go.Scatter(x=[], y=[], hoverinfo="skip")] * (TRACES - 1 - len(texts))
    return [colours, *texts, *empty], {**axes, "height": height}


def _texts(cells: list[list[str]], tone: npt.NDArray[np.float64]) -> list[go.Scatter]:
    """The cells' numbers, in what can be read on their colours; on none in the page's colour."""
    empty = np.isnan(tone)
    dark = ~empty & (tone < DARK)
    return [
        go.Scatter(
            x=np.nonzero(chosen)[1].astype("int32"),
            y=np.nonzero(chosen)[0].astype("int32"),
            text=[cells[row][column] for row, column in zip(*np.nonzero(chosen), strict=True)],
            mode="text",
            hoverinfo="skip",
            **({"textfont": {"color": colour}} if colour else {}),
        )
        for chosen, colour in ((dark, "#ffffff"), (~dark & ~empty, "#000000"), (empty, None))
    ]


def _axis(key: str, labels: list[str]) -> dict[str, Any]:
    return {
        "title": key_title(key) | {"standoff": 8},
        "tickvals": list(range(len(labels))),
        "ticktext": labels,
        "automargin": True,
        "showgrid": False,
        "zeroline": False,
        "range": [-0.5, len(labels) - 0.5],
    }


def _cell(mean: float, std: float, n: int) -> str:
    if not n:
        return "n=0"
    text = amount(mean)
    return f"{text}<br>n={n}" if math.isnan(std) else f"{text}<br>± {amount(std)}<br>n={n}"
