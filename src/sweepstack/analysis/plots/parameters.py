"""The objective by key: importance, slices, contour, parallel coordinates.

Importance is drawn by optuna.visualization. The others are not: on 400 pixels its slices and
parallel coordinates cannot be read, and its contour of 1,000 trials is 5 MB of noise.
"""

from __future__ import annotations

import html
import itertools
import math
import warnings
from typing import Any

import numpy as np
import numpy.typing as npt
import optuna
import pandas as pd
import plotly.graph_objects as go
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from plotly.subplots import make_subplots

from sweepstack.analysis.plots import Plot, style
from sweepstack.study.frame import ranks
from sweepstack.study.view import StudyView

MIN_IMPORTANCE = 10
"""Complete trials from which importance is computed."""
MIN_QUANTILE = 5
"""Trials among the best that PED-ANOVA needs, by Optuna's documentation."""
MAX_SLICES = 12
SLICE_POINTS = 1_000
SMALL_FROM = 200
"""Trials from which points of slices are small."""
SLICE_PX, SLICE_GAP_PX = 270, 105
"""A row of slices, and of that the labels and title of its axis."""
SLICE_LETTERS = 13
"""Of a label of a slice: on a narrow screen they stand upright between two rows."""
MAX_CONTOURS = 6
MIN_CONTOUR, CONTOUR_POINTS = 8, 800
GRID = 40
NEAR = 0.05
"""The least weight of all trials, as a share of one at the very place, that counts as near."""
MAX_AXES, MAX_LINES, MIN_LINES = 10, 200, 3
GROUPS = (
    ("best 10%", 0.1, style.PALETTE[5], 1.6),
    ("to 25%", 0.25, style.PALETTE[1], 1.2),
    ("to 50%", 0.5, style.PALETTE[0], 0.8),
    ("worst 50%", 1.0, style.GREY, 0.5),
)
"""Names, the shares of trials up to which they reach, colours, widths of lines in pixels."""
MAX_MARKS = 8
WIDE_PX, NARROW_PX = 640, 235
"""What a parallel axis is sure to have on a wide and on a narrow page."""
LETTER_PX = 6.6
"""Of a label of a parallel axis, with some room."""
MARK_LETTERS = (40, 30, 24, 20, 16, 13, 10, 8, 6, 5)
"""Lengths to which labels are cut until they fit."""
Ticks = list[list[tuple[float, str]]]
"""Of each parallel axis: where in [0, 1], and which text."""


def importance(view: StudyView) -> tuple[Plot | None, list[str]]:
    """PED-ANOVA: how much a key's values differ between the best trials and all, with seeds as a
    measure of chance; None without enough trials, several keys, and values that differ.

    Returns:
        The plot, and the keys that vary: the most important first, in declared order without it.

    Computed on keys, not on Optuna's parameters: a key with several cases is one. A key that not
    all trials have is conditional (https://arxiv.org/abs/2601.20800).
    """
    good, keys = view.good, [*view.varied, *view.varied_seeds]
    keys = [key for key in keys if good[key].notna().any()]
    if len(good) < MIN_IMPORTANCE or len(keys) < 2 or good[view.objective].nunique() < 2:
        return None, view.varied
    quantile = max(0.1, min(0.5, MIN_QUANTILE / len(good)))
    # It brings scikit-learn, which takes a second: not where one key is all there is.
    evaluator = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=quantile)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of rare cases of a conditional key
        fig = optuna.visualization.plot_param_importances(
            _study_of_keys(view, keys), evaluator=evaluator, params=keys
        )
    (bars,) = fig.data
    shares = np.asarray(bars.x, dtype="float64")
    if not np.isfinite(shares).all() or not shares.sum() > 0:
        return None, view.varied
    share_of = dict(zip(bars.y, shares, strict=True))
    bars.update(
        x=style.floats(shares),
        y=[style.key_title(name)["text"] for name in bars.y],
        marker_color=[
            style.GREY if name in view.varied_seeds else style.PALETTE[0] for name in bars.y
        ],
        **{"text": None, "texttemplate": "%{x:.2f}", "cliponaxis": False},
        **{"hovertext": None, "hovertemplate": "%{y}: %{x:.3f}<extra></extra>"},
    )
    style.styled(fig, 100 + 36 * len(shares), title=None)
    # Room for the numbers beside the bars.
    room = [0, 1.2 * float(shares.max())]
    fig.update_xaxes(title={"text": "share of importance"}, nticks=6, range=room)
    fig.update_yaxes(type="category", title=None)
    says = f"PED-ANOVA: how much each key decides whether a trial is among the best {quantile:.0%}"
    says += f" of {len(good):,} complete ones; shares sum to 1, interactions do not show."
    if view.varied_seeds:
        says += " A key below the seed (grey) did no more than chance."
    plot = Plot("importance", "Importance of keys", says + style.of_several(view), fig)
    return plot, sorted(view.varied, key=lambda key: -share_of.get(key, 0.0))


