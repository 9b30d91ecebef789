"""Losses and metrics in training: what is refused, the user's own, several labels and numbers;
contract 2 for each loss."""

from __future__ import annotations

import logging
from dataclasses import asdict, replace
from types import SimpleNamespace

import pytest
import torch
from engine_support import by_number, varied
from sklearn.metrics import cohen_kappa_score
from support import make_spec

from sweepstack import data
from sweepstack.config import reading
from sweepstack.config.errors import InputError
from sweepstack.data.dataset import Dataset, TensorSplit
from sweepstack.engine import program as programs
from sweepstack.engine.program import Program
from sweepstack.engine.train import Interrupted, train
from sweepstack.runs.rerun.restore import _check_target, as_typed
from sweepstack.training.spec import Monitor

SHORT = (
    *("training.max_steps=12", "training.eval_every=4", "batch.size=16", "data.subset=100"),
    *("model.hidden=[8]", "regularization.dropout=0.1"),
)
OWN = "trust=[own_losses]"
BITS = "regularization.mixup=0.3"


def made_up(task, numbers):
    """A dataset of 8 inputs whose targets are `numbers` labels or values, or one (0)."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(160, 8, generator=generator)
    y = x @ torch.randn(8, max(numbers, 1), generator=generator)
    y = y if task == "regression" else (y > 0).float()
    y = y if numbers else y[:, 0]
    parts = [
        TensorSplit(x[part], y[part]) for part in (slice(100), slice(100, 130), slice(130, 160))
    ]
    names = {"multilabel": ("a", "b", "c"), "binary": ("no", "yes")}.get(task, ())
    return Dataset("made_up", *parts, task, names)


@pytest.fixture
def given(monkeypatch):
    """Let `data.load` give a made-up dataset."""

    def give(task, numbers):
        found = made_up(task, numbers)
        monkeypatch.setattr(data, "load", lambda config, *trust: found)
        monkeypatch.setattr(programs, "_programs", {})
        programs._sources.cache_clear()

    yield give
    programs._sources.cache_clear()


CASES = {
    "weighted": (None, 0, ("loss.class_weights=balanced", "regularization.label_smoothing=0.1")),
    "focal": (None, 0, ("loss=focal", "loss.class_weights=balanced", BITS)),
    "custom": (None, 0, ("loss=custom", "loss._target_=own_losses.poly", "+loss.epsilon=2", OWN)),
    "smooth l1": (
        *("regression", 3),
        ("loss=custom", "loss._target_=torch.nn.SmoothL1Loss", "+loss.beta=0.5", BITS),
    ),
    "huber": ("regression", 0, ("loss=huber", "metrics=[r2,rmse]")),
    "numbers": ("regression", 3, ("metrics=[r2,rmse]", BITS)),
    "labels": (
        *("multilabel", 3),
        ("loss.class_weights=balanced", "metrics=[f1_macro,auroc,subset_accuracy]", BITS),
    ),
    "labels, focal": ("multilabel", 3, ("loss=focal", "data.order_seed=3")),
    "bits": ("binary", 0, ("loss.class_weights=[1,3]", "metrics=[f1,auroc]", "data.order_seed=3")),
}


def specs_of(words, folder=None):
    """Trials of unequal lr, dropout, seed, length and number of the loss."""
    base = make_spec(*SHORT, *words).config
    found = []
    for number, (lr, dropout, steps) in enumerate(
        [(0.01, 0.1, 12), (0.03, 0.4, 8), (0.002, 0.2, 16)]
    ):
        name = {"huber": "delta", "focal": "gamma"}.get(base.loss.name)
        place = None if folder is None else folder / str(number)
        loss = {} if name is None else {"loss": {name: 0.5 + number}}
        changes = {"optimizer": {"lr": lr}, "regularization": {"dropout": dropout}, **loss}
        training = {"seed": number, "max_steps": steps}
        found.append(varied(base, number, place, training=training, **changes))
    return found


class Signal(Monitor):
    def __init__(self):
        self.steps = 0

    def stepped(self, steps, *specs):
        self.steps += steps

    def interrupted(self):
        return 130 if self.steps >= 4 else None


@pytest.mark.parametrize("case", CASES)
def test_a_trial_is_itself(case, given, tmp_path):
    """Stacked with others, alone, and resumed: the same numbers of every metric."""
    task, numbers, words = CASES[case]
    if task is not None:
        given(task, numbers)
    specs = specs_of(words)
    assert len({spec.static for spec in specs}) == 1
    alone = by_number(result for spec in specs for result in train([spec]))
    stacked = by_number(train(specs, width=2))
    kept = specs_of(words, tmp_path)
    with pytest.raises(Interrupted):
        list(train(kept, Signal(), width=3))
    resumed = by_number(train(kept, width=2))
    for number, result in alone.items():
        assert result.state == "complete", result.error
        assert result.metrics["val_loss"] != alone[(number + 1) % 3].metrics["val_loss"]
        for other in (stacked[number], resumed[number]):
            for row, reference in zip(other.history, result.history, strict=True):
                assert row == pytest.approx(reference, rel=1e-3, abs=1e-6)


def test_trains_what_it_says(given):
    """Three numbers at once by gradient descent, against a plain loop of torch's."""
    given("regression", 3)
    words = ("optimizer=sgd", "optimizer.lr=0.1", "model.hidden=[]", "batch.size=100")
    words += ("training.max_steps=3", "training.eval_every=1", "loss=huber", "loss.delta=0.7")
    spec = make_spec(*words)
    program = Program.of(spec)
    (result,) = train([spec])
    weight, bias = (t.clone().requires_grad_() for t in program.initial(spec).values())
    split = program.data.train
    for row in result.history:
        outputs = split.x @ weight.T + bias
        loss = torch.nn.functional.huber_loss(outputs, split.y, delta=0.7)
        assert row["train_loss"] == pytest.approx(loss.item(), rel=1e-5)
        grads = torch.autograd.grad(loss, [weight, bias])
        with torch.no_grad():
            weight -= 0.1 * grads[0]
            bias -= 0.1 * grads[1]
        held = program.data.val
        error = (held.x @ weight.T + bias - held.y).double()
        assert row["val_mse"] == pytest.approx((error**2).mean().item(), rel=1e-4)


