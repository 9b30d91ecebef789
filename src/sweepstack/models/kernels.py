"""Triton kernels for a stack of pictures: convolutions, max pools and batch norms.

Convolutions are implicit GEMMs: each program multiplies a block of the weight with the patches of a
block of pixels. Pictures are laid out for it with channels last and zeros around them, so that a
patch is read in wide loads without masks. All sums are in float32, in an order that depends on
the shapes of one trial alone, so that a trial is itself at any width. `convolution.Chooser`
compares what they compute with torch's numbers before they are used.

Notation: S slots, B samples, C and O channels in and out, x (S, B, C, H, W), weight
(S, O, C, kh, kw), y and its gradient gy (S, B, O, h, w), all contiguous. A *tap* is a place in the
kernel's window, `line` the pixels of a row of a picture that is laid out, `of_...` the inverse of a
divisor in float32.
"""

from __future__ import annotations

from math import gcd, prod
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional as F

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


class Laid(NamedTuple):
    """Pictures (S, B, rows, line, channels), and where their first pixel lies in them."""

    pictures: Tensor
    top: int
    left: int


@triton.jit
def _over(number, inverse):  # type: ignore[no-untyped-def]
    """number // divisor for numbers of 0 to 2²², given the divisor's inverse in float32."""
    return ((number.to(tl.float32) + 0.5) * inverse).to(tl.int32)


@triton.jit
def _places(p, pixels, rows, columns, of_rows, of_columns):  # type: ignore[no-untyped-def]
    """Sample, row and column of pixels; those past the end are the last."""
    p = tl.minimum(p, pixels - 1)
    row = _over(p, of_columns)
    sample = _over(row, of_rows)
    return sample, row - sample * rows, p - row * columns


@triton.jit
def _side_by_side(place):  # type: ignore[no-untyped-def]
    """Tell the compiler that most of these are neighbours: threads that are take them together."""
    return tl.max_contiguous(place, 2)


_LAY = (
    *("slot_source", "pixels", "rows", "line", "depth", "height", "width", "top", "left"),
    *("of_rows", "of_line"),
)


@triton.jit(do_not_specialize=_LAY)  # type: ignore[untyped-decorator]
def _lay(  # type: ignore[no-untyped-def]
    source,
    out,
    slot_source,
    slot_out,
    pixels,
    rows,
    line,
    depth,
    height,
    width,
    wide,
    top,
    left,
    of_rows,
    of_line,
    Q: tl.constexpr,
    C: tl.constexpr,
):
    """out (B, rows, line, wide) = source (B, C, H, W) moved by top and left, 0 elsewhere. A program
    of the grid (tiles of pixels, blocks of channels, S)."""
    slot = tl.program_id(2).to(tl.int64)
    q, c = tl.program_id(0) * Q + tl.arange(0, Q), tl.program_id(1) * C + tl.arange(0, C)
    row = _over(q, of_line)
    x = q - row * line - left
    sample = _over(row, of_rows)
    y = row - sample * rows - top
    seen = (q < pixels) & (y >= 0) & (y < height) & (x >= 0) & (x < width)
    area = height * width
    at = _side_by_side(sample * depth * area + y * width + x)[:, None] + (c * area)[None, :]
    seen = seen[:, None] & (c < depth)[None, :]
    value = tl.load(source + slot * slot_source + at, mask=seen, other=0.0)
    at = q[:, None] * wide + c[None, :]
    kept = (q < pixels)[:, None] & (c < wide)[None, :]
    tl.store(out + slot * slot_out + at, value, mask=kept)


