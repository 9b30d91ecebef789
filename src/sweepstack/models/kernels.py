"""Triton kernels for a stack of pictures: convolutions, max pools and batch norms.

Convolutions are implicit GEMMs: each program multiplies a block of the weight with the patches of a
block of pixels, which it reads where they lie. All sums are in float32, in an order that depends on
the shapes of one trial alone, so that a trial is itself at any width. `convolution.Chooser`
compares what they compute with torch's numbers before they are used.

Notation: S slots, B samples, C and O channels in and out, x (S, B, C, H, W), weight
(S, O, C, kh, kw), y and its gradient gy (S, B, O, h, w), all contiguous; x may be expanded over S.
A *tap* is a place in the kernel's window.
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

if TYPE_CHECKING:
    from sweepstack.models.convolution import Geometry

PLACES = {"cuda"}
"""Devices that have kernels; Triton's interpreter adds the CPU in tests."""
TYPES = (torch.float32, torch.bfloat16, torch.float16)
SPAN = 2048
"""Pixels of a partial sum of a weight's gradient."""
MAX_PIXELS = 2**22
"""Of the pictures of a batch; up to here `_over` is exact."""
ELEMENTS = 1024
"""Numbers of a program of a pool, a sum or a batch norm at once."""


class Blocks(NamedTuple):
    """Sizes of what a program of a convolution multiplies."""

    pixels: int
    channels: int  # out
    depth: int  # of the sum; of the weight's gradient the columns
    flat: bool  # channels and taps are one axis, else taps one after the other
    warps: int


@triton.jit
def _over(number, inverse):  # type: ignore[no-untyped-def]
    """number // divisor for numbers of 0 to 2²², given the divisor's inverse in float32."""
    return ((number.to(tl.float32) + 0.5) * inverse).to(tl.int32)


@triton.jit
def _within(y, x, height, width):  # type: ignore[no-untyped-def]
    return (y >= 0) & (y < height) & (x >= 0) & (x < width)


_CORRELATE = (
    *("slot_source", "slot_weight", "slot_out", "pixels", "rows", "columns"),
    *("depth", "height", "width", "channels", "out_height", "out_width", "taps", "kernel_width"),
    *("weight_out", "weight_in", "stride_y", "stride_x", "first_y", "first_x", "step_y", "step_x"),
    *("apart_y", "apart_x", "of_rows", "of_columns", "of_taps", "of_kernel"),
)


