"""What trials are, report and end with, written in one transaction each.

Optuna's public functions take a transaction per value; a stack of trials has many at once. The rows
are those that `Trial.suggest_*`, `Trial.report`, `Trial.set_user_attr`, `Trial.set_constraint` and
`Study.tell` write (a test compares them). Left out is the samplers' `after_trial`: what it does
concerns `constraints_func`, which we do not use, and `Study.stop`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

import optuna
from optuna.distributions import distribution_to_json
from optuna.storages import RDBStorage
from optuna.storages._rdb import models
from optuna.trial import TrialState
from sqlalchemy import Connection, Float, bindparam, cast, func, insert, select, update

from sweepstack.sweep.book import step_budget
from sweepstack.sweep.book.live_trial import LiveTrial
from sweepstack.sweep.book.records import (
    SystemAttributes,
    Trials,
    UserAttributes,
    add_attributes,
    stored,
)

_CONSTRAINT = "constraints"
_ROWS = Trials.__table__.c


def _table(model: str) -> Any:
    """A table, None where this Optuna has none of that name (see `fallback.py`)."""
    return getattr(getattr(models, model, None), "__table__", None)


_PARAMETERS = _table("TrialParamModel")
_REPORTS = _table("TrialIntermediateValueModel")
_VALUES = _table("TrialValueModel")


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

    def write(self, reports: Iterable[Report] = (), endings: Sequence[Ending] = ()) -> list[int]:
        """Write reports and how trials ended, with all their attributes, in one transaction: from
        then on these results are kept. A step that a trial has reported before keeps its value.

        Returns:
            The numbers of the trials that were not running any more: taken for dead, another runs
            in the place of each. Nothing of them is written.
        """
        noted = _noted(reports)
        if not noted and not endings:
            return []
        try:
            with self._engine.begin() as connection:
                lost = _not_running(connection, [ending.trial for ending in endings])
                kept = [ending for ending in endings if ending.trial._trial_id not in lost]
                rows = [_report_row(report) for report in noted]
                rows = [row for row in rows if row["trial_id"] not in lost]
                if rows:
                    connection.execute(insert(_REPORTS), rows)
                if kept:
                    _end(connection, kept)
        except BaseException:
            for trial, step, _ in noted:  # they may be written yet
                del trial._cached_frozen_trial.intermediate_values[step]
            raise
        self.study._thread_local.cached_all_trials = None  # as `tell`: samplers look again
        return [ending.trial.number for ending in endings if ending.trial._trial_id in lost]

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
        with self._engine.begin() as connection:
            return step_budget.taken(connection, self.study._study_id)


def _noted(reports: Iterable[Report]) -> list[Report]:
    """Those of the reports that are new; the trials know them from here on."""
    new = []
    for report in reports:
        known = report.trial._cached_frozen_trial.intermediate_values
        if report.step not in known:
            known[report.step] = report.value
            new.append(report)
    return new


def _not_running(connection: Connection, trials: Sequence[optuna.Trial]) -> set[int]:
    """Row ids of those that are not; the others stay so until the transaction ends."""
    if not trials:
        return set()
    ids = [trial._trial_id for trial in trials]
    mine = select(_ROWS.trial_id).where(_ROWS.trial_id.in_(ids), _ROWS.state == TrialState.RUNNING)
    return set(ids).difference(connection.scalars(mine.with_for_update()))


def _end(connection: Connection, endings: Sequence[Ending]) -> None:
    attributes, system, finished = [], [], []
    values: list[dict[str, Any]] = []
    now = stored(datetime.now())
    for ending in endings:
        trial_id, known = ending.trial._trial_id, ending.trial._cached_frozen_trial.user_attrs
        new = {key: value for key, value in ending.attributes.items() if key not in known}
        attributes.append((trial_id, new))
        violations = {f"{_CONSTRAINT}:{n}": value for n, value in ending.constraints.items()}
        system.append((trial_id, violations))
        values += _value_rows(trial_id, _values(ending))
        finished.append({"_id": trial_id, "state": ending.state, "datetime_complete": now})
    add_attributes(connection, UserAttributes, attributes)
    add_attributes(connection, SystemAttributes, system)
    if values:
        connection.execute(insert(_VALUES), values)
    change = update(Trials.__table__).where(_ROWS.trial_id == bindparam("_id"))
    change = change.values(
        state=bindparam("state"), datetime_complete=bindparam("datetime_complete")
    )
    connection.execute(change, finished)


def _values(ending: Ending) -> Sequence[float]:
    """The objectives; of a pruned trial its last report, as `Study.tell` has it."""
    frozen = ending.trial._cached_frozen_trial
    if ending.state == TrialState.PRUNED and frozen.last_step is not None:
        last = frozen.intermediate_values[frozen.last_step]
        return [] if math.isnan(last) else [last]
    return ending.values or []


def _report_row(report: Report) -> dict[str, Any]:
    stored = models.TrialIntermediateValueModel.intermediate_value_to_stored_repr
    number, kind = stored(report.value)
    return {
        "trial_id": report.trial._trial_id,
        "step": report.step,
        "intermediate_value": number,
        "intermediate_value_type": kind,
    }


def _value_rows(trial_id: int, values: Sequence[float]) -> Iterable[dict[str, Any]]:
    for objective, value in enumerate(values):
        number, kind = models.TrialValueModel.value_to_stored_repr(value)
        yield {
            "trial_id": trial_id,
            "objective": objective,
            "value": number,
            "value_type": kind,
        }
