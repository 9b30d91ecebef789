"""A training step as a CUDA graph: captured once for a stack, replayed with other numbers.

A small model's step is hundreds of kernels of a few microseconds; launching them one by one from
Python takes longer than running them. A stack's tensors keep their addresses, so that a captured
step stays valid while trials come and go.

The captured step also gathers its batch. What the steps of a block have of their own (sample
numbers, learning rates, keys of random streams) is copied to the device once for all of them; the
step reads the row of an index there, which it increments itself. A replay needs no copy then, but
for the samples of a split that does not live on the device.

Notation: T steps, S slots, B samples of a batch, R numbers of 8 bytes that a slot has in a step.
"""

from __future__ import annotations

import logging
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch
from torch import Tensor

from sweepstack.config.errors import one_line
from sweepstack.data.batches import DeviceSource, Source
from sweepstack.engine.executors import Executor
from sweepstack.engine.step import Batch, Block, Step
from sweepstack.models.custom import side_effects, warn_of_side_effects
from sweepstack.training import device
from sweepstack.training.stack import Stack

log = logging.getLogger(__name__)

WARM_UP = 2
"""Steps before the capture in which libraries choose their kernels and allocate; one more tries
whether the step can be captured."""


MAX_STEPS = 1000
MAX_SAMPLES = 2**20
"""Maximum numbers of steps and of sample numbers on the device at once; a longer block is run in
pieces."""


class CudaGraph(Executor):
    """Captures a step at the first block of a shape, then replays it.

    When a module cannot be captured, each step runs as it is written.
    """

    def __init__(self, step: Step, stack: Stack, source: Source):
        super().__init__(step, stack, source)
        self._captured: dict[torch.Size, _Captured] = {}
        self._eager = False

    def run(self, block: Block) -> Tensor:
        """See `Executor.run`."""
        shape = block.samples.shape[1:]
        while not self._eager and shape not in self._captured:
            self._capture(block)
        if self._eager:
            return super().run(block)
        captured = self._captured[shape]
        with torch.cuda.device(self.stack.device):
            starts = range(0, len(block.lr), captured.size)
            return torch.cat([captured.run(block[n : n + captured.size]) for n in starts])

    def _capture(self, block: Block) -> None:
        """Capture a step or give it up; or neither, where the kernel of updates failed."""
        kernel = self.step.kernel(self.stack)
        try:
            with torch.cuda.device(self.stack.device):  # captures are of the current device
                captured = _Captured(self.step, self.stack, self.source, block)
        except Exception as error:
            if self.step.kernel(self.stack) is not kernel:
                return  # it failed, and is used no more
            if not isinstance(error, Uncapturable):
                raise
            self._eager = True
            # Tensors of the side stream may not outlive it: from Python 3.12 on, contextlib leaves
            # the error in a cycle, and a log record would keep it.
            traceback.clear_frames(error.__traceback__)
            log.warning(
                "the step cannot be captured as a CUDA graph, running without one: %s", str(error)
            )
        else:
            self._captured[block.samples.shape[1:]] = captured


class Uncapturable(Exception):
    """A step cannot be captured."""


