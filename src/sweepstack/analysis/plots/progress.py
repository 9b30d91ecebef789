"""How a study went: the best so far, learning curves, evaluations and what the pruner cut.

Not by optuna.visualization: its history knows no training steps and no time, and its intermediate
values of 1,000 trials are 1,000 colours without a sign of what was pruned.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from sweepstack.analysis.plots import Plot, style
from sweepstack.study.frame import ranks
from sweepstack.study.view import StudyView

PAUSE_S = 60.0
"""A longer gap in which no trial ran is left out of the time."""
MAX_TICKS = 500
"""Pruned or failed trials that have a tick in the history."""
LOST = {"pruned": 0.02, "failed": 0.05}
"""States of trials without a value, and the height of their ticks in the history."""
MAX_BEST = 5
MAX_PRUNED = 20
"""Trials that have a learning curve."""
MAX_LABELLED = 3
"""Keys whose values stand in the label of a learning curve."""
MARGIN = 1.0
"""How far an axis goes beyond the best trials, as a share of their own range."""
MAX_STEPS = 200
"""Evaluations of a learning curve that are drawn."""
BAND = "2E"
"""How opaque a band is, of FF."""
MAX_CURVES = 200
MAX_EVALUATIONS = 12_000
"""Trials and evaluations in the plot of all evaluations."""


@dataclass(frozen=True)
class Clock:
    """When each trial that has started began and ended, by the rows of the frame.

    A study that was stopped and resumed the next day would else be a night with a little at its
    ends.

    Attributes:
        begin, end: seconds since the first trial's start, pauses left out; the end of a running
            trial is the last time that is known.
        pauses: how many were left out.
    """

    begin: pd.Series
    end: pd.Series
    pauses: int

    @property
    def total(self) -> float:
        """The latest end, 0 without any."""
        return float(np.nanmax(self.end)) if self.end.notna().any() else 0.0

    @property
    def unit(self) -> tuple[float, str]:
        """Seconds in the unit that suits the whole time, and its name."""
        for size, name in ((86_400, "days"), (3_600, "h"), (60, "min")):
            if self.total >= 3 * size:
                return float(size), name
        return 1.0, "s"

    @property
    def says(self) -> str:
        """A sentence about pauses, or nothing."""
        if not self.pauses:
            return ""
        return f" {self.pauses} pause{'s' * (self.pauses > 1)} of over a minute left out."


def clock(df: pd.DataFrame) -> Clock:
    """When the trials of a frame began and ended."""
    begun = df[df["started"].notna()]
    start = (begun["started"] - begun["started"].min()).dt.total_seconds().astype("float64")
    start = start.sort_values(kind="stable")
    end = start + begun["duration_s"].clip(lower=0).reindex(start.index)
    known = pd.concat([start, end])
    end = end.where(
        df["state"].reindex(start.index) != "running", known.max() if len(known) else 0.0
    )
    before = end.fillna(start).cummax().shift(fill_value=0.0)
    gap = (start - before).clip(lower=0)
    pauses = gap.where(gap > PAUSE_S, 0.0)
    # Nothing runs in a pause, so a trial's end comes as much earlier as its begin does.
    idle = pauses.cumsum()
    return Clock(start - idle, end - idle, int((pauses > 0).sum()))


def optimization(view: StudyView) -> Plot | None:
    """The objective of each trial and the best so far, for a single objective.

    A menu chooses the horizontal axis: trials by number; training steps of all trials that had
    ended (pruned and failed ones too; a duplicate cost none); or time, without pauses.
    """
    if not view.has_one_objective or view.good.empty:
        return None
    time = clock(view.frame)
    ways = _spent(view, time)
    good, left_out = style.thin(view, view.good)
    options = [
        (name, _history(view, good, at), {"xaxis.title.text": title, "xaxis.autorange": True})
        for name, title, at in ways
    ]
    fig = style.with_menu(options, 440, xaxis={"nticks": 8})
    fig.update_layout(
        yaxis=style.value_axis(view, view.good[view.objective], view.objective),
        # Pruned and failed trials have no value: ticks at the bottom.
        yaxis2={"overlaying": "y", "range": [0, 1], "visible": False, "fixedrange": True},
    )
    many = len(view.good)
    says = f"Each of {many:,} complete trials and the best so far" if many > 1 else "One trial"
    lost = [state for state in LOST if (view.frame["state"] == state).any()]
    ticks = f"; ticks at the bottom are {' and '.join(lost)} trials" if lost else ""
    says += f" ({style.plain(view.objective)}, {view.direction}d){ticks}."
    says += f"{left_out}{time.says if len(ways) > 1 else ''}"
    return Plot("optimization", "Optimization history", says, fig)


def _spent(view: StudyView, time: Clock) -> list[tuple[str, str, pd.Series]]:
    """Menu entry, axis title and the position of each trial, for each horizontal axis."""
    df = view.frame
    ways = [("by trial", "trial", df["number"].astype("float64"))]
    order = time.end.dropna().sort_values(kind="stable").index
    if "steps" in df and len(order):
        steps = pd.to_numeric(df["steps"], errors="coerce").fillna(0).astype("float64")
        steps = steps.where(~view.duplicates, 0.0)
        if steps.sum() > 0:
            total = steps.reindex(order).cumsum().reindex(df.index)
            ways.append(("by training steps", "training steps of all trials", total))
    if time.total > 0:
        size, name = time.unit
        ways.append(("by time", f"time since the start ({name})", time.end / size))
    return ways


def _best_so_far(view: StudyView, at: pd.Series) -> pd.DataFrame:
    """The rows at which the best changed, and the last position of all as `at` of one more."""
    good = view.good.assign(at=at.reindex(view.good.index)).dropna(subset=["at"])
    good = good.sort_values("at", kind="stable")
    values = good[view.objective]
    best = values.cummin() if view.minimized else values.cummax()
    steps = good[best.ne(best.shift())]
    return pd.concat([steps, steps.tail(1).assign(at=at.max())])


def _history(view: StudyView, good: pd.DataFrame, at: pd.Series) -> list[Any]:
    marker = {"color": style.STATE_COLOURS["complete"], "size": 5}
    x, y = at.reindex(good.index), good[view.objective]
    traces = [style.points(x, y, good["number"], "trial", marker=marker)]
    best = _best_so_far(view, at)
    line = {"color": style.PALETTE[5], "width": 2, "shape": "hv"}
    y, name = best[view.objective], "best so far"
    traces.append(style.points(best["at"], y, best["number"], name, mode="lines", line=line))
    for state, height in LOST.items():
        ended = view.frame[view.frame["state"] == state]
        rows, _ = style.thin(view, ended, MAX_TICKS)
        traces.append(
            style.points(
                at.reindex(rows.index),
                [height] * len(rows),
                rows["number"],
                f"{state} ({len(ended):,})",
                f": {state}",
                yaxis="y2",
                showlegend=len(rows) > 0,
                marker={"color": style.STATE_COLOURS[state], "size": 8, "symbol": "line-ns-open"},
            )
        )
    return traces


def curves(view: StudyView) -> Plot | None:
    """Metrics against steps of the best trials and of some pruned ones, if any trial was evaluated
    more than once.

    A row for each metric: the objective first, then the losses; solid lines are validation, dotted
    ones training data. Of trials that are means over seeds the curve is the mean.
    """
    history = view.history
    best = [int(x) for x in view.best_first(view.good)["number"].head(MAX_BEST)]
    pruned = history.loc[history["state"] == "pruned", "number"].drop_duplicates().to_numpy()
    count = len(pruned)
    if count > MAX_PRUNED:
        pruned = np.sort(np.random.default_rng(0).choice(pruned, MAX_PRUNED, replace=False))
    wanted = history[history["number"].isin([*best, *pruned])]
    metrics = _metrics(view, wanted)
    if not metrics or wanted.groupby("number")["step"].nunique().max() < 2:
        return None
    names = [name for pair in metrics for name in pair if name]
    means = wanted.groupby(["number", "step"], sort=True)[names].mean()
    labels = {number: _settings_of(view, number) for number in best}
    fig = make_subplots(rows=len(metrics), cols=1, shared_xaxes=True, vertical_spacing=0.06)
    outside = False
    for row, pair in enumerate(metrics, 1):
        fig.add_traces(_row(means, labels, pruned, pair, row == 1), rows=row, cols=1)
        drawn = [name for name in pair if name]
        title = pair[0] if pair[1] is None else pair[0].removeprefix("val_")
        along = style.value_axis(view, means[drawn], pair[0])
        of_best = means.loc[means.index.isin(best, level="number"), drawn]
        limits, left_out = _range(of_best, means[drawn], along.get("type") == "log")
        if limits and along.get("type") == "log":  # ticks for what is shown of the axis
            along = {"title": along["title"], **style.log_axis([10**limit for limit in limits])}
        along |= {"range": limits, "title": {**along["title"], "text": style.label(title, 40)}}
        outside |= left_out
        fig.update_yaxes(along, row=row, col=1)
    style.styled(fig, 60 + 260 * len(metrics))
    fig.update_xaxes(title={"text": "step"}, row=len(metrics), col=1)
    fig.update_xaxes(nticks=8)
    says = f"The {len(best)} best trials, best first" if len(best) > 1 else "The best trial"
    has_training = any(training for _, training in metrics)
    says += "; solid: validation, dotted: training data." if has_training else "."
    if count:
        says += f" Thin lines: {len(pruned)} of {count:,} pruned trials, crosses where they ended."
    if not best:
        says = f"No trial is complete; {len(pruned)} of {count:,} pruned trials."
    elif outside:
        says += " The axes follow the best; some of the pruned lie outside."
    return Plot("learning-curves", "Learning curves", says, fig)


def cells(view: StudyView, keys: Sequence[str], metric: str | None = None) -> Plot | None:
    """Mean curves of the complete trials of each value of a key, a band of ± standard deviation
    around each; a menu has the values of a second key.

    Args:
        keys: of which the first two with few values are taken, none of a range whose values are
            all different.
        metric: of the history; the objective by default.
    """
    metric = metric or view.objective
    several = [k for k in keys if view.keys[k].is_finite or not view.good[k].is_unique]
    few = [key for key in several if 2 <= view.good[key].nunique() <= len(style.PALETTE)][:2]
    curves = view.curve(metric)
    if not few or curves.shape[1] < 2 or view.good.empty:
        return None
    trials = view.good[view.good["number"].isin(curves.index)].set_index("number")
    codes, labels = ranks(trials, few)
    options: list[style.Option] = []
    for second in range(len(labels[1]) if len(few) > 1 else 1):
        traces: list[go.Scatter] = []
        for first, value in enumerate(labels[0]):
            chosen = codes[0] == first
            chosen &= codes[1] == second if len(few) > 1 else True
            name, colour = style.label(value), style.PALETTE[first % len(style.PALETTE)]
            traces += _band(curves.loc[trials.index[chosen]], name, colour)
        chosen_value = style.label(labels[1][second]) if len(few) > 1 else ""
        options.append((f"{style.label(few[-1])} = {chosen_value}", traces, {}))
    fig = style.with_menu(options, 400)
    fig.update_xaxes(style.step_axis(curves.columns))
    fig.update_yaxes(style.value_axis(view, curves.loc[trials.index], metric))
    says = f"Mean {style.plain(metric)} of the n complete trials of each {style.plain(few[0])}"
    banded = [trace for _, traces, _ in options for trace in traces if trace.fill]
    says += "; the band is ± standard deviation." if banded else "."
    says += f" The menu has the values of {style.plain(few[1])}." if len(few) > 1 else ""
    title = f"Mean curves by {' and '.join(map(style.plain, few))}"
    return Plot("mean-curves", title, says + style.of_several(view), fig)


def _band(curves: pd.DataFrame, name: str, colour: str) -> list[go.Scatter]:
    """The mean of some curves (a row per trial, a column per step), and a band around it."""
    if curves.empty:
        return []
    found = pd.DataFrame({"mean": curves.mean(), "std": curves.std(ddof=1)})
    found = _fewer(found.dropna(subset="mean"))
    low, high = (style.floats(found["mean"] + sign * found["std"].fillna(0)) for sign in (-1, 1))
    steps = style.floats(found.index)
    shared = {"legendgroup": name, "hoverinfo": "skip", "mode": "lines", "showlegend": False}
    edge = go.Scatter(x=steps, y=low, line={"width": 0, "color": colour}, **shared)
    band = go.Scatter(x=steps, y=high, line={"width": 0, "color": colour}, fill="tonexty", **shared)
    band.fillcolor = f"{colour}{BAND}"
    line = go.Scatter(
        x=steps,
        y=style.floats(found["mean"]),
        name=f"{name} (n={len(curves)})",
        legendgroup=name,
        mode="lines",
        line={"color": colour, "width": 2},
        hovertemplate=f"{name}: %{{y}}, step %{{x}}<extra></extra>",
    )
    return [edge, band, line] if found["std"].notna().any() else [line]


def _settings_of(view: StudyView, number: int) -> str:
    """A trial's number and what was varied, short: "3: he, relu"."""
    row = view.frame.loc[view.frame["number"] == number].iloc[0]
    values = [row[key] for key in (view.varied or view.varied_seeds)[:MAX_LABELLED]]
    labels = [style.label(value, 12) for value in values if value == value]
    return f"{number}: {', '.join(labels)}" if labels else f"trial {number}"


