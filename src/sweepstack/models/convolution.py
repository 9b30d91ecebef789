"""Convolutions of a stack and their gradients, in several ways.

vmap turns the convolutions of S trials into one of S groups, which cuDNN runs slowly. Here each
convolution of a stack, its input gradient and its weight gradient run in one of `WAYS`, with
pictures in memory channels first or channels last; `autotune` chooses.

Notation: S slots, B samples, C and O channels in and out, x (S, B, C, H, W), weight
(S, O, C / groups, kh, kw), y and its gradient gy (S, B, O, h, w).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.func import vmap
from torch.nn import functional as F

Pair = tuple[int, int]
Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]
"""Of x, weight and bias."""

WAYS = ("grouped", "loop", "product", "implicit")
"""One convolution of S groups; one of each slot; a batched product with the pictures' patches; the
same in a Triton kernel that reads patches where they lie, which may be followed by the numbers of
`implicit_gemm.Blocks`: "implicit 128 32 64 4 3 2048"."""
KNOWN = re.compile(f"{'|'.join(WAYS)}( [1-9][0-9]{{0,4}}){{6}}|implicit")
AT_ONCE = 2**28
"""Numbers of patches that are laid out at once; wider stacks take several products."""


@dataclass(frozen=True)
class Geometry:
    """Stride, padding, dilation (rows, columns), and groups of a convolution."""

    stride: Pair
    padding: Pair
    dilation: Pair
    groups: int

    @classmethod
    def of(
        cls, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1
    ) -> Geometry | None:
        """As torch.conv2d is given them; None for padding by name."""
        if isinstance(padding, str):
            return None
        return cls(pair(stride), pair(padding), pair(dilation), groups)

    def size(self, pictures: Sequence[int], kernel: Sequence[int]) -> Pair:
        """Height and width of the result."""
        rows = zip(pictures, kernel, self.stride, self.padding, self.dilation, strict=True)
        h, w = ((n + 2 * pad - apart * (k - 1) - 1) // step + 1 for n, k, step, pad, apart in rows)
        return h, w


def _grouped(
    x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, last: bool
) -> Tensor:
    g, slots = geometry, len(x)
    bias, groups = None if bias is None else bias.flatten(), slots * g.groups
    given = _merged(x), weight.flatten(0, 1), bias
    y = torch.conv2d(*given, g.stride, g.padding, g.dilation, groups)
    return to_format(_split(y, slots), last)


def _grouped_back(
    gy: Tensor, x: Tensor, weight: Tensor, geometry: Geometry, last: bool, wanted: Sequence[bool]
) -> Gradients:
    slots = len(x)
    given = _merged(gy), _merged(x), weight.flatten(0, 1)
    gx, weights, bias = _back(*given, geometry, slots * geometry.groups, wanted)
    return (
        None if gx is None else to_format(_split(gx, slots), last),
        None if weights is None else weights.view(weight.shape),
        None if bias is None else bias.view(slots, -1),
    )


def _loop(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, last: bool) -> Tensor:
    biases: Any = [None] * len(x) if bias is None else bias
    slots = zip(x, weight, biases, strict=True)
    return _joined([plain(a, b, c, geometry) for a, b, c in slots], last)


def _loop_back(
    gy: Tensor, x: Tensor, weight: Tensor, geometry: Geometry, last: bool, wanted: Sequence[bool]
) -> Gradients:
    rows = zip(gy, x, weight, strict=True)
    each = [_back(*slot, geometry, geometry.groups, wanted) for slot in rows]
    inputs, weights, biases = ([g for row in each if (g := row[n]) is not None] for n in range(3))
    return (
        _joined(inputs, last) if wanted[0] else None,
        torch.stack(weights) if wanted[1] else None,
        torch.stack(biases) if wanted[2] else None,
    )


def _product(
    x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, last: bool
) -> Tensor:
    """y = patches (S, B·h·w, kh·kw·C) times weight (S, kh·kw·C, O)."""
    flat, found = weight.permute(0, 3, 4, 2, 1).flatten(1, 3), []
    for slots in _portions(x, weight):
        patches, (samples, h, w) = _patches(x[slots], tuple(weight.shape[3:]), geometry)
        y = torch.bmm(patches, flat[slots])
        if bias is not None:
            y += bias[slots].unsqueeze(1)
        found.append(y.view(-1, samples, h, w, weight.shape[1]).permute(0, 1, 4, 2, 3))
    return to_format(found[0] if len(found) == 1 else torch.cat(found), last)


def _product_back(
    gy: Tensor, x: Tensor, weight: Tensor, geometry: Geometry, last: bool, wanted: Sequence[bool]
) -> Gradients:
    """The input's gradient is a convolution of gy, with zeros between its pixels where the stride
    is more than 1, by the weight turned around; the weight's is patches' times gy (S, B·h·w, O)."""
    gx = weights = None
    if wanted[0]:
        turned = weight.flip(3, 4).transpose(1, 2)
        spread, inner = _spread(gy, x, weight, geometry)
        gx = _product(spread, turned, None, inner, last)
    flat = gy.permute(0, 1, 3, 4, 2).flatten(1, 3)
    if wanted[1]:
        found = []
        for slots in _portions(x, weight):
            patches, _ = _patches(x[slots], tuple(weight.shape[3:]), geometry)
            found.append(torch.bmm(patches.transpose(1, 2), flat[slots]))
        out, into, kh, kw = weight.shape[1:]
        whole = found[0] if len(found) == 1 else torch.cat(found)
        weights = whole.view(-1, kh, kw, into, out).permute(0, 4, 3, 1, 2).contiguous()
    return gx, weights, flat.sum(1) if wanted[2] else None


def _implicit(
    x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, last: bool, *sizes: int
) -> Tensor:
    require_kernels(x, geometry, last)
    from sweepstack.models.kernels import implicit_gemm

    weight, blocks = weight.contiguous(), implicit_gemm.Blocks(*sizes) if sizes else None
    parts = torch.split(x, implicit_gemm.samples_at_once(x, weight, geometry), 1)
    found = [implicit_gemm.correlated(part, weight, bias, geometry, blocks) for part in parts]
    return found[0] if len(found) == 1 else torch.cat(found, 1)


def _implicit_back(
    gy: Tensor,
    x: Tensor,
    weight: Tensor,
    geometry: Geometry,
    last: bool,
    wanted: Sequence[bool],
    sizes: Sequence[Sequence[int]] = ((), ()),
) -> Gradients:
    require_kernels(x, geometry, last)
    from sweepstack.models.kernels import implicit_gemm

    weight = weight.contiguous()
    blocks = [implicit_gemm.Blocks(*each) if each else None for each in sizes]
    gx = weights = biases = None
    laid = None
    if wanted[0]:
        size = pair(x.shape[3:])
        laid = implicit_gemm.lay_gradient(gy, pair(weight.shape[3:]), size, geometry)
        gx = implicit_gemm.correlated_inputs(laid, weight, size, geometry, blocks[0])
    if wanted[1] or wanted[2]:
        rest = x, weight, geometry, bool(wanted[2]), laid, blocks[1]
        weights, biases = implicit_gemm.correlated_weights(gy, *rest)
    return gx, weights, biases


FORWARD: dict[str, Callable[..., Tensor]] = {
    "grouped": _grouped,
    "loop": _loop,
    "product": _product,
    "implicit": _implicit,
}
BACKWARD: dict[str, Callable[..., Gradients]] = {
    **{"grouped": _grouped_back, "loop": _loop_back},
    **{"product": _product_back, "implicit": _implicit_back},
}


def forward(way: str, *given: Any) -> Tensor:
    """y of x, weight, bias, geometry, and whether channels lie last."""
    kind, *sizes = way.split()
    return FORWARD[kind](*given, *map(int, sizes))


def backward(ways: Sequence[str], *given: Any, wanted: Sequence[bool]) -> Gradients:
    """The gradients of x by one way and of weight and bias by another; those that are `wanted`, of
    gy, x, weight, geometry, and whether channels lie last."""
    (one, *_), (other, *_) = split = [way.split() for way in ways]
    sizes = [[int(size) for size in each[1:]] for each in split]

    def run(kind: str, wanted: Sequence[bool]) -> Gradients:
        return BACKWARD[kind](*given, wanted, *([sizes] if kind == "implicit" else []))

    if one == other or not wanted[0]:
        return run(other, wanted)
    return run(one, (True, False, False))[0], *run(other, (False, *wanted[1:]))[1:]


def _back(
    gy: Tensor, x: Tensor, weight: Tensor, geometry: Geometry, groups: int, wanted: Sequence[bool]
) -> Gradients:
    """torch's own gradients of x, weight and bias, those that are wanted."""
    g, out = geometry, [weight.shape[0]]
    if x.device.type == "cpu":
        # With channels last and few of them, torch 2.15's gradient of the weight writes past its
        # memory (oneDNN, AVX2).
        gy, x = gy.contiguous(), x.contiguous()
    lists = list(g.stride), list(g.padding), list(g.dilation)
    found: Gradients = torch.ops.aten.convolution_backward(
        gy, x, weight, out, *lists, False, [0, 0], groups, list(wanted[:3])
    )
    return found


