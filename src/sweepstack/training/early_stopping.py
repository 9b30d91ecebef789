"""When a trial stops before its budget is spent: conf/early_stopping.

The best state is kept whatever the stopper does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from sweepstack.config import schema

Config = schema.NoStopping | schema.Patience | schema.ConsecutiveIncreases


class Stopper:
    """Decides after each evaluation of one trial; this one never stops it."""

    _saved: ClassVar[tuple[str, ...]] = ()

    @property
    def reason(self) -> str:
        """Why it stopped, one line for people."""
        return "never stops early"

    def observe(self, metrics: Mapping[str, float]) -> bool:
        """Take note of an evaluation; True means stop now.

        Raises:
            KeyError: the metric that it watches is not among `metrics`.
        """
        return False

    def state(self) -> dict[str, float]:
        """What a checkpoint must keep."""
        return {name: getattr(self, name) for name in self._saved}

    def restore(self, state: Mapping[str, float]) -> None:
        """Continue from what `state` returned."""
        for name in self._saved:
            setattr(self, name, state[name])


@dataclass
class Patience(Stopper):
    """Stops after `patience` evaluations in a row that are not better than the best by more than
    `min_delta`, in units of the objective. NaN is no improvement. Goodfellow, Bengio & Courville
    2016, algorithm 7.1."""

    _saved: ClassVar[tuple[str, ...]] = ("best", "bad_evaluations")
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


@dataclass
class ConsecutiveIncreases(Stopper):
    """Stops when `val_loss` rose `increases` times in a row (UP_s of Prechelt 1998).

    An equal value is no rise, and like a fall it ends the row. NaN counts as a rise; what follows
    a NaN is compared with nothing, so a number ends the row.
    """

    _saved: ClassVar[tuple[str, ...]] = ("previous", "rises")
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


def build(config: Config, objective: str, direction: str) -> Stopper:
    """The stopper of a trial whose `objective` has the direction "maximize" or "minimize"."""
    match config:
        case schema.Patience():
            return Patience(config, objective, maximize=direction == "maximize")
        case schema.ConsecutiveIncreases():
            return ConsecutiveIncreases(config)
        case schema.NoStopping():
            return Stopper()


def _times(count: int, word: str) -> str:
    return f"{count} {word}{'' if count == 1 else 's'}"
