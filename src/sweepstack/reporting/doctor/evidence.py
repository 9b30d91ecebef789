"""A study as the doctor's checks read it: what is swept, configurations, the best, their curves.

A configuration is what trials share that differ in their seed alone; its value is their mean. A
trial that was recorded with the numbers of another (attribute `equals`) is no evidence of its own
and counts once. "The best" are as many of the top configurations as a tenth of all that were tried
(pruned trials too), at least 5 and at most 25.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from sweepstack.reporting.doctor.chance import Array
from sweepstack.study.attributes import IDENTITY
from sweepstack.study.frame import ranks
from sweepstack.study.library import OpenStudy
from sweepstack.study.ranking import order

FEWEST, MOST = 5, 25
"""How few and how many configurations are "the best"."""
FINISHED = ("complete", "pruned", "failed")


@dataclass(frozen=True)
class Case:
    """One parameter of the space: a swept key, or one of its cases.

    Attributes:
        column: in the frame.
        name: as Optuna calls it, with its case.
        entry: what the sweeper declared: key, kind, choices, texts, low, high, log, step, when; of
            another program what is known from its trials.
        declared: whether the sweeper declared it.
    """

    column: str
    name: str
    entry: Mapping[str, Any] = field(default_factory=dict)
    declared: bool = True

    @property
    def when(self) -> Mapping[str, list[str]]:
        """The values of other keys with which it exists."""
        found = self.entry.get("when")
        return found if isinstance(found, Mapping) else {}


@dataclass(frozen=True)
class Evidence:
    """What a study holds; every part is read when a check first asks for it."""

    opened: OpenStudy

    @cached_property
    def frame(self) -> pd.DataFrame:
        """One row per trial."""
        return self.opened.frame

    @cached_property
    def identity(self) -> Mapping[str, Any]:
        """What the sweeper wrote of its question; empty for other programs."""
        found = self.opened.user_attrs.get(IDENTITY)
        return found if isinstance(found, Mapping) else {}

    def config(self, key: str) -> Any:
        """A value that is the same in all trials, such as "training.max_steps"; None if unknown."""
        node: Any = self.identity.get("config")
        for part in key.split("."):
            node = node.get(part) if isinstance(node, Mapping) else None
        return node

    @cached_property
    def keys(self) -> list[str]:
        """Columns of the swept keys."""
        return list(self.frame.attrs.get("keys", {}))

    @cached_property
    def seeds(self) -> list[str]:
        """Those that only seed a trial."""
        return [key for key in self.keys if key.rpartition(".")[2].endswith("seed")]

    @cached_property
    def varied(self) -> list[str]:
        """Those besides seeds that differ among finished trials."""
        frame = self.frame[self.frame["state"].isin(FINISHED)]
        return [
            key
            for key in self.keys
            if key not in self.seeds and frame[key].nunique(dropna=False) > 1
        ]

    @cached_property
    def goal(self) -> str | None:
        """The objective, where there is just one."""
        names = list(self.frame.attrs.get("objectives", {}))
        return names[0] if len(names) == 1 else None

    @cached_property
    def sign(self) -> int:
        """1 where more is better, -1 where less is."""
        return 1 if self.frame.attrs["objectives"].get(self.goal) == "maximize" else -1

    @cached_property
    def complete(self) -> pd.DataFrame:
        """Complete trials that keep their constraints, with a finite value, without repeats.

        A column "score" is the objective where more is better.
        """
        frame = self.frame
        kept = frame["state"] == "complete"
        if self.goal is None:
            return frame[kept].assign(score=math.nan).head(0)
        kept &= np.isfinite(pd.to_numeric(frame[self.goal]).astype("float64"))
        if "feasible" in frame:
            kept &= frame["feasible"]
        kept &= ~self.repeats
        return frame[kept].assign(score=self.sign * frame.loc[kept, self.goal])

    @cached_property
    def repeats(self) -> pd.Series:
        """Whether a trial has the numbers of another that did the same."""
        if "equals" not in self.frame:
            return pd.Series(False, index=self.frame.index)
        return self.frame["equals"].notna()

    @cached_property
    def configurations(self) -> pd.DataFrame:
        """One row per configuration, best first: the varied keys, score, runs, std over its runs
        (NaN for one), and "numbers", its trials."""
        done = self.complete
        if done.empty:
            return done.assign(runs=0, std=math.nan, numbers=None)
        by = self.codes(done, self.varied)
        group = pd.Series(0, index=done.index) if not by else None
        grouped = done.groupby(by if group is None else group, sort=False)
        runs, score, std = _pooled(done, grouped.ngroup())
        first = grouped[self.varied].head(1) if self.varied else done[[]].head(1)
        found = first.reset_index(drop=True)
        found["score"], found["runs"], found["std"] = score, runs, std
        numbers: dict[int, list[int]] = {}
        for place, number in zip(grouped.ngroup(), done["number"], strict=True):
            numbers.setdefault(int(place), []).append(int(number))
        found["numbers"] = [numbers[place] for place in range(len(found))]
        places = order(found["score"], found["numbers"].map(min), ["maximize"])
        return found.iloc[places].reset_index(drop=True)

    def codes(self, frame: pd.DataFrame, keys: list[str]) -> list[pd.Series]:
        """What `frame` is grouped by so that values of any kind, and missing ones, are kept."""
        return ranks(frame, keys)[0]

    @cached_property
    def best(self) -> pd.DataFrame:
        """The best configurations; see the top of this file."""
        return self.configurations.head(best_of(len(self.configurations) + len(self.pruned)))

    @cached_property
    def pruned(self) -> pd.DataFrame:
        """Pruned trials: what is known of them is that they were worse; their score is -inf."""
        pruned = self.frame[(self.frame["state"] == "pruned") & ~self.repeats]
        return pruned[self.varied].assign(score=-math.inf, runs=1, std=math.nan)

    @cached_property
    def best_trials(self) -> set[int]:
        """Numbers of their trials."""
        return {number for numbers in self.best["numbers"] for number in numbers}

    @cached_property
    def cases(self) -> list[Case]:
        """Every parameter of the space, seeds left out."""
        return [case for case in self.every_case if case.column not in self.seeds]

    @cached_property
    def every_case(self) -> list[Case]:
        """Every parameter of the space."""
        space, found = self.identity.get("space"), []
        seen: set[str] = set()
        for name, entry in space.items() if isinstance(space, Mapping) else ():
            if isinstance(entry, Mapping) and isinstance(entry.get("key"), str):
                key = entry["key"]
                column = key if key in self.keys else f"params_{key}"
                if column in self.keys:
                    seen.add(column)
                    found.append(Case(column, str(name), entry))
        for key, known in self.frame.attrs.get("keys", {}).items():
            if key not in seen:
                kind = "choice" if known["choices"] or known["low"] is None else "float"
                if kind == "float" and pd.api.types.is_integer_dtype(self.frame[key].dtype):
                    kind = "int"
                entry = {**known, "key": key, "kind": kind}
                found.append(Case(key, key, entry, declared=False))
        return found

    def within(self, case: Case, frame: pd.DataFrame) -> pd.DataFrame:
        """The rows of `frame` in which `case` exists."""
        kept = frame[case.column].notna()
        for parent, allowed in case.when.items():
            if parent in frame and isinstance(allowed, list):
                kept &= frame[parent].map(lambda value, known=allowed: _text(value) in known)
        return frame[kept]

    @cached_property
    def curves(self) -> pd.DataFrame:
        """The objective at each evaluation where more is better: a row per trial, a column per
        step, means over the trial's seeds, NaN where there was none."""
        return self.curve_of(self.goal, self.sign) if self.goal else pd.DataFrame()

    def curve_of(self, metric: str | None, sign: int = 1) -> pd.DataFrame:
        """A metric at each evaluation; see `curves`. Empty where the history has it not."""
        history = self.opened.history
        if metric is None or metric not in history or history.empty:
            return pd.DataFrame()
        values = sign * pd.to_numeric(history[metric], errors="coerce").astype("float64")
        grouped = values.groupby([history["number"], history["step"]]).mean()
        return grouped.unstack("step").sort_index(axis=1)


