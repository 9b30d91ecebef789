"""One trial's own order of batches and its best evaluation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support import make_spec

from sweepstack.data import streams
from sweepstack.engine.program import Program
from sweepstack.engine.slot import Slot, draw_orders

DIGITS = ("data=digits", "data.subset=100", "batch.size=16", "model.hidden=[8]")


def slot(*words):
    spec = make_spec(*DIGITS, "training.max_steps=40", "training.eval_every=10", *words)
    return Slot(Program.of(spec), spec)


def test_each_epoch_has_an_order_of_its_own():
    one = slot()
    steps = one.program.steps_per_epoch
    first, second, third = one.batches(3 * steps).view(3, -1)
    for epoch in (first, second, third):
        assert len(epoch.unique()) == steps * 16  # no sample twice
    assert not torch.equal(first, second)
    assert not torch.equal(second, third)
    assert not torch.equal(first, third)


def test_batches_of_a_later_step_are_those_of_a_slot_that_came_there():
    one, resumed = slot(), slot()
    whole = one.batches(20)
    resumed.step = 9
    assert torch.equal(resumed.batches(11), whole[9:])


def test_orders_of_many_slots_are_drawn_together_and_forgotten(monkeypatch):
    drawn, original = [], streams.permutations

    def permutations(keys, *rest):
        drawn.append(len(keys))
        return original(keys, *rest)

    monkeypatch.setattr(streams, "permutations", permutations)
    slots, alone = [slot(f"training.seed={seed}") for seed in range(3)], slot("training.seed=1")
    steps = slots[0].program.steps_per_epoch
    slots[2].step = steps - 1
    draw_orders(slots, steps)
    assert drawn == [1 + 1 + 2]  # epochs
    assert torch.equal(slots[1].batches(steps), alone.batches(steps))
    slots[2].step += 1
    slots[2].batches(steps)
    assert drawn == [4, 1]
    assert list(slots[2].orders) == [1]


def test_losses_are_added_as_if_one_by_one():
    """However steps are divided into blocks: sums in pairs would differ in the last bits."""
    one, total = slot(), 0.0
    losses = (1 / (3 + torch.arange(30))).tolist()
    for loss in losses:
        total += loss
    for first, last in ((0, 1), (1, 8), (8, 30)):
        assert one.advance(np.cumsum([one.loss_sum, *losses[first:last]]), 0.5) is None
    assert (one.loss_sum, one.loss_steps, one.step, one.seconds) == (total, 30, 30, 1.5)
    said = one.advance(np.cumsum([total, 0.25, -float("inf"), 0.5]), 0.0)
    assert said == "train_loss became -inf at step 32 of 40"
    assert (one.loss_sum, one.loss_steps, one.step) == (total + 0.25, 31, 32)


@pytest.mark.parametrize(
    ("objective", "values", "best"),
    [
        ("val_accuracy", [0.5, 0.7, 0.7, 0.6], 20),
        ("val_loss", [0.5, 0.3, 0.3, 0.4], 20),
    ],
)
def test_of_equal_evaluations_the_first_is_the_best(objective, values, best):
    one, kept = slot(f"objective={objective}"), []
    for number, value in enumerate(values, 1):
        one.step = 10 * number
        kept.append(one.evaluated({"val_loss": 0.1, "val_accuracy": 0.1, objective: value}))
    assert kept == [True, True, False, False]
    assert one.best["step"] == best
    assert one.result("complete", "").best_step == best
