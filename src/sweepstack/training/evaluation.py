"""What conf/evaluation measures besides: the metrics on pictures that are shifted, turned or noisy.

Each gives metrics of its own, as `val_shifted_accuracy`, `val_rotated_loss` and `test_noisy_...`,
which are the means of the metrics over the changed copies of a split:
- `shift` s: four copies, rolled by s whole pixels to the left, right, up and down; what leaves on
  one side comes in on the other.
- `rotation`: two copies, turned clockwise and counterclockwise, bilinear; corners are 0, the mean
  of standardized data.
- `noise`: one copy with N(0, noise²) added to the raw pictures in [0, 1], which are not cut off
  there. The numbers follow `data.split_seed` and a sample's place in the split, so that all trials
  see the same ones.

Notation: `M` pictures with `C` channels, `H` rows and `W` columns.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from sweepstack.config import schema
from sweepstack.data import streams
from sweepstack.data.dataset import Dataset
from sweepstack.training.augmentation import rotate_and_translate

NAMES = {"shift": "shifted", "rotation": "rotated", "noise": "noisy"}
"""What the metrics of a key are called."""
Change = Callable[[Tensor, int], Tensor]
"""From samples (M, C, H, W), of which the first has that place in the split, to changed ones."""

_NUMBERS = 2**22
"""Numbers that noise is drawn for at once: 32 MiB a tensor."""


def names(config: schema.Evaluation) -> list[str]:
    """What is measured besides."""
    return [name for key, name in NAMES.items() if getattr(config, key)]


def hint(metric: str) -> str:
    """What to set for a metric of a change that is off, or nothing."""
    keys = (key for key, name in NAMES.items() if f"_{name}_" in metric)
    return "".join(f"; evaluation.{key} is 0" for key in keys)


def mistakes(config: schema.Evaluation, data: Dataset) -> list[str]:
    """One line for each key that does not fit the data."""
    found = []
    if not data.is_image:
        found = [
            f"evaluation.{key} needs pictures, {data.name} has none"
            for key in NAMES
            if getattr(config, key)
        ]
    elif config.shift >= min(data.input_shape[1:]):
        found.append(
            f"evaluation.shift must be < {min(data.input_shape[1:])}, the shorter side of the "
            f"pictures of {data.name}, got {config.shift}"
        )
    return found


def changes(config: schema.Evaluation, seed: int, scale: Tensor | None) -> dict[str, list[Change]]:
    """The changes that are on, by the name of their metrics.

    Args:
        seed: `data.split_seed`, for the noise.
        scale: of the data's normalization, (C, 1, 1): raw = x * scale + shift; None for none.
    """
    shift, angle = config.shift, config.rotation
    rolls = [(-shift, 3), (shift, 3), (-shift, 2), (shift, 2)]
    found: dict[str, list[Change]] = {
        "shifted": [partial(_roll, pixels=pixels, axis=axis) for pixels, axis in rolls],
        "rotated": [partial(_turn, angle=angle, u=u) for u in (1.0, 0.0)],
        "noisy": [partial(_add, key=streams.derive(seed, 1), std=config.noise, scale=scale)],
    }
    return {name: found[name] for name in names(config)}


def _roll(x: Tensor, _first: int, pixels: int, axis: int) -> Tensor:
    return x.roll(pixels, axis)


def _turn(x: Tensor, _first: int, angle: float, u: float) -> Tensor:
    """By the angle, clockwise with u = 1 and back with u = 0."""
    draws, zero = x.new_tensor([u, 0.5, 0.5]).expand(len(x), 3), x.new_zeros(len(x))
    return rotate_and_translate(x, draws, zero + angle, zero)


def _add(x: Tensor, first: int, key: int, std: float, scale: Tensor | None) -> Tensor:
    """Normal numbers by the inverse of their distribution function, a stream for each sample."""
    size, places = x[0].numel(), torch.arange(len(x), device=x.device) + first
    keys = streams.split(torch.tensor(key, device=x.device), places)
    parts = []
    for some in torch.split(keys, max(1, _NUMBERS // size)):
        u = streams.uniform(some, size).to(torch.float64) + 2.0**-25  # in (0, 1)
        parts.append((torch.erfinv(2 * u - 1) * (math.sqrt(2) * std)).to(x.dtype))
    noise = torch.cat(parts).view_as(x)
    return x + (noise if scale is None else noise / scale)
