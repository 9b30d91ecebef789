"""The evaluations of a study's trials as a pandas frame: one row per trial, seed and step.

What the database keeps of an evaluation is the objective alone; the trials' folders
(outputs/studies/STUDY/NUMBER/history.csv) have every metric. A trial whose folder is gone, and any
of another program, has rows with the objective only.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
from optuna.trial import FrozenTrial, TrialState

from sweepstack.study.frame import STATES, is_retried, objectives
from sweepstack.study.read import trials_of

FIRST = ("number", "state", "seed", "step", "epoch")
"""Columns that come first, in this order, where there are any."""

_WHOLE = re.compile(r"[0-9]{1,18}")


def history(
    study: optuna.Study, folder: Path | None = None, numbers: Iterable[int] | None = None
) -> pd.DataFrame:
    """Read the evaluations of a study, in the order of trials and steps.

    Columns: number and state of the trial; seed, where trials are means over several; step, in
    optimizer steps; epoch; the learning rate lr; then the metrics, as means over samples. What is
    not known is NaN. Without any evaluation the frame has number, state, step and the objective.

    Args:
        study: of sweepstack or of any other program.
        folder: that of its trials' folders.
        numbers: the trials that are wanted; all by default.
    """
    wanted = None if numbers is None else set(numbers)
    name = objectives(study)[0][0]
    rows: list[dict[str, Any]] = []
    for trial in trials_of(study):
        if is_retried(trial) or (wanted is not None and trial.number not in wanted):
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


def rows_of(folder: Path | None, trial: FrozenTrial) -> list[dict[str, Any]]:
    """The rows of a finished trial's history.csv in a study's folder; none where it is gone."""
    if folder is None or trial.state in (TrialState.WAITING, TrialState.RUNNING):
        return []
    try:
        with (folder / str(trial.number) / "history.csv").open(
            newline="", encoding="utf-8"
        ) as file:
            header, *lines = csv.reader(file)
    except (OSError, ValueError, csv.Error):  # none, an empty one, or no text
        return []
    return [_row(header, line) for line in lines if len(line) == len(header)]


def _row(header: Sequence[str], line: Sequence[str]) -> dict[str, Any]:
    return {
        name: int(text) if name in ("step", "seed") and _WHOLE.fullmatch(text) else _number(text)
        for name, text in zip(header, line, strict=True)
    }


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
