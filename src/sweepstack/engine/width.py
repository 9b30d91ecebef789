"""How many trials are trained together: as many as measurement says, once per static part.

`training.width=auto` times a few steps at growing widths, once more in turns those that come near
the best, and takes the smallest width whose time per trial is within a few percent of the best;
where stacking loses (convolutions on a CPU), that is 1. What was found is kept in a file, so that
the next sweep does not measure again. Where all trials take a few seconds, measuring would take
longer than it could save: they have a width by rule.

Notation: S slots, B samples of a batch.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import platform
import time
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sweepstack.config import errors
from sweepstack.config.errors import EnvironmentFault, one_line
from sweepstack.config.schema import Custom, CustomLoss, CustomOptimizer, HubModel
from sweepstack.data.batches import DeviceSource
from sweepstack.data.dataset import TensorSplit
from sweepstack.engine import executors
from sweepstack.engine.program import Program
from sweepstack.engine.step import Batch, Block, Step
from sweepstack.models import autotune
from sweepstack.training import device
from sweepstack.training.own import say_one_by_one
from sweepstack.training.stack import Stack

log = logging.getLogger(__name__)

TRIED = {"cpu": (1, 2, 4, 8, 16, 32, 64), "cuda": (1, 16, 64, 256, 1024)}
"""Widths that are measured, up to the number of trials, until one is past the best."""
MANY = 2**20
_PLAN = "/convolutions/"  # in the names of plans in the file
SAME_WIDTH = ("data.root", "model.activation", "training.eval_every", "objective", "metrics")
"""Static keys that hardly change a step's time: configs that differ in them share a width."""

# Where nothing is measured.
LIKELY = {"cpu": 24, "cuda": 256}
SHORT_S = 6.0  # trials that take less all together at a likely width
FASTEST_S = 1e-6  # no step of a trial takes less: many trials need no look

# Which width is chosen. vmap costs a fixed time per step, so that a gain may come late.
WORTH = 0.95  # wider stacks are tried as long as they take at most this share of the time
NEARLY = 0.97  # as good as the best: the best takes at least this share of its time
SHARED = 0.95  # the same where otherwise one stack takes all: a worker that joins gets a part
ALONE = 1.05  # a trial alone takes longer by its beginning, its evaluations and its end
MIN_TRIED = 16  # widths up to this are tried even without a gain ...
LONG_STEP_S = 0.02  # ... unless a step takes this long
# How it is timed. Other work on the machine only makes a step slower: the least time counts.
TIMED_S = 0.008  # of a timing, or one step
TIMINGS, ENOUGH_S = 5, 0.08  # timings of a width; three are enough after so many seconds
ALIKE = 8  # on a GPU, programs whose steps differ by no more than this factor share a width
NOISE = 1.4  # widths within this factor of the best are timed again ...
ROUNDS, AGAIN_S = 3, 0.7  # ... in at most so many rounds, none begun after so many seconds ...
CALM = 0.95  # ... until a round's timings equal the ones before within this share


