"""The training function as its callers see it: results, stopping, pruning, failures, streams."""

from __future__ import annotations

import math

import pytest
import torch
from support import SHARED_DATA, make_spec, needs_mnist, needs_pictures

from iolaus.errors import InputError
from iolaus.monitor import Monitor
from iolaus.program import Program
from iolaus.train import Interrupted, train

SHORT = ("training.max_steps=40", "training.eval_every=10", "batch.size=32")


def one(*overrides, monitor=None, **settings):
    (result,) = train([make_spec(*overrides, **settings)], monitor)
    return result


def test_digits_with_defaults_ends_above_95_percent():
    result = one()
    assert result.state == "complete"
    assert result.metrics["val_accuracy"] > 0.95
    assert result.metrics["test_accuracy"] > 0.92
    assert result.value == result.metrics["val_accuracy"]
    assert result.steps == 30 * (len(Program.of(result.spec).data.train) // 64)


@needs_mnist
def test_mnist_in_200_steps():
    words = [f"data.root={SHARED_DATA}", "optimizer.lr=0.01", "training.max_steps=200"]
    specs = [make_spec("data=mnist", *words, f"training.seed={seed}") for seed in range(5)]
    accuracies = [result.metrics["val_accuracy"] for result in train(specs)]
    assert len(Program.of(specs[0]).data.val) == 5000
    assert sum(accuracies) / 5 >= 0.92
    chance = one("data=mnist", "init=zeros", *words)
    assert chance.metrics["val_accuracy"] < 0.13


@needs_pictures
@pytest.mark.slow
def test_convnet_learns_a_folder_of_pictures():
    result = one(
        *("data=image_folder", f"data.root={SHARED_DATA / 'cifar10_folder'}"),
        *("data.val_folder=test", "model=convnet", "training.max_epochs=5"),
    )
    assert result.state == "complete", result.error
    assert result.metrics["val_accuracy"] > 0.3  # chance is 0.1


def test_regression_and_its_metrics():
    result = one("data=quadratic", "training.max_epochs=40", "optimizer.lr=0.01")
    assert result.objective == "val_mse"
    assert result.metrics["val_mse"] == result.metrics["val_loss"]
    assert result.metrics["val_mse"] < 0.02  # the targets' variance is about 0.09
    assert {"val_mae", "test_mse", "test_mae", "train_loss"} <= result.metrics.keys()


def test_history_has_a_row_per_evaluation_and_the_best_is_reported():
    result = one(*SHORT)
    assert [row["step"] for row in result.history] == [10, 20, 30, 40]
    best = max(result.history, key=lambda row: row["val_accuracy"])
    assert result.best_step == best["step"]
    assert result.metrics["val_accuracy"] == best["val_accuracy"]


def test_metrics_are_means_over_samples_with_a_short_last_batch(monkeypatch):
    whole = one(*SHORT)
    monkeypatch.setattr("iolaus.step.EVALUATION_CHUNK", 7)
    pieces = one(*SHORT)
    for name in ("val_loss", "val_accuracy", "test_loss"):
        assert pieces.metrics[name] == pytest.approx(whole.metrics[name], rel=1e-6)


def test_best_state_is_the_state_of_the_best_step():
    words = ("optimizer=sgd", "optimizer.lr=0.5", "training.eval_every=10", "batch.size=32")
    result = one(*words, "training.max_steps=60")
    again = one(*words, f"training.max_steps={result.best_step}")
    for name, tensor in result.best_state.items():
        assert torch.equal(tensor, again.best_state[name])


def test_test_data_is_measured_once_at_the_best_state(monkeypatch):
    from iolaus import engine as module

    asked = []
    original = module.Engine._measure

    def spy(self, split, places, *, best):
        asked.append((split, best))
        return original(self, split, places, best=best)

    monkeypatch.setattr(module.Engine, "_measure", spy)
    one(*SHORT)
    assert asked == [("val", False)] * 4 + [("test", True)]


def test_patience_stops_early():
    result = one(
        *("optimizer.lr=1e-12", "training.eval_every=1", "training.max_steps=50"),
        *("early_stopping=patience", "early_stopping.patience=3"),
    )
    assert result.state == "complete"
    assert (result.steps, result.best_step) == (4, 1)


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


def test_a_spec_that_does_not_fit_its_data_fails_alone():
    bad, good = make_spec("objective=val_mse"), make_spec(*SHORT)
    first, second = train([bad, good])
    assert first.state == "failed"
    assert "objective must be one of val_loss, val_accuracy, train_loss" in first.error
    assert second.state == "complete"


def test_specs_are_pulled_lazily():
    pulled = []

    def stream():
        for seed in range(3):
            pulled.append(seed)
            yield make_spec(*SHORT, f"training.seed={seed}")

    results = train(stream())
    next(results)
    assert pulled == [0]
    assert [result.spec.config.training.seed for result in results] == [1, 2]


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


def test_deterministic_runs_are_bit_equal():
    words = (*SHORT, "training.deterministic=true", "regularization.dropout=0.2", "model=resnet")
    first, second = one(*words), one(*words)
    assert first.history == second.history
    assert not torch.are_deterministic_algorithms_enabled()


def test_another_seed_gives_other_numbers():
    assert one(*SHORT).history != one(*SHORT, "training.seed=1").history


def test_an_order_seed_fixes_the_batches_of_all_seeds():
    from iolaus.slot import Slot

    def batches(*words):
        spec = make_spec(*SHORT, *words)
        slot = Slot(Program.of(spec), spec)
        return slot.batches(50)

    assert not torch.equal(batches("training.seed=1"), batches("training.seed=2"))
    fixed = ("data.order_seed=5",)
    assert torch.equal(batches("training.seed=1", *fixed), batches("training.seed=2", *fixed))
    epoch = batches()[: len(Program.of(make_spec(*SHORT)).data.train) // 32]
    assert len(epoch.unique()) == epoch.numel()


def test_streamed_data_gives_the_same_numbers_as_resident():
    resident = one(*SHORT, "data.placement=device")
    streamed = one(*SHORT, "data.placement=stream", "data.workers=0")
    assert streamed.history == resident.history


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["batch.size=5000"],
            "batch.size must be <= the 1222 training samples of digits, got 5000",
        ),
        (
            ["objective=val_acuracy"],
            "objective must be one of val_loss, val_accuracy, train_loss for multiclass on digits, "
            "got 'val_acuracy'; did you mean 'val_accuracy'?",
        ),
        (
            ["data=quadratic", "regularization.cutout=2"],
            "regularization.cutout needs pictures, quadratic has none",
        ),
        (
            ["data=quadratic", "regularization.label_smoothing=0.1"],
            "regularization.label_smoothing must be 0 for regression, got 0.1",
        ),
        (
            ["training.device=gpu"],
            "training.device must be auto, cpu, cuda or cuda:N, got 'gpu'",
        ),
        (
            ["model=custom", "+model.x=1", "model._target_=os.system"],
            "model._target_ must name something in",
        ),
    ],
)
def test_what_does_not_fit_the_data_is_said_before_training(words, message):
    with pytest.raises(InputError) as caught:
        Program.of(make_spec(*words))
    assert len(caught.value.mistakes) == 1
    assert caught.value.mistakes[0].startswith(message)


