"""How a block of steps runs: one contract, `Executor`, chosen once per stack.

eager       each step as it is written (also with training.compile)
recorded    CPU: recorded operations are replayed, parts of the stack in threads
cuda_graph  GPU: the step is captured once and replayed
"""

from __future__ import annotations

import logging
from functools import cache

import torch

from sweepstack.config.errors import one_line
from sweepstack.data.batches import Source
from sweepstack.engine.executors.cuda_graph import CudaGraph
from sweepstack.engine.executors.executor import Eager, Executor
from sweepstack.engine.stack import Stack
from sweepstack.engine.step import Step

log = logging.getLogger(__name__)

WARM_UP = 5
"""Steps after which every executor runs at its full speed."""


def choose(step: Step, stack: Stack, source: Source) -> Executor:
    """The executor of a stack."""
    if captures(stack.device):
        return CudaGraph(step, stack, source)
    replays = None if step.compiles or stack.device.type != "cpu" else _recorded()
    return (replays or Eager)(step, stack, source)


def captures(place: torch.device) -> bool:
    """Whether steps on this device are captured as CUDA graphs."""
    return place.type == "cuda"


@cache
def _recorded() -> type[Eager] | None:
    """The executor that replays recordings, if this torch can be recorded."""
    try:
        from sweepstack.engine.executors import recorded, recording

        recording.self_test()
    except Exception as error:  # torch has changed what it keeps to itself
        log.info("steps are not recorded with torch %s: %s", torch.__version__, one_line(error))
        return None
    return recorded.Recorded