@dataclass
class Widths:
    """The widths of a sweep's stacks.

    Args:
        wanted: `training.width`: a number of slots, or `auto`.
        most: maximum number of slots, whatever was measured.
        file: where measured widths are kept; None keeps them in memory.
        measures: whether `auto` measures. If not, it is 1 where stacking is known to lose and
            otherwise `most`.
    """

    wanted: int | str = 1
    most: int = MANY
    file: Path | None = None
    measures: bool = True
    _known: dict[str, int] = field(default_factory=dict)
    _kin: dict[Any, tuple[int, int]] = field(default_factory=dict)
    _lowered: dict[str, int] = field(default_factory=dict)
    _planned: set[str] = field(default_factory=set)

    def of(self, program: Program) -> int:
        """Most slots of a stack of `program`."""
        if self.wanted == 1 or self.most == 1:
            return 1
        key = _key(program)
        if key not in self._known:
            self._known[key] = self._found(program, key)
        most = min(self.most, program.fits or self.most, self._lowered.get(key, self.most))
        width = min(self._known[key], most)
        self._plan(program, f"{key}{_PLAN}{width}", width)
        return width

    def lower(self, program: Program, width: int) -> None:
        """A stack of more than `width` slots does not fit into memory."""
        self._lowered[_key(program)] = max(1, width)

    def _plan(self, program: Program, name: str, width: int) -> None:
        """Take the plan of the convolutions from the file, or measure it and keep it there."""
        if name in self._planned and width in program.plans:
            return
        self._planned.add(name)
        kept, trials = _read(self.file), width if self.most == MANY else self.most
        steps = trials * program.total_steps(program.spec) / width
        found = plan(program, width, kept.get(name), steps)
        if self.file is not None and kept.get(name) != found:
            _keep(self.file, {**kept, name: found})

    def _found(self, program: Program, key: str) -> int:
        if program.config.training.deterministic:
            # A product of one trial has other sums than that of a stack, at some shapes.
            log.info("training.deterministic=true: trials train one by one")
            return 1
        if isinstance(program.config.optimizer, CustomOptimizer):
            say_one_by_one(program.config.optimizer.target)
            return 1
        known, config = self._known_before(program, key), program.config
        # What a user's code does, and at which sizes, may be another thing each time.
        is_own = isinstance(config.model, Custom | HubModel) or isinstance(config.loss, CustomLoss)
        if known and not is_own:
            return known
        reason = why_not_stacked(program)
        if reason is not None:
            name = program.config.model.name
            log.warning("model %s cannot be stacked, its trials train one by one: %s", name, reason)
            return 1
        if known:
            return known
        if self.wanted != "auto":
            return int(self.wanted)
        if not self.measures:
            return 1 if program.stacking_loses else self.most
        if (guess := likely(program, self.most)) is not None:
            log.debug("training.width=auto: %d, too few steps to measure", guess)
            return guess
        width, whole = measured(program, self.most)
        if self.file is not None and width:
            name = key if whole else f"{key}/{self.most}"
            _keep(self.file, {**_read(self.file), name: width})
        self._kin[_kind(program)] = (_size(program), max(width, 1))
        return max(width, 1)

    def _known_before(self, program: Program, key: str) -> int | None:
        """A width that was kept in the file, or that of a program that differs in its sizes."""
        kept = _read(self.file) if self.wanted == "auto" and self.measures else {}
        # A kept 1 may come from a busy machine, for which all later sweeps would pay.
        for name in (key, f"{key}/{self.most}"):
            if kept.get(name, 1) > 1 or (name in kept and program.stacking_loses):
                return int(kept[name])
        kind = _kind(program)
        near, width = self._kin.get(kind, (0, 0))
        return width if kind and near / ALIKE <= _size(program) <= near * ALIKE else None


def plannable(program: Program) -> bool:
    """Whether it is measured how convolutions of the program's stacks run."""
    place = program.device.type in autotune.MEASURED_ON
    return place and program.convolves and not program.config.training.compile


def plan(program: Program, width: int, kept: Any = None, steps: float = 0.0) -> Any:
    """Measure how the convolutions of a stack of `width` run, unless `program.plans` has it, and,
    where so many `steps` are worth it, their blocks; where that fails, `unplanned` has the width.
    A record that was `kept` in a file is tried once. What to keep is returned."""
    if width == 1 or not plannable(program):
        return kept
    if kept in [autotune.record(None, tuned=tuned) for tuned in (False, True)]:
        program.plans.setdefault(width, None)
    known, tuned = width in program.plans, False
    found = program.plans.setdefault(width, None)  # meanwhile, and where measuring fails
    if known and (
        not steps or width in program.unplanned or kept == autotune.record(found, tuned=True)
    ):
        return kept
    tolerance = autotune.TOLERANCE[program.config.training.precision]
    try:
        stepper = _Stepper(program, width)
        chooser = autotune.Chooser(stepper.tried, program.device, tolerance)
        if not known:
            program.plans[width] = found = chooser.chosen(autotune.Plan.read(kept))
        if steps and kept != autotune.record(found, tuned=True):
            program.plans[width], tuned = chooser.tuned(found, steps)
    except Exception as error:  # the model's own are seen where it trains
        program.unplanned.add(width)
        log.info("convolutions of the stack run as vmap does them: %s", one_line(error))
        return kept
    whole = autotune.record(program.plans[width], tuned=True)
    return whole if tuned or kept == whole else autotune.record(program.plans[width])


def why_not_stacked(program: Program) -> str | None:
    """Why vmap refuses a step or an evaluation of two trials, or gives other gradients than a
    trial's alone (it drops hooks on tensors, and an embedding's padding_idx); or None."""
    try:
        one = _Stepper(program, 1, compiles=False)  # what compiles is seen when it trains
        stepper = _Stepper(program, 2, compiles=False, like=one.stack)
        losses, *stacked = stepper.tried(autotune.Rules(None))
        only, *alone = one.tried(autotune.Rules(None))
        alone = [[each.unsqueeze(0).expand(2, *each.shape) for each in kind] for kind in alone]
        tolerance = autotune.TOLERANCE[program.config.training.precision]
        off = autotune.difference([losses, *stacked], [[only[0].expand(2)], *alone], tolerance)
        if off is not None and math.isfinite(off):
            return f"in a stack its losses or gradients are others, by {off:.1g}"
        stepper.once()
        stepper.evaluate()
    except Exception as error:  # a user's module may raise anything
        if device.out_of_memory(error):
            return "two trials do not fit into memory"
        return one_line(error)
    return None


