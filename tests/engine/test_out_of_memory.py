"""Engines that run out of memory: fewer trials at once, and every trial ends the same."""

from __future__ import annotations

import gc
import inspect
import logging
import weakref

import pytest
import torch
from engine_support import ADAMW, DECAY, SHORT, assert_same, by_number, specs
from support import make_spec

from sweepstack.engine.step import Step
from sweepstack.engine.train import train
from sweepstack.engine.width import Widths
from sweepstack.training.stack import Stack


def test_out_of_memory_halves_the_width_and_all_trials_end_the_same(
    little_memory, widths_seen, caplog
):
    trials = specs(14)
    alone = by_number(train(trials))
    widths_seen.clear()
    little_memory(3)
    stacked = by_number(train(trials, width=6))
    assert_same(stacked, alone)
    assert {result.state for result in stacked.values()} == {"complete"}
    assert max(widths_seen) == 3
    lines = [record.message for record in caplog.records if record.levelno >= logging.WARNING]
    assert lines == ["out of memory with 6 trials in the stack, continuing with 3"]


def test_the_width_is_halved_again_and_stays_so_for_the_next_stream(
    little_memory, widths_seen, caplog
):
    little_memory(2)
    widths = Widths(7)
    assert len(by_number(train(specs(8), width=widths))) == 8
    assert max(widths_seen) == 1  # 7, 3, 1
    assert sum(record.levelno >= logging.WARNING for record in caplog.records) == 2
    caplog.clear()
    assert len(by_number(train(specs(3), width=widths))) == 3
    assert caplog.records == []


def test_out_of_memory_with_one_trial_fails_that_trial_alone(monkeypatch):
    original = Step.update

    def short(self, stack, *arguments):
        if (stack.optimizer["weight_decay"] == 0.5).any():
            raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2 GiB")
        return original(self, stack, *arguments)

    monkeypatch.setattr(Step, "update", short)
    trials = [make_spec(*ADAMW, f"{DECAY}{d}", number=n) for n, d in enumerate((0.1, 0.5, 0.2))]
    for width in (1, 3):
        results = by_number(train(trials, width=width))
        assert [results[n].state for n in range(3)] == ["complete", "failed", "complete"]
        assert results[1].error == ("OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB")


@pytest.mark.parametrize("what", ["moved", "__init__"])
def test_out_of_memory_while_the_stack_is_resized(monkeypatch, widths_seen, caplog, what):
    trials = specs(7)
    alone = by_number(train(trials))
    widths_seen.clear()
    original, refused = getattr(Stack, what), []

    def short(self, *arguments):
        width = inspect.signature(original).bind(self, *arguments).arguments["width"]
        if width > 2:
            refused.append(width)
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(self, *arguments)

    monkeypatch.setattr(Stack, what, short)
    assert_same(by_number(train(trials, width=4)), alone)
    assert refused == [4]
    assert max(widths_seen) == 2
    assert caplog.messages == ["out of memory with 4 trials in the stack, continuing with 2"]


def test_no_memory_for_a_single_stack_fails_its_trials_and_the_stream_goes_on(monkeypatch):
    original = Stack.__init__

    def short(self, params, buffers, moments, orders, width, *others):
        if width > 0 and len(params) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        original(self, params, buffers, moments, orders, width, *others)

    monkeypatch.setattr(Stack, "__init__", short)
    deep = "model.hidden=[8,8]"
    trials = [make_spec(*SHORT, *words, number=n) for n, words in enumerate(([], [deep], []))]
    results = by_number(train(trials))
    assert [results[n].state for n in range(3)] == ["complete", "failed", "complete"]
    assert results[1].error == "CUDA out of memory"


def test_a_stack_that_ran_out_of_memory_is_gone_before_the_next_begins(monkeypatch):
    stacks, alive = [], []
    original, step = Stack.__init__, Step.update

    def remember(self, *arguments):
        gc.collect()
        alive.append(max((stack().width for stack in stacks if stack() is not None), default=0))
        original(self, *arguments)
        stacks.append(weakref.ref(self))

    def short(self, stack, *arguments):
        if stack.width > 2:
            alive.clear()
            raise torch.OutOfMemoryError("CUDA out of memory")
        return step(self, stack, *arguments)

    monkeypatch.setattr(Stack, "__init__", remember)
    monkeypatch.setattr(Step, "update", short)
    assert len(by_number(train(specs(4), width=Numbered(4)))) == 4
    assert alive
    assert max(alive) <= 2


class Numbered(Widths):
    """Widths that do not try a stack first."""

    def of(self, program):
        return min(int(self.wanted), *self._lowered.values(), 99)