@triton.jit(do_not_specialize=_CORRELATE)  # type: ignore[untyped-decorator]
def _correlate(  # type: ignore[no-untyped-def]
    source,
    weight,
    bias,
    out,
    slot_source,
    slot_weight,
    slot_out,
    pixels,
    rows,
    columns,
    depth,
    height,
    width,
    channels,
    out_height,
    out_width,
    taps,
    kernel_width,
    weight_out,
    weight_in,
    stride_y,
    stride_x,
    first_y,
    first_x,
    step_y,
    step_x,
    apart_y,
    apart_x,
    of_rows,
    of_columns,
    of_taps,
    of_kernel,
    BIAS: tl.constexpr,
    APART: tl.constexpr,
    FLAT: tl.constexpr,
    WIDE: tl.constexpr,
    PRECISION: tl.constexpr,
    P: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
):
    """out[n, p] = Σ weight[n, c, tap] · source[c, stride · p + (first + step · tap) / apart].

    A program of the grid (tiles of pixels, blocks of channels times phases, S). Pixels are those of
    all samples, `rows` times `columns` of each. With APART, out's pixels lie `apart` from each
    other, one phase (y, x) for each of those between them, and only taps count whose place is
    whole: that is the input's gradient of a convolution with a stride. `of_...` are inverses.
    """
    blocks = tl.cdiv(channels, N)
    block, phase = tl.program_id(1) % blocks, tl.program_id(1) // blocks
    slot = tl.program_id(2).to(tl.int64)
    phase_y, phase_x = phase // apart_x, phase % apart_x
    p = tl.program_id(0) * P + tl.arange(0, P)
    inside = p < pixels
    row = _over(p, of_columns)
    column = p - row * columns
    sample = _over(row, of_rows)
    row -= sample * rows
    y0, x0 = row * stride_y, column * stride_x
    plane = height * width
    place = sample * depth * plane + y0 * width + x0
    n = block * N + tl.arange(0, N)
    source += slot * slot_source
    weight += slot * slot_weight
    total = tl.zeros((N, P), tl.float32)
    if FLAT:
        for start in range(0, depth * taps, K):
            k = start + tl.arange(0, K)
            c = _over(k, of_taps)
            tap = k - c * taps
            i = _over(tap, of_kernel)
            j = tap - i * kernel_width
            dy, dx = first_y + phase_y + i * step_y, first_x + phase_x + j * step_x
            known = k < depth * taps
            if APART:
                known &= (dy % apart_y == 0) & (dx % apart_x == 0)
                dy, dx = dy // apart_y, dx // apart_x
            seen = _within(y0[None, :] + dy[:, None], x0[None, :] + dx[:, None], height, width) & (
                known[:, None] & inside[None, :]
            )
            shift = c * plane + dy * width + dx
            patches = tl.load(source + (place[None, :] + shift[:, None]), mask=seen, other=0.0)
            used = (n < channels)[:, None] & known[None, :]
            at = n[:, None] * weight_out + (c * weight_in + tap)[None, :]
            filters = tl.load(weight + at, mask=used, other=0.0)
            if WIDE:
                patches, filters = patches.to(tl.float32), filters.to(tl.float32)
            total = tl.dot(filters, patches, total, input_precision=PRECISION)
    else:
        for tap in range(taps):
            i, j = tap // kernel_width, tap % kernel_width
            dy, dx = first_y + phase_y + i * step_y, first_x + phase_x + j * step_x
            whole = True
            if APART:
                whole = (dy % apart_y == 0) & (dx % apart_x == 0)
                dy, dx = dy // apart_y, dx // apart_x
            if whole:
                seen = _within(y0 + dy, x0 + dx, height, width) & inside
                here = place + dy * width + dx
                for start in range(0, depth, K):
                    c = start + tl.arange(0, K)
                    some = (c < depth)[:, None] & seen[None, :]
                    at = here[None, :] + (c * plane)[:, None]
                    patches = tl.load(source + at, mask=some, other=0.0)
                    used = (n < channels)[:, None] & (c < depth)[None, :]
                    at = n[:, None] * weight_out + (c * weight_in + tap)[None, :]
                    filters = tl.load(weight + at, mask=used, other=0.0)
                    if WIDE:
                        patches, filters = patches.to(tl.float32), filters.to(tl.float32)
                    total = tl.dot(filters, patches, total, input_precision=PRECISION)
    if BIAS:
        given = tl.load(bias + slot * channels + n, mask=n < channels, other=0.0)
        total += given.to(tl.float32)[:, None]
    y, x = row * apart_y + phase_y, column * apart_x + phase_x
    inside &= (y < out_height) & (x < out_width)
    area = out_height * out_width
    at = (sample * channels * area + y * out_width + x)[None, :] + (n * area)[:, None]
    kept = inside[None, :] & (n < channels)[:, None]
    tl.store(out + slot * slot_out + at, total.to(out.dtype.element_ty), mask=kept)


_WEIGHTS = (
    *("slot_source", "slot_out", "pixels", "rows", "columns", "depth", "height", "width"),
    *("channels", "taps", "kernel_width", "wanted", "stride_y", "stride_x", "first_y", "first_x"),
    *("step_y", "step_x", "span", "of_rows", "of_columns", "of_taps", "of_kernel"),
)


