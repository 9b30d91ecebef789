"""Pruning by percentile: a trial goes on while few of the others are better.

After the median stopping rule of Golovin et al. 2017 (Google Vizier), which takes the running
averages of completed trials where this takes the best so far of all trials, as it does for the
trial itself. What "reported at a rung" and "loss" mean stands in `rungs.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from sweepstack.sweep import settings
from sweepstack.sweep.pruners.rungs import Curve, RungPruner, losses_at

MEDIAN_RULES: settings.Rules = {
    "n_startup_trials": (int, {"ge": 0}),
    "n_warmup_steps": (int, {"ge": 0}),
    "interval_steps": (int, {"ge": 1}),
    "n_min_trials": (int, {"ge": 1}),
}
PERCENTILE_RULES: settings.Rules = {"percentile": (float, {"ge": 0, "le": 100}), **MEDIAN_RULES}


class PercentilePruner(RungPruner):
    """Prunes a trial when more than `percentile` % of the others are strictly better at the rung.

    With m other trials at the rung, b of them with a smaller loss, the trial goes on iff
    100·b ≤ percentile·m. That is: its loss is at most the linearly interpolated percentile of all
    m + 1 losses, its own among them, so one cut serves all. Equal losses are not better: ties go
    on. A trial that has reported no finite value is pruned, and is worse than every other.

    Every interval is judged once, at the first report in it, and only those who went on report at
    the next one: a stack of trials that run in step shrinks to `percentile` % at each rung until
    no more than `n_min_trials` are left. A longer `interval_steps` gives them more time.

    Args:
        percentile: the share in % that goes on, 0 (the best and its equals) to 100 (all).
        n_startup_trials: nothing is pruned before this many other trials have reported at all.
        n_warmup_steps: the first rung; nothing is pruned before this step.
        interval_steps: steps from rung to rung.
        n_min_trials: nothing is pruned at a rung where fewer other trials have reported.

    Raises:
        InputError: a setting is out of its range.
    """

    def __init__(
        self,
        percentile: float,
        n_startup_trials: int = 5,
        n_warmup_steps: int = 0,
        interval_steps: int = 1,
        n_min_trials: int = 1,
    ) -> None:
        super().__init__()
        given = {
            "percentile": percentile,
            "n_startup_trials": n_startup_trials,
            "n_warmup_steps": n_warmup_steps,
            "interval_steps": interval_steps,
            "n_min_trials": n_min_trials,
        }
        settings.read(type(self).__name__, PERCENTILE_RULES, given)
        self._percentile = percentile
        self._n_startup_trials = n_startup_trials
        self._n_warmup_steps = n_warmup_steps
        self._interval_steps = interval_steps
        self._n_min_trials = n_min_trials

    def ends(self, mine: Curve, others: Callable[[], list[Curve]]) -> bool:
        """See the class."""
        rung = self._rung(mine.steps[-1])
        if rung is None or rung <= mine.previous_step:
            return False
        curves = others()
        if len(curves) < self._n_startup_trials:
            return False
        loss = mine.losses[-1]
        if math.isinf(loss):
            return True
        losses = losses_at(rung, curves)
        if len(losses) < self._n_min_trials:
            return False
        better = sum(other < loss for other in losses)
        return 100 * better > self._percentile * len(losses)

    def _rung(self, step: int) -> int | None:
        """The last rung at or before `step`; None during the warmup."""
        past = step - self._n_warmup_steps
        return step - past % self._interval_steps if past >= 0 else None


class MedianPruner(PercentilePruner):
    """Prunes a trial whose loss is above the median: `PercentilePruner` with percentile 50."""

    def __init__(
        self,
        n_startup_trials: int = 5,
        n_warmup_steps: int = 0,
        interval_steps: int = 1,
        n_min_trials: int = 1,
    ) -> None:
        super().__init__(50.0, n_startup_trials, n_warmup_steps, interval_steps, n_min_trials)
