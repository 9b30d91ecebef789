"""A study as pandas frames: its trials, and the evaluations of its trials.

A frame's `attrs` hold what is known beyond the values: {"study": name, "objectives": {name:
direction}, "keys": {key: {"finite": whether there are finitely many values, "choices": labels in
declared order or None, "low", "high": the bounds of its numbers or None, "log": whether it was
drawn on a logarithmic scale}}}.

What the database keeps of an evaluation is the objective alone; the trials' folders
(outputs/studies/STUDY/NUMBER/history.csv) have every metric. A trial whose folder is gone, and any
of another program, has evaluations with the objective only.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
from optuna.trial import FrozenTrial, TrialState

from sweepstack.config.errors import LAYERS
from sweepstack.study.attributes import RETRIED, WORKER
from sweepstack.study.keys import FIXED, objectives, swept_keys
from sweepstack.study.read import trials_of

STATES = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "running",
    TrialState.WAITING: "waiting",
}
FIRST = ("number", "state", "seed", "step", "epoch")
"""Columns of evaluations that come first, in this order, where there are any."""
_WHOLE = re.compile(r"[0-9]{1,18}")


def frame(
    study: optuna.Study, *, retried: bool = False, trials: Sequence[FrozenTrial] | None = None
) -> pd.DataFrame:
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

    Args:
        study: of sweepstack or of any other program.
        retried: whether to keep failed trials that another trial replaced, and a column
            "retried" that tells them.
        trials: all of the study, where they have been read.
    """
    trials = trials_of(study) if trials is None else trials
    goals = objectives(study)
    swept = swept_keys(study, trials)
    if not retried:
        trials = [trial for trial in trials if not is_retried(trial)]
    columns: dict[str, Any] = {
        "number": pd.Series([trial.number for trial in trials], dtype="int64"),
        "state": pd.Series([STATES[trial.state] for trial in trials], dtype=_text_type()),
    }
    for index, name in enumerate(goals):
        columns[name] = pd.Series([_objective(trial, index) for trial in trials], dtype="float64")
    for column, key in swept.items():
        columns[column] = _series([key.label(trial) for trial in trials])
    for name, values in _attributes(trials).items():
        columns.setdefault(name, values)
    if any(trial.constraints for trial in trials):
        kept = [all(x <= 0 for x in trial.constraints.values()) for trial in trials]
        columns["feasible"] = pd.Series(kept, dtype="bool")
    if retried:
        columns["retried"] = pd.Series([is_retried(trial) for trial in trials], dtype="bool")
    starts = [trial.datetime_start for trial in trials]
    columns["duration_s"] = pd.Series([_duration(trial) for trial in trials], dtype="float64")
    columns["started"] = pd.Series(starts, dtype="datetime64[us]")
    table = pd.DataFrame(columns)
    known = {column: key.described() for column, key in swept.items()}
    table.attrs |= {"study": str(study.study_name), "objectives": goals, "keys": known}
    return table


def history(
    study: optuna.Study,
    folder: Path | None = None,
    *,
    trials: Sequence[FrozenTrial] | None = None,
) -> pd.DataFrame:
    """Read the evaluations of a study, in the order of trials and steps.

    Columns: number and state of the trial; seed, where trials are means over several; step, in
    optimizer steps; epoch; the learning rate lr; then the metrics, as means over samples. What is
    not known is NaN. Without any evaluation the frame has number, state, step and the objective.

    Args:
        study: of sweepstack or of any other program.
        folder: that of its trials' folders.
        trials: all of the study, where they have been read.
    """
    name = next(iter(objectives(study)))
    rows: list[dict[str, Any]] = []
    for trial in trials_of(study) if trials is None else trials:
        if is_retried(trial):
            continue
        found = rows_of(folder, trial) or [
            {"step": step, name: value} for step, value in sorted(trial.intermediate_values.items())
        ]
        state = STATES[trial.state]
        rows += [{"number": trial.number, "state": state, **row} for row in found]
    if not rows:
        return pd.DataFrame({"number": [], "state": [], "step": [], name: []})
    table = pd.DataFrame.from_records(rows)
    first = [column for column in FIRST if column in table]
    return table[[*first, *(column for column in table if column not in first)]]


def layers(folder: Path | None, trials: Sequence[FrozenTrial]) -> pd.DataFrame:
    """What each layer does at step 0 and at each evaluation of trials with training.diagnostics,
    running ones too.

    Columns: number and state of the trial; seed, where trials are means over several; then those of
    `engine.diagnostics`. What is not known is NaN.
    """
    rows = [
        {"number": trial.number, "state": STATES[trial.state], **row}
        for trial in trials
        if not is_retried(trial)
        for row in rows_of(folder, trial, LAYERS)
    ]
    columns = ["number", "state", *(["seed"] if any("seed" in row for row in rows) else [])]
    table = pd.DataFrame.from_records(rows, columns=None if rows else [*columns, "step", "layer"])
    return table[[*columns, *(column for column in table if column not in columns)]]


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
    values = [_as_float(v) if type(v) is int and v.bit_length() > 64 else v for v in values]
    try:
        return pd.Series(values)
    except UnicodeEncodeError:  # half of a surrogate pair is no text for pandas
        return pd.Series(values, dtype="object")


def _as_float(value: int) -> float:
    """A study may hold an integer of any length."""
    try:
        return float(value)
    except OverflowError:
        return math.copysign(math.inf, 1 if value > 0 else -1)


def _text_type() -> Any:
    """What this pandas makes of text: "str" since 3, object before."""
    return pd.Series(["text"]).dtype


def rows_of(
    folder: Path | None, trial: FrozenTrial, name: str = "history.csv"
) -> list[dict[str, Any]]:
    """The rows of a finished trial's history.csv in a study's folder, or of layers.csv of any;
    none where it is gone."""
    unfinished = trial.state in (TrialState.WAITING, TrialState.RUNNING)
    if folder is None or (unfinished and name != LAYERS):
        return []
    try:
        with (folder / str(trial.number) / name).open(newline="", encoding="utf-8") as file:
            header, *lines = csv.reader(file)
    except (OSError, ValueError, csv.Error):  # none, an empty one, or no text
        return []
    return [_row(header, line) for line in lines if len(line) == len(header)]


def _row(header: Sequence[str], line: Sequence[str]) -> dict[str, Any]:
    return {
        name: text
        if name == "layer"
        else int(text)
        if name in ("step", "seed") and _WHOLE.fullmatch(text)
        else _float(text)
        for name, text in zip(header, line, strict=True)
    }


def _float(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
