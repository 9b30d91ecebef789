"""Values of keys compared: the heatmap, isolation plots, the learning rate."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from sweepstack.analysis.plots import Plot, style
from sweepstack.analysis.terminal import number
from sweepstack.study.frame import ranks
from sweepstack.study.tables import pivot
from sweepstack.study.view import StudyView

MAX_PAIRS = 10
MAX_NUMBERED = 8
"""Columns up to which a cell has room for its numbers."""
DARK = 0.42
"""The colour scale's part, from the worst, on which white can be read and black cannot."""
MAX_ISOLATED = 12
BINS = 6
"""Parts of equal width into which a range of numbers is divided."""
RATES = ("lr", "learning_rate")
LOST = "failed or diverged"
MAX_RATES = 1_500
"""Trials in the plot of the learning rate."""


def heatmap(view: StudyView, keys: list[str], *, ranked: bool = True) -> Plot | None:
    """The mean of the objective for the values of two keys, with std and n, as `tables.pivot`.

    With more than two keys that have few values there is a menu of pairs, in the order of `keys`
    (`ranked`: the most important first); a cell is then the mean over all values of the others.
    """
    keys = [
        key
        for key in keys
        if view.frame[key].nunique() <= style.MAX_CHOICES
        and (view.keys[key].is_finite or not view.is_number(key))
    ]
    if len(keys) < 2 or view.good.empty:
        return None
    pairs = list(itertools.combinations(keys, 2))
    shown = pairs[:MAX_PAIRS]
    options = [(style.pair_title(pair, keys), *_table(view, *pair)) for pair in shown]
    fig = style.with_menu(options, 400, showlegend=False)
    rows = [row for _, traces, _ in options for row in traces[0].text]
    has_std = any("±" in cell for row in rows for cell in row)
    says = f"Mean {style.plain(view.objective)} ({view.direction}d)"
    says += f"{' ± standard deviation' * has_std} of the n runs of a cell; brighter is better."
    if len(view.varied) > 2:
        says += " Runs of all values of the other keys are averaged."
    if len(pairs) > len(shown):
        says += f" The menu has {len(shown)} of {len(pairs)} pairs"
        says += f"{', the most important first' * ranked}."
    title = " × ".join(style.plain(key) for key in keys) if len(pairs) == 1 else "Pairs of keys"
    return Plot("heatmap", title, says + style.of_several(view), fig)


def _table(view: StudyView, one: str, other: str) -> tuple[list[Any], dict[str, Any]]:
    """A pair's traces and layout; the key with more values goes down."""
    df = view.frame
    across, down = sorted((one, other), key=lambda key: int(df[key].nunique()))
    table = pivot(
        df[(df["state"] != "complete") | df.index.isin(view.good.index)],
        *(down, across, view.objective),
    )
    mean, std, n = (table[name].to_numpy() for name in ("mean", "std", "n"))
    columns, rows = (
        [style.label(x) for x in names] for names in (table["mean"].columns, table.index)
    )
    narrow = len(columns) > MAX_NUMBERED
    cells = [
        [_cell(*numbers) for numbers in zip(*row, strict=True)]
        for row in zip(mean, std, n, strict=True)
    ]
    low, high = float(np.nanmin(mean)), float(np.nanmax(mean))
    colours = go.Heatmap(
        z=style.floats(mean),
        x=np.arange(len(columns), dtype="int32"),
        y=np.arange(len(rows), dtype="int32"),
        **{"zmin": low, "zmax": high, "colorscale": style.scale(view), "xgap": 2, "ygap": 2},
        text=cells,
        hovertemplate="%{text}<extra></extra>",
        showscale=narrow,
        colorbar=style.colour_bar(view.objective),
    )
    tone = (mean - low) / (high - low) if high > low else np.where(n > 0, 0.5, np.nan)
    texts = [] if narrow else _texts(cells, 1 - tone if view.minimized else tone)
    axes = {"xaxis": style.rows_axis(columns), "yaxis": style.rows_axis(rows)}
    axes["xaxis"]["range"] = [-0.5, len(columns) - 0.5]
    axes["yaxis"]["range"] = [len(rows) - 0.5, -0.5]
    for name, key in (("xaxis", across), ("yaxis", down)):
        axes[name] |= {"automargin": True, "title": style.key_title(key) | {"standoff": 8}}
    return [colours, *texts], {**axes, "height": 110 + len(rows) * (28 if narrow else 58)}


def _texts(cells: list[list[str]], tone: Any) -> list[go.Scatter]:
    """The cells' numbers, in what can be read on their colours; on none in the page's colour."""
    empty = np.isnan(tone)
    dark = ~empty & (tone < DARK)
    return [
        go.Scatter(
            x=np.nonzero(chosen)[1].astype("int32"),
            y=np.nonzero(chosen)[0].astype("int32"),
            text=[cells[row][column] for row, column in zip(*np.nonzero(chosen), strict=True)],
            mode="text",
            hoverinfo="skip",
            textfont={"color": colour} if colour else None,
        )
        for chosen, colour in ((dark, "#ffffff"), (~dark & ~empty, "#000000"), (empty, None))
    ]


