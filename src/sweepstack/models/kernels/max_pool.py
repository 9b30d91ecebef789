"""Max pools of windows that do not overlap, of a stack's pictures."""

from __future__ import annotations

from math import prod
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from sweepstack.models.kernels import ELEMENTS, MAX_PIXELS, over

_POOL = ("planes", "group", "height", "width", "h", "w", "of_rows", "of_columns")


@triton.jit(do_not_specialize=_POOL)  # type: ignore[untyped-decorator]
def _pool(  # type: ignore[no-untyped-def]
    x, y, winners, planes, group, height, width, h, w, of_rows, of_columns,
    KH: tl.constexpr, KW: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """y = the largest number of each window, and its place there; NaN wins, as in torch. A program
    of the grid (groups of planes, tiles of a group)."""
    first = tl.program_id(0).to(tl.int64) * group
    e = tl.program_id(1) * TILE + tl.arange(0, TILE)
    inside = e < tl.minimum(planes - first, group) * (h * w)
    row = over(e, of_columns)
    column = e - row * w
    plane = over(row, of_rows)
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
    gradient, winners, out, planes, group, height, width, h, w, of_rows, of_columns,
    KH: tl.constexpr, KW: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """out = each window's gradient at its winner, 0 at its other places; grid as `_pool`."""
    first = tl.program_id(0).to(tl.int64) * group
    e = tl.program_id(1) * TILE + tl.arange(0, TILE)
    inside = e < tl.minimum(planes - first, group) * (h * w)
    row = over(e, of_columns)
    column = e - row * w
    plane = over(row, of_rows)
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