@triton.jit  # type: ignore[untyped-decorator]
def _sum_of_few(  # type: ignore[no-untyped-def]
    source,
    weight,
    place,
    n,
    channels,
    depth,
    line,
    kernel_height,
    kernel_width,
    first_y,
    first_x,
    step_y,
    step_x,
    apart_y,
    apart_x,
    of_kernel,
    APART: tl.constexpr,
    WIDE: tl.constexpr,
    PRECISION: tl.constexpr,
    P: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
):
    """The sum of `_multiply` where channels are few: they and the taps are one axis."""
    total = tl.zeros((P, N), tl.float32)
    size = kernel_height * kernel_width * depth
    for start in range(0, size, K):
        k = start + tl.arange(0, K)
        tap = k // depth  # free where depth is 1: it is compiled in
        i = _over(tap, of_kernel)
        dy = first_y + i * step_y
        dx = first_x + (tap - i * kernel_width) * step_x
        known = k < size
        if APART:
            known &= (dy % apart_y == 0) & (dx % apart_x == 0)
            dy, dx = dy // apart_y, dx // apart_x
        shift = tl.where(known, (dy * line + dx) * depth + k - tap * depth, 0)
        patches = tl.load(source + (_side_by_side(place)[:, None] + shift[None, :]))
        used = (n < channels)[:, None] & known[None, :]
        filters = tl.load(weight + n[:, None] * size + k[None, :], mask=used, other=0.0)
        if WIDE:
            patches, filters = patches.to(tl.float32), filters.to(tl.float32)
        total = tl.dot(patches, tl.trans(filters), total, input_precision=PRECISION)
    return total


@triton.jit  # type: ignore[untyped-decorator]
def _sum_of_taps(  # type: ignore[no-untyped-def]
    source,
    weight,
    place,
    n,
    channels,
    depth,
    line,
    kernel_height,
    kernel_width,
    first_y,
    first_x,
    step_y,
    step_x,
    apart_y,
    apart_x,
    every_y,
    every_x,
    APART: tl.constexpr,
    WIDE: tl.constexpr,
    PRECISION: tl.constexpr,
    P: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
):
    """The sum of `_multiply`, K channels of one tap after the other."""
    total = tl.zeros((P, N), tl.float32)
    i0, j0, count_y, count_x = 0, 0, kernel_height, kernel_width
    if APART:
        i0, j0 = kernel_height, kernel_width
        for back in range(apart_y):
            i = apart_y - 1 - back
            i0 = tl.where((first_y + i * step_y) % apart_y == 0, i, i0)
        for back in range(apart_x):
            j = apart_x - 1 - back
            j0 = tl.where((first_x + j * step_x) % apart_x == 0, j, j0)
        count_y = tl.maximum(0, tl.cdiv(kernel_height - i0, every_y))
        count_x = tl.maximum(0, tl.cdiv(kernel_width - j0, every_x))
    lane, chunks = tl.arange(0, K), depth // K
    of_chunks, of_count = 1.0 / chunks, 1.0 / tl.maximum(count_x, 1)
    place = place[:, None] + lane[None, :]
    side = (n * (kernel_height * kernel_width) * depth)[:, None] + lane[None, :]
    for number in range(count_y * count_x * chunks):
        t = _over(number + 0 * chunks, of_chunks)  # Python's number in the interpreter
        start = (number - t * chunks) * K
        down = _over(t, of_count)
        i, j = i0 + down * every_y, j0 + (t - down * count_x) * every_x
        dy, dx = first_y + i * step_y, first_x + j * step_x
        if APART:
            dy, dx = dy // apart_y, dx // apart_x
        patches = tl.load(source + place + ((dy * line + dx) * depth + start))
        at = side + ((i * kernel_width + j) * depth + start)
        filters = tl.load(weight + at, mask=(n < channels)[:, None], other=0.0)
        if WIDE:
            patches, filters = patches.to(tl.float32), filters.to(tl.float32)
        total = tl.dot(patches, tl.trans(filters), total, input_precision=PRECISION)
    return total


_MULTIPLY = (
    *("slot_out", "pixels", "rows", "columns", "picture", "line", "channels", "out_height"),
    *("out_width", "kernel_height", "kernel_width", "stride_y", "stride_x", "first_y", "first_x"),
    *("top", "left", "step_y", "step_x", "apart_y", "apart_x", "every_y", "every_x"),
    *("of_rows", "of_columns", "of_kernel"),
)


