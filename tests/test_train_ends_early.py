"""Trials that end before their last step: they stop, are pruned, are interrupted or fail."""

from __future__ import annotations

import math

import pytest
import torch
from support import make_spec
from train_support import SHORT, one

from iolaus.monitor import Monitor
from iolaus.train import Interrupted, train


def test_patience_stops_early():
    result = one(
        *("optimizer.lr=1e-12", "training.eval_every=1", "training.max_steps=50"),
        *("early_stopping=patience", "early_stopping.patience=3"),
    )
    assert result.state == "complete"
    assert (result.steps, result.best_step) == (4, 1)


def test_early_stopping_says_why():
    result = one(
        *("optimizer.lr=1e-12", "training.eval_every=1", "training.max_steps=50"),
        *("early_stopping=patience", "early_stopping.patience=3"),
    )
    assert result.stopped.startswith("val_accuracy has not improved")
    assert one(*SHORT).stopped is None


def test_a_monitor_sees_every_report_and_can_prune():
    class Pruner(Monitor):
        def __init__(self):
            self.rows = []

        def report(self, spec, row):
            self.rows.append((spec.number, row["step"]))

        def should_stop(self, spec):
            return self.rows[-1][1] == 20

    pruner = Pruner()
    result = one(*SHORT, monitor=pruner, number=7)
    assert result.state == "pruned"
    assert pruner.rows == [(7, 10), (7, 20)]
    assert "test_accuracy" not in result.metrics
    assert result.metrics["val_accuracy"] > 0


def test_an_interrupt_checkpoints_and_the_next_run_ends_with_the_same_numbers(tmp_path):
    class Signal(Monitor):
        steps = 0

        def stepped(self, steps):
            self.steps += steps

        def interrupted(self):
            return 130 if self.steps >= 20 else None

    words = (*SHORT, "regularization.dropout=0.3", "optimizer=rmsprop", "schedule=plateau")
    whole = one(*words)
    with pytest.raises(Interrupted) as caught:
        one(*words, monitor=Signal(), folder=tmp_path)
    assert caught.value.exit_code == 130
    resumed = one(*words, folder=tmp_path)
    assert resumed.history == whole.history
    assert resumed.metrics == whole.metrics
    for name, tensor in whole.best_state.items():
        assert torch.equal(tensor, resumed.best_state[name])


def test_a_signal_during_the_last_evaluation_loses_nothing():
    class Late(Monitor):
        reports = 0

        def report(self, spec, row):
            self.reports += 1

        def interrupted(self):
            return 130 if self.reports == 4 else None

    assert one(*SHORT, monitor=Late()).state == "complete"


@pytest.mark.parametrize("broken", ["optimizer.lr=1e30", "optimizer.lr=1e18"])
def test_a_loss_that_is_not_finite_fails_with_metrics_so_far(broken):
    result = one(
        *("optimizer=sgd", broken, "init=normal", "training.max_steps=20"),
        *("training.eval_every=1", "schedule=constant", "schedule.warmup_steps=0"),
    )
    assert result.state == "failed"
    assert "became" in result.error
    assert "step" in result.error
    assert math.isnan(result.value) or result.history


def test_a_module_that_raises_fails_its_trial_and_the_stream_goes_on(monkeypatch):
    from iolaus.step import Step

    original = Step.update

    def raising(self, stack, *arguments):
        if self.task.name == "regression":
            raise RuntimeError("no more\n memory")
        return original(self, stack, *arguments)

    monkeypatch.setattr(Step, "update", raising)
    specs = [make_spec("data=quadratic", number=1), make_spec(*SHORT, number=2)]
    first, second = train(specs)
    assert (first.spec.number, first.state) == (1, "failed")
    assert first.error == "RuntimeError: no more memory"
    assert second.state == "complete"


def test_a_module_that_raises_in_evaluation_fails_its_trial(monkeypatch):
    from iolaus.step import Step

    def raising(self, *arguments):
        raise RuntimeError("not today")

    monkeypatch.setattr(Step, "measure", raising)
    result = one(*SHORT)
    assert (result.state, result.error) == ("failed", "RuntimeError: not today")


def test_one_raising_trial_of_a_stack_fails_alone(monkeypatch):
    """The stack is taken apart, and every trial trained alone."""
    from iolaus.step import Step

    original = Step.update

    def raising(self, stack, *arguments):
        if (stack.optimizer["weight_decay"] == 0.5).any():
            raise RuntimeError("singular")
        return original(self, stack, *arguments)

    monkeypatch.setattr(Step, "update", raising)
    words = ["optimizer=adamw", *SHORT]
    specs = [
        make_spec(*words, f"regularization.weight_decay={decay}", number=number)
        for number, decay in enumerate((0.1, 0.5, 0.2))
    ]
    states = {result.spec.number: result.state for result in train(specs, width=3)}
    assert states == {0: "complete", 1: "failed", 2: "complete"}
