"""`sweepstack.report(value, step)`: how any Hydra application lets a sweep prune its trials.

`other.py` says which trial runs; without one a report goes nowhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import optuna

from sweepstack.config.errors import InputError
from sweepstack.study.storage import is_failure
from sweepstack.sweep.worker.trial import Asked, Verdicts


@dataclass
class Running:
    """The trial that reports are of, and the error of the last one if it could not be written."""

    asked: Asked
    verdicts: Verdicts
    error: Exception | None = None


_running: list[Running] = []


@contextmanager
def running(asked: Asked, verdicts: Verdicts) -> Iterator[Running]:
    """Let reports be those of this trial."""
    _running.append(Running(asked, verdicts))
    try:
        yield _running[-1]
    finally:
        _running.pop()


def report(value: float, step: int) -> None:
    """See `sweepstack.report`."""
    if not _running:
        return
    trial = _running[-1]
    asked, verdicts = trial.asked, trial.verdicts
    if len(verdicts.study.directions) > 1:
        return  # nothing prunes by several objectives
    try:
        number, at = float(value), int(step)
    except (TypeError, ValueError):
        raise InputError(
            f"sweepstack.report must be given a number and a step, got {value!r} and {step!r}"
        ) from None
    try:
        with verdicts.stop.held():  # or what is written might not be known to be
            verdicts.report(asked, at, number)
            is_over = verdicts.ends(asked)
        trial.error = None
    except Exception as error:
        trial.error = error if is_failure(error) else trial.error
        raise
    if is_over:
        raise optuna.TrialPruned(f"pruned at step {at}")
