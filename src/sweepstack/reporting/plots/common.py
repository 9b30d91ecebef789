"""What all plots share: colours, axes, numbers for plotly, the layout."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import plotly.graph_objects as go

from sweepstack.reporting.plots.material import MOST_CHOICES, Material
from sweepstack.reporting.plots.words import MOST_LETTERS, label
from sweepstack.study.frame import ranks

PALETTE = ("#1F83BF", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")
"""Okabe and Ito's colours, distinct for the colour-blind, without black and yellow and with a
lighter blue: these can be seen on white and on black."""
GREY = "#888888"
STATE_COLOURS = {
    "complete": PALETTE[0],
    "pruned": PALETTE[1],
    "failed": PALETTE[5],
    "running": PALETTE[4],
    "waiting": GREY,
}
WORST_TO_BEST = ("#472d7b", "#3b528b", "#2c728e", "#21918c", "#28ae80", "#5ec962", "#addc30")
"""Viridis without its ends, which would vanish on black and on white."""
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Axis:
    """Where trials lie on the axis of a key.

    Attributes:
        at: a position for each row; NaN where the key is not set or cannot be drawn.
        layout: what plotly is told of the axis.
        labels: of the positions 0, 1, ... if it is one of choices, else None.
    """

    at: pd.Series
    layout: dict[str, Any]
    labels: list[str] | None

    @property
    def is_log(self) -> bool:
        """Whether it is logarithmic."""
        return bool(self.layout.get("type") == "log")

    def laid(self, values: Any) -> Any:
        """Numbers as they lie along the axis: their logarithms where it is logarithmic."""
        return np.log10(values) if self.is_log else values

    def read(self, places: Any) -> Any:
        """The numbers that lie there: the inverse of `laid`."""
        return 10**places if self.is_log else places


def axis(material: Material, key: str, df: pd.DataFrame, letters: int = MOST_LETTERS) -> Axis:
    """The axis of a key, with positions for the rows of `df` and labels of so many letters."""
    if material.is_number(key):
        at = pd.to_numeric(df[key], errors="coerce").astype("float64")
        described = material.df.attrs["keys"][key]
        if described["log"]:
            at = at.where(at > 0)
            return Axis(at, log_axis(at), None)
        return Axis(at, {}, None)
    codes, labels = ranks(df, [key])
    names = [label(value, letters) for value in labels[0]]
    every = math.ceil(len(names) / MOST_CHOICES) or 1
    ticks = list(range(0, len(names), every))
    layout = {
        "tickvals": ticks,
        "ticktext": [names[tick] for tick in ticks],
        "range": [-0.6, len(names) - 0.4],
        "zeroline": False,
    }
    return Axis(codes[0].astype("float64"), layout, names)


def log_axis(at: Any) -> dict[str, Any]:
    """A logarithmic axis with few ticks for the positive numbers `at`."""
    values = np.asarray(at, dtype="float64")
    values = values[np.isfinite(values) & (values > 0)]
    decades = np.log10(values.max() / values.min()) if len(values) else 0.0
    ticks = {"dtick": max(1, math.ceil(decades / 6))} if decades >= 1 else {"nticks": 5}
    return {"type": "log", "exponentformat": "e", **ticks}


def value_axis(material: Material, values: Any, name: str) -> dict[str, Any]:
    """An axis of a metric; logarithmic where a loss spans more than two decades."""
    known = np.asarray(values, dtype="float64")
    known = known[np.isfinite(known)]
    title = {"title": {"text": label(name, 40)}}
    falls = material.goals.get(name) != "maximize"
    if falls and len(known) and known.min() > 0 and known.max() / known.min() > 100:
        return {**title, **log_axis(known)}
    return {**title, "nticks": 6}


def spread(count: int, width: float) -> npt.NDArray[np.float64]:
    """Offsets that keep points of one choice apart; the same every time."""
    return np.random.default_rng(0).uniform(-width, width, count)


def floats(values: Any) -> Floats:
    """Values as plotly stores them shortest; what is infinite becomes NaN, which is not drawn."""
    wide = np.asarray(values, dtype="float64")
    with np.errstate(over="ignore"):
        short = wide.astype("float32")
    return np.where(np.isfinite(short), short, np.float32(np.nan))


def whole(values: Any) -> npt.NDArray[np.int32]:
    """Trial numbers, short."""
    return np.asarray(values, dtype="int32")


def styled(fig: go.Figure, height: int, **layout: Any) -> go.Figure:
    """A figure that takes the width it gets, the legend below, no colours but those of data."""
    transparent = "rgba(0,0,0,0)"
    fig.update_layout(
        template="none",
        autosize=True,
        height=height,
        paper_bgcolor=transparent,
        plot_bgcolor=transparent,
        margin={"l": 8, "r": 12, "t": 24, "b": 8},
        hovermode="closest",
        legend={
            "orientation": "h",
            "yref": "container",
            "yanchor": "bottom",
            "y": 0,
            "x": 0,
            "bgcolor": transparent,
        },
    )
    # A title without a distance of its own stays where labels may come to lie.
    fig.update_xaxes(automargin=True, title_standoff=6, zeroline=False)
    fig.update_yaxes(automargin=True, title_standoff=8, zeroline=False)
    return fig.update_layout(**layout)


def chooser(options: Sequence[tuple[str, Mapping[str, Any], Mapping[str, Any]]]) -> dict[str, Any]:
    """A menu above the plot.

    Args:
        options: the words, what changes in the traces, what changes in the layout.
    """
    buttons = [
        {"label": words, "method": "update", "args": [dict(traces), dict(layout)]}
        for words, traces, layout in options
    ]
    return {
        "buttons": buttons,
        "x": 0,
        "xanchor": "left",
        "y": 1,
        "yanchor": "bottom",
        "pad": {"b": 8, "t": 4},
        "showactive": True,
        # Plotly's colour of the chosen line is near white in any theme: the text must suit it.
        "bgcolor": "#dddddd",
        "font": {"color": "#222222"},
        "bordercolor": GREY,
        "borderwidth": 1,
    }


def colours(material: Material, values: Any) -> dict[str, Any]:
    """Markers coloured by a value; the worst tenth has one colour, or outliers would take all."""
    known = np.asarray(values, dtype="float64")
    known = known[np.isfinite(known)]
    low, high = (0.0, 1.0) if not len(known) else (float(known.min()), float(known.max()))
    if len(known) >= 20:
        tenth = 90 if material.minimized else 10
        bound = float(np.percentile(known, tenth))
        low, high = (low, bound) if material.minimized else (bound, high)
    return {"colorscale": scale(material), "cmin": low, "cmax": high}


def scale(material: Material) -> list[list[Any]]:
    """The colour scale on which brighter is better."""
    names = WORST_TO_BEST[::-1] if material.minimized else WORST_TO_BEST
    return [[index / (len(names) - 1), name] for index, name in enumerate(names)]


def colour_bar(name: str) -> dict[str, Any]:
    """A narrow colour bar beside the plot."""
    return {
        "thickness": 10,
        "xpad": 4,
        "outlinewidth": 0,
        "title": {"text": label(name, 40), "side": "right"},
        "nticks": 5,
    }
