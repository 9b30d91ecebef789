"""torch.optim's fused CPU kernels on a stack: one pass over memory instead of one per operation.

The kernels take one learning rate and one set of hyperparameters for a list of tensors, so slots
that agree in all of them are updated by one call, others by a call each. On other devices, and for
rules without a kernel, `optim.py` writes the update out. Called by `optim.Rule.update`.

Notation: S trials; a group is a tuple of numbers and the slots that share it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor


class Lasting(list[Tensor]):
    """Tensors (S, *shape) that stay where they are: what each slot has of them is cut out once."""

    @cached_property
    def rows(self) -> list[tuple[Tensor, ...]]:
        """For each slot its tensors."""
        return _rows(self)


Grad = Tensor | list[Tensor]
"""A gradient (S, *shape), or the same slot by slot."""

Kernel = Callable[[list[Tensor], list[Tensor], list[list[Tensor]], dict[str, float], float], None]
"""(parameters, gradients, moments, hyperparameters with lr, number of the step)"""


def _adam(function: str) -> Kernel:
    def call(
        params: list[Tensor],
        grads: list[Tensor],
        moments: list[list[Tensor]],
        hyper: dict[str, float],
        step: float,
    ) -> None:
        kernel: Any = getattr(torch, function)
        kernel(
            params,
            grads,
            *moments,
            [],
            [torch.tensor(step)] * len(params),
            lr=hyper["lr"],
            beta1=hyper["beta1"],
            beta2=hyper["beta2"],
            weight_decay=hyper.get("weight_decay", 0.0),
            eps=hyper["eps"],
            amsgrad=False,
            maximize=False,
        )

    return call


def _sgd(
    params: list[Tensor],
    grads: list[Tensor],
    moments: list[list[Tensor]],
    hyper: dict[str, float],
    step: float,
) -> None:
    kernel: Any = torch._fused_sgd_
    kernel(
        params,
        grads,
        moments[0] if hyper["momentum"] else [],
        weight_decay=hyper.get("weight_decay", 0.0),
        momentum=hyper["momentum"],
        lr=hyper["lr"],
        dampening=0.0,
        nesterov=bool(hyper["nesterov"] and hyper["momentum"]),
        maximize=False,
        is_first_step=False,  # the moments start at zero, which comes to the same
    )


KERNELS: dict[str, Kernel] = {
    "sgd": _sgd,
    "adam": _adam("_fused_adam_"),
    "adamw": _adam("_fused_adamw_"),
}
"""By the optimizer's name."""


def suits(name: str, params: Sequence[Tensor]) -> bool:
    """Whether there is a kernel for the optimizer `name` on these tensors."""
    return (
        name in KERNELS
        and hasattr(torch, "_fused_sgd_")
        and hasattr(torch, "_fused_adamw_")
        and all(p.device.type == "cpu" and p.is_contiguous() for p in params)
    )


def update(
    name: str,
    params: Sequence[Tensor],
    grads: Sequence[Grad],
    moments: Sequence[Sequence[Tensor]],
    hyper: Mapping[str, Tensor],
    lr: Tensor,
    step: Tensor,
) -> None:
    """One step in place; see `optim.Rule.update`, but for `moments`, which come in the rule's
    order."""
    kernel = KERNELS[name]
    groups = list(_groups({**hyper, "lr": lr}, step))
    whole = [grad.contiguous() for grad in grads if isinstance(grad, Tensor)]
    if len(groups) == 1 and len(whole) == len(grads):
        numbers, number, _ = groups[0]
        kernel(list(params), whole, [list(m) for m in moments], numbers, number)
        return
    kinds = (params, grads, *moments)
    rows = [kind.rows if isinstance(kind, Lasting) else _rows(kind) for kind in kinds]
    for numbers, number, slots in groups:
        p, g, *m = [[tensor for slot in slots for tensor in kind[slot]] for kind in rows]
        kernel(p, g, m, numbers, number)


def _groups(
    hyper: Mapping[str, Tensor], step: Tensor
) -> Iterator[tuple[dict[str, float], float, list[int]]]:
    columns = [*(values.tolist() for values in hyper.values()), step.tolist()]
    found: dict[tuple[float, ...], list[int]] = {}
    for slot, numbers in enumerate(zip(*columns, strict=True)):
        found.setdefault(numbers, []).append(slot)
    for numbers, slots in found.items():
        yield dict(zip(hyper, numbers[:-1], strict=True)), float(numbers[-1]), slots


def _rows(tensors: Sequence[Grad]) -> list[tuple[Tensor, ...]]:
    """For each slot its tensors."""
    each = [t.contiguous().unbind(0) if isinstance(t, Tensor) else t for t in tensors]
    return list(zip(*each, strict=True))