@triton.jit(do_not_specialize=_MULTIPLY)  # type: ignore[untyped-decorator]
def _multiply(  # type: ignore[no-untyped-def]
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
    picture,
    line,
    depth,
    channels,
    out_height,
    out_width,
    kernel_height,
    kernel_width,
    stride_y,
    stride_x,
    first_y,
    first_x,
    top,
    left,
    step_y,
    step_x,
    apart_y,
    apart_x,
    every_y,
    every_x,
    of_rows,
    of_columns,
    of_kernel,
    BIAS: tl.constexpr,
    APART: tl.constexpr,
    V: tl.constexpr,
    WIDE: tl.constexpr,
    PRECISION: tl.constexpr,
    P: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
):
    """out[p, n] = Σ source[stride · p + (first + step · tap) / apart, c] · weight[n, tap, c].

    A program of the grid (tiles of pixels, blocks of channels times phases, S). Pixels are those of
    all samples, `rows` times `columns` of each. With APART, out's pixels lie `apart` from each
    other, one phase (y, x) for each of those between them, and only taps count whose place is
    whole, each `every`-th: that is the input's gradient of a convolution with a stride. V numbers
    of channels are read at once, 1 where they are few.
    """
    blocks = tl.cdiv(channels, N)
    block, phase = tl.program_id(1) % blocks, tl.program_id(1) // blocks
    slot = tl.program_id(2).to(tl.int64)
    first_y += phase // apart_x
    first_x += phase % apart_x
    p = tl.program_id(0) * P + tl.arange(0, P)
    sample, row, column = _places(p, pixels, rows, columns, of_rows, of_columns)
    place = sample * picture + (row * stride_y + top) * line + column * stride_x + left
    place *= depth
    n = block * N + tl.arange(0, N)
    source += slot * slot_source
    weight += slot * slot_weight
    if V == 1:
        total = _sum_of_few(
            *(source, weight, place, n, channels, depth, line, kernel_height, kernel_width),
            *(first_y, first_x, step_y, step_x, apart_y, apart_x, of_kernel),
            *(APART, WIDE, PRECISION, P, N, K),
        )
    else:
        total = _sum_of_taps(
            *(source, weight, place, n, channels, depth, line, kernel_height, kernel_width),
            *(first_y, first_x, step_y, step_x, apart_y, apart_x, every_y, every_x),
            *(APART, WIDE, PRECISION, P, N, K),
        )
    if BIAS:
        given = tl.load(bias + slot * channels + n, mask=n < channels, other=0.0)
        total += given.to(tl.float32)[None, :]
    y, x = row * apart_y + phase // apart_x, column * apart_x + phase % apart_x
    inside = (p < pixels) & (y < out_height) & (x < out_width)
    area = out_height * out_width
    at = _side_by_side(sample * channels * area + y * out_width + x)
    at = at[:, None] + (n * area)[None, :]
    kept = inside[:, None] & (n < channels)[None, :]
    tl.store(out + slot * slot_out + at, total.to(out.dtype.element_ty), mask=kept)


_WEIGHTS = (
    *("pixels", "rows", "columns", "picture", "line", "channels", "taps", "kernel_width"),
    *("stride_y", "stride_x", "step_y", "step_x", "span", "g_picture", "g_line", "g_pixel"),
    *("g_channel", "of_rows", "of_columns", "of_depth", "of_kernel"),
)


