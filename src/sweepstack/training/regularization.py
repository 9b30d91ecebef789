"""What conf/regularization does to gradients (L1, clipping) and batches (mixup).

Weight decay belongs to `optimizer.py`, label smoothing to `loss.py`, dropout to the models, what
happens to pictures to `augmentation.py`.

Notation: `S` trials, `B` samples; gradients and parameters are lists of tensors (S, ...).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sweepstack.data import streams


def add_l1(grads: Sequence[Tensor], params: Sequence[Tensor], l1: Tensor) -> None:
    """g ← g + l1·sign(θ) in place, the subgradient of l1·Σ|θ| that is 0 at 0; `l1` is (S,)."""
    for grad, param in zip(grads, params, strict=True):
        grad.add_(param.sign().mul_(_per_slot(l1, grad)))


def clip_by_norm(grads: Sequence[Tensor], max_norm: Tensor) -> None:
    """Scale each slot's gradients in place to a total 2-norm of at most `max_norm` (S,).

    The factor is min(1, max_norm / (‖g‖ + 1e-6)) with ‖g‖ over all parameters of the slot, as in
    torch.nn.utils.clip_grad_norm_ (Pascanu et al. 2013). A NaN norm makes all of the slot's
    gradients NaN. A slot with the bound inf is not touched.
    """
    each = [torch.linalg.vector_norm(grad.reshape(len(grad), -1), dim=1) for grad in grads]
    norm = torch.linalg.vector_norm(torch.stack(each), dim=0)
    scale = (max_norm.to(norm.dtype) / (norm + 1e-6)).clamp(max=1)
    scale = torch.where(max_norm.isinf(), 1, scale)
    for grad in grads:
        grad.mul_(_per_slot(scale, grad))


def clip_by_value(grads: Sequence[Tensor], bound: Tensor) -> None:
    """Limit each gradient entry in place to [-bound, bound], `bound` (S,); NaN stays NaN."""
    for grad in grads:
        limit = _per_slot(bound, grad)
        grad.clamp_(-limit, limit)


def beta_table(alpha: float, points: int = 1025) -> Tensor:
    """Quantiles of Beta(α, α) at 0, 1/(points-1), ..., 1; float32 (points,).

    Interpolation is off by at most 1/(points-1) in the distribution function, before rounding.
    α = 0 is no mixup: a table of ones.
    """
    if alpha == 0:
        return torch.ones(points)
    from scipy.stats import beta  # takes a second to import; only mixup needs it

    levels = torch.linspace(0, 1, points, dtype=torch.float64)
    return torch.from_numpy(beta.ppf(levels.numpy(), alpha, alpha)).to(torch.float32)


def mixup_lambda(keys: Tensor, tables: Tensor) -> Tensor:
    """Draw λ for each slot by the inverse of the distribution function.

    Args:
        keys: (S,) int64, one per slot and step.
        tables: (S, points) from `beta_table`.

    Returns:
        (S,) in [0, 1], exactly 1 where α = 0.
    """
    position = streams.uniform(keys, 1) * (tables.shape[1] - 1)
    below = position.long()
    low, high = tables.gather(1, below), tables.gather(1, below + 1)
    return (low + (high - low) * (position - below)).squeeze(1)


def partners(values: Tensor) -> Tensor:
    """Each sample's partner in mixup: the next one of the batch, which is in random order.

    `values` are inputs or targets (S, B, ...). The loss of a mixed batch is
    λ·loss(outputs, targets) + (1 - λ)·loss(outputs, partners(targets)).
    """
    return values.roll(-1, dims=1)


def mix_inputs(inputs: Tensor, lam: Tensor) -> Tensor:
    """Mixup: λx + (1 - λ)·partner, Zhang et al. 2018.

    `inputs` is (S, B, ...), `lam` (S,). λ = 1 returns finite inputs unchanged to the bit.
    """
    lam = _per_slot(lam, inputs)
    # Products and sum apart: a fused multiply-add may round differently in another layout.
    return (inputs * lam).add_(partners(inputs).mul_(1 - lam))


def _per_slot(values: Tensor, like: Tensor) -> Tensor:
    """`values` (S,) in the type of `like` (S, ...), shaped to broadcast against it."""
    return values.to(like.dtype).view(-1, *[1] * (like.dim() - 1))
