"""A trial that does not fit its data is told what does not, before it trains."""

from __future__ import annotations

import pytest
from support import make_spec

from sweepstack.config.errors import InputError, NoMemory
from sweepstack.engine.program import Program
from sweepstack.engine.train import train
from sweepstack.engine.width import Widths

SHORT = ("training.max_steps=40", "training.eval_every=10", "batch.size=32")


def test_a_spec_that_does_not_fit_its_data_fails_alone():
    bad, good = make_spec("objective=val_mse"), make_spec(*SHORT)
    first, second = train([bad, good])
    assert first.state == "failed"
    assert "objective must be one of val_loss, val_accuracy, train_loss" in first.error
    assert second.state == "complete"


def test_a_later_trial_of_a_stack_that_watches_no_metric_is_told_so():
    """It failed at its first evaluation, with a KeyError."""
    words = ("schedule=plateau", "schedule.metric=val_acuracy")
    good, bad = make_spec(*SHORT), make_spec(*SHORT, *words, number=1)
    assert good.static == bad.static
    found = {each.spec.number: each for each in train([good, bad], width=2)}
    assert found[1].error.startswith("schedule.metric must be one of val_loss, val_accuracy, ")
    assert "did you mean 'val_accuracy'?" in found[1].error
    assert (found[0].state, found[1].steps) == ("complete", 0)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["batch.size=5000"],
            "batch.size must be <= the 1222 training samples of digits, got 5000",
        ),
        (
            ["objective=val_acuracy"],
            "objective must be one of val_loss, val_accuracy, train_loss, train_accuracy for "
            "multiclass on digits, got 'val_acuracy'; did you mean 'val_accuracy'?",
        ),
        (
            ["data=quadratic", "regularization.cutout=2"],
            "regularization.cutout needs pictures, quadratic has none",
        ),
        (
            ["regularization.cutout=9"],
            "regularization.cutout must be <= 8, the shorter side of the pictures of digits, got 9",
        ),
        (
            ["regularization.crop_padding=8"],
            "regularization.crop_padding must be < 8, the shorter side of the pictures of digits",
        ),
        (
            ["data=quadratic", "regularization.rand_augment=9"],
            "regularization.rand_augment needs pictures, quadratic has none",
        ),
        (
            ["regularization.hue=0.1"],
            "regularization.hue needs pictures of 3 channels, those of digits have 1",
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
            "model._target_ must name a layer of torch.nn",
        ),
    ],
)
def test_what_does_not_fit_the_data_is_said_before_training(words, message):
    with pytest.raises(InputError) as caught:
        Program.of(make_spec(*words))
    assert len(caught.value.mistakes) == 1
    assert caught.value.mistakes[0].startswith(message)


@pytest.mark.parametrize(
    "words",
    [
        ["model.hidden=[100000,100000]"],
        ["model=convnet", "model.width=60000"],
        ["model=resnet", "model.width=60000"],
        ["model.hidden=[16777216]", "batch.size=1024"],
    ],
)
def test_a_model_that_no_memory_holds_is_refused_with_its_size(words, monkeypatch):
    monkeypatch.setattr("sweepstack.data.batches.free_memory", lambda device: 8 * 2**30)
    with pytest.raises(NoMemory, match=r"needs about [\d,.]+ GiB to train with adam, 8\.0 GiB are"):
        Program.of(make_spec(*words))


def test_a_stack_has_no_more_slots_than_memory_holds(monkeypatch):
    spec = make_spec("model.hidden=[77]")
    need = 4 * (7 * (64 * 77 + 77 + 770 + 10) + 64 * (77 + 10) + 64 * 64)
    monkeypatch.setattr("sweepstack.data.batches.free_memory", lambda device: 5 * need)
    assert Widths(1000).of(Program.of(spec)) == 4


def test_several_misfits_come_together():
    with pytest.raises(InputError) as caught:
        Program.of(make_spec("batch.size=5000", "objective=x", "model=convnet", "model.depth=9"))
    assert len(caught.value.mistakes) == 3


def test_batch_norm_on_one_sample_is_said_before_training():
    with pytest.raises(InputError, match="more than one value per channel"):
        Program.of(make_spec("batch.size=1", "regularization.batch_norm=true"))
