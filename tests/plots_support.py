"""Made-up studies for the tests of plots."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import numpy as np
import optuna
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState, create_trial

from sweepstack.analysis.plots import Plot, plots
from sweepstack.study.view import StudyView

BEGIN = datetime(2026, 1, 1)
SPACE = {
    "init": CategoricalDistribution(["xavier", "he", "zeros"]),
    "model.activation": CategoricalDistribution(["relu", "tanh"]),
    "optimizer": CategoricalDistribution(["sgd", "adam"]),
    "optimizer.lr": FloatDistribution(1e-4, 1.0, log=True),
    "regularization.dropout": FloatDistribution(0.0, 0.5),
    "training.seed": IntDistribution(0, 9),
}
STATES = {state.name.lower(): state for state in TrialState} | {"failed": TrialState.FAIL}


def new(direction: str = "maximize", objective: str = "val_accuracy") -> optuna.Study:
    study = optuna.create_study(direction=direction, study_name="made-up")
    study.set_user_attr("sweepstack.identity", {"objectives": [objective]})
    return study


def add(
    study: optuna.Study,
    value: float | None = None,
    params: dict[str, Any] | None = None,
    state: str = "complete",
    time: tuple[float, float] | None = None,
    reports: dict[int, float] | None = None,
    **attributes: Any,
) -> None:
    """Add a trial; `time` is its begin and end in seconds."""
    params = params or {}
    trial = create_trial(
        value=value if state == "complete" else None,
        state=STATES[state],
        params=params,
        distributions={name: SPACE[name] for name in params},
        intermediate_values=reports or {},
        user_attrs={
            name.replace("sweepstack_", "sweepstack."): x for name, x in attributes.items()
        },
    )
    if time is not None:
        trial.datetime_start = BEGIN + timedelta(seconds=time[0])
        trial.datetime_complete = BEGIN + timedelta(seconds=time[1])
    study.add_trial(trial)


def drawn(study: optuna.Study) -> dict[str, Plot]:
    """The plots of a study by their keys."""
    return {plot.key: plot for plot in plots(StudyView(study, "sqlite:///outputs/none.db"))}


def trace(plot: Plot, name: str, index: int = 0) -> Any:
    """A trace of a figure by its name."""
    return [found for found in plot.figure.data if found.name == name][index]


def numbers(values: Any, digits: int = 4) -> list[float]:
    """Numbers of a trace, rounded from its 32 bits."""
    return [round(float(value), digits) for value in np.asarray(values)]


def spent(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Parameters of trials drawn from the whole space."""
    random = np.random.default_rng(seed)
    return [
        {
            "init": str(random.choice(SPACE["init"].choices)),
            "model.activation": str(random.choice(SPACE["model.activation"].choices)),
            "optimizer": str(random.choice(SPACE["optimizer"].choices)),
            "optimizer.lr": float(10 ** random.uniform(-4, 0)),
            "regularization.dropout": float(random.uniform(0, 0.5)),
        }
        for _ in range(count)
    ]