class _Captured:
    """A captured step with the tensors that it reads: `rows` (size, R, S), `samples` (size, S, B)
    or (size, B), and `index` (1,) of the step that is next; and those that it writes, `told`.

    Raises:
        Uncapturable: the step waits for the device, or cannot be captured otherwise.
    """

    def __init__(self, step: Step, stack: Stack, source: Source, block: Block):
        self.step, self.stack, self.source = step, stack, source
        self.kernel, self.names, self.shared = step.kernel(stack), list(block.keys), block.shared
        samples, place = block.samples, stack.device
        self.size = max(1, min(MAX_STEPS, MAX_SAMPLES // samples[0].numel()))
        self.resident = isinstance(source, DeviceSource)
        self.index = torch.zeros(1, dtype=torch.int64, device=place)
        kept = self.size if self.resident else 0
        self.samples = torch.zeros(kept, *samples.shape[1:], dtype=torch.int64, device=place)
        rows = self._rows(block[:1])
        self.rows = rows.new_zeros(self.size, *rows.shape[1:])
        self.given = [] if self.resident else list(next(iter(source.batches(samples[:1]))))
        self.told: list[Tensor] = []
        self.graph = torch.cuda.CUDAGraph()
        self._load(block[:1])
        self._capture()

    def _capture(self) -> None:
        stack = self.stack
        views = [view for bank in stack.banks.values() for view in bank.views.values()]
        before = [view.clone() for view in views]
        here, side = torch.cuda.current_stream(stack.device), side_stream(stack.device)
        try:
            side.wait_stream(here)
            with torch.cuda.stream(side):
                for _ in range(WARM_UP):
                    self._warm_up()
                with _capturable(), _waiting_refused(), side_effects(self.step.module) as seen:
                    self._warm_up()
            # Other threads, such as one that pins batches, are not affected.
            mode = "thread_local"
            with (
                _capturable(),
                torch.cuda.graph(self.graph, stream=side, capture_error_mode=mode),
            ):
                self._advance()
        finally:
            torch.cuda.set_stream(here)  # torch 2.11 stays on the other where a capture raises
            here.wait_stream(side)
            for view, old in zip(views, before, strict=True):  # the warm-up has trained
                view.copy_(old)
        warn_of_side_effects(self.step.module, seen)

    def _warm_up(self) -> None:
        """A step of the first row, as the only one that is filled."""
        self.index.zero_()
        self._advance()

    def _advance(self) -> None:
        """A step of the row that `index` names."""
        told = self.step(self.stack, self._batch())
        with torch.no_grad():
            if not self.told:  # room for what the steps of a block tell
                self.told = [each.new_zeros(self.size, *each.shape) for each in told]
            for kept, each in zip(self.told, told, strict=True):
                kept.index_copy_(0, self.index, each.unsqueeze(0))
            self.index.add_(1)

    def _rows(self, block: Block) -> Tensor:
        """What slots have in each step, all as int64 (T, R, S)."""
        rows = [block.lr.view(torch.int64), block.step, *(block.keys[name] for name in self.names)]
        found = torch.stack(rows, 1)
        if self.kernel is None:
            return found
        at = block.keys.get("at")
        numbers = self.kernel.numbers(self.stack, block.lr, block.step, at).flatten(1, 2)
        return torch.cat([found, numbers.view(torch.int64)], 1)

    def _batch(self) -> Batch:
        """The batch of the step that `index` names."""
        row, first = self.rows.index_select(0, self.index)[0], 2 + len(self.names)
        keys = dict(zip(self.names, row[2:first].unbind(0), strict=True))
        numbers = None
        if self.kernel is not None:
            groups = len(self.step.program.groups)
            numbers = row[first:].view(torch.float64).view(groups, -1, self.stack.width)
        if self.resident:
            (x, y), *_ = self.source.batches(self.samples.index_select(0, self.index))
        else:
            x, y = self.given
        return Batch(x, y, row[0].view(torch.float64), row[1], keys, self.shared, numbers)

    def _load(self, block: Block) -> None:
        """Bring what the steps of a block have of their own to the device."""
        self.rows[: len(block.lr)].copy_(self._rows(block))
        if self.resident:
            self.samples[: len(block.lr)].copy_(block.samples)
        self.index.zero_()

    def run(self, block: Block) -> Tensor:
        """The losses (T, S) of at most `size` steps."""
        self._load(block)
        if self.resident:
            for _ in range(len(block.lr)):
                self.graph.replay()
        else:
            for batch in self.source.batches(block.samples):
                for mine, given in zip(self.given, batch, strict=True):
                    mine.copy_(given)
                self.graph.replay()
        losses, *told = (kept[: len(block.lr)] for kept in self.told)
        if told:
            with torch.no_grad():
                self.step.add_hits(self.stack, told)
        return losses.clone()


@cache
def side_stream(place: torch.device) -> torch.cuda.Stream:
    """The stream of a device's captures; one, as a stream's cuBLAS workspace is never freed."""
    return torch.cuda.Stream(place)  # type: ignore[no-untyped-call]


@contextmanager
def _capturable() -> Iterator[None]:
    """Turn errors, unless memory ran out, into `Uncapturable`."""
    try:
        yield
    except RuntimeError as error:
        if device.out_of_memory(error):
            raise
        raise Uncapturable(one_line(error)) from error


@contextmanager
def _waiting_refused() -> Iterator[None]:
    """Make it an error to wait for the device. In a capture it is one too, but corrupts the memory
    of the process (torch 2.11)."""
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls the mode a prototype
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode(before)
