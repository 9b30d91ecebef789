"""The core training function: a stream of specs in, a stream of results out.

`train` pulls a spec whenever a slot is free, advances all slots together in blocks of steps
between events (evaluation, checkpoint, end), and yields each trial's result as it ends. A single
run is a stream of one spec. Called by `app.py` and by the sweeper's workers.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch

from iolaus import checkpoint, device, streams
from iolaus.errors import EnvironmentFault, IolausError, one_line
from iolaus.monitor import Monitor
from iolaus.program import Program
from iolaus.slot import Slot
from iolaus.spec import State, TrialResult, TrialSpec
from iolaus.step import Moment, Step

log = logging.getLogger(__name__)

BLOCK_SECONDS = 0.5
"""About how long a block may take, so that progress and signals are seen in time."""


class Interrupted(IolausError):
    """A signal asked to stop, at `step`; the trials that have a folder are checkpointed."""

    def __init__(self, exit_code: int, step: int):
        super().__init__(f"interrupted at step {step}")
        self.exit_code, self.step = exit_code, step


def train(
    specs: Iterable[TrialSpec], monitor: Monitor | None = None, *, width: int = 1
) -> Iterator[TrialResult]:
    """Train every spec, up to `width` of them at a time as one stack.

    A trial's numbers depend on its config, the kind of device and the precision, never on its
    slot, the width, its neighbours or a resume. A trial with a folder continues from the newest
    checkpoint that lies there.

    Args:
        specs: pulled lazily, one whenever a slot is free. Neighbours with an equal static part
            share a stack.
        monitor: told of every evaluation; may prune.
        width: number of slots S.

    Yields:
        One result per spec, in the order in which the trials end. A trial that fails (a loss that
        is not finite, a model that raises) yields a result with state "failed".

    Raises:
        Interrupted: the monitor reported a signal while trials were left.
        EnvironmentFault: a checkpoint could not be written.
    """
    pull = _Pull(specs)
    monitor = monitor or Monitor()
    while (spec := pull.peek()) is not None:
        try:
            program = Program.of(spec)
        except (IolausError, RuntimeError) as error:
            pull.next()
            yield _not_started(spec, error)
            continue
        with device.settings(spec.config.training):
            yield from _Engine(program, monitor, pull, width).run()


class _Pull:
    """An iterator of specs with a look at the next one."""

    def __init__(self, specs: Iterable[TrialSpec]):
        self._specs = iter(specs)
        self._held: TrialSpec | None = None

    def peek(self) -> TrialSpec | None:
        if self._held is None:
            self._held = next(self._specs, None)
        return self._held

    def next(self) -> TrialSpec | None:
        spec, self._held = self.peek(), None
        return spec


class _Engine:
    """Runs one stack until no spec with its static part is left."""

    def __init__(self, program: Program, monitor: Monitor, pull: _Pull, width: int):
        self.program, self.monitor, self.pull = program, monitor, pull
        self.step, self.stack = Step(program), program.stack(width)
        self.slots: list[Slot | None] = [None] * width
        self.device_name = device.describe(program.device)
        self.block_steps = 1

    @property
    def live(self) -> list[tuple[int, Slot]]:
        return [(place, slot) for place, slot in enumerate(self.slots) if slot is not None]

    def run(self) -> Iterator[TrialResult]:
        """Fill, advance and empty the slots until the stream has no more for them."""
        while True:
            yield from self._fill()
            if not self.live:
                return
            try:
                ended = [*self._block(), *self._events()]
            except IolausError:
                raise
            except Exception as error:  # a user's module may raise anything
                log.info("the model raised", exc_info=True)  # to the log file, not the screen
                yield from self._broken(f"{type(error).__name__}: {one_line(error)}")
                continue
            yield from ended
            self._checkpoint(due=True)
            code = self.monitor.interrupted()
            if code is not None and (self.live or self.pull.peek() is not None):
                self._checkpoint(due=False)
                raise Interrupted(code, max((slot.step for _, slot in self.live), default=0))

    def _broken(self, reason: str) -> Iterator[TrialResult]:
        """The step or an evaluation raised: one trial alone is to blame itself; several are run
        again one by one, from their checkpoints or from the start, to find out whose fault it is.
        """
        if len(self.live) == 1:
            yield self._end(self.live[0][0], "failed", reason)
            return
        specs = [slot.spec for _, slot in self.live]
        self.slots = [None] * len(self.slots)
        yield from _Engine(self.program, self.monitor, _Pull(specs), 1).run()

    # --- coming and going ------------------------------------------------------------------------

    def _fill(self) -> Iterator[TrialResult]:
        for place, slot in enumerate(self.slots):
            while slot is None:
                spec = self.pull.peek()
                if spec is None or spec.static != self.program.spec.static:
                    return
                self.pull.next()
                try:
                    slot = self._insert(place, spec)
                except (IolausError, RuntimeError) as error:
                    yield _not_started(spec, error)

    def _insert(self, place: int, spec: TrialSpec) -> Slot:
        self.program.check(spec)
        slot = Slot(self.program, spec)
        self.stack.insert(place, self.program.initial(spec), self.program.numbers(spec))
        if spec.folder is not None:
            saved = checkpoint.load_trial(_checkpoints(spec.folder), spec.config_hash)
            if saved is not None:
                self.stack.load(place, saved["tensors"])
                slot.restore(saved["slot"])
        self.slots[place] = slot
        self.monitor.started(spec, slot.step, slot.total_steps, slot.history)
        return slot

    def _end(self, place: int, state: State, error: str | None = None) -> TrialResult:
        """Empty a slot: measure its best state on the test split, once, and build the result."""
        slot = self.slots[place]
        assert slot is not None
        test: dict[str, float] = {}
        if state == "complete" and "test" in self.program.sources:
            began = time.perf_counter()
            test = self._measure("test", [place], best=True)[0]
            slot.seconds += time.perf_counter() - began
        best = self.stack.best(place) if slot.best else None
        self.slots[place] = None
        return slot.result(state, self.device_name, test=test, best_state=best, error=error)

    # --- a block of steps ------------------------------------------------------------------------

    def _block(self) -> Iterator[TrialResult]:
        """Advance every slot to the next event or for a while; end those whose loss broke."""
        began = time.perf_counter()
        live = self.live
        steps = min(self.block_steps, *(slot.until_event() for _, slot in live))
        at = torch.tensor([slot.step if slot else 0 for slot in self.slots])
        lrs = [slot.lrs(steps) if slot else [0.0] * steps for slot in self.slots]
        place = self.stack.device
        lr = torch.tensor(lrs, dtype=torch.float64).T.contiguous().to(place)
        index = (torch.arange(steps).unsqueeze(1) + at).to(place)
        keys = {n: streams.split(self.stack.keys[n], index) for n in self.step.streams()}
        losses = torch.empty(steps, self.stack.width, device=place)
        orders = (self._order(live, step) for step in range(steps))
        for number, (x, y) in enumerate(self.program.sources["train"].batches(orders)):
            row = {name: key[number] for name, key in keys.items()}
            losses[number] = self.step(self.stack, x, y, Moment(lr[number], index[number] + 1, row))
        columns = losses.T.tolist()
        seconds = time.perf_counter() - began
        self.block_steps = max(1, min(1000, round(BLOCK_SECONDS / seconds * steps)))
        self.monitor.stepped(steps)
        for where, slot in live:
            reason = slot.advance(columns[where], seconds / len(live))
            if reason is not None:
                yield self._end(where, "failed", reason)

    def _order(self, live: list[tuple[int, Slot]], step: int) -> torch.Tensor:
        """Sample numbers of one step, (S, B); an empty slot repeats a live one's."""
        batches = dict.fromkeys(range(self.stack.width), live[0][1].batch(live[0][1].step + step))
        batches |= {place: slot.batch(slot.step + step) for place, slot in live}
        return torch.stack(list(batches.values()))

    # --- events ----------------------------------------------------------------------------------

    def _events(self) -> Iterator[TrialResult]:
        """Evaluate what is due; all reports first, then all questions, then the ends."""
        due = [place for place, slot in self.live if slot.evaluates]
        if not due:
            return
        began = time.perf_counter()
        measured = self._measure("val", due, best=False)
        seconds = (time.perf_counter() - began) / len(due)
        ends: dict[int, tuple[State, str | None]] = {}
        for place, metrics in zip(due, measured, strict=True):
            slot = self.slots[place]
            assert slot is not None
            slot.seconds += seconds
            bad = [name for name, value in metrics.items() if not math.isfinite(value)]
            if bad:
                reason = f"{bad[0]} became {metrics[bad[0]]} at step {slot.step}"
                ends[place] = ("failed", f"{reason} of {slot.total_steps}")
                continue
            if slot.evaluated(metrics):
                self.stack.keep_best(place)
            self.monitor.report(slot.spec, slot.history[-1])
            stop = slot.stopper.observe(slot.history[-1])
            slot.stopped_early = stop and not slot.finished
            if stop or slot.finished:
                ends[place] = ("complete", None)
        for place in due:
            slot = self.slots[place]
            if slot is not None and place not in ends and self.monitor.should_stop(slot.spec):
                ends[place] = ("pruned", None)
        for place, (state, error) in ends.items():
            yield self._end(place, state, error)

    def _measure(self, split: str, places: list[int], *, best: bool) -> list[dict[str, float]]:
        """Metrics of some slots on a split: means over its samples."""
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
        return [dict(self.program.task.means(row, len(data), split)) for row in sums]

    def _checkpoint(self, *, due: bool) -> None:
        """Write the checkpoints that are due, or (on a signal) those of all trials."""
        for place, slot in self.live:
            if slot.spec.folder is None or slot.step == 0 or (due and not slot.checkpoints):
                continue
            state = {
                "config_hash": slot.spec.config_hash,
                "tensors": self.stack.save(place),
                "slot": slot.state(),
            }
            checkpoint.save_trial(_checkpoints(slot.spec.folder), slot.step, state)


def _checkpoints(folder: Path) -> Path:
    return folder / "checkpoints"


def _not_started(spec: TrialSpec, error: Exception) -> TrialResult:
    if isinstance(error, EnvironmentFault):
        raise error
    return TrialResult(
        spec=spec,
        state="failed",
        metrics={},
        history=[],
        steps=0,
        best_step=0,
        seconds=0.0,
        num_parameters=0,
        samples_per_s=0.0,
        device="",
        objective=spec.config.objective,
        error=one_line(error),
    )
