"""What conf/regularization does to pictures in training, at random for every sample and step.

Geometry works on normalized pictures; what comes in from outside is 0, which is the mean of the
training split when the data is standardized. Colors, and all of RandAugment, work on raw pictures
in [0, 1], where 0 is black.

Notation: `S` trials, `B` samples, `M` = `S`·`B` pictures with `C` channels, `H` rows and `W`
columns; `u` are uniform numbers in [0, 1); everything else per picture is (M,).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from sweepstack.data import streams

_CROP, _FLIP, _AFFINE, _CUTOUT, _RESIZED, _COLOR, _HUE, _ERASING, _RANDOM = range(9)
"""Each change draws from its own stream of the slot's key."""
RAND_AUGMENT_MAX = 30
"""The largest magnitude of RandAugment."""
_KINDS = (
    *("identity", "shear_x", "shear_y", "translate_x", "translate_y", "rotate"),
    *("brightness", "color", "contrast", "sharpness", "posterize", "solarize", "autocontrast"),
)
_ERASED = (0.02, 0.33)  # share of the picture; the sides' ratio is between the next two
_ERASED_RATIO = (0.3, 3.3)


@dataclass(frozen=True)
class Augmentation:
    """Which changes are on; each that is on is applied to every slot with the slot's strength.

    The order is resized crop, crop, flip, rotation and translation, colors, hue, RandAugment,
    random erasing, cutout, so that what is erased stays a rectangle inside the picture.

    Attributes:
        operations: how many operations RandAugment chains; 0 is none.
        shift, scale: the data's normalization, (C, 1, 1): raw = x * scale + shift; None for none.
    """

    resized: bool = False
    crop: bool = False
    flip: bool = False
    affine: bool = False
    color: bool = False
    hue: bool = False
    operations: int = 0
    erasing: bool = False
    cutout: bool = False
    shift: Tensor | None = None
    scale: Tensor | None = None

    @property
    def any(self) -> bool:
        """Whether there is anything to do."""
        return self._moves or self._paints or self.erasing or self.cutout

    @property
    def _moves(self) -> bool:
        return self.resized or self.crop or self.flip or self.affine

    @property
    def _paints(self) -> bool:
        return self.color or self.hue or self.operations > 0

    def __call__(self, x: Tensor, keys: Tensor, strengths: Mapping[str, Tensor]) -> Tensor:
        """Change every picture of a stack's batch.

        Each change draws from its own stream of the slot's key, so that one being on does not
        alter another's numbers, nor a slot its neighbours'.

        Args:
            x: (S, B, C, H, W) floats.
            keys: (S,) int64, one per slot and step.
            strengths: (S,) by the name of the config key, `horizontal_flip` as 1 or 0; those of
                changes that are off are not read.

        Returns:
            A tensor like `x`.
        """
        slots, samples = x.shape[:2]

        def draw(change: int, numbers: int) -> Tensor:
            u = streams.uniform(streams.split(keys, change), samples * numbers)
            return u.view(slots * samples, numbers)

        def strength(name: str) -> Tensor:
            return strengths[name].repeat_interleave(samples)

        pictures = self._moved(x.flatten(0, 1), draw, strength)
        if self._paints:
            pictures = self._painted(pictures, draw, strength)
        if self.erasing:
            pictures = erase(pictures, draw(_ERASING, 5), strength("random_erasing"))
        if self.cutout:
            pictures = cutout(pictures, draw(_CUTOUT, 2), strength("cutout"))
        return pictures.view_as(x)

    def _moved(
        self, x: Tensor, draw: Callable[[int, int], Tensor], strength: Callable[[str], Tensor]
    ) -> Tensor:
        if self.resized:
            scale, ratio = strength("random_resized_crop"), strength("random_resized_crop_ratio")
            x = resized_crop(x, draw(_RESIZED, 4), scale, ratio)
        if self.crop:
            x = crop(x, draw(_CROP, 2), strength("crop_padding"))
        if self.flip:
            x = flip(x, draw(_FLIP, 1).squeeze(1), strength("horizontal_flip"))
        if self.affine:
            rotation, translation = strength("rotation"), strength("translation")
            x = rotate_and_translate(x, draw(_AFFINE, 3), rotation, translation)
        return x

    def _painted(
        self, x: Tensor, draw: Callable[[int, int], Tensor], strength: Callable[[str], Tensor]
    ) -> Tensor:
        """Colors and RandAugment, in the raw range."""
        if self.shift is not None and self.scale is not None:
            x = x * self.scale + self.shift
        if self.color:
            given = (strength(name) for name in ("brightness", "contrast", "saturation"))
            x = jitter(x, draw(_COLOR, 3), *given)
        if self.hue:
            x = turn_hue(x, strength("hue") * (2 * draw(_HUE, 1).squeeze(1) - 1))
        if self.operations:
            u = draw(_RANDOM, 2 * self.operations)
            magnitude = strength("rand_augment") / RAND_AUGMENT_MAX
            for first in range(0, 2 * self.operations, 2):
                x = rand_augment(x, u[:, first : first + 2], magnitude)
        if self.shift is not None and self.scale is not None:
            x = (x - self.shift) / self.scale
        return x