@pytest.mark.parametrize("mixup", ["0", "0.4"])
def test_train_accuracy_is_that_of_the_steps(mixup):
    """One batch is the whole training set and nothing moves: it is the accuracy of the start."""
    words = ("batch.size=64", "data.subset=64", "optimizer=sgd", "optimizer.lr=1e-12")
    spec = make_spec(
        *words, "training.max_steps=4", "training.eval_every=2", f"regularization.mixup={mixup}"
    )
    (result,) = train([spec])
    first, second = (row["train_accuracy"] for row in result.history)
    if mixup != "0":
        assert 0 < first < 1
        return
    program = Program.of(spec)
    state, split = program.initial(spec), program.data.train
    outputs = torch.func.functional_call(program.module, state, (split.x,))
    expected = float((outputs.argmax(-1) == split.y).double().mean())
    assert first == second == pytest.approx(expected)
    assert result.metrics["train_accuracy"] == first


def test_a_metric_of_ones_own_is_an_objective_and_decides():
    words = ("metrics=[own_losses.kappa:maximize,auroc]", "objective=val_kappa", OWN)
    (result,) = train([make_spec(*SHORT, *words)])
    program = Program.of(result.spec)
    assert result.value == max(row["val_kappa"] for row in result.history)
    outputs = torch.func.functional_call(
        program.module.eval(), dict(result.best_state), (program.data.test.x,)
    )
    theirs = cohen_kappa_score(program.data.test.y, outputs.argmax(1))
    assert result.metrics["test_kappa"] == pytest.approx(theirs, abs=1e-6)


def test_a_metric_that_writes_into_its_arguments_does_not_change_the_data():
    """Validation targets were 0 from the first check on, in all trials of the process."""
    spec = make_spec(*SHORT, "metrics=[own_losses.writes:maximize]", OWN)
    assert Program.of(spec).data.val.y.unique().tolist() == list(range(10))


def test_what_cannot_be_stacked_trains_alone_and_says_so(caplog):
    words = ("loss=custom", "loss._target_=own_losses.looks", OWN)
    specs = specs_of(words)
    with caplog.at_level(logging.WARNING):
        found = by_number(train(specs, width=3))
    assert [r.message for r in caplog.records if "one by one" in r.message][1:] == []
    poly = by_number(train(specs_of(("loss=custom", "loss._target_=own_losses.poly", OWN))))
    for number, result in found.items():
        assert result.metrics == pytest.approx(poly[number].metrics, rel=1e-4)


