"""A study as a pandas frame: one row per trial, one column per swept key.

A swept key may have several parameters in Optuna, one for each of its cases, such as
`optimizer.lr[optimizer=sgd]` and `optimizer.lr[optimizer=adam]`; here they are one column. Which
belong together is in the study's attribute `sweepstack.identity`, written by the sweeper. A study
of another program has none: there a key is a parameter's name, known from the trials.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import optuna
import pandas as pd
from optuna.distributions import CategoricalDistribution
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from sweepstack.study.attributes import IDENTITY, RETRIED, WORKER
from sweepstack.study.read import trials_of

Direction: TypeAlias = Literal["maximize", "minimize"]

STATES = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "running",
    TrialState.WAITING: "waiting",
}
FIXED = ("number", "state", "worker", "feasible", "retried", "duration_s", "started")
"""Columns whose names neither a key nor an attribute can take."""


def frame(study: optuna.Study, *, retried: bool = False) -> pd.DataFrame:
    """Read a study into a frame with one row per trial, in the order of their numbers.

    Columns, in this order:
        number, state: "complete", "pruned", "failed", "running" or "waiting".
        One per objective, as `objectives` names them: NaN unless the trial is complete. A pruned
            trial's last report was made at another step and is no result.
        One per swept key, as `keys` names them: numbers as numbers, choices as their labels, a
            choice of None as "null" (as Hydra writes it), missing where the key did not exist.
        One per user attribute, unless a column above has its name; of those that start with
            "sweepstack." only the worker, as "worker".
        feasible, in a study with constraints: whether all of them are kept.
        duration_s, started: seconds from start to end (NaN until then); local time of the start.

    `attrs` holds what is known beyond the values: {"study": name, "objectives": {name: direction},
    "keys": {key: {"finite": whether there are finitely many values, "choices": labels in declared
    order or None, "low", "high": the bounds of its numbers or None, "log": whether it was drawn on
    a logarithmic scale}}}.

    Args:
        study: of sweepstack or of any other program.
        retried: whether to keep failed trials that another trial replaced, and a column
            "retried" that tells them.
    """
    trials = trials_of(study)
    goals = objectives(study)
    swept = _swept(study, trials)
    if not retried:
        trials = [trial for trial in trials if not is_retried(trial)]
    columns: dict[str, Any] = {
        "number": pd.Series([trial.number for trial in trials], dtype="int64"),
        "state": pd.Series([STATES[trial.state] for trial in trials], dtype=_text_type()),
    }
    for index, (name, _) in enumerate(goals):
        columns[name] = pd.Series([_objective(trial, index) for trial in trials], dtype="float64")
    for key in swept:
        columns[key.column] = _series([key.label(trial) for trial in trials])
    for name, values in _attributes(trials).items():
        columns.setdefault(name, values)
    if any(trial.constraints for trial in trials):
        kept = [all(x <= 0 for x in trial.constraints.values()) for trial in trials]
        columns["feasible"] = pd.Series(kept, dtype="bool")
    if retried:
        columns["retried"] = pd.Series([is_retried(trial) for trial in trials], dtype="bool")
    durations, starts = map(_duration, trials), [trial.datetime_start for trial in trials]
    columns["duration_s"] = pd.Series(list(durations), dtype="float64")
    columns["started"] = pd.Series(starts, dtype="datetime64[us]")
    table = pd.DataFrame(columns)
    table.attrs["study"] = str(study.study_name)
    table.attrs["objectives"] = dict(goals)
    table.attrs["keys"] = {key.column: key.described() for key in swept}
    return table


def keys(study: optuna.Study) -> list[str]:
    """Name the columns of the swept keys, in declared order.

    A key is called as in an override, without "+". Where the name of an objective or of a column
    that every frame has is the same, it has "params_" in front, as in Optuna's own frames.
    """
    return [key.column for key in _swept(study, trials_of(study))]


def objectives(study: optuna.Study) -> list[tuple[str, Direction]]:
    """Name each objective and its direction, in the order of the study's values.

    The names are the sweep's own, else `study.metric_names`, else "value", or "value_0" and so on
    where there are several.
    """
    directions = study.directions
    count = len(directions)
    names = _identity(study).get("objectives") or study.metric_names
    if not isinstance(names, list) or len(set(map(str, names))) != count:
        names = ["value"] if count == 1 else [f"value_{index}" for index in range(count)]
    return [
        (str(name), "maximize" if direction == StudyDirection.MAXIMIZE else "minimize")
        for name, direction in zip(names, directions, strict=True)
    ]


def ranks(df: pd.DataFrame, by: Sequence[str]) -> tuple[list[pd.Series], list[list[Any]]]:
    """Return the rank of each row's label in each column of `by`, and the labels by rank.

    Labels stand in the order in which they were declared, others after them, ascending, and NaN
    last where values are missing. Group by the ranks to keep all of it.
    """
    codes, labels = [], []
    for key in by:
        values, missing = df[key].tolist(), df[key].isna()
        seen = {value for value, gone in zip(values, missing, strict=True) if not gone}
        declared = df.attrs.get("keys", {}).get(key, {}).get("choices") or ()
        known = [label for label in declared if label in seen]
        others = sorted(seen.difference(known), key=lambda label: (isinstance(label, str), label))
        rank = {label: index for index, label in enumerate([*known, *others])}
        found = [rank.get(value, len(rank)) for value in values]
        codes.append(pd.Series(found, index=df.index, name=key, dtype="int64"))
        labels.append([*known, *others, *([float("nan")] if missing.any() else [])])
    return codes, labels


@dataclass(frozen=True)
class _Domain:
    """The values that one parameter may take: `choices`, or numbers between two `bounds`."""

    finite: bool
    choices: Sequence[Any] | None = None
    bounds: tuple[float, ...] = ()
    log: bool = False

    @classmethod
    def declared(cls, entry: Mapping[str, Any]) -> _Domain:
        """As the sweeper wrote it into the study."""
        if entry.get("kind") == "choice":
            choices = entry.get("choices") or ()
            numbers = all(type(choice) in (int, float) for choice in choices)
            return cls(True, choices, tuple(choices) if numbers else ())
        bounds = (entry["low"], entry["high"]) if {"low", "high"} <= set(entry) else ()
        return cls(entry.get("step") is not None, None, bounds, entry.get("log") is True)

    @classmethod
    def of(cls, distribution: Any) -> _Domain:
        """As Optuna knows it."""
        if isinstance(distribution, CategoricalDistribution):
            return cls.declared({"kind": "choice", "choices": distribution.choices})
        low, high, log = distribution.low, distribution.high, distribution.log
        return cls(distribution.step is not None and not log, None, (low, high), log)


@dataclass
class _Key:
    """One swept key: its column, its parameters in Optuna, its values."""

    column: str
    names: list[str] = field(default_factory=list)
    finite: bool = True
    choices: list[Any] | None = field(default_factory=list)
    log: bool = False
    bounds: list[float] = field(default_factory=list)

    def add(self, name: str, domain: _Domain) -> None:
        """Take in one more parameter."""
        self.names.append(name)
        self.finite &= domain.finite
        self.log |= domain.log
        self.bounds += domain.bounds
        if domain.choices is None or self.choices is None:
            self.choices = None
        else:
            self.choices = list(dict.fromkeys([*self.choices, *map(_plain, domain.choices)]))

    def described(self) -> dict[str, Any]:
        """What `frame` says of it in `attrs`."""
        low, high = (min(self.bounds), max(self.bounds)) if self.bounds else (None, None)
        known = {"finite": self.finite, "choices": self.choices}
        return {**known, "low": low, "high": high, "log": self.log}

    def label(self, trial: FrozenTrial) -> Any:
        """The trial's value, None where it has none."""
        for name in self.names:
            if name in trial.params:
                return _plain(trial.params[name])
        return None


