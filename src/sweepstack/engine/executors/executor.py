"""The contract of executors, and the plainest of them.

An executor belongs to one stack, whose tensors stay where they are, and runs blocks of its steps.
All give the same numbers; they differ in how long it takes.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from sweepstack.data.batches import Source
from sweepstack.engine.stack import Stack
from sweepstack.engine.step import Batch, Block, Step


class Executor(Protocol):
    """Runs the steps of one stack."""

    def run(self, block: Block) -> Tensor:
        """Advance the stack by the block's T steps; returns the losses (T, S).

        Raises:
            Exception: whatever the model raises.
        """


class Eager:
    """Runs each step as it is written.

    Args:
        step: of the stack's program.
        stack: of S slots.
        source: of the batches.
    """

    def __init__(self, step: Step, stack: Stack, source: Source):
        self.step, self.stack, self.source = step, stack, source

    def run(self, block: Block) -> Tensor:
        """See `Executor.run`."""
        losses = torch.empty(len(block.lr), self.stack.width, device=self.stack.device)
        for number, batch in enumerate(block.batches(self.source)):
            losses[number] = self.advance(batch)
        return losses

    def advance(self, batch: Batch) -> Tensor:
        """Advance the stack by a step; returns losses (S,), overwritten by the next call."""
        return self.step(self.stack, batch)
