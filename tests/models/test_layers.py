"""Dropout, BatchNorm and adapt: what torch computes, per slot, without shared state."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.func import functional_call, vmap

from sweepstack.config.errors import InputError
from sweepstack.data import streams
from sweepstack.models.layers import (
    BatchNorm,
    Dropout,
    activation,
    adapt,
    batch_norms,
    dropouts,
    restore,
)

# --- activations ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "at_minus_one"),
    [
        ("relu", 0.0),
        ("leaky_relu", -0.01),
        ("tanh", -0.761594),
        ("sigmoid", 0.268941),
        ("gelu", -0.158655),
        ("elu", -0.632121),
        ("silu", -0.268941),
        ("selu", -1.111331),
    ],
)
def test_activation_values(name, at_minus_one):
    assert activation(name)(torch.tensor(-1.0)).item() == pytest.approx(at_minus_one, abs=1e-5)


# --- dropout --------------------------------------------------------------------------------------


def _dropped(layer, key, p, x):
    return functional_call(layer, {"key": key, "p": p}, (x,))


@pytest.mark.parametrize(
    ("shape", "channels"), [((16, 7), False), ((4, 3, 5, 5), False), ((4, 3, 5, 5), True)]
)
def test_a_mask_is_the_same_in_a_stack_as_alone(shape, channels):
    layer = Dropout(None, channels)
    keys = torch.tensor([streams.derive(seed, streams.DROPOUT, 9) for seed in range(5)])
    ps = torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9])
    x = torch.rand(5, *shape) + 1
    together = vmap(lambda k, p, v: _dropped(layer, k, p, v))(keys, ps, x)
    for slot in range(5):
        assert torch.equal(together[slot], _dropped(layer, keys[slot], ps[slot], x[slot]))
    masks = (together == 0).flatten(1)
    assert len({tuple(mask.tolist()) for mask in masks}) == 5


@pytest.mark.parametrize("p", [0.0, 0.2, 0.5, 0.9])
def test_dropout_zeroes_a_share_p_and_keeps_the_mean(p):
    y = _dropped(Dropout(None), torch.tensor(7), torch.tensor(p), torch.ones(400, 500))
    assert (y == 0).float().mean().item() == pytest.approx(p, abs=0.005)
    assert y.max().item() == pytest.approx(1 / (1 - p))
    assert y.mean().item() == pytest.approx(1, abs=0.03)


def test_dropout_of_channels_zeroes_whole_channels():
    y = _dropped(Dropout(None, True), torch.tensor(7), torch.tensor(0.4), torch.ones(50, 40, 3, 3))
    per_channel = y.flatten(2)
    assert (per_channel == per_channel[..., :1]).all()
    assert (per_channel[..., 0] == 0).float().mean().item() == pytest.approx(0.4, abs=0.05)


def test_gradient_passes_only_where_numbers_were_kept():
    x = torch.ones(20, 20, requires_grad=True)
    y = _dropped(Dropout(None), torch.tensor(3), torch.tensor(0.5), x)
    (grad,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(grad, y.detach())


def test_a_new_key_gives_a_new_mask_and_eval_none():
    layer, x, p = Dropout(None), torch.ones(30, 30), torch.tensor(0.5)
    first, again, other = (_dropped(layer, torch.tensor(k), p, x) for k in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert _dropped(layer.eval(), torch.tensor(1), p, x) is x


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_the_mask_does_not_depend_on_precision(dtype):
    p, key, x = torch.tensor(0.3), torch.tensor(5), torch.ones(64, 64)
    y = _dropped(Dropout(None), key, p, x.to(dtype))
    assert y.dtype == dtype
    assert torch.equal(y == 0, _dropped(Dropout(None), key, p, x) == 0)


def test_dropout_takes_no_room_in_a_state_dict():
    assert not Dropout(0.5).state_dict()
    assert Dropout(0.5).fixed
    assert not Dropout(None).fixed


# --- batch norm -----------------------------------------------------------------------------------

SHAPES = [(8, 3), (8, 3, 5), (8, 3, 4, 4), (4, 3, 2, 2, 2)]
TORCH = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}


def _torch_norm(shape, seed):
    norm = TORCH[len(shape)](3).double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        norm.weight.uniform_(0.5, 2, generator=generator)
        norm.bias.uniform_(-1, 1, generator=generator)
    return norm


def _trained(norm, x):
    """Output, and gradients of (x, weight, bias)."""
    x = x.clone().requires_grad_()
    y = norm(x)
    grads = torch.autograd.grad((y**3).sum(), [x, norm.weight, norm.bias])
    return y, grads


@pytest.mark.parametrize("shape", SHAPES)
def test_batch_norm_is_torchs_over_several_steps(shape):
    theirs = _torch_norm(shape, 0)
    ours = adapt(nn.Sequential(copy.deepcopy(theirs)))[0]
    generator = torch.Generator().manual_seed(1)
    for _ in range(4):
        x = torch.randn(shape, generator=generator, dtype=torch.float64) * 3 + 1
        (y, grads), (y_torch, grads_torch) = _trained(ours, x), _trained(theirs, x)
        torch.testing.assert_close(y, y_torch)
        torch.testing.assert_close(grads, grads_torch)
        assert not torch.equal(ours.running_mean, theirs.running_mean)  # not in place
        ours.running_mean, ours.running_var = ours.updated
        torch.testing.assert_close(ours.running_mean, theirs.running_mean)
        torch.testing.assert_close(ours.running_var, theirs.running_var)
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x))
    assert not any(tensor.requires_grad for tensor in ours.updated)


@pytest.mark.parametrize("shape", SHAPES)
def test_batch_norm_is_torchs_in_every_slot(shape):
    slots = [_torch_norm(shape, seed) for seed in range(3)]
    template = BatchNorm(3).double()
    names = ("weight", "bias", "running_mean", "running_var")
    tensors = {
        name: torch.stack([getattr(norm, name).detach() for norm in slots]).requires_grad_(i < 2)
        for i, name in enumerate(names)
    }
    x = torch.randn(3, *shape, dtype=torch.float64, requires_grad=True)

    def run(tensors, x):
        y = functional_call(template, tensors, (x,))
        return y, template.updated

    y, (mean, var) = vmap(run)(tensors, x)
    grads = torch.autograd.grad((y**3).sum(), [x, tensors["weight"], tensors["bias"]])
    template.eval()
    moved = {**tensors, "running_mean": mean, "running_var": var}
    evaluated = vmap(lambda tensors, x: functional_call(template, tensors, (x,)))(moved, x)
    for slot, norm in enumerate(slots):
        y_torch, grads_torch = _trained(norm, x[slot].detach())
        torch.testing.assert_close(y[slot], y_torch)
        torch.testing.assert_close([grad[slot] for grad in grads], list(grads_torch))
        torch.testing.assert_close(mean[slot], norm.running_mean)
        torch.testing.assert_close(var[slot], norm.running_var)
        torch.testing.assert_close(evaluated[slot], norm.eval()(x[slot]))


def test_batch_norm_in_bf16_keeps_float32_statistics():
    norm, x = BatchNorm(3), torch.randn(2, 16, 3)
    state = {name: torch.stack([value, value]) for name, value in norm.state_dict().items()}

    def run(state, x):
        return functional_call(norm, state, (x,)), norm.updated

    y, updated = vmap(run)(state, x.bfloat16())
    assert y.dtype == torch.bfloat16
    assert [tensor.dtype for tensor in updated] == [torch.float32] * 2
    torch.testing.assert_close(y[0], norm(x[0].bfloat16()))
    torch.testing.assert_close(y[1].float(), norm(x[1]), atol=0.05, rtol=0.05)


def test_batch_norm_refuses_one_value_per_channel():
    norm = BatchNorm(3)
    with pytest.raises(ValueError, match=r"more than one value .* got a batch of shape \(1, 3\)"):
        norm(torch.randn(1, 3))
    norm(torch.randn(1, 3, 2, 2))
    norm.eval()(torch.randn(1, 3))


# --- adapt ----------------------------------------------------------------------------------------


class Net(nn.Module):
    """Uses one dropout layer twice in a forward pass; the layer has three names in the module."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(6, eps=0.1, momentum=0.3, affine=False)
        self.drop = self.again = nn.Dropout(0.25)
        self.body = nn.Sequential(nn.Linear(6, 6), nn.Dropout1d(0.5), self.drop)

    def forward(self, x):
        return self.drop(self.drop(x)) + 0 * self.body(self.norm(x))