@triton.jit(do_not_specialize=_WEIGHTS)  # type: ignore[untyped-decorator]
def _weights(  # type: ignore[no-untyped-def]
    gradient,
    source,
    parts,
    slot_source,
    slot_gradient,
    pixels,
    rows,
    columns,
    picture,
    line,
    depth,
    channels,
    taps,
    kernel_width,
    stride_y,
    stride_x,
    step_y,
    step_x,
    span,
    g_picture,
    g_line,
    g_pixel,
    g_channel,
    g_first,
    of_rows,
    of_columns,
    of_depth,
    of_kernel,
    BIAS: tl.constexpr,
    V: tl.constexpr,
    G: tl.constexpr,
    WIDE: tl.constexpr,
    PRECISION: tl.constexpr,
    P: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
):
    """parts[split, n, k] = Σ over `span` pixels of gradient[n, p] · source[stride · p + shift, c],
    with k a tap and a channel c; with BIAS a last column sums the gradient alone.

    A program of the grid (splits, blocks of n times blocks of k, S). G and V numbers of channels
    of the gradient and of source are read at once.
    """
    blocks = tl.cdiv(channels, N)
    block, part = tl.program_id(1) % blocks, tl.program_id(1) // blocks
    split, splits = tl.program_id(0), tl.num_programs(0)
    slot = tl.program_id(2).to(tl.int64)
    n, k = block * N + tl.arange(0, N), part * K + tl.arange(0, K)
    tap = _over(k, of_depth)
    i = _over(tap, of_kernel)
    shift = (i * step_y * line + (tap - i * kernel_width) * step_x) * depth + k - tap * depth
    size = taps * depth
    shift = tl.where(k < size, shift, k % V)
    m = tl.minimum(n, channels - 1)
    if V > 1:
        shift = tl.max_contiguous(tl.multiple_of(shift, V), V)
    if G > 1:  # channels are a multiple
        m = tl.max_contiguous(tl.multiple_of(n % channels, G), G)
    source += slot * slot_source
    gradient += slot * slot_gradient + g_first
    total = tl.zeros((K, N), tl.float32)
    sums = tl.zeros((P, N), tl.float32)
    for start in range(0, tl.minimum(span, pixels - split * span), P):
        p = split * span + start + tl.arange(0, P)
        sample, row, column = _places(p, pixels, rows, columns, of_rows, of_columns)
        place = (sample * picture + row * stride_y * line + column * stride_x) * depth
        at = sample * g_picture + row * g_line + column * g_pixel
        if V > 1:
            patches = tl.load(source + (place[:, None] + shift[None, :]))
        else:
            patches = tl.load(source + (_side_by_side(place)[:, None] + shift[None, :]))
        if G > 1:
            at = tl.multiple_of(at, G)[:, None] + m[None, :]
            given = tl.load(gradient + at, mask=(p < pixels)[:, None], other=0.0)
        else:
            at = _side_by_side(at)[:, None] + (m * g_channel)[None, :]
            given = tl.load(gradient + at, mask=(p < pixels)[:, None], other=0.0)
        if BIAS:
            sums += given.to(tl.float32)
        if WIDE:
            patches, given = patches.to(tl.float32), given.to(tl.float32)
        total = tl.dot(tl.trans(patches), given, total, input_precision=PRECISION)
    first, wanted = (slot * splits + split) * channels, size + BIAS
    kept = (n < channels)[None, :] & (k < size)[:, None]
    tl.store(parts + ((first + n)[None, :] * wanted + k[:, None]), total, mask=kept)
    if BIAS:
        kept = n + part * channels < channels
        tl.store(parts + (first + n) * wanted + size, tl.sum(sums, 0), mask=kept)


_ADD_UP = ("splits", "channels", "depth", "taps", "real", "extra", "of_depth", "of_wanted")


@triton.jit(do_not_specialize=_ADD_UP)  # type: ignore[untyped-decorator]
def _add_up(  # type: ignore[no-untyped-def]
    parts,
    weights,
    biases,
    splits,
    channels,
    depth,
    taps,
    real,
    extra,
    of_depth,
    of_wanted,
    TILE: tl.constexpr,
):
    """weights (channels, real, taps) and biases = parts (channels, taps · depth + extra) added up,
    one split after the other. A program of the grid (tiles, S)."""
    slot = tl.program_id(1).to(tl.int64)
    e = tl.program_id(0) * TILE + tl.arange(0, TILE)
    wanted = taps * depth + extra
    size = channels * wanted
    total = tl.zeros((TILE,), tl.float32)
    for split in range(splits):
        total += tl.load(parts + (slot * splits + split) * size + e, mask=e < size, other=0.0)
    n = _over(e, of_wanted)
    k = e - n * wanted
    tap = _over(k, of_depth)
    c = k - tap * depth
    at = ((slot * channels + n) * real + c) * taps + tap
    kept = (e < size) & (k < taps * depth) & (c < real)
    tl.store(weights + at, total.to(weights.dtype.element_ty), mask=kept)
    kept = (e < size) & (k == taps * depth)
    tl.store(biases + slot * channels + n, total.to(biases.dtype.element_ty), mask=kept)