def _metrics(view: StudyView, history: pd.DataFrame) -> list[tuple[str, str | None]]:
    """What has a row: a validation metric and, where it is known, the same of training data."""
    names = dict.fromkeys([*view.objectives, "val_loss", "val_mse"])
    known = [name for name in names if name in history and history[name].notna().any()]
    partners = [name.replace("val_", "train_", 1) for name in known]
    return [
        (name, partner if partner != name and partner in history else None)
        for name, partner in zip(known, partners, strict=True)
    ]


def _range(best: Any, every: Any, log: bool) -> tuple[list[float] | None, bool]:
    """The range of an axis on which the best trials can be told apart, None for everything, and
    whether anything lies outside: pruned trials may be orders of magnitude away."""
    best, known = style.finite(best), style.finite(every)
    if log:
        best, known = np.log10(best), np.log10(known)
    if not len(best):
        return None, False
    room = MARGIN * max(best.max() - best.min(), 1e-9)
    low, high = max(known.min(), best.min() - room), min(known.max(), best.max() + room)
    if low <= known.min() and high >= known.max():
        return None, False
    edge = 0.05 * (high - low)
    return [float(low - edge), float(high + edge)], True


def _row(
    means: pd.DataFrame,
    best: Mapping[int, str],
    pruned: Iterable[int],
    metrics: tuple[str, str | None],
    is_first: bool,
) -> list[go.Scatter]:
    """The curves of one metric: pruned trials in grey below the best ones, which have labels."""
    known = set(means.index.get_level_values("number"))
    cut = {int(n): _fewer(means.loc[n])[metrics[0]] for n in pruned if n in known}
    traces = _lines(cut, "pruned", style.GREY)
    if traces:
        traces[0].update(showlegend=False)
        traces[1].update(showlegend=is_first)
    for place, number in enumerate(number for number in best if number in known):
        curve, colour = _fewer(means.loc[number]), style.PALETTE[place % len(style.PALETTE)]
        for metric, dash in zip(metrics, ("solid", "dot"), strict=True):
            if metric is None:
                continue
            mode = "lines+markers" if dash == "solid" and len(curve) <= 30 else "lines"
            trace = style.points(curve.index, curve[metric], (), best[number], mode=mode)
            trace.update(
                line={"color": colour, "dash": dash, "width": 2},
                marker={"size": 4},
                showlegend=is_first and dash == "solid",
                hovertemplate=f"trial {number}, {style.label(metric)}: %{{y}}, step %{{x}}"
                "<extra></extra>",
            )
            traces.append(trace)
    return traces