@triton.jit(do_not_specialize=_WEIGHTS)  # type: ignore[untyped-decorator]
def _correlate_weights(  # type: ignore[no-untyped-def]
    gradient,
    source,
    parts,
    slot_source,
    slot_out,
    pixels,
    rows,
    columns,
    depth,
    height,
    width,
    channels,
    taps,
    kernel_width,
    wanted,
    stride_y,
    stride_x,
    first_y,
    first_x,
    step_y,
    step_x,
    span,
    of_rows,
    of_columns,
    of_taps,
    of_kernel,
    WIDE: tl.constexpr,
    PRECISION: tl.constexpr,
    P: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
):
    """parts[split, n, k] = Σ over `span` pixels of gradient[n, p] · source[c, stride · p + shift],
    with k a channel c and a tap; column C·kh·kw, where `wanted` has it, sums the gradient alone:
    that of the bias. A program of the grid (splits, blocks of n times blocks of k, S)."""
    blocks = tl.cdiv(channels, N)
    block, part = tl.program_id(1) % blocks, tl.program_id(1) // blocks
    split, splits = tl.program_id(0), tl.num_programs(0)
    slot = tl.program_id(2).to(tl.int64)
    n, k = block * N + tl.arange(0, N), part * K + tl.arange(0, K)
    c = _over(k, of_taps)
    tap = k - c * taps
    i = _over(tap, of_kernel)
    j = tap - i * kernel_width
    dy, dx = first_y + i * step_y, first_x + j * step_x
    plane, area = height * width, rows * columns
    shift, known = c * plane + dy * width + dx, c < depth
    source += slot * slot_source
    gradient += slot * slot_out
    total = tl.zeros((N, K), tl.float32)
    for start in range(0, tl.minimum(span, pixels - split * span), P):
        p = split * span + start + tl.arange(0, P)
        inside = p < pixels
        row = _over(p, of_columns)
        column = p - row * columns
        sample = _over(row, of_rows)
        y0, x0 = (row - sample * rows) * stride_y, column * stride_x
        at = (p + sample * ((channels - 1) * area))[None, :] + (n * area)[:, None]
        used = (n < channels)[:, None] & inside[None, :]
        given = tl.load(gradient + at, mask=used, other=0.0)
        seen = _within(y0[None, :] + dy[:, None], x0[None, :] + dx[:, None], height, width)
        seen &= known[:, None] & inside[None, :]
        place = sample * depth * plane + y0 * width + x0
        patches = tl.load(source + (place[None, :] + shift[:, None]), mask=seen, other=0.0)
        patches = tl.where((k == depth * taps)[:, None], 1.0, patches).to(patches.dtype)
        if WIDE:
            patches, given = patches.to(tl.float32), given.to(tl.float32)
        total = tl.dot(given, tl.trans(patches), total, input_precision=PRECISION)
    at = ((slot * splits + split) * channels + n)[:, None] * wanted + k[None, :]
    tl.store(parts + at, total, mask=(n < channels)[:, None] & (k < wanted)[None, :])


_ADD_UP = ("splits", "channels", "wanted", "taken")


@triton.jit(do_not_specialize=_ADD_UP)  # type: ignore[untyped-decorator]
def _add_up(  # type: ignore[no-untyped-def]
    parts, weights, biases, splits, channels, wanted, taken, TILE: tl.constexpr
):
    """weights and biases = parts added up, one split after the other."""
    slot = tl.program_id(1).to(tl.int64)
    e = tl.program_id(0) * TILE + tl.arange(0, TILE)
    size = channels * wanted
    total = tl.zeros((TILE,), tl.float32)
    for split in range(splits):
        at = (slot * splits + split) * size + e
        total += tl.load(parts + at, mask=e < size, other=0.0)
    n = e // wanted
    k = e - n * wanted
    at = (slot * channels + n) * taken + k
    tl.store(weights + at, total.to(weights.dtype.element_ty), mask=(e < size) & (k < taken))
    last = (e < size) & (k == taken)
    tl.store(biases + slot * channels + n, total.to(biases.dtype.element_ty), mask=last)


# --- convolutions ---------------------------------------------------------------------------------


def correlated(
    x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, blocks: Blocks | None = None
) -> Tensor:
    """torch.conv2d of each slot: y."""
    slots, samples, depth, height, width = x.shape
    channels, (kh, kw), g = weight.shape[1], weight.shape[3:], geometry
    h, w = g.size((height, width), (kh, kw))
    y = x.new_empty(slots, samples, channels, h, w)
    sizes = (samples * h * w, h, w, depth, height, width, channels, h, w)
    along = (*g.stride, -g.padding[0], -g.padding[1], *g.dilation)
    strides = depth * kh * kw, kh * kw
    blocks = blocks or _blocks(depth * kh * kw, channels)
    _run(x, weight, bias, y, sizes, (kh, kw), strides, along, (1, 1), blocks)
    return y


