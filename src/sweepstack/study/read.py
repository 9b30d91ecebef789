"""All trials of a study, read from its database in a handful of queries.

Optuna's `get_trials` builds an object for every row: 10,000 trials take several seconds and half a
gigabyte. This reads the same (a test compares) in a fraction of both; of a storage that is no
database, or whose tables are of another schema than `SCHEMA`, Optuna is asked.
"""

from __future__ import annotations

import copy
import json
import math
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import optuna
from optuna.distributions import BaseDistribution, json_to_distribution
from optuna.storages import BaseStorage, RDBStorage
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import ColumnClause, Connection, DateTime, Select, column, func, select, table
from sqlalchemy.exc import SQLAlchemyError

from sweepstack.config.commands import without_collecting
from sweepstack.study.attributes import CONTINUES, RETRIED

Rows = dict[int, list[Any]]

SCHEMA = "v3.2.0.a"
"""The version of Optuna's tables that is read here, as they name it themselves."""
TRIALS = table(
    "trials",
    *(column("trial_id"), column("study_id"), column("number"), column("state")),
    *(column("datetime_start", DateTime), column("datetime_complete", DateTime)),
)
NOT_FINITE = {"INF_POS": math.inf, "INF_NEG": -math.inf, "NAN": math.nan}


def trials_of(study: optuna.Study, storage: BaseStorage | None = None) -> list[FrozenTrial]:
    """The trials in the order of their numbers; not to be changed.

    Args:
        study: to be read.
        storage: the one that it was loaded from, where it is known; a database is then read here.
    """
    if isinstance(storage, RDBStorage):
        study_id = storage.get_study_id_from_name(study.study_name)
        version: Select[Any] = select(column("version_num")).select_from(table("alembic_version"))
        try:
            with storage.engine.connect() as connection:
                if connection.scalar(version) == SCHEMA:
                    return _marked(_read(connection, study_id))
        except SQLAlchemyError:  # another Optuna's tables
            pass
    return _marked(study.get_trials(deepcopy=False))


def states_of(study: optuna.Study, storage: BaseStorage | None) -> Counter[TrialState] | None:
    """How many trials are in each state; None of a storage that is no database."""
    if not isinstance(storage, RDBStorage):
        return None
    query = select(TRIALS.c.state, func.count()).group_by(TRIALS.c.state)
    query = query.where(TRIALS.c.study_id == storage.get_study_id_from_name(study.study_name))
    with storage.engine.connect() as connection:
        return Counter({TrialState[state]: n for state, n in connection.execute(query)})


def _marked(trials: list[FrozenTrial]) -> list[FrozenTrial]:
    """The trials; those that another continues say so, though Optuna's public API cannot write it
    to one that has ended."""
    numbers = (trial.user_attrs.get(CONTINUES) for trial in trials)
    continued = {number for number in numbers if isinstance(number, int)}
    trials = list(trials)
    for place, trial in enumerate(trials):
        if (
            trial.number in continued
            and trial.state == TrialState.FAIL
            and RETRIED not in trial.user_attrs
        ):
            trials[place] = copy.copy(trial)
            trials[place].user_attrs = {**trial.user_attrs, RETRIED: True}
    return trials


@without_collecting()
def _read(connection: Connection, study_id: int) -> list[FrozenTrial]:
    def rows_of(name: str, key: str, *names: str) -> Rows:
        """For each trial the rows of a table, its id first, in the order of their writing."""
        columns: list[ColumnClause[Any]] = [column(each) for each in (key, "trial_id", *names)]
        rows = table(name, *columns)
        query = select(*(rows.c[each] for each in ("trial_id", *names)))
        query = query.join(TRIALS, rows.c.trial_id == TRIALS.c.trial_id)
        query = query.where(TRIALS.c.study_id == study_id).order_by(rows.c[key])
        found: Rows = defaultdict(list)
        for row in connection.execute(query).all():
            found[row[0]].append(row)
        return found

    query = select(TRIALS).where(TRIALS.c.study_id == study_id).order_by(TRIALS.c.number)
    # First, so that a trial which ends meanwhile is still running and not complete without values.
    every = connection.execute(query).all()
    values = rows_of("trial_values", "trial_value_id", "objective", "value", "value_type")
    params = rows_of("trial_params", "param_id", "param_name", "param_value", "distribution_json")
    users = rows_of("trial_user_attributes", "trial_user_attribute_id", "key", "value_json")
    systems = rows_of("trial_system_attributes", "trial_system_attribute_id", "key", "value_json")
    kinds = ("step", "intermediate_value", "intermediate_value_type")
    reports = rows_of("trial_intermediate_values", "trial_intermediate_value_id", *kinds)
    found = []
    for trial_id, _, number, state, start, end in every:
        distributions = {sys.intern(n): _distribution(text) for _, n, _, text in params[trial_id]}
        by_objective = sorted(map(tuple, values.pop(trial_id, [])))
        found.append(
            FrozenTrial(
                number=number,
                state=TrialState[state],
                value=None,
                values=[_value(value, kind) for *_, value, kind in by_objective] or None,
                datetime_start=start,
                datetime_complete=end,
                params={
                    name: distributions[name].to_external_repr(value)
                    for _, name, value, _ in params.pop(trial_id)
                },
                distributions=distributions,
                user_attrs=_attributes(users.pop(trial_id, [])),
                system_attrs=_attributes(systems.pop(trial_id, [])),
                intermediate_values={
                    step: _value(value, kind) for _, step, value, kind in reports.pop(trial_id, [])
                },
                trial_id=trial_id,
            )
        )
    return found


