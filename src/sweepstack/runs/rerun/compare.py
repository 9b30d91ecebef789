"""Whether a trial that was trained again gave what is recorded: tolerances, and what exceeds them.

A trial is itself (contract 2), but for rounding: a stack adds in another order than a single
trial, another processor or version in yet another. Measured on trials trained in stacks and again
alone, most losses agree to 1e-8, relative; the learning rate raised by 1% moves them by 1e-3 to
1e-2, another seed by more. But some trials amplify rounding: where the learning rate is so high
that training hardly holds, or units that began equal are told apart by rounding alone, losses
drift apart by 10% within hundreds of steps. No fixed tolerance suits both, so there are two steps:

1. `FLOOR`: losses may differ by 1e-6 of their size, ten roundings of float32 (`FLOORS` for other
   precisions), accuracies by two samples. Of another kind of device, ten times as much. What lies
   within has never been seen to hide a changed learning rate or seed, but in a trial whose
   training changes nothing (all units dead, say), where both change nothing either.
2. Where that is exceeded, the trial is asked how much it amplifies: it is trained again as a stack
   of `PROBES`, whose learning rates are off by one and two floors. Any metric may differ by
   `FACTOR` times the most that one differs between those and the rerun, up to the same step. In a
   trial that does not amplify, that is what 2e-5 more learning rate does: 1% does 500 times that.

So a trial that amplifies is compared closely as long as its numbers mean anything, and hardly
after: it is said to be chaotic, whether it agrees or not, and marked in the study. Nothing that is
not finite agrees with a number.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

FLOOR = 1e-6
FLOORS = {"fp32": FLOOR, "tf32": 1e-4, "bf16": 1e-3}
"""By `training.precision`: about ten roundings; those of tf32 and bf16 average over a batch."""
OTHER_DEVICE = 10
SAMPLES = 2
"""Samples by which an accuracy may differ."""
PROBES = (1, -1, 2, -2)
"""Multiples of the floor by which the probes' learning rates are off."""
FACTOR = 10
SMALL = 0.01
"""Losses below this may differ by as much as one of this size: they are means of numbers that are
rounded at their own size."""
CHAOTIC = 0.001
"""Relative difference of the losses of probes, and of ten times their floor, from which on a trial
is chaotic: `FACTOR` times as much is allowed, and a loss that may be off by 1% says little."""

RATE = "lr"

EXACT = ("seed", "steps", "num_parameters")
_BROKEN = re.compile(r"(?:seed \d+: )?(?P<name>\w+) became \S+ at step (?P<step>\d+)\b")


@dataclass(frozen=True)
class Key:
    """One number of a trial: a metric at a step (of a seed, where there are several), or, with
    step None, at its end. `again` tells a second record of the same number, which is another."""

    name: str
    step: int | None = None
    seed: int | None = None
    again: bool = False

    @property
    def is_of_best(self) -> bool:
        """Whether it was measured of the best state, and no evaluation has it too."""
        return self.step is None and self.seed is None and self.name not in EXACT

    def __str__(self) -> str:
        of = "" if self.seed is None else f" of seed {self.seed}"
        return self.name + ("" if self.step is None else f" at step {self.step}") + of


Numbers: TypeAlias = Mapping[Key, float]


@dataclass(frozen=True)
class Given:
    """What a trial gave, recorded or now.

    Attributes:
        numbers: its metrics, by evaluation and at the end.
        ended: complete, pruned or failed.
        error: why it failed.
        best: the steps of its best states, one for each seed; only the last where more is not
            known.
    """

    numbers: Numbers
    ended: str
    error: str | None = None
    best: tuple[int, ...] = ()

    @property
    def broke_at(self) -> int | None:
        """The step at which a metric was not finite any more."""
        return broken_step(self.error)


def broken_step(error: str | None) -> int | None:
    """The step that an error of the engine names; None of another error."""
    found = _BROKEN.match(error or "")
    return None if found is None else int(found["step"])


@dataclass(frozen=True)
class Tolerance:
    """How far numbers may differ.

    Attributes:
        floor: relative, of losses.
        samples: samples of each split, by its name (val, test).
        spread: the most that the probes differ by, in metrics and (True) in the learning rate, by
            step; empty where they were not needed.
    """

    floor: float
    samples: Mapping[str, int] = field(default_factory=dict)
    spread: Mapping[bool, Mapping[float, float]] = field(default_factory=dict)

    def of(self, key: Key, recorded: float) -> float:
        """The largest difference of a number that is no more than rounding."""
        if key.name in EXACT:
            return 0.0
        rounding = self.floor
        if key.name.endswith("accuracy"):
            split = key.name.partition("_")[0]
            rounding = (SAMPLES + 1e-6) / self.samples.get(split, 10**6)
        last = math.inf if key.step is None else key.step
        metrics = self.spread.get(key.name == RATE, {})
        probed = FACTOR * max((d for step, d in metrics.items() if step <= last), default=0.0)
        return max(rounding, probed) * size(key.name, recorded)


def size(name: str, value: float) -> float:
    """What a difference in a metric is measured by: 1 for accuracies, else its own size."""
    return 1.0 if name.endswith("accuracy") else max(abs(value), SMALL)


