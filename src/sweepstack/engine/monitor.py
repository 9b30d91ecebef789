"""The one protocol between the engine and whoever watches it.

`train` tells a monitor what happens and asks it whether to go on. Subclass what you need; every
method does nothing by default. What one raises is no trial's failure: it ends the training and
comes out of `train` as it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from sweepstack.engine.spec import TrialSpec


class Raised(Exception):
    """A monitor raised `error`: a database that is gone, say. No trial is to blame for it."""

    def __init__(self, error: Exception):
        super().__init__(str(error))
        self.error = error


@contextmanager
def telling() -> Iterator[None]:
    """Around what an engine tells a monitor or asks it, where a model may raise as well.

    Raises:
        Raised: the monitor did.
    """
    try:
        yield
    except Exception as error:
        raise Raised(error) from error


class Monitor:
    """A monitor that watches nothing and lets everything go on."""

    def room(self, slots: int) -> None:
        """`slots` places are free: as many specs are about to be pulled."""

    def started(
        self, spec: TrialSpec, step: int, total_steps: int, history: Sequence[Mapping[str, float]]
    ) -> None:
        """A trial begins at `step` (above 0 when it is resumed) of at most `total_steps`.

        `history` are the rows that it has reported already, before it was resumed.
        """

    def stepped(self, steps: int) -> None:
        """All slots went `steps` steps on."""

    def report(self, spec: TrialSpec, row: Mapping[str, float]) -> None:
        """A trial was evaluated; `row` has step, epoch, lr, train_loss and the val metrics.

        At one evaluation of a stack, the reports of all slots come before any `should_stop`.
        """

    def should_stop(self, spec: TrialSpec) -> bool:
        """Whether to prune the trial, asked once after each of its reports."""
        return False

    def interrupted(self) -> int | None:
        """A signal's exit code to checkpoint and stop at once, or None to go on."""
        return None
