"""One trial in training: how it begins, its steps, order, schedule, stopping and history.

All of it is on the host; the trial's tensors are the stack's, see `training.stack`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sweepstack.config.errors import SweepstackError
from sweepstack.data import streams
from sweepstack.engine import diagnostics as diagnosing
from sweepstack.engine.program import Program
from sweepstack.training import optimizer as optim
from sweepstack.training.fused import Row
from sweepstack.training.spec import Kept, State, TrialResult, TrialSpec
from sweepstack.training.stack import Numbers

MAX_THREADS = 8
"""Threads that draw initial states."""
Array = np.ndarray[Any, Any]
_SAVED = ("step", "loss_sum", "loss_steps", "history", "layers", "best", "seconds")


class Slot:
    """One trial in training: its steps, order, schedule, stopping and history, on the host."""

    def __init__(self, program: Program, spec: TrialSpec):
        self.program, self.spec = program, spec
        self.total_steps = program.total_steps(spec)
        self.schedule = program.schedule(spec)
        self.stopper = program.stopper(spec)
        self.base_lr = optim.scaled_lr(spec.config.optimizer, spec.config.batch)
        self.step = 0
        self.loss_sum, self.loss_steps = 0.0, 0
        self.history: list[dict[str, float]] = []
        self.layers: list[dict[str, Any]] = []
        self.best: dict[str, float] = {}
        self.seconds = 0.0
        self.stopped_early = False
        self.order_key = program.order_key(spec)
        self.orders: dict[int, Tensor] = {}  # of samples, by epoch

    @property
    def identity(self) -> str:
        """What a checkpoint must have been written with: the config and the same files."""
        return self.spec.config_hash + self.program.fingerprint

    # --- the next steps --------------------------------------------------------------------------

    def until_event(self) -> int:
        """Steps until the next evaluation, checkpoint or end."""
        ends = [self.total_steps, _next(self.step, self.program.eval_every)]
        every = self.spec.config.training.checkpoint_every
        if every and self.spec.folder is not None:
            ends.append(_next(self.step, every))
        return min(ends) - self.step

    def lrs(self, steps: int) -> Array:
        """Learning rates of the next steps, float64."""
        return self.base_lr * np.array(self.schedule.factors(self.step, steps))

    def epochs(self, steps: int) -> range:
        """Those that the next steps are in."""
        per_epoch = self.program.steps_per_epoch
        return range(self.step // per_epoch, (self.step + steps - 1) // per_epoch + 1)

    def batches(self, steps: int) -> Tensor:
        """Sample indices of the next steps, (steps, B) int64: epochs follow each other, each in a
        new order, and leave out the N mod B samples that fill no batch."""
        per_epoch, size = self.program.steps_per_epoch, self.program.batch_size
        draw_orders([self], steps)
        if len(self.orders) == 1:
            first = self.step % per_epoch * size
            return self.orders[self.step // per_epoch][first : first + steps * size].view(steps, -1)
        parts, step, end = [], self.step, self.step + steps
        while step < end:
            epoch, place = divmod(step, per_epoch)
            count = min(end - step, per_epoch - place)
            order = self.orders[epoch][place * size : (place + count) * size]
            parts.append(order.view(count, size))
            step += count
        return torch.cat(parts)

    def advance(self, sums: Array, seconds: float) -> str | None:
        """Count steps; the error if the loss of one was not finite, or None.

        Args:
            sums: of training losses since the last evaluation, before the first and after each.
        """
        self.seconds += seconds
        broke = not math.isfinite(sums[-1])
        count = (int(np.isfinite(sums).argmin()) if broke else len(sums)) - 1
        self.loss_sum, self.loss_steps = float(sums[count]), self.loss_steps + count
        self.step += count + broke
        if not broke:
            return None
        loss = float(sums[count + 1])
        return f"train_loss became {loss} at step {self.step} of {self.total_steps}"

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
    def diagnoses(self) -> bool:
        """Whether what its layers do is to be found."""
        return self.spec.config.training.diagnostics

    @property
    def checkpoints(self) -> bool:
        """Whether a checkpoint is due now."""
        every = self.spec.config.training.checkpoint_every
        return bool(every) and self.spec.folder is not None and self.step % every == 0

    def evaluated(self, metrics: Mapping[str, float], accuracy: float | None = None) -> bool:
        """Write a row of the history; return whether it is the best so far.

        Args:
            metrics: of the validation split.
            accuracy: on training samples since the last evaluation.
        """
        row = {
            "step": self.step,
            "epoch": self.step / self.program.steps_per_epoch,
            "lr": self.base_lr * self.schedule.factor(self.step - 1),
            "train_loss": self.loss_sum / max(self.loss_steps, 1),
            **({} if accuracy is None else {"train_accuracy": accuracy}),
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
        saved = {name: getattr(self, name) for name in _SAVED}
        return saved | {"schedule": self.schedule.state(), "stopper": self.stopper.state()}

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
        kept: Kept | None = None,
        error: str | None = None,
    ) -> TrialResult:
        """The trial's result; `test` are the test metrics of the best state."""
        left_out = ("step", "epoch", "lr", *diagnosing.NOISE)
        measured = {k: v for k, v in self.best.items() if k not in left_out}
        samples = self.step * self.program.batch_size
        return TrialResult(
            spec=self.spec,
            state=state,
            metrics={**measured, **(test or {})},
            history=self.history,
            layers=self.layers,
            steps=self.step,
            best_step=int(self.best.get("step", 0)),
            seconds=self.seconds,
            num_parameters=self.program.num_parameters,
            samples_per_s=samples / self.seconds if self.seconds else 0.0,
            device=device,
            objective=self.program.objective,
            kept=kept,
            inputs=self.program.inputs,
            stopped=self.stopper.reason if self.stopped_early else None,
            error=error,
        )


