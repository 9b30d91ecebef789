"""The whole update of a stack as one Triton kernel, for Adam, AdamW, SGD and RMSprop.

L1, clipping, weight decay, the rule and the running average of the parameters happen in one pass
over a bank's storage; written out (`Step.regularize`, `optim.Rule.update`) they are some thirty.
Clipping by norm takes a pass more, which adds up squares: in the same order at any width, so that
a trial stays itself. `Update.of` compares both ways on a made-up step, to within `TOLERANCE`, and
times them; the kernel is used only where it agrees and is faster.

Notation: S slots, G groups of parameters, T steps; a *tile* is up to `TILE` numbers of one
parameter of one slot.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sweepstack.config.errors import one_line
from sweepstack.training.device import out_of_memory
from sweepstack.training.fused import Bank
from sweepstack.training.stack import Stack
from sweepstack.training.update_kernel import moved

if TYPE_CHECKING:
    from sweepstack.engine.program import Program
    from sweepstack.engine.step import Step

log = logging.getLogger(__name__)

RULES = ("sgd", "adam", "adamw", "rmsprop")
TOLERANCE = 8 * 2.0**-23
"""Relative to the largest of a tensor's numbers: eight roundings of float32."""
TILE, WARPS = 1024, 4
UNIT = 4
"""Numbers that a processor of the card reads at once, where they begin at such a place."""
AT_ONCE = 32
"""Maximum number of gradients of one launch; more take several."""
ROWS = 10
"""Numbers of a slot in a step: the rule's coefficients in the order of `optim.Rule.coefficients`
(up to 5, named in `update_kernel`), then the five below, which the kernel reads by these numbers:
5 decay, 6 strength of L1, 7 bound of `clip_value`, 8 whether the group is held back (> 0), 9 share
of the parameters in their running average."""
_DECAY, _L1, _BOUND, _HELD, _AVERAGE = range(5, ROWS)
NO_FASTER, NO_MEMORY = "no faster than its rule", "no memory for its probe"
_SQUARES = ("second", "square")
_PROBED = 2**22  # numbers of the parameters of a probe, about


