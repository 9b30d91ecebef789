"""All trials at once: several objectives against each other, and which worker trained what when.

Not by optuna.visualization: its Pareto front has at most three objectives, and two colour bars take
a third of a narrow screen; its timeline of 1,000 trials is a hairline, without workers.
"""

from __future__ import annotations

import heapq
import itertools

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from sweepstack.analysis.plots import Plot, style
from sweepstack.analysis.plots.progress import Clock, clock
from sweepstack.study.read import best
from sweepstack.study.view import StudyView

MAX_PAIRS = 10
MAX_WORKERS = 24
CLOSE = 1e-3
"""Gaps that cannot be seen, as a share of the whole time."""


def pareto(view: StudyView) -> Plot | None:
    """Several objectives in pairs, with the Pareto front of all of them."""
    names, good = list(view.objectives), view.good
    if len(names) < 2 or good.empty:
        return None
    front = good.iloc[best(good[names], good["number"], list(view.objectives.values()))]
    others, left_out = style.thin(view, good.drop(front.index))
    mode = "lines+markers" if len(names) == 2 else "markers"
    options: list[style.Option] = []
    for x, y in list(itertools.combinations(names, 2))[:MAX_PAIRS]:
        traces = [
            style.points(
                *(rows[x], rows[y], rows["number"], name, ": %{x}, %{y}"),
                mode=mode if rows is front else "markers",
                line={"shape": "linear", "width": 1},
                marker={"color": colour, "size": size},
            )
            for rows, name, colour, size in (
                (others, "other trials", style.GREY, 5),
                (front, "front", style.PALETTE[5], 8),
            )
        ]
        axes = {
            name: style.value_axis(view, good[objective], objective) | {"automargin": True}
            for name, objective in (("xaxis", x), ("yaxis", y))
        }
        options.append((style.pair_title((x, y), names), traces, axes))
    goals = ", ".join(f"{style.plain(name)} ({goal}d)" for name, goal in view.objectives.items())
    says = f"{goals}: {len(front)} of {len(good):,} trials are on the Pareto front, those that no"
    says += f" other beats in all objectives.{left_out}"
    return Plot("pareto", "Pareto front", says, style.with_menu(options, 440))


def timeline(view: StudyView) -> Plot | None:
    """A bar per trial by worker, coloured by how it ended, if times are known.

    A worker that trains a stack has a lane for each trial that runs beside others. In a large study
    bars that follow each other in a lane, or nearly, are drawn as one.
    """
    time = clock(view.frame)
    bars = _bars(view, time)
    if bars.empty or time.total <= 0:
        return None
    workers = bars["worker"].value_counts()
    kept = [name for name in bars["worker"].drop_duplicates() if name in workers[:MAX_WORKERS]]
    bars = bars[bars["worker"].isin(kept)]
    bars = bars.assign(lane=_lanes(bars))
    merged = _merged(bars, CLOSE * time.total) if len(bars) > style.MAX_POINTS else bars
    widths = bars.groupby("worker")["lane"].max().reindex(kept) + 1
    first = widths.cumsum() - widths + np.arange(len(widths))  # a lane between two workers
    lanes = int(first.iloc[-1] + widths.iloc[-1])
    size, unit = time.unit
    pixels = min(max(26 * len(kept), 9 * lanes), 700)
    says_trials = "trials from %{customdata} on" if "trials" in merged else "trial %{customdata}"
    fig = go.Figure()
    for state, colour in style.STATE_COLOURS.items():
        rows = merged[merged["state"] == state]
        if len(rows):
            fig.add_bar(
                orientation="h",
                base=style.floats(rows["begin"] / size),
                x=style.floats((rows["end"] - rows["begin"]) / size),
                y=style.floats(rows["lane"] + rows["worker"].map(first)),
                customdata=style.whole(rows["number"]),
                name=f"{state} ({int((bars['state'] == state).sum()):,})",
                hovertemplate=f"{says_trials}<extra></extra>",
                width=0.86 if pixels / lanes > 5 else 1.0,  # gaps under a pixel would be stripes
                marker={"color": colour},
            )
    style.styled(fig, 130 + pixels, bargap=0, barmode="overlay")
    fig.update_xaxes(title={"text": f"time since the start ({unit})"}, nticks=8)
    centres = list((first + (widths - 1) / 2).to_numpy())
    fig.update_yaxes(**style.rows_axis([style.label(worker, 20) for worker in kept], centres))
    fig.update_yaxes(range=[lanes - 0.4, -0.6])
    says = f"{len(bars):,} trial{'s' * (len(bars) > 1)} by worker"
    says += f", {len(kept)} of {len(workers)} workers" * (len(kept) < len(workers))
    says += ", those that run side by side below each other." if lanes > len(kept) else "."
    if len(merged) < len(bars):
        says += " Trials that follow each other closely are one bar."
    return Plot("timeline", "Timeline", says + time.says, fig)


def _bars(view: StudyView, time: Clock) -> pd.DataFrame:
    """A row per trial that began, in this order: number, state, worker, begin, end in seconds."""
    rows = view.frame.loc[time.begin.index, ["number", "state"]]
    workers = ["all trials"] * len(rows)
    if "worker" in view.frame:
        known = view.frame.loc[rows.index, "worker"].astype("object")
        workers = ["unknown" if pd.isna(name) else _short(name) for name in known]
    bars = rows.assign(worker=workers, begin=time.begin, end=time.end)
    return bars[bars["end"].notna()]


def _short(worker: object) -> str:
    """Host and process of "host/namespace:process:start"."""
    host, _, rest = str(worker).partition("/")
    parts = rest.split(":")
    return f"{host} {parts[1]}" if len(parts) == 3 else str(worker)


def _lanes(bars: pd.DataFrame) -> pd.Series:
    """The first lane of its worker that is free when a trial begins."""
    busy: dict[str, list[tuple[float, int]]] = {}
    free: dict[str, list[int]] = {}
    chosen = []
    for worker, begin, end in zip(bars["worker"], bars["begin"], bars["end"], strict=True):
        running, lanes = busy.setdefault(worker, []), free.setdefault(worker, [])
        while running and running[0][0] <= begin:
            heapq.heappush(lanes, heapq.heappop(running)[1])
        lane = heapq.heappop(lanes) if lanes else len(running)
        heapq.heappush(running, (max(end, begin), lane))
        chosen.append(lane)
    return pd.Series(chosen, index=bars.index, dtype="int64")


def _merged(bars: pd.DataFrame, gap_s: float) -> pd.DataFrame:
    """Bars of one lane and state that follow each other within `gap_s`, as one."""
    bars = bars.sort_values(["worker", "lane", "begin"], kind="stable")
    same = ["worker", "lane", "state"]
    broken = (bars[same] != bars[same].shift()).any(axis=1)
    broken |= bars["begin"] - bars["end"].shift() > gap_s
    grouped = bars.groupby(broken.cumsum())
    merged = grouped[[*same, "number", "begin"]].first()
    return merged.assign(end=grouped["end"].max(), trials=grouped.size())
