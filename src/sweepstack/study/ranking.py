"""Which trials are the best: the one order of tables, lists, reports, notes and kept models.

By the objective, then the earlier trial. Of several objectives the best are the Pareto front, by
the first objective, then the next ones, then the earlier trial. A trial that breaks a constraint is
never among them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import optuna
from optuna.trial import FrozenTrial, TrialState

from sweepstack.study.read import trials_of

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
