"""What is drawn of a study: its keys, its good trials, and how many of them.

Notation: `df` is a frame of `frame.frame` or some rows of it.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
import pandas as pd

from sweepstack.reporting.plots.words import word
from sweepstack.study.library import OpenStudy
from sweepstack.study.ranking import order

MOST_POINTS = 2_000
"""Trials that one plot draws."""
MOST_BEST = 100
"""The best trials that are drawn of a study that is thinned."""
MOST_CHOICES = 24
"""Values of a key up to which it is an axis of a table."""
LARGEST = 1e37
"""Values from here on are taken for infinite: what plotly is given has 32 bits."""


class Material:
    """A study as the plots use it.

    Attributes:
        opened: the study.
        df: its frame.
        goals: {objective: direction}.
        value, direction: the first objective, which plots of one objective show.
        keys: the swept keys that vary among finished trials, without seeds.
        seeds: the swept keys that are seeds and vary.
        good: the complete trials that keep their constraints and whose value is finite
            and can be drawn.
    """

    def __init__(self, opened: OpenStudy):
        self.opened = opened
        self.df = opened.frame
        self.goals: dict[str, str] = self.df.attrs["objectives"]
        self.value, self.direction = next(iter(self.goals.items()))
        finished = self.df[self.df["state"].isin(("complete", "pruned", "failed"))]
        varying = [key for key in self.df.attrs["keys"] if finished[key].nunique() > 1]
        self.seeds = [key for key in varying if key.rpartition(".")[2] == "seed"]
        self.keys = [key for key in varying if key not in self.seeds]
        good = (self.df["state"] == "complete") & (self.df[self.value].abs() < LARGEST)
        if "feasible" in self.df:
            good &= self.df["feasible"]
        self.good = self.df[good]

    @cached_property
    def importance(self) -> dict[str, float]:
        """The share of each key, the most important first; empty where it is not known."""
        from sweepstack.reporting.plots.importance import shares

        return shares(self)

    @property
    def by_importance(self) -> list[str]:
        """`keys`, the most important first, in declared order where that is not known."""
        return sorted(self.keys, key=lambda key: -self.importance.get(key, 0.0))

    @property
    def minimized(self) -> bool:
        """Whether less of the (first) objective is better."""
        return bool(self.direction == "minimize")

    def is_number(self, key: str) -> bool:
        """Whether a key's values are numbers of a range and not choices."""
        described = self.df.attrs["keys"].get(key, {})
        kind = self.df[key].dtype
        numeric = pd.api.types.is_numeric_dtype(kind) and not pd.api.types.is_bool_dtype(kind)
        return described.get("choices") is None and bool(numeric)

    def is_table(self, key: str) -> bool:
        """Whether a key has so few values that each can have its own place."""
        finite = not self.is_number(key) or bool(self.df.attrs["keys"][key]["finite"])
        return bool(finite and self.df[key].nunique() <= MOST_CHOICES)

    def best_first(self, df: pd.DataFrame) -> pd.DataFrame:
        """Rows by the first objective."""
        return df.iloc[order(df[self.value], df["number"], [self.direction])]

    @property
    def of_several(self) -> str:
        """A sentence that says which objective is shown, where there are several."""
        return f" Shown is the first objective, {word(self.value)}." if len(self.goals) > 1 else ""


def thin(material: Material, df: pd.DataFrame, most: int = MOST_POINTS) -> tuple[pd.DataFrame, str]:
    """At most `most` rows, in their order, and a sentence that says which, or nothing.

    The best, those that failed or were pruned (at most a quarter of `most` each), others by
    chance.
    """
    if len(df) <= most:
        return df, ""
    random = np.random.default_rng(0)
    best = material.best_first(df[df.index.isin(material.good.index)]).index[:MOST_BEST]
    chosen = [*best]
    for state in ("failed", "pruned"):
        rows = df.index[df["state"] == state].to_numpy()
        chosen += list(random.choice(rows, min(len(rows), most // 4), replace=False))
    rest = df.index.difference(pd.Index(chosen)).to_numpy()
    chosen += list(random.choice(rest, min(len(rest), most - len(chosen)), replace=False))
    which = "the best, failed and pruned ones, others by chance"
    return df.loc[sorted(chosen)], f" Drawn are {most:,} of {len(df):,} trials: {which}."
