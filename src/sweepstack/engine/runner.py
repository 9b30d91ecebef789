"""One stack in training: trials come into its slots, advance together, are evaluated and leave.

All trials of a runner have one static part. They advance in blocks of steps between events
(evaluation, checkpoint, end), so that nothing has to be read back from the device at each step.
A `Slot` is the host's side of one trial; the tensors are the stack's.
"""

from __future__ import annotations

import logging
import math
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sweepstack.config.errors import EnvironmentFault, InputError, SweepstackError, one_line, reason
from sweepstack.engine import diagnostics as diagnosing
from sweepstack.engine import executors
from sweepstack.engine.executors import Executor
from sweepstack.engine.program import Program
from sweepstack.engine.slot import Fresh, Slot, all_drawn, draw_orders, drawn
from sweepstack.engine.step import Block, Step
from sweepstack.training import checkpoint, device
from sweepstack.training.evaluation import Change
from sweepstack.training.spec import Monitor, Raised, State, TrialResult, TrialSpec, telling

log = logging.getLogger(__name__)

BLOCK_SECONDS = 0.5
"""About how long a block takes, so that progress and signals are seen in time."""
AT_ONCE = 64
"""Trials whose initial states are drawn before they are written."""
MAX_SAMPLES = 2**22
"""Maximum number of sample indices of a block: 32 MiB."""


class Broken(Exception):
    """A step or an evaluation of several trials, `specs`, raised. With `memory`, it ran out: that
    may also be a single trial, beside other runners."""

    def __init__(self, specs: list[TrialSpec], cause: Exception):
        super().__init__(one_line(cause))
        self.specs, self.memory = specs, device.out_of_memory(cause)


