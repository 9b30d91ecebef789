"""Runners that share a device: who has to wait when there is no memory for all."""

from __future__ import annotations

import gc
import logging
import weakref

import pytest
import torch
from engine_support import ADAMW, DECAY, SHORT, assert_same, by_number, specs, varied
from support import make_spec

from sweepstack.engine.program import Program
from sweepstack.engine.step import Step
from sweepstack.engine.train import train
from sweepstack.training.stack import Stack

pytestmark = pytest.mark.slow


class Memory:
    """A device with room for `slots` slots of all stacks together; `most` were taken at once."""

    def __init__(self, monkeypatch):
        self.slots, self.most, self.ran_out = 1000, 0, 0
        self._stacks = weakref.WeakSet()
        made, step = Stack.__init__, Step.update

        def remember(stack, *arguments):
            made(stack, *arguments)
            self._stacks.add(stack)

        def stepping(this, stack, *arguments):
            taken = self._taken()
            if taken > min(self.slots, self.most):  # some may only wait to be collected
                gc.collect()
                taken = self._taken()
            if taken > self.slots:
                self.ran_out += 1
                raise torch.OutOfMemoryError("CUDA out of memory")
            self.most = max(self.most, taken)
            return step(this, stack, *arguments)

        monkeypatch.setattr(Stack, "__init__", remember)
        monkeypatch.setattr(Step, "update", stepping)
        monkeypatch.setattr("sweepstack.engine.width.why_not_stacked", lambda program: None)

    def _taken(self):
        return sum(stack.width for stack in self._stacks)


@pytest.fixture
def memory(monkeypatch):
    return Memory(monkeypatch)


def states(results):
    return {result.state for result in results.values()}


def warnings(caplog):
    return [record.message for record in caplog.records if record.levelno >= logging.WARNING]


def test_a_trial_that_fits_alone_is_trained_alone_before_it_is_failed(memory, caplog):
    deep = "model.hidden=[8,8]"
    trials = [make_spec(*SHORT, *words, number=n) for n, words in enumerate(([], [deep], [], []))]
    alone = by_number(train(trials))
    memory.slots = 1
    # As many as this begin together, each in a stack of its own.
    assert_same(by_number(train(trials, together=2)), alone)
    assert states(alone) == {"complete"}
    assert memory.ran_out == 1
    assert warnings(caplog) == ["trial 0: out of memory in the stack, training it alone"]


def test_a_trial_that_does_not_fit_alone_either_fails_with_the_reason(memory, caplog):
    trials = specs(3)
    memory.slots = 0
    results = by_number(train(trials, together=2))
    assert [results[n].state for n in range(3)] == ["failed"] * 3
    assert results[0].error == "OutOfMemoryError: CUDA out of memory"


def test_no_memory_to_begin_beside_others_is_no_failure(memory, monkeypatch):
    trials = specs(2)
    alone = by_number(train(trials))
    insert, failed = Stack.insert, []

    def short(stack, *arguments):
        if not failed and len(memory._stacks) > 1:
            failed.append(stack)
            raise torch.OutOfMemoryError("CUDA out of memory")
        insert(stack, *arguments)

    gc.collect()
    monkeypatch.setattr(Stack, "insert", short)
    assert_same(by_number(train(trials, together=2)), alone)
    assert len(failed) == 1


def test_no_memory_to_measure_beside_others_is_no_failure(monkeypatch):
    deep = "model.hidden=[8,8]"
    trials = [make_spec(*SHORT, number=0), make_spec(*SHORT, deep, number=1)]
    alone = by_number(train(trials))
    original, failed = Program.of.__func__, []

    def short(cls, spec):
        if spec.number == 1 and not failed:
            failed.append(spec)
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(cls, spec)

    monkeypatch.setattr(Program, "of", classmethod(short))
    assert_same(by_number(train(trials, together=2)), alone)
    assert len(failed) == 1


def test_seeds_do_not_train_together_once_memory_ran_out(memory, caplog):
    trials = specs(8)
    alone = by_number(train(trials))
    memory.slots = 2
    assert_same(by_number(train(trials, width=4, together=4)), alone)
    assert warnings(caplog) == ["out of memory with 4 trials in the stack, continuing with 2"]


def raising(monkeypatch, count, bad):
    """Trials one of which raises."""
    step = Step.update

    def short(this, stack, *arguments):
        if (stack.optimizer["weight_decay"] == 0.5).any():
            raise ValueError("singular matrix")
        return step(this, stack, *arguments)

    monkeypatch.setattr(Step, "update", short)
    base = make_spec(*ADAMW, f"{DECAY}0.1").config
    decays = [{"weight_decay": 0.5 if n == bad else 0.1} for n in range(count)]
    return [
        varied(base, n, regularization=decay, training={"seed": n})
        for n, decay in enumerate(decays)
    ]


@pytest.mark.parametrize("bad", [0, 2])
def test_suspects_count_for_what_they_take_of_the_device(memory, monkeypatch, bad):
    results = by_number(train(raising(monkeypatch, 14, bad), width=4))
    failed = [number for number, result in results.items() if result.state == "failed"]
    assert (len(results), failed) == (14, [bad])
    assert memory.most == 4


def test_suspects_for_which_memory_runs_out_stay_suspects(memory, monkeypatch):
    trials = raising(monkeypatch, 9, 0)
    memory.slots = 3
    results = by_number(train(trials, width=8))  # 8, 4 raise; then 2 and 2 of 4 are one too many
    failed = [number for number, result in results.items() if result.state == "failed"]
    assert (len(results), failed) == (9, [0])