def _lines(curves: Mapping[int, pd.Series], state: str, colour: str) -> list[go.Scatter]:
    """Curves of trials by step as one trace, and crosses where pruned ones ended."""
    if not curves:
        return []
    at = style.joined([*curves], [(curve.index, curve) for curve in curves.values()])
    line, hover = {"color": colour, "width": 0.8}, f", {state}: %{{y}}, step %{{x}}"
    traces = [style.points(*at, state, hover, mode="lines", line=line)]
    if state == "pruned":
        marker = {"color": style.STATE_COLOURS["pruned"], "symbol": "x", "size": 7}
        steps = [curve.index[-1] for curve in curves.values()]
        ends, hover = [curve.iloc[-1] for curve in curves.values()], f"{hover}, its end"
        traces.append(style.points(steps, ends, [*curves], state, hover, marker=marker))
    return traces


def _fewer(curve: pd.DataFrame) -> pd.DataFrame:
    """A curve of at most `MAX_STEPS` evaluations, the first and the last among them."""
    if len(curve) <= MAX_STEPS:
        return curve
    return curve.iloc[np.linspace(0, len(curve) - 1, MAX_STEPS).astype(int)]


def intermediate(view: StudyView) -> Plot | None:
    """All evaluations of a single objective that was reported at several steps.

    Above a line per trial, pruned ones with a cross where they ended; below how many were pruned at
    each step.
    """
    history, value = view.history, view.objective
    if not view.has_one_objective or value not in history or not history[value].notna().any():
        return None
    means = history.groupby(["number", "step"], sort=True)[value].mean().reset_index()
    if means.groupby("number")["step"].size().max() < 2:
        return None
    states = view.frame.set_index("number")["state"]
    last = means.groupby("number").tail(1).assign(state=lambda rows: rows["number"].map(states))
    pruned = last[last["state"] == "pruned"]
    chosen, left_out = _chosen(view, last, len(means))
    rows = 2 if len(pruned) else 1
    heights = [0.75, 0.25] if rows == 2 else [1.0]
    fig = make_subplots(
        rows=rows, cols=1, shared_xaxes=True, vertical_spacing=0.05, row_heights=heights
    )
    drawn = means[means["number"].isin(chosen["number"])]
    lines = {int(n): curve.set_index("step")[value] for n, curve in drawn.groupby("number")}
    for state in ("complete", "pruned", "failed", "running"):
        numbers = chosen.loc[chosen["state"] == state, "number"].astype(int)
        traces = _lines({n: lines[n] for n in numbers}, state, style.STATE_COLOURS[state])
        for trace in traces[1:]:
            trace.update(showlegend=False)
        fig.add_traces(traces, rows=1, cols=1)
    fig.update_yaxes(style.value_axis(view, drawn[value], value), row=1, col=1)
    if len(pruned):
        counts = pruned["step"].value_counts().sort_index()
        fig.add_bar(
            x=style.floats(counts.index),
            y=style.whole(counts),
            name="pruned here",
            showlegend=False,
            marker={"color": style.STATE_COLOURS["pruned"]},
            hovertemplate="%{y} pruned at step %{x}<extra></extra>",
            row=2,
            col=1,
        )
        fig.update_yaxes(title={"text": "pruned"}, nticks=4, row=2, col=1)
    style.styled(fig, 520 if rows == 2 else 420)
    along = style.step_axis(drawn["step"])
    fig.update_xaxes(range=along["range"], nticks=along["nticks"])
    fig.update_xaxes(title=along["title"], row=rows, col=1)
    says = f"{style.plain(value)} at every evaluation of {len(last):,} trial{'s' * (len(last) > 1)}"
    if len(pruned):
        says += f"; {len(pruned):,} were pruned, below when (a cross is a trial's end)"
    title = "Intermediate values" + " and pruning" * bool(len(pruned))
    return Plot("intermediate", title, f"{says}.{left_out}", fig)


def _chosen(view: StudyView, last: pd.DataFrame, evaluations: int) -> tuple[pd.DataFrame, str]:
    """The last evaluations of the trials that are drawn: the best, and others at random."""
    most = min(MAX_CURVES, max(10, MAX_EVALUATIONS * len(last) // evaluations))
    if len(last) <= most:
        return last, ""
    best = view.best_first(view.good)["number"].head(most // 5)
    others = last.loc[~last["number"].isin(best), "number"].to_numpy()
    random = np.random.default_rng(0).choice(others, most - len(best), replace=False)
    chosen = last[last["number"].isin([*best, *random])]
    return chosen, f" Drawn are {len(chosen)}: the best {len(best)}, others at random."
