"""Batch norms of a stack in training, by the mean and variance of each slot's batch."""

from __future__ import annotations

from math import prod
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from sweepstack.models.kernels import ELEMENTS, power

_NORM = ("samples", "channels", "count")


@triton.jit(do_not_specialize=_NORM)  # type: ignore[untyped-decorator]
def _normalize(  # type: ignore[no-untyped-def]
    x, weight, bias, y, means, variances, samples, channels, area, count, eps,
    AFFINE: tl.constexpr, B: tl.constexpr, A: tl.constexpr,
):  # fmt: skip
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
    gradient, x, weight, means, variances, out, weights, biases, samples, channels, area, count,
    eps,
    AFFINE: tl.constexpr, B: tl.constexpr, A: tl.constexpr,
):  # fmt: skip
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
    across = power(area, 1, 128)
    count = x.shape[1] * area
    return {"area": area, "count": count, "B": 2 * ELEMENTS // across, "A": across, "num_warps": 8}
