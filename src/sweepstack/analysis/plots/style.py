"""What all plots share: colours, axes, marks, the layout, and texts of a study made harmless."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import plotly.graph_objects as go

from sweepstack.analysis.terminal import setting
from sweepstack.config.errors import printable
from sweepstack.study.frame import ranks
from sweepstack.study.view import StudyView

PALETTE = ("#0B6FAE", "#966200", "#007A56", "#B0457F", "#444B54", "#BF4B00")
"""Okabe and Ito's colours without yellow, distinct for the colour-blind, so dark that each has a
contrast of 4.5 on white. On a dark page report.js draws the lighter ones of report.css instead."""
GREY = "#6B7280"
STATE_COLOURS = {
    "complete": PALETTE[0],
    "pruned": PALETTE[1],
    "failed": PALETTE[5],
    "running": PALETTE[4],
    "waiting": GREY,
}
WORST_TO_BEST = ("#472d7b", "#3b528b", "#2c728e", "#21918c", "#28ae80", "#5ec962", "#addc30")
"""Viridis without its ends, which would vanish on black and on white."""
MAX_POINTS = 2_000
"""Trials that one plot draws."""
MAX_BEST = 100
"""The best trials that are always drawn where some are left out."""
MAX_CHOICES = 24
"""Values of a key up to which it is an axis of a table."""
MAX_LETTERS = 24
NOT_SET = "not set"
Floats = npt.NDArray[np.float32]
Option = tuple[str, Sequence[Any], dict[str, Any]]
"""One entry of a plot's menu: its label, its traces, its layout."""


