"""A stack's convolutions give vmap's numbers in each way."""

from __future__ import annotations

import itertools
from contextlib import nullcontext

import pytest
import torch
from engine_support import Same
from torch import nn
from torch.func import vmap
from torch.nn import functional as F

from sweepstack.models import convolution
from sweepstack.models.autotune import Plan, Rules

WAYS = ("grouped", "loop", "product")
"""Those of torch; test_kernels.py has the kernels."""
PLANS = [*itertools.product(WAYS, (False, True)), ("mixed", True)]


def differences(function, arguments, dims, plan):
    """Of the result and the gradients, with the plan and with vmap alone."""
    leaves = [a for a in arguments if a is not None and a.requires_grad]
    expected = vmap(function, dims)(*arguments)
    with Rules(plan):
        found = vmap(function, dims)(*arguments)
    along = torch.randn(expected.shape, dtype=expected.dtype)
    pairs = zip(
        (found, *torch.autograd.grad(found, leaves, along)),
        (expected, *torch.autograd.grad(expected, leaves, along)),
        strict=True,
    )
    return [float((a - b).detach().abs().max()) for a, b in pairs]


def tensors(*shapes):
    return [torch.randn(s, dtype=torch.float64, requires_grad=True) for s in shapes]


@pytest.mark.parametrize(("way", "last"), PLANS)
def test_each_way_gives_vmaps_numbers(way, last, monkeypatch):
    """For strides, paddings, dilations and kernels that are no squares, and a portion of slots."""
    monkeypatch.setattr(convolution, "AT_ONCE", 9000)
    torch.manual_seed(0)
    for kernel, stride, padding, dilation, groups in itertools.product(
        ((1, 1), (3, 5), (2, 2)), (1, (2, 3)), (0, 2, (1, 0), "valid"), (1, 2), (1, 2)
    ):
        if way in ("product", "mixed") and groups > 1:
            continue
        x, weight, bias = tensors((3, 4, 4, 11, 10), (3, 6, 4 // groups, *kernel), (3, 6))

        def convolve(x, w, b=None, given=(stride, padding, dilation, groups)):
            return F.conv2d(x, w, b, *given)

        for given in ((x, weight, bias), (x, weight)):
            found = differences(convolve, given, (0,) * len(given), Plan(last, Same(way)))
            assert max(found) < 1e-10, (kernel, stride, padding, dilation, groups)


class Odd(nn.Module):
    """What people do: padding by mode, depthwise, a picture without batch, a vmap inside, no bias,
    a weight that is not trained."""

    def __init__(self):
        super().__init__()
        self.wrapped = nn.Conv2d(2, 4, 3, padding=1, padding_mode="circular", bias=False)
        self.depthwise = nn.Conv2d(4, 4, 3, padding=1, groups=4)

    def forward(self, x):
        x = self.depthwise(self.wrapped(x)).tanh()
        alone = F.conv2d(x[0], self.wrapped.weight.transpose(0, 1))
        inner = vmap(lambda w: F.conv2d(x[:, :2], w.unsqueeze(0)))(self.wrapped.weight)
        fixed = F.conv2d(x, torch.ones(1, 4, 2, 2, dtype=x.dtype))
        return alone.square().sum() + inner.sin().sum() + fixed.square().sum()


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize(("way", "last"), [("loop", True), ("grouped", False)])
def test_modules_of_other_people_run_too(way, last, shared):
    torch.manual_seed(0)
    module = Odd().double()
    names = dict(module.named_parameters())
    rows = tensors(*((3, *p.shape) for p in names.values()))
    (x,) = tensors((2, 2, 6, 6) if shared else (3, 2, 2, 6, 6))

    def function(x, *rows):
        return torch.func.functional_call(module, dict(zip(names, rows, strict=True)), (x,))

    dims = (None if shared else 0, *[0] * len(rows))
    assert max(differences(function, (x, *rows), dims, Plan(last, Same(way)))) < 1e-9


@pytest.mark.parametrize("way", WAYS)
def test_autocast_reaches_the_ways(way):
    torch.manual_seed(0)
    x, weight, bias = (
        t.float().detach().requires_grad_()
        for t in tensors((2, 3, 4, 6, 6), (2, 5, 4, 3, 3), (2, 5))
    )
    found = []
    for rules in (Rules(Plan(True, Same(way))), None):
        with torch.autocast("cpu", torch.bfloat16), rules or nullcontext():
            if rules:
                y = vmap(F.conv2d)(x, weight, bias)
            else:  # vmap alone goes past the CPU's autocast
                rows = zip(x, weight, bias, strict=True)
                y = torch.stack([F.conv2d(*row, padding=0) for row in rows])
        assert y.dtype == torch.bfloat16
        found.append([y, *torch.autograd.grad(y.float().square().sum(), (x, weight, bias))])
    for one, other in zip(*found, strict=True):
        assert one.dtype == other.dtype
        error = (one - other).float().norm().detach()
        assert float(error / other.float().norm().detach()) < 2e-2
