"""Asynchronous successive halving: at each rung the top 1/η goes on, nobody waits.

Li et al. 2020, "A System for Massively Parallel Hyperparameter Tuning" (MLSys), algorithm 2, with
trials that stop where the paper's pause: nothing is promoted later. Notation of the paper: r the
minimum resource, η the reduction factor, s the minimum early-stopping rate, R the maximum
resource; a resource is a step. What "reported at a rung" and "loss" mean stands in `rungs.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

from sweepstack.sweep import settings
from sweepstack.sweep.pruners.rungs import Curve, RungPruner, losses_at

RULES: settings.Rules = {
    "min_resource": (int | Literal["auto"], {"ge": 1}),
    "reduction_factor": (int, {"ge": 2}),
    "min_early_stopping_rate": (int, {"ge": 0}),
    "max_resource": (int | None, {"ge": 1}),
}


class AshaPruner(RungPruner):
    """Prunes a trial that is not in the top 1/η of those that have reported at its rung so far.

    The rungs are r·η^(s+k), k = 0, 1, ..., below R. With n trials at the rung, itself included, b
    of them with a smaller loss, a trial goes on iff n < η or b < ⌊n/η⌋. Equal losses are not
    better: ties go on, and may be more than ⌊n/η⌋. A trial that has reported no finite value is
    pruned at its first rung, and is worse than every other.

    A trial is judged at a rung once, at its first report at or after it; if that report jumps over
    several rungs, it must hold its own at each of them.

    Args:
        min_resource: r, in steps; "auto" is the smallest step >= 1 that any trial has reported.
        reduction_factor: η.
        min_early_stopping_rate: s; leaves out the first s rungs.
        max_resource: R, in steps, the budget of a trial that is never pruned: there it is finished
            and not judged. None judges at every rung.

    Raises:
        InputError: a setting is out of its range.
        ValueError: no rung lies below `max_resource`.
    """

    def __init__(
        self,
        min_resource: int | Literal["auto"] = "auto",
        reduction_factor: int = 3,
        min_early_stopping_rate: int = 0,
        max_resource: int | None = None,
    ) -> None:
        super().__init__()
        given = {
            "min_resource": min_resource,
            "reduction_factor": reduction_factor,
            "min_early_stopping_rate": min_early_stopping_rate,
            "max_resource": max_resource,
        }
        settings.read(type(self).__name__, RULES, given)
        self._min_resource = min_resource
        self._factor = reduction_factor
        self._skipped = reduction_factor**min_early_stopping_rate
        self._max_resource = math.inf if max_resource is None else max_resource
        first = (1 if min_resource == "auto" else min_resource) * self._skipped
        if first >= self._max_resource:
            raise ValueError(f"max_resource must be > {first}, the first rung, got {max_resource}")

    def ends(self, mine: Curve, others: Callable[[], list[Curve]]) -> bool:
        """See the class."""
        min_resource = self._min_resource
        if min_resource == "auto":
            started = (_first_step(each) for each in [mine, *others()])
            first = min((step for step in started if step is not None), default=None)
        else:
            first = min_resource
        rungs = self._rungs(mine, first) if first is not None else []
        if not rungs:
            return False
        curves = others()
        return not all(self._goes_on(mine.losses[-1], losses_at(rung, curves)) for rung in rungs)

    def _rungs(self, mine: Curve, min_resource: int) -> list[int]:
        """The rungs that the newest report is the first to reach."""
        rungs: list[int] = []
        rung = min_resource * self._skipped
        while rung <= mine.steps[-1] and rung < self._max_resource:
            if rung > mine.previous_step:
                rungs.append(rung)
            rung *= self._factor
        return rungs

    def _goes_on(self, loss: float, others: list[float]) -> bool:
        if math.isinf(loss):
            return False
        n = len(others) + 1
        return n < self._factor or sum(other < loss for other in others) < n // self._factor


def _first_step(curve: Curve) -> int | None:
    """The first step >= 1 with a report; a report at step 0 tells of an untrained model."""
    return next((step for step in curve.steps[:2] if step >= 1), None)
