"""How a block of steps runs: one contract, `Executor`, chosen once per stack.

eager       each step as it is written (also with training.compile)
recorded    CPU: recorded operations are replayed, parts of the stack in threads
cuda_graph  GPU: the step is captured once and replayed

An executor belongs to one stack, whose tensors stay where they are, and runs blocks of its steps.
All give the same numbers; they differ in how long it takes.
"""

from __future__ import annotations

import logging
from functools import cache

import torch
from torch import Tensor

from sweepstack.config.errors import one_line
from sweepstack.data.batches import Source
from sweepstack.engine.step import AT_ONCE, Batch, Block, Step
from sweepstack.training.stack import Stack

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
        kept: list[list[Tensor]] = []
        for number, batch in enumerate(block.batches(self.source)):
            losses[number], *told = self.advance(batch)
            if told:
                kept.append(told)
                self.step.count(self.stack, kept, most=AT_ONCE)
        self.step.count(self.stack, kept)
        return losses

    def advance(self, batch: Batch) -> list[Tensor]:
        """Advance the stack by a step; returns what `Step.gradients` tells."""
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