def _patches(
    x: Tensor, kernel: tuple[int, ...], geometry: Geometry
) -> tuple[Tensor, tuple[int, int, int]]:
    """What the kernel sees at each place, (S, B·h·w, kh·kw·C), and B, h, w.

    Raises:
        NotImplementedError: there are groups.
    """
    if geometry.groups != 1:
        raise NotImplementedError("patches of groups")
    (top, left), seen = geometry.padding, x.permute(0, 1, 3, 4, 2)
    if top or left:
        seen = F.pad(seen, (0, 0, left, left, top, top))
    for axis, (size, step, apart) in enumerate(
        zip(kernel, geometry.stride, geometry.dilation, strict=True), 2
    ):
        seen = seen.unfold(axis, (size - 1) * apart + 1, step)[..., ::apart]
    slots, samples, h, w = seen.shape[:4]
    return seen.permute(0, 1, 2, 3, 5, 6, 4).reshape(slots, samples * h * w, -1), (samples, h, w)


def _spread(gy: Tensor, x: Tensor, weight: Tensor, geometry: Geometry) -> tuple[Tensor, Geometry]:
    """gy with zeros between its pixels and around them, such that a convolution of stride 1 without
    padding gives something of x's size."""
    g, last = geometry, gy.permute(0, 1, 3, 4, 2)
    if g.groups != 1:
        raise NotImplementedError("patches of groups")
    around: list[int] = []
    for axis, (size, step, pad, apart) in enumerate(
        zip(weight.shape[3:], g.stride, g.padding, g.dilation, strict=True), 2
    ):
        if step > 1:
            shape = [*last.shape]
            shape[axis] = (shape[axis] - 1) * step + 1
            wide = last.new_zeros(shape)
            wide.narrow(axis, 0, shape[axis]).unfold(axis, 1, step).squeeze(-1).copy_(last)
            last = wide
        before = (size - 1) * apart - pad
        after = x.shape[axis + 1] + (size - 1) * apart - last.shape[axis] - before
        around = [before, after, *around]
    padded = F.pad(last, [0, 0, *around]) if any(around) else last
    return padded.permute(0, 1, 4, 2, 3), Geometry((1, 1), (0, 0), g.dilation, 1)


