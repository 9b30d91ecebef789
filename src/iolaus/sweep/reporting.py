"""`iolaus.report(value, step)`: how any Hydra application lets a sweep prune its trials.

`other.py` says which trial runs; without one a report goes nowhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import optuna

from iolaus.errors import InputError
from iolaus.sweep.trial import Asked, Verdicts

_running: list[tuple[Asked, Verdicts]] = []


@contextmanager
def running(asked: Asked, verdicts: Verdicts) -> Iterator[None]:
    """Let reports be those of this trial."""
    _running.append((asked, verdicts))
    try:
        yield
    finally:
        _running.pop()


def report(value: float, step: int) -> None:
    """See `iolaus.report`."""
    if not _running:
        return
    asked, verdicts = _running[-1]
    if len(verdicts.study.directions) > 1:
        return  # nothing prunes by several objectives
    try:
        number, at = float(value), int(step)
    except (TypeError, ValueError):
        raise InputError(
            f"iolaus.report must be given a number and a step, got {value!r} and {step!r}"
        ) from None
    verdicts.report(asked, at, number)
    if verdicts.ends(asked):
        raise optuna.TrialPruned(f"pruned at step {at}")
