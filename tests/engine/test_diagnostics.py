"""training.diagnostics against a plain loop, and what it leaves as it is: the training."""

from __future__ import annotations

import csv
import math

import numpy as np
import pytest
import torch
from engine_support import varied
from support import make_spec
from torch import nn
from torch.nn import functional as F

from sweepstack.config.errors import EnvironmentFault
from sweepstack.engine import diagnostics
from sweepstack.engine.diagnostics import NOISE, PARTS, ROW, SAMPLES
from sweepstack.engine.program import Program
from sweepstack.engine.train import Interrupted, train
from sweepstack.training.spec import Monitor

SHORT = ("training.max_steps=6", "training.eval_every=3", "batch.size=16", "data.subset=200")
ON = (*SHORT, "training.diagnostics=true")
MODELS = {
    "mlp": (
        *("model.hidden=[9,7]", "regularization.dropout=0.3", "regularization.batch_norm=true"),
        "data.normalization=none",  # or pixels that are always 0 would have rounding noise
    ),
    "convnet": ("model=convnet", "model.width=2", "model.hidden=[8]"),
    "resnet": ("model=resnet", "model.width=2"),
    "custom": ("model=custom", "model._target_=frozen_support.Net", "trust=[frozen_support]"),
}


def trials(*words, count=3):
    base = make_spec(*ON, *words).config
    return [
        varied(base, n, training={"seed": n}, optimizer={"lr": 0.01 / (n + 1)})
        for n in range(count)
    ]


def trained(specs, width, monitor=None):
    found = sorted(train(specs, monitor, width=width), key=lambda result: result.spec.number)
    assert all(result.error is None for result in found), found[0].error
    return found


def near(rows):
    """Rows whose numbers may differ by rounding."""
    return [
        {
            k: pytest.approx(v, rel=2e-3, abs=1e-5, nan_ok=True)
            for k, v in row.items()
            if k != "layer"
        }
        | names
        for row in rows
        for names in [{"layer": row["layer"]}]
    ]


# --- against a plain loop -------------------------------------------------------------------------


class Plain(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.hidden = nn.ModuleList([nn.Linear(64, 12), nn.Linear(12, 8)])
        self.act, self.output = kind(), nn.Linear(8, 10)
        self.seen = {}

    def forward(self, x):
        x = x.flatten(1)
        for name, layer in (("hidden.0", self.hidden[0]), ("hidden.1", self.hidden[1])):
            x = self.seen[name] = self.act(layer(x))
        x = self.seen["output"] = self.output(x)
        return x


OPTIMIZERS = {
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.1),
    "sgd": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9, nesterov=True, weight_decay=0.1),
}


@pytest.mark.parametrize(
    ("activation", "kind", "optimizer"),
    [("relu", nn.ReLU, "adam"), ("tanh", nn.Tanh, "sgd"), ("sigmoid", nn.Sigmoid, "adam")],
)
def test_step_0_is_what_a_plain_loop_finds(activation, kind, optimizer):
    more = ("optimizer.momentum=0.9", "optimizer.nesterov=true", "init=normal")
    words = (f"model.activation={activation}", f"optimizer={optimizer}", "optimizer.lr=0.01", *more)
    spec = make_spec(*ON, "model.hidden=[12,8]", "regularization.weight_decay=0.1", *words)
    (result,) = train([spec])
    first = {row["layer"]: row for row in result.layers if row["step"] == 0}
    assert list(first) == ["hidden.0", "hidden.1", "output"]
    assert all(tuple(row) == ROW for row in first.values())

    program, net = Program.of(spec), Plain(kind)
    net.load_state_dict(program.initial(spec))
    chosen = diagnostics.streams.permutation(0, len(program.data.train))[:SAMPLES]
    x, y = (t.index_select(0, chosen) for t in (program.data.train.x, program.data.train.y))
    F.cross_entropy(net(x), y).backward()
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    grads = {name: p.grad.clone() for name, p in net.named_parameters()}
    OPTIMIZERS[optimizer](net.parameters()).step()
    for layer, row in first.items():
        a = net.seen[layer].detach()
        own = [f"{layer}.weight", f"{layer}.bias"]
        ours, moved = dict(net.named_parameters()), {}
        for name in own:
            moved[name] = ours[name].detach() - before[name]
        size = norm(before, own)
        hidden = layer != "output"
        limit = {"tanh": a.abs(), "sigmoid": (2 * a - 1).abs()}.get(activation)
        expected = {
            "activation_mean": float(a.mean()),
            "activation_std": float(a.std(correction=0)),
            "unit_spread": float((a.var(1, correction=0).mean() / a.square().mean()).sqrt()),
            "saturated": share(limit > 0.97 if hidden and limit is not None else None),
            "dead": share((a == 0).all(0) if hidden and limit is None else None),
            "weight_norm": size,
            "gradient_norm": norm(grads, own),
            "update_ratio": norm(moved, own) / size,
        }
        assert {k: row[k] for k in expected} == pytest.approx(expected, rel=1e-3, nan_ok=True)


