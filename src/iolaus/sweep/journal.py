"""What trials are, report and end with, written in one transaction each.

Optuna's public functions take a transaction per value; a stack of trials has many at once. The
rows are those that `Trial.suggest_*`, `Trial.report`, `Trial.set_user_attr`, `Trial.set_constraint`
and `Study.tell` write (a test compares them). Left out is the samplers' `after_trial`: what it does
concerns `constraints_func`, which we do not use, and `Study.stop`. Called by the workers.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

import optuna
from optuna.distributions import distribution_to_json
from optuna.storages import RDBStorage
from optuna.storages._rdb import models
from optuna.trial import TrialState
from sqlalchemy import Float, cast, exists, func, insert, select, update

from iolaus.sweep.live_trial import LiveTrial
from iolaus.sweep.records import (
    EQUALS,
    SystemAttributes,
    Trials,
    UserAttributes,
    add_attributes,
)

_CONSTRAINT = "constraints"
_ROWS = Trials.__table__.c
_PARAMETERS = models.TrialParamModel.__table__
_REPORTS = models.TrialIntermediateValueModel.__table__
_VALUES = models.TrialValueModel.__table__


class Report(NamedTuple):
    """The objective of a running trial at a step."""

    trial: optuna.Trial
    step: int
    value: float


class Ending(NamedTuple):
    """How a trial ends. `values` are its objectives, one each, or None unless it is complete."""

    trial: optuna.Trial
    state: TrialState
    values: Sequence[float] | None
    attributes: Mapping[str, Any]
    constraints: Mapping[str, float]


class Lost(Exception):
    """The trial was taken for dead; another runs in its place."""


class Journal:
    """Writes for the trials of one study."""

    def __init__(self, study: optuna.Study):
        backend = getattr(study._storage, "_backend", None)
        assert isinstance(backend, RDBStorage)  # `Ledger` says so to people
        self.study = study
        self._engine = backend.engine

    def parameters(self, trials: Iterable[LiveTrial]) -> None:
        """Write the parameters that were suggested to trials since the last time."""
        rows = [
            {
                "trial_id": trial._trial_id,
                "param_name": name,
                "param_value": value,
                "distribution_json": distribution_to_json(distribution),
            }
            for trial in trials
            for name, value, distribution in trial.take_parameters()
        ]
        if rows:
            with self._engine.begin() as connection:
                connection.execute(insert(_PARAMETERS), rows)

    def report(self, reports: Iterable[Report]) -> None:
        """Write reports; a step that a trial has reported before keeps its first value."""
        rows = []
        for trial, step, value in reports:
            known = trial._cached_frozen_trial.intermediate_values
            if step in known:
                continue
            known[step] = value
            number, kind = models.TrialIntermediateValueModel.intermediate_value_to_stored_repr(
                value
            )
            rows.append(
                {
                    "trial_id": trial._trial_id,
                    "step": step,
                    "intermediate_value": number,
                    "intermediate_value_type": kind,
                }
            )
        if rows:
            with self._engine.begin() as connection:
                connection.execute(insert(_REPORTS), rows)

    def best(self, direction: str) -> float | None:
        """The best value of a complete trial that keeps its constraints, of one objective."""
        extreme = func.max if direction == "maximize" else func.min
        mine = select(extreme(_VALUES.c.value)).join(Trials, _ROWS.trial_id == _VALUES.c.trial_id)
        mine = mine.where(
            _ROWS.study_id == self.study._study_id, _ROWS.state == TrialState.COMPLETE
        )
        system = SystemAttributes.__table__.c
        violated = select(system.trial_id).where(
            system.key.startswith(f"{_CONSTRAINT}:"), cast(system.value_json, Float) > 0
        )
        mine = mine.where(_ROWS.trial_id.not_in(violated))
        with self._engine.begin() as connection:
            found: float | None = connection.scalar(mine)
        return found

    def steps(self) -> int:
        """Training steps of all finished trials that were trained themselves."""
        attributes = UserAttributes.__table__.c
        mine = select(attributes.value_json).join(Trials, _ROWS.trial_id == attributes.trial_id)
        mine = mine.where(_ROWS.study_id == self.study._study_id, attributes.key == "steps")
        other = UserAttributes.__table__.alias().c
        equal = exists().where(other.trial_id == attributes.trial_id, other.key == EQUALS)
        mine = mine.where(~equal)
        with self._engine.begin() as connection:
            return sum(json.loads(text) or 0 for text in connection.scalars(mine))

    def end(self, ending: Ending) -> None:
        """Write how a trial ended, with all its attributes: from then on its result is kept.

        Raises:
            Lost: the trial is not running any more.
        """
        trial, state, values = ending.trial, ending.state, ending.values
        frozen = trial._cached_frozen_trial
        self.study._thread_local.cached_all_trials = None
        if state == TrialState.PRUNED and frozen.last_step is not None:  # as `Study.tell`
            last = frozen.intermediate_values[frozen.last_step]
            values = None if math.isnan(last) else [last]
        system = {f"{_CONSTRAINT}:{name}": value for name, value in ending.constraints.items()}
        attributes = {k: v for k, v in ending.attributes.items() if k not in frozen.user_attrs}
        mine = _ROWS.trial_id == trial._trial_id
        with self._engine.begin() as connection:
            if connection.scalar(select(_ROWS.state).where(mine).with_for_update()) != (
                TrialState.RUNNING
            ):
                raise Lost(f"trial {trial.number} was taken for dead; another runs in its place")
            add_attributes(connection, UserAttributes, trial._trial_id, attributes)
            add_attributes(connection, SystemAttributes, trial._trial_id, system)
            if values:
                connection.execute(insert(_VALUES), list(_stored(trial._trial_id, values)))
            finished = update(Trials.__table__).where(mine)
            connection.execute(finished.values(state=state, datetime_complete=datetime.now()))


def _stored(trial_id: int, values: Sequence[float]) -> Iterable[dict[str, Any]]:
    for objective, value in enumerate(values):
        number, kind = models.TrialValueModel.value_to_stored_repr(value)
        yield {
            "trial_id": trial_id,
            "objective": objective,
            "value": number,
            "value_type": kind,
        }
