"""Random changes of pictures: crop, flip, rotation and translation, cutout.

Reads the picture keys of the `regularization` config group; `step.py` calls one `Augmentation` on
each training batch of a stack. The functions below work on all pictures at once, M = S·B of them
with one strength each, and get their random numbers as arguments. What comes into a picture from
outside is 0, which is the mean of the training split when the data is standardized.

Notation: `S` trials, `B` samples, `M` pictures of `C` channels, `H` rows and `W` columns; `u` are
uniform numbers in [0, 1).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from sweepstack.data import streams

_CROP, _FLIP, _AFFINE, _CUTOUT = range(4)


@dataclass(frozen=True)
class Augmentation:
    """Which changes are on; each that is on is applied to every slot with the slot's strength.

    The order is crop, flip, rotation and translation, cutout, so that the erased square stays a
    square and is not moved out of the picture.
    """

    crop: bool
    flip: bool
    affine: bool
    cutout: bool

    @property
    def any(self) -> bool:
        """Whether there is anything to do."""
        return self.crop or self.flip or self.affine or self.cutout

    def __call__(self, x: Tensor, keys: Tensor, strengths: Mapping[str, Tensor]) -> Tensor:
        """Change every picture of a stack's batch.

        Each change draws from its own stream of the slot's key, so that one being on does not
        alter another's numbers, nor a slot its neighbours'.

        Args:
            x: (S, B, C, H, W) floats.
            keys: (S,) int64, one per slot and step.
            strengths: (S,) by the name of the config key: `crop_padding`, `horizontal_flip` (1 or
                0), `rotation` and `translation`, `cutout`; those of changes that are off are not
                read.

        Returns:
            A tensor like `x`.
        """
        slots, samples = x.shape[:2]

        def draw(change: int, numbers: int) -> Tensor:
            u = streams.uniform(streams.split(keys, change), samples * numbers)
            return u.view(slots * samples, numbers)

        def strength(name: str) -> Tensor:
            return strengths[name].repeat_interleave(samples)

        pictures = x.flatten(0, 1)
        if self.crop:
            pictures = crop(pictures, draw(_CROP, 2), strength("crop_padding"))
        if self.flip:
            pictures = flip(pictures, draw(_FLIP, 1).squeeze(1), strength("horizontal_flip"))
        if self.affine:
            rotation, translation = strength("rotation"), strength("translation")
            pictures = rotate_and_translate(pictures, draw(_AFFINE, 3), rotation, translation)
        if self.cutout:
            pictures = cutout(pictures, draw(_CUTOUT, 2), strength("cutout"))
        return pictures.view_as(x)


def crop(x: Tensor, u: Tensor, padding: Tensor) -> Tensor:
    """Pad each side by `padding` zeros, then cut a picture of the old size at a random place.

    Args:
        x: (M, C, H, W).
        u: (M, 2); the shifts right and down are whole pixels, uniform in [-padding, padding].
        padding: (M,) pixels.
    """
    padding = padding.to(x.dtype).unsqueeze(1)
    shift = (u * (2 * padding + 1)).floor() - padding
    right, down = shift.view(-1, 2, 1, 1).unbind(1)
    height, width = x.shape[-2:]
    from_x = _centers(width, x) + 2 * right / width
    from_y = _centers(height, x).unsqueeze(1) + 2 * down / height
    return _sample(x, from_x, from_y, "nearest")  # copies pixels: coordinates are off by << 1/2


def flip(x: Tensor, u: Tensor, enabled: Tensor) -> Tensor:
    """Mirror left and right with probability 1/2 where `enabled` (M,) is 1; `u` is (M,)."""
    mirrored = u < enabled.to(u.dtype) / 2
    return torch.where(mirrored.view(-1, 1, 1, 1), x.flip(-1), x)


def rotate_and_translate(x: Tensor, u: Tensor, rotation: Tensor, translation: Tensor) -> Tensor:
    """Turn each picture around its center and then shift it, with bilinear interpolation.

    Strengths of 0 give the picture back up to rounding: an error of about 1e-7 of a side in the
    place that is looked up.

    Args:
        x: (M, C, H, W).
        u: (M, 3) for the angle and the shifts right and down, each uniform in ± its strength.
        rotation: (M,) degrees, clockwise when positive.
        translation: (M,) share of the width and of the height.
    """
    angle, right, down = (2 * u.to(torch.float64) - 1).unbind(1)
    # Sines are rounded from float64: kernels that differ in their last bit give the same float32.
    angle = angle * rotation * (math.pi / 180)
    numbers = (angle.cos(), angle.sin(), 2 * right * translation, 2 * down * translation)
    cos, sin, shift_x, shift_y = (number.to(x.dtype).view(-1, 1, 1) for number in numbers)
    height, width = x.shape[-2:]
    to_x = _centers(width, x) - shift_x
    to_y = _centers(height, x).unsqueeze(1) - shift_y
    from_x = cos * to_x + (sin * (height / width)) * to_y
    from_y = cos * to_y - (sin * (width / height)) * to_x
    return _sample(x, from_x, from_y, "bilinear")


def cutout(x: Tensor, u: Tensor, side: Tensor) -> Tensor:
    """Erase a square that the border may cut. DeVries & Taylor 2017.

    Args:
        x: (M, C, H, W).
        u: (M, 2) for column and row of the square's center, a pixel; all are equally likely.
        side: (M,) pixels; 0 erases nothing.
    """
    side = side.to(torch.int64).unsqueeze(1)

    def covered(pixels: int, place: Tensor) -> Tensor:
        first = (place * pixels).long().unsqueeze(1) - side // 2
        offset = torch.arange(pixels, device=x.device) - first
        return (offset >= 0) & (offset < side)

    columns, rows = covered(x.shape[-1], u[:, 0]), covered(x.shape[-2], u[:, 1])
    erased = (rows.unsqueeze(2) & columns.unsqueeze(1)).unsqueeze(1)
    return torch.where(erased, 0, x)


def _centers(pixels: int, like: Tensor) -> Tensor:
    """Centers of the pixels along a side, which runs from -1 to 1; (pixels,)."""
    numbers = torch.arange(pixels, dtype=like.dtype, device=like.device)
    return (2 * numbers + 1) / pixels - 1


def _sample(x: Tensor, from_x: Tensor, from_y: Tensor, mode: str) -> Tensor:
    """Look each new pixel up at (from_x, from_y), which expand to (M, H, W), on sides that run
    from -1 to 1; 0 outside."""
    size = (len(x), *x.shape[-2:])
    grid = torch.stack((from_x.expand(size), from_y.expand(size)), dim=-1)
    return F.grid_sample(x, grid, mode=mode, padding_mode="zeros", align_corners=False)
