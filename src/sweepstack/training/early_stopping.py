"""When a trial stops before its budget is spent.

Reads the `early_stopping` config group. One `Stopper` per trial; `train.py` shows it the metrics
of every evaluation, ends the trial when it says so, and keeps its state in checkpoints. The best
state is kept whatever the stopper does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from sweepstack.config import schema

Config = schema.NoStopping | schema.Patience | schema.ConsecutiveIncreases


class Stopper(Protocol):
    """Decides after each evaluation."""

    @property
    def reason(self) -> str:
        """Why it stopped, one line for people."""

    def observe(self, metrics: Mapping[str, float]) -> bool:
        """Take note of an evaluation; True means stop now.

        Raises KeyError when the metric that it watches is not among `metrics`.
        """

    def state(self) -> dict[str, float]:
        """What a checkpoint must keep."""

    def restore(self, state: Mapping[str, float]) -> None:
        """Continue from what `state` returned."""


class NoStopping:
    """Never stops."""

    reason = "never stops early"

    def observe(self, metrics: Mapping[str, float]) -> bool:
        """Go on."""
        return False

    def state(self) -> dict[str, float]:
        """Nothing."""
        return {}

    def restore(self, state: Mapping[str, float]) -> None:
        """Nothing to do."""


@dataclass
class Patience:
    """Stops after `patience` evaluations in a row that are not better than the best by more than
    `min_delta`, in units of the objective. NaN is no improvement. Goodfellow, Bengio & Courville
    2016, algorithm 7.1."""

    config: schema.Patience
    objective: str
    maximize: bool
    best: float = field(init=False)
    bad_evaluations: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self.best = -math.inf if self.maximize else math.inf

    @property
    def reason(self) -> str:
        """Names the objective, what was asked of it, and its best value."""
        return (
            f"{self.objective} has not improved by more than {self.config.min_delta:g} "
            f"for {_times(self.config.patience, 'evaluation')} (best {self.best:.6g})"
        )

    def observe(self, metrics: Mapping[str, float]) -> bool:
        """See the class."""
        value = metrics[self.objective]
        gain = value - self.best if self.maximize else self.best - value
        if gain > self.config.min_delta:
            self.best, self.bad_evaluations = value, 0
        else:
            self.bad_evaluations += 1
        return self.bad_evaluations >= self.config.patience

    def state(self) -> dict[str, float]:
        """The best value and the evaluations since."""
        return {"best": self.best, "bad_evaluations": self.bad_evaluations}

    def restore(self, state: Mapping[str, float]) -> None:
        """Continue from what `state` returned."""
        self.best = state["best"]
        self.bad_evaluations = int(state["bad_evaluations"])


@dataclass
class ConsecutiveIncreases:
    """Stops when `val_loss` rose `increases` times in a row (UP_s of Prechelt 1998).

    An equal value is no rise, and like a fall it ends the row. NaN counts as a rise; what follows
    a NaN is compared with nothing, so a number ends the row.
    """

    config: schema.ConsecutiveIncreases
    previous: float = field(default=math.inf, init=False)
    rises: int = field(default=0, init=False)

    @property
    def reason(self) -> str:
        """Says how often the loss rose."""
        return f"val_loss rose {_times(self.config.increases, 'time')} in a row"

    def observe(self, metrics: Mapping[str, float]) -> bool:
        """See the class."""
        value = metrics["val_loss"]
        rose = math.isnan(value) or value > self.previous
        self.rises = self.rises + 1 if rose else 0
        self.previous = value
        return self.rises >= self.config.increases

    def state(self) -> dict[str, float]:
        """The last loss and the rises up to it."""
        return {"previous": self.previous, "rises": self.rises}

    def restore(self, state: Mapping[str, float]) -> None:
        """Continue from what `state` returned."""
        self.previous = state["previous"]
        self.rises = int(state["rises"])


def build(config: Config, objective: str, direction: str) -> Stopper:
    """The stopper of a trial whose `objective` has the direction "maximize" or "minimize"."""
    match config:
        case schema.Patience():
            return Patience(config, objective, maximize=direction == "maximize")
        case schema.ConsecutiveIncreases():
            return ConsecutiveIncreases(config)
        case schema.NoStopping():
            return NoStopping()


def _times(count: int, word: str) -> str:
    return f"{count} {word}{'' if count == 1 else 's'}"
