"""Linear layers on the CPU by oneDNN: one matrix product for each slot of a stack.

torch multiplies float32 matrices with MKL, which on processors other than Intel's leaves half of an
AVX-512 unit idle; oneDNN, which torch has as well, does not (1.6 to 2.4 times as fast here for
64 x 784 x 100). The `nn.Linear` layers of a program's module go through it where they are large
enough, of float32 and on the CPU; all else stays as it is. A slot's
product is the same call at any width; where all slots see one batch (data.order_seed, equal seeds,
evaluation) it is a single product for all of them.

Called by `program.py`. Notation: S slots, B samples, D inputs, H outputs; x (B, D), weight (H, D).
"""

from __future__ import annotations

from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

LEAST = 2**20
"""Multiplications below which a call of its own for each slot costs more than it saves."""


@cache
def available() -> bool:
    """Whether this torch and this processor have what the products need."""
    return (
        torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        and torch.backends.cpu.get_cpu_capability() == "AVX512"
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


def suits(weight: Tensor, samples: int) -> bool:
    """Whether a layer of this weight (H, D) goes through oneDNN for so many samples."""
    return (
        weight.dtype == torch.float32
        and weight.device.type == "cpu"
        and samples * weight.numel() >= LEAST
        and available()
    )


def speed_up(module: nn.Module) -> None:
    """Let the linear layers of a module go through oneDNN wherever they suit it."""
    if not available():
        return
    for layer in module.modules():
        if type(layer) is nn.Linear and "forward" not in vars(layer):
            layer.forward = partial(_forward, layer)  # type: ignore[method-assign]


def _forward(layer: nn.Linear, x: Tensor) -> Tensor:
    weight, bias = layer.weight, layer.bias
    samples = x.shape[:-1].numel()
    if (
        torch.compiler.is_compiling()
        or torch.is_autocast_enabled("cpu")
        or x.dtype != torch.float32
        or x.dim() < 2
        or not suits(weight, samples)
    ):
        return F.linear(x, weight, bias)
    flat = x if x.dim() == 2 else x.reshape(samples, -1)
    if torch.is_grad_enabled() or torch._C._are_functorch_transforms_active():
        product: Tensor = _Linear.apply(flat, weight, bias)
    else:
        product = _product(flat, weight, bias)
    return product if x.dim() == 2 else product.view(*x.shape[:-1], -1)


class _Linear(torch.autograd.Function):
    """x (B, D), weight (H, D), bias (H,) or None -> (B, H); vmap makes `_Stacked` of it."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return _product(x, weight, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, bias = inputs
        ctx.save_for_backward(x, weight)
        ctx.biased = bias is not None

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad
        product = torch.mm if torch.is_grad_enabled() else _matrix_product
        return (
            product(grad, weight) if of_x else None,
            product(grad.T, x) if of_weight else None,
            grad.sum(0) if of_bias and ctx.biased else None,
        )

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple[int | None, ...],
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
    ) -> tuple[Tensor, int]:
        x_at, weight_at, bias_at = in_dims
        x = x if x_at is None else x.movedim(x_at, 0)
        weight = weight if weight_at is None else weight.movedim(weight_at, 0)
        if bias is not None and bias_at is not None:
            bias = bias.movedim(bias_at, 0)
        if weight_at is None or (bias is not None and bias_at is None):
            y = torch.matmul(x, weight.transpose(-1, -2))
            if bias is not None:
                y = y + (bias if bias_at is None else bias.unsqueeze(1))
            return y, 0
        return _Stacked.apply(x, weight, bias), 0


class _Stacked(torch.autograd.Function):
    """x (S, B, D), or (B, D) for all; weight (S, H, D), bias (S, H) or None -> (S, B, H)."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if x.dim() == 2:
            slots, outputs, _ = weight.shape
            flat = None if bias is None else bias.reshape(-1)
            y = _product(x, weight.reshape(slots * outputs, -1), flat)
            return y.view(-1, slots, outputs).transpose(0, 1)
        biases = [None] * len(weight) if bias is None else bias.unbind(0)
        rows = zip(x.unbind(0), weight.unbind(0), biases, strict=True)
        return torch.stack([_product(*row) for row in rows])

    setup_context = staticmethod(_Linear.setup_context)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad
        each = grad.unbind(0)
        found: Tensor | None = None
        if of_x:
            pairs = zip(each, weight.unbind(0), strict=True)
            found = torch.stack([_matrix_product(g, w) for g, w in pairs])
            found = found if x.dim() == 3 else found.sum(0)
        of_weights: Tensor | None = None
        if of_weight and x.dim() == 2:
            every = grad.transpose(1, 2).reshape(-1, grad.shape[1])
            of_weights = _matrix_product(every, x).view(weight.shape)
        elif of_weight:  # transposed together: each operation counts
            pairs = zip(grad.mT.unbind(0), x.mT.unbind(0), strict=True)
            of_weights = torch.stack([_product(g, row, None) for g, row in pairs])
        return found, of_weights, grad.sum(1) if of_bias and ctx.biased else None

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple[int | None, ...],
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
    ) -> tuple[Tensor, int]:
        """Of a module that has a vmap inside: as torch does it."""
        given = (x, weight) if bias is None else (x, weight, bias)

        def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
            y = torch.matmul(x, weight.transpose(-1, -2))
            return y if bias is None else y + bias.unsqueeze(-2)

        return torch.func.vmap(product, in_dims[: len(given)])(*given), 0


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x weight^T + bias."""
    call = torch.ops.mkldnn._linear_pointwise
    y: Tensor = call(_dense(x), _dense(weight), bias, "none", [], "")
    return y


def _dense(matrix: Tensor) -> Tensor:
    """A matrix that lies row by row or column by column."""
    return matrix if 1 in matrix.stride() and 0 not in matrix.stride() else matrix.contiguous()


def _matrix_product(a: Tensor, b: Tensor) -> Tensor:
    """a b."""
    return _product(a, b.T, None)
