"""Modules that people bring: in a stack, alone and in a plain loop of torch the same numbers."""

from __future__ import annotations

import random

import pytest
import torch
from engine_support import assert_same, by_number, varied
from support import make_spec
from torch import nn
from torch.nn import functional as F

from sweepstack.engine.program import Program
from sweepstack.engine.slot import Slot
from sweepstack.engine.train import train
from sweepstack.engine.width import Widths

STEPS = 12


class Net(nn.Module):
    def __init__(self, outputs=10):
        super().__init__()
        self.first, self.last = nn.Linear(64, 16), nn.Linear(16, outputs)

    def between(self, h):
        return torch.relu(h)

    def forward(self, x):
        return self.last(self.between(self.first(x.flatten(1))))


class SharedLayer(Net):
    """One layer in two places: torch left the trial's tensors in the module."""

    def __init__(self):
        super().__init__()
        self.block = nn.Linear(16, 16)
        self.blocks = nn.ModuleList([self.block, self.block])

    def between(self, h):
        for block in self.blocks:
            h = torch.relu(block(h))
        return h


class SharedNorm(Net):
    """Both batches count in the running statistics."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(16)

    def between(self, h):
        return torch.relu(self.norm(1 + 2 * self.norm(h)))


class Hooked(Net):
    """vmap drops hooks on tensors."""

    def between(self, h):
        if h.requires_grad:
            h.register_hook(lambda grad: 0.1 * grad)
        return torch.relu(h)


class Tokens(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.table, self.last = nn.Embedding(20, 4, **options), nn.Linear(256, 10)

    def forward(self, x):
        return self.last(self.table((x.flatten(1).clamp(0, 1) * 16).long()).flatten(1))


class Padded(Tokens):
    """vmap knows the padding of the first slot only."""

    def __init__(self):
        super().__init__(padding_idx=0)


class Sparse(Tokens):
    """Gradients of a stack are dense."""

    def __init__(self):
        super().__init__(sparse=True)


class FunctionalSparse(Tokens):
    def forward(self, x):
        tokens = (x.flatten(1).clamp(0, 1) * 16).long()
        return self.last(F.embedding(tokens, self.table.weight, sparse=True).flatten(1))


class Drawing(Net):
    """Python's own random numbers follow the seed, too."""

    def __init__(self):
        super().__init__()
        self.scale = 0.5 + random.random()

    def between(self, h):
        return self.scale * torch.relu(h)


class CountsSteps(Net):
    """A buffer of the trial's own."""

    def __init__(self):
        super().__init__()
        self.register_buffer("steps", torch.tensor(0.0))

    def between(self, h):
        if self.training and torch.is_grad_enabled():
            self.steps += 1
        return torch.relu(h) * 0.95**self.steps


MODULES = (
    *(SharedLayer, SharedNorm, Hooked, Padded, Sparse, FunctionalSparse, Drawing, CountsSteps),
    Net,
)


def trials(module, count=3):
    words = ("model=custom", f"model._target_={__name__}.{module.__name__}", f"trust=[{__name__}]")
    short = (f"training.max_steps={STEPS}", "training.eval_every=6", "batch.size=16")
    config = make_spec(*words, *short, "init=keep", "optimizer=sgd", "optimizer.lr=0.05").config
    return [
        varied(config, n, optimizer={"lr": 0.05 / (1 + n)}, training={"seed": n})
        for n in range(count)
    ]


def plain_loop(trial, module):
    """Validation losses by torch alone."""
    program = Program.of(trial)
    slot = Slot(program, trial)
    state = torch.random.get_rng_state(), random.getstate()
    torch.manual_seed(0)
    random.seed(0)
    net = module()
    torch.random.set_rng_state(state[0])
    random.setstate(state[1])
    net.load_state_dict(program.initial(trial), strict=False)
    optimizer, losses = torch.optim.SGD(net.parameters(), lr=trial.config.optimizer.lr), []
    for step, (x, y) in enumerate(program.sources["train"].batches(slot.batches(STEPS)), 1):
        optimizer.zero_grad()
        F.cross_entropy(net.train()(x), y).backward()
        optimizer.step()
        if step % 6 == 0:
            ((x, y),) = program.sources["val"].chunks(1000)
            with torch.no_grad():
                losses.append(F.cross_entropy(net.eval()(x), y).item())
    return losses


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_a_module_trains_as_in_a_plain_loop(module):
    alone = by_number(train(trials(module)))
    for trial in trials(module):
        result = alone[trial.number]
        assert result.state == "complete", result.error
        found = [row["val_loss"] for row in result.history if row["step"]]
        assert found == pytest.approx(plain_loop(trial, module), rel=1e-4)
    assert_same(by_number(train(trials(module), width=Widths(3))), alone)


def test_why_a_module_is_not_stacked_is_said(caplog):
    assert len(list(train(trials(Padded), width=Widths(3)))) == 3
    (line,) = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert "one by one: in a stack its losses or gradients are others" in line
