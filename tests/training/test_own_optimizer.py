"""optimizer=custom against a plain loop over the same batches; resumed, pruned, refused."""

from __future__ import annotations

import copy
import json
import logging
from dataclasses import replace

import pytest
import torch
from engine_support import by_number, varied
from support import make_spec
from torch import nn

from sweepstack.config import trust
from sweepstack.config.errors import InputError
from sweepstack.engine.program import Program
from sweepstack.engine.slot import Slot
from sweepstack.engine.train import Interrupted, train
from sweepstack.runs.progress import Watch
from sweepstack.training import own
from sweepstack.training.spec import Monitor

SHORT = ("data=quadratic", "model.hidden=[6]", "training.max_steps=20", "training.eval_every=5")
OPTIMIZERS = {
    "Adadelta": ("+optimizer.rho=0.8", "optimizer.lr=1.0"),
    "Adamax": ("+optimizer.betas=[0.5,0.9]", "regularization.weight_decay=0.1"),
    "Rprop": ("batch.size=64",),
    "SGD": (
        "+optimizer.momentum=0.9",
        "+optimizer.dampening=0.1",
        "schedule=exponential",
        "schedule.gamma=0.9",
    ),
    "LBFGS": ("+optimizer.max_iter=3", "optimizer.lr=0.1"),
    "Adam": ("+optimizer.amsgrad=true", "training.ema_decay=0.5"),
}


def spec(name, *words, **settings):
    target = f"optimizer._target_={name if '.' in name else f'torch.optim.{name}'}"
    return make_spec(*SHORT, "optimizer=custom", target, *words, **settings)


def plain_loop(trial):
    """The last validation loss, by torch alone."""
    program = Program.of(trial)
    module, slot = copy.deepcopy(program.module), Slot(program, trial)
    module.load_state_dict(program.initial(trial))
    given = {"lr": trial.config.optimizer.lr, **json.loads(trial.config.optimizer.arguments)}
    if trial.config.regularization.weight_decay:
        given["weight_decay"] = trial.config.regularization.weight_decay
    make = getattr(torch.optim, trial.config.optimizer.target.rpartition(".")[2])
    optimizer, losses = make(module.parameters(), **given), nn.MSELoss()
    averaged = torch.optim.swa_utils.AveragedModel(module, avg_fn=lambda old, new, _: old)
    for step, (x, y) in enumerate(program.sources["train"].batches(slot.batches(20)), 1):
        for group in optimizer.param_groups:
            group["lr"] = slot.base_lr * slot.schedule.factor(step - 1)

        def closure(x=x, y=y):
            optimizer.zero_grad()
            loss = losses(module(x).squeeze(-1), y)
            loss.backward()
            return loss

        optimizer.step(closure)
        decay = min(trial.config.training.ema_decay, (1 + step) / (10 + step))
        for old, new in zip(averaged.module.parameters(), module.parameters(), strict=True):
            old.data.lerp_(new.data, 1 - decay)
    (x, y), *more = program.sources["val"].chunks(1000)
    assert not more
    return losses(averaged.module(x).squeeze(-1), y).item()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_torch_optimizer_trains_as_in_a_plain_loop(name):
    trial = spec(name, *OPTIMIZERS[name])
    (result,) = train([trial])
    assert result.state == "complete", result.error
    assert result.history[-1]["val_loss"] == pytest.approx(plain_loop(trial), rel=1e-4)


class PruneOne(Monitor):
    """Prunes trial 1 at step 10; with `at`, interrupts after so many steps."""

    def __init__(self, at=None):
        self.steps, self.at = 0, at

    def stepped(self, steps, *_):
        self.steps += steps

    def should_stop(self, spec):
        return spec.number == 1

    def interrupted(self):
        return 130 if self.at and self.steps >= self.at else None


def test_its_trials_train_one_by_one_and_say_so_once(caplog):
    own.say_one_by_one.cache_clear()
    base = spec("Adadelta").config
    trials = [
        varied(base, n, optimizer={"lr": 0.5 / (n + 1)}, training={"seed": n}) for n in range(3)
    ]
    with caplog.at_level(logging.INFO):
        stacked = by_number(train(trials, PruneOne(), width=3))
    assert [r.getMessage() for r in caplog.records if "one by one" in r.getMessage()] == [
        "optimizer torch.optim.Adadelta: its trials train one by one"
    ]
    assert [stacked[n].state for n in range(3)] == ["complete", "pruned", "complete"]
    for trial in trials:
        (alone,) = train([trial], PruneOne())
        assert stacked[trial.number].history == alone.history


