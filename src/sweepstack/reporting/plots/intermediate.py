"""All evaluations of the objective, and what the pruner cut and when.

Above a line per trial, pruned ones with a cross where they ended; below how many were pruned at
each step.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from sweepstack.reporting.plots import Plot
from sweepstack.reporting.plots.common import STATE_COLOURS, floats, styled, value_axis, whole
from sweepstack.reporting.plots.curves import joined
from sweepstack.reporting.plots.material import Material
from sweepstack.reporting.plots.words import word

MOST_CURVES = 200
MOST_EVALUATIONS = 12_000


def plot(material: Material) -> Plot | None:
    """The evaluations, if the objective was reported at several steps."""
    history, value = material.opened.history, material.value
    if len(material.goals) > 1 or value not in history or not history[value].notna().any():
        return None
    means = history.groupby(["number", "step"], sort=True)[value].mean().reset_index()
    if means.groupby("number")["step"].size().max() < 2:
        return None
    states = material.df.set_index("number")["state"]
    last = means.groupby("number").tail(1).assign(state=lambda rows: rows["number"].map(states))
    pruned = last[last["state"] == "pruned"]
    chosen, left_out = _chosen(material, last, len(means))
    rows = 2 if len(pruned) else 1
    heights = [0.75, 0.25] if rows == 2 else [1.0]
    fig = make_subplots(
        rows=rows, cols=1, shared_xaxes=True, vertical_spacing=0.05, row_heights=heights
    )
    drawn = means[means["number"].isin(chosen["number"])]
    for state in ("complete", "pruned", "failed", "running"):
        _lines(fig, drawn, chosen[chosen["state"] == state]["number"], state, value)
    fig.update_yaxes(value_axis(material, drawn[value], value), row=1, col=1)
    if len(pruned):
        _ends(fig, chosen[chosen["state"] == "pruned"], value)
        counts = pruned["step"].value_counts().sort_index()
        fig.add_bar(
            x=floats(counts.index),
            y=whole(counts),
            name="pruned here",
            showlegend=False,
            marker={"color": STATE_COLOURS["pruned"]},
            hovertemplate="%{y} pruned at step %{x}<extra></extra>",
            row=2,
            col=1,
        )
        fig.update_yaxes(title={"text": "pruned"}, nticks=4, row=2, col=1)
    styled(fig, 520 if rows == 2 else 420)
    fig.update_xaxes(title={"text": "step"}, row=rows, col=1)
    fig.update_xaxes(zeroline=False, nticks=8)
    says = f"{word(value)} at every evaluation of {len(last):,} trials"
    if len(pruned):
        says += f"; {len(pruned):,} were pruned, below when (a cross is a trial's end)"
    return Plot("intermediate", "Intermediate values and pruning", f"{says}.{left_out}", fig)


def _chosen(material: Material, last: pd.DataFrame, evaluations: int) -> tuple[pd.DataFrame, str]:
    """The last evaluations of the trials that are drawn: the best, and others by chance."""
    most = min(MOST_CURVES, max(10, MOST_EVALUATIONS * len(last) // evaluations))
    if len(last) <= most:
        return last, ""
    best = material.best_first(material.good)["number"].head(most // 5)
    others = last.loc[~last["number"].isin(best), "number"].to_numpy()
    random = np.random.default_rng(0).choice(others, most - len(best), replace=False)
    chosen = last[last["number"].isin([*best, *random])]
    return chosen, f" Drawn are {len(chosen)}: the best {len(best)}, others by chance."


def _lines(fig: go.Figure, means: pd.DataFrame, numbers: pd.Series, state: str, value: str) -> None:
    known = dict(list(means[means["number"].isin(numbers)].groupby("number")))
    if not known:
        return
    curves = [(pd.Index(curve["step"]), curve[value]) for curve in known.values()]
    x, y, who = joined([int(number) for number in known], curves)
    fig.add_scatter(
        x=x,
        y=y,
        customdata=who,
        mode="lines",
        line={"color": STATE_COLOURS[state], "width": 1},
        opacity=0.5,
        name=state,
        legendgroup=state,
        hovertemplate=f"trial %{{customdata}}, {state}: %{{y}}, step %{{x}}<extra></extra>",
        row=1,
        col=1,
    )


def _ends(fig: go.Figure, pruned: pd.DataFrame, value: str) -> None:
    fig.add_scatter(
        x=floats(pruned["step"]),
        y=floats(pruned[value]),
        customdata=whole(pruned["number"]),
        mode="markers",
        marker={"color": STATE_COLOURS["pruned"], "symbol": "x", "size": 6},
        name="pruned",
        legendgroup="pruned",
        showlegend=False,
        hovertemplate="trial %{customdata}, pruned at step %{x}: %{y}<extra></extra>",
        row=1,
        col=1,
    )