class Runner:
    """A stack and the trials in it.

    Args:
        program: of the static part.
        monitor: watches every evaluation; may prune.
        limit: maximum number of slots.
    """

    def __init__(self, program: Program, monitor: Monitor, limit: int):
        self.program, self.monitor, self.limit = program, monitor, limit
        self.step, self.stack = Step(program), program.stack(0)
        self.executor = self._executor()
        self.slots: list[Slot | None] = []
        self.device_name = device.describe(program.device)
        self.diagnosis: diagnosing.Diagnosis | None = None  # once it is asked for
        self.block_steps = 1
        self.alone = True  # whether no other runner uses the device's memory
        self.evaluated = False  # whether the last `advance` reached an evaluation

    @property
    def live(self) -> list[tuple[int, Slot]]:
        """The slots that hold a trial, by number."""
        return [(place, slot) for place, slot in enumerate(self.slots) if slot is not None]

    def prepare(self, spec: TrialSpec, count: int, *, in_order: bool) -> None:
        """Make room for about `count` trials like `spec` and, where steps are captured, capture
        one; trials that come overwrite all of what it changes.

        Args:
            in_order: whether the trials see the same batches.
        """
        width = min(self.limit, count)
        if not executors.captures(self.program.device):
            return
        slot, initial, numbers = drawn(self.program, spec)
        one = self.program.stack(1)
        one.insert([0], [initial], [numbers])
        self.stack, self.slots = one.moved([0] * width, width), [None] * width
        self.executor = self._executor()
        samples = slot.batches(1)
        if not (self.step.shares_batches and (in_order or width == 1)):
            samples = samples.unsqueeze(1).expand(1, width, -1)
        steps = torch.zeros(1, width, dtype=torch.int64, device=self.stack.device)
        block = Block(samples, steps.double(), steps + 1, self.step.keys(self.stack, steps))
        self.executor.run(block)
        began = time.perf_counter()
        self.executor.run(block).tolist()
        self._pace_blocks(1, time.perf_counter() - began)

    def _pace_blocks(self, steps: int, seconds: float) -> None:
        """Let a block take about `BLOCK_SECONDS`, where one of so many steps took `seconds`."""
        self.block_steps = max(1, min(1000, round(BLOCK_SECONDS / seconds * steps)))

    def admit(self, specs: list[TrialSpec]) -> Iterator[TrialResult]:
        """Start trials, or resume them from their checkpoints.

        Yields:
            The results of those that cannot start.

        Raises:
            Broken: memory ran out.
        """
        together = [*(slot.spec for _, slot in self.live), *specs]
        try:
            self._resize(len(together))
        except Exception as error:
            if len(together) > 1 or self._may_be_crowded(error):
                raise Broken(together, error) from error
            yield not_started(specs[0], error)
            return
        for first in range(0, len(specs), AT_ONCE):
            yield from self._begin(specs[first : first + AT_ONCE], together)

    def _begin(self, specs: list[TrialSpec], together: list[TrialSpec]) -> Iterator[TrialResult]:
        """Draw the initial states of some trials, write them into free slots and start."""

        def refused(spec: TrialSpec, error: Exception) -> TrialResult:
            crowded = len(together) > 1 and device.out_of_memory(error)
            if crowded or self._may_be_crowded(error):
                raise Broken(together, error) from error
            together[:] = [other for other in together if other is not spec]
            return not_started(spec, error)

        fresh: list[Fresh] = []
        for spec, found in zip(specs, all_drawn(self.program, specs), strict=True):
            if isinstance(found, Exception):
                yield refused(spec, found)
            else:
                fresh.append(found)
        free = [place for place, slot in enumerate(self.slots) if slot is None][: len(fresh)]
        try:
            self._insert(free, fresh)
        except (RuntimeError, MemoryError) as error:
            if len(together) > 1:
                raise Broken(together, error) from error
            yield refused(together[0], error)
            return
        for place, (slot, *_) in zip(free, fresh, strict=True):
            try:
                self._start(place, slot)
            except Raised as raised:
                raise raised.error from raised.error.__cause__
            except (SweepstackError, RuntimeError, MemoryError) as error:
                yield refused(slot.spec, error)

    def _may_be_crowded(self, error: Exception) -> bool:
        """Whether a trial alone might have had enough memory."""
        return not self.alone and device.out_of_memory(error)

    def advance(self) -> Iterator[TrialResult]:
        """Advance all trials by a block of steps; end those that are over.

        Raises:
            Broken: the model raised with several trials in the stack.
            EnvironmentFault: a checkpoint could not be written.
            Exception: whatever the monitor raised.
        """
        try:
            self._resize(len(self.live))
            yield from self._block()
            yield from self._events()
        except SweepstackError:
            raise
        except Raised as raised:
            raise raised.error from raised.error.__cause__
        except Exception as error:  # a user's module may raise anything
            log.info("the model raised", exc_info=True)  # to the log file, not the screen
            if len(self.live) > 1 or self._may_be_crowded(error):
                raise Broken([slot.spec for _, slot in self.live], error) from error
            ended = self._ends({place: ("failed", reason(error)) for place, _ in self.live})
            yield from [replace(result, trace=trace_of(error)) for result in ended]
        self.checkpoint(due=True)

    def checkpoint(self, *, due: bool) -> None:
        """Write the checkpoints that are due, or (on a signal) those of all trials.

        Raises:
            EnvironmentFault: one could not be written.
        """
        for place, slot in self.live:
            if slot.spec.folder is None or slot.step == 0 or (due and not slot.checkpoints):
                continue
            state = {
                "config_hash": slot.identity,
                "tensors": self.stack.save(place),
                "slot": slot.state(),
            }
            checkpoint.save_trial(_checkpoints(slot.spec.folder), slot.step, state)

    # --- coming and going ------------------------------------------------------------------------

    def _resize(self, wanted: int) -> None:
        """Give the stack room for `wanted` trials."""
        width = self._fitting(wanted)
        if width == len(self.slots) or wanted == 0:
            return
        live = self.live
        self.stack = self.stack.moved([place for place, _ in live], width)
        self.executor = self._executor()
        self.slots = [slot for _, slot in live] + [None] * (width - len(live))

    def _executor(self) -> Executor:
        return executors.choose(self.step, self.stack, self.program.sources["train"])

    def _fitting(self, wanted: int) -> int:
        """The width for `wanted` trials: as many, but a captured or compiled step is worth some
        empty slots: then a power of two, which shrinks only when half of the slots are empty."""
        now = len(self.slots)
        lasts = executors.captures(self.program.device) or self.program.config.training.compile
        if not lasts or not now:
            return wanted
        if now >= wanted > now // 2:
            return now
        return max(wanted, min(self.limit, 1 << (wanted - 1).bit_length()))

    def _insert(self, places: list[int], fresh: list[Fresh]) -> None:
        if fresh:
            _, initial, numbers = zip(*fresh, strict=True)
            self.stack.insert(places, initial, numbers)

    def _start(self, place: int, slot: Slot) -> None:
        spec = slot.spec
        if spec.folder is not None:
            folder = _checkpoints(spec.folder)
            try:
                self._resume(slot, place, folder)
            except InputError:  # another run's: must not be overwritten
                raise
            except Exception as error:  # damaged in some other way, or of another version
                if device.out_of_memory(error):
                    raise
                checkpoint.mark_damaged(folder, one_line(error) or type(error).__name__)
                fresh = drawn(self.program, spec)
                self._insert([place], [fresh])
                slot = fresh[0]
        self.slots[place] = slot
        with telling():
            self.monitor.started(spec, slot.step, slot.total_steps, slot.history)
        if slot.layers:
            self._note_layers(slot, slot.layers)

    def _resume(self, slot: Slot, place: int, folder: Path) -> None:
        saved = checkpoint.load_trial(folder, slot.identity)
        if saved is not None:
            self.stack.load(place, saved["tensors"])
            slot.restore(saved["slot"])

    def _ends(self, ends: dict[int, tuple[State, str | None]]) -> list[TrialResult]:
        """Empty slots. Complete ones are measured in their best state on the test split, once."""
        tests: dict[int, dict[str, float]] = {}
        complete = [place for place, (state, _) in ends.items() if state == "complete"]
        if complete and "test" in self.program.sources:
            tests = dict(zip(complete, self._measure("test", complete, best=True), strict=True))
        slots = {place: slot for place, slot in self.live if place in ends}
        shared = self.program.shared_on_cpu if complete else {}
        measured = [place for place, slot in slots.items() if slot.best]
        best = dict(zip(measured, self.stack.best(measured, shared), strict=True))
        results = []
        for place, slot in slots.items():  # nothing here can raise: each has its result
            (state, error), self.slots[place] = ends[place], None
            found, kept = tests.get(place), best.get(place)
            name = self.device_name
            results.append(slot.result(state, name, test=found, kept=kept, error=error))
        return results

    # --- a block of steps ------------------------------------------------------------------------

    def _block(self) -> list[TrialResult]:
        """Advance every slot by a block of steps; end those whose loss is not finite."""
        self._diagnose([place for place, slot in self.live if slot.step == 0 and not slot.layers])
        began = time.perf_counter()
        live, stack, place = self.live, self.stack, self.stack.device
        samples = stack.width * self.program.batch_size
        most = min(self.block_steps, max(1, MAX_SAMPLES // samples))
        steps = min(most, *(slot.until_event() for _, slot in live))
        at = torch.tensor([slot.step if slot else 0 for slot in self.slots])
        lrs = np.zeros((steps, stack.width))
        for where, slot in live:
            lrs[:, where] = slot.lrs(steps)
        lr = torch.from_numpy(lrs).to(place)
        index = (torch.arange(steps).unsqueeze(1) + at).to(place)
        block = Block(self._samples(live, steps), lr, index + 1, self.step.keys(stack, index))
        losses = self.executor.run(block).cpu().double().numpy()
        before = [slot.loss_sum if slot else 0.0 for slot in self.slots]
        seconds = time.perf_counter() - began
        self._pace_blocks(steps, seconds)
        with telling():
            self.monitor.stepped(steps, [slot.spec for _, slot in live])
        # One after the other, as a loop adds: sums do not depend on where blocks end.
        with np.errstate(invalid="ignore"):
            sums = np.cumsum(np.vstack([before, losses]), axis=0)
        ends: dict[int, tuple[State, str | None]] = {}
        for where, slot in live:
            broke = slot.advance(sums[:, where], seconds / len(live))
            if broke is not None:
                ends[where] = ("failed", broke)
        return self._ends(ends)

    def _samples(self, live: list[tuple[int, Slot]], steps: int) -> Tensor:
        """Sample indices (T, S, B), where an empty slot repeats a live one's, or (T, B) where all
        trials see the same."""
        slots = [slot for _, slot in live]
        if self.step.shares_batches and len({(slot.order_key, slot.step) for slot in slots}) == 1:
            return slots[0].batches(steps)
        draw_orders(slots, steps)
        found = {place: slot.batches(steps) for place, slot in live}
        first = found[live[0][0]]
        return torch.stack([found.get(place, first) for place in range(self.stack.width)], dim=1)

    # --- events ----------------------------------------------------------------------------------

    def _events(self) -> list[TrialResult]:
        """Evaluate what is due: first all reports, then all `should_stop`, then the ends."""
        due = [place for place, slot in self.live if slot.evaluates]
        self.evaluated = bool(due)
        if not due:
            return []
        ends: dict[int, tuple[State, str | None]] = {}
        better: list[int] = []
        noise, measured = self._diagnose(due), self._measure("val", due, best=False)
        for place, metrics, hits in zip(due, measured, self._hits(due), strict=True):
            slot = self.slots[place]
            assert slot is not None
            bad = [name for name, value in metrics.items() if not math.isfinite(value)]
            if bad:
                said = f"{bad[0]} became {metrics[bad[0]]} at step {slot.step}"
                ends[place] = ("failed", f"{said} of {slot.total_steps}")
                continue
            samples = max(slot.loss_steps, 1) * self.program.batch_size
            share = None if hits is None else hits / samples
            if slot.evaluated({**metrics, **noise.get(place, {})}, share):
                better.append(place)
            with telling():
                self.monitor.report(slot.spec, slot.history[-1])
            stop = slot.stopper.observe(slot.history[-1])
            slot.stopped_early = stop and not slot.finished
            if stop or slot.finished:
                ends[place] = ("complete", None)
        if better:
            self.stack.keep_best(better)
        with telling():
            for place in due:
                slot = self.slots[place]
                if slot is not None and place not in ends and self.monitor.should_stop(slot.spec):
                    ends[place] = ("pruned", None)
        return self._ends(ends)

    def _diagnose(self, places: list[int]) -> dict[int, dict[str, float]]:
        """Say what the layers do in those of some slots that ask for it; their gradients' noise."""
        asking = {place: slot for place, slot in self.live if place in places and slot.diagnoses}
        if not asking:
            return {}
        began = time.perf_counter()
        self.diagnosis = self.diagnosis or diagnosing.Diagnosis(self.step)
        lrs = [slot.lrs(1)[0] for slot in asking.values()]
        steps = [slot.step for slot in asking.values()]
        found = self.diagnosis(self.stack, list(asking), lrs, steps)
        seconds = (time.perf_counter() - began) / len(asking)
        for slot, (rows, _) in zip(asking.values(), found, strict=True):
            slot.layers += rows
            slot.seconds += seconds
            self._note_layers(slot, rows)
        return {place: noise for place, (_, noise) in zip(asking, found, strict=True)}

    def _note_layers(self, slot: Slot, rows: list[dict[str, Any]]) -> None:
        """Write what the layers do and tell the monitor."""
        if slot.spec.folder is not None:
            diagnosing.write(slot.spec.folder, rows, anew=len(rows) == len(slot.layers))
        with telling():
            self.monitor.diagnosed(slot.spec, rows)

    def _hits(self, places: list[int]) -> Sequence[float | None]:
        """Right predictions of some slots on training samples since their last evaluation."""
        if not self.program.task.counts_hits:
            return [None] * len(places)
        return self.stack.take_hits(places)

    def _measure(self, split: str, places: list[int], *, best: bool) -> list[dict[str, float]]:
        """Metrics of some slots on a split: means over its samples, and over its changed copies."""
        began = time.perf_counter()
        stack = self.stack
        banks = (stack.best_params, stack.best_buffers) if best else stack.evaluated
        params, buffers = (bank.views for bank in banks)
        numbers = self.step.numbers(stack)
        if len(places) < stack.width:
            chosen = torch.tensor(places, device=stack.device)
            params = {name: view.index_select(0, chosen) for name, view in params.items()}
            buffers = {name: view.index_select(0, chosen) for name, view in buffers.items()}
            numbers = {name: row.index_select(0, chosen) for name, row in numbers.items()}
        data = {"val": self.program.data.val, "test": self.program.data.test}[split]
        assert data is not None

        def measured(name: str, change: Change | None = None) -> list[dict[str, float]]:
            source, count = self.program.sources[split], len(data)
            sums = self.step.measure(params, buffers, numbers, source, count, change)
            return [dict(self.program.task.means(row, count, name)) for row in sums]

        found = measured(split)
        for name, changes in self.program.changes.items():
            copies = [measured(f"{split}_{name}", change) for change in changes]
            for row, each in zip(found, zip(*copies, strict=True), strict=True):
                row |= {key: sum(one[key] for one in each) / len(each) for key in each[0]}
        for place in places:
            slot = self.slots[place]
            assert slot is not None
            slot.seconds += (time.perf_counter() - began) / len(places)
        return found


def _checkpoints(folder: Path) -> Path:
    return folder / "checkpoints"


def not_started(spec: TrialSpec, error: Exception) -> TrialResult:
    """The result of a trial that cannot start; an EnvironmentFault is raised again."""
    if isinstance(error, EnvironmentFault):
        raise error
    trace = None if isinstance(error, SweepstackError) else trace_of(error)
    objective = spec.config.objective
    return TrialResult(spec, "failed", objective, error=one_line(error), trace=trace)


def trace_of(error: Exception) -> str:
    """The traceback of what a user's module raised."""
    return "".join(traceback.format_exception(error))
