"""Who runs trials: launching, the loop, our own trainer, other applications.

Here: a trial between asking and telling: what it is to be, what came of it, whether it goes on.
"""

from __future__ import annotations

import contextlib
import math
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
from optuna.pruners import NopPruner

from sweepstack import storage
from sweepstack.study.book import Ending, Report
from sweepstack.study.book.book import Book
from sweepstack.sweep.pruners import RungPruner
from sweepstack.training.spec import State


@dataclass(frozen=True)
class Asked:
    """A trial that this worker runs: Optuna's trial and the overrides that make it.

    `continues` is the number of the trial that it replaces, whose folder it takes over; `number`
    its own in the study.
    """

    trial: optuna.Trial
    overrides: list[str]
    continues: int | None = None
    number: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "number", self.trial.number)  # asked for again and again


@dataclass(frozen=True)
class Outcome:
    """How a trial ended.

    Attributes:
        asked: the trial.
        state: complete, pruned or failed.
        values: its objectives; they count only when it is complete.
        attributes: user attributes, as JSON knows them.
        numbers: what constraints may name.
        trace: the log file that holds the traceback of what it raised.
    """

    asked: Asked
    state: State
    values: tuple[float, ...] = ()
    attributes: Mapping[str, Any] = field(default_factory=dict)
    numbers: Mapping[str, float] = field(default_factory=dict)
    trace: Path | None = None

    @classmethod
    def failed(cls, asked: Asked, reason: str, trace: Path | None = None) -> Outcome:
        """A trial that never got to train, or raised."""
        return cls(asked, "failed", attributes={"error": reason}, trace=trace)


class Stop:
    """Whether this worker is to stop, and with which exit code.

    `interrupts` is set while code runs that knows nothing of this and has to be interrupted.
    """

    def __init__(self) -> None:
        self.interrupts = False
        self.code: int | None = None

    def ask(self, code: int) -> None:
        """Ask it to stop in good order. Takes no lock: signal handlers call it.

        Raises:
            KeyboardInterrupt: code that has to be interrupted runs; only once, so that nothing
                interrupts what comes after it.
        """
        self.code = self.code or code
        self._interrupt()

    def _interrupt(self) -> None:
        if self.interrupts:
            self.interrupts = False
            raise KeyboardInterrupt

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Let a signal wait that would interrupt: what is done in between is done whole."""
        before, self.interrupts = self.interrupts, False
        try:
            yield
        finally:
            self.interrupts = before
        if self.code is not None:
            self._interrupt()


class Decisions:
    """Reports go in, and once all of an evaluation are in, the pruner decides which trials end.

    Args:
        book: the records of a study with its pruner set.
        heed: called with every report; it may raise KeyboardInterrupt.
    """

    def __init__(self, book: Book, heed: Callable[[], object] = lambda: None) -> None:
        self._book, self._study, self._heed = book, book.study, heed
        self._pending: list[tuple[Asked, int, float]] = []
        self._over: set[int] = set()
        self._next_try = -math.inf

    @property
    def prunes(self) -> bool:
        """Whether anything is decided by reports, which then must be written before."""
        return not isinstance(self._study.pruner, NopPruner)

    def report(self, asked: Asked, step: int, value: float) -> None:
        """Note a report; it is written with the others of its evaluation."""
        self._pending.append((asked, step, value))

    def end(self, asked: Asked) -> None:
        """Let all that is left of a trial end."""
        self._over.add(asked.number)

    def is_over(self, asked: Asked) -> bool:
        """Whether a trial is known to end, without a look at the reports that wait."""
        return asked.number in self._over

    def ends(self, asked: Asked) -> bool:
        """Whether a trial is to end now."""
        self.flush()
        return self.is_over(asked)

    def flush(self) -> None:
        """Write the reports that wait and decide about the trials which they are of; where the
        storage does not answer they go on until it does."""
        trials = {asked.number: asked.trial for asked, _, _ in self._pending}
        if trials:
            self._heed()
            if self.write((), patience_s=0.0) is None:
                return
            with storage.Tried():
                ends = self._decided(trials).items()
                self._over.update(number for number, is_over in ends if is_over)

    def write(self, endings: Sequence[Ending], patience_s: float | None = None) -> list[int] | None:
        """Write the reports that wait, and how trials ended; see `Book.write`. None where the
        storage did not answer for `patience_s` seconds: all is left for the next time."""
        begun = time.monotonic()
        lost: list[int] | None = None
        if patience_s is not None and begun < self._next_try:
            return None
        with storage.Tried(patience_s):
            lost = self._book.write((Report(a.trial, s, v) for a, s, v in self._pending), endings)
            self._pending.clear()
        if lost is None:  # most of the time is to go into training
            now = time.monotonic()
            self._next_try = now + min(max(1.0, 3 * (now - begun)), 30.0) * random.uniform(0.5, 1.5)
        return lost

    def forget(self, asked: Asked) -> None:
        """A trial has ended."""
        self._over.discard(asked.number)

    def _decided(self, trials: Mapping[int, optuna.Trial]) -> dict[int, bool]:
        pruner = self._study.pruner
        if not self.prunes:
            return {}
        frozen = [self._book.reported(trial) for trial in trials.values()]
        if isinstance(pruner, RungPruner):
            return dict(zip(trials, pruner.decisions(self._study, frozen), strict=True))
        return {trial.number: pruner.prune(self._study, trial) for trial in frozen}