def _cell(mean: float, std: float, n: int) -> str:
    if not n:
        return "n=0"
    is_known = math.isfinite(mean) and math.isfinite(std)
    mean_text = number(mean) if math.isfinite(mean) else str(mean)
    std_text = number(std, mean) if is_known else str(std)
    return f"{mean_text}<br>n={n}" if math.isnan(std) else f"{mean_text}<br>± {std_text}<br>n={n}"


def isolation(view: StudyView, keys: list[str]) -> Plot | None:
    """For each value of a key the best and the median over all other keys.

    Of the tuning playbook (https://github.com/google-research/tuning_playbook): a scientific
    hyperparameter is judged by the best that each of its values reaches, whatever the others are.
    Configurations are compared, which are means over seeds, so that the best is not the luckiest.
    """
    if len(keys) < 2 or view.good.empty:
        return None
    means = view.configured(view.good)
    values = -means[".score"] if view.minimized else means[".score"]
    tables = {key: isolated(view, means, values, key) for key in keys}
    shown = [key for key, table in tables.items() if 1 < len(table) <= style.MAX_CHOICES][
        :MAX_ISOLATED
    ]
    if not shown:
        return None
    # A row for the name of each key, its values below.
    texts: list[str] = []
    at: list[int] = []
    for key in shown:
        texts.append(f"<b>{style.label(key, 32)}</b>")
        at += range(len(texts), len(texts) + len(tables[key]))
        texts += [f"{name} (n={n})" for name, n in tables[key]["n"].items()]
    table = pd.concat([tables[key] for key in shown])
    ends = np.stack([table["median"], table["best"], np.full(len(table), np.nan)], 1)
    fig = go.Figure()
    fig.add_scatter(
        x=style.floats(ends.ravel()),
        y=style.floats(np.repeat(at, 3)),
        mode="lines",
        line={"color": style.GREY, "width": 1},
        showlegend=False,
        hoverinfo="skip",
    )
    for name, colour, symbol in (
        ("median", style.PALETTE[0], "diamond"),
        ("best", style.PALETTE[5], "circle-open"),  # around the median where both are one
    ):
        fig.add_scatter(
            x=style.floats(table[name]),
            y=style.whole(at),
            customdata=style.whole(table["n"]),
            mode="markers",
            name=name,
            marker={"color": colour, "symbol": symbol, "size": 8},
            hovertemplate=f"{name} %{{x}}, n=%{{customdata}}<extra></extra>",
        )
    style.styled(fig, 90 + 22 * len(texts))
    fig.update_xaxes(**style.value_axis(view, values, view.objective))
    fig.update_yaxes(**style.rows_axis(texts))
    says = f"For each value of a key the best and the median {style.plain(view.objective)}"
    says += f" ({view.direction}d) of the n configurations that have it, of {len(means):,}"
    says += ", each the mean over its seeds" if view.varied_seeds else ""
    left_out = len(keys) - len(shown)
    says += f"; {left_out} keys left out." if left_out else "."
    return Plot("isolation", "Isolation plots", says + style.of_several(view), fig)


def isolated(view: StudyView, means: pd.DataFrame, values: pd.Series, key: str) -> pd.DataFrame:
    """best, median and n of the configurations that have each value of a key, or part of its range;
    not set comes last.

    Args:
        means: `StudyView.configured`; `values` is the objective of its rows.
    """
    if not view.is_number(key) or means[key].nunique() <= BINS:
        means.attrs = view.frame.attrs  # the declared order of choices
        (codes,), (labels,) = ranks(means, [key])
        names = [style.label(value) for value in labels]
    else:
        numbers = means[key].astype("float64")
        log = view.keys[key].is_log and numbers.min() > 0
        scaled = np.log10(numbers) if log else numbers
        edges = np.linspace(scaled.min(), scaled.max(), BINS + 1)
        codes = pd.Series(np.searchsorted(edges[1:-1], scaled, side="right"), index=means.index)
        codes = codes.where(numbers.notna(), BINS)
        ends = [style.label(float(f"{10**edge if log else edge:.2g}")) for edge in edges]
        names = [*(f"{low} to {high}" for low, high in itertools.pairwise(ends)), style.NOT_SET]
    grouped = values.groupby(codes.to_numpy())
    best = grouped.min() if view.minimized else grouped.max()
    table = pd.DataFrame({"best": best, "median": grouped.median(), "n": grouped.size()})
    return table.set_axis([names[code] for code in table.index])


