"""Captured steps without a GPU: everything but the capture itself, which is made up here.

A made-up graph plays the operations of the captured step again, on the same tensors. Whether CUDA
takes a step is the question of test_cuda_graph.py and, without a GPU, of test_capturable.py.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import weakref
from types import SimpleNamespace

import pytest
import torch
from engine_support import block_of, filled
from support import make_spec
from torch.utils._python_dispatch import _disable_current_modes

from sweepstack.data import batches
from sweepstack.engine import step as steps
from sweepstack.engine.executors import Executor, cuda_graph
from sweepstack.engine.executors.cuda_graph import CudaGraph
from sweepstack.engine.executors.recording import Listener
from sweepstack.engine.program import Program
from sweepstack.engine.step import Step
from sweepstack.training import fused

WORDS = (
    *("model.hidden=[16]", "batch.size=16", "optimizer=adamw", "regularization.dropout=0.2"),
    *("regularization.weight_decay=0.1", "training.max_steps=20", "training.eval_every=10"),
)


class Graph:
    """The operations of a captured step."""

    def __init__(self):
        self.calls, self.played = [], 0

    @torch.no_grad()
    def replay(self):
        self.played += 1
        for call in self.calls:
            if call.is_view and not call.changed:
                continue
            found = call.operation(*call.args, **call.kwargs)
            found = found if isinstance(found, tuple | list) else [found]
            for kept, new in zip(call.results, found, strict=True):
                if kept is not new:
                    kept.copy_(new)


class Cuda:
    """What `cuda_graph.py` asks of torch.cuda."""

    def __init__(self):
        self.captures, self.modes, self.streams = [], ["default"], []
        self.capturing, self.ends_well = None, True

    @contextlib.contextmanager
    def graph(self, recorded, *, stream, capture_error_mode):
        assert capture_error_mode == "thread_local"
        self.captures.append(recorded)
        self.capturing = Listener()
        with self.capturing:
            yield
        recorded.calls, self.capturing = self.capturing.calls, None
        if not self.ends_well:
            raise RuntimeError("CUDA error: operation failed\nmore")

    @property
    def refuses_waiting(self):
        return self.modes[-1] == "error"


@pytest.fixture
def cuda(monkeypatch):
    monkeypatch.setattr(fused, "works", lambda name: False)  # as on a GPU
    fake, stream = Cuda(), SimpleNamespace(wait_stream=lambda other: None)

    def nothing(_):
        return contextlib.nullcontext()

    made_up = {
        **{"CUDAGraph": Graph, "Stream": lambda _: stream, "current_stream": lambda _: stream},
        **{"stream": nothing, "device": nothing, "set_stream": fake.streams.append},
        **{"graph": fake.graph, "get_sync_debug_mode": lambda: fake.modes[-1]},
        **{"set_sync_debug_mode": fake.modes.append, "synchronize": lambda _: None},
    }
    for name, value in made_up.items():
        monkeypatch.setattr(torch.cuda, name, value)
    cuda_graph.side_stream.cache_clear()
    yield fake
    cuda_graph.side_stream.cache_clear()


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


def executor(step, stack, source=None):
    return CudaGraph(step, stack, source or step.program.sources["train"])


LAUNCH = {"is_view": False, "args": (), "kwargs": {}, "results": [None], "changed": []}
BLOCKS = ((0, 3), (3, 1), (4, 5))
"""The first step of each, and how many."""


@pytest.mark.parametrize("most", [1000, 2])  # a block at once, and in pieces
@pytest.mark.parametrize("where", ["resident", "streamed"])
@pytest.mark.parametrize("width", [1, 3])
def test_replayed_blocks_equal_eager_ones(program, cuda, monkeypatch, width, where, most):
    monkeypatch.setattr(cuda_graph, "MAX_STEPS", most)
    eager, mine = stack_of(program, width), stack_of(program, width)
    step, source = Step(program), program.sources["train"]
    played = source
    if where == "streamed":
        played = batches.StreamSource(program.data.train, program.device, 0)
    plain, played = Executor(step, eager, source), executor(step, mine, played)
    for first, count in BLOCKS:
        block = block_of(program, eager, count, first)
        assert torch.equal(played.run(block), plain.run(block))
    assert_equal(state(mine), state(eager))
    assert eager.counts.views["hits"].sum() > 0
    (graph,) = cuda.captures
    assert graph.played == 9
    assert cuda.modes == ["default", "error", "default"]
    assert len(cuda.streams) == 1  # back where it was


def test_replays_need_no_operation_between_them(program, cuda, monkeypatch):
    """Neither a copy nor a launch: as many for a block of six steps as for one of two."""
    mine = stack_of(program, 3)
    played, counts = executor(Step(program), mine), []
    played.run(block_of(program, mine, 1))
    monkeypatch.setattr(Graph, "replay", lambda self: None)
    for count in (2, 6):
        block = block_of(program, mine, count)
        with Listener() as listener:
            played.run(block)
        counts.append(len(listener.calls))
    assert counts[0] == counts[1]


def test_batches_of_another_shape_have_a_graph_of_their_own(program, cuda):
    eager, mine = stack_of(program, 3), stack_of(program, 3)
    step = Step(program)
    plain, played = Executor(step, eager, program.sources["train"]), executor(step, mine)
    for number in range(6):
        block = block_of(program, eager, 2, 2 * number, shared=bool(number % 2))
        assert torch.equal(played.run(block), plain.run(block))
    assert len(cuda.captures) == 2
    assert_equal(state(mine), state(eager))


@pytest.mark.filterwarnings("ignore:.* encountered in:RuntimeWarning")
def test_the_update_kernel_reads_its_numbers_inside_the_graph(cuda, monkeypatch):
    """The kernel has the numbers of its step, which were computed for the whole block."""
    update = pytest.importorskip("sweepstack.engine.update")
    if torch.cuda.is_available():
        pytest.skip("without the interpreter, no kernel runs on a CPU")
    monkeypatch.setattr(steps, "TRITON", {"cpu"})
    monkeypatch.setattr(update.Update, "refusal", lambda self, one_row: None)
    monkeypatch.setattr(update, "_refusals", {})
    more = ("model.hidden=[4]", "regularization.clip_norm=0.5", "training.ema_decay=0.9")
    words = (*WORDS, *more)
    program = Program(make_spec(*words))
    specs = [make_spec(*words, f"training.seed={n}") for n in range(2)]
    eager, mine = filled(program, specs), filled(program, specs)
    original, step = update.Update._launch, Step(program)

    def launch(self, *given, **more):
        with _disable_current_modes():  # the interpreter's own operations are no part of a graph
            original(self, *given, **more)
        if cuda.capturing is not None:
            run = functools.partial(original, self, *given, **more)
            cuda.capturing.calls.append(SimpleNamespace(operation=run, **LAUNCH))

    monkeypatch.setattr(update.Update, "_launch", launch)
    plain, played = Executor(step, eager, program.sources["train"]), executor(step, mine)
    for first, count in ((0, 2), (2, 1)):
        block = block_of(program, eager, count, first)
        assert torch.equal(played.run(block), plain.run(block))
    assert_equal(state(mine), state(eager))
    assert step.kernel(mine) is not None


@pytest.mark.filterwarnings("ignore:.* encountered in:RuntimeWarning")
def test_the_probe_times_what_graphs_hold(cuda, monkeypatch):
    """And not the launches from Python, which a captured step does without."""
    update = pytest.importorskip("sweepstack.engine.update")
    if torch.cuda.is_available():
        pytest.skip("without the interpreter, no kernel runs on a CPU")
    program = Program.of(make_spec(*WORDS))
    probe, launched = update._Probe(update.Update(Step(program), [], ()), 2), []
    clock = iter([0.0, 9.0, 0.0, 3.0, 0.0, 1.0, 0.0, 2.0])
    monkeypatch.setattr(update.time, "perf_counter", lambda: next(clock))
    assert probe._seconds(lambda: launched.append(len(cuda.captures))) == 1.0
    assert launched == [1] * 5  # in the capture
    (graph,) = cuda.captures
    assert graph.played == 4
    assert len(cuda.streams) == 1  # back where it was
    took = {probe._fused: 2.0, probe._written_out: 3.0}
    monkeypatch.setattr(update._Probe, "_seconds", lambda self, way: took[way])
    assert probe.is_faster()
    took[probe._fused] = 4.0
    assert not probe.is_faster()


@pytest.mark.parametrize("width", [1, 2])
def test_a_kernel_that_fails_after_its_probe_is_not_used(cuda, monkeypatch, caplog, width):
    """With the rule that is written out, no step is lost or taken twice."""
    update = pytest.importorskip("sweepstack.engine.update")
    monkeypatch.setattr(update.Update, "refusal", lambda self, one_row: None)
    monkeypatch.setattr(update, "_refusals", {})
    words = (*WORDS, "model.hidden=[4]", "regularization.clip_norm=0.5")
    program = Program(make_spec(*words))
    eager, mine = stack_of(program, width), stack_of(program, width)
    plain, step = Executor(Step(program), eager, program.sources["train"]), Step(program)
    expected = [plain.run(block_of(program, eager, 3, first)) for first in (0, 3)]

    def launch(self, stack, *given, **more):
        stack.params.storage.fill_(7.0)
        raise TypeError("no such layout\nmore")

    monkeypatch.setattr(update.Update, "_launch", launch)
    monkeypatch.setattr(steps, "TRITON", {"cpu"})
    played = executor(step, mine)
    with caplog.at_level("INFO"):
        for first, losses in zip((0, 3), expected, strict=True):
            assert torch.equal(played.run(block_of(program, mine, 3, first)), losses)
    assert_equal(state(mine), state(eager))
    assert len(cuda.captures) == 1
    assert Step(program).kernel(mine) is None  # nor in the next stack
    assert [r.message for r in caplog.records if "Triton" in r.message] == [
        "adamw runs without its Triton kernel: no such layout more"
    ]


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
    plain = Executor(step, eager, program.sources["train"])
    for first, count in BLOCKS:
        block = block_of(program, eager, count, first)
        assert torch.equal(played.run(block), plain.run(block))
    assert_equal(state(mine), state(eager))
    assert cuda.modes[-1] == "default"
    assert len(cuda.captures) == (how != "it waits")  # what is known beforehand is not tried
    (line,) = [r.message for r in caplog.records if r.name == cuda_graph.__name__]
    reason = "called a synchronizing" if how == "it waits" else "CUDA error: operation failed"
    assert line.startswith(
        f"the step cannot be captured as a CUDA graph, running without one: {reason}"
    )
    assert "\n" not in line


def test_a_step_that_cannot_be_captured_leaves_no_tensors_of_its_stream(program, cuda):
    """torch warns of them in the next step; contextlib keeps them from Python 3.12 on."""
    mine, told = stack_of(program, 2), []

    class Waiting(Step):
        def __call__(self, *arguments):
            losses = super().__call__(*arguments)
            told.append(weakref.ref(losses[0]))
            if cuda.refuses_waiting:
                raise RuntimeError("called a synchronizing CUDA operation")
            return losses

    gc.disable()
    try:
        executor(Waiting(program), mine)._capture(block_of(program, mine, 1))
        assert [each() for each in told] == [None] * 3
    finally:
        gc.enable()


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

    with pytest.raises(type(error), match=str(error)):
        executor(Raising(program), mine).run(block_of(program, mine, 1))
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
    with pytest.raises(RuntimeError, match="out of memory"):
        executor(Short(program), mine).run(block_of(program, mine, 1))
    assert_equal(state(mine), before)
