"""Learning-rate schedules: a factor on `optimizer.lr` for every step of a trial; conf/schedule.

The factors are those of torch.optim.lr_scheduler stepped once a training step, in Python floats on
the host.

Notation: t the step after the warmup, counted from 0; T the number of such steps.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache, lru_cache
from typing import Any, ClassVar

from sweepstack.config import schema
from sweepstack.config.errors import InputError

log = logging.getLogger(__name__)

FAST, MANY_STEPS = 0.97, 100
"""schedule=exponential below this factor per step, for so many steps, is probably a mistake."""


def _step_decay(config: schema.StepDecay, t: int, _steps: int) -> float:
    """γ^⌊t / step_size⌋; t counts epochs with unit=epoch."""
    return config.gamma ** (t // config.step_size)


def _exponential(config: schema.Exponential, t: int, _steps: int) -> float:
    """γ^t; t counts epochs with unit=epoch."""
    return config.gamma**t


def _cosine(config: schema.Cosine, t: int, steps: int) -> float:
    """m + (1 - m)·(1 + cos(πt / T)) / 2 with m = min_factor. Loshchilov & Hutter 2017, without
    restarts."""
    return _anneal(1.0, config.min_factor, t / steps)


def _one_cycle(config: schema.OneCycle, t: int, steps: int) -> float:
    """From 1 / div_factor along a cosine to 1 at t = pct_start·T - 1, then along another to
    1 / div_factor / final_div_factor at t = T - 1. Smith & Topin 2018. A peak before step 0 is
    skipped, one at step 0 is the start."""
    start = 1 / config.div_factor
    peak, last = config.pct_start * steps - 1, steps - 1
    if t <= peak:
        return _anneal(start, 1.0, t / peak if peak else 1.0)
    return _anneal(1.0, start / config.final_div_factor, (t - peak) / (last - peak))


def _anneal(start: float, end: float, share: float) -> float:
    """Half a cosine from `start` at share 0 to `end` at share 1."""
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2


_SHAPES: dict[type[schema.Schedule], Callable[[Any, int, int], float]] = {
    schema.Constant: lambda config, t, steps: 1.0,
    schema.StepDecay: _step_decay,
    schema.Exponential: _exponential,
    schema.Cosine: _cosine,
    schema.OneCycle: _one_cycle,
}


@dataclass
class LrSchedule:
    """One trial's schedule; `steps` is T, the steps that remain after the warmup (>= 1), `every`
    the steps of its unit: with schedule.unit=epoch the factor changes after each epoch only."""

    config: schema.Schedule
    steps: int
    every: int = field(default=1, kw_only=True)

    def __post_init__(self) -> None:
        self._formula = _SHAPES[type(self.config)]

    def shape(self, t: int) -> float:
        """The factor at step `t` after the warmup, 0 <= t < T."""
        return self._formula(self.config, t // self.every, self.steps)

    def factor(self, step: int) -> float:
        """The factor on lr for the step with 0-based index `step`.

        The W = `warmup_steps` first steps ramp up linearly to the schedule's start:
        (step + 1) / W · shape(0), as in Goyal et al. 2017.
        """
        warmup = self.config.warmup_steps
        if step < warmup:
            return (step + 1) / warmup * self.shape(0)
        return self.shape(step - warmup)

    def factors(self, start: int, n: int) -> list[float]:
        """The factors of the `n` steps from `start` on, with no evaluation between them."""
        return list(_factors(self.config, self.steps, self.every, start, n))

    def observe(self, metrics: Mapping[str, float]) -> None:
        """Take note of an evaluation's metrics."""

    def state(self) -> dict[str, float]:
        """What a checkpoint must keep besides the step."""
        return {}

    def restore(self, state: Mapping[str, float]) -> None:
        """Continue from what `state` returned."""


@lru_cache(maxsize=64)
def _factors(
    config: schema.Schedule, steps: int, every: int, start: int, n: int
) -> tuple[float, ...]:
    """`LrSchedule.factors`, of all trials of a stack that have the same."""
    schedule = LrSchedule(config, steps, every=every)
    return tuple(schedule.factor(step) for step in range(start, start + n))


@dataclass
class Plateau(LrSchedule):
    """Times `factor` when `metric` has been worse than its best for more than `patience`
    evaluations in a row; the count then starts again.

    Better is < best·(1 - min_delta), or > best·(1 + min_delta) for a metric that is maximized; NaN
    is never better. Evaluations during the warmup count. As torch's ReduceLROnPlateau with
    threshold_mode "rel", but without its `eps`, which ends the reductions below 1e-8.
    """

    _saved: ClassVar[tuple[str, ...]] = ("current", "best", "bad_evaluations")
    config: schema.Plateau
    maximize: bool
    current: float = field(default=1.0, init=False)
    best: float = field(init=False)
    bad_evaluations: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self.best = -math.inf if self.maximize else math.inf

    def shape(self, t: int) -> float:
        """The product of the reductions so far."""
        return self.current

    def observe(self, metrics: Mapping[str, float]) -> None:
        """Compare the metric with its best; KeyError when it is not among `metrics`."""
        value = metrics[self.config.metric]
        if self._is_better(value):
            self.best, self.bad_evaluations = value, 0
            return
        self.bad_evaluations += 1
        if self.bad_evaluations > self.config.patience:
            self.current *= self.config.factor
            self.bad_evaluations = 0

    def factors(self, start: int, n: int) -> list[float]:
        """See `LrSchedule`."""
        return [self.factor(step) for step in range(start, start + n)]

    def _is_better(self, value: float) -> bool:
        if self.maximize:
            return value > self.best * (1 + self.config.min_delta)
        return value < self.best * (1 - self.config.min_delta)

    def state(self) -> dict[str, float]:
        """The factor, the best value and the evaluations since."""
        return {name: getattr(self, name) for name in self._saved}

    def restore(self, state: Mapping[str, float]) -> None:
        """Continue from what `state` returned."""
        for name in self._saved:
            setattr(self, name, state[name])


@cache
def warn_of_fast_decay(gamma: float) -> None:
    """Log once that a factor is one of an epoch in most torch code."""
    log.warning(
        "schedule.gamma=%g per step leaves %.1g of the learning rate after %d steps; torch code "
        "mostly decays once per epoch: schedule.unit=epoch",
        *(gamma, gamma**MANY_STEPS, MANY_STEPS),
    )


def build(
    config: schema.Schedule,
    total_steps: int,
    direction_of: Callable[[str], str],
    steps_per_epoch: int = 1,
) -> LrSchedule:
    """The schedule of a trial of `total_steps` steps.

    `direction_of` says of a metric whether to "maximize" or "minimize" it. Raises InputError when
    the warmup leaves no step to the schedule.
    """
    steps = total_steps - config.warmup_steps
    if steps < 1:
        raise InputError(
            f"schedule.warmup_steps must be < the run's steps ({total_steps}), "
            f"got {config.warmup_steps}"
        )
    if isinstance(config, schema.Plateau):
        return Plateau(config, steps, maximize=direction_of(config.metric) == "maximize")
    by_epoch = getattr(config, "unit", "step") == "epoch"
    gamma = config.gamma if isinstance(config, schema.Exponential) and not by_epoch else 1.0
    if gamma < FAST and steps >= MANY_STEPS:
        warn_of_fast_decay(gamma)
    return LrSchedule(config, steps, every=max(1, steps_per_epoch) if by_epoch else 1)
