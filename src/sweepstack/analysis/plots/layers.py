"""Why settings do not learn: what each layer does at each step, a block for each cell of the grid.

What is drawn was found by `training.diagnostics` (layers.csv). Each block says its objective and,
where there is one, the first of these reasons (`reason_of`), all at the first step:
- alike: the units of a layer do the same (unit_spread below 0.01). They get equal gradients, and a
  layer of 100 units learns what one would.
- dead, saturated: at least half of a layer's units or activations are.
- too large: the outputs have a standard deviation above 10 where about 1 suits a loss.
- fading: the first layer's gradient is below a tenth of the last one's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from sweepstack.analysis.plots import Plot, style
from sweepstack.analysis.terminal import number
from sweepstack.study.frame import ranks
from sweepstack.study.view import StudyView

FAVOURITES = ("init", "model.activation")
MAX_DOWN, MAX_ACROSS = 8, 4
"""Blocks."""
MAX_LAYERS, MAX_STEPS = 10, 24
"""Of a block; of more, some at equal distances, with the first and the last."""
ALIKE, HALF, TOO_LARGE, FADING = 0.01, 0.5, 10.0, 0.1
STUCK = "units that cannot learn"
MEASURES = {
    STUCK: "stuck",
    "activation std": "activation_std",
    "gradient norm": "gradient_norm",
    "update / weight": "update_ratio",
    "spread of units": "unit_spread",
}
"""The menu: a label, and the column that it shows."""
_LOGARITHMIC = {"activation_std", "gradient_norm", "update_ratio"}
Where = tuple[int, int, int, int]
"""Block down and across, layer, step: places in their order."""


def layers(view: StudyView) -> Plot | None:
    """A heatmap of layer x step for each cell of two keys, if trials were diagnosed."""
    df = view.layers
    needed = {"activation_std", "unit_spread", "saturated", "dead", "gradient_norm", "update_ratio"}
    if not needed <= set(df) or (df := df.dropna(subset=["step"])).empty:
        return None
    keys = _keys(view)
    across, down = sorted(keys, key=lambda key: int(view.frame[key].nunique())) or (None, None)
    df, names = _placed(view, df, down, across)
    order, steps = list(dict.fromkeys(df["layer"])), sorted(df["step"].unique())
    chosen, shown = _some(order, MAX_LAYERS), _some(steps, MAX_STEPS)
    reasons = {cell: reason_of(rows) for cell, rows in df.groupby(["down", "across"])}
    df = df[df["layer"].isin(chosen) & df["step"].isin(shown)]
    grid = _Grid(names, chosen, shown)
    options: list[style.Option] = [(label, [_heatmap(grid, df, label)], {}) for label in MEASURES]
    height = 126 + 17 * grid.height
    fig = style.with_menu(options, height, showlegend=False)
    fig.update_layout(xaxis=_x_axis(grid), yaxis=_y_axis(grid))
    headers, around = _headers(view, reasons, down, across), _names_and_steps(grid)
    fig.update_layout(annotations=[*around, *_texts(grid, headers)])
    # A narrow block has room for the reason alone.
    style.narrow(fig, annotations=[*around, *_texts(grid, reasons)])
    for menu in fig.layout.updatemenus:
        menu.pad = {"b": 30, "t": 4}  # above the names of the columns
    return Plot("layers", "What the layers do", _says(view, reasons, df, chosen, order), fig)


def _says(
    view: StudyView,
    reasons: dict[Any, str],
    df: pd.DataFrame,
    chosen: Sequence[str],
    order: Sequence[str],
) -> str:
    first, last = int(df["step"].min()), int(df["step"].max())
    says = "A block has a row for each layer, from the input down"
    says += f", and columns from step {first} to {last}" * (last > first)
    says += ". Colors show the share of units that are dead, saturated or all alike; the "
    says += "menu has other measures. Above it: the mean "
    says += f"{style.plain(view.objective)} of its trials"
    found = sorted({reason for reason in reasons.values() if reason})
    says += f" and what is wrong at step 0 ({', '.join(found)})." if found else "."
    if len(chosen) < len(order):
        says += f" Drawn are {len(chosen)} of {len(order)} layers."
    return says


def reason_of(rows: pd.DataFrame) -> str:
    """Why the trials of a cell begin badly, one or two words; empty where nothing is wrong.

    Args:
        rows: of layers.csv, all steps and trials of the cell.
    """
    first = (
        rows[rows["step"] == rows["step"].min()]
        .groupby("layer", sort=False)
        .mean(numeric_only=True)
    )
    hidden = first.iloc[:-1]
    if (hidden["unit_spread"] < ALIKE).any():
        return "alike"
    for name in ("dead", "saturated"):
        if (hidden[name] >= HALF).any():
            return name
    if first["activation_std"].iloc[-1] > TOO_LARGE:
        return "too large"
    if first["gradient_norm"].iloc[0] < FADING * first["gradient_norm"].iloc[-1]:
        return "fading"
    return ""


def _keys(view: StudyView) -> list[str]:
    """The two keys of the grid: the favourites, else the first that have few values."""
    if set(FAVOURITES) <= set(view.varied):
        return list(FAVOURITES)
    few = [key for key in view.varied if view.frame[key].nunique() <= MAX_DOWN]
    return few[:2] if len(few) > 1 else []


def _placed(
    view: StudyView, df: pd.DataFrame, down: str | None, across: str | None
) -> tuple[pd.DataFrame, list[list[str]]]:
    """The rows with the places "down" and "across" of their block and "stuck"; the labels of both,
    down first."""
    df = df.assign(down=0, across=0)
    names: list[list[str]] = []
    for place, key, most in (("down", down, MAX_DOWN), ("across", across, MAX_ACROSS)):
        if key is None:
            names.append([""])
            continue
        (codes,), (labels,) = ranks(view.frame, [key])
        by_number = dict(zip(view.frame["number"], codes, strict=True))
        df[place] = df["number"].map(by_number).fillna(most)
        names.append([style.label(label, 12) for label in labels[:most]])
    df = df[(df["down"] < len(names[0])) & (df["across"] < len(names[1]))]
    worst = df[["dead", "saturated"]].max(axis=1).fillna(0.0)
    return df.assign(stuck=worst.where(~(df["unit_spread"] < ALIKE), 1.0)), names


def _some(values: Sequence[Any], most: int) -> list[Any]:
    places = np.linspace(0, len(values) - 1, min(most, len(values))).round().astype(int)
    return [values[place] for place in places]


class _Grid:
    """Where blocks lie: a row for the header, then one per layer; a column per step, and a gap."""

    def __init__(self, names: list[list[str]], layers: list[str], steps: list[int]):
        self.down, self.across = names
        self.layers, self.steps = layers, steps
        self.height = len(self.down) * (len(layers) + 1)
        self.width = len(self.across) * self.block - 1

    @property
    def block(self) -> int:
        return len(self.steps) + max(1, len(self.steps) // 10)

    def x(self, across: int, step: float) -> float:
        return across * self.block + step

    def y(self, down: int, layer: int) -> int:
        return down * (len(self.layers) + 1) + 1 + layer


def _heatmap(grid: _Grid, df: pd.DataFrame, label: str) -> go.Heatmap:
    """The means of a measure by its label, of a logarithmic one those of its logarithm."""
    column = MEASURES[label]
    z = np.full((grid.height, grid.width), np.nan)
    text = np.full(z.shape, "", dtype=object)
    values = df[column].astype("float64").replace([np.inf, -np.inf], np.nan)
    if column in _LOGARITHMIC:
        values = np.log10(values.where(values > 0, 1e-12))
        values = values.where(df[column].notna())
    layer_at = {name: place for place, name in enumerate(grid.layers)}
    step_at = {step: place for place, step in enumerate(grid.steps)}
    means = values.groupby([df["down"], df["across"], df["layer"], df["step"]]).mean()
    for (down, across, layer, step), mean in means.dropna().items():
        row, place = grid.y(int(down), layer_at[layer]), grid.x(int(across), step_at[step])
        z[row, int(place)] = mean
        shown = number(10**mean if column in _LOGARITHMIC else mean)
        cell = " · ".join(filter(None, [grid.down[int(down)], grid.across[int(across)]]))
        text[row, int(place)] = f"{cell}<br>{style.label(layer, 40)}, step {step}: {shown}"
    known = style.finite(z)
    low, high = (float(known.min()), float(known.max())) if len(known) else (0.0, 1.0)
    tones = style.WORST_TO_BEST[::-1] if column == "stuck" else style.WORST_TO_BEST
    bar = style.colour_bar(label)
    if column in ("stuck", "unit_spread"):
        low, high = 0.0, 1.0
    if column in _LOGARITHMIC:
        low, high = max(low, -8.0), max(high, low + 1e-6, -7.0)
        ticks = range(math.floor(low), math.ceil(high) + 1, max(1, math.ceil((high - low) / 5)))
        bar |= {"tickvals": list(ticks), "ticktext": [f"1e{tick}" for tick in ticks]}
    return go.Heatmap(
        z=style.floats(z),
        text=text,
        hovertemplate="%{text}<extra></extra>",
        hoverongaps=False,
        **{"zmin": low, "zmax": high, "colorscale": tones, "colorbar": bar},
    )


def _x_axis(grid: _Grid) -> dict[str, Any]:
    return {
        "range": [-0.5, grid.width - 0.5],
        "title": {"text": "step", "standoff": 22},
        "showticklabels": False,
        "ticks": "",
        "zeroline": False,
        "showgrid": False,
    }


def _names_and_steps(grid: _Grid) -> list[dict[str, Any]]:
    """The names of the columns of blocks on top; the first and the last step of each below."""
    shared = {"showarrow": False, "yref": "paper", "font": {"size": 11}}
    last = len(grid.steps) - 1
    found = []
    for place, name in enumerate(grid.across):
        text = f"<b>{name}</b>" if name else ""
        above = {"x": grid.x(place, last / 2), "y": 1, "yanchor": "bottom", "text": text}
        found.append({**shared, **above})
        for step, side, anchor in ((0, -0.5, "left"), (last, 0.5, "right"))[: 1 + (last > 0)]:
            below = {"x": grid.x(place, step + side), "y": 0, "yanchor": "top", "yshift": -2}
            found.append({**shared, **below, "xanchor": anchor, "text": f"{grid.steps[step]}"})
    return found


def _texts(grid: _Grid, headers: Mapping[Any, str]) -> list[dict[str, Any]]:
    """A text above each block."""
    middle = (len(grid.steps) - 1) / 2
    return [
        {
            **{"x": grid.x(int(cell[1]), middle), "y": grid.y(int(cell[0]), -1)},
            **{"text": text, "showarrow": False, "font": {"size": 10}},
        }
        for cell, text in headers.items()
    ]


def _y_axis(grid: _Grid) -> dict[str, Any]:
    texts: list[str] = []
    for name in grid.down:
        texts += [f"<b>{name}</b>", *(style.label(layer, 16) for layer in grid.layers)]
    return {**style.rows_axis(texts), "range": [grid.height - 0.4, -0.6], "tickfont": {"size": 10}}


def _headers(
    view: StudyView,
    reasons: dict[Any, str],
    down: str | None,
    across: str | None,
) -> dict[tuple[int, int], str]:
    """The text above each block: the mean objective, and the reason."""
    placed, _ = _placed(
        view,
        view.good.assign(step=0, dead=0.0, saturated=0.0, unit_spread=1.0),
        *(down, across),
    )
    means = placed.groupby(["down", "across"])[view.objective].mean()
    found = {}
    for cell, reason in reasons.items():
        value = f"{means[cell]:#.2g}".rstrip(".") if cell in means.index else ""
        found[int(cell[0]), int(cell[1])] = " ".join(filter(None, [value, reason]))
    return found
