"""A training step as a CUDA graph: captured once for a stack, replayed with other numbers.

A small model's step is hundreds of kernels of a few microseconds; launching them one by one from
Python takes longer than running them. A stack's tensors keep their addresses, so that a captured
step stays valid while trials come and go.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch
from torch import Tensor

from sweepstack.config.errors import one_line
from sweepstack.data.batches import Source
from sweepstack.engine import device
from sweepstack.engine.executors import Executor, side_effects, warn_of_side_effects
from sweepstack.engine.stack import Stack
from sweepstack.engine.step import Batch, Step

log = logging.getLogger(__name__)

WARM_UP = 2
"""Steps before the capture in which libraries choose their kernels and allocate; one more tries
whether the step can be captured."""


class CudaGraph(Executor):
    """Captures a step at the first batch of a shape, then replays it.

    When a module cannot be captured, each step runs as it is written.
    """

    def __init__(self, step: Step, stack: Stack, source: Source):
        super().__init__(step, stack, source)
        self._captured: dict[torch.Size, _Captured] = {}
        self._eager = False

    def advance(self, batch: Batch) -> list[Tensor]:
        """See `Executor.advance`."""
        if not self._eager and batch.x.shape not in self._captured:
            self._capture(batch)
        if self._eager:
            return super().advance(batch)
        with torch.cuda.device(self.stack.device):
            return self._captured[batch.x.shape].replay(batch)

    def _capture(self, batch: Batch) -> None:
        try:
            with torch.cuda.device(self.stack.device):  # captures are of the current device
                self._captured[batch.x.shape] = _Captured(self.step, self.stack, batch)
        except Uncapturable as error:
            self._eager = True
            log.warning(
                "the step cannot be captured as a CUDA graph, running without one: %s", error
            )


class Uncapturable(Exception):
    """A step cannot be captured."""


class _Captured:
    """A captured step with the tensors that it reads.

    Raises:
        Uncapturable: the step waits for the device, or cannot be captured otherwise.
    """

    def __init__(self, step: Step, stack: Stack, batch: Batch):
        keys = {name: key.clone() for name, key in batch.keys.items()}
        x, y, lr, at = (t.clone() for t in (batch.x, batch.y, batch.lr, batch.step))
        self.batch = Batch(x, y, lr, at, keys, batch.shared)
        self.graph = torch.cuda.CUDAGraph()
        views = [view for bank in stack.banks.values() for view in bank.views.values()]
        before = [view.clone() for view in views]
        here, side = torch.cuda.current_stream(stack.device), _side_stream(stack.device)
        try:
            side.wait_stream(here)
            with torch.cuda.stream(side):
                for _ in range(WARM_UP):
                    step(stack, self.batch)
                with _capturable(), _waiting_refused(), side_effects(step.module) as seen:
                    step(stack, self.batch)
            # Other threads, such as one that pins batches, are not affected.
            mode = "thread_local"
            with (
                _capturable(),
                torch.cuda.graph(self.graph, stream=side, capture_error_mode=mode),
            ):
                self.told = step(stack, self.batch)
        finally:
            torch.cuda.set_stream(here)  # torch 2.11 stays on the other where a capture raises
            here.wait_stream(side)
            for view, old in zip(views, before, strict=True):  # the warm-up has trained
                view.copy_(old)
        warn_of_side_effects(step.module, seen)

    def replay(self, batch: Batch) -> list[Tensor]:
        """A step with these numbers; the losses are overwritten by the next."""
        old = self.batch
        pairs = [(old.x, batch.x), (old.y, batch.y), (old.lr, batch.lr), (old.step, batch.step)]
        for tensor, given in [*pairs, *((old.keys[n], key) for n, key in batch.keys.items())]:
            tensor.copy_(given)
        self.graph.replay()
        losses, *told = self.told
        return [losses, *(each.clone() for each in told)]


@cache
def _side_stream(place: torch.device) -> torch.cuda.Stream:
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