def thin(view: StudyView, df: pd.DataFrame, most: int = MAX_POINTS) -> tuple[pd.DataFrame, str]:
    """At most `most` rows, in their order, and a sentence that says which, or nothing.

    The best, those that failed or were pruned (at most a quarter of `most` each), others at
    random; the same every time.
    """
    if len(df) <= most:
        return df, ""
    random = np.random.default_rng(0)
    chosen = [*view.best_first(df[df.index.isin(view.good.index)]).index[:MAX_BEST]]
    for state in ("failed", "pruned"):
        rows = df.index[df["state"] == state].to_numpy()
        chosen += list(random.choice(rows, min(len(rows), most // 4), replace=False))
    rest = df.index.difference(pd.Index(chosen)).to_numpy()
    chosen += list(random.choice(rest, min(len(rest), most - len(chosen)), replace=False))
    which = "the best, failed and pruned ones, others at random"
    return df.loc[sorted(chosen)], f" Drawn are {most:,} of {len(df):,} trials: {which}."


def of_several(view: StudyView) -> str:
    """A sentence that says which objective is shown, where there are several."""
    if view.has_one_objective:
        return ""
    return f" Shown is the first objective, {plain(view.objective)}."


@dataclass(frozen=True)
class Axis:
    """Where trials lie on the axis of a key.

    Attributes:
        at: a position for each row; NaN where the key is not set or cannot be drawn.
        layout: for plotly.
        labels: of the positions 0, 1, ... of choices; None for numbers.
    """

    at: pd.Series
    layout: dict[str, Any]
    labels: list[str] | None

    @property
    def is_log(self) -> bool:
        """Whether it is logarithmic."""
        return bool(self.layout.get("type") == "log")

    def scaled(self, values: Any) -> Any:
        """Numbers, or their logarithms on a logarithmic axis."""
        return np.log10(values) if self.is_log else values

    def unscaled(self, places: Any) -> Any:
        """The inverse of `scaled`."""
        return 10**places if self.is_log else places


def axis(view: StudyView, key: str, df: pd.DataFrame, letters: int = MAX_LETTERS) -> Axis:
    """The axis of a key, with positions for the rows of `df` and labels of so many letters."""
    if view.is_number(key):
        at = pd.to_numeric(df[key], errors="coerce").astype("float64")
        if not view.keys[key].is_log:
            return Axis(at, {}, None)
        at = at.where(at > 0)
        return Axis(at, log_axis(at), None)
    codes, labels = ranks(df, [key])
    names = [label(value, letters) for value in labels[0]]
    ticks = range(0, len(names), math.ceil(len(names) / MAX_CHOICES) or 1)
    layout = {
        "tickvals": list(ticks),
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
    ticks = {"dtick": max(1, math.ceil(decades / 5))} if decades >= 1 else {"nticks": 5}
    return {"type": "log", "exponentformat": "e", **ticks}


def step_axis(steps: Any) -> dict[str, Any]:
    """A horizontal axis of training steps, with room for labels and marks at both ends."""
    first, last = float(np.min(steps)), float(np.max(steps))
    room = 0.03 * (last - first)
    return {"title": {"text": "step"}, "nticks": 8, "range": [first - room, last + room]}


def value_axis(view: StudyView, values: Any, name: str) -> dict[str, Any]:
    """An axis of a metric; logarithmic where a loss spans more than two decades."""
    known = finite(values)
    title = {"text": label(name, 40), "standoff": 8}
    shared = {"title": title, "zeroline": False, "hoverformat": ".4~g"}
    is_loss = view.objectives.get(name) != "maximize"
    if is_loss and len(known) and known.min() > 0 and known.max() / known.min() > 100:
        return {**shared, **log_axis(known)}
    return {**shared, "nticks": 6}


def finite(values: Any) -> npt.NDArray[np.float64]:
    """The finite numbers among some values."""
    known: npt.NDArray[np.float64] = np.asarray(values, dtype="float64")
    return known[np.isfinite(known)]


def rows_axis(texts: Sequence[str], ticks: Sequence[float] | None = None) -> dict[str, Any]:
    """A vertical axis of rows, the first on top."""
    return {
        "tickvals": list(range(len(texts)) if ticks is None else ticks),
        "ticktext": list(texts),
        "range": [len(texts) - 0.4, -0.6],
        "zeroline": False,
        "showgrid": False,
    }


def spread(count: int, width: float) -> npt.NDArray[np.float64]:
    """Offsets that keep points of one choice apart; the same every time."""
    return np.random.default_rng(0).uniform(-width, width, count)


def floats(values: Any) -> Floats:
    """Values as plotly stores them shortest; infinite ones become NaN, which is not drawn."""
    wide = np.asarray(values, dtype="float64")
    with np.errstate(over="ignore"):
        short = wide.astype("float32")
    return np.where(np.isfinite(short), short, np.float32(np.nan))


def whole(values: Any) -> npt.NDArray[np.int32]:
    """Trial numbers, short."""
    return np.asarray(values, dtype="int32")


def points(
    x: Any, y: Any, numbers: Any, name: str, hover: str = ": %{y}", **settings: Any
) -> go.Scatter:
    """Marks of trials by their numbers; `hover` follows "trial N" in the text of each."""
    return go.Scatter(
        x=floats(x),
        y=floats(y),
        customdata=whole(numbers),
        name=name,
        hovertemplate=f"trial %{{customdata}}{hover}<extra></extra>",
        **{"mode": "markers", "legendgroup": name, **settings},
    )


def joined(numbers: Sequence[int], curves: Sequence[tuple[Any, Any]]) -> tuple[Floats, Floats, Any]:
    """Many curves as one trace, NaN between them: x, y and the trial of each point."""
    gap = np.array([np.nan])
    xs, ys = zip(*curves, strict=True)
    x, y = (
        np.concatenate([part for v in values for part in (np.asarray(v, dtype="float64"), gap)])
        for values in (xs, ys)
    )
    return floats(x), floats(y), whole(np.repeat(numbers, [len(steps) + 1 for steps in xs]))


def styled(fig: go.Figure, height: int, **layout: Any) -> go.Figure:
    """A figure of any width with the legend below and no colours but those of data."""
    transparent = "rgba(0,0,0,0)"
    legend = {"orientation": "h", "yref": "container", "yanchor": "bottom", "y": 0, "x": 0}
    fig.update_layout(
        template="none",
        autosize=True,
        height=height,
        paper_bgcolor=transparent,
        plot_bgcolor=transparent,
        margin={"l": 8, "r": 12, "t": 24, "b": 8},
        hovermode="closest",
        legend={**legend, "bgcolor": transparent},
    )
    # A title without a distance of its own stays where labels may come to lie.
    fig.update_xaxes(automargin=True, title_standoff=6, zeroline=False)
    fig.update_yaxes(automargin=True, title_standoff=8, zeroline=False)
    return fig.update_layout(**layout)


def narrow(fig: go.Figure, **layout: Any) -> go.Figure:
    """Say what of the layout is different where the page is narrower than about 500 pixels:
    report.js merges it by its keys, those of axes one by one."""
    return fig.update_layout(meta={"narrow": layout})


def with_menu(options: Sequence[Option], height: int, **layout: Any) -> go.Figure:
    """A figure of which a menu shows one option at a time, at first the first."""
    fig = go.Figure([trace for _, traces, _ in options for trace in traces])
    owner = [index for index, (_, traces, _) in enumerate(options) for _ in traces]
    for trace, index in zip(fig.data, owner, strict=True):
        trace.visible = index == 0
    menu = {
        "buttons": [
            {"label": name, "method": "update", "args": [{"visible": shown}, axes]}
            for index, (name, _, axes) in enumerate(options)
            for shown in [[other == index for other in owner]]
        ],
        **{"x": 0, "xanchor": "left", "y": 1, "yanchor": "bottom", "pad": {"b": 8, "t": 4}},
        # Plotly's colour of the chosen line is near white in any theme: the text must suit it.
        **{"bgcolor": "#dddddd", "font": {"color": "#222222"}},
        **{"showactive": True, "bordercolor": GREY, "borderwidth": 1},
    }
    styled(fig, height, **({"updatemenus": [menu]} if len(options) > 1 else {}), **layout)
    return fig.update_layout(options[0][2])


def colours(view: StudyView, values: Any) -> dict[str, Any]:
    """Markers coloured by a value; the worst tenth has one colour, or outliers would take all."""
    known = finite(values)
    low, high = (float(known.min()), float(known.max())) if len(known) else (0.0, 1.0)
    if len(known) >= 20:
        bound = float(np.percentile(known, 90 if view.minimized else 10))
        low, high = (low, bound) if view.minimized else (bound, high)
    return {"colorscale": scale(view), "cmin": low, "cmax": high}


def scale(view: StudyView) -> tuple[str, ...]:
    """The colour scale on which brighter is better, from the smallest value to the largest."""
    return WORST_TO_BEST[::-1] if view.minimized else WORST_TO_BEST


def colour_bar(name: str) -> dict[str, Any]:
    """A narrow colour bar beside the plot."""
    title = {"text": label(name, 40), "side": "right"}
    return {"thickness": 10, "xpad": 4, "outlinewidth": 0, "title": title, "nticks": 5}


def label(value: Any, letters: int = MAX_LETTERS) -> str:
    """A value of the study, short and as plain text: plotly would read tags and entities in it."""
    text = printable(setting(value, 4, NOT_SET))
    return _harmless(shortened(text, letters) if isinstance(value, str) else text)


def cut(text: str, letters: int) -> str:
    """A label of `label`, shorter."""
    return _harmless(shortened(html.unescape(text), letters))


def shortened(text: str, letters: int) -> str:
    """Text of at most so many letters, its middle left out: names often differ at the end."""
    if len(text) <= letters:
        return text
    return f"{text[: letters // 2]}…{text[len(text) - (letters - 1) // 2 :]}"


def _harmless(text: str) -> str:
    # A brace would be a variable in a hover text.
    return html.escape(text, quote=False).replace("{", "&#123;")


def plain(name: str) -> str:
    """A name of the study within a sentence, harmless in HTML whether it is escaped or not."""
    return re.sub("[<>&\"']", "?", printable(name[:60]))


def key_title(key: str, letters: int = 20) -> dict[str, Any]:
    """The title of a key's axis; a long name has a second line for its last part."""
    group, dot, name = key.rpartition(".")
    if len(key) <= letters or not dot:
        return {"text": label(key, 28)}
    return {"text": f"{label(f'{group}.', 22)}<br>{label(name)}"}


def pair_title(pair: tuple[str, str], keys: Sequence[str]) -> str:
    """The label of a menu's entry for two keys: their last parts where these tell them apart."""
    ends = [key.rpartition(".")[2] for key in keys]
    short = [key.rpartition(".")[2] for key in pair]
    return " × ".join(
        label(end if ends.count(end) == 1 else key, 20)
        for key, end in zip(pair, short, strict=True)
    )