def best_of(tried: int) -> int:
    """How many of so many configurations are the best."""
    return min(MOST, max(FEWEST, math.ceil(tried / 10)))


def _pooled(done: pd.DataFrame, place: pd.Series) -> tuple[Array, Array, Array]:
    """Runs, mean score and standard deviation over runs of each group; trials that are means over
    seeds themselves count as many runs as they have seeds (as in `tables.statistics`)."""
    runs, within = pd.Series(1.0, index=done.index), pd.Series(0.0, index=done.index)
    if {"seeds", "std"} <= set(done):
        seeds, std = (pd.to_numeric(done[name], errors="coerce") for name in ("seeds", "std"))
        several = (seeds > 1) & std.notna()
        runs = seeds.where(several, 1.0)
        within = ((seeds - 1) * std**2).where(several, 0.0)
    n = runs.groupby(place).sum()
    mean = (done["score"] * runs).groupby(place).sum() / n
    apart = runs * (done["score"] - mean.to_numpy()[place]) ** 2
    squares = (within + apart).groupby(place).sum()
    deviation = np.sqrt(squares / (n - 1).where(n > 1))
    return n.to_numpy(dtype=int), mean.to_numpy(), deviation.to_numpy()


def _text(value: Any) -> str:
    """A label as the sweeper writes it in conditions."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
