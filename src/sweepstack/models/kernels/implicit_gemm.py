"""Convolutions of a stack and their gradients as implicit GEMMs, by the kernels of `gemm`.

`Blocks` are the sizes that a kernel works with, `candidates` those that may be fast for a pass of a
layer: the first ones are used where nothing else was measured. A weight's gradient is added up from
`span`s of pixels.
"""

from __future__ import annotations

from math import gcd, prod
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import triton
from torch import Tensor
from torch.nn import functional as F

from sweepstack.models.kernels import ELEMENTS, MAX_PIXELS, power
from sweepstack.models.kernels.gemm import add_up, lay, multiply, weight_gradient

if TYPE_CHECKING:
    from sweepstack.models.convolution import Geometry

FEW = 8
"""Fewer channels than these make one axis with the taps; others are rounded up to `ROUND`."""
ROUND = 16


class Blocks(NamedTuple):
    """Sizes of what a program of a convolution multiplies."""

    pixels: int
    channels: int  # out
    depth: int  # of the sum; of the weight's gradient what its columns are
    warps: int = 4
    stages: int = 3
    span: int = 2048  # pixels of a partial sum of a weight's gradient, a multiple of `pixels`


class Laid(NamedTuple):
    """Pictures (S, B, rows, line, channels), and where their first pixel lies in them."""

    pictures: Tensor
    top: int
    left: int