def test_adapt_replaces_by_name_and_keeps_constants():
    module = adapt(Net().eval())
    assert [name for name, _ in dropouts(module)] == ["drop", "body.1"]
    assert [name for name, _ in batch_norms(module)] == ["norm"]
    drop, by_channel = (layer for _, layer in dropouts(module))
    assert (drop.p.item(), drop.fixed, drop.channels, drop.training) == (0.25, True, False, False)
    assert (by_channel.p.item(), by_channel.channels) == (0.5, True)
    assert module.body[2] is module.again is module.drop
    assert (module.norm.eps, module.norm.momentum, module.norm.weight) == (0.1, 0.3, None)


def test_adapt_keeps_learned_numbers():
    norm = nn.BatchNorm2d(2)
    norm(torch.randn(8, 2, 3, 3))
    norm.weight.data.fill_(3.0)
    wanted = {k: v.clone() for k, v in norm.state_dict().items() if k != "num_batches_tracked"}
    state = adapt(nn.Sequential(norm)).state_dict()
    torch.testing.assert_close(state, {f"0.{name}": value for name, value in wanted.items()})


def test_a_layer_that_runs_twice_has_two_masks_the_same_each_time():
    module = adapt(Net())
    x = torch.ones(50, 6)
    tensors = {"drop.key": torch.tensor(4), "body.1.key": torch.tensor(5)}
    first = functional_call(module, tensors, (x,))
    kept_twice = (first != 0).float().mean().item()
    assert kept_twice == pytest.approx(0.75**2, abs=0.08)
    assert torch.equal(first, functional_call(module, tensors, (x,)))
    assert torch.equal(first, functional_call(copy.deepcopy(module), tensors, (x,)))


