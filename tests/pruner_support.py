"""Hand-made studies, and who is pruned in them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import optuna
from optuna import Study
from optuna.pruners import BasePruner
from optuna.trial import TrialState, create_trial

optuna.logging.set_verbosity(optuna.logging.WARNING)

RUNNING, COMPLETE, PRUNED = TrialState.RUNNING, TrialState.COMPLETE, TrialState.PRUNED
EAGER = {"n_startup_trials": 0, "n_min_trials": 1}
Reports = Mapping[int, float]


def study_of(
    curves: Iterable[Reports],
    direction: str = "minimize",
    states: Sequence[TrialState] | None = None,
) -> Study:
    """A study with one trial per curve, RUNNING unless `states` says otherwise."""
    study = optuna.create_study(direction=direction)
    for number, reports in enumerate(curves):
        state = states[number] if states else RUNNING
        value = 0.0 if state == COMPLETE else None
        study.add_trial(create_trial(state=state, value=value, intermediate_values=dict(reports)))
    return study


def at_step(values: Iterable[float], step: int = 1) -> list[Reports]:
    return [{step: value} for value in values]


def pruned(pruner: BasePruner, study: Study, order: Iterable[int] | None = None) -> set[int]:
    """Ask about every running trial, telling the study of each verdict before the next question."""
    running = [trial.number for trial in study.trials if trial.state == RUNNING]
    gone = set()
    for number in running if order is None else order:
        if pruner.prune(study, study.trials[number]):
            gone.add(number)
            study.tell(number, state=PRUNED)
    return gone
