"""Several objectives against each other, with the Pareto front.

A trial is on the front if no other is at least as good in all objectives and better in one. With
more than two objectives a menu has each pair; the front is that of all of them.
"""

from __future__ import annotations

import itertools

import numpy as np
import plotly.graph_objects as go

from sweepstack.reporting.plots import Plot
from sweepstack.reporting.plots.common import (
    GREY,
    PALETTE,
    chooser,
    floats,
    styled,
    value_axis,
    whole,
)
from sweepstack.reporting.plots.material import Material, thin
from sweepstack.reporting.plots.words import pair_title, word
from sweepstack.study.ranking import best as best_of

MOST_PAIRS = 10


def plot(material: Material) -> Plot | None:
    """The objectives in pairs, if there are several."""
    names = list(material.goals)
    good = material.good[np.isfinite(material.good[names]).all(axis=1)]
    if len(names) < 2 or good.empty:
        return None
    best = good.iloc[best_of(good[names], good["number"], list(material.goals.values()))]
    others, left_out = thin(material, good.drop(best.index))
    fig, options = go.Figure(), []
    pairs = list(itertools.combinations(names, 2))[:MOST_PAIRS]
    for index, (x, y) in enumerate(pairs):
        for rows, name, colour in ((others, "other trials", GREY), (best, "front", PALETTE[5])):
            line = name == "front" and len(names) == 2
            fig.add_scatter(
                x=floats(rows[x]),
                y=floats(rows[y]),
                customdata=whole(rows["number"]),
                name=name,
                mode="lines+markers" if line else "markers",
                line={"shape": "linear", "width": 1},
                marker={"color": colour, "size": 8 if name == "front" else 5},
                hovertemplate="trial %{customdata}: %{x}, %{y}<extra></extra>",
                visible=index == 0,
            )
        axes = {
            "xaxis": value_axis(material, good[x], x),
            "yaxis": value_axis(material, good[y], y),
        }
        for axis in axes.values():
            axis["automargin"] = True
            axis["title"]["standoff"] = 8
        visible = [other // 2 == index for other in range(2 * len(pairs))]
        options.append((pair_title((x, y), names), {"visible": visible}, axes))
    styled(fig, 440, **({"updatemenus": [chooser(options)]} if len(pairs) > 1 else {}))
    fig.update_layout(options[0][2])
    goals = ", ".join(f"{word(name)} ({goal}d)" for name, goal in material.goals.items())
    says = f"{goals}: {len(best)} of {len(good):,} trials are on the Pareto front, those that no"
    says += f" other beats in all objectives.{left_out}"
    return Plot("pareto", "Pareto front", says, fig)
