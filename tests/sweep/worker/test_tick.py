"""What a worker does every few seconds beside its training: heartbeats, and a look for the dead."""

from __future__ import annotations

import math
import random
import time
from dataclasses import asdict
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
from duplicates_support import Script, worker
from sqlalchemy.exc import OperationalError

from sweepstack.runs.register import Entry, Membership
from sweepstack.study.attributes import WORKER, WORKERS
from sweepstack.study.book import processes
from sweepstack.sweep.worker import worker as workers


@pytest.fixture
def lost(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Names of processes that are gone; added to by a test."""
    gone: set[str] = set()
    monkeypatch.setattr(processes, "is_gone", gone.__contains__)
    return gone


def beside(name: str) -> str:
    """A process of this host."""
    return processes.this_process().rsplit(":", 2)[0] + f":{name}:7"


def test_who_dies_beside_a_worker_is_noticed_by_its_process(tmp_path, lost):
    """By all beside it at their next look, which needs no database."""
    made = worker(tmp_path, Script())
    fellow = beside("1")
    made._member = Membership.here(made.study, "crew")
    Membership(made.study, Entry(fellow, time.time(), time.time()))
    [trial] = made.book.claim()
    trial.set_user_attr(WORKER, fellow)
    made._count_at = 0.0
    made._tick()
    assert made._beside == {fellow}
    assert made.book.counts()["running"] == 1

    lost.add(fellow)
    made._tick()

    assert made.book.counts()["waiting"] == 1


def test_all_together_look_for_silent_workers_once_a_second(tmp_path, monkeypatch):
    made, looks, chance = worker(tmp_path, Script()), [], random.Random(0)
    monkeypatch.setattr(made.book, "recover", lambda: looks.append(1))
    monkeypatch.setattr(workers.random, "random", chance.random)
    made._beaten = math.inf
    for all_of_them, expected in ((1, 500), (5, 500), (1000, 2.5)):
        made.book.workers = all_of_them
        looks.clear()
        for _ in range(500):  # in each TICK_S pass
            made._tick()
        assert abs(len(looks) - expected) <= 4


def test_a_look_at_the_register_waits_for_as_long_as_it_is_long(tmp_path, monkeypatch):
    made = worker(tmp_path, Script())
    made._member = Membership.here(made.study, "crew")
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(workers.time, "monotonic", lambda: clock.now)
    for others, expected in ((0, 1.0), (99, 10.0)):
        for number in range(others):
            key = f"{WORKERS}.{number}"
            made.study.set_user_attr(key, asdict(Entry(f"n/1:{number}:1", 1e9, 1e9)))
        clock.now = made._count_at = 1e6
        made._count_workers()
        assert made._count_at - clock.now == expected


def test_heartbeats_are_sent_well_within_the_grace(tmp_path, monkeypatch):
    made = worker(tmp_path, Script())
    beats: list[float] = []
    monkeypatch.setattr(made, "_beat", lambda: beats.append(clock.now))
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(workers.time, "monotonic", lambda: clock.now)
    made._beaten = 0.0
    while clock.now < 120:
        clock.now += workers.TICK_S
        made._tick()
    gaps = [b - a for a, b in pairwise(beats)]
    assert max(gaps) == processes.BEAT_S
    assert made.book.grace_s >= 3 * processes.BEAT_S
    # It is silent at most so long before someone looks.
    assert made.book.grace_s + 2 * workers.TICK_S < 60


def test_a_worker_claims_more_at_once_where_claims_take_long(tmp_path, monkeypatch):
    made = worker(tmp_path, Script(equal=None), values=",".join(map(str, range(40))))
    asked: list[int] = []
    claim, clock = made.book.claim, SimpleNamespace(now=0.0)

    def slow(most: int, **given: Any) -> Any:
        asked.append(most)
        clock.now += 2.0  # others are before it
        return claim(most, **given)

    def train(value: int) -> None:
        clock.now += 1.0

    monkeypatch.setattr(workers.time, "monotonic", lambda: clock.now)
    monkeypatch.setattr(made.book, "claim", slow)
    made.runner.before_end = train
    made.work()
    assert asked[:4] == [1, 2, 4, 8]
    assert len(asked) < 10


def test_a_register_that_cannot_be_read_ends_no_worker_whose_trials_go_on(tmp_path, monkeypatch):
    made = worker(tmp_path, Script(equal=None))
    made._member, made.room = Membership.here(made.study, "crew"), 2

    def away(**_: Any) -> None:
        raise OperationalError("SELECT", None, ConnectionError("the server restarts"))

    monkeypatch.setattr(made.book, "attributes", away)
    monkeypatch.setattr(made, "_patience_s", lambda seconds: 0.0)  # as while trials train
    assert not made._claim()