def learning_rate(view: StudyView) -> Plot | None:
    """Loss and objective against the learning rate, by optimizer, with what failed and was pruned,
    if a learning rate was swept and any trial that had one has ended."""
    key = next((key for key in view.varied if key.rpartition(".")[2] in RATES), None)
    if key is None:
        return None
    rate = _numbers(view.finished[key])
    df = view.finished[np.isfinite(rate) & (rate > 0)]
    losses = [name for name in ("val_loss", "val_mse") if name in df]
    metrics = [
        name
        for name in dict.fromkeys([view.objective, *losses[:1]])
        if len(style.finite(_numbers(df[name])))
    ]
    if df.empty or not metrics:
        return None
    drawn, left_out = style.thin(view, df, MAX_RATES)
    groups = _optimizers(view, drawn)
    at = rate.loc[drawn.index]
    is_spread = drawn[key].nunique() < min(13, len(drawn))
    if is_spread:  # of a few choices each would hide the others
        at = at * 10 ** style.spread(len(at), 0.05)
        for index, (_, _, chosen) in enumerate(groups):
            at[chosen] *= 10 ** (0.12 * (index - (len(groups) - 1) / 2))
    fig = make_subplots(rows=len(metrics), cols=1, shared_xaxes=True, vertical_spacing=0.05)
    for row, metric in enumerate(metrics, 1):
        values = _last(view, drawn, metric)
        for trace in _marks(view, drawn, groups, at, values):
            trace.showlegend = not any(other.name == trace.name for other in fig.data)
            fig.add_trace(trace, row=row, col=1)
        fig.update_yaxes(style.value_axis(view, values, metric), row=row, col=1)
    style.styled(fig, 70 + 270 * len(metrics))
    fig.update_xaxes(**style.log_axis(rate.loc[df.index]), hoverformat=".4~g")
    fig.update_xaxes(title=style.key_title(key), row=len(metrics), col=1)
    pruned = int((df["state"] == "pruned").sum())
    says = f"{len(df):,} trials by {style.plain(key)}"
    says += ", spread sideways where they share a value" * is_spread
    says += f"; open circles: the {pruned:,} pruned ones at their last evaluation" if pruned else ""
    if any(trace.name == LOST for trace in fig.data):
        says += "; crosses at the worst value: failed or diverged ones"
    return Plot("learning-rate", "Learning rate", f"{says}.{left_out}", fig)


def _marks(
    view: StudyView, df: pd.DataFrame, groups: list[Any], at: pd.Series, values: pd.Series
) -> list[go.Scatter]:
    """Complete and pruned trials of each optimizer, then those that failed or have no number."""
    known = style.finite(values)
    is_loss = view.minimized if values.name == view.objective else True
    lost = (df["state"] == "failed") | ((df["state"] == "complete") & ~np.isfinite(values))
    traces = []
    for name, colour, chosen in groups:
        for state, symbol in (("complete", "circle"), ("pruned", "circle-open")):
            rows = df.index[chosen & ~lost & (df["state"] == state)]
            if len(style.finite(values.loc[rows])):
                shown = name if name and state == "complete" else f"{name} {state}".strip()
                marker = {"color": colour, "symbol": symbol, "size": 6}
                trials = at.loc[rows], values.loc[rows], df.loc[rows, "number"]
                hover = f", {shown}: %{{y}}, %{{x}}"
                traces.append(style.points(*trials, shown, hover, marker=marker))
    if lost.any():
        worst = np.full(lost.sum(), known.max() if is_loss else known.min())
        marker = {"color": style.PALETTE[-1], "symbol": "x", "size": 7}
        trials = at[lost], worst, df.loc[lost, "number"]
        traces.append(style.points(*trials, LOST, f", {LOST}: %{{y}}, %{{x}}", marker=marker))
    return traces


def _optimizers(view: StudyView, df: pd.DataFrame) -> list[tuple[str, str, pd.Series]]:
    """Name, colour and trials of each optimizer that was swept; else of all trials."""
    key = next((key for key in view.varied if key.rpartition(".")[2] == "optimizer"), None)
    if key is None or view.is_number(key):
        return [("", style.PALETTE[0], pd.Series(True, index=df.index))]
    (codes,), (labels,) = ranks(df, [key])
    colours = style.PALETTE[:-1]  # the last one is that of failed trials
    named = [
        (style.label(name), colour, codes == code)
        for code, (name, colour) in enumerate(zip(labels, colours, strict=False))
    ]
    others = codes >= len(colours)
    return [*named, ("others", style.GREY, others)] if others.any() else named


def _last(view: StudyView, df: pd.DataFrame, metric: str) -> pd.Series:
    """A metric of trials; of pruned ones, which have no objective, its last evaluation."""
    values = _numbers(df[metric])
    if metric in view.history:
        last = view.history.dropna(subset=metric).groupby("number")[metric].last()
        values = values.where(df["state"] != "pruned", values.fillna(df["number"].map(last)))
    return values


def _numbers(values: pd.Series) -> pd.Series:
    return pd.to_numeric(values, errors="coerce").astype("float64")