# --- places ---------------------------------------------------------------------------------------


def resized_crop(x: Tensor, u: Tensor, scale: Tensor, ratio: Tensor) -> Tensor:
    """Cut a random rectangle out and stretch it to the old size, bilinearly.

    As torchvision's RandomResizedCrop: its area is uniform in [scale, 1] of the picture's, the
    logarithm of width / height uniform in ± log ratio, its place uniform in whole pixels. A side
    longer than the picture is cut to it, where torchvision draws again.

    Args:
        x: (M, C, H, W).
        u: (M, 4) for area, ratio, column and row.
        scale: the least share of the area, 1 keeps all.
        ratio: the most elongated rectangle, >= 1.
    """
    height, width = x.shape[-2:]
    u = u.to(torch.float64)  # rounded to whole pixels: kernels that differ in a last bit agree
    area = (scale + u[:, 0] * (1 - scale)) * (height * width)
    skew = ((2 * u[:, 1] - 1) * ratio.to(u.dtype).log()).exp()
    across = (area * skew).sqrt().round().clamp(1, width)
    down = (area / skew).sqrt().round().clamp(1, height)
    left = (u[:, 2] * (width - across + 1)).floor()
    top = (u[:, 3] * (height - down + 1)).floor()

    def places(pixels: int, first: Tensor, count: Tensor) -> Tensor:
        first, count = first.to(x.dtype).unsqueeze(1), count.to(x.dtype).unsqueeze(1)
        at = first + count * (_centers(pixels, x) + 1) / 2  # in pixels, of which each has side 1
        # Between the centers of the first and the last pixel: nothing outside comes in.
        at = torch.minimum(torch.maximum(at, first + 0.5), first + count - 0.5)
        return 2 * at / pixels - 1

    from_x = places(width, left, across).unsqueeze(1)
    from_y = places(height, top, down).unsqueeze(2)
    return _sample(x, from_x, from_y, "bilinear")


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
    return _warped(x, cos, sin, sin, shift_x, shift_y)


def _warped(
    x: Tensor, cos: Tensor, sin_x: Tensor, sin_y: Tensor, shift_x: Tensor, shift_y: Tensor
) -> Tensor:
    """Look up each pixel (X, Y), in pixels from the center and after the shifts, at
    (cos·X + sin_x·Y, cos·Y - sin_y·X); all (M, 1, 1), shifts in halves of a side."""
    height, width = x.shape[-2:]
    to_x = _centers(width, x) - shift_x
    to_y = _centers(height, x).unsqueeze(1) - shift_y
    from_x = cos * to_x + (sin_x * (height / width)) * to_y
    from_y = cos * to_y - (sin_y * (width / height)) * to_x
    return _sample(x, from_x, from_y, "bilinear")


