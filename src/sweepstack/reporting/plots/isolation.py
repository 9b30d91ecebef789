"""Isolation plots: for each value of a key the best and the median over all other keys.

Of the tuning playbook (https://github.com/google-research/tuning_playbook): a scientific
hyperparameter is judged by the best that each of its values reaches, whatever the others are. Runs
that differ in the seed only are averaged first, so that the best is not the luckiest.
"""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from sweepstack.reporting.plots import Plot
from sweepstack.reporting.plots.common import GREY, PALETTE, floats, styled, value_axis, whole
from sweepstack.reporting.plots.material import MOST_CHOICES, Material
from sweepstack.reporting.plots.words import NOT_SET, label, word
from sweepstack.study.frame import ranks

MOST_KEYS = 12
BINS = 6
"""Parts of equal width into which a range of numbers is divided."""
ROW_PX = 22


def plot(material: Material) -> Plot | None:
    """A row for each value of each key, if two keys vary and any trial has a value."""
    if len(material.keys) < 2 or material.good.empty:
        return None
    means = configurations(material)
    tables = {key: isolated(material, means, key) for key in material.by_importance}
    shown = [key for key, table in tables.items() if 1 < len(table) <= MOST_CHOICES][:MOST_KEYS]
    if not shown:
        return None
    # A row for the name of each key, its values below.
    texts, rows, at = [], [], []
    for key in shown:
        texts.append(f"<b>{label(key, 32)}</b>")
        for value, row in tables[key].iterrows():
            at.append(len(texts))
            rows.append(row)
            texts.append(f"{value} (n={row['n']:.0f})")
    fig = go.Figure()
    _draw(fig, pd.DataFrame(rows), at)
    axis = value_axis(material, means[material.value], material.value)
    styled(fig, 90 + ROW_PX * len(texts))
    fig.update_xaxes(zeroline=False, **axis)
    fig.update_xaxes(title_standoff=6)
    fig.update_yaxes(
        tickvals=list(range(len(texts))),
        ticktext=texts,
        range=[len(texts) - 0.4, -0.6],
        zeroline=False,
        showgrid=False,
    )
    says = f"For each value of a key the best and the median {word(material.value)}"
    says += f" ({material.direction}d) of the n configurations that have it, of {len(means):,}"
    says += ", each the mean over its seeds" if material.seeds else ""
    left_out = len(material.keys) - len(shown)
    says += f"; {left_out} keys left out." if left_out else "."
    return Plot("isolation", "Isolation plots", says + material.of_several, fig)


def configurations(material: Material) -> pd.DataFrame:
    """The good trials, those that differ in the seed only as one with the mean value."""
    good = material.good
    if not material.seeds:
        return good
    codes, _ = ranks(good, material.keys)
    grouped = good.groupby(codes or [pd.Series(0, index=good.index)], sort=False)
    means = good.loc[grouped.head(1).index].copy()
    means[material.value] = grouped[material.value].mean().to_numpy()
    return means


def isolated(material: Material, means: pd.DataFrame, key: str) -> pd.DataFrame:
    """best, median and n of each value of a key, or part of its range, that any trial has."""
    codes, labels = _parts(material, means, key)
    grouped = means.groupby(codes.to_numpy())[material.value]
    table = pd.DataFrame(
        {
            "best": grouped.min() if material.minimized else grouped.max(),
            "median": grouped.median(),
            "n": grouped.size(),
        }
    )
    table.index = pd.Index([labels[code] for code in table.index])
    return table


def _parts(material: Material, means: pd.DataFrame, key: str) -> tuple[pd.Series, list[str]]:
    """The place of each row among the values of a key, and their labels; not set comes last."""
    if not material.is_number(key) or means[key].nunique() <= BINS:
        codes, labels = ranks(means, [key])
        return codes[0], [label(value) for value in labels[0]]
    numbers = means[key].astype("float64")
    log = material.df.attrs["keys"][key]["log"] and numbers.min() > 0
    scaled = np.log10(numbers) if log else numbers
    edges = np.linspace(scaled.min(), scaled.max(), BINS + 1)
    part = pd.Series(np.searchsorted(edges[1:-1], scaled, side="right"), index=means.index)
    ends = [label(float(f"{10**edge if log else edge:.2g}")) for edge in edges]
    names = [f"{low} to {high}" for low, high in itertools.pairwise(ends)]
    return part.where(numbers.notna(), BINS), [*names, NOT_SET]


def _draw(fig: go.Figure, table: pd.DataFrame, at: list[int]) -> None:
    """Two points per row, and a line from the one to the other."""
    gap = np.full(len(table), np.nan)
    fig.add_scatter(
        x=floats(np.stack([table["median"], table["best"], gap], 1).ravel()),
        y=floats(np.stack([at, at, gap], 1).ravel()),
        mode="lines",
        line={"color": GREY, "width": 1},
        showlegend=False,
        hoverinfo="skip",
    )
    for name, colour, symbol in (("best", PALETTE[5], "circle"), ("median", PALETTE[0], "diamond")):
        fig.add_scatter(
            x=floats(table[name]),
            y=whole(at),
            customdata=whole(table["n"]),
            mode="markers",
            name=name,
            marker={"color": colour, "symbol": symbol, "size": 8},
            hovertemplate=f"{name} %{{x}}, n=%{{customdata}}<extra></extra>",
        )