def samples_at_once(x: Tensor, weight: Tensor, geometry: Geometry) -> int:
    """Number of samples that `correlated` takes."""
    g, (kh, kw) = geometry, weight.shape[3:]
    size = g.size(x.shape[3:], (kh, kw))
    rows, line = _frame(size, (kh, kw), g)
    pixels = max(rows * line, prod(size))
    numbers = max(rows * line * _rounded(x.shape[2]), prod(size) * weight.shape[1])
    return max(1, min(MAX_PIXELS // pixels, (2**31 - 1) // numbers))


def correlated(
    x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, blocks: Blocks | None = None
) -> Tensor:
    """torch.conv2d of each slot: y."""
    samples, depth = x.shape[1:3]
    channels, (kh, kw), g = weight.shape[1], weight.shape[3:], geometry
    h, w = g.size(x.shape[3:], (kh, kw))
    y = x.new_empty(len(x), samples, channels, h, w)
    blocks = blocks or _blocks(depth, kh * kw, channels)
    laid = Laid(lay_input(x, (kh, kw), g).pictures, 0, 0)
    along = (*g.stride, 0, 0), g.dilation, (1, 1)
    _run(laid, _filters(weight, turned=False), bias, y, (samples * h * w, h, w), along, blocks)
    return y


def correlated_inputs(
    laid: Laid,
    weight: Tensor,
    size: tuple[int, int],
    geometry: Geometry,
    blocks: Blocks | None = None,
) -> Tensor:
    """The gradient of x, whose pictures have that size, from gy by `lay_gradient`."""
    (slots, samples), (depth, channels) = laid.pictures.shape[:2], weight.shape[1:3]
    g = geometry
    gx = weight.new_empty(slots, samples, channels, *size)
    rows, columns = (-(-n // step) for n, step in zip(size, g.stride, strict=True))
    blocks = blocks or _blocks(depth, prod(weight.shape[3:]), channels)
    along = (1, 1, *g.padding), (-g.dilation[0], -g.dilation[1]), g.stride
    sizes = samples * rows * columns, rows, columns
    _run(laid, _filters(weight, turned=True), None, gx, sizes, along, blocks)
    return gx


def correlated_weights(
    gy: Tensor,
    x: Tensor,
    weight: Tensor,
    geometry: Geometry,
    biased: bool,
    laid: Laid | None = None,
    blocks: Blocks | None = None,
) -> tuple[Tensor, Tensor | None]:
    """The gradients of weight and, if `biased`, of the bias (S, O); `laid` is gy, laid out."""
    slots, samples, channels, h, w = gy.shape
    real, (kh, kw), g = weight.shape[2], weight.shape[3:], geometry
    seen = lay_input(x, (kh, kw), g).pictures
    lines, line, depth = seen.shape[2:]
    taps, pixels, size = kh * kw, samples * h * w, kh * kw * depth
    blocks = blocks or _weight_blocks(size, channels)
    splits, wanted = triton.cdiv(pixels, blocks.span), size + biased
    if channels * wanted > MAX_PIXELS:
        raise NotImplementedError("weights of more than 2²² numbers")
    given, places, at_once = gy, (*gy.stride()[1:2], *gy.stride()[3:], gy.stride(2), 0), 1
    if laid is not None and channels == laid.pictures.shape[-1] and channels >= FEW:
        given, at_once = laid.pictures, _at_once(channels, gy.dtype)
        (a, b, c), top, left = given.stride()[1:4], laid.top, laid.left
        places = (a, b, c, 1, top * b + left * c)
    parts = gy.new_empty(slots, splits, channels, wanted, dtype=torch.float32)
    tiles = triton.cdiv(channels, blocks.channels) * triton.cdiv(size, blocks.depth)
    weight_gradient[(splits, tiles, slots)](
        *(given, seen, parts, seen.stride(0), given.stride(0), pixels, h, w, lines * line, line),
        *(depth, channels, taps, kw, *g.stride, *g.dilation, blocks.span, *places),
        *(1 / h, 1 / w, 1 / depth, 1 / kw),
        BIAS=biased,
        V=_at_once(depth, gy.dtype),
        G=at_once,
        **_kind(gy, blocks),
    )
    weights = torch.empty_like(weight, memory_format=torch.contiguous_format)
    biases = weight.new_empty(slots, channels) if biased else weights
    sizes = splits, channels, depth, taps, real, int(biased), 1 / depth, 1 / wanted
    grid = triton.cdiv(channels * wanted, ELEMENTS), slots
    add_up[grid](parts, weights, biases, *sizes, TILE=ELEMENTS)
    return weights, biases if biased else None


def lay_input(x: Tensor, kernel: tuple[int, int], geometry: Geometry) -> Laid:
    """x with zeros around it, as far as the convolution reads."""
    rows, line = _frame(geometry.size(x.shape[3:], kernel), kernel, geometry)
    return _laid_out(x, rows, line, *geometry.padding)


def _frame(size: tuple[int, int], kernel: tuple[int, int], geometry: Geometry) -> tuple[int, int]:
    """Height and width of what a convolution reads for pictures of a size."""
    each = zip(size, geometry.stride, kernel, geometry.dilation, strict=True)
    rows, line = ((n - 1) * step + (k - 1) * apart + 1 for n, step, k, apart in each)
    return rows, line


def lay_gradient(
    gy: Tensor, kernel: tuple[int, int], size: tuple[int, int], geometry: Geometry
) -> Laid:
    """gy with zeros around it, as far as the gradient of x of that size reads."""
    g, spans = geometry, []
    each = zip(size, gy.shape[3:], kernel, g.stride, g.padding, g.dilation, strict=True)
    for whole, own, k, step, pad, apart in each:
        before = max(0, -((pad - (k - 1) * apart) // step))
        last = max(-(-whole // step) - 1 + (step - 1 + pad) // step, own - 1)
        spans.append((before, before + last + 1))
    (top, rows), (left, line) = spans
    return _laid_out(gy, rows, line, top, left)


def _laid_out(x: Tensor, rows: int, line: int, top: int, left: int) -> Laid:
    slots, samples, depth, height, width = x.shape
    wide = _rounded(depth)
    out = x.new_empty(slots, samples, rows, line, wide)
    pixels = samples * rows * line
    if max(out[0].numel(), x[0].numel()) >= 2**31 or pixels > MAX_PIXELS:
        raise NotImplementedError("batches of more than 32-bit numbers")
    channels = power(wide, 1, 64)
    tile = max(64, min(ELEMENTS, 4 * ELEMENTS // channels))
    lay[(triton.cdiv(pixels, tile), triton.cdiv(wide, channels), slots)](
        *(x, out, x.stride(0), out.stride(0), pixels, rows, line, depth, height, width, wide),
        *(top, left, 1 / rows, 1 / line),
        Q=tile,
        C=channels,
    )
    return Laid(out, top, left)


def _filters(weight: Tensor, *, turned: bool) -> Tensor:
    """(S, O, kh, kw, C), or turned (S, C, kh, kw, O)."""
    found = weight.permute(*((0, 2, 3, 4, 1) if turned else (0, 1, 3, 4, 2)))
    more = _rounded(found.shape[-1]) - found.shape[-1]
    return F.pad(found, (0, more)) if more else found.contiguous()


def _run(
    laid: Laid,
    filters: Tensor,
    bias: Tensor | None,
    out: Tensor,
    sizes: tuple[int, int, int],
    along: tuple[tuple[int, ...], tuple[int, int], tuple[int, int]],
    blocks: Blocks,
) -> None:
    """Multiply; `along` has strides and first places, steps of a tap, and `apart`."""
    (pixels, rows, columns), (begins, step, apart) = sizes, along
    source, (kh, kw) = laid.pictures, filters.shape[2:4]
    (lines, line, depth), channels = source.shape[2:], out.shape[2]
    if max(out[0].numel(), filters[0].numel()) >= 2**31 or pixels > MAX_PIXELS:
        raise NotImplementedError("batches of more than 32-bit numbers")
    every = (a // gcd(a, abs(d)) for a, d in zip(apart, step, strict=True))
    parts = triton.cdiv(channels, blocks.channels) * apart[0] * apart[1]
    multiply[(triton.cdiv(pixels, blocks.pixels), parts, len(out))](
        *(source, filters, out if bias is None else bias.contiguous(), out),
        *(source.stride(0), filters.stride(0), out.stride(0), pixels, rows, columns),
        *(lines * line, line, depth, channels, *out.shape[3:], kh, kw, *begins),
        *(laid.top, laid.left, *step, *apart, *every),
        *(1 / rows, 1 / columns, 1 / depth, 1 / kw),
        BIAS=bias is not None,
        APART=apart != (1, 1),
        FLAT=depth % blocks.depth != 0,
        V=_at_once(depth, source.dtype),
        **_kind(source, blocks),
    )


def _kind(x: Tensor, blocks: Blocks) -> dict[str, Any]:
    """How numbers are multiplied: tensor cores take float32 only where torch's do."""
    loose = x.dtype == torch.float32 and torch.backends.cudnn.allow_tf32
    return {
        "PRECISION": "tf32" if loose else "ieee",
        "WIDE": x.device.type == "cpu",  # the interpreter multiplies float32 only
        **{"P": blocks.pixels, "N": blocks.channels, "K": blocks.depth},
        **{"num_warps": blocks.warps, "num_stages": blocks.stages},
    }


def candidates(weight: tuple[int, ...], number: int, stride: tuple[int, int]) -> list[Blocks]:
    """Blocks that may be fast for a pass, first those that are used where nothing was measured.

    All compile for compute capability 9.0 with 16-byte copies where channels are not few, without
    spilled registers in bf16 and tf32 (Triton 3.6).

    Args:
        weight: (S, O, C, kh, kw).
        number: 0 for the convolution, 1 for the input's gradient, 2 for the weight's.
        stride: of rows and columns.
    """
    channels, depth, taps = weight[1], weight[2], prod(weight[3:])
    if number == 1:
        channels, depth = depth, channels
    size = _rounded(depth) * taps
    if number == 2:
        first = _weight_blocks(size, channels)
        each = [first._replace(span=8192), first._replace(stages=2, span=4096)]
        each.append(first._replace(pixels=128, warps=8))
        if size > first.depth:
            each.append(first._replace(depth=128, warps=8, span=4096))
        return [first, *each]
    first = _blocks(depth, taps, channels)
    stages = 2 if first.depth == 64 else first.stages  # of float32 three do not fit
    each = [
        first._replace(pixels=256, warps=8, stages=stages),
        first._replace(pixels=first.pixels // 2),
    ]
    deep = power(size, 16, 64)
    if deep > first.depth and (number == 0 or stride == (1, 1)):
        stages = 1 if size <= deep else 3
        each += [first._replace(pixels=p, depth=deep, stages=stages) for p in (128, 64)]
    else:
        each.append(first._replace(pixels=64, stages=min(4, 3 * first.stages - 2)))
    return [first, *each]


def _weight_blocks(size: int, channels: int) -> Blocks:
    """For weights of so many numbers of each channel."""
    return Blocks(64, power(channels, 16, 64), power(size, 16, 64))


def _blocks(depth: int, taps: int, channels: int) -> Blocks:
    """For sums over so many channels and taps; one that takes a single turn needs no copies of what
    the next one reads, which would leave shared memory for fewer programs."""
    wide = _rounded(depth)
    if wide < FEW:
        deep = power(wide * taps, 16, 32)
        stages = 1 if wide * taps <= deep else 3
        return Blocks(256, power(channels, 16, 64), deep, stages=stages)
    deep = next(size for size in (64, 32, 16) if wide % size == 0)
    return Blocks(256 if deep == ROUND else 128, power(channels, 16, 64), deep)


def _rounded(channels: int) -> int:
    """Channels of a picture that is laid out."""
    return channels if channels < FEW else triton.cdiv(channels, ROUND) * ROUND


def _at_once(channels: int, dtype: torch.dtype) -> int:
    """Numbers of channels in a load of 16 bytes, 1 where they are few."""
    return 1 if channels < FEW else 16 // dtype.itemsize
