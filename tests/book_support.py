"""A study with one parameter, both ways to record its trials, and what a worker does with them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import optuna
import sqlalchemy
from optuna.samplers import BaseSampler
from optuna.trial import TrialState

from sweepstack import storage
from sweepstack.study.attributes import HEARTBEAT, WORKER
from sweepstack.study.book import (
    Ending,
)
from sweepstack.study.book.book import Book
from sweepstack.study.book.bulk import BulkBook
from sweepstack.study.book.public import PublicBook
from sweepstack.sweep.studies import open_study

KINDS: dict[str, type[Book]] = {"bulk": BulkBook, "public": PublicBook}


def open_book(
    url: str,
    total: int | None,
    points: int | Sequence[dict[str, float]] | None = None,
    *,
    kind: str = "bulk",
    sampler: BaseSampler | None = None,
    **options: Any,
) -> Book:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    opened = storage.connect(url)
    study = open_study(opened, "study", ["minimize"], {"space": "x"})
    study.sampler = sampler or optuna.samplers.RandomSampler()
    grid = [{"x": float(x)} for x in range(points)] if isinstance(points, int) else points
    return KINDS[kind](study, opened, total, points=grid, **options)  # type: ignore[arg-type]


def one(book: Book) -> optuna.Trial | None:
    return next(iter(book.claim()), None)


def suggest(book: Book, trial: optuna.Trial | None) -> float:
    assert trial is not None
    x = trial.suggest_float("x", 0.0, 1000.0)
    book.begin([trial])
    return x


def end(
    book: Book,
    trial: optuna.Trial | None,
    value: float | None = 0.0,
    state: TrialState = TrialState.COMPLETE,
    **attributes: Any,
) -> list[int]:
    assert trial is not None
    values = None if value is None or state != TrialState.COMPLETE else [value]
    return book.write(endings=[Ending(trial, state, values, attributes, {})])


def finish(book: Book, trial: optuna.Trial | None) -> None:
    assert end(book, trial, suggest(book, trial)) == []


def run_all(book: Book) -> list[float]:
    values = []
    while (trial := one(book)) is not None:
        values.append(suggest(book, trial))
        end(book, trial, values[-1])
        assert len(values) < 1000, "there is no end to this study"
    return values


def falls_silent(book: Book, trial: optuna.Trial | None) -> None:
    """Let the last heartbeat of the worker of `trial` be an hour ago."""
    assert trial is not None
    if isinstance(book, BulkBook):
        change = "UPDATE trial_heartbeats SET heartbeat = datetime('now', '-1 hour')"
        with book._engine.begin() as connection:
            connection.execute(
                sqlalchemy.text(f"{change} WHERE trial_id = :id"), {"id": trial._trial_id}
            )
    else:
        worker = book.trial(trial.number).user_attrs[WORKER]
        book.study.set_user_attr(f"{HEARTBEAT}.{worker}", time.time() - 3600)
