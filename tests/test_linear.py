"""Linear layers by oneDNN give what torch's own give: alone, in a stack, with a shared batch."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.func import functional_call, vmap
from torch.nn import functional as F

from iolaus import linear

S, B, D, H, C = 3, 8, 30, 12, 5

needs_onednn = pytest.mark.skipif(
    not linear.available(), reason="this torch or processor has no AVX-512 oneDNN"
)


@pytest.fixture(autouse=True)
def small_layers_too(monkeypatch):
    monkeypatch.setattr(linear, "LEAST", 1)


def module(bias=True):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(D, H, bias=bias), nn.Tanh(), nn.Linear(H, C, bias=bias))


def stacked(net):
    torch.manual_seed(1)
    shapes = {name: (S, *value.shape) for name, value in net.named_parameters()}
    return {name: torch.randn(shape).requires_grad_() for name, shape in shapes.items()}


def loss_of(net):
    return lambda params, x: functional_call(net, params, (x,)).square().mean()


def gradients(net, params, x, axis):
    losses = vmap(loss_of(net), (0, axis))(params, x)
    return [losses.detach(), *torch.autograd.grad(losses.sum(), list(params.values()))]


@needs_onednn
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("axis", "shape"), [(0, (S, B, D)), (None, (B, D)), (0, (S, 2, B, D))])
def test_losses_and_gradients_of_a_stack_are_torchs(monkeypatch, bias, axis, shape):
    net, x = module(bias), torch.randn(shape)
    params = stacked(net)
    expected = gradients(net, params, x, axis)
    linear.speed_up(net)
    calls = []
    product = linear._product
    monkeypatch.setattr(linear, "_product", lambda *a: calls.append(a) or product(*a))
    found = gradients(net, params, x, axis)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    assert calls, "nothing went through oneDNN"


@needs_onednn
def test_a_slot_of_a_stack_has_the_bits_of_a_stack_of_its_own():
    net = module()
    linear.speed_up(net)
    params, x = stacked(net), torch.randn(S, B, D)
    whole = gradients(net, params, x, 0)
    for slot in range(S):
        own = {n: v[slot : slot + 1].detach().requires_grad_() for n, v in params.items()}
        alone = gradients(net, own, x[slot : slot + 1], 0)
        for one, other in zip(alone, whole, strict=True):
            assert torch.equal(one[0], other[slot])


@needs_onednn
@pytest.mark.parametrize("shape", [(B, D), (2, B, D)])
def test_one_trial_is_evaluated_as_torch_does(shape):
    net, x = module(), torch.randn(shape)
    with torch.no_grad():
        expected = net(x)
        linear.speed_up(net)
        torch.testing.assert_close(net(x), expected, rtol=1e-4, atol=1e-5)


@needs_onednn
def test_the_inputs_of_a_first_layer_may_need_gradients_too():
    net, x = module(), torch.randn(B, D)
    params = stacked(net)

    def of_x(shared):
        total = vmap(loss_of(net), (0, None))(params, shared).sum()
        return torch.autograd.grad(total, shared)[0]

    expected = of_x(x.clone().requires_grad_())
    linear.speed_up(net)
    torch.testing.assert_close(of_x(x.clone().requires_grad_()), expected, rtol=1e-4, atol=1e-5)


@needs_onednn
def test_a_module_with_a_vmap_of_its_own_works():
    layer = nn.Linear(D, H)
    linear.speed_up(layer)
    weights, x = torch.randn(S, H, D, requires_grad=True), torch.randn(S, 4, B, D)

    def outputs(weight, rows):
        one = lambda row: functional_call(layer, {"weight": weight}, (row,))  # noqa: E731
        return vmap(one)(rows)

    found = vmap(outputs)(weights, x)
    expected = torch.einsum("snbd,shd->snbh", x, weights) + layer.bias
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    (grad,) = torch.autograd.grad(found.sum(), weights)
    torch.testing.assert_close(grad, x.sum((1, 2)).unsqueeze(1).expand_as(grad), atol=1e-3, rtol=0)


@needs_onednn
def test_one_matrix_of_weights_for_many_inputs_is_no_stack():
    layer, x = nn.Linear(D, H), torch.randn(S, B, D)
    expected = F.linear(x, layer.weight, layer.bias)
    linear.speed_up(layer)
    with torch.no_grad():
        torch.testing.assert_close(vmap(layer)(x), expected, rtol=1e-4, atol=1e-5)


@needs_onednn
def test_half_precision_and_small_layers_stay_torchs(monkeypatch):
    def refuse(*given):
        raise AssertionError("this was not to go through oneDNN")

    monkeypatch.setattr(linear, "_product", refuse)
    layer = nn.Linear(D, H)
    linear.speed_up(layer)
    with torch.no_grad():
        with torch.autocast("cpu", torch.bfloat16):
            assert layer(torch.randn(B, D)).dtype == torch.bfloat16
        layer.double()(torch.randn(B, D, dtype=torch.float64))
        monkeypatch.setattr(linear, "LEAST", B * D * H + 1)
        layer.float()(torch.randn(B, D))


def test_without_onednn_a_module_stays_as_it_is(monkeypatch):
    monkeypatch.setattr(linear, "available", lambda: False)
    layer = nn.Linear(D, H)
    linear.speed_up(layer)
    assert "forward" not in vars(layer)
    assert not linear.suits(layer.weight, B)
