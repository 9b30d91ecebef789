"""The host's side of one trial in a slot: its steps, order, schedule, stopping, history.

Holds Python numbers only; the tensors are the stack's.
"""

from __future__ import annotations

import math
import traceback
from collections.abc import Mapping
from copy import copy
from typing import Any

import torch
from torch import Tensor

from sweepstack.config.errors import EnvironmentFault, SweepstackError, one_line
from sweepstack.data import streams
from sweepstack.engine.program import Program
from sweepstack.engine.spec import State, TrialResult, TrialSpec
from sweepstack.training import optimizer as optim

_SAVED = ("step", "loss_sum", "loss_steps", "history", "best", "seconds")


class Slot:
    """One trial on its way through a stack."""

    def __init__(self, program: Program, spec: TrialSpec):
        self.program, self.spec = program, spec
        self.total_steps = program.total_steps(spec)
        self.schedule = program.schedule(spec)
        self.stopper = program.stopper(spec)
        self.base_lr = optim.scaled_lr(spec.config.optimizer, spec.config.batch)
        self.step = 0
        self.loss_sum, self.loss_steps = 0.0, 0
        self.history: list[dict[str, float]] = []
        self.best: dict[str, float] = {}
        self.seconds = 0.0
        self.stopped_early = False
        self.order_key = program.order_key(spec)
        self._epoch, self._order = -1, torch.empty(0, dtype=torch.int64)

    # --- the next steps --------------------------------------------------------------------------

    def until_event(self) -> int:
        """Steps until the next evaluation, checkpoint or end."""
        ends = [self.total_steps, _next(self.step, self.program.eval_every)]
        every = self.spec.config.training.checkpoint_every
        if every and self.spec.folder is not None:
            ends.append(_next(self.step, every))
        return min(ends) - self.step

    def lrs(self, steps: int) -> list[float]:
        """Learning rates of the next steps."""
        return [self.base_lr * factor for factor in self.schedule.factors(self.step, steps)]

    def batches(self, steps: int) -> Tensor:
        """Numbers of the samples of the next steps, (steps, B) int64: epochs follow each other,
        each in a new order, and leave out the N mod B samples that fill no batch."""
        per_epoch, size = self.program.steps_per_epoch, self.program.batch_size
        parts, step, end = [], self.step, self.step + steps
        while step < end:
            epoch, place = divmod(step, per_epoch)
            count = min(end - step, per_epoch - place)
            order = self._order_of(epoch)[place * size : (place + count) * size]
            parts.append(order.view(count, size))
            step += count
        return torch.cat(parts)

    def _order_of(self, epoch: int) -> Tensor:
        if epoch != self._epoch:
            key = streams.derive(self.order_key, epoch)
            samples, place_of = len(self.program.data.train), self.program.order_device
            self._epoch, self._order = epoch, streams.permutation(key, samples, place_of)
        return self._order

    def advance(self, losses: list[float], seconds: float) -> str | None:
        """Count steps with their training losses; say which loss was not finite, or None."""
        self.seconds += seconds
        for loss in losses:
            self.step += 1
            if not math.isfinite(loss):
                return f"train_loss became {loss} at step {self.step} of {self.total_steps}"
            self.loss_sum, self.loss_steps = self.loss_sum + loss, self.loss_steps + 1
        return None

    # --- evaluations -----------------------------------------------------------------------------

    @property
    def finished(self) -> bool:
        """Whether the budget is spent."""
        return self.step >= self.total_steps

    @property
    def evaluates(self) -> bool:
        """Whether an evaluation is due now."""
        return self.finished or self.step % self.program.eval_every == 0

    @property
    def checkpoints(self) -> bool:
        """Whether a checkpoint is due now."""
        every = self.spec.config.training.checkpoint_every
        return bool(every) and self.spec.folder is not None and self.step % every == 0

    def evaluated(self, metrics: Mapping[str, float]) -> bool:
        """Write a row of the history; return whether it is the best so far."""
        row = {
            "step": self.step,
            "epoch": self.step / self.program.steps_per_epoch,
            "lr": self.base_lr * self.schedule.factor(self.step - 1),
            "train_loss": self.loss_sum / max(self.loss_steps, 1),
            **metrics,
        }
        self.loss_sum, self.loss_steps = 0.0, 0
        self.history.append(row)
        self.schedule.observe(row)
        name, sign = self.program.objective, 1 if self.program.direction == "maximize" else -1
        better = not self.best or sign * row[name] > sign * self.best[name]
        if better:
            self.best = row
        return better

    # --- saving and the end ----------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Plain numbers for a checkpoint."""
        own = {name: getattr(self, name) for name in _SAVED}
        return own | {"schedule": self.schedule.state(), "stopper": self.stopper.state()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue where `state` was taken."""
        for name in _SAVED:
            setattr(self, name, copy(state[name]))
        self.schedule.restore(state["schedule"])
        self.stopper.restore(state["stopper"])

    def result(
        self,
        state: State,
        device: str,
        *,
        test: Mapping[str, float] | None = None,
        best_state: Mapping[str, Tensor] | None = None,
        error: str | None = None,
    ) -> TrialResult:
        """What the trial gave; `test` are the test metrics of the best state."""
        measured = {k: v for k, v in self.best.items() if k not in ("step", "epoch", "lr")}
        samples = self.step * self.program.batch_size
        return TrialResult(
            spec=self.spec,
            state=state,
            metrics={**measured, **(test or {})},
            history=self.history,
            steps=self.step,
            best_step=int(self.best.get("step", 0)),
            seconds=self.seconds,
            num_parameters=self.program.num_parameters,
            samples_per_s=samples / self.seconds if self.seconds else 0.0,
            device=device,
            objective=self.program.objective,
            best_state=best_state or {},
            inputs=self.program.inputs,
            stopped=self.stopper.reason if self.stopped_early else None,
            error=error,
        )


def _next(step: int, every: int) -> int:
    return (step // every + 1) * every


def not_started(spec: TrialSpec, error: Exception) -> TrialResult:
    """The result of a trial that cannot begin.

    Raises:
        EnvironmentFault: that is what the error is.
    """
    if isinstance(error, EnvironmentFault):
        raise error
    trace = None if isinstance(error, SweepstackError) else trace_of(error)
    objective = spec.config.objective
    return TrialResult(spec, "failed", objective, error=one_line(error), trace=trace)


def trace_of(error: Exception) -> str:
    """The traceback of what a user's module raised."""
    return "".join(traceback.format_exception(error))
