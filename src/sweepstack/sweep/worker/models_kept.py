"""Which trained models a study keeps: `hydra.sweeper.keep_models`.

A worker writes best.pt of a trial that is among the best by all that it knows; when a sweep ends it
removes those that are not. A command that asks for fewer models removes none that an earlier
command of the study asked for.
"""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Literal

import numpy as np
import optuna
from optuna.trial import TrialState

from sweepstack.study import ranking
from sweepstack.study.attributes import EQUALS, KEEP_MODELS
from sweepstack.study.read import trials_of
from sweepstack.sweep.worker.trial import Outcome

Keep = Literal["best", "all", "none"] | int
_FRONT = 2**31
"""The limit of "best" in a study of several objectives: the whole Pareto front."""


class Kept:
    """What one worker knows of the best trials; `keep` is the sweep's `keep_models`."""

    def __init__(self, study: optuna.Study, keep: Keep):
        self._study, self._limit = study, _limit(study, keep)
        self._best: list[tuple[int, tuple[float, ...]]] | None = None

    def wants(self, outcome: Outcome, *, feasible: bool) -> bool:
        """Whether the model of a trial that has ended is worth a file."""
        if outcome.state != "complete" or not self._limit or math.isinf(self._limit):
            return outcome.state == "complete" and self._limit > 0
        if not feasible or any(map(math.isnan, outcome.values)):
            return False
        if self._best is None:
            trials = ranking.best_trials(self._study)
            self._best = [(trial.number, tuple(trial.values)) for trial in trials]
        known = [*self._best, (outcome.asked.number, outcome.values)]
        directions = [direction.name.lower() for direction in self._study.directions]
        values = np.array([values for _, values in known])
        places = ranking.best(values, [number for number, _ in known], directions)
        self._best = [known[place] for place in places[: int(self._limit)]]
        return outcome.asked.number in dict(self._best)


def ask(study: optuna.Study, keep: Keep) -> None:
    """Note in the study what a command asks to keep, where none asked for more before."""
    before = study.user_attrs.get(KEEP_MODELS)
    if before is None or _limit(study, keep) > _limit(study, before):
        study.set_user_attr(KEEP_MODELS, keep)


def remove_others(study: optuna.Study, folder: Path) -> None:
    """Remove the models, and the logs for TensorBoard, that the study is not to keep; trials that
    run are left alone. Of a trial that was not trained, the one whose numbers it has counts."""
    limit = _limit(study, study.user_attrs.get(KEEP_MODELS, "best"))
    trials = trials_of(study)
    wanted = {trial.number for trial in trials if not trial.state.is_finished()}
    if math.isinf(limit):
        best = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    else:
        best = ranking.best_trials(study, trials)[: int(limit)]
    wanted |= {trial.user_attrs.get(EQUALS, trial.number) for trial in best}
    for trial in trials:
        place = folder / str(trial.number)
        if trial.number not in wanted and (place / "best.pt").exists():
            for name in ("best.pt", "best.pt.sha256"):
                (place / name).unlink(missing_ok=True)
            shutil.rmtree(place / "tensorboard", ignore_errors=True)


def _limit(study: optuna.Study, keep: Keep) -> float:
    several = len(study.directions) > 1
    named = {"none": 0, "best": _FRONT if several else 1, "all": math.inf}
    return named[keep] if isinstance(keep, str) else keep
