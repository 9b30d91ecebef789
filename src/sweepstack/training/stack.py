"""The tensors of a stack: everything that `S` slots keep between steps, one row per slot.

A `Bank` holds one tensor per parameter with a leading axis S, all in one storage. A `Stack` is the
banks of parameters, buffers, optimizer moments and best states, plus each slot's hyperparameters.
Rows are written in place: shapes and addresses stay the same while trials come and go.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sweepstack.training.fused import Bank, Layout, Row, Slots
from sweepstack.training.own import OwnOptimizer
from sweepstack.training.spec import Kept

_BANKS = ("params", "buffers", "best_params", "best_buffers", "counts")
_ROWS = ("optimizer", "strengths", "keys")


@dataclass(frozen=True)
class Numbers:
    """A trial's numbers in its slot.

    `optimizer` are float64 hyperparameters of the update rule (with weight_decay), `strengths` the
    strengths of the regularizers in use, `keys` the 64-bit keys of its random streams, `mixup`
    the quantiles of its Beta distribution or None; `own` makes the torch optimizer of a trial that
    has one, for its parameters.
    """

    optimizer: dict[str, float]
    strengths: dict[str, float]
    keys: dict[str, int]
    mixup: Tensor | None
    own: Callable[[Iterable[Tensor]], OwnOptimizer] | None = None


class Stack:
    """All state of `width` slots on one device.

    Args:
        params, buffers: one trial's tensors by name, for shapes and types.
        moments: names of what the optimizer keeps per parameter.
        layouts: of parameters whose gradients are not contiguous: they lie in memory alike, so
            that an update passes over both from end to end; None keeps every parameter's shape.
        width: number of slots S.
        averages: whether to keep running averages of parameters and buffers.
    """

    def __init__(
        self,
        params: Mapping[str, Tensor],
        buffers: Mapping[str, Tensor],
        moments: tuple[str, ...],
        layouts: Mapping[str, Layout] | None,
        width: int,
        device: torch.device,
        averages: bool = False,
    ):
        self.width, self.device = width, device
        self._shapes, self._averages = (params, buffers, moments, layouts), averages
        self._layouts, flat = layouts or {}, layouts is not None

        def bank(like: Mapping[str, Tensor]) -> Bank:
            # Of one trial, gradients lie as its parameters do.
            laid = self._layouts if width > 1 and like is params else None
            return Bank(like, width, device, laid, flat)

        self.params, self.buffers = bank(params), bank(buffers)
        self.moments = {name: bank(params) for name in moments}
        self.best_params, self.best_buffers = bank(params), bank(buffers)
        kept = {"params": params, "buffers": buffers} if averages else {}
        self.averages = {name: bank(like) for name, like in kept.items()}
        # Right predictions on training samples since the last evaluation.
        self.counts = bank({"hits": torch.zeros((), dtype=torch.float64)})
        self.optimizer: Row = {}
        self.strengths: Row = {}
        self.keys: Row = {}
        self.mixup: Tensor | None = None
        self.own: OwnOptimizer | None = None
        self.whole = True  # whether its banks' storages hold its slots and no others
        self.one_row = width == 1 and flat  # of one trial, all parameters are one long row
        self._expose()

    def _expose(self) -> None:
        # The tensors that gradients are taken of: without the slot axis where there is one slot.
        trial = self.params.row(0) if self.width == 1 else self.params.views
        self.leaves = {name: view.detach().requires_grad_() for name, view in trial.items()}
        self.live_buffers = self.buffers.row(0) if self.width == 1 else self.buffers.views

    def part(self, slots: slice) -> Stack:
        """Some slots as a stack of their own, in the same memory."""
        other = copy.copy(self)
        other.width, other.one_row, other.whole = slots.stop - slots.start, False, False
        for name in _BANKS:
            setattr(other, name, getattr(self, name).part(slots))
        for name in ("moments", "averages"):
            parts = {key: bank.part(slots) for key, bank in getattr(self, name).items()}
            setattr(other, name, parts)
        for name in _ROWS:
            setattr(other, name, {key: row[slots] for key, row in getattr(self, name).items()})
        other.mixup = None if self.mixup is None else self.mixup[slots]
        other._expose()
        return other

    @property
    def persistent(self) -> list[Tensor]:
        """All tensors that a step reads or writes in place, but for the optimizer's."""
        rows = (self.leaves, self.live_buffers, self.strengths)
        tensors = [tensor for row in rows for _, tensor in sorted(row.items())]
        return [*tensors, *self.params.packed, *([] if self.mixup is None else [self.mixup])]

    def insert(
        self, slots: Sequence[int], initial: Sequence[Row], numbers: Sequence[Numbers]
    ) -> None:
        """Start trials of one static part in slots, with zero moments: one write per tensor."""
        at = self._at(slots)
        for bank in (self.params, self.buffers, *self.averages.values()):
            bank.put(at, initial)
        for bank in (*self.moments.values(), self.counts):
            for view in bank.views.values():
                view[at] = 0
        self.keep_best(slots)
        if numbers[0].own is not None:  # a stack of one
            self.own = numbers[0].own(self.leaves.values())
        self._set(self.optimizer, at, [each.optimizer for each in numbers], torch.float64)
        self._set(self.strengths, at, [each.strengths for each in numbers], torch.float32)
        self._set(self.keys, at, [each.keys for each in numbers], torch.int64)
        if numbers[0].mixup is not None:
            tables = torch.stack([each.mixup for each in numbers if each.mixup is not None])
            if self.mixup is None:
                self.mixup = torch.zeros(self.width, tables.shape[1], device=self.device)
            self.mixup[at] = tables.to(self.device)

    def _set(
        self, row: Row, at: Slots, given: Sequence[Mapping[str, float]], dtype: torch.dtype
    ) -> None:
        for name in given[0]:
            if name not in row:
                row[name] = torch.zeros(self.width, dtype=dtype, device=self.device)
            values = torch.tensor([each[name] for each in given], dtype=dtype)
            row[name][at] = values.to(self.device)

    def _at(self, slots: Sequence[int]) -> Slots:
        """Slots as an index; those that follow each other, as most do, are the fastest."""
        first, last = slots[0], slots[-1]
        if list(slots) == list(range(first, last + 1)):
            return slice(first, last + 1)
        return torch.tensor(slots, dtype=torch.int64, device=self.device)

    def moved(self, slots: list[int], width: int) -> Stack:
        """A stack of `width` slots whose first ones are these `slots`, all on the device."""
        other = Stack(*self._shapes, width, self.device, self._averages)
        chosen = torch.tensor(slots, dtype=torch.int64, device=self.device)
        for name, bank in self.banks.items():
            other.banks[name].take(chosen, bank)
        for kind in _ROWS:
            rows = getattr(self, kind).items()
            setattr(other, kind, {name: _row(row, chosen, width) for name, row in rows})
        if self.mixup is not None:
            other.mixup = _row(self.mixup, chosen, width)
        return other

    def packed_grads(self, grads: Sequence[Tensor]) -> list[Tensor]:
        """Gradients, in the order of the parameters, as `params.packed` lie."""
        if self.one_row:
            return [torch.cat([grad.reshape(-1) for grad in grads]).unsqueeze(0)]
        if self.width == 1:
            grads = [grad.unsqueeze(0) for grad in grads]
        names = zip(self.params.views, _unshared(grads), strict=True)
        return [
            grad.permute(self._layouts[name]) if name in self._layouts else grad
            for name, grad in names
        ]

    @property
    def banks(self) -> dict[str, Bank]:
        """Every bank, by its name in a checkpoint."""
        moments = {f"moment.{name}": bank for name, bank in self.moments.items()}
        averages = {f"average.{name}": bank for name, bank in self.averages.items()}
        return {name: getattr(self, name) for name in _BANKS} | moments | averages

    @property
    def evaluated(self) -> tuple[Bank, Bank]:
        """The parameters and buffers that are evaluated and kept: the averages where there are."""
        kept = self.averages
        return kept.get("params", self.params), kept.get("buffers", self.buffers)

    def take_hits(self, slots: list[int]) -> list[float]:
        """The right predictions of these slots since the last call, which start again at 0."""
        hits = self.counts.views["hits"]
        chosen = torch.tensor(slots, dtype=torch.int64, device=self.device)
        found: list[float] = hits.index_select(0, chosen).tolist()
        hits.index_fill_(0, chosen, 0)
        return found

    def keep_best(self, slots: Sequence[int]) -> None:
        """Remember the present state of some slots as their best."""
        at = self._at(slots)
        for best, now in zip((self.best_params, self.best_buffers), self.evaluated, strict=True):
            for name, view in best.views.items():
                view[at] = now.views[name][at]

    def best(self, slots: Sequence[int], shared: Row) -> list[Kept]:
        """The best parameters and buffers of some slots, each with the `shared` ones besides."""
        chosen = torch.tensor(slots, dtype=torch.int64)
        views = self.best_params.views | self.best_buffers.views
        try:
            there = chosen.to(self.device)
            rows = {name: view.index_select(0, there) for name, view in views.items()}
        except torch.OutOfMemoryError:
            rows = {name: view.cpu().index_select(0, chosen) for name, view in views.items()}
        return [Kept(rows, place, shared) for place in range(len(slots))]

    def save(self, slot: int) -> dict[str, Row]:
        """All tensors of a slot on the CPU, for a checkpoint."""
        saved = {name: _on_cpu(bank.row(slot)) for name, bank in self.banks.items()}
        return saved | ({} if self.own is None else {"own": self.own.state()})

    def load(self, slot: int, saved: Mapping[str, Row]) -> None:
        """Put back what `save` gave, into any slot of any width."""
        for name, bank in self.banks.items():
            bank.put(slice(slot, slot + 1), [saved[name]])
        if self.own is not None:
            self.own.restore(saved["own"])


def _unshared(grads: Sequence[Tensor]) -> list[Tensor]:
    """Gradients that may be written to. autograd may return one tensor for several parameters
    (a + b), or an expanded number (sum)."""
    found: list[Tensor] = []
    seen: set[int] = set()
    for grad in grads:
        shared = grad.data_ptr() in seen or 0 in grad.stride()
        seen.add(grad.data_ptr())
        found.append(grad.clone(memory_format=torch.contiguous_format) if shared else grad)
    return found


def _row(row: Tensor, slots: Tensor, width: int) -> Tensor:
    """A row (S, ...) of `width` slots, the first ones from `slots`, the others zero."""
    moved = torch.zeros(width, *row.shape[1:], dtype=row.dtype, device=row.device)
    moved[: len(slots)] = row.index_select(0, slots)
    return moved


def _on_cpu(row: Row) -> Row:
    """A copy on the CPU."""
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in row.items()}