def spread(now: Given, probes: Iterable[Given]) -> dict[bool, dict[float, float]]:
    """The most that probes differ from a rerun by at each step (infinite: at the end), by the
    `size` of what differs; of the learning rate by itself, as it is not measured but set."""
    found: dict[bool, dict[float, float]] = {True: {}, False: {}}
    for probe in probes:
        for key, value in now.numbers.items():
            other = probe.numbers.get(key)
            if other is None or not (math.isfinite(value) and math.isfinite(other)):
                continue
            steps, step = found[key.name == RATE], math.inf if key.step is None else key.step
            differs = abs(other - value) / size(key.name, value)
            steps[step] = max(steps.get(step, 0.0), differs)
    return found


@dataclass(frozen=True)
class Difference:
    """One number, then and now."""

    key: Key
    recorded: float
    now: float
    allowed: float

    @property
    def amount(self) -> float:
        """How far they are apart; infinite where one of them is no number."""
        if self.recorded == self.now:
            return 0.0
        apart = abs(self.now - self.recorded)
        return apart if math.isfinite(apart) else math.inf

    @property
    def share(self) -> float:
        """Of what is allowed; infinite where one of them is no number, whatever is allowed."""
        if not math.isfinite(self.amount):
            return math.inf
        return self.amount / self.allowed if self.allowed else math.inf if self.amount else 0.0


@dataclass(frozen=True)
class Comparison:
    """All that was compared.

    Attributes:
        differences: of every number that both have, in the order of what is recorded.
        reasons: how it ended otherwise; empty where it ended the same.
        growth: the most that losses of the probes differ by, relative, by step (infinite: at the
            end); None without probes.
        floor: the tolerance's, by which the probes' learning rates are off.
    """

    differences: Sequence[Difference]
    reasons: Sequence[str]
    growth: Mapping[float, float] | None = None
    floor: float = FLOOR

    @property
    def largest(self) -> Difference | None:
        """The difference that is nearest to what is allowed, or furthest beyond it."""
        return max(self.differences, key=lambda d: (d.share, d.amount), default=None)

    @property
    def agrees(self) -> bool:
        """Whether all that was compared is within the tolerance, and anything was."""
        return not self.reasons and (self.largest is None or self.largest.share <= 1)

    @property
    def chaotic_from(self) -> int | None:
        """The first step from which on the trial's losses say little, if there is one."""
        bound = max(CHAOTIC, 10 * self.floor)
        steps = (step for step, most in (self.growth or {}).items() if most > bound)
        first = min(steps, default=math.inf)
        return None if math.isinf(first) else int(first)

    @property
    def verdict(self) -> str:
        """One line: agrees or differs, and by what."""
        largest, verdict = self.largest, "agrees" if self.agrees else "differs"
        if self.reasons:
            verdict += f": {'; '.join(self.reasons)}"
        elif largest is None:
            verdict += ": it failed as recorded, before there was a number to compare"
        elif largest.amount == 0:
            verdict += f": none of {len(self.differences)} numbers differs"
        else:
            verdict += f": largest difference {shown(largest.amount)} ({largest.key}), tolerance "
            verdict += shown(largest.allowed)
        return verdict + self._grown

    @property
    def _grown(self) -> str:
        """What probes said."""
        if not self.growth:
            return ""
        grows = f"rounding grows to {shown(max(self.growth.values()))} of its losses"
        if self.chaotic_from is None:
            return f"; {grows}"
        return f"; chaotic from step {self.chaotic_from} on: {grows}"


def compare(
    recorded: Given, now: Given, tolerance: Tolerance, probes: Sequence[Given] = ()
) -> Comparison:
    """Compare what a study recorded of a trial with what it gave now, within a tolerance without
    `spread`; `probes` of the trial measure that, where the floor did not suffice.
    """
    growth: Mapping[float, float] | None = None
    if probes:
        tolerance = Tolerance(tolerance.floor, tolerance.samples, spread(now, probes))
        losses = {key: n for key, n in now.numbers.items() if key.name.endswith("_loss")}
        growth = spread(replace(now, numbers=losses), probes)[False]
    # Where evaluations tie, rounding decides which is the best; it is compared itself, but what
    # was measured of its state alone is then of another state.
    tie = any(given.best != now.best for given in probes)
    tie = tie or max(recorded.best, default=None) != max(now.best, default=None)
    differences = [
        Difference(key, value, now.numbers[measured], tolerance.of(key, value))
        for key, value in recorded.numbers.items()
        if (measured := replace(key, again=False)) in now.numbers
        if not (tie and key.is_of_best)
    ]
    reasons = _ended(recorded, now, probes, bool(differences))
    return Comparison(differences, reasons, growth, tolerance.floor)


def _ended(recorded: Given, now: Given, probes: Sequence[Given], compared: bool) -> list[str]:
    """What is different about how a trial ended."""
    step, again = recorded.broke_at, now.broke_at
    if recorded.ended != "failed":
        if now.ended == "failed":
            return [f"it was {recorded.ended}, now it failed: {now.error}"]
        return [] if compared else ["nothing is recorded that could be compared"]
    if step is None:
        if now.ended == "failed" and now.error == recorded.error:
            return []
        ending = f"failed: {now.error}" if now.ended == "failed" else "does not fail"
        return [f"it failed with '{recorded.error}', now it {ending}"]
    steps = [s for s in (again, *(probe.broke_at for probe in probes)) if s is not None]
    if again is None or not min(steps) <= step <= max(steps):
        ending = f"fails otherwise: {now.error}" if now.error else "does not"
        ending = ending if again is None else f"does at step {again}"
        return [f"it failed at step {step}, now it {ending}"]
    return []


def shown(value: float) -> str:
    """A difference for people: two digits."""
    return f"{value:.1e}" if math.isfinite(value) else "without number"
