"""The tensor operations of a function, recorded as it runs and run again without it.

A small model's step is a hundred operations of a few microseconds each, and Python, autograd and
vmap need longer to arrive at them than they take. A tape holds the operations alone, in the order
in which they came, as a short Python function. It is kept once two recordings in a row are equal:
what reads a number out of a tensor, draws from torch's generator or has a result of varying shape
is never on tape, and what differs from call to call (a counter in a module) is noticed.

Called by `steps.py`. It is to a CPU what `graph.py` is to a GPU: a tape gives bit-equal numbers,
since it calls the same kernels on the same values.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from iolaus.engine.executors.source import Call, NotRecordable, Writer
from iolaus.errors import one_line

Output = Tensor | list[Tensor]
Run = Callable[..., list[Output]]
"""The operations again: takes the inputs, gives the outputs."""

RECORDINGS = 4
"""After so many, none like the one before, there will be no tape. The first may fill caches."""


@dataclass(frozen=True)
class Tape:
    """Recorded operations as source text, and the objects that it names."""

    source: str
    objects: Mapping[str, Any]

    def bind(self, lasting: Sequence[Tensor]) -> Run:
        """A function of the inputs that works on these tensors: like those of the recording, in
        the same order. It holds no state, so threads may share it."""
        names = dict(self.objects)
        exec(compile(self.source, "<tape>", "exec"), names)
        run: Run = names["bind"](*lasting)
        return run

    def equals(self, other: Tape) -> bool:
        """Whether another recording has the same operations, on the same constants."""
        pairs = ((self.objects[name], other.objects.get(name)) for name in self.objects)
        return self.source == other.source and all(_same(a, b) for a, b in pairs)


@dataclass
class Reel:
    """What has been recorded of a function so far: a tape, why there is none, or neither yet."""

    tape: Tape | None = None
    reason: str | None = None
    _last: Tape | None = None
    _times: int = 0

    @property
    def open(self) -> bool:
        """Whether the next call has to be recorded."""
        return self.tape is None and self.reason is None

    def record(
        self,
        function: Callable[[], Sequence[Tensor]],
        lasting: Sequence[Tensor],
        inputs: Sequence[Tensor],
        *,
        apart: bool = False,
    ) -> list[Tensor]:
        """Run a function and write down the operations that it comes to; see `recorded`."""
        outputs, found = recorded(function, lasting, inputs, apart=apart)
        self._times += 1
        if isinstance(found, str):
            self.reason = found
        elif self._last is not None and self._last.equals(found):
            self.tape = found
        elif self._times == RECORDINGS:
            self.reason = "what it does changes from call to call"
        self._last = found if self.open and isinstance(found, Tape) else None
        return outputs


def recorded(
    function: Callable[[], Sequence[Tensor]],
    lasting: Sequence[Tensor],
    inputs: Sequence[Tensor],
    *,
    apart: bool = False,
) -> tuple[list[Tensor], Tape | str]:
    """Run a function once and write down the tensor operations that it comes to.

    Args:
        function: computes some tensors from `lasting`, `inputs` and constants.
        lasting: tensors that stay where they are: views of them are made once, when a tape is
            bound.
        inputs: tensors that are others in each call, always of the same shapes.
        apart: whether an output that only puts tensors together (torch.stack) may be a list of
            these instead, when the tape is run.

    Returns:
        What the function returned, and the tape or why there can be none.

    Raises:
        Exception: whatever the function raises.
    """
    recorder = _Recorder()
    try:
        with recorder:
            outputs = list(function())
    except Exception as error:  # perhaps only because it was looked at, or took more memory
        reason = one_line(error) or type(error).__name__
        recorder.calls.clear()
    else:
        try:
            writer = Writer(lasting, inputs, recorder.calls)
            return outputs, Tape(writer.text(outputs, apart=apart), writer.objects)
        except NotRecordable as refused:
            return outputs, str(refused)
    return list(function()), reason


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Writes down every operation below autograd and vmap. All tensors live until it is gone, so
    that their ids stay theirs."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[Call] = []

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # to skip it means to import it, which takes seconds

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        found = func(*args, **(kwargs or {}))
        self.calls.append(Call(func, args, kwargs or {}, found))
        return found


def _same(one: Any, other: Any) -> bool:
    if one is other:
        return True
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        alike = (one.shape, one.dtype, one.device) == (other.shape, other.dtype, other.device)
        return alike and torch.equal(one, other)
    return type(one) is type(other) and bool(one == other)
