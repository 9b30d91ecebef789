"""The time of a study without its pauses: when trials began and ended, in seconds of work.

A study that was stopped and resumed the next day would else be a night with a little at its ends.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

PAUSE_S = 60.0
"""A gap in which no trial ran is left out if it is longer."""


@dataclass(frozen=True)
class Clock:
    """Begin and end of each trial that has begun, by the rows of the frame.

    Attributes:
        begin, end: seconds since the first trial's begin, pauses left out; the end of a trial that
            still runs is the last time that is known.
        pauses: how many were left out.
    """

    begin: pd.Series
    end: pd.Series
    pauses: int

    @property
    def says(self) -> str:
        """A sentence about pauses, or nothing."""
        if not self.pauses:
            return ""
        return f" {self.pauses} pause{'s' * (self.pauses > 1)} of over a minute left out."


def clock(df: pd.DataFrame) -> Clock:
    """Read the clock of the trials of a frame."""
    begun = df[df["started"].notna()]
    start = (begun["started"] - begun["started"].min()).dt.total_seconds().astype("float64")
    start = start.sort_values(kind="stable")
    end = start + begun["duration_s"].clip(lower=0).reindex(start.index)
    last = spans(pd.concat([start, end]))
    running = df["state"].reindex(start.index) == "running"
    end = end.where(~running, last)
    before = end.fillna(start).cummax().shift(fill_value=0.0)
    gap = (start - before).clip(lower=0)
    pauses = gap.where(gap > PAUSE_S, 0.0)
    # Nothing runs in a pause, so that a trial's end comes as much earlier as its begin does.
    idle = pauses.cumsum()
    return Clock(start - idle, (end - idle).rename("end"), int((pauses > 0).sum()))


def unit(seconds: float) -> tuple[float, str]:
    """What to divide seconds by, and the unit's name, for an axis of this length."""
    for size, name in ((86_400, "days"), (3_600, "h"), (60, "min")):
        if seconds >= 3 * size:
            return float(size), name
    return 1.0, "s"


def spans(values: pd.Series) -> float:
    """The latest of some times, 0 without any."""
    return float(np.nanmax(values)) if values.notna().any() else 0.0
