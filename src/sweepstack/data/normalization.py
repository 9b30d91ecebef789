"""`data.normalization`: what is subtracted from and divided out of every sample.

All statistics come from the training split and are applied to all splits. A picture's statistics
are per channel, any other sample's per feature.

Notation: M samples of a chunk, D features; `scale` and `shift` broadcast over the sample axis.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from sweepstack.config.schema import Data


@dataclass(frozen=True, eq=False)
class Affine:
    """x -> (x - shift) / scale.

    Attributes:
        shift, scale: float32 of shape (channels, 1, 1) for pictures, (D,) otherwise.
    """

    shift: Tensor
    scale: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """Normalize x (M, *shape) into a new tensor."""
        return (x - self.shift).div_(self.scale)


def fit(config: Data, shape: tuple[int, ...], chunks: Iterable[Tensor]) -> Affine | None:
    """Find the affine map of `data.normalization` from training samples, in one pass.

    - standardize: shift = mean, scale = standard deviation (divided by N, not N - 1).
    - minmax to [l, u]: scale = (max - min) / (u - l), shift = min - l * scale, so that training
      samples lie in [l, u] and others may fall outside.
    - none: no map.

    A constant channel or feature is divided by 1, or by 1 / (u - l) for minmax. Sums are kept in
    float64, so that the result does not depend on how the samples are cut into chunks.

    Args:
        config: `normalization` and `minmax_range` are read.
        shape: a sample's axes.
        chunks: training samples as float32 tensors (M, *shape).
    """
    if config.normalization == "none":
        return None
    axes = [0, 2, 3] if len(shape) == 3 else [0]
    count, total, squares = 0, torch.zeros(()).double(), torch.zeros(()).double()
    lowest, highest = torch.tensor(torch.inf), torch.tensor(-torch.inf)
    for chunk in chunks:
        wide = chunk.double()
        total = total + wide.sum(axes)
        count += chunk.numel() // total.numel()
        squares = squares + wide.square_().sum(axes)
        lowest = torch.minimum(lowest, chunk.amin(axes))
        highest = torch.maximum(highest, chunk.amax(axes))
    span = highest.double() - lowest.double()
    if config.normalization == "standardize":
        shift = total / count
        scale = (squares / count - shift.square()).clamp_min(0).sqrt()
        # Rounding can leave a constant feature a tiny deviation: the span alone tells.
        scale = scale.where((span > 0) & (scale > 0), 1)
    else:
        low, high = config.minmax_range
        scale = span.where(span > 0, 1) / (high - low)
        shift = lowest.double() - low * scale
    broadcast = (-1, 1, 1) if len(shape) == 3 else (-1,)
    return Affine(shift.float().reshape(broadcast), scale.float().reshape(broadcast))
