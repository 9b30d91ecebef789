"""All trials of a study, read from its database in a handful of queries.

Optuna's `get_trials` builds an object for every row: 10,000 trials take several seconds and half a
gigabyte. This reads the same (a test compares) in a fraction of both; of a storage that is no
database, or whose tables are not as here, Optuna is asked.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, json_to_distribution
from optuna.storages import BaseStorage, RDBStorage
from optuna.trial import FrozenTrial
from sqlalchemy import Connection, select
from sqlalchemy.exc import SQLAlchemyError

Rows = dict[int, list[Any]]


def trials_of(study: optuna.Study, storage: BaseStorage | None = None) -> list[FrozenTrial]:
    """The trials in the order of their numbers; not to be changed.

    Args:
        study: to be read.
        storage: the one that it was loaded from, where it is known; a database is then read here.
    """
    if isinstance(storage, RDBStorage):
        study_id = storage.get_study_id_from_name(study.study_name)
        try:
            with storage.engine.connect() as connection:
                return _read(connection, study_id)
        except (SQLAlchemyError, AttributeError, ImportError):  # another Optuna's tables
            pass
    return study.get_trials(deepcopy=False)


def _read(connection: Connection, study_id: int) -> list[FrozenTrial]:
    from optuna.storages._rdb import models

    trials = models.TrialModel.__table__.c

    def rows_of(model: Any, *names: str) -> Rows:
        """For each trial the rows of a table, in the order in which they were written."""
        table = model.__table__
        key = next(iter(table.primary_key.columns))
        columns = [table.c.trial_id, *(table.c[name] for name in names)]
        query = select(*columns).join(models.TrialModel, table.c.trial_id == trials.trial_id)
        found: Rows = defaultdict(list)
        for trial_id, *row in connection.execute(
            query.where(trials.study_id == study_id).order_by(key)
        ):
            found[trial_id].append(row)
        return found

    query = select(
        *(trials.trial_id, trials.number, trials.state),
        *(trials.datetime_start, trials.datetime_complete),
    )
    # First, so that a trial which ends meanwhile is still running and not complete without values.
    every = connection.execute(
        query.where(trials.study_id == study_id).order_by(trials.number)
    ).all()
    values = rows_of(models.TrialValueModel, "objective", "value", "value_type")
    params = rows_of(models.TrialParamModel, "param_name", "param_value", "distribution_json")
    users = rows_of(models.TrialUserAttributeModel, "key", "value_json")
    systems = rows_of(models.TrialSystemAttributeModel, "key", "value_json")
    kinds = ("step", "intermediate_value", "intermediate_value_type")
    reports = rows_of(models.TrialIntermediateValueModel, *kinds)
    value_of = models.TrialValueModel.stored_repr_to_value
    report_of = models.TrialIntermediateValueModel.stored_repr_to_intermediate_value
    found = []
    for trial_id, number, state, start, end in every:
        distributions = {sys.intern(n): _distribution(text) for n, _, text in params[trial_id]}
        found.append(
            FrozenTrial(
                number=number,
                state=state,
                value=None,
                values=_values(values.pop(trial_id, []), value_of),
                datetime_start=start,
                datetime_complete=end,
                params={
                    name: distributions[name].to_external_repr(value)
                    for name, value, _ in params.pop(trial_id)
                },
                distributions=distributions,
                user_attrs=_attributes(users.pop(trial_id, [])),
                system_attrs=_attributes(systems.pop(trial_id, [])),
                intermediate_values={
                    step: report_of(value, kind) for step, value, kind in reports.pop(trial_id, [])
                },
                trial_id=trial_id,
            )
        )
    return found


def _values(rows: list[Any], value_of: Callable[..., float]) -> list[float] | None:
    return [value_of(value, kind) for _, value, kind in sorted(rows)] or None


def _attributes(rows: list[Any]) -> dict[str, Any]:
    return {sys.intern(key): json.loads(text) for key, text in rows}


@lru_cache(maxsize=4096)
def _distribution(text: str) -> BaseDistribution:
    return json_to_distribution(text)
