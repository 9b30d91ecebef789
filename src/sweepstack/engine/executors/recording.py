"""The tensor operations of a function, recorded as it runs and run again without it.

A small model's step is a hundred operations of a few microseconds each; Python, autograd and vmap
take longer to reach them than they take. A recording holds the operations alone, in order, as a
short Python function. It is used once two in a row are equal. What reads a number out of a tensor,
draws from torch's generator, has a result of varying shape, or differs from call to call is not
recorded. A recording gives bit-equal numbers: it calls the same kernels on the same values.

The only module with torch's private names of operations (`_python_dispatch`, schemas); `self_test`
tests it before it is used.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.func import vmap
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from sweepstack.config.errors import one_line

_REFUSED = {
    torch.Tag.data_dependent_output: "reads a number out of a tensor",
    torch.Tag.dynamic_output_shape: "has a result whose shape depends on numbers",
    torch.Tag.nondeterministic_seeded: "draws from torch's generator",
    torch.Tag.inplace_view: "changes a tensor's shape in place",
}
_READ = {torch.Tensor.tolist, torch.Tensor.numpy, torch.Tensor.__array__, torch.Tensor.__dlpack__}
"""What hands on the numbers of a tensor and is no operation."""
_aten = torch.ops.aten
_ALIASES = {_aten.alias.default, _aten.detach.default}
_FILLED = {
    *(_aten.zeros_like.default, _aten.ones_like.default, _aten.full_like.default),
    *(_aten.new_zeros.default, _aten.new_ones.default, _aten.new_full.default),
    *(_aten.zeros.default, _aten.ones.default, _aten.full.default, _aten.arange.default),
}
"""Operations whose result depends on shapes alone."""
_SMALL = 2**16
_BY_VALUE = (torch.dtype, torch.device, torch.layout, torch.memory_format)
MAX_RECORDINGS = 4
"""After so many unequal ones the function stays eager. The first may fill caches."""


@dataclass(frozen=True)
class Recording:
    """Recorded operations as source text, and the objects that it names."""

    source: str
    objects: Mapping[str, Any]

    def bind(self, persistent: Sequence[Tensor]) -> Callable[..., list[Tensor | list[Tensor]]]:
        """A function of the inputs that works on these tensors: like those of the recording, in
        the same order. It holds no state, so threads may share it."""
        names = dict(self.objects)
        exec(compile(self.source, "<recording>", "exec"), names)
        replay: Callable[..., list[Tensor | list[Tensor]]] = names["bind"](*persistent)
        return replay

    def equals(self, other: Recording) -> bool:
        """Whether another recording has the same operations, on the same constants."""
        pairs = ((self.objects[name], other.objects.get(name)) for name in self.objects)
        return self.source == other.source and all(_same(a, b) for a, b in pairs)


@dataclass
class Recorder:
    """Records a function: has a recording, the reason why there is none, or neither so far."""

    recording: Recording | None = None
    reason: str | None = None
    _last: Recording | None = None
    _times: int = 0

    @property
    def open(self) -> bool:
        """Whether to record the next call."""
        return self.recording is None and self.reason is None

    def record(
        self,
        function: Callable[[], Sequence[Tensor]],
        persistent: Sequence[Tensor],
        inputs: Sequence[Tensor],
        *,
        apart: bool = False,
    ) -> list[Tensor]:
        """Run a function and record its operations; see `recorded`. Before a recording is used, it
        is replayed on the same numbers and compared."""
        before = [] if self._last is None else [tensor.clone() for tensor in persistent]
        outputs, found = recorded(function, persistent, inputs, apart=apart)
        self._times += 1
        if isinstance(found, str):
            self.reason = found
        elif self._last is not None and self._last.equals(found):
            self.reason = _why_not_replayed(found, before, inputs, outputs)
            self.recording = found if self.reason is None else None
        elif self._times == MAX_RECORDINGS:
            self.reason = "what it does changes from call to call"
        self._last = found if self.open and isinstance(found, Recording) else None
        return outputs


def recorded(
    function: Callable[[], Sequence[Tensor]],
    persistent: Sequence[Tensor],
    inputs: Sequence[Tensor],
    *,
    apart: bool = False,
) -> tuple[list[Tensor], Recording | str]:
    """Run a function once and record the tensor operations that it comes to.

    Args:
        function: computes some tensors from `persistent`, `inputs` and constants.
        persistent: tensors that stay where they are: views of them are made once, when a recording
            is bound.
        inputs: tensors that are others in each call, always of the same shapes.
        apart: whether an output that only puts tensors together (torch.stack) may be a list of
            these instead when the recording is replayed.

    Returns:
        What the function returned, and the recording or why there can be none.

    Raises:
        Exception: whatever the function raises.
    """
    listener, readings = Listener(), Readings()
    try:
        with listener, readings:
            outputs = list(function())
    except Exception as error:  # perhaps only because of recording: it takes more memory
        reason = one_line(error) or type(error).__name__
        listener.calls.clear()
    else:
        if readings.seen:
            return outputs, f"{readings.seen} {_REFUSED[torch.Tag.data_dependent_output]}"
        try:
            source = _SourceText(persistent, inputs, listener.calls, outputs)
            return outputs, Recording(source.text(apart=apart), source.objects)
        except NotRecordable as refused:
            return outputs, str(refused)
    return list(function()), reason


def _why_not_replayed(
    recording: Recording, before: Sequence[Tensor], inputs: Sequence[Tensor], outputs: list[Tensor]
) -> str | None:
    """Why a replay does not give `outputs`: an operation may look at more than its arguments, as
    LSTM's does at whether gradients are on. None if it does."""
    try:
        with torch.no_grad():
            found = recording.bind(before)(*inputs)
    except Exception as error:
        return f"a replay raises {one_line(error)}"
    for mine, other in zip(found, outputs, strict=True):
        again = torch.stack(mine) if isinstance(mine, list) else mine
        if not torch.allclose(again.double(), other.double(), 1e-3, 1e-6, equal_nan=True):
            return "a replay gives other numbers"
    return None


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