def _value(value: float, kind: str) -> float:
    return NOT_FINITE.get(kind, value)


def _attributes(rows: list[Any]) -> dict[str, Any]:
    """Attributes of a trial; read at once, as a sweep's 10,000 trials have 200,000 of them."""
    keys = [sys.intern(key) for _, key, _ in rows]
    found = json.loads(f"[{','.join([text for *_, text in rows])}]")
    return dict(zip(keys, found, strict=True))


@lru_cache(maxsize=4096)
def _distribution(text: str) -> BaseDistribution:
    return json_to_distribution(text)


# --- which trials are the best ----------------------------------------------------------------

if TYPE_CHECKING:  # slow to import, and a sweep needs none to begin
    import pandas as pd

Floats = npt.NDArray[np.float64]
Places = npt.NDArray[np.int64]


def order(values: npt.ArrayLike, numbers: npt.ArrayLike, directions: Iterable[str]) -> Places:
    """Places of trials (N,), the best first; NaN last.

    Args:
        values: objectives (N, objectives), or (N,) of one.
        numbers: of the trials (N,), or of the first trial of each configuration.
        directions: "maximize" or "minimize", one per objective.
    """
    losses = _losses(values, directions)
    return np.lexsort((np.asarray(numbers), *losses.T[::-1]))


def best(values: npt.ArrayLike, numbers: npt.ArrayLike, directions: Sequence[str]) -> Places:
    """As `order`, of several objectives the Pareto front alone."""
    places = order(values, numbers, directions)
    if len(directions) > 1:
        on_front = front(_losses(values, directions))
        places = places[on_front[places]]
    return places


def front(losses: Floats) -> npt.NDArray[np.bool_]:
    """Which rows no other row beats: losses (N, objectives), less is better.

    Rows are compared in lexicographic order: what beats a row comes before it.
    """
    kept = losses[:0]
    result = np.zeros(len(losses), dtype=bool)
    for row in np.lexsort(losses.T[::-1]):
        point = losses[row]
        beaten = ((kept <= point).all(axis=1) & (kept < point).any(axis=1)).any()
        if not beaten:
            result[row] = True
            kept = np.vstack([kept, point])
    return result


def best_rows(df: pd.DataFrame) -> pd.DataFrame:
    """The complete trials of a frame that keep their constraints, the best first; of several
    objectives the Pareto front."""
    goals: dict[str, str] = df.attrs["objectives"]
    kept = df[(df["state"] == "complete") & df[list(goals)].notna().all(axis=1)]
    if "feasible" in kept:
        kept = kept[kept["feasible"]]
    return kept.iloc[best(kept[list(goals)], kept["number"], list(goals.values()))]


def best_trials(
    study: optuna.Study, trials: Sequence[FrozenTrial] | None = None
) -> list[FrozenTrial]:
    """As `best_rows`, of a study; `trials` are all of its trials where they have been read."""
    kept = [
        trial
        for trial in (trials_of(study) if trials is None else trials)
        if trial.state == TrialState.COMPLETE
        and trial.values
        and all(violation <= 0 for violation in trial.constraints.values())
    ]
    directions = [direction.name.lower() for direction in study.directions]
    values = np.array([trial.values for trial in kept]).reshape(-1, len(directions))
    return [kept[place] for place in best(values, [t.number for t in kept], directions)]


def _losses(values: npt.ArrayLike, directions: Iterable[str]) -> Floats:
    """(N, objectives), less is better."""
    signs = [1.0 if direction == "minimize" else -1.0 for direction in directions]
    losses: Floats = np.asarray(values, dtype=np.float64).reshape(-1, len(signs)) * np.array(signs)
    return losses