def _study_of_keys(view: StudyView, keys: list[str]) -> optuna.Study:
    """The good trials as a study whose parameters are `keys`."""
    good = view.good
    columns: dict[str, tuple[Any, dict[Any, Any]]] = {}
    for key in keys:
        known = good[key].notna()
        if view.is_number(key):
            values = good.loc[known, key].astype("float64")
            low, high = view.keys[key].bounds or (math.inf, -math.inf)
            low, high = min(low, float(values.min())), max(high, float(values.max()))
            log = view.keys[key].is_log and low > 0
            columns[key] = (FloatDistribution(low, high, log=log), values.to_dict())
        else:
            codes = ranks(good, [key])[0][0][known]
            places = CategoricalDistribution(range(int(codes.max()) + 1))
            columns[key] = (places, codes.to_dict())
    shared: dict[str, Any] = {
        **{"state": TrialState.COMPLETE, "datetime_start": None, "datetime_complete": None},
        **{"user_attrs": {}, "system_attrs": {}, "intermediate_values": {}},
    }
    trials = [
        FrozenTrial(
            number=number,
            trial_id=number,
            value=value,
            params={key: values[row] for key, (_, values) in columns.items() if row in values},
            distributions={key: d for key, (d, values) in columns.items() if row in values},
            **shared,
        )
        for number, (row, value) in enumerate(good[view.objective].items())
    ]
    return _Fixed(StudyDirection[view.direction.upper()], trials)


class _Fixed(optuna.Study):
    """A study of given complete trials: to add 10,000 to a real one takes seconds."""

    def __init__(self, direction: StudyDirection, trials: list[FrozenTrial]):
        self._given, self._goals = trials, [direction]

    @property
    def directions(self) -> list[StudyDirection]:
        """That of the first objective."""
        return self._goals

    @property
    def metric_names(self) -> None:
        """None: the axis has our own title."""

    def get_trials(self, deepcopy: bool = True, states: Any = None) -> list[FrozenTrial]:
        """The given trials."""
        return self._given if states is None or TrialState.COMPLETE in states else []


