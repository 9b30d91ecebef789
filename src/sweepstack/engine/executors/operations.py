"""The tensor operations that a function comes to, below autograd and vmap.

The only module with torch's private names of operations (`_python_dispatch`, schemas);
`recording.self_test` tests it before it is used.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode

_REFUSED = {
    torch.Tag.data_dependent_output: "reads a number out of a tensor",
    torch.Tag.dynamic_output_shape: "has a result whose shape depends on numbers",
    torch.Tag.nondeterministic_seeded: "draws from torch's generator",
    torch.Tag.inplace_view: "changes a tensor's shape in place",
}


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
