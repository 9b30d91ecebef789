"""What a study asks: its objectives, and its keys with the values that they may take.

A swept key may have several parameters in Optuna, one for each of its cases, such as
`optimizer.lr[optimizer=sgd]` and `optimizer.lr[optimizer=adam]`; they are one key. Which belong
together is in the study's attribute `sweepstack.identity`, written by the sweeper. A study of
another program has none: there a key is a parameter's name, known from the trials.

A key is a seed if its last part is exactly `seed`: `training.seed`, or `seed` in another
application. Trials that differ in seeds alone repeat one configuration. `data.split_seed` is no
seed: it chooses other data to train and validate on, and is compared like any other setting.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, TypeGuard

import optuna
import pandas as pd
from optuna.distributions import CategoricalDistribution, IntDistribution
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial

from sweepstack.study.attributes import IDENTITY

Direction: TypeAlias = Literal["maximize", "minimize"]

FIXED = ("number", "state", "worker", "feasible", "retried", "duration_s", "started")
"""Columns of a frame whose names neither a key nor an attribute can take."""


@dataclass(frozen=True)
class Parameter:
    """One parameter of the space: a key, or one of its cases.

    Attributes:
        column: of its key in the frame.
        name: in Optuna, with its case.
        entry: what the sweeper declared: key, kind ("choice", "int", "float"), choices, texts (as
            overrides write them), low, high, log, step, when; of another program as much of it as
            its trials show.
        declared: whether the sweeper declared it.
    """

    column: str
    name: str
    entry: Mapping[str, Any]
    declared: bool = True

    @property
    def key(self) -> str:
        """As in an override, without "+"."""
        return str(self.entry["key"])

    @property
    def when(self) -> Mapping[str, list[str]]:
        """The values of other keys with which it exists; empty if it always does."""
        found = self.entry.get("when")
        return found if isinstance(found, Mapping) else {}

    @property
    def is_choice(self) -> bool:
        """Whether its values are a list."""
        return self.entry.get("kind") == "choice"

    @property
    def is_integer(self) -> bool:
        """Whether its values are the integers of a range."""
        return self.entry.get("kind") == "int"

    @property
    def is_log(self) -> bool:
        """Whether it is drawn on a logarithmic scale."""
        return self.entry.get("log") is True

    @property
    def choices(self) -> Sequence[Any]:
        """The values of its list, in declared order; empty for a range."""
        found = self.entry.get("choices") if self.is_choice else ()
        return found if isinstance(found, list | tuple) else ()

    @property
    def numbers(self) -> list[float] | None:
        """`choices` if all are finite numbers, else None."""
        listed = [choice for choice in self.choices if _is_number(choice)]
        return listed if listed and len(listed) == len(self.choices) else None

    @property
    def span(self) -> tuple[float, float] | None:
        """The bounds of its range; None for a list, and where they are unknown or equal."""
        low, high = self.entry.get("low"), self.entry.get("high")
        if self.is_choice or not (_is_number(low) and _is_number(high)) or not low < high:
            return None
        return None if self.is_log and low <= 0 else (low, high)

    def within(self, df: pd.DataFrame) -> pd.DataFrame:
        """The rows of a frame in which it exists."""
        kept = df[self.column].notna()
        for parent, allowed in self.when.items():
            if parent in df and isinstance(allowed, list):
                kept &= df[parent].map(_condition_text).isin(allowed)
        return df[kept]


@dataclass(frozen=True)
class Key:
    """A swept key.

    Attributes:
        column: in the frame: its name as in an override, without "+"; with "params_" in front
            where an objective or a column that every frame has is called the same.
        parameters: in Optuna, at least one.
    """

    column: str
    parameters: list[Parameter] = field(default_factory=list)

    @property
    def is_seed(self) -> bool:
        """Whether it only seeds a trial; the rule is at the top of this file."""
        return is_seed(self.column)

    @property
    def is_finite(self) -> bool:
        """Whether it has finitely many values."""
        return all(p.is_choice or p.entry.get("step") is not None for p in self.parameters)

    @property
    def is_log(self) -> bool:
        """Whether its numbers are drawn on a logarithmic scale."""
        return any(parameter.is_log for parameter in self.parameters)

    @property
    def choices(self) -> list[Any] | None:
        """Labels in declared order, None where it also has a range."""
        if not all(parameter.is_choice for parameter in self.parameters):
            return None
        every = [choice for parameter in self.parameters for choice in parameter.choices]
        return list(dict.fromkeys(map(label, every)))

    @property
    def bounds(self) -> tuple[float, float] | None:
        """The least and the largest of its numbers, None where it has none."""
        ends: list[float] = []
        for parameter in self.parameters:
            ends += parameter.numbers or ()
            ends += [e for n in ("low", "high") if _is_number(e := parameter.entry.get(n))]
        return (min(ends), max(ends)) if ends else None

    def described(self) -> dict[str, Any]:
        """As in the `attrs` of a frame."""
        low, high = self.bounds or (None, None)
        known = {"finite": self.is_finite, "choices": self.choices}
        return {**known, "low": low, "high": high, "log": self.is_log}

    def label(self, trial: FrozenTrial) -> Any:
        """The trial's value, None where it has none."""
        for parameter in self.parameters:
            if parameter.name in trial.params:
                return label(trial.params[parameter.name])
        return None