# --- source text ----------------------------------------------------------------------------------


class NotRecordable(Exception):
    """The function cannot be recorded; the message says why."""


@dataclass
class _Line:
    """`outputs = text`, which has the tensors `uses`."""

    text: str
    outputs: list[str]
    uses: set[str]
    changes: bool
    parts: list[str] | None = None  # what a torch.stack along the first axis puts together
    several: bool = False

    def __str__(self) -> str:
        left = ", ".join(self.outputs) + ("," if self.several else "")
        return f"{left} = {self.text}" if self.outputs else self.text


@dataclass
class _SourceText:
    """Turns recorded operations into source text: `bind(persistent tensors)` makes views of them
    once and gives `replay(inputs)`, which has one line for each operation that something depends
    on, and frees each tensor after its last use.

    Raises:
        NotRecordable: an operation cannot be recorded.
    """

    persistent: Sequence[Tensor]
    inputs: Sequence[Tensor]
    calls: Sequence[Call]
    outputs: Sequence[Tensor]  # which the caller may write to
    names: dict[int, str] = field(default_factory=dict)
    objects: dict[str, Any] = field(default_factory=dict)
    fixed: set[str] = field(default_factory=set)  # names of what is the same in each run
    filled: set[str] = field(default_factory=set)  # of what is made of shapes and constants alone
    constants: set[str] = field(default_factory=set)  # names of tensors from elsewhere
    bases: dict[str, str] = field(default_factory=dict)  # of a view
    once: list[_Line] = field(default_factory=list)
    each: list[_Line] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._known: dict[Any, str] = {}
        for tensors, letter in ((self.persistent, "p"), (self.inputs, "x")):
            for tensor in tensors:
                self._name(tensor, letter)
        self.fixed.update(self.names[id(tensor)] for tensor in self.persistent)
        self.changed = _all_changed(self.calls, self.outputs)
        for call in self.calls:
            self._add(call)

    def _add(self, call: Call) -> None:
        if call.refusal is not None:
            raise NotRecordable(call.refusal)
        uses: set[str] = set()
        args = [self._text(value, uses) for value in call.args]
        args += [f"{key}={self._text(value, uses)}" for key, value in call.kwargs.items()]
        if _is_alias(call):
            self.names[id(call.found)] = self.names[id(call.args[0])]
            return
        changed, found = call.changed, call.results
        if any(self._base(tensor) in self.constants for tensor in changed):
            raise NotRecordable(f"{call.operation} changes a tensor that is not the trial's")
        if self._is_filled(call, uses):
            self._object_of(call.found, self.filled)
            return
        once = not changed and call.is_view and uses <= self.fixed
        if changed and all(id(tensor) in self.names for tensor in found):
            outputs = []  # an operation in place
        else:
            outputs = [self._name(tensor, "c" if once else "v") for tensor in found]
        if call.is_view:
            self.bases |= dict.fromkeys(outputs, self._base(call.args[0]))
        text = f"{self._object(call.function, 'f')}({', '.join(args)})"
        several = isinstance(call.found, tuple | list)
        line = _Line(text, outputs, uses, bool(changed), several=several)
        whole = call.operation is _aten.stack.default and len(call.args) == 1
        if whole and not any(id(tensor) in self.changed for tensor in call.args[0]):
            line.parts = [self.names[id(tensor)] for tensor in call.args[0]]
        (self.once if once else self.each).append(line)
        if once:
            self.fixed.update(outputs)

    def text(self, *, apart: bool) -> str:
        """The whole text: what runs once for the persistent tensors, and what runs each time."""
        results = [self._text(tensor, set()) for tensor in self.outputs]
        if apart:
            self._take_apart(results)
        lines = _needed(self.each, set(self._names_in(results)))
        taken = ", ".join(self.names[id(tensor)] for tensor in self.persistent)
        given = ", ".join(self.names[id(tensor)] for tensor in self.inputs)
        text = [f"def bind({taken}):"]
        text += [f"    {line}" for line in self.once]
        text += [f"    def replay({given}):"]
        text += [f"        {line}" for line in self._freeing(lines, results)]
        text += [f"        return [{', '.join(results)}]", "    return replay", ""]
        return "\n".join(text)

    def _names_in(self, results: list[str]) -> list[str]:
        return [name for text in results for name in text.strip("[]").split(", ")]

    def _take_apart(self, results: list[str]) -> None:
        """Replace results that only stack tensors by lists of these."""
        for line in self.each:
            (name,) = line.outputs if len(line.outputs) == 1 else (None,)
            used = any(name in other.uses for other in self.each)
            if line.parts and results.count(name or "") == 1 and not used:
                results[results.index(name or "")] = f"[{', '.join(line.parts)}]"

    def _freeing(self, lines: list[_Line], results: list[str]) -> list[str]:
        """The lines, with each tensor deleted after its last use."""
        seen = set(self._names_in(results)) | {self.names[id(tensor)] for tensor in self.inputs}
        text: list[str] = []
        for line in reversed(lines):
            last = sorted((line.uses | set(line.outputs)) - seen - self.fixed)
            last = [name for name in last if name[0] == "v"]
            seen.update(last)
            text += [f"del {', '.join(last)}"] if last else []
            text.append(str(line))
        return text[::-1]

    # --- names -----------------------------------------------------------------------------------

    def _name(self, tensor: Tensor | None, letter: str) -> str:
        if tensor is None:
            return "_"
        name = f"{letter}{len(self.names)}"
        return self.names.setdefault(id(tensor), name)

    def _is_filled(self, call: Call, uses: set[str]) -> bool:
        """Whether a small tensor depends on shapes and constants alone, and never changes."""
        if not isinstance(call.found, Tensor) or id(call.found) in self.changed:
            return False
        made = call.operation in _FILLED or (bool(uses) and uses <= self.filled)
        return made and call.found.numel() <= _SMALL

    def _text(self, value: Any, uses: set[str]) -> str:
        """A value as source text."""
        if isinstance(value, Tensor):
            name = self.names.get(id(value))
            if name is None:  # from elsewhere: a constant
                name = self._object_of(value, self.constants)
            uses.add(name)
            return name
        if isinstance(value, list | tuple):
            return f"[{', '.join(self._text(item, uses) for item in value)}]"
        plain = value is None or isinstance(value, bool | int | str)
        if plain or (isinstance(value, float) and math.isfinite(value)):
            return repr(value)
        return self._object(value, "k")

    def _base(self, tensor: Tensor) -> str:
        """The name of the tensor whose numbers these are."""
        name = self.names[id(tensor)]
        return self.bases.get(name, name)

    def _object_of(self, tensor: Tensor, kind: set[str]) -> str:
        """Name a tensor that is the same in each run."""
        name = self.names[id(tensor)] = self._object(tensor, "c")
        self.fixed.add(name)
        kind.add(name)
        return name

    def _object(self, value: Any, letter: str) -> str:
        key = value if isinstance(value, _BY_VALUE) else id(value)
        if key not in self._known:
            self._known[key] = f"{letter}_{len(self.objects)}"
            self.objects[self._known[key]] = value
        return self._known[key]