@dataclass(frozen=True)
class Update:
    """The kernel for the stacks of a program: those of one slot whose parameters are one row, or
    the others.

    `tiles` has for each launch the first and the last gradient that it takes, a unit, and a table
    (tiles, 6) int64: the gradient's number in the launch, its group, and in these units where the
    parameter begins in a trial's row, its size, where the tile begins in it, and where the
    parameter begins in its gradient.
    """

    step: Step
    tiles: Sequence[tuple[slice, int, Tensor]]
    key: tuple[Any, ...]  # all that decides whether it is used

    @classmethod
    def of(cls, step: Step, *, one_row: bool) -> Update | None:
        """The kernel, if it takes such a program and passes the probe."""
        program = step.program
        kinds = {parameter.dtype for parameter in program.params().values()}
        if program.rule.name not in RULES or kinds != {torch.float32}:
            return None
        uses = tuple(map(step.uses, ("l1", "clip_value", "clip_norm", "ema", "dampening")))
        parts = tuple((group.numbers.start, group.late) for group in program.groups)
        kind = (program.rule.name, program.rule.decays, uses, one_row)
        key = (*kind, tuple(program.sizes), parts, str(program.device))
        update = cls(step, _tables(program, one_row), key)
        if key not in _refusals:
            update.refuse(update.refusal(one_row))
        return update if _refusals.get(key, NO_MEMORY) is None else None

    def refuse(self, reason: str | None) -> None:
        """Let no step of this process use the kernel, if there is a reason."""
        name = self.step.program.rule.name
        if reason is not None:
            level = logging.INFO if reason == NO_FASTER else logging.WARNING
            log.log(level, "%s runs without its Triton kernel: %s", name, reason)
        if reason != NO_MEMORY:  # there may be some for the next stack
            _refusals[self.key] = reason

    def numbers(self, stack: Stack, lr: Tensor, step: Tensor, at: Tensor | None) -> Tensor:
        """What the kernel reads of each slot, float64 (..., G, ROWS, S).

        Args:
            stack: whose hyperparameters and strengths count.
            lr, step: (..., S), see `Batch`.
            at: steps before this one (..., S), with `training.unfreeze_at`.
        """
        uses, found = self.step.uses, []
        for group, hyper, rate, time_ in self.step.of_groups(stack.optimizer, lr, step):
            rule = group.rule
            rows = dict(enumerate(rule.coefficients(hyper, rate, time_).values()))
            if rule.name == "sgd":
                rows.setdefault(3, torch.ones_like(lr))  # no dampening
            if rule.decays:
                (rows[_DECAY],) = rule.decay(hyper, rate).values()
            if uses("l1"):
                rows[_L1] = stack.strengths["l1"]
            if uses("clip_value"):
                rows[_BOUND] = stack.strengths["clip_value"]
            if group.late:
                assert at is not None
                rows[_HELD] = (at < stack.strengths["unfreeze_at"]).double()
            if uses("ema"):
                rows[_AVERAGE] = self.step.average_weight(stack, step)
            empty = torch.zeros_like(lr)
            each = [rows.get(number, empty).double().expand_as(lr) for number in range(ROWS)]
            found.append(torch.stack(each, -2))
        return torch.stack(found, -3)

    def __call__(self, stack: Stack, grads: Sequence[Tensor], numbers: Tensor) -> None:
        """Regularize gradients, move the parameters and average them, in place.

        Args:
            grads: as `stack.params.packed` lie; they are not changed.
            numbers: float64 (G, ROWS, S), contiguous, see `numbers`.
        """
        grads = [grad.contiguous() for grad in grads]
        scale: Tensor | None = None
        if self.step.uses("clip_norm"):
            tiles = sum(len(table) for *_, table in self.tiles)
            squares = torch.empty(tiles, stack.width, device=stack.device)
            self._launch(stack, grads, numbers, squares=squares)
            bound = stack.strengths["clip_norm"]
            scale = (bound / (squares.sum(0).sqrt() + 1e-6)).clamp(max=1)
            scale = torch.where(bound.isinf(), 1, scale)  # as `regularization.clip_by_norm`
        self._launch(stack, grads, numbers, scale=scale)

    def _launch(
        self,
        stack: Stack,
        grads: Sequence[Tensor],
        numbers: Tensor,
        *,
        squares: Tensor | None = None,
        scale: Tensor | None = None,
    ) -> None:
        """Add up `squares` (tiles, S) of gradients, or move everything by those times `scale`."""
        rule, uses = self.step.program.rule, self.step.uses
        params, average = stack.params.storage, stack.averages.get("params")
        moments = [stack.moments[name].storage for name in rule.moments]
        for some, unit, table in self.tiles:
            given = grads[some]
            padded = (*given, *[given[0]] * (_padded(len(given)) - len(given)))
            moved[(len(table), stack.width)](
                *(params, padded, moments[0], moments[-1]),
                params if average is None else average.storage,
                *(table, numbers),
                numbers if scale is None else scale,
                numbers if squares is None else squares,
                stack.width,
                RULE="adam" if rule.name == "adamw" else rule.name,
                DECAY=(2 if rule.name == "adamw" else 1) if rule.decays else 0,
                L1=uses("l1"),
                BOUND=uses("clip_value"),
                HELD=uses("unfreeze"),
                NORM=1 if squares is not None else 0 if scale is None else 2,
                AVERAGE=average is not None,
                ROWS=ROWS,
                TILE=TILE,
                UNIT=unit,
                num_warps=WARPS,
                enable_fp_fusion=False,  # rounds as the operations of torch do
            )
            squares = None if squares is None else squares[len(table) :]

    # --- the probe --------------------------------------------------------------------------------

    def refusal(self, one_row: bool) -> str | None:
        """Why the kernel is not used: it fails, gives other numbers or is not faster; or None."""
        count = self.step.program.num_parameters
        width = 1 if one_row else min(64, max(2, _PROBED // count))
        try:
            probe = _Probe(self, width)
            if not probe.agrees():
                return "other numbers than its rule"
            return None if probe.is_faster() else NO_FASTER
        except Exception as error:  # another Triton, a card that it does not know
            if out_of_memory(error):
                return NO_MEMORY
            return one_line(error) or type(error).__name__


_refusals: dict[Any, str | None] = {}
"""Why the kernel is not used, by all that it depends on."""


class _Probe:
    """Two stacks with made-up numbers, moved by the kernel and by what it stands for."""

    def __init__(self, update: Update, width: int):
        self.update, self.step = update, update.step
        program, place = self.step.program, self.step.program.device
        self.drawn = torch.Generator().manual_seed(0)
        one = program.stack(1)
        one.insert([0], [program.initial(program.spec)], [program.numbers(program.spec)])
        self.mine, self.other = (one.moved([0] * width, width) for _ in range(2))
        for name, bank in self.mine.moments.items():
            drawn = self._random(bank.storage.shape).to(place)
            bank.storage.copy_(drawn.square_().add_(0.01) if name in _SQUARES else drawn)
            self.other.moments[name].storage.copy_(bank.storage)
        self.grads = [self._random(group.shape).to(place) for group in self.mine.params.packed]
        self.at = torch.arange(1, width + 1, device=place)
        self.lr = 0.01 * torch.linspace(0.5, 1.5, width, dtype=torch.float64, device=place)
        at = self.at - 1 if self.step.uses("unfreeze") else None
        self.numbers = update.numbers(self.mine, self.lr, self.at, at)

    def _random(self, shape: Sequence[int]) -> Tensor:
        return 0.1 * torch.randn(shape, generator=self.drawn)

    def agrees(self) -> bool:
        """Whether a step comes to the same numbers."""
        self._fused()
        self._written_out()
        pairs = [(self.mine.params, self.other.params)]
        for kind in ("moments", "averages"):
            rows = getattr(self.mine, kind), getattr(self.other, kind)
            pairs += [(rows[0][name], rows[1][name]) for name in rows[0] if name != "buffers"]
        return all(close(mine, other) for mine, other in pairs)

    def is_faster(self) -> bool:
        """Whether it takes less time in a captured step, which launches without Python."""
        with torch.cuda.device(self.mine.device):
            return self._seconds(self._fused) < self._seconds(self._written_out)

    def _seconds(self, way: Callable[[], None]) -> float:
        from sweepstack.engine.executors.cuda_graph import side_stream

        place, graph, taken = self.mine.device, torch.cuda.CUDAGraph(), list[float]()
        here, side = torch.cuda.current_stream(place), side_stream(place)
        try:
            with torch.cuda.graph(graph, stream=side, capture_error_mode="thread_local"):
                for _ in range(5):
                    way()
        finally:
            torch.cuda.set_stream(here)  # torch 2.11 stays on the other where a capture raises
        for _ in range(4):  # the first one warms up
            torch.cuda.synchronize(place)
            began = time.perf_counter()
            graph.replay()
            torch.cuda.synchronize(place)
            taken.append(time.perf_counter() - began)
        return min(taken)

    def _fused(self) -> None:
        self.update(self.mine, self.grads, self.numbers)

    def _written_out(self) -> None:
        step, stack, grads = self.step, self.other, self.grads
        at = self.at - 1 if step.uses("unfreeze") else None
        step.regularize(grads, stack.params.packed, stack.strengths, at)
        step.move(stack, grads, self.lr, self.at)
        if step.uses("ema"):
            step.average(stack, self.at, "params")


def close(mine: Bank, other: Bank) -> bool:
    """Whether the tensors of two banks agree to within `TOLERANCE`, NaN with NaN."""
    for a, b in zip(mine.packed, other.packed, strict=True):
        largest = b.nan_to_num(0, 0, 0).abs().max()
        if not torch.allclose(a, b, TOLERANCE, TOLERANCE * float(largest), equal_nan=True):
            return False
    return True


def _padded(count: int) -> int:
    """Gradients of a launch: few different numbers of them, each of which is compiled."""
    return 1 << (count - 1).bit_length()


def _tables(program: Program, one_row: bool) -> list[tuple[slice, int, Tensor]]:
    """See `Update.tiles`."""
    sizes, group_of = program.sizes, dict[int, int]()
    for place, group in enumerate(program.groups):
        group_of |= dict.fromkeys(range(len(sizes))[group.numbers], place)
    count = 1 if one_row else len(sizes)
    launches = []
    for first in range(0, count, AT_ONCE):
        some = range(len(sizes)) if one_row else range(first, min(first + AT_ONCE, count))
        rows: dict[int, list[tuple[int, ...]]] = {UNIT: [], 1: []}
        for number in some:
            begin, size = sum(sizes[:number]), sizes[number]
            which, shift = (0, begin) if one_row else (number - first, 0)
            unit = UNIT if begin % UNIT == size % UNIT == 0 else 1
            places = ((begin, size, start, shift) for start in range(0, size, TILE))
            rows[unit] += [
                (which, group_of[number], *(place // unit for place in each)) for each in places
            ]
        for unit, found in rows.items():
            if found:
                table = torch.tensor(found, dtype=torch.int64).to(program.device)
                launches.append((slice(first, first + AT_ONCE), unit, table))
    return launches