# --- convolutions ---------------------------------------------------------------------------------


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
    span: int = SPAN,
) -> tuple[Tensor, Tensor | None]:
    """The gradients of weight and, if `biased`, of the bias (S, O); `laid` is gy, laid out."""
    slots, samples, channels, h, w = gy.shape
    real, (kh, kw), g = weight.shape[2], weight.shape[3:], geometry
    seen = lay_input(x, (kh, kw), g).pictures
    lines, line, depth = seen.shape[2:]
    taps, pixels, size = kh * kw, samples * h * w, kh * kw * depth
    splits, wanted = triton.cdiv(pixels, span), size + biased
    if channels * wanted > MAX_PIXELS:
        raise NotImplementedError("weights of more than 2²² numbers")
    blocks = blocks or Blocks(64, _power(channels, 16, 64), _power(size, 16, 64))
    given, places, at_once = gy, (*gy.stride()[1:2], *gy.stride()[3:], gy.stride(2), 0), 1
    if laid is not None and channels == laid.pictures.shape[-1] and channels >= FEW:
        given, at_once = laid.pictures, _at_once(channels, gy.dtype)
        (a, b, c), top, left = given.stride()[1:4], laid.top, laid.left
        places = (a, b, c, 1, top * b + left * c)
    parts = gy.new_empty(slots, splits, channels, wanted, dtype=torch.float32)
    tiles = triton.cdiv(channels, blocks.channels) * triton.cdiv(size, blocks.depth)
    _weights[(splits, tiles, slots)](
        *(given, seen, parts, seen.stride(0), given.stride(0), pixels, h, w, lines * line, line),
        *(depth, channels, taps, kw, *g.stride, *g.dilation, span, *places),
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
    _add_up[grid](parts, weights, biases, *sizes, TILE=ELEMENTS)
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
    channels = _power(wide, 1, 64)
    tile = max(64, min(ELEMENTS, 4 * ELEMENTS // channels))
    _lay[(triton.cdiv(pixels, tile), triton.cdiv(wide, channels), slots)](
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
    _multiply[(triton.cdiv(pixels, blocks.pixels), parts, len(out))](
        *(source, filters, out if bias is None else bias.contiguous(), out),
        *(source.stride(0), filters.stride(0), out.stride(0), pixels, rows, columns),
        *(lines * line, line, depth, channels, *out.shape[3:], kh, kw, *begins),
        *(laid.top, laid.left, *step, *apart, *every),
        *(1 / rows, 1 / columns, 1 / kw),
        BIAS=bias is not None,
        APART=apart != (1, 1),
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


def _blocks(depth: int, taps: int, channels: int) -> Blocks:
    """For sums over so many channels and taps."""
    wide = _rounded(depth)
    if wide < FEW:
        return Blocks(256, _power(channels, 16, 64), _power(wide * taps, 16, 32))
    deep = next(size for size in (64, 32, 16) if wide % size == 0)
    return Blocks(256 if deep == ROUND else 128, _power(channels, 16, 64), deep)


def _rounded(channels: int) -> int:
    """Channels of a picture that is laid out."""
    return channels if channels < FEW else triton.cdiv(channels, ROUND) * ROUND


def _at_once(channels: int, dtype: torch.dtype) -> int:
    """Numbers of channels in a load of 16 bytes, 1 where they are few."""
    return 1 if channels < FEW else 16 // dtype.itemsize


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
    """out = each window's gradient at its winner, 0 at its other places; grid as `_pool`."""
    first = tl.program_id(0).to(tl.int64) * group
    e = tl.program_id(1) * TILE + tl.arange(0, TILE)
    inside = e < tl.minimum(planes - first, group) * (h * w)
    row = _over(e, of_columns)
    column = e - row * w
    plane = _over(row, of_rows)
    row -= plane * h
    winner = tl.load(winners + first * (h * w) + e, mask=inside, other=0).to(tl.int32)
    given = tl.load(gradient + first * (h * w) + e, mask=inside, other=0.0)
    here = out + first * (height * width) + plane * (height * width) + row * (KH * width)
    here += column * KW
    for place in tl.static_range(KH * KW):
        value = tl.where(winner == place, given, 0.0)
        tl.store(here + place // KW * width + place % KW, value, mask=inside)


class Pool(torch.autograd.Function):
    """The max pool of windows that do not overlap, of x (..., H, W)."""

    @staticmethod
    def forward(x: Tensor, kernel: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """y (..., H // kh, W // kw), and which place of each window won."""
        (kh, kw), (height, width) = kernel, x.shape[-2:]
        h, w = height // kh, width // kw
        if height * width > MAX_PIXELS:
            raise NotImplementedError("pictures of more than 2²² pixels")
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
        whole = (h * kh, w * kw) == (height, width)
        make = gradient.new_empty if whole else gradient.new_zeros  # windows may leave an edge
        out = make((*winners.shape[:-2], height, width))
        planes, (group, tiles) = prod(winners.shape[:-2]), _group(h * w)
        sizes = (planes, group, height, width, h, w, 1 / h, 1 / w)
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

_NORM = ("samples", "channels", "count")


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
    x += first
    y += first
    pivot = tl.load(x).to(tl.float32)
    sums, squares = tl.zeros((B, A), tl.float32), tl.zeros((B, A), tl.float32)
    for b in range(0, samples, B):
        for a in range(0, area, A):
            inside = (b + row < samples) & (a + column < area)
            at = (b + row) * (channels * area) + a + column
            value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
            value = tl.where(inside, value - pivot, 0.0)
            sums += value
            squares += value * value
    off = tl.sum(tl.sum(sums, 1), 0) / count
    variance = tl.sum(tl.sum(squares, 1), 0) / count - off * off
    variance = tl.where(variance < 0, 0.0, variance)  # NaN stays NaN
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
            at = (b + row) * (channels * area) + a + column
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
    x += first
    gradient += first
    out += first
    mine = slot * channels + c
    mean = tl.load(means + mine)
    scale = 1 / tl.sqrt(tl.load(variances + mine) + eps)
    sums, products = tl.zeros((B, A), tl.float32), tl.zeros((B, A), tl.float32)
    for b in range(0, samples, B):
        for a in range(0, area, A):
            inside = (b + row < samples) & (a + column < area)
            at = (b + row) * (channels * area) + a + column
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
            at = (b + row) * (channels * area) + a + column
            value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
            given = tl.load(gradient + at, mask=inside, other=0.0).to(tl.float32)
            given = factor * (given - total - (value - mean) * product)
            tl.store(out + at, given.to(out.dtype.element_ty), mask=inside)


class Norm(torch.autograd.Function):
    """A training-mode batch norm of a stack, x (S, B, C, *) with weight and bias (S, C) or None.

    `own` is any tensor that each slot has of its own: vmap asks even where slots share x.
    """

    @staticmethod
    def forward(
        x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, own: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """y, and mean and biased variance (S, C) in float32."""
        x = x.contiguous()
        if x[0].numel() >= 2**31:
            raise NotImplementedError("batches of more than 32-bit numbers")
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
        x, weight, _, ctx.eps, _ = inputs
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
        return out, weights if affine else None, biases if affine else None, None, None

    @staticmethod
    def vmap(
        info: Any,
        in_dims: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        eps: float,
        own: Tensor,
    ) -> tuple[Any, Any]:
        """The stack's."""
        given = [
            each if each is None else _stacked(each, dim, info.batch_size)
            for each, dim in zip((x, weight, bias), in_dims[:3], strict=True)
        ]
        return Norm.apply(*given, eps, own), (0, 0, 0)


def _stacked(x: Tensor, dim: int | None, slots: int) -> Tensor:
    return x.unsqueeze(0).expand(slots, *x.shape) if dim is None else x.movedim(dim, 0)


def _norm_shape(x: Tensor) -> dict[str, int]:
    """Of the tiles that a program takes."""
    area = prod(x.shape[3:])
    across = _power(area, 1, 128)
    count = x.shape[1] * area
    return {"area": area, "count": count, "B": 2 * ELEMENTS // across, "A": across, "num_warps": 8}