def _needed(lines: list[_Line], wanted: set[str]) -> list[_Line]:
    """The lines that the wanted tensors depend on, and in-place operations."""
    kept: list[_Line] = []
    for line in reversed(lines):
        if line.changes or wanted & set(line.outputs):
            wanted |= line.uses
            kept.append(line)
    return kept[::-1]


def _is_alias(call: Call) -> bool:
    """Whether an operation returns its input as it is."""
    if call.operation in _ALIASES:
        return True
    if call.operation is _aten.permute.default:
        return list(call.args[1]) == list(range(call.args[0].dim()))
    same = (_aten.view.default, _aten.expand.default)
    return call.operation in same and list(call.args[1]) == list(call.args[0].shape)


def _all_changed(calls: Sequence[Call], outputs: Sequence[Tensor]) -> set[int]:
    """Ids of the tensors that are written to, also through a view, or may be by the caller."""
    bases: dict[int, int] = {}
    changed: set[int] = set()
    for call in calls:
        if call.refusal is not None:
            continue
        changed |= {bases.get(id(tensor), id(tensor)) for tensor in call.changed}
        if call.is_view and isinstance(call.args[0], Tensor):
            base = bases.get(id(call.args[0]), id(call.args[0]))
            bases |= {id(tensor): base for tensor in call.results if tensor is not call.args[0]}
    changed |= {bases.get(id(tensor), id(tensor)) for tensor in outputs}
    return changed | {tensor for tensor, base in bases.items() if base in changed}