def correlated_inputs(
    gy: Tensor,
    weight: Tensor,
    size: tuple[int, int],
    geometry: Geometry,
    blocks: Blocks | None = None,
) -> Tensor:
    """The gradient of x, whose pictures have that size."""
    slots, samples, depth, h, w = gy.shape
    channels, (kh, kw), g = weight.shape[2], weight.shape[3:], geometry
    gx = gy.new_empty(slots, samples, channels, *size)
    rows, columns = (-(-n // step) for n, step in zip(size, g.stride, strict=True))
    sizes = (samples * rows * columns, rows, columns, depth, h, w, channels, *size)
    along = (1, 1, *g.padding, -g.dilation[0], -g.dilation[1])
    strides = kh * kw, channels * kh * kw
    blocks = blocks or _blocks(depth * kh * kw, channels)
    _run(gy, weight, None, gx, sizes, (kh, kw), strides, along, g.stride, blocks)
    return gx


def _run(
    source: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    out: Tensor,
    sizes: tuple[int, ...],
    kernel: tuple[int, int],
    strides: tuple[int, int],
    along: tuple[int, ...],
    apart: tuple[int, int],
    blocks: Blocks,
) -> None:
    pixels, rows, columns, channels = sizes[0], sizes[1], sizes[2], sizes[6]
    _check(source, out, pixels)
    taps = kernel[0] * kernel[1]
    parts = triton.cdiv(channels, blocks.channels) * apart[0] * apart[1]
    _correlate[(triton.cdiv(pixels, blocks.pixels), parts, len(source))](
        *(source, weight, out if bias is None else bias.contiguous(), out),
        *(source.stride(0), weight.stride(0), out.stride(0)),
        *(*sizes, taps, kernel[1], *strides, *along, *apart),
        *(1 / rows, 1 / columns, 1 / taps, 1 / kernel[1]),
        BIAS=bias is not None,
        APART=apart != (1, 1),
        FLAT=blocks.flat,
        **_kind(source),
        P=blocks.pixels,
        N=blocks.channels,
        K=blocks.depth,
        num_warps=blocks.warps,
    )


def correlated_weights(
    gy: Tensor,
    x: Tensor,
    weight: Tensor,
    geometry: Geometry,
    biased: bool,
    blocks: Blocks | None = None,
    span: int = SPAN,
) -> tuple[Tensor, Tensor | None]:
    """The gradients of weight and, if `biased`, of the bias (S, O)."""
    slots, samples, channels, h, w = gy.shape
    depth, (kh, kw), g, pixels = weight.shape[2], weight.shape[3:], geometry, samples * h * w
    _check(x, gy, pixels)
    taken, splits = depth * kh * kw, triton.cdiv(pixels, span)
    wanted = taken + biased
    blocks = blocks or _weight_blocks(wanted, channels)
    parts = gy.new_empty(slots, splits, channels, wanted, dtype=torch.float32)
    tiles = triton.cdiv(channels, blocks.channels) * triton.cdiv(wanted, blocks.depth)
    _correlate_weights[(splits, tiles, slots)](
        *(gy, x, parts, x.stride(0), gy.stride(0), pixels, h, w, depth, *x.shape[3:], channels),
        *(kh * kw, kw, wanted, *g.stride, -g.padding[0], -g.padding[1], *g.dilation, span),
        *(1 / h, 1 / w, 1 / (kh * kw), 1 / kw),
        **_kind(gy),
        P=blocks.pixels,
        N=blocks.channels,
        K=blocks.depth,
        num_warps=blocks.warps,
    )
    weights = torch.empty_like(weight, memory_format=torch.contiguous_format)
    biases = weight.new_empty(slots, channels) if biased else None
    _add_up[(triton.cdiv(channels * wanted, ELEMENTS), slots)](
        *(parts, weights, weights if biases is None else biases, splits, channels, wanted, taken),
        TILE=ELEMENTS,
    )
    return weights, biases


def _kind(x: Tensor) -> dict[str, Any]:
    """How numbers are multiplied: tensor cores take float32 only where torch's do."""
    loose = x.dtype == torch.float32 and torch.backends.cudnn.allow_tf32
    # Triton's interpreter multiplies float32 only.
    return {"PRECISION": "tf32" if loose else "ieee", "WIDE": x.device.type == "cpu"}


def _check(source: Tensor, out: Tensor, pixels: int) -> None:
    if max(prod(source.shape[1:]), prod(out.shape[1:])) >= 2**31 or pixels > MAX_PIXELS:
        raise NotImplementedError("pictures of more than 32-bit numbers")


def _blocks(depth: int, channels: int) -> Blocks:
    """For sums over so many channels and taps."""
    return Blocks(128, _power(channels, 16, 64), _power(depth, 16, 64), True, 4)


def _weight_blocks(wanted: int, channels: int) -> Blocks:
    return Blocks(64, _power(channels, 16, 64), _power(wanted, 16, 64), True, 4)


def _power(number: int, least: int, most: int) -> int:
    """The power of 2 that has room for so many, within bounds."""
    return max(least, min(most, 1 << (number - 1).bit_length()))


# --- max pools ------------------------------------------------------------------------------------

_POOL = ("planes", "group", "height", "width", "h", "w", "of_rows", "of_columns")


@triton.jit(do_not_specialize=_POOL)  # type: ignore[untyped-decorator]
def _pool(  # type: ignore[no-untyped-def]
    x,
    y,
    winners,
    planes,
    group,
    height,
    width,
    h,
    w,
    of_rows,
    of_columns,
    KH: tl.constexpr,
    KW: tl.constexpr,
    TILE: tl.constexpr,
):
    """y = the largest number of each window, and its place there; NaN wins, as in torch. A program
    of the grid (groups of planes, tiles of a group)."""
    first = tl.program_id(0).to(tl.int64) * group
    e = tl.program_id(1) * TILE + tl.arange(0, TILE)
    inside = e < tl.minimum(planes - first, group) * (h * w)
    row = _over(e, of_columns)
    column = e - row * w
    plane = _over(row, of_rows)
    row -= plane * h
    here = x + first * (height * width) + plane * (height * width) + row * (KH * width)
    here += column * KW
    best = tl.load(here, mask=inside, other=0.0)
    winner = tl.zeros((TILE,), tl.int32)
    for place in tl.static_range(1, KH * KW):
        value = tl.load(here + place // KW * width + place % KW, mask=inside, other=0.0)
        wins = (value > best) | (value != value)
        best, winner = tl.where(wins, value, best), tl.where(wins, place, winner)
    tl.store(y + first * (h * w) + e, best, mask=inside)
    tl.store(winners + first * (h * w) + e, winner.to(tl.uint8), mask=inside)


@triton.jit(do_not_specialize=_POOL)  # type: ignore[untyped-decorator]
def _pool_back(  # type: ignore[no-untyped-def]
    gradient,
    winners,
    out,
    planes,
    group,
    height,
    width,
    h,
    w,
    of_rows,
    of_columns,
    KH: tl.constexpr,
    KW: tl.constexpr,
    TILE: tl.constexpr,
):
    """out = each window's gradient at its winner, 0 elsewhere."""
    first = tl.program_id(0).to(tl.int64) * group
    e = tl.program_id(1) * TILE + tl.arange(0, TILE)
    inside = e < tl.minimum(planes - first, group) * (height * width)
    row = _over(e, of_columns)
    column = e - row * width
    plane = _over(row, of_rows)
    row -= plane * height
    i, j = row // KH, column // KW
    covered = inside & (i < h) & (j < w)
    window = first * (h * w) + plane * (h * w) + i * w + j
    winner = tl.load(winners + window, mask=covered, other=255)
    given = tl.load(gradient + window, mask=covered, other=0.0)
    mine = covered & (winner.to(tl.int32) == (row - i * KH) * KW + column - j * KW)
    tl.store(out + first * (height * width) + e, tl.where(mine, given, 0.0), mask=inside)


class Pool(torch.autograd.Function):
    """The max pool of windows that do not overlap, of x (..., H, W)."""

    @staticmethod
    def forward(x: Tensor, kernel: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """y (..., H // kh, W // kw), and which place of each window won."""
        (kh, kw), (height, width) = kernel, x.shape[-2:]
        h, w = height // kh, width // kw
        x = x.contiguous()
        y = x.new_empty(*x.shape[:-2], h, w)
        winners = torch.empty_like(y, dtype=torch.uint8)
        planes, (group, tiles) = prod(x.shape[:-2]), _group(h * w)
        sizes = (planes, group, height, width, h, w, 1 / h, 1 / w)
        _pool[(triton.cdiv(planes, group), tiles)](x, y, winners, *sizes, kh, kw, ELEMENTS)
        return y, winners

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        """Keep the winners."""
        x, ctx.kernel = inputs
        ctx.size = tuple(x.shape[-2:])
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(output[1])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, _: Any) -> tuple[Tensor, None]:
        """The gradient of x."""
        (winners,), (kh, kw), (height, width) = ctx.saved_tensors, ctx.kernel, ctx.size
        h, w = winners.shape[-2:]
        out = gradient.new_empty(*winners.shape[:-2], height, width)
        planes, (group, tiles) = prod(winners.shape[:-2]), _group(height * width)
        sizes = (planes, group, height, width, h, w, 1 / height, 1 / width)
        grid = triton.cdiv(planes, group), tiles
        _pool_back[grid](gradient.contiguous(), winners, out, *sizes, kh, kw, ELEMENTS)
        return out, None

    @staticmethod
    def vmap(info: Any, in_dims: Any, x: Tensor, kernel: tuple[int, int]) -> tuple[Any, Any]:
        """The stack's: planes are planes."""
        return Pool.apply(x.movedim(in_dims[0], 0), kernel), (0, 0)


def _group(size: int) -> tuple[int, int]:
    """How many planes of so many numbers a group has, and its tiles."""
    group = max(1, ELEMENTS // size)
    return group, triton.cdiv(group * size, ELEMENTS)


# --- batch norms ----------------------------------------------------------------------------------

_NORM = ("samples", "channels", "area", "count")


@triton.jit(do_not_specialize=_NORM)  # type: ignore[untyped-decorator]
def _normalize(  # type: ignore[no-untyped-def]
    x,
    weight,
    bias,
    y,
    means,
    variances,
    samples,
    channels,
    area,
    count,
    eps,
    AFFINE: tl.constexpr,
    B: tl.constexpr,
    A: tl.constexpr,
):
    """y = (x - mean) / √(var + eps) · weight + bias, of a channel of a slot: a program of the grid
    (C, S). Sums are of differences from the first number, so that large means cost no digits."""
    c, slot = tl.program_id(0), tl.program_id(1).to(tl.int64)
    first = slot * samples * channels * area + c * area
    row, column = tl.arange(0, B)[:, None], tl.arange(0, A)[None, :]
    pivot = tl.load(x + first).to(tl.float32)
    sums, squares = tl.zeros((B, A), tl.float32), tl.zeros((B, A), tl.float32)
    for b in range(0, samples, B):
        for a in range(0, area, A):
            inside = (b + row < samples) & (a + column < area)
            at = first + (b + row) * (channels * area) + a + column
            value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
            value = tl.where(inside, value - pivot, 0.0)
            sums += value
            squares += value * value
    off = tl.sum(tl.sum(sums, 1), 0) / count
    variance = tl.maximum(tl.sum(tl.sum(squares, 1), 0) / count - off * off, 0.0)
    mean = pivot + off
    mine = slot * channels + c
    tl.store(means + mine, mean)
    tl.store(variances + mine, variance)
    scale = 1 / tl.sqrt(variance + eps)
    shift = 0.0
    if AFFINE:
        scale *= tl.load(weight + mine)
        shift = tl.load(bias + mine)
    for b in range(0, samples, B):
        for a in range(0, area, A):
            inside = (b + row < samples) & (a + column < area)
            at = first + (b + row) * (channels * area) + a + column
            value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
            value = (value - mean) * scale + shift
            tl.store(y + at, value.to(y.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=_NORM)  # type: ignore[untyped-decorator]
def _normalize_back(  # type: ignore[no-untyped-def]
    gradient,
    x,
    weight,
    means,
    variances,
    out,
    weights,
    biases,
    samples,
    channels,
    area,
    count,
    eps,
    AFFINE: tl.constexpr,
    B: tl.constexpr,
    A: tl.constexpr,
):
    """With x̂ normalized: out = weight / √(var + eps) · (g - mean(g) - x̂ · mean(g · x̂)), and the
    gradients of weight and bias, Σ g · x̂ and Σ g."""
    c, slot = tl.program_id(0), tl.program_id(1).to(tl.int64)
    first = slot * samples * channels * area + c * area
    row, column = tl.arange(0, B)[:, None], tl.arange(0, A)[None, :]
    mine = slot * channels + c
    mean = tl.load(means + mine)
    scale = 1 / tl.sqrt(tl.load(variances + mine) + eps)
    sums, products = tl.zeros((B, A), tl.float32), tl.zeros((B, A), tl.float32)
    for b in range(0, samples, B):
        for a in range(0, area, A):
            inside = (b + row < samples) & (a + column < area)
            at = first + (b + row) * (channels * area) + a + column
            value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
            given = tl.load(gradient + at, mask=inside, other=0.0).to(tl.float32)
            sums += given
            products += given * (value - mean)
    total = tl.sum(tl.sum(sums, 1), 0)
    product = tl.sum(tl.sum(products, 1), 0) * scale
    factor = scale
    if AFFINE:
        tl.store(weights + mine, product)
        tl.store(biases + mine, total)
        factor = scale * tl.load(weight + mine)
    total, product = total / count, product / count * scale
    for b in range(0, samples, B):
        for a in range(0, area, A):
            inside = (b + row < samples) & (a + column < area)
            at = first + (b + row) * (channels * area) + a + column
            value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
            given = tl.load(gradient + at, mask=inside, other=0.0).to(tl.float32)
            given = factor * (given - total - (value - mean) * product)
            tl.store(out + at, given.to(out.dtype.element_ty), mask=inside)


class Norm(torch.autograd.Function):
    """A training-mode batch norm of a stack, x (S, B, C, *) with weight and bias (S, C) or None."""

    @staticmethod
    def forward(
        x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """y, and mean and biased variance (S, C) in float32."""
        x = x.contiguous()
        slots, samples, channels = x.shape[:3]
        y = torch.empty_like(x)
        means = x.new_empty(slots, channels, dtype=torch.float32)
        variances = torch.empty_like(means)
        _normalize[(channels, slots)](
            x,
            means if weight is None else weight.contiguous(),
            means if bias is None else bias.contiguous(),
            *(y, means, variances, samples, channels),
            **_norm_shape(x),
            eps=eps,
            AFFINE=weight is not None,
        )
        return y, means, variances

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        """Keep what the gradients need."""
        x, weight, _, ctx.eps = inputs
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(x, weight, *output[1:])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        """Gradients of x, weight and bias."""
        x, weight, means, variances = ctx.saved_tensors
        x, slots, channels = x.contiguous(), len(x), x.shape[2]
        out, affine = torch.empty_like(x), weight is not None
        weights, biases = torch.empty_like(means), torch.empty_like(means)
        _normalize_back[(channels, slots)](
            *(gradient.contiguous(), x, weight.contiguous() if affine else means),
            *(means, variances, out, weights, biases, x.shape[1], channels),
            **_norm_shape(x),
            eps=ctx.eps,
            AFFINE=affine,
        )
        return out, weights if affine else None, biases if affine else None, None

    @staticmethod
    def vmap(
        info: Any,
        in_dims: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        eps: float,
    ) -> tuple[Any, Any]:
        """The stack's."""
        given = [
            each if each is None else _stacked(each, dim, info.batch_size)
            for each, dim in zip((x, weight, bias), in_dims[:3], strict=True)
        ]
        return Norm.apply(*given, eps), (0, 0, 0)


def _stacked(x: Tensor, dim: int | None, slots: int) -> Tensor:
    return x.unsqueeze(0).expand(slots, *x.shape) if dim is None else x.movedim(dim, 0)


def _norm_shape(x: Tensor) -> dict[str, int]:
    """Of the tiles that a program takes."""
    area = prod(x.shape[3:])
    across = _power(area, 1, 128)
    count = x.shape[1] * area
    return {"area": area, "count": count, "B": 2 * ELEMENTS // across, "A": across, "num_warps": 8}
