"""Trials that end before their last step: they stop, are pruned, are interrupted or fail."""

from __future__ import annotations

import math
import re

import pytest
import torch
from engine_support import one
from support import make_spec

from sweepstack.engine.train import Interrupted, train
from sweepstack.training.spec import Monitor

SHORT = ("training.max_steps=40", "training.eval_every=10", "batch.size=32")


def test_patience_stops_early_and_says_why():
    result = one(
        *("optimizer.lr=1e-12", "training.eval_every=1", "training.max_steps=50"),
        *("early_stopping=patience", "early_stopping.patience=3"),
    )
    assert result.state == "complete"
    assert (result.steps, result.best_step) == (4, 1)
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

        def stepped(self, steps, specs):
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


@pytest.mark.parametrize(
    ("lr", "eval_every", "broken", "step"),
    [(1e30, 1, "val_loss", 1), (1e30, 4, "train_loss", 2), (1e10, 1, "val_loss", 2)],
)
def test_a_loss_that_is_not_finite_fails_its_trial(lr, eval_every, broken, step):
    result = one(
        *("optimizer=sgd", f"optimizer.lr={lr}", "init=normal", "training.max_steps=20"),
        *(f"training.eval_every={eval_every}", "schedule=constant", "schedule.warmup_steps=0"),
    )
    assert result.state == "failed"
    assert re.fullmatch(rf"{broken} became (nan|inf) at step {step} of 20", result.error)
    assert [row["step"] for row in result.history] == list(range(eval_every, step, eval_every))
    assert math.isnan(result.value) == (not result.history)


def test_a_trial_whose_weights_break_keeps_the_metrics_and_the_state_so_far(monkeypatch):
    from sweepstack.engine.step import Step

    words = ("schedule=constant", "training.eval_every=2", "batch.size=32")
    whole = one(*words, "training.max_steps=4")
    original, steps = Step.update, iter(range(1, 100))

    def breaking(self, stack, *arguments):
        original(self, stack, *arguments)
        if next(steps) == 5:
            for view in stack.params.views.values():
                view.fill_(math.nan)

    monkeypatch.setattr(Step, "update", breaking)
    result = one(*words, "training.max_steps=20")
    assert (result.state, result.error) == ("failed", "train_loss became nan at step 6 of 20")
    assert [row["step"] for row in result.history] == [2, 4]
    assert result.history == whole.history
    of_test = {"test_loss", "test_accuracy"}
    assert result.metrics == {k: v for k, v in whole.metrics.items() if k not in of_test}
    assert (result.best_step, result.value) == (whole.best_step, whole.value)
    assert result.best_state.keys() == whole.best_state.keys()
    for name, tensor in whole.best_state.items():
        assert torch.equal(tensor, result.best_state[name])


def test_a_module_that_raises_fails_its_trial_and_the_stream_goes_on(monkeypatch):
    from sweepstack.engine.step import Step

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
    from sweepstack.engine.step import Step

    def raising(self, *arguments):
        raise RuntimeError("not today")

    monkeypatch.setattr(Step, "measure", raising)
    result = one(*SHORT)
    assert (result.state, result.error) == ("failed", "RuntimeError: not today")