def test_torchs_dropout_comes_back_in_every_place_of_a_layer():
    twice = nn.Dropout(0.3)
    net = adapt(nn.Sequential(twice, nn.Linear(2, 2), twice))
    restore(net, 0.0)
    assert [type(layer) for layer in net] == [nn.Dropout, nn.Linear, nn.Dropout]
    assert (net[0].p, net[2].p) == pytest.approx((0.3, 0.3))


def test_adapt_wraps_a_module_that_is_itself_replaced():
    module = adapt(nn.BatchNorm1d(2))
    assert [name for name, _ in batch_norms(module)] == ["0"]


@pytest.mark.parametrize(
    ("layer", "said"),
    [
        (nn.AlphaDropout(0.1), "AlphaDropout"),
        (nn.FeatureAlphaDropout(0.1), "FeatureAlphaDropout"),
        (nn.RReLU(), "RReLU"),
        (nn.FractionalMaxPool2d(2, 1), "FractionalMaxPool2d"),
        (nn.LSTM(2, 2, num_layers=2, dropout=0.1), "LSTM with dropout 0.1"),
        (nn.MultiheadAttention(2, 1, dropout=0.2), "MultiheadAttention with dropout 0.2"),
        (nn.SyncBatchNorm(2), "SyncBatchNorm"),
        (nn.BatchNorm1d(2, momentum=None), "momentum"),
        (nn.BatchNorm1d(2, track_running_stats=False), "track_running_stats=True"),
        (nn.InstanceNorm1d(2, track_running_stats=True), "track_running_stats=False"),
    ],
)
def test_adapt_refuses_what_it_cannot_key_per_trial(layer, said):
    with pytest.raises(InputError, match=rf"the model's layer 'inner\.0' is .*{said}"):
        adapt(_nested(layer))


def _nested(layer):
    module = nn.Module()
    module.inner = nn.Sequential(layer)
    return module


def test_adapt_reports_all_layers_at_once():
    with pytest.raises(InputError) as caught:
        adapt(nn.Sequential(nn.RReLU(), nn.LSTM(2, 2), nn.AlphaDropout(0.1)))
    assert len(caught.value.mistakes) == 2
