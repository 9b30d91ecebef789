"""One trial's own order of batches and its best evaluation."""

from __future__ import annotations

import pytest
import torch
from support import make_spec

from sweepstack.engine.program import Program
from sweepstack.engine.runner import Slot

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
