"""Steps on a CPU: recorded operations are replayed, in parts of the stack by threads.

After the first two steps, which are recorded, a step is its operations alone (`recording.py`). A
stack of several trials then advances in parts, each in a thread on its share of the cores: a
trial's matrix products are too small to be divided among cores well, but trials do not depend on
each other. A module that cannot be recorded stays eager.

Notation: T steps of a block, S slots of the stack, B samples of a batch.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from functools import cache
from itertools import pairwise
from threading import Barrier
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from sweepstack.data.batches import DeviceSource
from sweepstack.engine.executors import Executor
from sweepstack.engine.executors.recording import Recorder
from sweepstack.engine.program import Program
from sweepstack.engine.step import AT_ONCE, Batch, Block, Step
from sweepstack.models.custom import side_effects, warn_of_side_effects
from sweepstack.training.stack import Stack

log = logging.getLogger(__name__)

MAX_PARTS = 4
"""More threads would wait for each other in Python."""

_recorders: WeakKeyDictionary[Program, dict[Any, Recorder]] = WeakKeyDictionary()
"""Recordings of a program's steps: stacks of one width share them."""


class Recorded(Executor):
    """Replays the recorded steps of one stack; its parts advance in threads."""

    _parts: tuple[_Part, ...] = ()

    def run(self, block: Block) -> Tensor:
        """See `Executor.run`."""
        if not self._parts:  # only now do slots have numbers
            self._parts = self._divided()
        shared, done = block.shared, 0
        losses = torch.empty(len(block.lr), self.stack.width)
        if not self._decided(shared):
            for done, batch in enumerate(block.batches(self.source), 1):
                for part in self._parts:
                    share = batch if len(self._parts) == 1 else batch.of(part.slots)
                    losses[done - 1, part.slots] = part.advance(share)
                if self._decided(shared):
                    break
            for part in self._parts:
                part.count()
        if done < len(losses):
            run = super().run if self._stays_eager(shared) else self._threads
            losses[done:] = run(block[done:])
        return losses

    def _divided(self) -> tuple[_Part, ...]:
        stack = self.stack
        resident = isinstance(self.step.program.sources["train"], DeviceSource)
        count = min(torch.get_num_threads(), stack.width, MAX_PARTS) if resident else 1
        if count < 2:
            return (_Part(self.step, stack, slice(0, stack.width)),)
        edges = [stack.width * number // count for number in range(count + 1)]
        slots = [slice(*pair) for pair in pairwise(edges)]
        return tuple(_Part(self.step, stack.part(some), some) for some in slots)

    def _decided(self, shared: bool) -> bool:
        """Whether several parts continue in threads (they no longer need the module, which they
        share), or as a whole because one of them stays eager."""
        if len(self._parts) == 1:
            return False
        recorded = all(part.recorder(shared).recording for part in self._parts)
        return recorded or self._stays_eager(shared)

    def _stays_eager(self, shared: bool) -> bool:
        return any(part.recorder(shared).reason for part in self._parts)

    def _threads(self, block: Block) -> Tensor:
        """Each part's steps in its own thread."""

        def advance(part: _Part) -> Tensor:
            batches = block.of(part.slots).batches(self.source)
            found = torch.stack([part.advance(batch) for batch in batches])
            part.count()
            return found

        pool = _pool(len(self._parts), torch.get_num_threads())
        futures = [pool.submit(advance, part) for part in self._parts]
        wait(futures)
        return torch.cat([future.result() for future in futures], dim=1)


class _Part:
    """Some slots of a stack, and their steps."""

    def __init__(self, step: Step, stack: Stack, slots: slice):
        self.slots, self.step, self.stack = slots, step, stack
        self._replays: dict[bool, Callable[..., list[Any]]] = {}
        self._kept: list[list[Tensor]] = []

    def recorder(self, shared: bool) -> Recorder:
        """The recorder of steps with such batches."""
        recorders = _recorders.setdefault(self.step.program, {})
        plain = self.step.kernel(self.stack) is None
        key = (self.stack.width, self.stack.one_row, shared, plain)
        return recorders.setdefault(key, Recorder())

    def advance(self, batch: Batch) -> Tensor:
        """Advance the slots by a step; returns losses (S,)."""
        inputs = [batch.x, batch.y, *(batch.keys[name] for name in sorted(batch.keys))]
        replay = self._replays.get(batch.shared) or self._bound(batch.shared)
        if replay is None:
            found = self._gradients(batch, inputs)
        else:
            with torch.no_grad():
                found = replay(*inputs)
        losses: Tensor = found[0]
        first = len(found) - len(self.stack.params.packed)
        self.step.update(self.stack, found[first:], batch)
        if first > 1:
            self._kept.append(found[1:first])
            self.step.count(self.stack, self._kept, most=AT_ONCE)
        return losses

    def count(self) -> None:
        """Count the right predictions of the last steps."""
        self.step.count(self.stack, self._kept)

    def _bound(self, shared: bool) -> Callable[..., list[Any]] | None:
        recording = self.recorder(shared).recording
        if recording is None:
            return None
        self._replays[shared] = recording.bind(self.stack.persistent)
        return self._replays[shared]

    def _gradients(self, batch: Batch, inputs: list[Tensor]) -> list[Any]:
        """Losses and gradients by the module itself, recorded if needed."""

        def function() -> list[Tensor]:
            told, grads = self.step.gradients(self.stack, batch.x, batch.y, batch.keys)
            return [*told, *grads]

        recorder = self.recorder(batch.shared)
        if not recorder.open:
            return function()
        apart = self.stack.width > 1 and self.step.fused
        with side_effects(self.step.module) as seen:
            found = recorder.record(function, self.stack.persistent, inputs, apart=apart)
        if recorder.recording is not None:
            warn_of_side_effects(self.step.module, seen)
        elif recorder.reason is not None:
            log.info("the model's steps are not recorded: %s", recorder.reason)
        return found


@cache
def _pool(count: int, threads: int) -> ThreadPoolExecutor:
    """`count` threads, each with its share of torch's `threads`."""

    def begin() -> None:
        torch.set_num_threads(threads // count)
        torch.get_num_threads()  # else the first operation takes the number that is set below
        all_are_there.wait()

    all_are_there = Barrier(count)
    pool = ThreadPoolExecutor(count, "part", begin)
    wait([pool.submit(int) for _ in range(count)])
    torch.set_num_threads(threads)
    return pool