def is_seed(key: str) -> bool:
    """Whether a key only seeds a trial; the rule is at the top of this file."""
    return key.rpartition(".")[2] == "seed"


def identity(study: optuna.Study) -> Mapping[str, Any]:
    """What the sweeper wrote of the study's question; empty for other programs."""
    found = study.user_attrs.get(IDENTITY)
    return found if isinstance(found, Mapping) else {}


def objectives(study: optuna.Study) -> dict[str, Direction]:
    """The direction of each objective, in the order of the study's values.

    The names are the sweep's own, else `study.metric_names`, else "value", or "value_0" and so on
    where there are several.
    """
    directions = study.directions
    count = len(directions)
    names = identity(study).get("objectives") or study.metric_names
    if not isinstance(names, list) or len(set(map(str, names))) != count:
        names = ["value"] if count == 1 else [f"value_{index}" for index in range(count)]
    return {
        str(name): "maximize" if direction == StudyDirection.MAXIMIZE else "minimize"
        for name, direction in zip(names, directions, strict=True)
    }


def swept_keys(study: optuna.Study, trials: Sequence[FrozenTrial]) -> dict[str, Key]:
    """The keys by their columns: declared ones in their order, then those only trials know."""
    taken = {*FIXED, *objectives(study)}
    found: dict[str, Key] = {}
    known: set[str] = set()

    def add(name: str, entry: Mapping[str, Any], declared: bool) -> None:
        path = entry["key"]
        column = f"params_{path}" if path in taken else path
        key = found.setdefault(column, Key(column))
        key.parameters.append(Parameter(column, name, entry, declared))
        known.add(name)

    space = identity(study).get("space")
    for name, entry in space.items() if isinstance(space, Mapping) else ():
        if isinstance(entry, Mapping) and isinstance(entry.get("key"), str):
            add(name, entry, True)
    for trial in trials:
        for name in trial.params:
            if name not in known:
                add(name, _entry(name, trial.distributions[name]), False)
    return found


def label(value: Any) -> Any:
    """A value that can be compared and grouped by; Optuna lets choices be anything. A choice of
    None is "null", as Hydra writes it."""
    if value is None:
        return "null"
    return value if isinstance(value, str | int | float) else str(value)


def _entry(name: str, distribution: Any) -> dict[str, Any]:
    """What the distribution of an undeclared parameter says of it."""
    if isinstance(distribution, CategoricalDistribution):
        return {"key": name, "kind": "choice", "choices": distribution.choices}
    return {
        "key": name,
        "kind": "int" if isinstance(distribution, IntDistribution) else "float",
        "low": distribution.low,
        "high": distribution.high,
        "log": distribution.log,
        "step": None if distribution.log else distribution.step,
    }


def _is_number(value: object) -> TypeGuard[float]:
    """Whether it is a finite number, and no integer that no float can hold."""
    if isinstance(value, int):
        return not isinstance(value, bool) and value.bit_length() < 1024
    return isinstance(value, float) and math.isfinite(value)


def _condition_text(value: Any) -> str:
    """A label as the sweeper writes it in conditions."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