def cutout(x: Tensor, u: Tensor, side: Tensor) -> Tensor:
    """Erase a square that the border may cut. DeVries & Taylor 2017.

    Args:
        x: (M, C, H, W).
        u: (M, 2) for column and row of the square's center, a pixel; all are equally likely.
        side: (M,) pixels; 0 erases nothing.
    """
    side = side.to(torch.int64)
    left = (u[:, 0] * x.shape[-1]).long() - side // 2
    top = (u[:, 1] * x.shape[-2]).long() - side // 2
    return _without(x, left, top, side, side)


def erase(x: Tensor, u: Tensor, probability: Tensor) -> Tensor:
    """Erase a rectangle inside the picture with a probability. Zhong et al. 2020.

    As torchvision's RandomErasing by default: the area is uniform in [0.02, 0.33] of the picture's,
    the logarithm of height / width uniform between those of 0.3 and 3.3. A side longer than the
    picture is cut to it, where torchvision draws again.

    Args:
        x: (M, C, H, W).
        u: (M, 5) for whether, area, ratio, column and row.
        probability: in [0, 1].
    """
    height, width = x.shape[-2:]
    wide = u.to(torch.float64)
    low, high = _ERASED
    area = (low + wide[:, 1] * (high - low)) * (height * width)
    low, high = (math.log(bound) for bound in _ERASED_RATIO)
    skew = (low + wide[:, 2] * (high - low)).exp()
    down = (area * skew).sqrt().round().clamp(max=height)
    across = (area / skew).sqrt().round().clamp(max=width)
    left = (wide[:, 3] * (width - across + 1)).floor()
    top = (wide[:, 4] * (height - down + 1)).floor()
    down = down * (u[:, 0] < probability)
    return _without(x, *(n.to(torch.int64) for n in (left, top, across, down)))


def _without(x: Tensor, left: Tensor, top: Tensor, across: Tensor, down: Tensor) -> Tensor:
    """0 in a rectangle of each picture, all in whole pixels (M,)."""

    def covered(pixels: int, first: Tensor, count: Tensor) -> Tensor:
        offset = torch.arange(pixels, device=x.device) - first.unsqueeze(1)
        return (offset >= 0) & (offset < count.unsqueeze(1))

    columns, rows = covered(x.shape[-1], left, across), covered(x.shape[-2], top, down)
    return torch.where((rows.unsqueeze(2) & columns.unsqueeze(1)).unsqueeze(1), 0, x)


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


# --- colors, of pictures in [0, 1] ----------------------------------------------------------------


def jitter(
    x: Tensor, u: Tensor, brightness: Tensor, contrast: Tensor, saturation: Tensor
) -> Tensor:
    """torchvision's ColorJitter, always in this order: x·f, then away from the mean gray of the
    picture, then from each pixel's gray, by factors f uniform in [max(0, 1 - v), 1 + v].

    Args:
        x: (M, C, H, W); saturation changes pictures of three channels only.
        u: (M, 3).
        brightness, contrast, saturation: the strengths v; 0 keeps the picture.
    """
    factors = []
    for place, v in enumerate((brightness, contrast, saturation)):
        low = (1 - v).clamp(min=0)
        factors.append(_each((low + u[:, place] * (1 + v - low)).to(x.dtype)))
    x = (x * factors[0]).clamp(0, 1)
    x = _blend(x, _gray(x).mean((1, 2, 3), keepdim=True), factors[1])
    return _blend(x, _gray(x), factors[2]) if x.shape[1] == 3 else x


def turn_hue(x: Tensor, turn: Tensor) -> Tensor:
    """Turn the hue of pictures of three channels by so many full circles, by way of HSV."""
    red, green, blue = x.unbind(1)
    value, least = x.amax(1), x.amin(1)
    spread = value - least
    safe = spread.where(spread > 0, 1)
    sector = torch.where(value == green, 2 + (blue - red) / safe, 4 + (red - green) / safe)
    sector = torch.where(value == red, (green - blue) / safe, sector)
    sector = sector + 6 * turn.to(x.dtype).view(-1, 1, 1)
    channels = []
    for offset in (5, 3, 1):
        k = (offset + sector).remainder(6)
        channels.append(value - spread * torch.minimum(k, 4 - k).clamp(0, 1))
    return torch.stack(channels, dim=1)


