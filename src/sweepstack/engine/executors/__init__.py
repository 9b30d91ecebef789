"""How a block of steps runs: one contract, `Executor`, chosen once per stack.

eager       each step as it is written (also with training.compile)
recorded    CPU: recorded operations are replayed, parts of the stack in threads
cuda_graph  GPU: the step is captured once and replayed

An executor belongs to one stack, whose tensors stay where they are, and runs blocks of its steps.
All give the same numbers; they differ in how long it takes.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from functools import cache
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn

from sweepstack.config.errors import one_line
from sweepstack.data.batches import Source
from sweepstack.engine.stack import Stack
from sweepstack.engine.step import Batch, Block, Step

log = logging.getLogger(__name__)

WARM_UP = 5
"""Steps after which every executor runs at its full speed."""


class Executor:
    """Runs the steps of one stack; this one is eager."""

    def __init__(self, step: Step, stack: Stack, source: Source):
        self.step, self.stack, self.source = step, stack, source

    def run(self, block: Block) -> Tensor:
        """Advance the stack by the block's T steps; returns the losses (T, S).

        Raises:
            Exception: whatever the model raises.
        """
        losses = torch.empty(len(block.lr), self.stack.width, device=self.stack.device)
        for number, batch in enumerate(block.batches(self.source)):
            losses[number] = self.advance(batch)
        return losses

    def advance(self, batch: Batch) -> Tensor:
        """Advance the stack by a step; returns losses (S,), overwritten by the next call."""
        return self.step(self.stack, batch)


def choose(step: Step, stack: Stack, source: Source) -> Executor:
    """The executor of a stack."""
    if captures(stack.device) and not step.rule.alone:
        from sweepstack.engine.executors.cuda_graph import CudaGraph

        return CudaGraph(step, stack, source)
    replays = None if step.compiles or stack.device.type != "cpu" else _recorded()
    return (replays or Executor)(step, stack, source)


def captures(place: torch.device) -> bool:
    """Whether steps on this device are captured as CUDA graphs."""
    return place.type == "cuda"


@cache
def _recorded() -> type[Executor] | None:
    """The executor that replays recordings, if this torch can be recorded."""
    try:
        from sweepstack.engine.executors import recorded, recording

        recording.self_test()
    except Exception as error:  # another torch
        log.debug("torch %s: steps are not recorded: %s", torch.__version__, one_line(error))
        return None
    return recorded.Recorded


# --- side effects of a module's `forward`, which replayed steps do not have -----------------------

_PLAIN = (bool, int, float, str)
_reported: WeakSet[nn.Module] = WeakSet()


@contextmanager
def side_effects(module: nn.Module) -> Iterator[list[str]]:
    """Around a step of a module; lists its side effects: it prints, or changes attributes."""
    seen: list[str] = []
    before = _attributes(module)
    output = _Output(sys.stdout)
    with redirect_stdout(output):
        yield seen
    if output.used:
        seen.append("prints")
    after = _attributes(module)
    changed = sorted(name for name in after if after[name] != before.get(name))
    seen += [f"changes {name}" for name in changed]


def warn_of_side_effects(module: nn.Module, seen: list[str]) -> None:
    """Log once for each module what its replayed steps do not do."""
    if seen and module not in _reported:
        _reported.add(module)
        log.warning(
            "the model's forward %s: this happens in the first steps only, then they are replayed "
            "without running Python",
            ", ".join(seen),
        )


def _attributes(module: nn.Module) -> dict[str, Any]:
    """Plain attributes by name, and the lengths of containers."""
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


class _Output:
    """A stream that knows whether this thread writes to it."""

    def __init__(self, stream: Any):
        self._stream, self._thread, self.used = stream, threading.get_ident(), False

    def write(self, text: str) -> Any:
        self.used = self.used or threading.get_ident() == self._thread
        return self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
