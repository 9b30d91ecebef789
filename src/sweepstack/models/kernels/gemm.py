"""The kernels of `implicit_gemm`, which launches them.

Each program multiplies a block of the weight with the patches of a block of pixels. Pictures are
laid out for it with channels last and zeros around them, so that a patch is read in wide loads
without masks.

Notation: that of `kernels`, and weight (S, O, C, kh, kw). A *tap* is a place in the kernel's
window, `line` the pixels of a row of a picture that is laid out.
"""

from __future__ import annotations

import triton
import triton.language as tl

from sweepstack.models.kernels import over


@triton.jit
def _places(p, pixels, rows, columns, of_rows, of_columns):  # type: ignore[no-untyped-def]
    """Sample, row and column of pixels; those past the end are the last."""
    p = tl.minimum(p, pixels - 1)
    row = over(p, of_columns)
    sample = over(row, of_rows)
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
def lay(  # type: ignore[no-untyped-def]
    source, out, slot_source, slot_out, pixels, rows, line, depth, height, width, wide, top, left,
    of_rows, of_line,
    Q: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """out (B, rows, line, wide) = source (B, C, H, W) moved by top and left, 0 elsewhere. A program
    of the grid (tiles of pixels, blocks of channels, S)."""
    slot = tl.program_id(2).to(tl.int64)
    q, c = tl.program_id(0) * Q + tl.arange(0, Q), tl.program_id(1) * C + tl.arange(0, C)
    row = over(q, of_line)
    x = q - row * line - left
    sample = over(row, of_rows)
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
    source, weight, place, n, channels, depth, line, kernel_height, kernel_width, first_y, first_x,
    step_y, step_x, apart_y, apart_x, of_depth, of_kernel,
    APART: tl.constexpr, V: tl.constexpr, WIDE: tl.constexpr, PRECISION: tl.constexpr,
    P: tl.constexpr, N: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    """The sum of `multiply` where channels are fewer than K: they and the taps are one axis."""
    total = tl.zeros((P, N), tl.float32)
    size = kernel_height * kernel_width * depth
    for start in range(0, size, K):
        k = start + tl.arange(0, K)
        # Free where depth is 1: it is compiled in.
        tap = k // depth if V == 1 else over(k, of_depth)
        i = over(tap, of_kernel)
        dy = first_y + i * step_y
        dx = first_x + (tap - i * kernel_width) * step_x
        known = k < size
        if APART:
            known &= (dy % apart_y == 0) & (dx % apart_x == 0)
            dy, dx = dy // apart_y, dx // apart_x
        shift = tl.where(known, (dy * line + dx) * depth + k - tap * depth, k % V)
        if V > 1:
            shift = tl.max_contiguous(tl.multiple_of(shift, V), V)
            patches = tl.load(source + (place[:, None] + shift[None, :]))
        else:
            patches = tl.load(source + (_side_by_side(place)[:, None] + shift[None, :]))
        used = (n < channels)[:, None] & known[None, :]
        filters = tl.load(weight + n[:, None] * size + k[None, :], mask=used, other=0.0)
        if WIDE:
            patches, filters = patches.to(tl.float32), filters.to(tl.float32)
        total = tl.dot(patches, tl.trans(filters), total, input_precision=PRECISION)
    return total


@triton.jit  # type: ignore[untyped-decorator]
def _sum_of_taps(  # type: ignore[no-untyped-def]
    source, weight, place, n, channels, depth, line, kernel_height, kernel_width, first_y, first_x,
    step_y, step_x, apart_y, apart_x, every_y, every_x,
    APART: tl.constexpr, WIDE: tl.constexpr, PRECISION: tl.constexpr, P: tl.constexpr,
    N: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    """The sum of `multiply`, K channels of one tap after the other."""
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
        t = over(number + 0 * chunks, of_chunks)  # Python's number in the interpreter
        start = (number - t * chunks) * K
        down = over(t, of_count)
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
    *("of_rows", "of_columns", "of_depth", "of_kernel"),
)


@triton.jit(do_not_specialize=_MULTIPLY)  # type: ignore[untyped-decorator]
def multiply(  # type: ignore[no-untyped-def]
    source, weight, bias, out, slot_source, slot_weight, slot_out, pixels, rows, columns, picture,
    line, depth, channels, out_height, out_width, kernel_height, kernel_width, stride_y, stride_x,
    first_y, first_x, top, left, step_y, step_x, apart_y, apart_x, every_y, every_x, of_rows,
    of_columns, of_depth, of_kernel,
    BIAS: tl.constexpr, APART: tl.constexpr, FLAT: tl.constexpr, V: tl.constexpr,
    WIDE: tl.constexpr, PRECISION: tl.constexpr, P: tl.constexpr, N: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
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
    if FLAT:
        total = _sum_of_few(
            *(source, weight, place, n, channels, depth, line, kernel_height, kernel_width),
            *(first_y, first_x, step_y, step_x, apart_y, apart_x, of_depth, of_kernel),
            *(APART, V, WIDE, PRECISION, P, N, K),
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
def weight_gradient(  # type: ignore[no-untyped-def]
    gradient, source, parts, slot_source, slot_gradient, pixels, rows, columns, picture, line,
    depth, channels, taps, kernel_width, stride_y, stride_x, step_y, step_x, span, g_picture,
    g_line, g_pixel, g_channel, g_first, of_rows, of_columns, of_depth, of_kernel,
    BIAS: tl.constexpr, V: tl.constexpr, G: tl.constexpr, WIDE: tl.constexpr,
    PRECISION: tl.constexpr, P: tl.constexpr, N: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
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
    tap = over(k, of_depth)
    i = over(tap, of_kernel)
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
def add_up(  # type: ignore[no-untyped-def]
    parts, weights, biases, splits, channels, depth, taps, real, extra, of_depth, of_wanted,
    TILE: tl.constexpr,
):  # fmt: skip
    """weights (channels, real, taps) and biases = parts (channels, taps · depth + extra) added up,
    one split after the other. A program of the grid (tiles, S)."""
    slot = tl.program_id(1).to(tl.int64)
    e = tl.program_id(0) * TILE + tl.arange(0, TILE)
    wanted = taps * depth + extra
    size = channels * wanted
    total = tl.zeros((TILE,), tl.float32)
    for split in range(splits):
        total += tl.load(parts + (slot * splits + split) * size + e, mask=e < size, other=0.0)
    n = over(e, of_wanted)
    k = e - n * wanted
    tap = over(k, of_depth)
    c = k - tap * depth
    at = ((slot * channels + n) * real + c) * taps + tap
    kept = (e < size) & (k < taps * depth) & (c < real)
    tl.store(weights + at, total.to(weights.dtype.element_ty), mask=kept)
    kept = (e < size) & (k == taps * depth)
    tl.store(biases + slot * channels + n, total.to(biases.dtype.element_ty), mask=kept)
