"""Several seeds as one trial: `training.seeds=K` trains with seed, seed + 1, ..., seed + K - 1.

What counts is the mean over the seeds, at each evaluation and at the end.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean, stdev

from sweepstack.training.spec import State, TrialResult, TrialSpec


def members(spec: TrialSpec) -> list[TrialSpec]:
    """One spec for each seed, with the folder `seed_N` in the trial's; of one seed, the spec."""
    training = spec.config.training
    if training.seeds == 1:
        return [spec]
    return [
        TrialSpec(
            replace(spec.config, training=replace(training, seed=seed, seeds=1)),
            number=spec.number,
            folder=None if spec.folder is None else spec.folder / f"seed_{seed}",
        )
        for seed in range(training.seed, training.seed + training.seeds)
    ]


@dataclass
class Group:
    """The members of one trial while they train."""

    spec: TrialSpec
    size: int
    rows: dict[int, dict[int, float]] = field(default_factory=dict)  # step -> seed -> value
    ended: dict[int, TrialResult] = field(default_factory=dict)  # by seed
    reported: int = -1  # the last step that has a mean

    def observe(self, seed: int, step: int, value: float) -> list[tuple[int, float]]:
        """Add a member's value; returns the (step, mean) pairs that it completes."""
        self.rows.setdefault(step, {})[seed] = value
        return self._complete()

    def end(self, result: TrialResult) -> list[tuple[int, float]]:
        """Add a member's result: it counts with its last value from now on, which may complete
        means; returns them."""
        self.ended[result.spec.config.training.seed] = result
        return self._complete()

    def _complete(self) -> list[tuple[int, float]]:
        found = []
        for step in sorted(step for step in self.rows if step > self.reported):
            values = dict(self.rows[step])
            for seed, result in self.ended.items():
                if seed not in values and result.history:
                    values[seed] = result.history[-1][result.objective]
            if len(values) < self.size:
                break
            found.append((step, fmean(values.values())))
            self.reported = step
        return found

    @property
    def is_over(self) -> bool:
        """Whether all members have ended."""
        return len(self.ended) == self.size

    @property
    def state(self) -> State:
        """Failed when one member failed, else pruned when one was pruned, else complete."""
        states = {result.state for result in self.ended.values()}
        return "failed" if "failed" in states else "pruned" if "pruned" in states else "complete"

    @property
    def error(self) -> str | None:
        """Why it failed, with the seed where there are several."""
        for seed, result in sorted(self.ended.items()):
            if result.state == "failed":
                return result.error if self.size == 1 else f"seed {seed}: {result.error}"
        return None

    @property
    def results(self) -> list[TrialResult]:
        """The members' results in the order of their seeds."""
        return [result for _, result in sorted(self.ended.items())]

    def metrics(self) -> dict[str, float]:
        """Mean of each metric over the members that have it."""
        return means([result.metrics for result in self.results])


def means(metrics: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean of each metric that all have."""
    names = [name for name in metrics[0] if all(name in each for each in metrics)]
    return {name: fmean(each[name] for each in metrics) for name in names}


def spread(values: Sequence[float]) -> float | None:
    """Sample standard deviation (divisor K - 1), None for a single value or one without number."""
    return stdev(values) if len(values) > 1 and all(map(math.isfinite, values)) else None
