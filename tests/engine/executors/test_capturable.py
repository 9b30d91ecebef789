"""What a GPU would capture, looked at on a CPU: the step is the same operations on the same tensors
each time, and none of them waits for the device or brings numbers from the host.

It is the code of a GPU (updates written out); only the tensors lie
elsewhere. Whether CUDA captures it is test_cuda_graph.py's question.
"""

from __future__ import annotations

import pytest
import torch
from engine_support import KINDS, SMALL_MODELS, filled
from support import make_spec
from torch.utils._python_dispatch import TorchDispatchMode

from sweepstack.data import streams
from sweepstack.engine import program as programs
from sweepstack.engine.executors.recording import Recorder
from sweepstack.engine.program import Program
from sweepstack.engine.step import Batch, Step
from sweepstack.training import fused

WIDTH = 3
COMMON = ("data=digits", "data.subset=64", "batch.size=8")
FROM_HOST = {"aten.lift_fresh.default", "aten.lift.default"}
"""What `torch.tensor(number)` comes to: on a GPU a copy that a capture refuses."""


class Names(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.seen = set()

    @classmethod
    def _should_skip_dynamo(cls):
        return False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen.add(str(func))
        return func(*args, **(kwargs or {}))


@pytest.fixture(autouse=True)
def as_on_a_gpu(monkeypatch):
    monkeypatch.setattr(fused, "works", lambda name: False)
    programs._programs.clear()
    yield
    programs._programs.clear()


def moments(program, stack, step):
    """The inputs of one step after another: x, y, lr, the step's number and the keys."""
    generator = torch.Generator().manual_seed(0)
    names = step.streams()
    for number in range(6):
        shape = (WIDTH, program.batch_size)
        x = torch.rand(*shape, *program.data.input_shape, generator=generator)
        y = torch.randint(0, 10, shape, generator=generator)
        at = torch.full((WIDTH,), number, dtype=torch.int64)
        lr = torch.full((WIDTH,), 0.01 / (1 + number), dtype=torch.float64)
        yield [x, y, lr, at + 1, *(streams.split(stack.keys[name], at) for name in names)]


def everything(stack):
    """All tensors that a captured step reads or writes and that stay where they are."""
    rows = [stack.optimizer[name] for name in sorted(stack.optimizer)]
    return [*stack.persistent, *rows, *(g for bank in stack.moments.values() for g in bank.packed)]


# Every model with every kind, every optimizer with every kind: an update sees no model.
@pytest.mark.parametrize(
    ("model", "kind", "optimizer"),
    [
        (model, kind, optimizer)
        for model in SMALL_MODELS
        for kind in KINDS
        for optimizer in ("sgd", "adam", "adamw", "rmsprop")
        if model == "mlp" or optimizer == "adam"
    ],
)
def test_a_step_is_the_same_operations_each_time(model, kind, optimizer):
    words = (*COMMON, *SMALL_MODELS[model], *KINDS[kind], f"optimizer={optimizer}")
    specs = [make_spec(*words, f"training.seed={n}", number=n) for n in range(WIDTH)]
    program = Program.of(specs[0])
    eager, replayed = filled(program, specs), filled(program, specs)
    step, recorder, run, names = Step(program), Recorder(), None, Names()
    for inputs in moments(program, eager, step):
        x, y, lr, number, *keys = inputs
        batch = Batch(x, y, lr, number, dict(zip(step.streams(), keys, strict=True)))
        expected = [told.clone() for told in step(eager, batch)]
        if run is None:

            def function(given=batch):
                return step(replayed, given)

            told = recorder.record(function, everything(replayed), inputs)
            assert recorder.reason is None
            run = recorder.recording.bind(everything(replayed)) if recorder.recording else None
        else:
            with torch.no_grad():
                told = run(*inputs)
        assert all(map(torch.equal, told, expected))
    assert run is not None
    for one, other in zip(replayed.banks.values(), eager.banks.values(), strict=True):
        assert all(torch.equal(one.views[name], other.views[name]) for name in one.views)
    with names:
        step(eager, batch)
    assert not names.seen & FROM_HOST
