"""Several processes share a study: none runs a trial twice, none is lost when they are killed."""

from __future__ import annotations

import itertools
import random
import signal
from collections import Counter
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import optuna
import pytest
import warm
from book_support import open_book, run_all, suggest
from optuna.trial import TrialState

from sweepstack.study.attributes import RETRIED, WORKER
from sweepstack.study.book import (
    Ending,
)

PATIENCE_S = 120  # for a hung worker only


def place(folder: Path, kind: str) -> tuple[str, str]:
    """A storage's URL, and the kind of its book."""
    if kind == "journal":
        return f"journal:///{folder}/studies.journal", "public"
    return f"sqlite:///{folder}/studies.db", kind


def work(
    url: str,
    kind: str,
    total: int,
    points: int | None,
    most: int,
    steps: int | None,
    others: Barrier | None,
    told: Connection,
) -> None:
    """Run up to `most` trials at a time until none is left; tell of each step once it is in the
    storage.

    After `steps` of them stay as one is, for the parent to kill. With `others`, wait after the
    first claim until all have claimed some.
    """
    left = itertools.count(-1 if steps is None else steps - 1, -1)

    def tell(step: str, trial: optuna.Trial, x: float = 0.0) -> None:
        told.send((step, trial.number, x))
        if next(left) == 0:
            signal.pause()

    book = open_book(url, total, points, kind=kind, max_restarts=1000)
    while trials := book.claim(most):
        if others is not None:
            others.wait(PATIENCE_S)
            others = None
        for trial in trials:
            tell("claimed", trial)
        values = [suggest(book, trial) for trial in trials]
        for trial, x in zip(trials, values, strict=True):
            tell("suggested", trial, x)
        ends = [(trial, TrialState.COMPLETE, [x]) for trial, x in zip(trials, values, strict=True)]
        assert book.write((), [Ending(*end, {}, {}) for end in ends]) == []
        for trial, x in zip(trials, values, strict=True):
            tell("told", trial, x)


def start(*arguments: Any) -> tuple[Any, Connection]:
    warm.ensure_server()
    receiving, sending = warm.SERVER.Pipe(duplex=False)
    process = warm.SERVER.Process(target=work, args=(*arguments, sending))
    process.start()
    sending.close()
    return process, receiving


def told_by(connection: Connection, at_most: int | None = None) -> list[Any]:
    """Receive what a worker tells until it ends, or until it has told `at_most` steps."""
    received: list[Any] = []
    while len(received) != at_most:
        assert connection.poll(PATIENCE_S), "a worker hangs"
        try:
            received.append(connection.recv())
        except EOFError:
            break
    return received


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "total", "points", "most"),
    [
        *[("bulk", 200, None, 1), ("bulk", 200, None, 7), ("bulk", 200, 200, 7)],
        *[("public", 60, None, 3), ("public", 60, 60, 3), ("journal", 60, 60, 3)],
    ],
)
def test_four_processes_share_a_total_exactly(
    tmp_path: Path, kind: str, total: int, points: int | None, most: int
) -> None:
    url, kind = place(tmp_path, kind)
    # The file does not exist yet: they also make it, and the study, at the same time.
    others = warm.SERVER.Barrier(4)
    workers = [start(url, kind, total, points, most, None, others) for _ in range(4)]
    ran = []
    for process, connection in workers:
        ran += [number for step, number, _ in told_by(connection) if step == "told"]
        process.join(PATIENCE_S)
        assert process.exitcode == 0
    trials = open_book(url, total, points, kind=kind).study.trials
    assert sorted(ran) == list(range(total))
    assert [t.number for t in trials] == list(range(total))
    assert {t.state for t in trials} == {TrialState.COMPLETE}
    assert len({t.user_attrs[WORKER] for t in trials}) == 4
    if points is not None:
        assert sorted(t.params["x"] for t in trials) == [float(index) for index in range(points)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "points", "most"),
    [
        *[("bulk", None, 3), ("bulk", 40, 1), ("bulk", 40, 3)],
        *[("public", None, 3), ("public", 40, 1)],
    ],
)
def test_a_sweep_killed_at_random_moments_ends_with_its_total(
    url: str, kind: str, points: int | None, most: int
) -> None:
    moments = random.Random(20)
    acknowledged: dict[int, float] = {}
    for _ in range(10 // most):
        several_steps = [moments.randrange(1, 9 * most) for _ in range(2)]
        workers = [start(url, kind, 40, points, most, steps, None) for steps in several_steps]
        for (process, connection), steps in zip(workers, several_steps, strict=True):
            received = told_by(connection, at_most=steps - 1)
            assert process.is_alive()
            process.kill()  # anywhere in its next step
            received += told_by(connection)
            acknowledged |= {number: x for step, number, x in received if step == "told"}
            process.join(PATIENCE_S)
    book = open_book(url, 40, points, kind=kind, max_restarts=1000)
    run_all(book)

    trials = book.study.trials
    states = Counter(t.state for t in trials if RETRIED not in t.user_attrs)
    assert states == {TrialState.COMPLETE: 40}
    assert any(RETRIED in t.user_attrs for t in trials)  # or nothing was lost, and nothing shown
    values = {t.number: t.value for t in trials if t.state == TrialState.COMPLETE}
    assert acknowledged
    assert acknowledged.items() <= values.items()
    if points is not None:
        assert sorted(values.values()) == [float(index) for index in range(points)]