@pytest.mark.parametrize("name", ["Adadelta", "LBFGS"])
def test_resumed_is_unbroken(name, tmp_path):
    trial = spec(name, *OPTIMIZERS[name])
    (unbroken,) = train([trial])
    kept = replace(trial, folder=tmp_path)
    with pytest.raises(Interrupted):
        list(train([kept], PruneOne(at=10)))
    steps = []

    class Started(Monitor):
        def started(self, spec, step, total_steps, history):
            steps.append(step)

    (resumed,) = train([kept], Started())
    assert 10 <= steps[0] < 20
    assert resumed.history == unbroken.history


def test_a_trusted_package_brings_its_own():
    trial = spec("frozen_support.SignSgd", "trust=[frozen_support]")
    (result,) = train([trial])
    assert result.state == "complete", result.error
    assert result.history[-1]["val_loss"] < result.history[0]["val_loss"]


TABLE = "optimizer._target_ must name an optimizer of torch.optim or something defined in a package"
WRONG = {
    "os.system": (("os.system",), TABLE),
    "without trust": (("frozen_support.SignSgd",), TABLE),
    "sparse": (("SparseAdam",), TABLE),
    "a layer": (("torch.nn.Linear",), TABLE),
    "typo": (("Adadlta",), "did you mean 'torch.optim.Adadelta'?"),
    "not there": (
        ("frozen_support.Sign", "trust=[frozen_support]"),
        "optimizer._target_ 'frozen_support.Sign': frozen_support has no 'Sign'",
    ),
    "a module": (
        ("frozen_support.Net", "trust=[frozen_support]"),
        "optimizer._target_ must name a subclass of torch.optim.Optimizer",
    ),
    "argument": (
        ("Adadelta", "+optimizer.rhoo=0.9"),
        "unknown key 'optimizer.rhoo' of 'torch.optim.Adadelta'; did you mean 'rho'?",
    ),
    "parameters": (("Adadelta", "+optimizer.params=[1]"), "unknown key 'optimizer.params'"),
    "value": (("Adadelta", "+optimizer.rho=-1"), "cannot be built: ValueError: Invalid rho"),
    "type": (("Adadelta", "+optimizer.rho=many"), "cannot be built: TypeError"),
    "decay": (
        ("Adadelta", "+optimizer.weight_decay=0.1"),
        "optimizer.weight_decay must be given as regularization.weight_decay",
    ),
    "no decay": (
        ("Rprop", "regularization.weight_decay=0.1"),
        "regularization.weight_decay must be 0 with 'torch.optim.Rprop', which has none, got 0.1",
    ),
    "shapes": (("Muon",), "'torch.optim.Muon' cannot be built: ValueError: Muon only supports 2D"),
    "nested": (
        ("Adadelta", "+optimizer.rho._target_=os.system"),
        "must name a layer of torch.nn",
    ),
    "rebinds": (
        ("frozen_support.SignSgd", "+optimizer.rebinds=true", "trust=[frozen_support]"),
        "optimizer._target_ must change its parameters in place",
    ),
}


@pytest.mark.parametrize(("words", "said"), WRONG.values(), ids=WRONG)
def test_what_is_refused(words, said):
    with pytest.raises(InputError) as caught:
        Program(spec(*words))
    (line,) = caught.value.mistakes
    assert said in line


def test_the_target_must_be_given():
    with pytest.raises(InputError, match=r"for example optimizer\._target_=torch\.optim\.Adadelta"):
        make_spec("optimizer=custom")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ("optimizer=custom", "optimizer._target_=torch.optim.Adadelta", "optimizer.rho=0.9"),
            "unknown key 'optimizer.rho'; an argument of optimizer._target_ is written "
            "'+optimizer.rho=0.9'",
        ),
        (
            ("optimizer._target_=torch.optim.Adadelta",),
            "unknown key 'optimizer._target_': optimizer=adam has none, optimizer=custom have",
        ),
    ],
)
def test_how_a_torch_optimizer_is_asked_for(words, said):
    with pytest.raises(InputError) as caught:
        make_spec(*words)
    assert caught.value.mistakes == [said]


def test_a_name_without_its_package_is_explained():
    with pytest.raises(InputError, match=r"did you mean 'torch\.optim\.Adadelta'"):
        trust.check_target("Adadelta", (), own.KEY)


def test_a_run_names_what_stands_behind_custom(capsys):
    asked = make_spec(
        *("model=torchvision", "model.arch=resnet18"),
        *("optimizer=custom", "optimizer._target_=torch.optim.Adadelta"),
    )
    with Watch() as watch:
        watch.started(asked, 0, 8, [])
    said = capsys.readouterr().out
    assert "training resnet18 on digits, torch.optim.Adadelta, 8 steps, seed 0" in said