# --- operations --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Call:
    """An operation with its arguments and results."""

    operation: Any
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    found: Any

    @property
    def results(self) -> Sequence[Any]:
        """Its results as a sequence."""
        return self.found if isinstance(self.found, tuple | list) else [self.found]

    @property
    def refusal(self) -> str | None:
        """Why no recording can hold it, or None."""
        if not isinstance(self.operation, OpOverload):
            return f"{self.operation} is no plain operation"
        for tag, reason in _REFUSED.items():
            if tag in self.operation.tags:
                return f"{self.operation} {reason}"
        if any(not isinstance(result, Tensor | None) for result in self.results):
            return f"{self.operation} does not return tensors"
        return None

    @property
    def function(self) -> Callable[..., Any]:
        """Runs it with the least overhead in Python."""
        found: Callable[..., Any] = getattr(self.operation, "_op", self.operation)
        return found

    @property
    def is_view(self) -> bool:
        """Whether its results share memory with its first argument."""
        returns = self.operation._schema.returns
        return bool(returns) and all(r.alias_info is not None for r in returns)

    @property
    def changed(self) -> list[Tensor]:
        """The tensors that it writes to."""
        written: list[Tensor] = []
        for place, argument in enumerate(self.operation._schema.arguments):
            if argument.alias_info is None or not argument.alias_info.is_write:
                continue
            at = place < len(self.args)
            given: Any = self.args[place] if at else self.kwargs[argument.name]
            written += given if isinstance(given, list | tuple) else [given]
        return written


class Listener(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """A context that appends every operation to `calls`. It keeps all tensors, so that ids stay
    unique."""

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


class Readings(TorchFunctionMode):
    """A context that names in `seen` what Python or NumPy reads out of tensors: no operation does,
    and a recording would hold the numbers of one step."""

    seen = ""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func in _READ:
            self.seen = func.__name__
        return func(*args, **(kwargs or {}))
