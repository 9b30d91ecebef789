"""Side effects of a module's `forward`, which replayed steps do not have.

A recording or a CUDA graph holds tensor operations alone: what `forward` prints or counts happens
in the first steps and never again. It is worth a line in the log.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any
from weakref import WeakSet

from torch import nn

log = logging.getLogger(__name__)

_PLAIN = (bool, int, float, str)
_reported: WeakSet[nn.Module] = WeakSet()


@contextmanager
def watched(module: nn.Module) -> Iterator[list[str]]:
    """Run a step of a module; gives what its code did besides: it prints, or changes attributes."""
    seen: list[str] = []
    before = _attributes(module)
    output = _Heard(sys.stdout)
    with redirect_stdout(output):
        yield seen
    if output.heard:
        seen.append("prints")
    after = _attributes(module)
    changed = sorted(name for name in after if after[name] != before.get(name))
    seen += [f"changes {name}" for name in changed]


def report(module: nn.Module, seen: list[str]) -> None:
    """Say once for each module what its replayed steps do not do."""
    if seen and module not in _reported:
        _reported.add(module)
        log.warning(
            "the model's forward %s: this happens in the first steps only, then they are replayed "
            "without running Python",
            ", ".join(seen),
        )


def _attributes(module: nn.Module) -> dict[str, Any]:
    """Plain values by name, and the lengths of containers."""
    found: dict[str, Any] = {}
    for path, layer in module.named_modules():
        for name, value in vars(layer).items():
            if name.startswith("_") or name == "training":
                continue
            if isinstance(value, list | dict | set):
                value = len(value)
            if isinstance(value, _PLAIN):
                found[f"{path}.{name}".lstrip(".")] = value
    return found


class _Heard:
    """A stream that notes whether this thread writes to it."""

    def __init__(self, stream: Any):
        self._stream, self._thread, self.heard = stream, threading.get_ident(), False

    def write(self, text: str) -> Any:
        self.heard = self.heard or threading.get_ident() == self._thread
        return self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