def draw_orders(slots: Sequence[Slot], steps: int) -> None:
    """Draw the orders of samples that the next steps of some slots follow, those of many slots
    together and equal ones once, and forget those of the epochs before."""
    wanted: dict[int, list[tuple[Slot, int]]] = {}
    for slot in slots:
        epochs = slot.epochs(steps)
        if list(slot.orders) == list(epochs):
            continue
        slot.orders = {epoch: order for epoch, order in slot.orders.items() if epoch in epochs}
        for epoch in epochs:
            if epoch not in slot.orders:
                key = streams.derive(slot.order_key, epoch)
                wanted.setdefault(key, []).append((slot, epoch))
    if wanted:
        samples, place = len(slots[0].program.data.train), slots[0].program.order_device
        orders = streams.permutations(list(wanted), samples, place)
        for same, order in zip(wanted.values(), orders, strict=True):
            for slot, epoch in same:
                slot.orders[epoch] = order


Fresh = tuple[Slot, Row, Numbers]
"""A trial before it has a slot: its host side, its initial state and its numbers."""


def all_drawn(program: Program, specs: list[TrialSpec]) -> list[Fresh | Exception]:
    """Trials as they begin, or why one cannot. Those with the same init and seed begin alike:
    an initial state is drawn once for them; several are by several threads, unless the model's
    constructor draws, as it does from torch's one generator."""
    refused = [_raised(program.check, spec) for spec in specs]
    begins: dict[Any, TrialSpec] = {}
    for spec, error in zip(specs, refused, strict=True):
        if error is None:
            begins.setdefault(_beginning(spec), spec)
    given = list(begins.values())
    threads = min(torch.get_num_threads(), MAX_THREADS, len(given) - 1)
    initial = partial(_raised, program.initial)
    found = [*map(initial, given[:1])]  # by itself: a program says something of its first trial
    if threads < 2 or any(map(program.constructs, given)):
        found += map(initial, given[1:])
    else:
        with ThreadPoolExecutor(threads) as pool:
            found += pool.map(initial, given[1:])
    initials = dict(zip(begins, found, strict=True))

    def begun(spec: TrialSpec, error: Exception | None) -> Fresh | Exception:
        row = error or initials[_beginning(spec)]
        return row if isinstance(row, Exception) else drawn(program, spec, row)

    return [begun(*pair) for pair in zip(specs, refused, strict=True)]


def drawn(program: Program, spec: TrialSpec, initial: Row | None = None) -> Fresh:
    """A trial as it begins, with an initial state that was drawn already or its own."""
    state = program.initial(spec) if initial is None else initial
    return Slot(program, spec), state, program.numbers(spec)


def _beginning(spec: TrialSpec) -> Any:
    """What decides on the initial state of a trial of one static part."""
    return spec.config.init, spec.config.training.seed


def _raised(call: Callable[[TrialSpec], Any], spec: TrialSpec) -> Any:
    """What a call returns, or the error that it raised."""
    try:
        return call(spec)
    except (SweepstackError, RuntimeError, MemoryError) as error:
        return error


def _next(step: int, every: int) -> int:
    return (step // every + 1) * every