def likely(program: Program, most: int) -> int | None:
    """A width for `most` trials by rule, so that stacks of about the same width follow each other;
    None where it is worth to measure."""
    steps = most * program.total_steps(program.spec)
    if steps * FASTEST_S > SHORT_S:
        return None
    width = -(-most // max(1, round(most / LIKELY[program.device.type])))
    width = 1 if program.stacking_loses else min(width, program.fits or width)
    try:
        return width if steps * _time(program, width, roughly=True) < SHORT_S else None
    except (RuntimeError, MemoryError):  # measuring finds out what is too wide
        return None


def measured(program: Program, most: int) -> tuple[int, bool]:
    """The width, up to `most`, at which a trial's step takes the least time, or hardly more, 0 if
    there is no memory for one trial; and whether a larger `most` would have given the same."""
    times: dict[int, float] = {}
    widths = TRIED[program.device.type]
    whole, past = most >= widths[-1], False
    for width in sorted({min(width, most) for width in widths}):
        try:
            times[width] = _time(program, width)
        except Exception as error:
            if not _is_too_wide(error, times):
                raise
            whole = True
            break
        if _is_past_its_best(times):
            _time_again(program, times)
            if _is_past_its_best(times):  # and not by bad luck
                whole = past = True
                break
    if not times:
        return 0, False
    if not past:
        _time_again(program, times)
    counted = {width: ALONE * s if width == 1 else s for width, s in times.items()}
    best = min(counted.values())
    chosen = min(width for width, seconds in counted.items() if seconds * NEARLY <= best)
    halves = {w: s for w, s in counted.items() if 2 * w <= most + 1 and s * SHARED <= best}
    if 2 * chosen > most + 1 and halves:
        chosen, whole = min(halves, key=halves.__getitem__), False
    each = ", ".join(f"{width}: {1e6 * seconds:.0f}" for width, seconds in times.items())
    log.debug("training.width=auto: %d (microseconds per trial and step at %s)", chosen, each)
    return chosen, whole


def _is_too_wide(error: Exception, times: dict[int, float]) -> bool:
    """Whether a width failed because memory ran out, or for a limit of some library where narrower
    stacks have none (grouped convolutions, 32-bit indices)."""
    if device.out_of_memory(error):
        return True
    if times and isinstance(error, RuntimeError):
        log.info("stacks wider than %d fail: %s", max(times), one_line(error))
        return True
    return False


def _is_past_its_best(times: dict[int, float]) -> bool:
    """Whether stacks wider than the last are not worth a try: it gained nothing, and neither did
    the one before it, or its step is so long that vmap's fixed cost does not matter."""
    *_, width = times
    if width == 1:
        return False
    gains = [times[w] <= WORTH * min(times[v] for v in times if v < w) for w in times if w > 1]
    long = times[width] * width > LONG_STEP_S
    return not any(gains[-1:] if long else [True] if width < MIN_TRIED else gains[-2:])


def _time_again(program: Program, times: dict[int, float]) -> None:
    """Time once more the widths that may be best, in turns, so that other work on the machine
    delays all of them alike; the least time of each counts."""
    began = time.perf_counter()
    for _ in range(0 if program.config.training.compile else ROUNDS):  # compiling takes longer
        best = min(times.values())
        near = [width for width, seconds in times.items() if seconds <= NOISE * best]
        if len(near) == 1 or time.perf_counter() - began > AGAIN_S:
            return
        calm = True
        for width in near:
            try:
                again = _time(program, width, again=True)
            except Exception as error:
                if not _is_too_wide(error, times):
                    raise
            else:
                calm = calm and CALM <= again / times[width] <= 1 / CALM
                times[width] = min(times[width], again)
        if calm:
            return


def _time(program: Program, width: int, *, roughly: bool = False, again: bool = False) -> float:
    """Seconds that one step takes per trial; `again` of a width that was timed before, whose steps
    are known, and `roughly` by a few of them."""
    plan(program, width)
    stepper = _Stepper(program, width)
    stepper.seconds(3 if roughly or again else executors.WARM_UP)
    if roughly:
        return stepper.seconds(2) / 2 / width
    if not again:
        stepper.evaluate()  # it has to fit, too, beside what a step has kept
    steps = max(1, round(TIMED_S / stepper.seconds(1)))
    taken: list[float] = []
    while len(taken) < 3 or (len(taken) < TIMINGS and sum(taken) < ENOUGH_S):
        taken.append(stepper.seconds(steps))
    return min(taken) / steps / width


class _Stepper:
    """A stack of equal trials whose steps are timed, `like` the one of another."""

    def __init__(
        self, program: Program, width: int, *, compiles: bool | None = None, like: Any = None
    ):
        self.program, self.step = program, Step(program, compiles=compiles)
        one = like or program.stack(1)
        if like is None:
            one.insert([0], [program.initial(program.spec)], [program.numbers(program.spec)])
        self.stack: Stack = one.moved([0] * width, width)
        place = program.device
        samples = program.batch_size
        self.y = program.data.train.y[:samples].to(place)
        self.drawn = torch.Generator().manual_seed(0)
        train = program.sources["train"]
        if resident := isinstance(train, DeviceSource):
            self.x = train.split.x[:samples]
        else:
            self.x = torch.rand(samples, *program.data.input_shape, generator=self.drawn).to(place)
        self.made_up = DeviceSource(TensorSplit(self.x, self.y), place)
        self.source = train if resident else self.made_up
        self.among = len(program.data.train) if resident else samples
        self.executor = executors.choose(self.step, self.stack, self.source)
        self.batch: Batch | None = None

    def seconds(self, count: int) -> float:
        """Time of a few steps, on other samples each time: cached ones are too quick."""
        size = (count, self.stack.width, self.program.batch_size)
        block = self._block(torch.randint(self.among, size, generator=self.drawn))
        began = time.perf_counter()
        self.executor.run(block)
        if self.program.device.type == "cuda":
            torch.cuda.synchronize(self.program.device)
        return time.perf_counter() - began

    def once(self) -> None:
        """A step, batched by vmap whatever the machine."""
        shape = (1, self.stack.width, self.program.batch_size)
        block = self._block(torch.zeros(shape, dtype=torch.int64))
        self.step(self.stack, next(block.batches(self.made_up)))

    def tried(self, rules: autotune.Rules) -> list[list[Tensor]]:
        """`Step.tried` of a step whose convolutions run by `rules`."""
        if self.batch is None:  # once: a capture must not copy from the CPU
            size = self.program.batch_size
            samples = torch.arange(size).expand(1, self.stack.width, size)
            self.batch = next(self._block(samples).batches(self.made_up))
        self.step.trying = rules
        try:
            return self.step.tried(self.stack, self.batch)
        finally:
            self.step.trying = None

    def _block(self, samples: Tensor) -> Block:
        shape, place = samples.shape[:2], self.stack.device
        steps = torch.ones(shape, dtype=torch.int64, device=place)
        lr = torch.full(shape, 1e-4, dtype=torch.float64, device=place)
        keys = self.step.keys(self.stack, steps)
        return Block(samples.to(place), lr, steps, keys)

    def evaluate(self) -> None:
        """A chunk of a split."""
        samples = self.step.chunk(self.stack.width, len(self.program.data.val))
        rows = torch.arange(samples, device=self.x.device) % len(self.x)
        source = DeviceSource(TensorSplit(self.x[rows], self.y[rows]), self.program.device)
        params, buffers = self.stack.params.views, self.stack.buffers.views
        self.step.measure(params, buffers, self.step.numbers(self.stack), source, samples)


def _kind(program: Program) -> Any:
    """What programs on a GPU that differ only in their sizes have in common; None elsewhere, where
    widths follow from caches, and of convolutions, which are measured per shape."""
    if program.device.type != "cuda" or program.convolves:
        return None
    sized = ("model.", "batch.")
    return tuple(
        (key, value)
        for key, value in program.spec.static
        if key not in SAME_WIDTH and not (key.startswith(sized) and _is_size(value))
    )


def _size(program: Program) -> int:
    """What a step's time grows with."""
    return program.num_parameters * program.batch_size


def _is_size(value: Any) -> bool:
    return type(value) is int or (isinstance(value, tuple) and all(map(_is_size, value)))


def _key(program: Program) -> str:
    """What a width and a plan depend on: the static part, the device, and versions."""
    static = [(key, value) for key, value in program.spec.static if key not in SAME_WIDTH]
    place = device.describe(program.device)
    text = repr((static, place, torch.__version__, platform.python_version(), _own_version()))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@cache
def _own_version() -> str:
    try:
        return metadata.version("sweepstack")
    except metadata.PackageNotFoundError:  # run from its source
        return ""


def _read(file: Path | None) -> dict[str, Any]:
    """The widths and plans that are kept; none where the file is missing or damaged."""
    try:
        kept = json.loads(file.read_text("utf-8")) if file is not None else {}
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(kept, dict):
        return {}
    return {
        key: value
        for key, value in kept.items()
        if (isinstance(value, dict) if _PLAN in key else isinstance(value, int) and value > 0)
    }


def _keep(file: Path, kept: dict[str, Any]) -> None:
    with suppress(OSError, EnvironmentFault):  # it only saves measuring again
        errors.write_bytes(file, json.dumps(kept, indent=0).encode(), durable=False)
