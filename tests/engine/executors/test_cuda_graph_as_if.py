"""Captured steps without a GPU: everything but the capture itself, which is made up here.

A made-up graph is played by running the captured step again, with the tensors that it was given
then. Whether CUDA takes a step is the question of test_cuda_graph.py and, without a GPU, of
test_capturable.py.
"""

from __future__ import annotations

import contextlib
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from engine_support import filled, make_steps
from support import make_spec

from sweepstack.engine.executors import cuda_graph
from sweepstack.engine.executors.cuda_graph import CudaGraph
from sweepstack.engine.program import Program
from sweepstack.engine.step import Step

WORDS = (
    *("model.hidden=[16]", "batch.size=16", "optimizer=adamw", "regularization.dropout=0.2"),
    *("regularization.weight_decay=0.1", "training.max_steps=20", "training.eval_every=10"),
)


class Graph:
    """A captured step: what to call again, with what, and where its losses go."""

    def __init__(self):
        self.again = None

    def replay(self):
        step, arguments, losses = self.again
        for kept, told in zip(losses, step(*arguments), strict=True):
            kept.copy_(told)


class Cuda:
    """What `cuda_graph.py` asks of torch.cuda."""

    def __init__(self):
        self.captures, self.modes, self.streams = [], ["default"], []
        self.capturing, self.ends_well = None, True

    @contextlib.contextmanager
    def graph(self, recorded, *, stream, capture_error_mode):
        assert capture_error_mode == "thread_local"
        self.captures.append(recorded)
        self.capturing = recorded
        yield
        self.capturing = None
        if not self.ends_well:
            raise RuntimeError("CUDA error: operation failed\nmore")

    @property
    def refuses_waiting(self):
        return self.modes[-1] == "error"


@pytest.fixture
def cuda(monkeypatch):
    fake, stream = Cuda(), SimpleNamespace(wait_stream=lambda other: None)

    def nothing(_):
        return contextlib.nullcontext()

    made_up = {
        **{"CUDAGraph": Graph, "Stream": lambda _: stream, "current_stream": lambda _: stream},
        **{"stream": nothing, "device": nothing, "set_stream": fake.streams.append},
        **{"graph": fake.graph, "get_sync_debug_mode": lambda: fake.modes[-1]},
        "set_sync_debug_mode": fake.modes.append,
    }
    for name, value in made_up.items():
        monkeypatch.setattr(torch.cuda, name, value)
    cuda_graph._side_stream.cache_clear()
    yield fake
    cuda_graph._side_stream.cache_clear()


@pytest.fixture
def program():
    return Program.of(make_spec(*WORDS))


def stack_of(program, width):
    return filled(program, [make_spec(*WORDS, f"training.seed={n}") for n in range(width)])


def state(stack):
    return [view.clone() for bank in stack.banks.values() for view in bank.views.values()]


def assert_equal(mine, other):
    for view, reference in zip(mine, other, strict=True):
        assert torch.equal(view, reference)


def executor(step, stack):
    return CudaGraph(step, stack, step.program.sources["train"])


def replayed(program, stack, cuda):
    class Captured(Step):
        def __call__(self, *arguments):
            losses = super().__call__(*arguments)
            if cuda.capturing is not None:
                cuda.capturing.again = (super().__call__, arguments, losses)
            return losses

    return executor(Captured(program), stack)


@pytest.mark.parametrize("width", [1, 3])
def test_replayed_steps_equal_eager_ones(program, cuda, width):
    eager, mine = stack_of(program, width), stack_of(program, width)
    step, played = Step(program), replayed(program, mine, cuda)
    for batch in make_steps(program, eager, 8):
        assert all(map(torch.equal, played.advance(batch), step(eager, batch)))
    assert len(cuda.captures) == 1
    assert_equal(state(mine), state(eager))
    assert cuda.modes == ["default", "error", "default"]
    assert len(cuda.streams) == 1  # back where it was


def test_batches_of_another_shape_have_a_graph_of_their_own(program, cuda):
    eager, mine = stack_of(program, 3), stack_of(program, 3)
    step, played = Step(program), replayed(program, mine, cuda)
    for number, batch in enumerate(make_steps(program, eager, 6)):
        if number % 2:
            batch = replace(batch, x=batch.x[0], y=batch.y[0], shared=True)
        assert all(map(torch.equal, played.advance(batch), step(eager, batch)))
    assert len(cuda.captures) == 2


@pytest.mark.parametrize("how", ["it waits", "its capture ends badly"])
def test_a_step_that_no_graph_can_hold_runs_as_it_is(program, cuda, caplog, how):
    eager, mine = stack_of(program, 2), stack_of(program, 2)
    step = Step(program)

    class Waiting(Step):
        def __call__(self, *arguments):
            losses = super().__call__(*arguments)
            if how == "it waits" and cuda.refuses_waiting:
                raise RuntimeError("called a synchronizing CUDA operation\nmore")
            return losses

    cuda.ends_well = how == "it waits"
    played = executor(Waiting(program), mine)
    for batch in make_steps(program, eager, 4):
        assert all(map(torch.equal, played.advance(batch), step(eager, batch)))
    assert_equal(state(mine), state(eager))
    assert cuda.modes[-1] == "default"
    assert len(cuda.captures) == (how != "it waits")  # what is known beforehand is not tried
    (line,) = [r.message for r in caplog.records if r.name == cuda_graph.__name__]
    reason = "called a synchronizing" if how == "it waits" else "CUDA error: operation failed"
    assert line.startswith(
        f"the step cannot be captured as a CUDA graph, running without one: {reason}"
    )
    assert "\n" not in line


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("shapes do not match")]
)
def test_what_the_step_itself_raises_is_no_matter_of_graphs(program, cuda, caplog, error):
    mine = stack_of(program, 2)
    before = state(mine)

    class Raising(Step):
        def __call__(self, stack, batch):
            stack.params.packed[0].fill_(7.0)
            raise error

    (batch,) = make_steps(program, mine, 1)
    with pytest.raises(type(error), match=str(error)):
        executor(Raising(program), mine).advance(batch)
    assert_equal(state(mine), before)
    assert "CUDA graph" not in caplog.text


def test_memory_that_runs_out_in_a_capture_is_told_as_that(program, cuda):
    mine = stack_of(program, 2)

    class Short(Step):
        def __call__(self, *arguments):
            if cuda.capturing is not None:
                raise RuntimeError("CUDA error: out of memory")
            return super().__call__(*arguments)

    before = state(mine)
    (batch,) = make_steps(program, mine, 1)
    with pytest.raises(RuntimeError, match="out of memory"):
        executor(Short(program), mine).advance(batch)
    assert_equal(state(mine), before)
