"""What the tests of engines share: trials, comparisons, stacks that are watched or starved, and
times that their steps are said to take."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from support import make_spec

from sweepstack.data import streams
from sweepstack.engine.program import Program
from sweepstack.engine.step import Batch, Block, Step
from sweepstack.engine.train import train
from sweepstack.runs.folder import write_model
from sweepstack.training.spec import TrialSpec

SHORT = ("data=quadratic", "model.hidden=[8]", "training.max_steps=12", "training.eval_every=4")
ADAMW = (*SHORT, "optimizer=adamw")
DECAY = "regularization.weight_decay="
SMALL_MODELS = {
    "mlp": ("model.hidden=[8]",),
    "batch norm": ("model.hidden=[8]", "regularization.batch_norm=true"),
    "convnet": ("model=convnet", "model.width=2", "model.hidden=[8]"),
    "resnet": ("model=resnet", "model.width=2"),
}
"""Every built-in model, for data=digits."""
KINDS = {
    "plain": (),
    "regularized": (
        *("regularization.dropout=0.2", "regularization.l1=0.01", "regularization.clip_norm=1"),
        *("regularization.label_smoothing=0.1", "regularization.clip_value=0.5"),
        "regularization.weight_decay=0.1",
    ),
    "augmented": (
        *("regularization.mixup=0.2", "regularization.cutout=2", "regularization.rotation=5"),
        *("regularization.crop_padding=1", "regularization.horizontal_flip=true"),
        "regularization.translation=0.1",
    ),
    "bf16": ("training.precision=bf16",),
    "shared batches": ("data.order_seed=3",),
}
"""What may be done to a trial besides."""


class Same(dict):
    """A plan's ways: one for every layer; `mixed` has another for each pass."""

    def __init__(self, way):
        self.way = way

    def get(self, key, default=None):
        return ("grouped", "product", "loop") if self.way == "mixed" else (self.way,) * 3

    def __bool__(self):
        return True


def specs(count, *words, folder=None):
    """Trials of unequal seed, lr and length."""
    base = make_spec(*SHORT, *words).config
    return [
        varied(
            base,
            number,
            None if folder is None else folder / str(number),
            optimizer={"lr": 0.01 / (1 + number)},
            training={"seed": number, "max_steps": (12, 20, 9)[number % 3]},
        )
        for number in range(count)
    ]


def varied(config, number, folder=None, **groups):
    """A trial with other numbers in some groups of a config, which is not composed again."""
    others = {name: replace(getattr(config, name), **new) for name, new in groups.items()}
    return TrialSpec(replace(config, **others), number=number, folder=folder)


def filled(program, specs):
    """A stack of these trials."""
    stack = program.stack(len(specs))
    for slot, spec in enumerate(specs):
        stack.insert([slot], [program.initial(spec)], [program.numbers(spec)])
    return stack


def make_steps(program, stack, count):
    """Batches of the next steps: other samples and another lr each time."""
    device, width = program.device, stack.width
    generator = torch.Generator().manual_seed(0)
    for number in range(count):
        x = torch.rand(width, program.batch_size, *program.data.input_shape, generator=generator)
        y = torch.randint(0, 10, (width, program.batch_size), generator=generator)
        at = torch.full((width,), number, dtype=torch.int64, device=device)
        names = Step(program).streams()
        keys = {name: streams.split(stack.keys[name], at) for name in names}
        lr = torch.full((width,), 0.01 / (1 + number), dtype=torch.float64, device=device)
        yield Batch(x.to(device), y.to(device), lr, at + 1, keys)


def block_of(program, stack, count, first=0, shared=False):
    """Steps from number `first` on, counted from 0: other samples and another lr each time."""
    device, generator = program.device, torch.Generator().manual_seed(first)
    shape = (count, program.batch_size) if shared else (count, stack.width, program.batch_size)
    samples = torch.randint(len(program.data.train), shape, generator=generator)
    index = torch.arange(first, first + count).unsqueeze(1).expand(-1, stack.width)
    lr = 0.01 / (1 + index).double()
    index = index.contiguous().to(device)
    keys = Step(program).keys(stack, index)
    return Block(samples.to(device), lr.to(device), index + 1, keys)


def by_number(results):
    """Results by their trial's number; each trial has exactly one."""
    found = {}
    for result in results:
        assert result.spec.number not in found
        found[result.spec.number] = result
    return found


def assert_same(mine, other):
    assert mine.keys() == other.keys()
    for number, result in mine.items():
        assert (result.state, result.error) == (other[number].state, other[number].error)
        rows, references = result.history, other[number].history
        assert [row["step"] for row in rows] == [row["step"] for row in references]
        for row, reference in zip(rows, references, strict=True):
            assert row == pytest.approx(reference, rel=1e-4), number


def one(*overrides, monitor=None, **settings):
    """The result of one trial, trained here."""
    (result,) = train([make_spec(*overrides, **settings)], monitor)
    return result


def save(folder, result):
    """Write a trial's model into a new folder."""
    folder.mkdir()
    write_model(folder, result)


@pytest.fixture
def program():
    return Program.of(make_spec(*SHORT))


@pytest.fixture
def widths_seen(monkeypatch):
    """The width of the stack at every step, those aside that try whether the model stacks."""
    seen = []
    monkeypatch.setattr("sweepstack.engine.width.why_not_stacked", lambda program: None)
    original = Step.update

    def spy(self, stack, *arguments):
        seen.append(stack.width)
        return original(self, stack, *arguments)

    monkeypatch.setattr(Step, "update", spy)
    return seen


@pytest.fixture
def little_memory(monkeypatch):
    """Steps of stacks with more than `most` slots have no memory: `little_memory(most)`."""

    def set_most(most):
        original = Step.update

        def short(self, stack, *arguments):
            if stack.width > most:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return original(self, stack, *arguments)

        monkeypatch.setattr(Step, "update", short)

    return set_most


@pytest.fixture
def measured(monkeypatch):
    """Give the microseconds per trial and step that widths take; returns what widths are tried."""
    tried = []

    def give(times, otherwise=None):
        monkeypatch.setattr("sweepstack.engine.width.SHORT_S", 0.0)

        def take(program, width, **_):
            tried.append(width)
            taken = times.get(width, otherwise)
            if taken is None:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return 1e-6 * taken

        monkeypatch.setattr("sweepstack.engine.width._time", take)
        return tried

    return give


@pytest.fixture
def two_threads():
    """Stacks advance in two parts, whatever the machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)
