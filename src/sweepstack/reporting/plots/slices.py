"""The objective against each key: where good values lie, and where trials failed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from sweepstack.reporting.plots import Plot
from sweepstack.reporting.plots.common import (
    PALETTE,
    STATE_COLOURS,
    Axis,
    axis,
    floats,
    spread,
    styled,
    value_axis,
    whole,
)
from sweepstack.reporting.plots.material import Material, thin
from sweepstack.reporting.plots.words import key_title, word

MOST_KEYS = 12
MOST_POINTS = 1_000
MANY_POINTS = 200
"""Trials from which points are drawn small."""
COLUMNS = 2
LETTERS = 13
"""Of a label: on a narrow screen they stand upright between two rows."""
ROW_PX = 270
SPACE_PX = 105
"""Between rows: labels and title of an axis."""


def plot(material: Material) -> Plot | None:
    """A panel for each key that varies, the most important first."""
    keys = material.by_importance[:MOST_KEYS]
    if not keys or material.good.empty:
        return None
    good, left_out = thin(material, material.good, MOST_POINTS)
    failed = material.df[material.df["state"] == "failed"]
    failed, _ = thin(material, failed, MOST_POINTS // 4)
    rows = material.df.loc[[*good.index, *failed.index]]
    fig, axes = _panels(keys), []
    for index, key in enumerate(keys):
        along = axis(material, key, rows, LETTERS)
        axes.append(along)
        _draw(fig, material, rows, along, index)
    _scale(fig, material, keys, axes)
    says = f"{word(material.value)} ({material.direction}d) of {len(material.good):,} complete"
    says += " trials against each key, the most important first"
    if len(material.keys) > len(keys):
        says += f" ({len(keys)} of {len(material.keys)} keys)"
    says += "; failed trials stand at the worst value." if len(failed) else "."
    return Plot("slices", "Slices", says + left_out + material.of_several, fig)


def _place(index: int) -> dict[str, int]:
    """Row and column of a panel."""
    return {"row": index // COLUMNS + 1, "col": index % COLUMNS + 1}


def _panels(keys: Sequence[str]) -> go.Figure:
    """An empty figure with a panel for each key."""
    rows, columns = math.ceil(len(keys) / COLUMNS), min(COLUMNS, len(keys))
    fig = make_subplots(
        rows=rows,
        cols=columns,
        shared_yaxes="all",
        horizontal_spacing=0.04,
        vertical_spacing=min(SPACE_PX / (rows * ROW_PX), 1 / rows),
    )
    return styled(fig, rows * ROW_PX + 40)


def _draw(fig: go.Figure, material: Material, rows: pd.DataFrame, along: Axis, index: int) -> None:
    """The marks of one panel; a failed trial has no value and stands at the worst."""
    values = material.good[material.value]
    worst = values.max() if material.minimized else values.min()
    y = rows[material.value].where(rows["state"] == "complete", worst)
    best = material.best_first(material.good).index[:1]
    size = 4 if len(rows) > MANY_POINTS else 7
    complete = rows.index[rows["state"] == "complete"].difference(best)
    marks: list[tuple[str, pd.Index, dict[str, Any]]] = [
        ("complete", complete, {"symbol": "circle", "size": size, "opacity": 0.5}),
        ("failed", rows.index[rows["state"] == "failed"], {"symbol": "x", "size": size + 1}),
        ("best", best, {"symbol": "star", "size": 13}),
    ]
    for name, chosen, marker in marks:
        if not len(chosen):
            continue
        colour = PALETTE[5] if name == "best" else STATE_COLOURS[name]
        fig.add_scatter(
            x=floats(_at(along, chosen, exactly=name == "best")),
            y=floats(y.loc[chosen]),
            customdata=whole(rows.loc[chosen, "number"]),
            mode="markers",
            name=name,
            legendgroup=name,
            showlegend=index == 0,
            marker={"color": colour, **marker},
            hovertemplate=f"trial %{{customdata}}, {name}: %{{y}}<extra></extra>",
            **_place(index),
        )


def _at(along: Axis, chosen: pd.Index, exactly: bool) -> npt.NDArray[np.float64]:
    """Positions, apart from each other where the axis is one of choices."""
    at: npt.NDArray[np.float64] = along.at.loc[chosen].to_numpy(dtype="float64")
    return at if along.labels is None or exactly else at + spread(len(at), 0.25)


def _scale(fig: go.Figure, material: Material, keys: Sequence[str], axes: Sequence[Axis]) -> None:
    """Name and scale the axes."""
    values = value_axis(material, material.good[material.value], material.value)
    title = values.pop("title")
    fig.update_yaxes(zeroline=False, **values)
    for index, (key, along) in enumerate(zip(keys, axes, strict=True)):
        where = _place(index)
        fig.update_xaxes(**{"nticks": 5, **along.layout, "title": key_title(key), **where})
        fig.update_xaxes(title_standoff=6, **where)
        if where["col"] == 1:
            fig.update_yaxes(title=title | {"standoff": 8}, **where)
