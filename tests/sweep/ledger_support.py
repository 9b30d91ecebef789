"""A study with one parameter, and what a worker does with its trials."""

from __future__ import annotations

from typing import Any

import optuna

from sweepstack.study import storage
from sweepstack.sweep.book.journal import Journal
from sweepstack.sweep.book.ledger import Ledger
from sweepstack.sweep.book.live_trial import LiveTrial
from sweepstack.sweep.book.studies import open_study


def open_ledger(url: str, total: int | None, points: int | None = None, **options: Any) -> Ledger:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = open_study(storage.connect(url), "study", ["minimize"], {"space": "x"})
    study.sampler = optuna.samplers.RandomSampler()
    grid = None if points is None else [{"x": float(index)} for index in range(points)]
    return Ledger(study, total, points=grid, **options)


def suggest(trial: LiveTrial | None) -> float:
    assert trial is not None
    x = trial.suggest_float("x", 0.0, 1000.0)
    Journal(trial.study).parameters([trial])
    return x


def finish(ledger: Ledger, trial: LiveTrial | None) -> None:
    x = suggest(trial)
    assert trial is not None
    ledger.study.tell(trial, x)


def run_all(ledger: Ledger) -> list[float]:
    values = []
    while (trial := ledger.claim()) is not None:
        values.append(suggest(trial))
        ledger.study.tell(trial, values[-1])
        assert len(values) < 1000, "there is no end to this study"
    return values
