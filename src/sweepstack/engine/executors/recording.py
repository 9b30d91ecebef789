"""The tensor operations of a function, recorded as it runs and run again without it.

A small model's step is a hundred operations of a few microseconds each, and Python, autograd and
vmap need longer to arrive at them than they take. A recording holds the operations alone, in the
order in which they came, as a short Python function. It is kept once two in a row are equal: what
reads a number out of a tensor, draws from torch's generator or has a result of varying shape is
never kept, and what differs from call to call (a counter that goes into the numbers) is noticed.
A recording gives bit-equal numbers, since it calls the same kernels on the same values.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.func import vmap

from sweepstack.config.errors import one_line
from sweepstack.engine.executors.operations import Listener
from sweepstack.engine.executors.source import NotRecordable, Source

MAX_RECORDINGS = 4
"""After so many, none like the one before, the function stays eager. The first may fill caches."""


@dataclass(frozen=True)
class Recording:
    """Recorded operations as source text, and the objects that it names."""

    source: str
    objects: Mapping[str, Any]

    def bind(self, lasting: Sequence[Tensor]) -> Callable[..., list[Tensor | list[Tensor]]]:
        """A function of the inputs that works on these tensors: like those of the recording, in
        the same order. It holds no state, so threads may share it."""
        names = dict(self.objects)
        exec(compile(self.source, "<recording>", "exec"), names)
        replay: Callable[..., list[Tensor | list[Tensor]]] = names["bind"](*lasting)
        return replay

    def equals(self, other: Recording) -> bool:
        """Whether another recording has the same operations, on the same constants."""
        pairs = ((self.objects[name], other.objects.get(name)) for name in self.objects)
        return self.source == other.source and all(_same(a, b) for a, b in pairs)


@dataclass
class Recorder:
    """What has been recorded of a function so far: a recording, why there is none, or neither."""

    recording: Recording | None = None
    reason: str | None = None
    _last: Recording | None = None
    _times: int = 0

    @property
    def open(self) -> bool:
        """Whether the next call has to be recorded."""
        return self.recording is None and self.reason is None

    def record(
        self,
        function: Callable[[], Sequence[Tensor]],
        lasting: Sequence[Tensor],
        inputs: Sequence[Tensor],
        *,
        apart: bool = False,
    ) -> list[Tensor]:
        """Run a function and record its operations; see `recorded`."""
        outputs, found = recorded(function, lasting, inputs, apart=apart)
        self._times += 1
        if isinstance(found, str):
            self.reason = found
        elif self._last is not None and self._last.equals(found):
            self.recording = found
        elif self._times == MAX_RECORDINGS:
            self.reason = "what it does changes from call to call"
        self._last = found if self.open and isinstance(found, Recording) else None
        return outputs


def recorded(
    function: Callable[[], Sequence[Tensor]],
    lasting: Sequence[Tensor],
    inputs: Sequence[Tensor],
    *,
    apart: bool = False,
) -> tuple[list[Tensor], Recording | str]:
    """Run a function once and record the tensor operations that it comes to.

    Args:
        function: computes some tensors from `lasting`, `inputs` and constants.
        lasting: tensors that stay where they are: views of them are made once, when a recording
            is bound.
        inputs: tensors that are others in each call, always of the same shapes.
        apart: whether an output that only puts tensors together (torch.stack) may be a list of
            these instead when the recording is replayed.

    Returns:
        What the function returned, and the recording or why there can be none.

    Raises:
        Exception: whatever the function raises.
    """
    listener = Listener()
    try:
        with listener:
            outputs = list(function())
    except Exception as error:  # perhaps only because it was looked at, or took more memory
        reason = one_line(error) or type(error).__name__
        listener.calls.clear()
    else:
        try:
            source = Source(lasting, inputs, listener.calls)
            return outputs, Recording(source.text(outputs, apart=apart), source.objects)
        except NotRecordable as refused:
            return outputs, str(refused)
    return list(function()), reason


def self_test() -> None:
    """Record a small function with vmap, a gradient and a change in place, and replay it on other
    numbers.

    Raises:
        Exception: this torch cannot be recorded, or a replay gives other numbers.
    """
    weight, total = torch.arange(6.0).view(2, 3).requires_grad_(), torch.zeros(2)

    def function(weight: Tensor, total: Tensor, x: Tensor) -> list[Tensor]:
        losses = vmap(lambda row: (row * x).relu().square().sum())(weight)
        total.mul_(0.5).add_(losses.detach())
        return [losses.detach(), *torch.autograd.grad(losses.sum(), [weight])]

    recorder, x, other = Recorder(), torch.tensor([1.0, -2.0, 3.0]), torch.tensor([0.5, 2.0, -1.0])
    while recorder.open:
        recorder.record(lambda: function(weight, total, x), [weight, total], [x])
    if recorder.recording is None:
        raise RuntimeError(recorder.reason)
    mine, before = total.clone(), total.clone()
    with torch.no_grad():
        found = recorder.recording.bind([weight, mine])(other)
    expected = function(weight, before, other)
    if not all(map(_same, [*found, mine], [*expected, before])):
        raise RuntimeError("a replayed recording gives other numbers")


def _same(one: Any, other: Any) -> bool:
    if one is other:
        return True
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        alike = (one.shape, one.dtype, one.device) == (other.shape, other.dtype, other.device)
        return alike and torch.equal(one, other)
    return type(one) is type(other) and bool(one == other)
