"""The objective over two keys of numbers, smoothed, with the trials that it is known from.

A point of the picture is the mean of the trials around it, weighted by a Gaussian kernel of their
distance (in ranges of the keys, of their logarithms where they were drawn so); where no trial is
near it stays empty. Smoothing and not interpolation: a trial's value is noisy.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import plotly.graph_objects as go

from sweepstack.reporting.plots import Plot
from sweepstack.reporting.plots.common import axis, chooser, colour_bar, colours, floats, styled
from sweepstack.reporting.plots.material import Material, thin
from sweepstack.reporting.plots.words import key_title, pair_title, word

MOST_PAIRS = 6
MOST_POINTS = 800
FEWEST = 8
"""Trials from which a surface is drawn."""
GRID = 40
NEAR = 0.05
"""The least weight of all trials, as a share of one at the very place, that counts as near."""


def plot(material: Material) -> Plot | None:
    """The surface of each pair of numeric keys, the most important pair first."""
    df = material.good
    keys = [key for key in material.by_importance if material.is_number(key)]
    pairs = [
        pair
        for pair in itertools.combinations(keys, 2)
        if len(_set(material, df, pair)) >= FEWEST and df[list(pair)].nunique().min() > 2
    ][:MOST_PAIRS]
    if not pairs:
        return None
    fig, options = go.Figure(), []
    left_out = ""
    for index, pair in enumerate(pairs):
        axes, said = _draw(fig, material, pair, visible=index == 0)
        left_out = left_out or said
        visible = [other // 2 == index for other in range(2 * len(pairs))]
        options.append((pair_title(pair, material.keys), {"visible": visible}, axes))
    menu = {"updatemenus": [chooser(options)]} if len(pairs) > 1 else {}
    styled(fig, 500, showlegend=False, **menu)
    fig.update_layout(options[0][2])
    says = f"Mean {word(material.value)} around each point, brighter is better; dots are the"
    says += f" trials.{left_out}{material.of_several}"
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


def _set(material: Material, df: pd.DataFrame, pair: tuple[str, str]) -> pd.DataFrame:
    """Trials in which both keys have a place, which are (N, 2) positions."""
    at = pd.DataFrame({index: axis(material, key, df).at for index, key in enumerate(pair)})
    return at[np.isfinite(at).all(axis=1)]


def _draw(
    fig: go.Figure, material: Material, pair: tuple[str, str], visible: bool
) -> tuple[dict[str, Any], str]:
    df = material.good
    at = _set(material, df, pair)
    values = df.loc[at.index, material.value]
    tones = colours(material, values)
    low, high = tones["cmin"], tones["cmax"]
    lines = [axis(material, key, df) for key in pair]
    scaled = [along.laid(at[index]) for index, along in enumerate(lines)]
    edges = [(float(values.min()), float(values.max())) for values in scaled]
    unit = np.stack([(x - a) / ((b - a) or 1) for x, (a, b) in zip(scaled, edges, strict=True)], 1)
    ticks = [
        along.read(np.linspace(a, b, GRID)) for along, (a, b) in zip(lines, edges, strict=True)
    ]
    fig.add_contour(
        x=floats(ticks[0]),
        y=floats(ticks[1]),
        # Outliers would pull everything around them out of the picture.
        z=floats(smooth(unit, values.clip(low, high).to_numpy())),
        colorscale=tones["colorscale"],
        zmin=low,
        zmax=high,
        ncontours=15,
        line={"width": 0},
        connectgaps=False,
        colorbar=colour_bar(material.value),
        hovertemplate="%{z}<extra></extra>",
        visible=visible,
    )
    shown, left_out = thin(material, df.loc[at.index], MOST_POINTS)
    fig.add_scatter(
        x=floats(at.loc[shown.index, 0]),
        y=floats(at.loc[shown.index, 1]),
        customdata=np.stack([shown["number"], floats(shown[material.value])], 1).astype("float32"),
        mode="markers",
        marker={
            **tones,
            "color": floats(shown[material.value]),
            "size": 6,
            "line": {"width": 1, "color": "#888888"},
        },
        hovertemplate="trial %{customdata[0]}: %{customdata[1]}<extra></extra>",
        visible=visible,
    )
    names = zip(("xaxis", "yaxis"), pair, lines, strict=True)
    axes = {
        name: {
            "type": "linear",
            "nticks": 6,
            **along.layout,
            "title": key_title(key) | {"standoff": 8},
            "automargin": True,
            "zeroline": False,
        }
        for name, key, along in names
    }
    return axes, left_out
