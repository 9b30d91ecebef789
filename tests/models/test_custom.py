"""A user's own module: found, given its arguments, checked, and run per trial."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import warnings

import pytest
import torch
from support import make_spec
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from sweepstack import models
from sweepstack.config import reading
from sweepstack.config.errors import InputError
from sweepstack.engine.program import Program
from sweepstack.models.layers import Dropout, batch_norms, dropouts
from sweepstack.runs.rerun.restore import as_typed

HERE = __name__


class Net(nn.Module):
    def __init__(self, input_shape, outputs, width=4, sizes=()):
        super().__init__()
        self.sizes, self.given = sizes, (input_shape, outputs)
        self.layers = nn.Sequential(
            nn.Flatten(),
            nn.Linear(input_shape[0], width),
            nn.BatchNorm1d(width),
            nn.Dropout(0.5),
            nn.Linear(width, outputs),
        )
        self.scale = nn.Parameter(torch.randn(outputs))

    def forward(self, x):
        return self.layers(x) * self.scale


def make(outputs):
    return nn.Linear(6, outputs)


def make_text():
    return "net"


class Broken(nn.Module):
    def __init__(self):
        super().__init__()
        raise RuntimeError("no\nweights today")


class Quitting(nn.Module):
    def __init__(self):
        super().__init__()
        raise SystemExit(3)


class QuittingLater(nn.Linear):
    def forward(self, x):
        raise asyncio.CancelledError("no more") if self.training else SystemExit


class NotANumber(nn.Linear):
    def forward(self, x):
        return super().forward(x) * torch.nan


class FunctionalDropout(nn.Linear):
    def forward(self, x):
        return F.dropout(super().forward(x), 0.5, self.training)


class Counting(nn.Linear):
    def __init__(self, in_features, out_features):
        super().__init__(in_features, out_features)
        self.register_buffer("seen", torch.tensor(0))

    def forward(self, x):
        if self.training:
            self.seen = self.seen + 1
        return super().forward(x)


class InPlace(Counting):
    def forward(self, x):
        self.weight.data.clamp_(-1, 1)
        self.seen += self.training
        return nn.Linear.forward(self, x)


class Averaging(Counting):
    def forward(self, x):
        self.seen.mul_(0.9).add_(x.mean().detach())
        return nn.Linear.forward(self, x - self.seen)

    def __init__(self, in_features, out_features):
        super().__init__(in_features, out_features)
        self.seen = torch.tensor(0.0)


class Remembering(nn.Linear):
    """Keeps state in a tensor that is no buffer."""

    mean = torch.zeros(6)

    def forward(self, x):
        self.mean = 0.9 * self.mean + 0.1 * x.mean(0).detach()
        return super().forward(x - self.mean)


class OwnGenerator(nn.Linear):
    def forward(self, x):
        draw = vars(self).setdefault("draw", torch.Generator().manual_seed(0))
        return super().forward(x * torch.rand(x.shape, generator=draw))


class Halving(nn.Linear):
    def forward(self, x):
        return super().forward(x.mul_(0.5))


class HalvingInEvaluation(nn.Linear):
    def forward(self, x):
        return super().forward(x if self.training else x.mul_(0.5))


class CountingInEvaluation(Counting):
    def forward(self, x):
        self.seen += not self.training
        return nn.Linear.forward(self, x)


class DroppingInEvaluation(nn.Linear):
    def forward(self, x):
        return F.dropout(super().forward(x), 0.5, not self.training)


class TupleInEvaluation(nn.Linear):
    def forward(self, x):
        y = super().forward(x)
        return y if self.training else (y, y)


class TwoOutputs(nn.Linear):
    def forward(self, x):
        y = super().forward(x)
        return (y, y) if self.training else y


class InClosure(nn.Linear):
    def __init__(self, in_features, out_features):
        super().__init__(in_features, out_features)
        kept = self.weight
        self.apply_weight = lambda x: x @ kept.t()

    def forward(self, x):
        return self.apply_weight(x) + self.bias


class HookedWeight(nn.Linear):
    def __init__(self, in_features, out_features):
        super().__init__(in_features, out_features)
        self.weight.register_hook(torch.zeros_like)


class Checkpointed(nn.Module):
    def __init__(self, reentrant=False):
        super().__init__()
        self.first, self.last, self.reentrant = nn.Linear(6, 5), nn.Linear(5, 3), reentrant

    def forward(self, x):
        x = x.requires_grad_() if self.reentrant else x
        hidden = checkpoint(self.hidden, x, use_reentrant=self.reentrant)
        return self.last(hidden)

    def hidden(self, x):
        return torch.relu(self.first(x))


class CutOff(nn.Linear):
    def forward(self, x):
        return super().forward(x).detach()


def scripted():
    with warnings.catch_warnings():  # torch says that it is deprecated
        warnings.simplefilter("ignore")
        return torch.jit.script(nn.Sequential(nn.Linear(6, 3), nn.Dropout(0.5)))


class PartlyScripted(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = scripted()

    def forward(self, x):
        return self.body(x)


class NotAModule:
    pass


@pytest.fixture
def build(spec):
    """Build `name` of this file with arguments, for samples of shape (6,) and three outputs."""

    def make(name, *overrides, trust=HERE, seed=0):
        target = name if "." in name else f"{HERE}.{name}"
        all_overrides = ["model=custom", f"model._target_={target}", f"trust=[{trust}]", *overrides]
        return models.build(spec(*all_overrides).config, (6,), 3, seed)

    return make


LINEAR = ["+model.in_features=6", "+model.out_features=3"]


def test_arguments_reach_the_module_with_the_shapes_of_the_data(build):
    module = build("Net", "+model.width=7", "+model.sizes=[1,2]")
    assert module.given == ((6,), 3)
    assert module.sizes == [1, 2]
    assert module.layers[1].out_features == 7


def test_what_the_user_gives_wins_over_the_shapes_of_the_data(build):
    assert build("Net", "+model.outputs=5").given == ((6,), 5)


def test_torch_layers_are_replaced_by_ones_that_run_per_trial(build):
    module = build("Net")
    assert module.training
    assert [name for name, _ in batch_norms(module)] == ["layers.2"]
    ((name, layer),) = dropouts(module)
    assert isinstance(layer, Dropout)
    x = torch.randn(8, 6)
    first, again, other = (
        functional_call(module, {f"{name}.key": torch.tensor(key)}, (x,)) for key in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_function_and_a_torch_class_are_targets_too(build):
    assert isinstance(build("make"), nn.Linear)
    module = build("torch.nn.Linear", *LINEAR, trust="")
    assert module.weight.shape == (3, 6)


def test_lazy_layers_get_their_shapes(build):
    module = build("torch.nn.LazyLinear", "+model.out_features=3", trust="")
    assert module.weight.shape == (3, 6)


def test_the_constructor_draws_from_the_seed(build):
    before = torch.get_rng_state()
    first, again, other = (build("Net", seed=seed).scale for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(before, torch.get_rng_state())


def test_a_torchvision_network_runs_with_batch_norm_per_trial(spec):
    overrides = ["model=custom", "model._target_=torchvision.models.resnet18"]
    config = spec(*overrides, "+model.num_classes=3").config
    module = models.build(config, (3, 32, 32), 3)
    assert len(batch_norms(module)) == 20
    assert module(torch.randn(2, 3, 32, 32)).shape == (2, 3)


@pytest.mark.parametrize(
    ("name", "overrides", "said"),
    [
        ("Nett", [], ["has no 'Nett'; did you mean 'Net'?"]),
        ("Net", ["+model.widht=3"], ["unknown key 'model.widht' of", "did you mean 'width'?"]),
        ("torch.nn.Linear", LINEAR[:1], ["'torch.nn.Linear' cannot be built: TypeError: "]),
        ("Broken", [], ["Broken' cannot be built: RuntimeError: no weights today"]),
        ("Quitting", [], ["Quitting' cannot be built: SystemExit: 3"]),
        ("QuittingLater", LINEAR, ["does not run in evaluation on a batch of", ": SystemExit"]),
        ("quitting_module.Net", ["trust=[quitting_module]"], ["cannot be imported: SystemExit: 4"]),
        ("NotANumber", LINEAR, ["NotANumber' returns NaN for a batch of zeros"]),
        ("make_text", [], ["must give a torch.nn.Module, got str"]),
        ("InClosure", LINEAR, ["uses parameters otherwise than by their names", "closure"]),
        ("HookedWeight", LINEAR, ["may not", "hook their gradients"]),
        ("Checkpointed", [], ["may not", "or use torch.utils.checkpoint"]),
        ("Checkpointed", ["+model.reentrant=true"], ["or use torch.utils.checkpoint"]),
        ("CutOff", LINEAR, ["CutOff' gives outputs that depend on no trained parameter"]),
        ("scripted", [], ["the model is TorchScript, whose parameters no trial can bring"]),
        ("PartlyScripted", [], ["the model's layer 'body' is TorchScript"]),
        ("NotAModule", [], ["must name a torch.nn.Module or a function that returns one"]),
        ("Net", ["+model.outputs=x"], ["cannot be built: TypeError"]),
        (
            "torch.nn.Linear",
            ["+model.in_features=5", "+model.out_features=3"],
            ["does not run in evaluation on a batch of shape (2, 6): RuntimeError: "],
        ),
        ("FunctionalDropout", LINEAR, ["draws random numbers", "torch.nn.Dropout"]),
        ("DroppingInEvaluation", LINEAR, ["draws random numbers", "torch.nn.Dropout"]),
        ("Counting", LINEAR, ["changes 'seen' while it runs"]),
        ("CountingInEvaluation", LINEAR, ["changes 'seen' while it runs"]),
        ("InPlace", LINEAR, ["changes 'seen' while it runs"]),
        ("Averaging", LINEAR, ["changes 'seen' while it runs"]),
        ("Remembering", LINEAR, ["gives another output for the same batch"]),
        ("OwnGenerator", LINEAR, ["gives another output for the same batch"]),
        ("TupleInEvaluation", LINEAR, ["must return one tensor in evaluation, got tuple"]),
        ("TwoOutputs", LINEAR, ["must return one tensor in training, got tuple"]),
        ("os.system", ["+model.command=ls"], ["model._target_ must name a layer of torch.nn, "]),
        (
            "torch.nn.RReLU",
            [],
            ["whose random numbers cannot be drawn from the trial's seed"],
        ),
        (
            "Net",
            ["regularization.batch_norm=true"],
            ["regularization.batch_norm must be auto with model=custom, got true"],
        ),
        (
            "Net",
            ["regularization.dropout=0.5"],
            ["regularization.dropout must be 0 with model=custom, got 0.5", "torch.nn.Dropout"],
        ),
    ],
)
def test_mistakes_are_told_in_one_line(build, name, overrides, said):
    with pytest.raises(InputError) as caught:
        build(name, *overrides)
    assert len(caught.value.mistakes) == 1
    assert "\n" not in str(caught.value)
    for part in said:
        assert part in str(caught.value)


@pytest.mark.parametrize("name", ["Halving", "HalvingInEvaluation"])
def test_a_module_that_changes_its_input_does_not_change_the_data(build, name):
    """Validation data halved themselves at each evaluation."""
    net, x = build(name, *LINEAR), torch.ones(2, 6)
    for mode in (True, False):
        seen = x if mode and name != "Halving" else x / 2
        assert torch.equal(net.train(mode)(x), nn.Linear.forward(net, seen))
        assert torch.equal(x, torch.ones(2, 6))


@pytest.mark.parametrize(
    "target",
    [
        "torchvision.datasets.utils.download_url",  # writes a file anywhere
        "torchvision.io.write_file",
        "torchvision.datasets.MNIST",
        "torch.nn.functional.relu",
        "torch.nn.Parameter",
        "torch.optim.SGD",
        "torch.hub.load",
        "torch.load",
        "torch.jit.load",
        "sweepstack.cli.app.main",
        "sweepstack.runs.prediction.load",
    ],
)
def test_what_builds_no_module_is_not_called(build, target):
    arguments = "+model.url=file:///etc/passwd", "+model.root=/tmp/stolen"
    with pytest.raises(InputError, match=r"must name a layer of torch\.nn, a model of torchvision"):
        build(target, *arguments)
    with pytest.raises(InputError, match=r"must name a torch\.nn\.Module or a function|itself"):
        build(target, *arguments, trust="torch,torchvision,sweepstack")


def test_a_custom_model_may_have_an_argument_called_name():
    words = ("model=custom", "model._target_=torchvision.models.get_model", "+model.name=resnet18")
    spec = make_spec(*words, "trust=[torchvision]")
    assert json.loads(spec.config.model.arguments) == {"name": "resnet18"}
    again = reading.read_plain(as_typed(dataclasses.asdict(spec.config)))
    assert again.model == spec.config.model
    with pytest.raises(InputError, match=r"did you mean model=torchvision model\.arch=NAME"):
        Program(make_spec(*words))
