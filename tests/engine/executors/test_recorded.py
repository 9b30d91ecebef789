"""Steps of a stack: replayed or not, in one part or in several by threads, always the same."""

from __future__ import annotations

import threading

import pytest
import torch
from engine_support import ADAMW, DECAY, assert_same, by_number, specs
from support import make_spec
from torch import nn

from sweepstack.engine import program as programs
from sweepstack.engine.executors.recorded import _Part, _recorders
from sweepstack.engine.program import Program
from sweepstack.engine.step import Step
from sweepstack.engine.train import train

HERE = __name__


class Counting(nn.Module):
    """Scales its outputs by a number that is another one in each call, but for rounding."""

    def __init__(self, input_shape, outputs):
        super().__init__()
        self.linear = nn.Linear(input_shape[0], outputs)
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return self.linear(x) * (1 + self.calls * 1e-12)


@pytest.fixture
def parts_seen(monkeypatch):
    """The width and the thread of each part's step."""
    seen, both = set(), threading.Barrier(2)
    original = _Part.advance

    def spy(self, batch):
        if (name := threading.current_thread().name) != "MainThread":
            both.wait(60)  # or one thread might take the steps of both parts
        seen.add((self.stack.width, name))
        return original(self, batch)

    monkeypatch.setattr(_Part, "advance", spy)
    return seen


@pytest.fixture(autouse=True)
def fresh_programs():
    """Nothing is recorded yet."""
    programs._programs.clear()
    yield
    programs._programs.clear()


def test_parts_advance_in_threads_and_each_trial_is_itself(parts_seen, two_threads):
    trials = specs(5)
    alone = by_number(train(trials))
    parts_seen.clear()
    assert_same(by_number(train(trials, width=5)), alone)
    assert {width for width, _ in parts_seen} == {3, 2, 1}
    assert {name for _, name in parts_seen} >= {"MainThread", "part_0"}
    assert torch.get_num_threads() == 2  # as before


def test_one_thread_has_one_part(parts_seen):
    list(train(specs(4), width=4))
    assert {name for _, name in parts_seen} == {"MainThread"}
    assert max(width for width, _ in parts_seen) == 4


def test_batches_that_are_streamed_are_for_the_whole_stack(parts_seen, two_threads):
    trials = specs(4, "data.placement=stream", "data.workers=0")
    list(train(trials, width=4))
    assert {name for _, name in parts_seen} == {"MainThread"}
    assert max(width for width, _ in parts_seen) == 4


def test_seeds_with_one_order_share_a_batch_in_every_part(parts_seen, two_threads):
    trials = specs(4, "data.order_seed=1")
    assert_same(by_number(train(trials, width=4)), by_number(train(trials)))
    assert (2, "part_0") in parts_seen


def test_a_module_that_cannot_be_recorded_trains_in_one_part_without(
    parts_seen, two_threads, widths_seen
):
    words = ("data=quadratic", "model=custom", f"model._target_={HERE}.Counting")
    short = (f"trust=[{HERE}]", "training.max_steps=20", "training.eval_every=10")
    trials = [make_spec(*words, *short, f"training.seed={n}", number=n) for n in range(4)]
    alone = by_number(train(trials))
    parts_seen.clear()
    assert_same(by_number(train(trials, width=4)), alone)
    assert {name for _, name in parts_seen} == {"MainThread"}
    assert {width for width, _ in parts_seen} == {2}  # in parts until that was known
    assert widths_seen[-1] == 4
    reasons = {recorder.reason for recorder in _recorders[Program.of(trials[0])].values()}
    assert "what it does changes from call to call" in reasons


def test_what_raises_in_a_thread_fails_its_own_trial_only(monkeypatch, two_threads):
    original = Step.update
    raised = []

    def raising(self, stack, grads, batch):
        if threading.current_thread().name != "MainThread":
            bad = stack.optimizer["weight_decay"] == 0.5
            if bad.any():
                raised.append(stack.width)
                raise ValueError("singular\n matrix")
        elif stack.width == 1 and stack.optimizer["weight_decay"][0] == 0.5:
            raise ValueError("singular\n matrix")
        return original(self, stack, grads, batch)

    monkeypatch.setattr(Step, "update", raising)
    decays = [0.5 if number == 5 else 0.1 for number in range(6)]
    trials = [make_spec(*ADAMW, f"{DECAY}{d}", number=n) for n, d in enumerate(decays)]
    results = by_number(train(trials, width=6))
    assert raised
    assert {n for n, result in results.items() if result.state == "failed"} == {5}
    assert results[5].error == "ValueError: singular matrix"
