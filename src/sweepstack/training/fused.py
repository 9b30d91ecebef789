"""torch.optim's fused CPU kernels on a stack: one pass over memory instead of one per operation.

The kernels take one learning rate and one set of hyperparameters for a list of tensors, so slots
that agree in all of them are updated by one call, others by a call each. Their names
(`torch._fused_*`) are private: `works` compares them with the rules of `optimizer.py`, which run
on any device, before they are used.

Notation: S trials; a group is a tuple of numbers and the slots that share it.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from sweepstack.config.errors import one_line
from sweepstack.training import optimizer as optim

log = logging.getLogger(__name__)

Row = dict[str, Tensor]
Slots = slice | Tensor
Layout = tuple[int, ...]
"""How a tensor (S, *shape) lies in memory: its axes from the outermost to the innermost."""

Grad = Tensor | list[Tensor]
"""A gradient (S, *shape), or the same slot by slot."""

KERNELS = ("sgd", "adam", "adamw")
_TRIED = {
    "sgd": {"momentum": (0.9, 0.0), "nesterov": (1.0, 0.0)},
    "adam": {"beta1": (0.9, 0.5), "beta2": (0.999, 0.9), "eps": (1e-8, 1e-3)},
}
_TRIED["adamw"] = _TRIED["adam"]


@cache
def works(name: str) -> bool:
    """Whether torch has a CPU kernel for the optimizer `name` that updates two small trials as its
    rule does."""
    if name not in KERNELS:
        return False
    try:
        agrees = all(_agrees(name, slots) for slots in ([0, 1], [0, 0], [1, 1]))
        reason = "other numbers than its rule"
    except Exception as error:  # another torch
        agrees, reason = False, one_line(error)
    if not agrees:
        log.debug("%s runs without torch's fused kernel: %s", name, reason)
    return agrees


def _agrees(name: str, slots: list[int]) -> bool:
    """Three steps of two trials with the hyperparameters of these slots of `_TRIED`."""
    rule = optim.RULES[name](decays=True)
    start = torch.linspace(-1, 1, 6).view(2, 3)
    columns = {**_TRIED[name], "weight_decay": (0.1, 0.0)}
    hyper = {key: torch.tensor(pair, dtype=torch.float64)[slots] for key, pair in columns.items()}
    lr = torch.tensor([0.1, 0.01], dtype=torch.float64)[slots]
    kernels, rules = [
        {key: Bank({key: start[0]}, 2, start.device) for key in ("param", *rule.moments)}
        for _ in range(2)
    ]
    for banks in (kernels, rules):
        banks["param"].packed[0].copy_(start)
    for number in (1, 2, 3):
        grad, step = (number * start).cos(), torch.full((2,), number)
        moments = [kernels[key] for key in rule.moments]
        update(name, kernels["param"], [grad.clone()], moments, hyper, lr, step)
        ordered = {key: rules[key].packed for key in rule.moments}
        rule.update(rules["param"].packed, [grad.clone()], ordered, hyper, lr, step)
    # SGD without momentum leaves its moment alone.
    return torch.allclose(kernels["param"].packed[0], rules["param"].packed[0], 1e-4, 1e-6)


def update(
    name: str,
    params: Bank,
    grads: Sequence[Grad],
    moments: Sequence[Bank],
    hyper: Mapping[str, Tensor],
    lr: Tensor,
    step: Tensor,
) -> None:
    """One step in place; see `optim.Rule.update`. `moments` come in the rule's order."""
    banks = (params, *moments)
    groups = list(_groups({**hyper, "lr": lr}, step))
    whole = [grad.contiguous() for grad in grads if isinstance(grad, Tensor)]
    if len(groups) == 1 and len(whole) == len(grads):
        numbers, number, _ = groups[0]
        p, *m = [list(bank.packed) for bank in banks]
        _run(name, p, whole, m, numbers, number)
        return
    rows = [_rows(grads), *(bank.rows for bank in banks)]
    for numbers, number, slots in groups:
        g, p, *m = [[tensor for slot in slots for tensor in kind[slot]] for kind in rows]
        _run(name, p, g, m, numbers, number)


def _run(
    name: str,
    params: list[Tensor],
    grads: list[Tensor],
    moments: list[list[Tensor]],
    hyper: dict[str, float],
    step: float,
) -> None:
    """torch's kernel on tensors that share their numbers."""
    kernel: Any = getattr(torch, f"_fused_{name}_")
    numbers: dict[str, Any] = {"weight_decay": 0.0, **hyper, "maximize": False}
    if name == "sgd":
        numbers["nesterov"] = bool(hyper["nesterov"] and hyper["momentum"])
        buffers = moments[0] if hyper["momentum"] else []
        # The moments start at zero: the first step is like any other.
        kernel(params, grads, buffers, **numbers, dampening=0.0, is_first_step=False)
    else:
        steps = [torch.tensor(step)] * len(params)
        kernel(params, grads, *moments, [], steps, **numbers, amsgrad=False)


