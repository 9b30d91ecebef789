"""A machine with other work times some widths too long, and yet the width is the same."""

from __future__ import annotations

import math

import pytest
import torch
from engine_support import SHORT
from support import make_spec

from sweepstack.engine import width as module
from sweepstack.engine.program import Program
from sweepstack.engine.width import Widths


@pytest.fixture
def unlucky(monkeypatch):
    """As `measured`, of a machine with other work: `late` says how many times too long the first
    timings of a width are."""

    def give(times, late, *, limit=64):
        tried, left = [], {width: list(factors) for width, factors in late.items()}

        def take(program, width, **_):
            tried.append(width)
            if width > limit:
                raise torch.OutOfMemoryError("CUDA out of memory")
            factors = left.get(width)
            return 1e-6 * times[width] * (factors.pop(0) if factors else 1.0)

        monkeypatch.setattr(module, "_time", take)
        monkeypatch.setattr(module, "AGAIN_S", math.inf)
        monkeypatch.setattr(module, "SHORT_S", 0.0)
        return tried

    return give


TIMES = {1: 100, 2: 60, 4: 40, 8: 32, 16: 26, 32: 23, 64: 22.5}


@pytest.mark.parametrize(
    "late",
    [
        {},
        {32: [1.3]},
        {32: [1.3, 1.2]},
        {64: [1.3]},
        {16: [1.2], 32: [1.2]},
        {32: [1.25], 64: [1.25]},
        {16: [1.3, 1.1], 32: [1.2, 1.3], 64: [1.3, 1.2]},
    ],
)
def test_a_busy_moment_does_not_change_the_width(program, unlucky, late):
    unlucky(TIMES, late)
    assert Widths("auto").of(program) == 32


def test_a_busy_moment_does_not_end_the_measurement(program, unlucky):
    """16 and 32 seem to gain nothing over 8, where measuring would end."""
    tried = unlucky(TIMES, {16: [1.2], 32: [1.33]})
    assert Widths("auto").of(program) == 32
    assert 64 in tried


def test_widths_that_cannot_be_the_best_are_timed_once(program, unlucky):
    tried = unlucky(TIMES, {})
    Widths("auto").of(program)
    assert [tried.count(width) for width in (1, 2, 4, 8)] == [1, 1, 1, 1]
    assert [tried.count(width) for width in (16, 32, 64)] == [2, 2, 2]


def test_timings_that_differ_are_repeated_but_not_for_ever(program, unlucky):
    tried = unlucky(TIMES, {32: [1.3, 1.2, 1.1, 1.0]})
    assert Widths("auto").of(program) == 32
    assert tried.count(32) == 1 + module.ROUNDS


def test_little_noise_is_settled_where_there_are_few_trials(program, unlucky):
    unlucky(TIMES, {8: [1.3]})
    assert Widths("auto", most=8).of(program) == 8


def test_memory_that_runs_out_later_keeps_what_was_measured(program, unlucky, monkeypatch):
    tried = unlucky(TIMES, {})
    take = module._time

    def short(program, width, **_):
        if tried.count(32) and width == 32:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return take(program, width, **_)

    monkeypatch.setattr(module, "_time", short)
    assert Widths("auto").of(program) == 32


def test_what_compiles_is_timed_once(unlucky):
    tried = unlucky(TIMES, {})
    spec = make_spec(*SHORT, "training.compile=true")
    assert module.measured(Program.of(spec), 128) == (32, True)
    assert len(tried) == len(set(tried))
