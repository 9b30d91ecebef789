"""What the trials of a study have reached at a rung: the numbers that our pruners compare.

Trials that run side by side must be compared with each other, in one stack as in several
processes. So a verdict is a function of the reports alone: of every trial that has reported at the
rung, RUNNING, COMPLETE and PRUNED alike, FAIL excluded. When all reports of an evaluation are in
before the first question, the order of the questions changes nothing.

Notation: a *rung* is a step (the number that `report` is given); a trial *has reported at* a rung
when it has a report at it or after it, so that evaluations need not hit the rung. Its *loss* there
is its best value up to its first report at or after the rung, with the sign turned if the study
maximizes, so that a smaller loss is better. Best so far and not the newest value, because a trial
keeps its best state: what it would be worth if it stopped there. NaN and ±inf reports hold no
value; a trial that has nothing else up to there has the loss +inf, the worst.

The base of `percentile.py` and `asha.py`.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from bisect import bisect_left
from collections.abc import Callable, Sequence
from datetime import datetime
from functools import cache, partial
from itertools import accumulate
from typing import NamedTuple

from optuna import Study
from optuna.pruners import BasePruner
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

_COMPARED = (TrialState.RUNNING, TrialState.COMPLETE, TrialState.PRUNED)


class Curve(NamedTuple):
    """A trial's reports: `steps` ascending, and at each the best loss so far."""

    steps: list[int]
    losses: list[float]

    def at(self, rung: int) -> float | None:
        """The loss at `rung`; None when the trial has not reported at it."""
        index = bisect_left(self.steps, rung)
        return self.losses[index] if index < len(self.steps) else None

    @property
    def previous_step(self) -> int:
        """The last step but one; -1 when there is only one."""
        return self.steps[-2] if len(self.steps) > 1 else -1


def curve(trial: FrozenTrial, direction: StudyDirection) -> Curve:
    """The reports of `trial`, in whatever order they came."""
    sign = -1.0 if direction == StudyDirection.MAXIMIZE else 1.0
    steps = sorted(trial.intermediate_values)
    values = (trial.intermediate_values[step] for step in steps)
    losses = (sign * value if math.isfinite(value) else math.inf for value in values)
    return Curve(steps, list(accumulate(losses, min)))


class RungPruner(BasePruner):
    """What our pruners share: reading the study. A pruner says in `ends` who is pruned.

    The curves of finished trials change no more and are kept. A kept curve counts only for a trial
    of the same number that finished at the same moment, so a pruner may serve several studies.
    """

    def __init__(self) -> None:
        self._finished: dict[int, tuple[datetime, Curve]] = {}

    @abstractmethod
    def ends(self, mine: Curve, others: Callable[[], list[Curve]]) -> bool:
        """Whether the trial with the curve `mine`, which is not empty, is pruned.

        `others` gives the curves of all other trials that have reported and did not fail. It reads
        the study: not to be called where no verdict depends on it.
        """

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        """Whether `trial` is pruned at its newest report; see the class.

        Raises:
            RuntimeError: the study has several objectives.
        """
        return self.verdicts(study, [trial])[0]

    def verdicts(self, study: Study, trials: Sequence[FrozenTrial]) -> list[bool]:
        """`prune` for each of `trials`, for a stack: the study is read once at most, not S times.

        Raises:
            RuntimeError: the study has several objectives.
        """
        direction = study.direction
        curves = cache(partial(self._read, study))

        def verdict(trial: FrozenTrial) -> bool:
            mine = curve(trial, direction)
            return bool(mine.steps) and self.ends(
                mine, lambda: [each for number, each in curves().items() if number != trial.number]
            )

        return [verdict(trial) for trial in trials]

    def _read(self, study: Study) -> dict[int, Curve]:
        direction = study.direction
        trials = study.get_trials(deepcopy=False, states=_COMPARED)
        curves = {trial.number: self._curve(trial, direction) for trial in trials}
        return {number: each for number, each in curves.items() if each.steps}

    def _curve(self, trial: FrozenTrial, direction: StudyDirection) -> Curve:
        finished = trial.datetime_complete
        if finished is None:
            return curve(trial, direction)
        kept = self._finished.get(trial.number)
        if kept is None or kept[0] != finished:
            kept = self._finished[trial.number] = (finished, curve(trial, direction))
        return kept[1]


def losses_at(rung: int, curves: list[Curve]) -> list[float]:
    """The losses of those that have reported at `rung`."""
    return [loss for each in curves if (loss := each.at(rung)) is not None]