def _groups(
    hyper: Mapping[str, Tensor], step: Tensor
) -> Iterator[tuple[dict[str, float], float, list[int]]]:
    columns = [*(values.tolist() for values in hyper.values()), step.tolist()]
    found: dict[tuple[float, ...], list[int]] = {}
    for slot, numbers in enumerate(zip(*columns, strict=True)):
        found.setdefault(numbers, []).append(slot)
    for numbers, slots in found.items():
        yield dict(zip(hyper, numbers[:-1], strict=True)), float(numbers[-1]), slots


def _rows(grads: Sequence[Grad]) -> list[tuple[Tensor, ...]]:
    """The gradients of each slot."""
    each = [t.contiguous().unbind(0) if isinstance(t, Tensor) else t for t in grads]
    return list(zip(*each, strict=True))


class Bank:
    """Tensors (S, *shape) by name, zero at first; the float32 ones are views of one storage.

    Args:
        like: one trial's tensors, for their shapes and types.
        width: number of slots S.
        device: where they lie.
        layouts: of those that are not simply contiguous in memory.
        one_row: whether the tensors of a single slot are packed as one row.
    """

    def __init__(
        self,
        like: Mapping[str, Tensor],
        width: int,
        device: torch.device,
        layouts: Mapping[str, Layout] | None = None,
        one_row: bool = True,
    ):
        floats = {name: t for name, t in like.items() if t.dtype == torch.float32}
        sizes = [width * tensor.numel() for tensor in floats.values()]
        self.storage = torch.zeros(sum(sizes), device=device)
        parts = dict(zip(floats, torch.split(self.storage, sizes), strict=True)) if floats else {}
        # As they lie in memory: an update passes over them from end to end.
        self.packed: list[Tensor] = []
        self._rows: list[tuple[Tensor, ...]] = []
        self.views: Row = {}
        for name, tensor in like.items():
            shape = (width, *tensor.shape)
            layout = (layouts or {}).get(name, tuple(range(len(shape))))
            lies = [shape[axis] for axis in layout]
            flat = parts.get(name, torch.zeros(0, dtype=tensor.dtype, device=device))
            group = flat.view(lies) if name in parts else flat.new_zeros(lies)
            self.packed.append(group)
            self.views[name] = group.permute([layout.index(axis) for axis in range(len(layout))])
        if width == 1 and one_row:  # all parameters are one long row: an update is a few operations
            self.packed = [self.storage.view(1, -1)]

    def part(self, slots: slice) -> Bank:
        """Some slots, in the same memory."""
        other = copy.copy(self)
        other.views = {name: view[slots] for name, view in self.views.items()}
        other.packed = [group[slots] for group in self.packed]
        other._rows = []
        return other

    def among(self, numbers: slice) -> Bank:
        """Some of the tensors, those with these numbers, in the same memory."""
        other = copy.copy(self)
        sizes = [view[0].numel() for view in self.views.values()]
        names = list(self.views)[numbers]
        other.views = {name: self.views[name] for name in names}
        other.packed = shares(self.packed, sizes, numbers)
        other._rows = []
        return other

    @property
    def rows(self) -> list[tuple[Tensor, ...]]:
        """For each slot its share of `packed`, cut out once."""
        if not self._rows:
            self._rows = list(zip(*(group.unbind(0) for group in self.packed), strict=True))
        return self._rows

    def row(self, slot: int) -> Row:
        """Views of one slot's tensors."""
        return {name: view[slot] for name, view in self.views.items()}

    def put(self, slots: Slots, rows: Sequence[Mapping[str, Tensor]]) -> None:
        """Copy rows into slots, with one write per tensor; a row that stands for several slots is
        brought to the device once."""
        distinct = {id(row): row for row in rows}
        places = {key: place for place, key in enumerate(distinct)}
        which = torch.tensor([places[id(row)] for row in rows], device=self.storage.device)
        for name, view in self.views.items():
            found = torch.stack([row[name].detach() for row in distinct.values()])
            found = found.to(view.device, view.dtype)
            view[slots] = found if len(found) == len(rows) else found.index_select(0, which)

    def take(self, slots: Tensor, other: Bank) -> None:
        """Copy `slots` (n,) of `other` into the first n slots here."""
        for name, view in self.views.items():
            view[: len(slots)] = other.views[name].index_select(0, slots)


def shares(tensors: Sequence[Any], sizes: Sequence[int], numbers: slice) -> list[Any]:
    """Some of the tensors that lie one by one, or as one long row (1, sum of sizes)."""
    if len(tensors) == len(sizes):
        return list(tensors[numbers])
    return [tensors[0][:, sum(sizes[: numbers.start]) : sum(sizes[: numbers.stop])]]
