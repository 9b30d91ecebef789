"""Several objectives against each other, with the Pareto front.

A trial is on the front if no other is at least as good in all objectives and better in one. With
more than two objectives a menu has each pair; the front is that of all of them.
"""

from __future__ import annotations

import itertools

import numpy as np
import numpy.typing as npt
import plotly.graph_objects as go

from iolaus.analysis.plots import Plot
from iolaus.analysis.plots.common import GREY, PALETTE, chooser, floats, styled, value_axis, whole
from iolaus.analysis.plots.material import Material, thin
from iolaus.analysis.plots.words import pair_title, word

MOST_PAIRS = 10


def plot(material: Material) -> Plot | None:
    """The objectives in pairs, if there are several."""
    names = list(material.goals)
    good = material.good[np.isfinite(material.good[names]).all(axis=1)]
    if len(names) < 2 or good.empty:
        return None
    signs = np.array([1 if material.goals[name] == "minimize" else -1 for name in names])
    is_best = front(good[names].to_numpy() * signs)
    best = good[is_best].sort_values(names[0])
    others, left_out = thin(material, good[~is_best])
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
        axes = {"xaxis": value_axis(good[x], x), "yaxis": value_axis(good[y], y)}
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


def front(losses: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    """Which rows no other row beats: losses (N, objectives), less is better.

    Rows are compared in lexicographic order: what beats a row comes before it.
    """
    order = np.lexsort(losses.T[::-1])
    kept = losses[:0]
    result = np.zeros(len(losses), dtype=bool)
    for row in order:
        point = losses[row]
        beaten = ((kept <= point).all(axis=1) & (kept < point).any(axis=1)).any()
        if not beaten:
            result[row] = True
            kept = np.vstack([kept, point])
    return result
