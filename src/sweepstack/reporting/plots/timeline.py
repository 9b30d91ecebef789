"""Which worker trained what when: a bar per trial, coloured by how it ended.

A worker that trains a stack has a lane for each trial that runs beside others. In a large study
bars that follow each other in a lane, or nearly, are drawn as one.
"""

from __future__ import annotations

import heapq

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from sweepstack.reporting.plots import Plot
from sweepstack.reporting.plots.clock import Clock, clock, spans, unit
from sweepstack.reporting.plots.common import STATE_COLOURS, floats, styled, whole
from sweepstack.reporting.plots.material import MOST_POINTS, Material
from sweepstack.reporting.plots.words import label

MOST_WORKERS = 24
CLOSE = 1e-3
"""Gaps that are not seen, as a share of the whole time."""


def plot(material: Material) -> Plot | None:
    """The timeline, if times are known."""
    times = clock(material.df)
    bars = _bars(material, times)
    total = spans(times.end)
    if bars.empty or total <= 0:
        return None
    workers = bars["worker"].value_counts()
    kept = [name for name in bars["worker"].drop_duplicates() if name in workers[:MOST_WORKERS]]
    bars = bars[bars["worker"].isin(kept)]
    bars = bars.assign(lane=_lanes(bars))
    merged = _merged(bars, CLOSE * total) if len(bars) > MOST_POINTS else bars
    widths = bars.groupby("worker")["lane"].max().reindex(kept) + 1
    first = widths.cumsum() - widths + np.arange(len(widths))  # a lane between two workers
    lanes = int(first.iloc[-1] + widths.iloc[-1])
    size, name = unit(total)
    pixels = min(max(26 * len(kept), 9 * lanes), 700)
    thick = 0.86 if pixels / lanes > 5 else 1.0  # gaps of less than a pixel would be stripes
    fig = go.Figure()
    for state, colour in STATE_COLOURS.items():
        rows = merged[merged["state"] == state]
        if len(rows):
            count = int((bars["state"] == state).sum())
            at = rows["lane"] + rows["worker"].map(first)
            _draw(fig, rows, at, size, f"{state} ({count:,})")
            fig.data[-1].update(width=thick, marker_color=colour)
    styled(fig, 130 + pixels, bargap=0, barmode="overlay")
    fig.update_xaxes(title={"text": f"time since the begin ({name})"}, nticks=8, zeroline=False)
    fig.update_yaxes(
        tickvals=list((first + (widths - 1) / 2).to_numpy()),
        ticktext=[label(worker, 20) for worker in kept],
        range=[lanes - 0.4, -0.6],
        zeroline=False,
        showgrid=False,
    )
    says = f"{len(bars):,} trials by worker, {len(kept)} of {len(workers)} workers"
    says += ", those that run side by side below each other." if lanes > len(kept) else "."
    if len(merged) < len(bars):
        says += " Trials that follow each other closely are one bar."
    return Plot("timeline", "Timeline", says + times.says, fig)


def _bars(material: Material, times: Clock) -> pd.DataFrame:
    """A row per trial that began, in this order: number, state, worker, begin, end in seconds."""
    rows = material.df.loc[times.begin.index, ["number", "state"]]
    workers = ["all trials"] * len(rows)
    if "worker" in material.df:
        known = material.df.loc[rows.index, "worker"].astype("object")
        workers = ["unknown" if pd.isna(name) else _short(name) for name in known]
    bars = rows.assign(worker=workers, begin=times.begin, end=times.end)
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
    found = []
    for worker, begin, end in zip(bars["worker"], bars["begin"], bars["end"], strict=True):
        running, lanes = busy.setdefault(worker, []), free.setdefault(worker, [])
        while running and running[0][0] <= begin:
            heapq.heappush(lanes, heapq.heappop(running)[1])
        lane = heapq.heappop(lanes) if lanes else len(running)
        heapq.heappush(running, (max(end, begin), lane))
        found.append(lane)
    return pd.Series(found, index=bars.index, dtype="int64")


def _merged(bars: pd.DataFrame, gap_s: float) -> pd.DataFrame:
    """Bars of one lane and state that follow each other within `gap_s`, as one."""
    bars = bars.sort_values(["worker", "lane", "begin"], kind="stable")
    same = ["worker", "lane", "state"]
    broken = (bars[same] != bars[same].shift()).any(axis=1)
    broken |= bars["begin"] - bars["end"].shift() > gap_s
    grouped = bars.groupby(broken.cumsum())
    merged = grouped[[*same, "number", "begin"]].first()
    return merged.assign(end=grouped["end"].max(), trials=grouped.size())


def _draw(fig: go.Figure, rows: pd.DataFrame, at: pd.Series, size: float, name: str) -> None:
    fig.add_bar(
        orientation="h",
        base=floats(rows["begin"] / size),
        x=floats((rows["end"] - rows["begin"]) / size),
        y=floats(at),
        customdata=whole(rows["number"]),
        name=name,
        hovertemplate=(
            "trials from %{customdata} on<extra></extra>"
            if "trials" in rows
            else "trial %{customdata}<extra></extra>"
        ),
    )
