"""A training step as a CUDA graph: captured once for a stack, replayed with other numbers.

A small model's step is hundreds of kernels of a few microseconds; launching them one by one from
Python takes longer than running them. A stack's tensors keep their addresses, so that a captured
step stays valid while trials come and go. Called by `steps.py`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import Tensor

from iolaus.errors import one_line
from iolaus.stack import Stack
from iolaus.step import Moment

log = logging.getLogger(__name__)

Function = Callable[[Stack, Tensor, Tensor, Moment], Tensor]
"""One step of a stack: (stack, x, y, moment) to losses (S,)."""
WARM_UP = 3
"""Steps before the capture, in which libraries choose their kernels and allocate."""


def captures(device: torch.device) -> bool:
    """Whether steps on `device` are captured."""
    return device.type == "cuda"


class Replayed:
    """Steps of one stack: captured at the first call with batches of a shape, then replayed.

    When a module does what no graph can hold, each call runs the step itself.
    """

    def __init__(self, step: Function, stack: Stack):
        self._step, self._stack = step, stack
        self._captured: _Captured | None = None
        self._eager = False

    def __call__(self, x: Tensor, y: Tensor, moment: Moment) -> Tensor:
        """Advance the stack by a step; returns losses (S,), overwritten by the next call."""
        if not self._eager and (self._captured is None or self._captured.x.shape != x.shape):
            self._captured = self._capture(x, y, moment)
        if self._captured is None:
            return self._step(self._stack, x, y, moment)
        with torch.cuda.device(self._stack.device):
            return self._captured.replay(x, y, moment)

    def _capture(self, x: Tensor, y: Tensor, moment: Moment) -> _Captured | None:
        try:
            with torch.cuda.device(self._stack.device):  # captures are of the current device
                return _Captured(self._step, self._stack, x, y, moment)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            self._eager = True
            log.warning("the step cannot be a CUDA graph and runs without one: %s", one_line(error))
            return None


class _Captured:
    """A captured step with the tensors that it reads."""

    def __init__(self, step: Function, stack: Stack, x: Tensor, y: Tensor, moment: Moment):
        self.x, self.y = x.clone(), y.clone()
        keys = {name: key.clone() for name, key in moment.keys.items()}
        self.moment = Moment(moment.lr.clone(), moment.step.clone(), keys)
        self.graph = torch.cuda.CUDAGraph()
        views = [view for bank in stack.banks for view in bank.views.values()]
        before = [view.clone() for view in views]
        try:
            aside = torch.cuda.Stream(stack.device)  # type: ignore[no-untyped-call]
            aside.wait_stream(torch.cuda.current_stream(stack.device))
            with torch.cuda.stream(aside):
                for _ in range(WARM_UP):
                    step(stack, self.x, self.y, self.moment)
            torch.cuda.current_stream(stack.device).wait_stream(aside)
            with torch.cuda.graph(self.graph, stream=aside):
                self.losses = step(stack, self.x, self.y, self.moment)
        finally:  # the warm-up has trained
            for view, old in zip(views, before, strict=True):
                view.copy_(old)

    def replay(self, x: Tensor, y: Tensor, moment: Moment) -> Tensor:
        self.x.copy_(x)
        self.y.copy_(y)
        self.moment.lr.copy_(moment.lr)
        self.moment.step.copy_(moment.step)
        for name, key in moment.keys.items():
            self.moment.keys[name].copy_(key)
        self.graph.replay()
        return self.losses
