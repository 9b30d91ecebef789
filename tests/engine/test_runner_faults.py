"""Trials that raise or become NaN fail alone; what a monitor raises is no trial's failure."""

from __future__ import annotations

import sys

import pytest
import torch
from engine_support import (
    ADAMW,
    DECAY,
    SHORT,
    assert_same,
    by_number,
    specs,
)
from support import make_spec
from torch import nn

from sweepstack.engine import program
from sweepstack.engine.runner import Runner
from sweepstack.engine.step import Step
from sweepstack.engine.train import train
from sweepstack.training.spec import Monitor

# --- modules that would end the process -----------------------------------------------------------


class Quits(nn.Module):
    """Calls sys.exit when its weights are large."""

    def __init__(self, input_shape, outputs):
        super().__init__()
        self.linear = nn.Linear(input_shape[0], outputs)

    def forward(self, x):
        return Quit.apply(self.linear(x), self.linear.weight)


class Quit(torch.autograd.Function):
    """Nothing, but for large weights."""

    generate_vmap_rule = False

    @staticmethod
    def forward(y, weight):
        if weight.abs().max() > 100:
            sys.exit("enough")
        return y.clone()

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, grad):
        return grad, None

    @staticmethod
    def vmap(info, in_dims, y, weight):
        return Quit.apply(y, weight), 0


@pytest.mark.parametrize("width", [1, 3])
def test_a_module_that_exits_fails_its_own_trial(width):
    words = ("data=quadratic", "model=custom", f"model._target_={__name__}.Quits")
    words += (f"trust=[{__name__}]", "training.max_steps=8", "training.eval_every=4")
    trials = [
        make_spec(*words, "init=ones", f"init.gain={gain}", number=number)
        for number, gain in enumerate((1, 1000, 2))
    ]
    results = by_number(train(trials, width=width))
    assert [results[n].state for n in range(3)] == ["complete", "failed", "complete"]
    assert results[1].error == "SystemExit: enough"


# --- trials that raise ----------------------------------------------------------------------------


@pytest.fixture
def one_raises(monkeypatch):
    """A step of a stack that holds a weight decay of 0.5 raises; returns how often it did."""
    raised = []
    original = Step.update

    def raising(self, stack, *arguments):
        if (stack.optimizer["weight_decay"] == 0.5).any():
            raised.append(stack.width)
            raise ValueError("singular\n matrix")
        return original(self, stack, *arguments)

    monkeypatch.setattr(Step, "update", raising)
    program._programs.clear()  # a stack is tried with the values of a program's first trial
    yield raised
    program._programs.clear()


def decays(count, bad):
    values = [0.5 if number in bad else 0.1 + 0.01 * number for number in range(count)]
    return [
        make_spec(*ADAMW, f"{DECAY}{value}", f"training.seed={number}", number=number)
        for number, value in enumerate(values)
    ]


@pytest.mark.parametrize(
    ("count", "bad", "width", "raised"), [(12, 5, 8, [8, 4, 2, 1]), (3, 1, 3, [3, 2, 1])]
)
def test_a_raising_trial_of_a_stack_is_found_by_halving(one_raises, count, bad, width, raised):
    good = by_number(train([spec for spec in decays(count, {bad}) if spec.number != bad]))
    stacked = by_number(train(decays(count, {bad}), width=width))
    failed = stacked.pop(bad)
    assert (failed.state, failed.error) == ("failed", "ValueError: singular matrix")
    assert one_raises == raised
    assert_same(stacked, good)
    assert {result.state for result in stacked.values()} == {"complete"}


def test_several_raising_trials_are_all_found(one_raises):
    stacked = by_number(train(decays(9, {0, 3, 8}), width=4))
    failed = {number for number, result in stacked.items() if result.state == "failed"}
    assert (len(stacked), failed) == (9, {0, 3, 8})


def test_all_trials_raise(one_raises):
    stacked = by_number(train(decays(5, range(5)), width=5))
    assert [result.state for result in stacked.values()] == ["failed"] * 5


def test_trials_that_cannot_begin_again_do_not_lose_the_others(one_raises, monkeypatch):
    """After a stack broke, a checkpoint of half of its trials cannot be read any more."""
    original = Runner._start

    def failing(self, place, slot):
        if one_raises and slot.spec.number < 2:
            raise RuntimeError("unreadable")
        original(self, place, slot)

    monkeypatch.setattr(Runner, "_start", failing)
    stacked = by_number(train(decays(4, {3}), width=4))
    states = {number: result.state for number, result in stacked.items()}
    assert states == {0: "failed", 1: "failed", 2: "complete", 3: "failed"}


def test_a_slot_that_becomes_nan_leaves_its_neighbours_as_they_are():
    words = ("optimizer=sgd", "training.eval_every=4", "training.max_steps=12")

    def stack(lr):
        middle = make_spec(*SHORT, *words, f"optimizer.lr={lr}", "training.seed=1", number=1)
        sides = [make_spec(*SHORT, *words, f"training.seed={n}", number=n) for n in (0, 2)]
        # Longer trials behind, so that the stack keeps its width when a slot is emptied.
        after = [make_spec(*SHORT, *words, f"training.seed={n}", number=n) for n in (3, 4)]
        return by_number(train([sides[0], middle, sides[1], *after], width=3))

    sane, broken = stack(0.01), stack(1e30)
    assert broken[1].state == "failed"
    assert "became" in broken[1].error
    for number in (0, 2):
        losses, others = ([row["train_loss"] for row in r[number].history] for r in (broken, sane))
        assert losses == others
        for name, tensor in sane[number].best_state.items():
            assert torch.equal(tensor, broken[number].best_state[name])


# --- monitors that raise --------------------------------------------------------------------------


# Trials 0, 1 and 2 have 12, 20 and 9 steps, and an evaluation every 4: of three that are together
# number 2 ends first, and number 3 takes its place.
@pytest.mark.parametrize(
    ("where", "width", "time", "over"),
    [
        ("started", 1, 1, []),
        ("started", 1, 2, [0]),
        ("started", 3, 3, []),
        ("started", 3, 4, [2]),
        ("stepped", 1, 2, []),  # how long a block of steps is depends on the machine: no later one
        ("stepped", 3, 2, []),
        ("report", 1, 3, []),
        ("report", 1, 4, [0]),
        ("report", 3, 7, []),  # the last one of number 2
        ("report", 3, 8, [2]),
        ("should_stop", 1, 2, []),  # none is asked after its last report
        ("should_stop", 1, 3, [0]),
        ("should_stop", 3, 6, []),
        ("should_stop", 3, 7, [2]),
    ],
)
def test_what_a_monitor_raises_is_no_trial_s_failure(where, width, time, over):
    class Gone(Monitor):
        """Its database is gone from some time on."""

        asked = 0

    def fail(self, *arguments):
        self.asked += 1
        if self.asked >= time:
            raise TimeoutError("no answer")

    setattr(Gone, where, fail)
    ended = []
    with pytest.raises(TimeoutError, match="no answer"):
        ended.extend(train(specs(4), Gone(), width=width))
    states = [(result.spec.number, result.state) for result in ended]
    assert states == [(number, "complete") for number in over]
