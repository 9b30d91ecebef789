"""What conf/regularization does to gradients (L1, clipping) and batches (mixup, augmentation).

Weight decay belongs to `optimizer.py`, label smoothing to `loss.py`, dropout to the models.

Notation: `S` trials, `B` samples; gradients and parameters are lists of tensors (S, ...). Of
pictures `M`, `S`·`B` of them, with `C` channels, `H` rows and `W` columns; `u` are uniform numbers
in [0, 1).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
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


# --- pictures: crop, flip, rotation and translation, cutout ---------------------------------------

_CROP, _FLIP, _AFFINE, _CUTOUT = range(4)


@dataclass(frozen=True)
class Augmentation:
    """Which changes are on; each that is on is applied to every slot with the slot's strength.

    The order is crop, flip, rotation and translation, cutout, so that the erased square stays a
    square and is not moved out of the picture. What comes into a picture from outside is 0, which
    is the mean of the training split when the data is standardized.
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
