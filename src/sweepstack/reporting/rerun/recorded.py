"""All numbers of a trial, as its study keeps them and as a rerun gave them, by the same keys."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from sweepstack.config.errors import InputError
from sweepstack.engine import seeds
from sweepstack.engine.spec import TrialResult, TrialSpec
from sweepstack.reporting.rerun.compare import EXACT, Given, Key, broken_step
from sweepstack.reporting.rerun.restore import Restored, said
from sweepstack.runs import folder as run_folder
from sweepstack.study.frame import STATES, rows_of
from sweepstack.study.keys import objectives
from sweepstack.study.library import OpenStudy

_AT_END = re.compile(r"(train|val|test)_\w+")


def trial_of(opened: OpenStudy, number: int) -> FrozenTrial:
    """A trial that ended.

    Raises:
        InputError: there is none of that number, or it has not ended.
    """
    storage, study_id = opened.study._storage, opened.study._study_id
    count = storage.get_n_trials(study_id)
    if not 0 <= number < count:
        allowed = f"0 to {count - 1}" if count else "none: the study is empty"
        raise InputError(f"the trials of {said(opened.name)} are {allowed}, got {number}")
    # `get_trials` would read the whole study.
    known = storage.get_trial_id_from_study_id_trial_number(study_id, number)
    trial = storage.get_trial(known)
    if trial.state in (TrialState.RUNNING, TrialState.WAITING):
        raise InputError(
            f"trial {number} is {STATES[trial.state]}: only one that has ended can be run again"
        )
    return trial


def recorded_of(opened: OpenStudy, trial: FrozenTrial, restored: Restored, objective: str) -> Given:
    """All numbers that the study keeps of a trial."""
    attributes, training = trial.user_attrs, restored.config.training
    several = training.seeds > 1
    numbers: dict[Key, float] = {}
    if restored.verified:  # or the folder may be another study's
        for row in rows_of(opened.folder, trial):
            seed, step = row.get("seed"), row.get("step")
            if (isinstance(seed, int) or not several) and isinstance(step, int):
                _add_row(numbers, row, step, seed if several else None)
    if len(objectives(opened.study)) == 1:
        for step, value in trial.intermediate_values.items():
            numbers[Key(objective, int(step))] = value
    error = attributes.get("error")
    state = STATES[trial.state]
    if state != "failed" or not several:  # else the other seeds were cut wherever they were
        _add_end(numbers, attributes, several, attributes.get("best_step"))
    if state == "complete" and several and isinstance(attributes.get("values"), list):
        for seed, value in enumerate(attributes["values"], training.seed):
            if _is_number(value):
                numbers[Key(objective, None, seed)] = _float(value)
    best = attributes.get("best_step")
    told = said(error) if isinstance(error, str) else None
    steps = (int(best),) if isinstance(best, int) else ()
    return Given(numbers, state, told, steps)


def _add_row(
    numbers: dict[Key, float], row: Mapping[str, Any], step: int, seed: int | None
) -> None:
    for name, value in row.items():
        if name == "lr" or _AT_END.fullmatch(name):
            numbers[Key(name, step, seed)] = float(value)


def _add_end(
    numbers: dict[Key, float], summary: Mapping[str, Any], several: bool, best_step: Any
) -> None:
    """Metrics of the best state. Of one seed, those of the training and validation are an
    evaluation's, known by its step; the others depend on which evaluation was the best."""
    for name, value in summary.items():
        if not isinstance(name, str) or not _is_number(value):
            continue
        if name in EXACT:
            numbers[Key(name)] = _float(value)
        elif _AT_END.fullmatch(name):
            at_step = not several and not name.startswith("test_") and isinstance(best_step, int)
            key = Key(name, best_step if at_step else None)
            known = numbers.get(key, value)
            numbers[key if known == value else replace(key, again=True)] = _float(value)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _float(value: float) -> float:
    try:
        return float(value)
    except OverflowError:  # a study may hold a whole number of any length
        return math.inf


def cut_of(trial: FrozenTrial, recorded: Given) -> int | None:
    """The step at which a trial ended before its budget, None where it did not."""
    broke = broken_step(recorded.error)
    if recorded.ended == "pruned":
        steps = [key.step for key in recorded.numbers if key.step is not None]
        return max([*map(int, trial.intermediate_values), *steps], default=None)
    return broke if recorded.ended == "failed" else None


def given_of(spec: TrialSpec, results: Sequence[TrialResult], objective: str) -> Given:
    """All numbers of a trial that was trained now."""
    several = spec.config.training.seeds > 1
    group = seeds.Group(spec, len(results))
    numbers: dict[Key, float] = {}
    reports: list[tuple[int, float]] = []
    for result in results:
        seed = result.spec.config.training.seed
        for row in result.history:
            _add_row(numbers, row, int(row["step"]), seed if several else None)
    for result in results:
        reports += [
            found
            for row in result.history
            for found in group.observe(
                result.spec.config.training.seed, int(row["step"]), row[objective]
            )
        ]
        reports += group.end(result)
    numbers |= {Key(objective, step): value for step, value in reports}
    summary = run_folder.summary_of(spec, results)
    _add_end(numbers, summary, several, summary["best_step"])
    if several:
        numbers |= {
            Key(objective, None, result.spec.config.training.seed): result.value
            for result in results
        }
    best = tuple(result.best_step for result in results)
    return Given(numbers, group.state, group.error, best)