def _swept(study: optuna.Study, trials: Sequence[FrozenTrial]) -> list[_Key]:
    """The declared keys in their order, then those that only trials know."""
    taken = {*FIXED, *(name for name, _ in objectives(study))}
    found: dict[str, _Key] = {}
    seen: set[str] = set()

    def add(path: str, name: str, domain: _Domain) -> None:
        column = f"params_{path}" if path in taken else path
        found.setdefault(path, _Key(column)).add(name, domain)
        seen.add(name)

    space = _identity(study).get("space")
    for name, entry in space.items() if isinstance(space, Mapping) else ():
        if isinstance(entry, Mapping) and "key" in entry:
            add(entry["key"], name, _Domain.declared(entry))
    for trial in trials:
        for name in trial.params:
            if name not in seen:
                add(name, name, _Domain.of(trial.distributions[name]))
    return list(found.values())


def _identity(study: optuna.Study) -> Mapping[str, Any]:
    identity = study.user_attrs.get(IDENTITY)
    return identity if isinstance(identity, Mapping) else {}


def _plain(label: Any) -> Any:
    """A label that can be compared and grouped by; Optuna lets choices be anything."""
    if label is None:
        return "null"
    return label if isinstance(label, str | int | float) else str(label)


def _attributes(trials: Sequence[FrozenTrial]) -> dict[str, pd.Series]:
    """A column for each user attribute that people may want, and "worker" where it is known."""
    names = dict.fromkeys(name for trial in trials for name in trial.user_attrs)
    wanted = [name for name in names if name not in FIXED and not name.startswith("sweepstack.")]
    shown = {name: name for name in wanted} | ({"worker": WORKER} if WORKER in names else {})
    return {
        column: _series([trial.user_attrs.get(name) for trial in trials])
        for column, name in shown.items()
    }


def _objective(trial: FrozenTrial, index: int) -> float | None:
    if trial.state != TrialState.COMPLETE or trial.values is None:
        return None
    return float(trial.values[index])


def _duration(trial: FrozenTrial) -> float | None:
    if trial.datetime_start is None or trial.datetime_complete is None:
        return None
    return (trial.datetime_complete - trial.datetime_start).total_seconds()


def is_retried(trial: FrozenTrial) -> bool:
    """Whether another trial ran in its place, so that it does not count."""
    return trial.state == TrialState.FAIL and trial.user_attrs.get(RETRIED) is True


def _series(values: list[Any]) -> pd.Series:
    """A column of the values' own type; an empty one, or one without values, is of objects."""
    if all(value is None for value in values):
        return pd.Series(values, dtype="object")
    return pd.Series(values)


def _text_type() -> Any:
    """What this pandas makes of text: "str" since 3, object before."""
    return pd.Series(["text"]).dtype
