"""The steps of one stack, run the quickest way: as a CUDA graph, from tape, or as they are.

On a CPU a step comes from tape (`tape.py`) after the first two, and a stack of several trials is
advanced in parts, each by a thread that computes on its own share of the cores: a trial's matrix
products are too small to be divided among cores well, but trials do not depend on each other.
Called by `engine.py` with blocks of steps, and by `width.py`, which times them.

Notation: T steps of a block, S slots of the stack, B samples of a batch.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from threading import Barrier

import torch
from torch import Tensor

from iolaus.data.batches import DeviceSource, Source
from iolaus.engine.executors import cuda_graph as graph
from iolaus.engine.executors.recording import Reel, Run
from iolaus.engine.kernels import fused
from iolaus.engine.stack import Stack
from iolaus.engine.step import Moment, Step

log = logging.getLogger(__name__)

MOST_PARTS = 4
"""Threads take turns in Python, so that many of them would wait for each other."""


@dataclass(frozen=True)
class Moments:
    """The numbers of a block of steps: lr (T, S) float64, step (T, S) from 1, keys (T, S)."""

    lr: Tensor
    step: Tensor
    keys: Mapping[str, Tensor]

    def of(self, slots: slice) -> list[Moment]:
        """Those of each step, for some slots."""
        names = list(self.keys)
        rows = [row[:, slots].unbind(0) for row in (self.lr, self.step, *self.keys.values())]
        return [
            Moment(lr, step, dict(zip(names, keys, strict=True)))
            for lr, step, *keys in zip(*rows, strict=True)
        ]


class Steps:
    """The steps of one stack of one program.

    Args:
        step: of the program.
        stack: whose tensors stay where they are.
        source: of the batches.
    """

    def __init__(self, step: Step, stack: Stack, source: Source):
        self.step, self.stack, self.source = step, stack, source
        self._parts: list[Part] = []

    def run(self, orders: Tensor, moments: Moments) -> Tensor:
        """Advance the stack by T steps; returns the losses (T, S).

        Args:
            orders: sample numbers, (T, S, B), or (T, B) where all slots see the same.
            moments: the numbers of the steps.
        """
        if not self._parts:  # not before a trial has brought the numbers of its slot
            self._parts = self._divided()
        losses = torch.empty(len(orders), self.stack.width, device=self.stack.device)
        done = 0
        if not self._independent(orders):
            moments_of = {part: moments.of(part.slots) for part in self._parts}
            for number, (x, y) in enumerate(self.source.batches(orders)):
                done = number + 1
                for part, its in moments_of.items():
                    batch = (x, y) if y.dim() == 1 else (x[part.slots], y[part.slots])
                    losses[number, part.slots] = part(*batch, its[number])
                if self._independent(orders):
                    break
                if self._refused(orders):
                    self._parts = [Part(self.step, self.stack, self._all, plain=True)]
                    moments_of = {part: moments.of(part.slots) for part in self._parts}
        if done < len(orders):
            self._in_threads(orders, moments, losses, done)
        return losses

    @property
    def _all(self) -> slice:
        return slice(0, self.stack.width)

    def _divided(self) -> list[Part]:
        stack, threads = self.stack, torch.get_num_threads()
        count = min(threads, stack.width, MOST_PARTS)
        resident = isinstance(self.step.program.sources["train"], DeviceSource)
        if count < 2 or self.step.compiles or not resident or stack.device.type != "cpu":
            return [Part(self.step, stack, self._all)]
        edges = [stack.width * number // count for number in range(count + 1)]
        slots = [slice(*pair) for pair in pairwise(edges)]
        return [Part(self.step, stack.part(some), some) for some in slots]

    def _independent(self, orders: Tensor) -> bool:
        """Whether each part can go its own way: the module itself, which they share, is not
        needed any more."""
        shared = orders.dim() == 2
        return len(self._parts) > 1 and all(part.on_tape(shared) for part in self._parts)

    def _refused(self, orders: Tensor) -> bool:
        shared = orders.dim() == 2
        return len(self._parts) > 1 and any(part.refused(shared) for part in self._parts)

    def _in_threads(self, orders: Tensor, moments: Moments, losses: Tensor, done: int) -> None:
        """The steps from `done` on, each part in a thread of its own. What Python has to do between
        them is little, since other threads wait for it."""

        def advance(part: Part) -> None:
            own = orders[done:] if orders.dim() == 2 else orders[done:, part.slots]
            its = moments.of(part.slots)[done:]
            pairs = zip(self.source.batches(own), its, strict=True)
            losses[done:, part.slots] = torch.stack([part(*batch, now) for batch, now in pairs])

        pool = _pool(len(self._parts), torch.get_num_threads())
        futures = [pool.submit(advance, part) for part in self._parts]
        wait(futures)
        for future in futures:
            future.result()


class Part:
    """Some slots of a stack, and their steps; `plain` does without a tape."""

    def __init__(self, step: Step, stack: Stack, slots: slice, *, plain: bool = False):
        self.slots, self.step, self.stack = slots, step, stack
        self._plain = plain or step.compiles or stack.device.type != "cpu"
        self._graph = graph.Replayed(step, stack) if graph.captures(stack.device) else None
        self._runs: dict[bool, Run] = {}
        rule = step.program.rule
        self._apart = stack.width > 1 and fused.suits(rule.name, stack.params.groups)

    def on_tape(self, shared: bool) -> bool:
        """Whether steps of such batches are on tape."""
        return self._reel(shared).tape is not None

    def refused(self, shared: bool) -> bool:
        """Whether they will never be."""
        return self._reel(shared).reason is not None

    def _reel(self, shared: bool) -> Reel:
        key = (self.stack.width, self.stack.one_row, shared)
        return self.step.program.reels.setdefault(key, Reel())

    def __call__(self, x: Tensor, y: Tensor, moment: Moment) -> Tensor:
        """Advance the slots by a step; returns losses (S,), overwritten by the next call."""
        if self._graph is not None:
            return self._graph(x, y, moment)
        if self._plain:
            return self.step(self.stack, x, y, moment)
        shared = y.dim() == 1
        inputs = [x, y, *(moment.keys[name] for name in sorted(moment.keys))]
        if shared not in self._runs:
            reel = self._reel(shared)
            if reel.open:
                return self._recorded(reel, inputs, moment)
            if reel.tape is None:
                self._plain = True
                return self.step(self.stack, x, y, moment)
            self._runs[shared] = reel.tape.bind(self.stack.lasting)
        with torch.no_grad():
            losses, *grads = self._runs[shared](*inputs)
        assert isinstance(losses, Tensor)
        self.step.update(self.stack, grads, moment)
        return losses

    def _recorded(self, reel: Reel, inputs: list[Tensor], moment: Moment) -> Tensor:
        def function() -> list[Tensor]:
            x, y = inputs[:2]
            losses, grads = self.step.gradients(self.stack, x, y, moment.keys)
            return [losses, *grads]

        losses, *grads = reel.record(function, self.stack.lasting, inputs, apart=self._apart)
        if reel.reason is not None:
            log.info("the training step is not on tape: %s", reel.reason)
        self.step.update(self.stack, grads, moment)
        return losses


@cache
def _pool(count: int, threads: int) -> ThreadPoolExecutor:
    """So many threads, each computing on its share of the `threads` that torch has here."""

    def begin() -> None:
        torch.set_num_threads(threads // count)
        torch.get_num_threads()  # or the first operation takes the number that is set last, below
        all_are_there.wait()

    all_are_there = Barrier(count)
    pool = ThreadPoolExecutor(count, "part", begin)
    wait([pool.submit(int) for _ in range(count)])
    torch.set_num_threads(threads)
    return pool