def test_several_misfits_come_together():
    with pytest.raises(InputError) as caught:
        Program.of(make_spec("batch.size=5000", "objective=x", "model=convnet", "model.depth=9"))
    assert len(caught.value.mistakes) == 3


def test_a_run_from_python():
    import iolaus
    from iolaus.errors import TrainingFailed

    result = iolaus.run("training.device=cpu", *SHORT)
    assert result.history == one(*SHORT).history
    with pytest.raises(InputError, match=r"optimizer\.lr must be > 0"):
        iolaus.run("optimizer.lr=-1")
    with pytest.raises(InputError, match=r"batch\.size must be <="):
        iolaus.run("batch.size=5000")
    with pytest.raises(TrainingFailed, match="became"):
        iolaus.run("data=quadratic", "optimizer=sgd", "optimizer.lr=1e4", "training.max_steps=50")


def test_a_signal_during_the_last_evaluation_loses_nothing():
    class Late(Monitor):
        reports = 0

        def report(self, spec, row):
            self.reports += 1

        def interrupted(self):
            return 130 if self.reports == 4 else None

    assert one(*SHORT, monitor=Late()).state == "complete"


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


def test_early_stopping_says_why():
    result = one(
        *("optimizer.lr=1e-12", "training.eval_every=1", "training.max_steps=50"),
        *("early_stopping=patience", "early_stopping.patience=3"),
    )
    assert result.stopped.startswith("val_accuracy has not improved")
    assert one(*SHORT).stopped is None


def test_batch_norm_on_one_sample_is_said_before_training():
    with pytest.raises(InputError, match="more than one value per channel"):
        Program.of(make_spec("batch.size=1", "regularization.batch_norm=true"))