def slices(view: StudyView, keys: list[str], *, ranked: bool = True) -> Plot | None:
    """The objective against each key: where good values lie, and where trials failed; `ranked` says
    that the keys are in the order of their importance."""
    shown = keys[:MAX_SLICES]
    if not shown or view.good.empty:
        return None
    good, left_out = style.thin(view, view.good, SLICE_POINTS)
    failed, _ = style.thin(view, view.frame[view.frame["state"] == "failed"], SLICE_POINTS // 4)
    drawn = view.frame.loc[[*good.index, *failed.index]]
    rows = math.ceil(len(shown) / 2)
    fig = make_subplots(
        rows=rows,
        cols=min(2, len(shown)),
        shared_yaxes="all",
        horizontal_spacing=0.04,
        vertical_spacing=min(SLICE_GAP_PX / (rows * SLICE_PX), 1 / rows),
    )
    style.styled(fig, rows * SLICE_PX + 40)
    values = style.value_axis(view, view.good[view.objective], view.objective)
    title = values.pop("title")
    fig.update_yaxes(**values)
    for index, key in enumerate(shown):
        along = style.axis(view, key, drawn, SLICE_LETTERS)
        where = {"row": index // 2 + 1, "col": index % 2 + 1}
        for trace in _slice(view, drawn, along):
            trace.showlegend = index == 0
            fig.add_trace(trace, **where)
        fig.update_xaxes(**{"nticks": 5, **along.layout, "title": style.key_title(key), **where})
        fig.update_xaxes(title_standoff=6, **where)
        if where["col"] == 1:
            fig.update_yaxes(title=title, **where)
    says = f"{style.plain(view.objective)} ({view.direction}d) of {len(view.good):,} complete"
    says += f" trials against {'each key' if len(keys) > 1 else style.plain(keys[0])}"
    says += ", the most important first" * (ranked and len(keys) > 1)
    if len(keys) > len(shown):
        says += f" ({len(shown)} of {len(keys)} keys)"
    says += "; failed trials stand at the worst value." if len(failed) else "."
    style.narrow(fig, **_column(len(shown)))
    return Plot("slices", "Slices", says + left_out + style.of_several(view), fig)


def _column(count: int) -> dict[str, Any]:
    """The layout of `count` slices below each other, for a narrow page."""
    layout: dict[str, Any] = {"height": count * SLICE_PX + 40}
    gap = SLICE_GAP_PX / (count * SLICE_PX - 60)
    share = (1 - (count - 1) * gap) / count
    for index in range(count):
        name = str(index + 1) if index else ""
        top = 1 - index * (share + gap)
        layout[f"xaxis{name}"] = {"domain": [0, 1]}
        layout[f"yaxis{name}"] = {"domain": [max(top - share, 0), top], "showticklabels": True}
    return layout


def _slice(view: StudyView, rows: pd.DataFrame, along: style.Axis) -> list[go.Scatter]:
    """The marks of one panel; a failed trial has no value and stands at the worst."""
    values = view.good[view.objective]
    worst = values.max() if view.minimized else values.min()
    y = rows[view.objective].where(rows["state"] == "complete", worst)
    best = view.best_first(view.good).index[:1]
    size = 4 if len(rows) > SMALL_FROM else 7
    complete, failed = (rows.index[rows["state"] == state] for state in ("complete", "failed"))
    marks: list[tuple[str, pd.Index, dict[str, Any]]] = [
        ("complete", complete.difference(best), {"symbol": "circle", "size": size}),
        ("failed", failed, {"symbol": "x", "size": size + 1}),
        ("best", best, {"symbol": "star", "size": 13}),
    ]
    traces = []
    for name, chosen, marker in marks:
        if len(chosen):
            at = along.at.loc[chosen].to_numpy(dtype="float64")
            if along.labels is not None and name != "best":
                at = at + style.spread(len(at), 0.25)
            colour = style.PALETTE[5] if name == "best" else style.STATE_COLOURS[name]
            numbers, marker = rows.loc[chosen, "number"], {"color": colour, **marker}
            hover = f", {name}: %{{y}}"
            traces.append(style.points(at, y.loc[chosen], numbers, name, hover, marker=marker))
    return traces


def contour(view: StudyView, keys: list[str]) -> Plot | None:
    """The objective over two keys of numbers, smoothed, with the trials; a menu of pairs.

    A point of the surface is the mean of the trials around it, weighted by a Gaussian kernel of
    their distance (in ranges of the keys, of their logarithms where they were drawn so); where no
    trial is near it stays empty. Smoothing and not interpolation: a trial's value is noisy.
    """
    numeric = [key for key in keys if view.is_number(key)]
    options: list[style.Option] = []
    left_out = ""
    for pair in itertools.combinations(numeric, 2):
        lines = [style.axis(view, key, view.good) for key in pair]
        at = pd.DataFrame({index: along.at for index, along in enumerate(lines)})
        at = at[np.isfinite(at).all(axis=1)]
        if len(options) == MAX_CONTOURS:
            break
        if len(at) >= MIN_CONTOUR and view.good[list(pair)].nunique().min() > 2:
            traces, said = _surface(view, lines, at)
            left_out = left_out or said
            axes = {
                name: {
                    **{"type": "linear", "nticks": 6, "automargin": True, "zeroline": False},
                    **along.layout,
                    "title": style.key_title(key) | {"standoff": 8},
                }
                for name, key, along in zip(("xaxis", "yaxis"), pair, lines, strict=True)
            }
            options.append((style.pair_title(pair, view.varied), traces, axes))
    if not options:
        return None
    fig = style.with_menu(options, 500, showlegend=False)
    says = f"Mean {style.plain(view.objective)} around each point, brighter is better; dots are the"
    says += f" trials.{left_out}{style.of_several(view)}"
    return Plot("contour", "Pairs of numbers", says, fig)


def smooth(
    points: npt.NDArray[np.float64], values: npt.NDArray[np.float64], side: int = GRID
) -> npt.NDArray[np.float64]:
    """Kernel means on a grid over the unit square: (side, side), rows along the second axis.

    Args:
        points: (N, 2) in [0, 1]; the kernel's width shrinks as N**(-1/6), Scott's rule.
        values: (N,).
    """
    width = 0.3 * len(points) ** (-1 / 6)
    steps = np.linspace(0, 1, side)
    # The kernel is a product, so that two (side, N) matrices are enough.
    across = np.exp(-0.5 * ((steps[:, None] - points[:, 0]) / width) ** 2)
    down = np.exp(-0.5 * ((steps[:, None] - points[:, 1]) / width) ** 2)
    weight = down @ across.T
    with np.errstate(invalid="ignore", divide="ignore"):
        means = (down * values) @ across.T / weight
    return np.where(weight >= NEAR, means, np.nan)


def _surface(view: StudyView, lines: list[style.Axis], at: pd.DataFrame) -> tuple[list[Any], str]:
    """The smoothed surface and the trials of one pair, and which trials were left out."""
    values = view.good.loc[at.index, view.objective]
    tones = style.colours(view, values)
    low, high = tones["cmin"], tones["cmax"]
    unit, ticks = [], []
    for index, along in enumerate(lines):
        scaled = along.scaled(at[index])
        first, last = float(scaled.min()), float(scaled.max())
        unit.append((scaled - first) / ((last - first) or 1))
        ticks.append(style.floats(along.unscaled(np.linspace(first, last, GRID))))
    surface = go.Contour(
        x=ticks[0],
        y=ticks[1],
        # Outliers would pull everything around them out of the picture.
        z=style.floats(smooth(np.stack(unit, 1), values.clip(low, high).to_numpy())),
        **{"colorscale": tones["colorscale"], "zmin": low, "zmax": high, "ncontours": 15},
        line={"width": 0},
        connectgaps=False,
        colorbar=style.colour_bar(view.objective),
        hovertemplate="%{z:.4~g}<extra></extra>",
    )
    shown, left_out = style.thin(view, view.good.loc[at.index], CONTOUR_POINTS)
    value = style.floats(shown[view.objective])
    marker = {"color": "#ffffff", "size": 6, "line": {"width": 1, "color": "#000000"}}
    dots = style.points(
        at.loc[shown.index, 0], at.loc[shown.index, 1], shown["number"], "trials", marker=marker
    )
    dots.update(text=value, hovertemplate="trial %{customdata}: %{text:.4~g}<extra></extra>")
    return [surface, dots], left_out


def parallel(view: StudyView, keys: list[str], *, ranked: bool = True) -> Plot | None:
    """Every key and the objective beside each other, a line per complete trial.

    Axes lie across and lines go down, so that names and choices stay readable on a narrow screen.
    Trials are in groups by the objective, each a click away in the legend.
    """
    shown = keys[:MAX_AXES]
    if len(shown) < 2 or len(view.good) < MIN_LINES:
        return None
    ordered = view.best_first(view.good)
    count = len(ordered)
    # Which share of the trials is better; the first is always among the best.
    better = np.arange(count) / count + 1e-9 * (np.arange(count) > 0)
    group = pd.Series(
        np.searchsorted([share for _, share, *_ in GROUPS], better), index=ordered.index
    )
    drawn = ordered
    left_out = ""
    if count > MAX_LINES:
        random, each = np.random.default_rng(0), MAX_LINES // len(GROUPS)
        groups = [group.index[group == index].to_numpy() for index in range(len(GROUPS))]
        chosen = [random.choice(rows, min(len(rows), each), replace=False) for rows in groups]
        drawn = ordered.loc[np.concatenate(chosen)]
        left_out = f" Drawn are {len(drawn)} of {count:,} trials, as many of each group as"
        left_out += " there are of the best."
    places, ticks = _places(view, drawn, shown)
    fig = go.Figure()
    names = [*shown, view.objective]
    # The best last, on top.
    for index, (name, _, colour, width) in reversed(list(enumerate(GROUPS))):
        rows = places.loc[drawn.index[group.loc[drawn.index] == index]]
        if len(rows):
            lines = [(line, range(len(names))) for line in rows.to_numpy(dtype="float64")]
            at = style.joined(drawn.loc[rows.index, "number"].tolist(), lines)
            line = {"color": colour, "width": width}
            shape: dict[str, Any] = {"mode": "lines+markers", "marker": {"size": 3}, "line": line}
            fig.add_trace(style.points(*at, name, "", **shape))
    fig.update_layout(annotations=_marks(ticks, WIDE_PX))
    style.narrow(fig, annotations=_marks(ticks, NARROW_PX))
    style.styled(fig, 60 + 64 * len(names), legend_traceorder="reversed")
    fig.update_xaxes(visible=False, range=[-0.04, 1.04], fixedrange=True)
    fig.update_yaxes(
        **style.rows_axis([style.key_title(name, 16)["text"] for name in names]), fixedrange=True
    )
    says = f"A line per trial through its values, {style.plain(view.objective)} at the bottom"
    says += (
        f"{'; the most important keys on top' * ranked}. Click a group in the legend to hide it,"
    )
    says += " twice to see only it."
    if len(keys) > len(shown):
        says += f" {len(shown)} of {len(keys)} keys."
    return Plot("parallel", "Parallel coordinates", says + left_out + style.of_several(view), fig)


def _places(view: StudyView, drawn: pd.DataFrame, keys: list[str]) -> tuple[pd.DataFrame, Ticks]:
    """Where each trial crosses each axis, in [0, 1], and the axes' labels."""
    places, ticks = {}, []
    for row, key in enumerate([*keys, view.objective]):
        if key == view.objective:
            along = style.Axis(drawn[key], style.value_axis(view, drawn[key], key), None)
        else:
            along = style.axis(view, key, drawn, MARK_LETTERS[0])
        if along.labels is None:
            places[row], marks = _range(along)
        else:
            count = len(along.labels)
            # Each choice has its part of the axis, its lines the middle of that.
            places[row] = (along.at + 0.5) / count + style.spread(
                len(drawn), min(0.03, 0.25 / count)
            )
            marks = [((tick + 0.5) / count, text) for tick, text in enumerate(along.labels)]
            marks = marks[:: -(-count // MAX_MARKS)]
        ticks.append(marks)
    return pd.DataFrame(places), ticks


def _marks(ticks: Ticks, width: float) -> list[dict[str, object]]:
    """The labels of parallel axes so many pixels wide, the whole text of those cut on hover."""
    return [
        {
            **{"x": place, "y": row, "text": shown, "showarrow": False},
            **{"xanchor": anchor, "yanchor": "bottom", "yshift": 2 + 13 * line},
            **({"hovertext": text} if shown != text else {}),
            # A shadow in the text's opposite: lines run through it.
            "font": {"size": 11, "shadow": "auto"},
        }
        for row, marks in enumerate(ticks)
        for (_, text), (place, anchor, line, shown) in zip(
            marks, _fitted(marks, width), strict=True
        )
    ]


def _fitted(marks: list[tuple[float, str]], width: float) -> list[tuple[float, str, int, str]]:
    """Labels in up to two lines, cut until none overlaps: place, anchor, line, text of each."""
    for letters in MARK_LETTERS:
        ends, found = [-1.0, -1.0], []
        for at, text in marks:
            shown = style.cut(text, letters)
            size = min(LETTER_PX * len(html.unescape(shown)) / width, 1.0)
            left = min(max(at - size / 2, 0.0), 1.0 - size)
            place, anchor = (0.0, "left") if left == 0 else (at, "center")
            place, anchor = (1.0, "right") if left == 1.0 - size > 0 else (place, anchor)
            line = 0 if left >= ends[0] else 1
            if left < ends[line]:
                break
            ends[line] = left + size + LETTER_PX / width
            found.append((place, anchor, line, shown))
        else:
            return found
    return found + [(at, "center", 0, "") for at, _ in marks[len(found) :]]


def _range(along: style.Axis) -> tuple[pd.Series, list[tuple[float, str]]]:
    """Places of numbers between the least and the greatest, and three labels."""
    scaled = along.scaled(along.at)
    low, high = float(scaled.min()), float(scaled.max())
    if not high > low:
        value = along.unscaled(low)
        return scaled - low + 0.5, [(0.5, style.label(value))] if math.isfinite(low) else []
    ticks = [(x, along.unscaled(low + x * (high - low))) for x in (0.0, 0.5, 1.0)]
    return (scaled - low) / (high - low), [(x, style.label(float(f"{t:.4g}"))) for x, t in ticks]