REFUSED = {
    "loss=mse": "loss must be one of auto, cross_entropy, nll, focal, custom for multiclass",
    "loss=custom": "loss._target_ must be given",
    "loss=nll": "loss=nll needs log-probabilities",
    "loss=focal loss.gamma=-1": "loss.gamma must be >= 0, got -1",
    "loss.class_weights=[1,2]": "loss.class_weights must have a number for each of the 10 classes",
    "loss.class_weights=balance": "loss.class_weights must be",
    "loss=focal regularization.label_smoothing=0.1": (
        "regularization.label_smoothing must be 0 with loss=focal, got 0.1"
    ),
    "loss=custom loss._target_=own_losses.poly": "loss._target_ must name a layer of torch.nn",
    "loss=custom loss._target_=torch.nn.Linear +loss.in_features=2 +loss.out_features=2": (
        "loss._target_ must name a loss of torch.nn"
    ),
    "loss=custom loss._target_=torch.nn.HuberLoss +loss.bet=2": "unknown key 'loss.bet'",
    "loss=custom loss._target_=torch.nn.HuberLoss": "does not run on outputs of shape",
    f"loss=custom loss._target_=own_losses.mean {OWN}": "must return one loss per sample",
    f"loss=custom loss._target_=own_losses.by_chance {OWN}": "without chance",
    f"loss=custom loss._target_=own_losses.caps {OWN}": "must not change the outputs or the",
    f"loss=custom loss._target_=own_losses.shifts {OWN}": "must not change the outputs or the",
    f"loss=custom loss._target_=own_losses.number {OWN}": "must return a tensor, (B,), got float",
    f"loss=custom loss._target_=own_losses.waves {OWN}": "real losses, got torch.complex64",
    f"loss=custom loss._target_=own_losses.pairs {OWN}": "must give each sample its own loss",
    f"loss=custom loss._target_=own_losses.relative {OWN}": "must give each sample its own loss",
    f"loss=custom loss._target_=own_losses.Counts {OWN}": "must not change itself when called",
    "loss=custom loss._target_=torch.nn.CrossEntropyLoss +loss.weight=[a]": (
        "cannot be built: ValueError: too many dimensions"
    ),
    f"loss=custom loss._target_=own_losses.constant {OWN}": "must be differentiable",
    f"loss=custom loss._target_=own_losses.Learns {OWN}": "must have no parameters",
    f"loss=custom loss._target_=own_losses.pol {OWN}": "did you mean 'poly'?",
    "metrics=[f1]": "metrics must be among",
    "metrics=[own_losses.kappa:maximize]": "metrics must name",
    "metrics=[torch.nn.L1Loss:minimize]": "metrics must name something defined in a package",
    f"metrics=[own_losses.fails:maximize] {OWN}": "no such thing",
    f"metrics=[own_losses.nothing:maximize] {OWN}": "must be a number, got nan on validation data",
    f"metrics=[own_losses.vector:maximize] {OWN}": (
        "must return one number, got Tensor of shape (216,)"
    ),
    f"metrics=[own_losses.guesses:maximize] {OWN}": "must be a function of its arguments",
    "objective=val_f1_macro": "metrics=[f1_macro] measures it",
    "objective=val_acuracy": "did you mean 'val_accuracy'?",
}


@pytest.mark.parametrize("words", REFUSED)
def test_what_does_not_fit_is_refused_in_one_line(words):
    with pytest.raises(InputError) as refused:
        Program.of(make_spec(*words.split()))
    (line,) = refused.value.mistakes
    assert REFUSED[words] in line


def test_weights_of_a_torch_loss_are_a_list():
    words = ("loss=custom", "loss._target_=torch.nn.CrossEntropyLoss", "+loss.weight=[2,{}]")
    task = Program.of(make_spec(*words[:2], words[2].format("1," * 8 + "3"))).task
    outputs, targets = torch.randn(30, 10), torch.arange(30) % 10
    weight = torch.tensor([2.0, *[1] * 8, 3])
    theirs = torch.nn.functional.cross_entropy(outputs, targets, weight, reduction="none")
    assert torch.allclose(task.losses(outputs, targets), theirs)


def test_a_frozen_teacher_is_a_loss_that_is_drawn_once_and_stays(monkeypatch):
    words = ("loss=custom", "loss._target_=own_losses.Teacher", OWN)
    (first,) = train([make_spec(*SHORT, *words)])
    monkeypatch.setattr(programs, "_programs", {})
    (second,) = train([make_spec(*SHORT, *words)])
    assert first.state == "complete", first.error
    assert first.history == second.history


def test_a_metric_that_fails_late_fails_its_own_trial(monkeypatch):
    """It would have ended the process; the error says which metric it was."""
    words = ("metrics=[own_losses.leaves:maximize]", OWN)
    base = make_spec(*SHORT, *words).config
    specs = [varied(base, n, optimizer={"lr": lr}) for n, lr in enumerate((0.01, 3.0, 0.02))]
    found = by_number(train(specs, width=3))
    assert [found[n].state for n in range(3)] == ["complete", "failed", "complete"]
    assert "metrics: 'own_losses.leaves' does not run" in str(found[1].error)
    assert "SystemExit: 3" in str(found[1].error)


def test_a_metric_of_ones_own_may_be_called_noisy():
    words = ("metrics=[own_losses.noisy_right:maximize]", "objective=val_noisy_right", OWN)
    assert Program.of(make_spec(*words)).direction == "maximize"


def test_auroc_needs_two_classes(given, monkeypatch):
    given("binary", 0)
    found = data.load(None)
    only = replace(found, val=TensorSplit(found.val.x, torch.ones(30)))
    monkeypatch.setattr(data, "load", lambda config, *trust: only)
    with pytest.raises(InputError, match="which needs samples of two classes or more"):
        Program.of(make_spec("metrics=[auroc]"))


@pytest.mark.parametrize(
    "words",
    [("loss=custom", "loss._target_=own_losses.poly"), ("metrics=[own_losses.kappa:maximize]",)],
)
def test_a_study_is_not_trusted_to_name_a_loss_or_a_metric(words):
    config, trial = make_spec(*words, OWN).config, SimpleNamespace(number=1)
    with pytest.raises(InputError, match="a study is not trusted; if you trust it, add --trust"):
        _check_target(trial, config, [])
    _check_target(trial, config, ["own_losses"])
    plain = as_typed(asdict(config))
    assert reading.read_plain(plain) == config