@pytest.mark.parametrize(
    ("targets", "words"),
    [
        (lambda x: x[:, 0] > 0.5, ["loss=focal"]),
        (lambda x: x[:, 0] > 0.5, ["regularization.label_smoothing=0.3"]),
        (lambda x: x[:, :2] > 0.5, ["batch.accumulate=2"]),
        (lambda x: x[:, :2], ["loss=huber", "training.ema_decay=0.5"]),
    ],
)
def test_the_loss_is_that_of_training(tmp_path, targets, words):
    x = np.random.default_rng(0).random((60, 5), dtype=np.float32)
    y = targets(x)
    np.savez(tmp_path / "a.npz", x=x, y=y.astype(int) if y.dtype == bool else y)
    own = ("data=arrays", f"data.train={tmp_path / 'a.npz'}", "data.subset=null", "model.hidden=[]")
    spec = make_spec(*ON, *own, "training.max_steps=1", "batch.size=8", *words)
    (result,) = train([spec])
    assert result.error is None
    program = Program.of(spec)
    strengths, net = program.numbers(spec).strengths, nn.Linear(5, program.data.outputs)
    net.load_state_dict({n.removeprefix("output."): t for n, t in program.initial(spec).items()})
    split = program.data.train
    chosen = diagnostics.streams.permutation(0, len(split))[: len(split) // PARTS * PARTS]
    given = {name: torch.tensor(value) for name, value in strengths.items()}
    given = given if "label_smoothing" in words[0] or program.task.numbers else {}
    outputs = program.task.scores(net(split.x[chosen]))
    program.task.losses(outputs, split.y[chosen], given).mean().backward()
    expected = norm({name: p.grad for name, p in net.named_parameters()}, ["weight", "bias"])
    assert result.layers[0]["gradient_norm"] == pytest.approx(expected, rel=1e-4)


def norm(tensors, names):
    return math.sqrt(sum(float(tensors[name].square().sum()) for name in names))


def share(are):
    return math.nan if are is None else float(are.float().mean())


def test_the_noise_of_the_gradient_is_that_of_per_part_gradients():
    """Against McCandlish et al.'s estimators, from gradients of a plain loop."""
    spec = make_spec(*ON, "model.hidden=[]", "training.max_steps=3")
    (result,) = train([spec])
    program = Program.of(spec)
    net = nn.Linear(64, 10)
    net.load_state_dict({n.removeprefix("output."): t for n, t in result.best_state.items()})
    chosen = diagnostics.streams.permutation(0, len(program.data.train))[:SAMPLES]
    x, y = (t.index_select(0, chosen) for t in (program.data.train.x, program.data.train.y))

    def gradient(rows):
        net.zero_grad()
        F.cross_entropy(net(x[rows].flatten(1)), y[rows]).backward()
        return torch.cat([p.grad.flatten() for p in net.parameters()]).double()

    b, big = SAMPLES // PARTS, SAMPLES
    g = torch.stack([gradient(slice(n * b, n * b + b)) for n in range(PARTS)])
    small, whole = float(g.square().sum(1).mean()), float(gradient(slice(None)).square().sum())
    length = (big * whole - b * small) / (big - b)
    trace = (small - whole) / (1 / b - 1 / big)
    row = result.history[-1]
    assert row["gradient_noise"] == pytest.approx(trace, rel=1e-3)
    assert row["gradient_noise_scale"] == pytest.approx(trace / length, rel=1e-2)


def test_the_estimators_have_no_bias():
    draw, parts, size, many = np.random.default_rng(0), 4, 8, 20_000
    true, deviations = np.array([0.3, -0.2, 0.5]), np.array([1.0, 2.0, 0.5])
    g = true + draw.normal(size=(many, parts, 3)) * deviations / math.sqrt(size)
    small, whole = (g**2).sum(2).mean(1), (g.mean(1) ** 2).sum(1)
    rows = diagnostics._noise(torch.tensor(small), torch.tensor(whole), parts, size)
    trace = np.mean([row["gradient_noise"] for row in rows])
    assert trace == pytest.approx((deviations**2).sum(), rel=0.02)
    assert {row["gradient_noise_scale"] > 0 for row in rows} == {True}
    assert diagnostics._noise(torch.ones(1), torch.ones(1), 1, 8)[0].keys() == set(NOISE)


# --- zeros, ones, custom modules ------------------------------------------------------------------


def test_it_tells_why_zeros_ones_and_large_weights_do_not_learn():
    found = {}
    for init, activation in (("zeros", "relu"), ("ones", "tanh"), ("normal", "tanh")):
        words = (f"init={init}", f"model.activation={activation}", "model.hidden=[30]")
        (result,) = train([make_spec(*ON, *words)])
        found[init] = next(row for row in result.layers if row["step"] == 0)
    assert found["zeros"]["dead"] == 1
    assert math.isnan(found["zeros"]["update_ratio"])  # its weights are 0
    assert found["ones"]["unit_spread"] < 1e-3
    assert found["normal"]["saturated"] > 0.5
    assert found["normal"]["unit_spread"] > 0.5


def test_layers_are_named_as_the_module_names_them():
    (result,) = train([make_spec(*ON, *MODELS["custom"])])
    names = list(dict.fromkeys(row["layer"] for row in result.layers))
    assert names == ["middle", "norm", "head"]  # the trunk is frozen
    assert not any(math.isnan(row["activation_std"]) for row in result.layers)


def test_dropout_is_off_and_batch_norms_use_the_batch():
    spec = make_spec(*ON, *MODELS["custom"])
    (result,) = train([spec])
    program = Program.of(spec)
    chosen = diagnostics.streams.permutation(0, len(program.data.train))[:SAMPLES]
    x = program.data.train.x.index_select(0, chosen)
    net = program.module.train()
    net.drop.eval()
    start = program.initial(spec)
    with torch.no_grad():
        parts = [torch.func.functional_call(net, start, part) for part in x.split(SAMPLES // PARTS)]
    (row,) = (r for r in result.layers if (r["step"], r["layer"]) == (0, "head"))
    assert row["activation_std"] == pytest.approx(float(torch.cat(parts).std()), rel=2e-3)


def test_units_of_a_convolution_are_its_channels():
    a = torch.zeros(5, 3, 4, 4)
    a[:, 1] = 1.0
    found = diagnostics._statistics(a, nn.Conv2d(1, 3, 1), nn.ReLU())
    assert found["alive"].tolist() == [False, True, False]
    assert float(found["between"]) == pytest.approx(2 / 9)
    found = diagnostics._statistics(a, nn.Linear(4, 4), nn.ReLU())
    assert found["alive"].tolist() == [True] * 4


def test_activations_that_are_functions_are_not_seen():
    class Functional(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1))
            self.a, self.b, self.act = nn.Linear(3, 4), nn.Linear(4, 2), nn.ReLU()

        def forward(self, x):
            return self.act(self.b(F.relu(self.a(x)))) * self.scale

    net, x = Functional(), torch.randn(5, 3)
    with torch.no_grad():
        with diagnostics.watching(net, {"a": 0, "b": 0}) as found:
            net(x)
        assert set(found["a"]) == {"mean", "var", "between"}
        assert torch.equal(found["b"]["alive"], (net.b(F.relu(net.a(x))) > 0).any(0))
        assert float(found["a"]["mean"]) == pytest.approx(float(net.a(x).mean()), abs=1e-6)
    assert not net.a._forward_hooks


def test_an_optimizer_that_cannot_be_asked_has_no_update_ratio():
    words = ("optimizer=custom", "optimizer._target_=torch.optim.Adadelta", "model.hidden=[4]")
    (result,) = train([make_spec(*ON, *words)])
    assert all(math.isnan(row["update_ratio"]) for row in result.layers)
    assert all(row["gradient_norm"] > 0 for row in result.layers)


# --- contracts ------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", MODELS.values(), ids=MODELS)
def test_training_is_the_same_to_the_bit_and_stacked_equals_alone(words):
    specs = trials(*words)
    off = [varied(spec.config, spec.number, training={"diagnostics": False}) for spec in specs]
    mixed = [specs[0], off[1], specs[2]]
    without, with_some = trained(off, 3), trained(mixed, 3)
    for plain, one in zip(without, with_some, strict=True):
        assert plain.best_state.keys() == one.best_state.keys()
        assert all(torch.equal(t, one.best_state[n]) for n, t in plain.best_state.items())
        rows = [{k: v for k, v in row.items() if k not in NOISE} for row in one.history]
        assert plain.history == rows
        assert plain.metrics == one.metrics
    assert not with_some[1].layers
    assert "gradient_noise" not in with_some[1].history[0]
    for number in (0, 2):
        (alone,) = train([specs[number]])
        assert with_some[number].layers == near(alone.layers)
        assert {row["step"] for row in alone.layers} == {0, 3, 6}


class StopAt(Monitor):
    """Interrupts once a trial has reported at a step, or prunes it."""

    def __init__(self, step, prunes=False):
        self.at, self.prunes, self.seen = step, prunes, []

    def report(self, spec, row):
        self.at = None if row["step"] == self.at else self.at

    def diagnosed(self, spec, rows):
        self.seen += rows

    def should_stop(self, spec):
        return self.prunes and self.at is None

    def interrupted(self):
        return 130 if self.at is None and not self.prunes else None


def read(folder):
    return list(csv.DictReader((folder / "layers.csv").read_text().splitlines()))


def test_the_file_survives_a_resume_and_a_pruning(tmp_path):
    spec = make_spec(*ON, "model.hidden=[8]", folder=tmp_path / "whole")
    (whole,) = train([spec])
    assert [row["layer"] for row in read(tmp_path / "whole")] == ["hidden.0", "output"] * 3

    again = make_spec(*ON, "model.hidden=[8]", folder=tmp_path / "resumed")
    first, second = StopAt(3), StopAt(0)
    with pytest.raises(Interrupted):
        list(train([again], first))
    assert len(read(tmp_path / "resumed")) == 4  # written while it trains
    with open(tmp_path / "resumed" / "layers.csv", "a") as file:
        file.write("6,hid")  # of a process that was killed
    (resumed,) = train([again], second)
    assert [str(r) for r in resumed.layers] == [str(r) for r in whole.layers]
    assert [str(r) for r in second.seen] == [str(r) for r in whole.layers]
    same = [(tmp_path / name / "layers.csv").read_bytes() for name in ("whole", "resumed")]
    assert same[0] == same[1]

    pruned = make_spec(*ON, "model.hidden=[8]", folder=tmp_path / "pruned")
    (result,) = train([pruned], StopAt(3, prunes=True))
    assert result.state == "pruned"
    assert {row["step"] for row in read(tmp_path / "pruned")} == {"0", "3"}


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(EnvironmentFault, match=r"cannot write .*layers\.csv: "):
        diagnostics.write(tmp_path / "file" / "x", [], anew=True)


def test_a_stack_is_diagnosed_in_bf16_as_a_trial_alone():
    """vmap hid a linear layer of a stack from autocast: gradients differed by 2e-4."""
    linear = ("model=custom", "model._target_=torch.nn.Linear")
    shape = ("+model.in_features=1", "+model.out_features=1", "data.subset=null")
    specs = trials("data=quadratic", "training.precision=bf16", *linear, *shape)
    for each in trained(specs, 3):
        (alone,) = train([specs[each.spec.number]])
        rows, others = ([row for row in x.layers if row["step"] == 0] for x in (each, alone))
        for row, other in zip(rows, others, strict=True):
            assert row["gradient_norm"] == pytest.approx(other["gradient_norm"], rel=1e-5)
