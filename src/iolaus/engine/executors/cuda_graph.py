"""A training step as a CUDA graph: captured once for a stack, replayed with other numbers.

A small model's step is hundreds of kernels of a few microseconds; launching them one by one from
Python takes longer than running them. A stack's tensors keep their addresses, so that a captured
step stays valid while trials come and go. Called by `steps.py`.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

import torch
from torch import Tensor

from iolaus.engine import device
from iolaus.engine.stack import Stack
from iolaus.engine.step import Moment
from iolaus.errors import one_line

log = logging.getLogger(__name__)

Function = Callable[[Stack, Tensor, Tensor, Moment], Tensor]
"""One step of a stack: (stack, x, y, moment) to losses (S,)."""
WARM_UP = 2
"""Steps before the capture in which libraries choose their kernels and allocate; one more tries
whether the step can be captured."""


def captures(place: torch.device) -> bool:
    """Whether steps on this device are captured."""
    return place.type == "cuda"


class Replayed:
    """Steps of one stack: captured at the first call with batches of a shape, then replayed.

    When a module does what no graph can hold, each call runs the step itself.
    """

    def __init__(self, step: Function, stack: Stack):
        self._step, self._stack = step, stack
        self._captured: dict[torch.Size, _Captured] = {}
        self._eager = False

    def __call__(self, x: Tensor, y: Tensor, moment: Moment) -> Tensor:
        """Advance the stack by a step; returns losses (S,), overwritten by the next call."""
        if not self._eager and x.shape not in self._captured:
            self._capture(x, y, moment)
        if self._eager:
            return self._step(self._stack, x, y, moment)
        with torch.cuda.device(self._stack.device):
            return self._captured[x.shape].replay(x, y, moment)

    def _capture(self, x: Tensor, y: Tensor, moment: Moment) -> None:
        try:
            with torch.cuda.device(self._stack.device):  # captures are of the current device
                self._captured[x.shape] = _Captured(self._step, self._stack, x, y, moment)
        except Uncapturable as error:
            self._eager = True
            log.warning("the step cannot be a CUDA graph and runs without one: %s", error)


class Uncapturable(Exception):
    """A step does what no graph can hold."""


class _Captured:
    """A captured step with the tensors that it reads.

    Raises:
        Uncapturable: the step waits for the device, or does what else no graph can hold.
        Exception: what the step itself raises.
    """

    def __init__(self, step: Function, stack: Stack, x: Tensor, y: Tensor, moment: Moment):
        self.x, self.y = x.clone(), y.clone()
        keys = {name: key.clone() for name, key in moment.keys.items()}
        self.moment = Moment(moment.lr.clone(), moment.step.clone(), keys)
        self.graph = torch.cuda.CUDAGraph()
        views = [view for bank in stack.banks for view in bank.views.values()]
        before = [view.clone() for view in views]
        here, aside = torch.cuda.current_stream(stack.device), _aside(stack.device)

        def run() -> Tensor:
            return step(stack, self.x, self.y, self.moment)

        try:
            aside.wait_stream(here)
            with torch.cuda.stream(aside):
                for _ in range(WARM_UP):
                    run()
                with _capturable(), _waiting_refused():
                    run()
            # Other threads, such as one that pins batches, may go on as they like.
            mode = "thread_local"
            with (
                _capturable(),
                torch.cuda.graph(self.graph, stream=aside, capture_error_mode=mode),
            ):
                self.losses = run()
        finally:
            torch.cuda.set_stream(here)  # torch 2.11 stays aside where the end of a capture raises
            here.wait_stream(aside)
            for view, old in zip(views, before, strict=True):  # the warm-up has trained
                view.copy_(old)

    def replay(self, x: Tensor, y: Tensor, moment: Moment) -> Tensor:
        """A step with these numbers."""
        self.x.copy_(x)
        self.y.copy_(y)
        self.moment.lr.copy_(moment.lr)
        self.moment.step.copy_(moment.step)
        for name, key in moment.keys.items():
            self.moment.keys[name].copy_(key)
        self.graph.replay()
        return self.losses


@cache
def _aside(place: torch.device) -> torch.cuda.Stream:
    """The stream of a device's captures: each stream has a workspace of cuBLAS that stays."""
    return torch.cuda.Stream(place)  # type: ignore[no-untyped-call]


@contextmanager
def _capturable() -> Iterator[None]:
    """What goes wrong here, but for want of memory, says that the step is not capturable."""
    try:
        yield
    except RuntimeError as error:
        if device.out_of_memory(error):
            raise
        raise Uncapturable(one_line(error)) from error


@contextmanager
def _waiting_refused() -> Iterator[None]:
    """Make it an error to wait for the device. A capture would end by it too, but leave the memory
    of the process in disorder (torch 2.11)."""
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls the mode a prototype
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode(before)
