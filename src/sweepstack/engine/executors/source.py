"""Writes recorded tensor operations as a short Python function.

`bind(lasting tensors)` makes views of them once and gives `replay(inputs)`, which has one line for
each operation that something depends on, and lets each tensor go after its last use.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sweepstack.engine.executors.operations import Call

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


class NotRecordable(Exception):
    """The function does what no recording can hold; says what, in a few words."""


@dataclass
class _Line:
    """`outputs = text`; `uses` are the tensors in it."""

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
class Source:
    """Turns recorded operations into source text and the objects that it names.

    Raises:
        NotRecordable: an operation is among them that no recording can hold.
    """

    lasting: Sequence[Tensor]
    inputs: Sequence[Tensor]
    calls: Sequence[Call]
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
        for tensors, letter in ((self.lasting, "p"), (self.inputs, "x")):
            for tensor in tensors:
                self._name(tensor, letter)
        self.fixed.update(self.names[id(tensor)] for tensor in self.lasting)
        self.changed = _all_changed(self.calls)
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

    def text(self, outputs: Sequence[Tensor], *, apart: bool) -> str:
        """The whole text: what is done once for the lasting tensors, and what in each run."""
        results = [self._text(tensor, set()) for tensor in outputs]
        if apart:
            self._take_apart(results)
        lines = _needed(self.each, set(self._names_in(results)))
        taken = ", ".join(self.names[id(tensor)] for tensor in self.lasting)
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
        """Results that only put tensors together become lists of these."""
        for line in self.each:
            (name,) = line.outputs if len(line.outputs) == 1 else (None,)
            used = any(name in other.uses for other in self.each)
            if line.parts and results.count(name or "") == 1 and not used:
                results[results.index(name or "")] = f"[{', '.join(line.parts)}]"

    def _freeing(self, lines: list[_Line], results: list[str]) -> list[str]:
        """The lines, each tensor being let go after its last use."""
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
        """Whether a small tensor is made of shapes and constants alone, and never changed."""
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
        """Name a tensor that is the same in each run, and kept."""
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
    """The lines that the wanted tensors depend on, and those that change a tensor."""
    kept: list[_Line] = []
    for line in reversed(lines):
        if line.changes or wanted & set(line.outputs):
            wanted |= line.uses
            kept.append(line)
    return kept[::-1]


def _is_alias(call: Call) -> bool:
    """Whether an operation gives its only tensor once more."""
    if call.operation in _ALIASES:
        return True
    if call.operation is _aten.permute.default:
        return list(call.args[1]) == list(range(call.args[0].dim()))
    same = (_aten.view.default, _aten.expand.default)
    return call.operation in same and list(call.args[1]) == list(call.args[0].shape)


def _all_changed(calls: Sequence[Call]) -> set[int]:
    """Ids of the tensors that are written to, also by way of a view."""
    bases: dict[int, int] = {}
    changed: set[int] = set()
    for call in calls:
        if call.refusal is not None:
            continue
        changed |= {bases.get(id(tensor), id(tensor)) for tensor in call.changed}
        if call.is_view and isinstance(call.args[0], Tensor):
            base = bases.get(id(call.args[0]), id(call.args[0]))
            bases |= {id(tensor): base for tensor in call.results if tensor is not call.args[0]}
    return changed | {tensor for tensor, base in bases.items() if base in changed}
