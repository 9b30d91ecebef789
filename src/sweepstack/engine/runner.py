"""One stack at work: trials come into its slots, advance together, are evaluated and leave.

All trials of a runner have one static part. They advance in blocks of steps between events
(evaluation, checkpoint, end), so that nothing has to be read back from the device at each step.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from sweepstack.config.errors import InputError, SweepstackError, one_line, reason
from sweepstack.data import streams
from sweepstack.engine import checkpoint, device, executors
from sweepstack.engine.executors.executor import Executor
from sweepstack.engine.monitor import Monitor, Raised, telling
from sweepstack.engine.program import Program
from sweepstack.engine.slot import Slot, not_started, trace_of
from sweepstack.engine.spec import State, TrialResult, TrialSpec
from sweepstack.engine.step import Block, Step

log = logging.getLogger(__name__)

BLOCK_SECONDS = 0.5
"""About how long a block may take, so that progress and signals are seen in time."""
MAX_SAMPLES = 2**22
"""Sample numbers that are laid out for a block at most: 32 MiB."""


class Broken(Exception):
    """A step or an evaluation of several trials raised; `specs` are those that were in the stack.

    `memory` says that there was too little of it; then it may also be a single trial's, beside
    other runners that take some.
    """

    def __init__(self, specs: list[TrialSpec], cause: Exception):
        super().__init__(one_line(cause))
        self.specs, self.memory = specs, device.out_of_memory(cause)


class Runner:
    """A stack and the trials in it.

    Args:
        program: of the static part.
        monitor: told of every evaluation; may prune.
        limit: maximum number of slots.
    """

    def __init__(self, program: Program, monitor: Monitor, limit: int):
        self.program, self.monitor, self.limit = program, monitor, limit
        self.step, self.stack = Step(program), program.stack(0)
        self.executor = self._executor()
        self.slots: list[Slot | None] = []
        self.device_name = device.describe(program.device)
        self.block_steps = 1
        self.alone = True  # whether no other runner takes any of the device's memory
        self.evaluated = False  # whether the last `advance` came to an evaluation

    @property
    def live(self) -> list[tuple[int, Slot]]:
        """The slots that hold a trial, with their places."""
        return [(place, slot) for place, slot in enumerate(self.slots) if slot is not None]

    def admit(self, specs: list[TrialSpec]) -> Iterator[TrialResult]:
        """Begin trials, or go on with them from their checkpoints.

        Yields:
            The results of those that cannot begin.

        Raises:
            Broken: there is no memory for so many.
        """
        together = [*(slot.spec for _, slot in self.live), *specs]
        try:
            self._resize(len(together))
        except Exception as error:
            if len(together) > 1 or self._may_be_crowded(error):
                raise Broken(together, error) from error
            yield not_started(specs[0], error)
            return
        for spec in specs:
            try:
                self._insert(self.slots.index(None), spec)
            except Raised as raised:
                raise raised.error from raised.error.__cause__
            except (SweepstackError, RuntimeError, MemoryError) as error:
                crowded = len(together) > 1 and device.out_of_memory(error)
                if crowded or self._may_be_crowded(error):
                    raise Broken(together, error) from error
                together = [other for other in together if other is not spec]
                yield not_started(spec, error)

    def _may_be_crowded(self, error: Exception) -> bool:
        """Whether a trial may have had memory enough without what others take."""
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
            ended = [self._end(place, "failed", reason(error)) for place, _ in self.live]
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
                "config_hash": slot.spec.config_hash,
                "tensors": self.stack.save(place),
                "slot": slot.state(),
            }
            checkpoint.save_trial(_checkpoints(slot.spec.folder), slot.step, state)

    # --- coming and going ------------------------------------------------------------------------

    def _resize(self, wanted: int) -> None:
        """Give the stack room for `wanted` trials, and no more than pays."""
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
        """Exactly as many slots as trials, but a captured or compiled step is worth some empty
        ones: then widths are powers of two, and go down only when half of the slots are empty."""
        now = len(self.slots)
        lasts = executors.captures(self.program.device) or self.program.config.training.compile
        if not lasts or not now:  # the first one is made for as many as come
            return wanted
        if now >= wanted > now // 2:
            return now
        return max(wanted, min(self.limit, 1 << (wanted - 1).bit_length()))

    def _insert(self, place: int, spec: TrialSpec) -> None:
        self.program.check(spec)
        slot = self._anew(place, spec)
        if spec.folder is not None:
            folder = _checkpoints(spec.folder)
            try:
                self._go_on(slot, place, folder)
            except InputError:  # of another config: not ours to write over
                raise
            except Exception as error:  # damaged in some other way, or of another version
                if device.out_of_memory(error):
                    raise
                checkpoint.set_aside(folder, one_line(error) or type(error).__name__)
                slot = self._anew(place, spec)
        self.slots[place] = slot
        with telling():
            self.monitor.started(spec, slot.step, slot.total_steps, slot.history)

    def _anew(self, place: int, spec: TrialSpec) -> Slot:
        self.stack.insert(place, self.program.initial(spec), self.program.numbers(spec))
        return Slot(self.program, spec)

    def _go_on(self, slot: Slot, place: int, folder: Path) -> None:
        saved = checkpoint.load_trial(folder, slot.spec.config_hash)
        if saved is not None:
            self.stack.load(place, saved["tensors"])
            slot.restore(saved["slot"])

    def _end(self, place: int, state: State, error: str | None = None) -> TrialResult:
        return self._ends({place: (state, error)})[0]

    def _ends(self, ends: dict[int, tuple[State, str | None]]) -> list[TrialResult]:
        """Empty slots. Complete ones are measured in their best state on the test split, once."""
        tests: dict[int, dict[str, float]] = {}
        complete = [place for place, (state, _) in ends.items() if state == "complete"]
        if complete and "test" in self.program.sources:
            tests = dict(zip(complete, self._measure("test", complete, best=True), strict=True))
        slots = {place: slot for place, slot in self.live if place in ends}
        best = {place: self.stack.best(place) for place, slot in slots.items() if slot.best}
        results = []
        for place, slot in slots.items():  # nothing here can raise: each has its result
            (state, error), self.slots[place] = ends[place], None
            found, kept = tests.get(place), best.get(place)
            name = self.device_name
            results.append(slot.result(state, name, test=found, best_state=kept, error=error))
        return results

    # --- a block of steps ------------------------------------------------------------------------

    def _block(self) -> list[TrialResult]:
        """Advance every slot to the next event or for a while; end those whose loss broke."""
        began = time.perf_counter()
        live, stack, place = self.live, self.stack, self.stack.device
        samples = stack.width * self.program.batch_size
        most = min(self.block_steps, max(1, MAX_SAMPLES // samples))
        steps = min(most, *(slot.until_event() for _, slot in live))
        at = torch.tensor([slot.step if slot else 0 for slot in self.slots])
        lrs = [slot.lrs(steps) if slot else [0.0] * steps for slot in self.slots]
        lr = torch.tensor(lrs, dtype=torch.float64).T.contiguous().to(place)
        index = (torch.arange(steps).unsqueeze(1) + at).to(place)
        keys = {n: streams.split(stack.keys[n], index) for n in self.step.streams()}
        block = Block(self._samples(live, steps), lr, index + 1, keys)
        columns = self.executor.run(block).T.tolist()
        seconds = time.perf_counter() - began
        self.block_steps = max(1, min(1000, round(BLOCK_SECONDS / seconds * steps)))
        with telling():
            self.monitor.stepped(steps)
        ends: dict[int, tuple[State, str | None]] = {}
        for where, slot in live:
            broke = slot.advance(columns[where], seconds / len(live))
            if broke is not None:
                ends[where] = ("failed", broke)
        return self._ends(ends)

    def _samples(self, live: list[tuple[int, Slot]], steps: int) -> Tensor:
        """Sample numbers: (T, S, B), where an empty slot repeats a live one's; or (T, B) where all
        trials see the same."""
        first = live[0][1].batches(steps)
        if self.step.shares_batches and len({(s.order_key, s.step) for _, s in live}) == 1:
            return first
        samples = dict.fromkeys(range(self.stack.width), first)
        samples |= {place: slot.batches(steps) for place, slot in live[1:]}
        return torch.stack(list(samples.values()), dim=1)

    # --- events ----------------------------------------------------------------------------------

    def _events(self) -> list[TrialResult]:
        """Evaluate what is due; all reports first, then all questions, then the ends."""
        due = [place for place, slot in self.live if slot.evaluates]
        self.evaluated = bool(due)
        if not due:
            return []
        ends: dict[int, tuple[State, str | None]] = {}
        for place, metrics in zip(due, self._measure("val", due, best=False), strict=True):
            slot = self.slots[place]
            assert slot is not None
            bad = [name for name, value in metrics.items() if not math.isfinite(value)]
            if bad:
                said = f"{bad[0]} became {metrics[bad[0]]} at step {slot.step}"
                ends[place] = ("failed", f"{said} of {slot.total_steps}")
                continue
            if slot.evaluated(metrics):
                self.stack.keep_best(place)
            with telling():
                self.monitor.report(slot.spec, slot.history[-1])
            stop = slot.stopper.observe(slot.history[-1])
            slot.stopped_early = stop and not slot.finished
            if stop or slot.finished:
                ends[place] = ("complete", None)
        with telling():
            for place in due:
                slot = self.slots[place]
                if slot is not None and place not in ends and self.monitor.should_stop(slot.spec):
                    ends[place] = ("pruned", None)
        return self._ends(ends)

    def _measure(self, split: str, places: list[int], *, best: bool) -> list[dict[str, float]]:
        """Metrics of some slots on a split: means over its samples. Each has its share of the
        time."""
        began = time.perf_counter()
        stack = self.stack
        params = (stack.best_params if best else stack.params).views
        buffers = (stack.best_buffers if best else stack.buffers).views
        if len(places) < stack.width:
            chosen = torch.tensor(places, device=stack.device)
            params = {name: view.index_select(0, chosen) for name, view in params.items()}
            buffers = {name: view.index_select(0, chosen) for name, view in buffers.items()}
        data = {"val": self.program.data.val, "test": self.program.data.test}[split]
        assert data is not None
        sums = self.step.measure(params, buffers, self.program.sources[split], len(data))
        for place in places:
            slot = self.slots[place]
            assert slot is not None
            slot.seconds += (time.perf_counter() - began) / len(places)
        return [dict(self.program.task.means(row, len(data), split)) for row in sums]


def _checkpoints(folder: Path) -> Path:
    return folder / "checkpoints"