def rand_augment(x: Tensor, u: Tensor, magnitude: Tensor) -> Tensor:
    """One random operation of RandAugment on each picture. Cubuk et al. 2020.

    One of identity, shear along x and y (0.3), translation along x and y (150/331 of the side),
    rotation (30°), brightness, color, contrast, sharpness (factor 1 ± 0.9), posterize (down to 4
    bits), solarize and autocontrast, each times the magnitude and with a random sign where it has
    one: torchvision's RandAugment without equalize. All pictures go through all operations, of
    which each keeps one, so that what runs depends on no number.

    Args:
        x: (M, C, H, W) in [0, 1].
        u: (M, 2) for the operation and the sign.
        magnitude: in [0, 1].
    """
    kind = (u[:, 0] * len(_KINDS)).long()
    sign = torch.where(u[:, 1] < 0.5, -1.0, 1.0)
    signed = (magnitude * sign).to(torch.float64)

    def amount(name: str, most: float) -> Tensor:
        return torch.where(kind == _KINDS.index(name), most * signed, 0)

    angle = amount("rotate", math.pi / 6)
    sin_x, sin_y = angle.sin() + amount("shear_x", 0.3), angle.sin() - amount("shear_y", 0.3)
    most = 2 * 150 / 331
    numbers = (angle.cos(), sin_x, sin_y, amount("translate_x", most), amount("translate_y", most))
    x = _warped(x, *(number.to(x.dtype).view(-1, 1, 1) for number in numbers)).clamp(0, 1)
    factor = _each((1 + 0.9 * signed).to(x.dtype))
    changed = {
        "brightness": (x * factor).clamp(0, 1),
        "contrast": _blend(x, _gray(x).mean((1, 2, 3), keepdim=True), factor),
        "posterize": _posterized(x, _each((8 - (4 * magnitude).round()).exp2().to(x.dtype))),
        "solarize": torch.where(x >= _each((1 - magnitude).to(x.dtype)), 1 - x, x),
        "autocontrast": _stretched(x),
    }
    if x.shape[1] == 3:
        changed["color"] = _blend(x, _gray(x), factor)
    if min(x.shape[-2:]) > 2:
        changed["sharpness"] = _blend(x, _blurred(x), factor)
    for name, picture in changed.items():
        x = torch.where(_each(kind == _KINDS.index(name)), picture, x)
    return x


def _each(values: Tensor) -> Tensor:
    """(M,) shaped to broadcast against pictures."""
    return values.view(-1, 1, 1, 1)


def _gray(x: Tensor) -> Tensor:
    """Luminance (M, 1, H, W) by ITU-R BT.601; the mean unless there are three channels."""
    if x.shape[1] != 3:
        return x.mean(1, keepdim=True)
    red, green, blue = x.unbind(1)
    return (0.2989 * red + 0.587 * green + 0.114 * blue).unsqueeze(1)


def _blend(x: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    """factor·x + (1 - factor)·other in [0, 1]."""
    return (factor * x + (1 - factor) * other).clamp(0, 1)


def _posterized(x: Tensor, levels: Tensor) -> Tensor:
    return torch.minimum((x * levels).floor(), levels - 1) / levels


def _stretched(x: Tensor) -> Tensor:
    """Each channel spread over [0, 1]; a constant one stays."""
    least, most = x.amin((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)
    spread = most - least
    return torch.where(spread > 0, (x - least) / spread.where(spread > 0, 1), x)


def _blurred(x: Tensor) -> Tensor:
    """Every pixel but those at the border becomes (its 3x3 neighbours + 4 times itself) / 13."""
    inner = x[..., 1:-1, 1:-1]
    inner = (9 * F.avg_pool2d(x, 3, stride=1) + 4 * inner) / 13
    middle = torch.cat((x[..., 1:-1, :1], inner, x[..., 1:-1, -1:]), dim=-1)
    return torch.cat((x[..., :1, :], middle, x[..., -1:, :]), dim=-2)
