"""The objective of each trial and the best so far: against trials, steps and time.

A menu chooses what was spent: trials in the order of their numbers, training steps of all trials
that had ended (pruned and failed ones too; a trial that only took over the numbers of an equal one
cost none), or time, without the sweep's pauses.
"""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go

from sweepstack.reporting.plots import Plot
from sweepstack.reporting.plots.clock import clock, spans, unit
from sweepstack.reporting.plots.common import (
    PALETTE,
    STATE_COLOURS,
    chooser,
    floats,
    styled,
    value_axis,
    whole,
)
from sweepstack.reporting.plots.material import Material, thin
from sweepstack.reporting.plots.words import word


def plot(material: Material) -> Plot | None:
    """The history, if there is one objective and any trial has a value."""
    if len(material.goals) > 1 or material.good.empty:
        return None
    ways = _spent(material)
    ended = material.df[material.df["state"].isin(("complete", "pruned", "failed"))]
    good, left_out = thin(material, material.good)
    fig, options = go.Figure(), []
    for index, (words, title, at) in enumerate(ways):
        _draw(fig, material, good, ended, at, index == 0)
        visible = [other // 4 == index for other in range(4 * len(ways))]
        axes = {"xaxis.title.text": title, "xaxis.autorange": True}
        options.append((words, {"visible": visible}, axes))
    menu = {"updatemenus": [chooser(options)]} if len(ways) > 1 else {}
    styled(fig, 440, **menu)
    fig.update_layout(
        xaxis={"title": {"text": ways[0][1]}, "nticks": 8},
        yaxis=value_axis(material, material.good[material.value], material.value)
        | {"zeroline": False},
        # Pruned and failed trials have no value: ticks at the bottom.
        yaxis2={"overlaying": "y", "range": [0, 1], "visible": False, "fixedrange": True},
    )
    says = f"Each of {len(material.good):,} complete trials and the best so far"
    says += f" ({word(material.value)}, {material.direction}d); ticks at the bottom are pruned"
    says += f" and failed trials.{left_out}{clock(material.df).says if len(ways) > 1 else ''}"
    return Plot("optimization", "Optimization history", says, fig)


def so_far(material: Material, at: pd.Series) -> pd.DataFrame:
    """The best trial until each moment: the rows at which it changed, and `at` of the last."""
    good = material.good.assign(at=at.reindex(material.good.index)).dropna(subset=["at"])
    good = good.sort_values("at", kind="stable")
    values = good[material.value]
    best = values.cummin() if material.minimized else values.cummax()
    steps = good[best.ne(best.shift())]
    if len(good) and len(at.dropna()):
        steps = pd.concat([steps, steps.tail(1).assign(at=at.max())])
    return steps


def _draw(
    fig: go.Figure,
    material: Material,
    good: pd.DataFrame,
    ended: pd.DataFrame,
    at: pd.Series,
    visible: bool,
) -> None:
    fig.add_scatter(
        x=floats(at.reindex(good.index)),
        y=floats(good[material.value]),
        customdata=whole(good["number"]),
        mode="markers",
        name="trial",
        visible=visible,
        marker={"color": STATE_COLOURS["complete"], "size": 5, "opacity": 0.5},
        hovertemplate="trial %{customdata}: %{y}<extra></extra>",
    )
    best = so_far(material, at)
    fig.add_scatter(
        x=floats(best["at"]),
        y=floats(best[material.value]),
        customdata=whole(best["number"]),
        mode="lines",
        name="best so far",
        visible=visible,
        line={"color": PALETTE[5], "width": 2, "shape": "hv"},
        hovertemplate="best so far: %{y}, trial %{customdata}<extra></extra>",
    )
    for state in ("pruned", "failed"):
        rows, _ = thin(material, ended[ended["state"] == state], 500)
        fig.add_scatter(
            x=floats(at.reindex(rows.index)),
            y=floats([0.02 if state == "pruned" else 0.05] * len(rows)),
            customdata=whole(rows["number"]),
            yaxis="y2",
            mode="markers",
            name=f"{state} ({int((ended['state'] == state).sum()):,})",
            showlegend=len(rows) > 0,
            visible=visible,
            marker={"color": STATE_COLOURS[state], "size": 8, "symbol": "line-ns-open"},
            hovertemplate=f"trial %{{customdata}}: {state}<extra></extra>",
        )


def _spent(material: Material) -> list[tuple[str, str, pd.Series]]:
    """Ways to measure what was spent: words of the menu, the axis, where each trial lies."""
    df = material.df
    ways = [("by trial", "trial", df["number"].astype("float64"))]
    times = clock(df)
    order = times.end.dropna().sort_values(kind="stable").index
    if "steps" in df and len(order):
        steps = pd.to_numeric(df["steps"], errors="coerce").fillna(0).astype("float64")
        if "equals" in df:
            steps = steps.where(df["equals"].isna(), 0.0)
        if steps.sum() > 0:
            total = steps.reindex(order).cumsum().reindex(df.index)
            ways.append(("by training steps", "training steps of all trials", total))
    size, name = unit(spans(times.end))
    if len(order) and spans(times.end) > 0:
        ways.append(("by time", f"time since the begin ({name})", (times.end / size)))
    return ways