def _portions(x: Tensor, weight: Tensor) -> list[slice]:
    """Slots whose patches are laid out at once."""
    each = x[0].numel() * weight[0, 0, 0].numel()  # of stride 1, the most
    most = max(1, AT_ONCE // max(each, 1))
    return [slice(first, first + most) for first in range(0, len(x), most)]


def to_format(x: Tensor, last: bool) -> Tensor:
    """The same numbers with the channels last in memory, or contiguous."""
    return x.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3) if last else x.contiguous()


def _joined(each: Sequence[Tensor], last: bool) -> Tensor:
    if not last:
        return torch.stack(list(each))
    return torch.stack([y.permute(0, 2, 3, 1) for y in each]).permute(0, 1, 4, 2, 3)


def _merged(x: Tensor) -> Tensor:
    """(S, B, C, H, W) as (B, S·C, H, W)."""
    return x.transpose(0, 1).flatten(1, 2)


def _split(y: Tensor, slots: int) -> Tensor:
    return y.reshape(len(y), slots, -1, *y.shape[2:]).transpose(0, 1)


def plain(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    """torch's own."""
    g = geometry
    if x.dim() == 5:  # a vmap in a module of a stack
        dims = (0, 0, None if bias is None else 0, None)
        return vmap(plain, dims)(x, weight, bias, geometry)
    return torch.conv2d(x, weight, bias, g.stride, g.padding, g.dilation, g.groups)


def require_kernels(x: Tensor, geometry: Geometry | None = None, last: bool = False) -> None:
    """Check that there are Triton kernels for such pictures.

    Raises:
        NotImplementedError: they do not take them, or there is no Triton.
    """
    try:
        from sweepstack.models import kernels
    except ImportError as error:
        raise NotImplementedError("no Triton") from error
    if x.device.type not in kernels.PLACES or x.dtype not in kernels.TYPES:
        raise NotImplementedError("no kernels for such numbers")
    if last or (geometry is not None and geometry.groups != 1):
        raise NotImplementedError("no kernels for groups or channels last")


def pair(value: Any) -> Pair:
    """Numbers for rows and columns, of one number or a sequence."""
    first, second = (value, value) if isinstance(value, int) else (value * 2)[:2]
    return int(first), int(second)
