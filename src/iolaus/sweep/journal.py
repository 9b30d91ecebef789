"""What trials report and what they end with, written in one transaction each.

Optuna's public functions take a transaction per value; a stack of trials reports many at once. The
rows are those that `Trial.report`, `Trial.set_user_attr`, `Trial.set_constraint` and `Study.tell`
write (a test compares them). Left out is the samplers' `after_trial`: what it does concerns
`constraints_func`, which we do not use, and `Study.stop`. Called by the workers.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

import optuna
from optuna.storages import RDBStorage
from optuna.storages._rdb import models
from optuna.trial import TrialState
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from iolaus.sweep.records import SystemAttributes, Trials, UserAttributes

_CONSTRAINT = "constraints"


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

    def report(self, reports: Iterable[Report]) -> None:
        """Write reports; a step that a trial has reported before keeps its first value."""
        stored = models.TrialIntermediateValueModel
        with Session(self._engine) as session, session.begin():
            for trial, step, value in reports:
                seen = select(stored.trial_id).where(
                    stored.trial_id == trial._trial_id, stored.step == step
                )
                if session.scalar(seen) is not None:
                    continue
                number, kind = stored.intermediate_value_to_stored_repr(value)
                session.add(
                    stored(
                        trial_id=trial._trial_id,
                        step=step,
                        intermediate_value=number,
                        intermediate_value_type=kind,
                    )
                )
                trial._cached_frozen_trial.intermediate_values[step] = value

    def best(self, direction: str) -> float | None:
        """The best value of a complete trial of a study with one objective."""
        values = models.TrialValueModel
        extreme = func.max(values.value) if direction == "maximize" else func.min(values.value)
        mine = select(extreme).join(Trials, Trials.trial_id == values.trial_id)
        mine = mine.where(
            Trials.study_id == self.study._study_id, Trials.state == TrialState.COMPLETE
        )
        with Session(self._engine) as session, session.begin():
            return session.scalar(mine)

    def steps(self) -> int:
        """Training steps of all finished trials."""
        mine = select(UserAttributes.value_json).join(Trials)
        mine = mine.where(Trials.study_id == self.study._study_id, UserAttributes.key == "steps")
        with Session(self._engine) as session, session.begin():
            return sum(json.loads(text) or 0 for text in session.scalars(mine))

    def end(self, ending: Ending) -> None:
        """Write how a trial ended, with all its attributes: from then on its result is kept.

        Raises:
            Lost: the trial is not running any more.
        """
        trial, state, values = ending.trial, ending.state, ending.values
        self.study._thread_local.cached_all_trials = None
        frozen = self.study._storage.get_trial(trial._trial_id)
        if state == TrialState.PRUNED and frozen.last_step is not None:  # as `Study.tell`
            last = frozen.intermediate_values[frozen.last_step]
            values = None if math.isnan(last) else [last]
        system = {f"{_CONSTRAINT}:{name}": value for name, value in ending.constraints.items()}
        with Session(self._engine) as session, session.begin():
            row = session.get_one(Trials, trial._trial_id, with_for_update=True)
            if row.state != TrialState.RUNNING:
                raise Lost(f"trial {trial.number} was taken for dead; another runs in its place")
            session.add_all(_rows(UserAttributes, row.trial_id, ending.attributes))
            session.add_all(_rows(SystemAttributes, row.trial_id, system))
            for objective, value in enumerate(values or ()):
                number, kind = models.TrialValueModel.value_to_stored_repr(value)
                session.add(
                    models.TrialValueModel(
                        trial_id=row.trial_id, objective=objective, value=number, value_type=kind
                    )
                )
            row.state = state
            row.datetime_complete = datetime.now()


def _rows(model: Any, trial_id: Any, attributes: Mapping[str, Any]) -> list[Any]:
    return [
        model(trial_id=trial_id, key=key, value_json=json.dumps(value))
        for key, value in attributes.items()
    ]
