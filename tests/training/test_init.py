"""Initialization: every scheme against its formula, gains, and one stream per parameter."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from sweepstack import models
from sweepstack.config import schema
from sweepstack.config.errors import InputError
from sweepstack.models import layers
from sweepstack.training import init

SCHEMES = [
    *("xavier", "xavier_uniform", "he", "he_uniform", "lecun", "normal", "uniform"),
    *("zeros", "ones", "orthogonal", "torch"),
]
WITH_GAIN = [scheme for scheme in SCHEMES if scheme not in ("zeros", "torch")]

# Layers with their fan_in and fan_out: channels / groups · pixels of the kernel.
LAYERS = {
    "linear": (nn.Linear(300, 200), 300, 200),
    "conv1d": (nn.Conv1d(40, 80, 5), 200, 400),
    "conv2d": (nn.Conv2d(32, 64, (3, 5)), 480, 960),
    "conv2d_groups": (nn.Conv2d(64, 128, 3, groups=4), 144, 288),
    "conv3d": (nn.Conv3d(8, 24, 3, stride=2), 216, 648),
}


def Init(**given):
    return schema.Init(**{"gain": None, "fan": None, "linear": None, "conv": None, **given})


def draw(module, scheme, gain=None, activation="relu", seed=0, **given):
    return init.draw(module, Init(scheme=scheme, gain=gain, **given), activation, seed)


def std_of(scheme, fan_in, fan_out, gain):
    """The standard deviation that the scheme's formula gives, with `gain` null as its own."""
    if scheme in ("he", "he_uniform"):
        return (gain or math.sqrt(2)) / math.sqrt(fan_in)
    gain = gain or 1.0
    return {
        "xavier": gain * math.sqrt(2 / (fan_in + fan_out)),
        "xavier_uniform": gain * math.sqrt(2 / (fan_in + fan_out)),
        "lecun": gain / math.sqrt(fan_in),
        "normal": gain,
        "uniform": gain / math.sqrt(3),
        "torch": 1 / math.sqrt(3 * fan_in),
    }[scheme]


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize(
    ("scheme", "gain"),
    [(s, gain) for s in WITH_GAIN if s not in ("ones", "orthogonal") for gain in (None, 0.7)]
    + [("torch", None)],
)
def test_weights_have_the_spread_of_the_formula(scheme, gain, kind):
    layer, fan_in, fan_out = LAYERS[kind]
    weight = draw(layer, scheme, gain)["weight"]
    std, n = std_of(scheme, fan_in, fan_out, gain), weight.numel()
    assert weight.shape == layer.weight.shape
    assert weight.std().item() == pytest.approx(std, rel=5 / math.sqrt(2 * n))
    assert abs(weight.mean().item()) < 5 * std / math.sqrt(n)
    if scheme in ("xavier_uniform", "he_uniform", "uniform", "torch"):
        bound = std * math.sqrt(3)
        assert 0.995 * bound < weight.abs().max().item() <= bound * (1 + 1e-6)
    else:  # 4.55% of normal numbers lie beyond two standard deviations
        assert (weight.abs() > 2 * std).float().mean().item() == pytest.approx(0.0455, abs=0.01)
        assert weight.abs().max().item() > 3.3 * std


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("gain", [None, 0.7])
def test_orthogonal_weights_are_orthonormal_up_to_the_gain(gain, kind):
    weight = draw(LAYERS[kind][0], "orthogonal", gain)["weight"].flatten(1)
    if weight.shape[0] > weight.shape[1]:
        weight = weight.T
    product = weight @ weight.T / (gain or 1.0) ** 2
    torch.testing.assert_close(product, torch.eye(len(product)), atol=1e-5, rtol=0)


def test_orthogonal_signs_are_even():
    """Without the sign of R's diagonal, Q of a QR decomposition leans to one side."""
    corners = [
        draw(nn.Linear(2, 2), "orthogonal", seed=seed)["weight"][0, 0] for seed in range(100)
    ]
    assert abs(torch.stack(corners).mean().item()) < 5 * math.sqrt(0.5 / 100)


@pytest.mark.parametrize("kind", LAYERS)
def test_constant_schemes(kind):
    layer = LAYERS[kind][0]
    assert not draw(layer, "zeros")["weight"].any()
    assert (draw(layer, "ones")["weight"] == 1).all()
    assert (draw(layer, "ones", 0.25)["weight"] == 0.25).all()


# --- biases and other parameters ------------------------------------------------------------------


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("kind", LAYERS)
def test_biases_are_zero_but_for_torch(scheme, kind):
    layer, fan_in, _ = LAYERS[kind]
    bias = draw(layer, scheme)["bias"]
    assert bias.shape == layer.bias.shape
    if scheme == "torch":
        assert 0.6 / math.sqrt(fan_in) < bias.abs().max().item() <= 1 / math.sqrt(fan_in)
    else:
        assert not bias.any()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_all_but_linear_layers_and_convolutions_start_as_constructed(scheme):
    module = layers.adapt(nn.Sequential(nn.BatchNorm1d(3), nn.Embedding(4, 3), nn.LayerNorm(3)))
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.uniform_(2, 3)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    drawn = draw(module, scheme)
    for name in ("0.weight", "0.bias", "1.weight", "2.weight", "2.bias"):
        assert torch.equal(drawn[name], before[name])
        drawn[name].zero_()
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_every_parameter_is_drawn_in_float32_on_the_cpu(spec):
    module = models.build(spec("model=resnet").config, (1, 8, 8), 10)
    drawn = draw(module.double(), "he")
    assert {name: value.shape for name, value in drawn.items()} == {
        name: parameter.shape for name, parameter in module.named_parameters()
    }
    kinds = {(value.dtype, value.device.type, value.requires_grad) for value in drawn.values()}
    assert kinds == {(torch.float32, "cpu", False)}


def test_a_tied_weight_starts_as_its_first_owner_says():
    module = nn.Sequential(nn.Embedding(50, 50), nn.Linear(50, 50))
    module[1].weight = module[0].weight
    drawn = draw(module, "zeros")
    assert list(drawn) == ["0.weight", "1.bias"]
    assert torch.equal(drawn["0.weight"], module[0].weight)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_what_is_frozen_or_constant_starts_as_constructed(scheme):
    module = nn.Sequential(*(nn.Linear(3, 3) for _ in range(3)))
    module[0].requires_grad_(False)
    drawn = init.draw(module, Init(scheme=scheme, gain=None), "relu", 0, kept={"1.weight"})
    for name, parameter in module.named_parameters():
        kept = name in ("0.weight", "0.bias", "1.weight")
        assert torch.equal(drawn[name], parameter) == kept, name


def test_keep_draws_nothing():
    module = nn.Sequential(nn.Linear(3, 3), nn.Conv1d(3, 3, 1))
    drawn = draw(module, "keep")
    assert all(torch.equal(drawn[name], p) for name, p in module.named_parameters())


def test_what_does_not_follow_the_generator_is_constant():
    def make(seed):
        torch.manual_seed(seed)
        module = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.BatchNorm1d(3))
        nn.init.constant_(module[0].weight, math.nan)  # a loaded number is whatever it is
        nn.init.zeros_(module[1].bias)
        return module

    assert init.constant(make(0), make(1)) - {"2.num_batches_tracked"} == {
        *("0.weight", "1.bias"),
        *("2.weight", "2.bias", "2.running_mean", "2.running_var"),
    }
    with pytest.raises(InputError, match="each time"):
        init.constant(nn.Linear(2, 3), nn.Linear(2, 4))


# --- seeds ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", [s for s in SCHEMES if s not in ("zeros", "ones")])
def test_numbers_follow_the_seed_alone(scheme):
    module = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    first = draw(module, scheme, seed=1)
    torch.manual_seed(5)
    with torch.no_grad():
        module[0].weight.add_(1)
    again, other = draw(module, scheme, seed=1), draw(module, scheme, seed=2)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["0.weight"], other["0.weight"])
    assert not torch.equal(first["0.weight"], first["1.weight"])


def test_the_process_generator_is_not_touched():
    layer = nn.Linear(8, 8)
    before = torch.get_rng_state()
    draw(layer, "he", seed=2**63 - 1)
    assert torch.equal(before, torch.get_rng_state())


def test_numbers_of_a_seed_stay_as_they_are():
    """A change here changes every trial ever recorded."""
    drawn = draw(nn.Linear(2, 2), "he", seed=7)["weight"]
    expected = torch.tensor([[-0.0368, 3.0286], [-1.2258, -0.8023]])
    torch.testing.assert_close(drawn, expected, atol=1e-4, rtol=0)


# --- gains ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("activation", "gain"),
    [
        ("sigmoid", 1.0),
        ("tanh", 5 / 3),
        ("relu", math.sqrt(2)),
        ("leaky_relu", math.sqrt(2 / (1 + 0.01**2))),
        ("selu", 0.75),
        ("gelu", 1.53353),
        ("elu", 1.24520),
        ("silu", 1.67653),
    ],
)
def test_an_automatic_gain_is_the_activations(activation, gain):
    weight = draw(nn.Linear(3, 3), "ones", "auto", activation)["weight"]
    assert weight[0, 0].item() == pytest.approx(gain, rel=1e-5)


@pytest.mark.parametrize("activation", ["relu", "gelu", "elu", "silu"])
def test_computed_gains_keep_the_second_moment(activation):
    z = torch.randn(4_000_000, generator=torch.Generator().manual_seed(0))
    gain = init.gain_of(Init(scheme="lecun", gain="auto"), "lecun", activation)
    outputs = gain * layers.activation(activation)(z)
    assert outputs.square().mean().item() == pytest.approx(1, abs=5e-3)


@pytest.mark.parametrize("scheme", WITH_GAIN)
def test_the_gain_is_a_factor(scheme):
    layer = nn.Linear(20, 10)
    once, twice = draw(layer, scheme, 1.0)["weight"], draw(layer, scheme, 2.0)["weight"]
    torch.testing.assert_close(twice, 2 * once)


@pytest.mark.parametrize("scheme", ["zeros", "torch"])
@pytest.mark.parametrize("gain", [1.5, "auto"])
def test_a_gain_that_would_change_nothing_is_refused(scheme, gain):
    said = f"init.gain must be null with init={scheme}, where it has no effect, got {gain}"
    with pytest.raises(InputError) as caught:
        draw(nn.Linear(2, 2), scheme, gain)
    assert str(caught.value) == said


def test_an_automatic_gain_needs_a_known_activation():
    with pytest.raises(InputError, match="must be a number or null with model=custom"):
        draw(nn.Linear(2, 2), "he", "auto", activation=None)
    draw(nn.Linear(2, 2), "he", 1.5, activation=None)
    draw(nn.Linear(2, 2), "he", None, activation=None)


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("fan", ["in", "out", "average"])
@pytest.mark.parametrize("scheme", ["xavier", "xavier_uniform", "he", "he_uniform", "lecun"])
def test_the_variance_is_divided_by_the_fan_that_is_asked_for(scheme, fan, kind):
    layer, fan_in, fan_out = LAYERS[kind]
    divisor = {"in": fan_in, "out": fan_out, "average": (fan_in + fan_out) / 2}[fan]
    weight = draw(layer, scheme, fan=fan)["weight"]
    gain = math.sqrt(2) if scheme.startswith("he") else 1.0
    std = gain / math.sqrt(divisor)
    assert weight.std().item() == pytest.approx(std, rel=5 / math.sqrt(2 * weight.numel()))
    own = "average" if scheme.startswith("xavier") else "in"
    assert torch.equal(weight, draw(layer, scheme)["weight"]) == (fan == own)


def test_a_type_of_layer_has_its_own_scheme():
    module = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(16, 8), nn.Linear(8, 2))
    convs, linears = ["0.weight"], ["2.weight", "3.weight"]
    mixed = draw(module, "he", linear="normal", conv="xavier")
    for names, scheme in ((convs, "xavier"), (linears, "normal")):
        plain = draw(module, scheme)
        assert all(torch.equal(mixed[name], plain[name]) for name in names)
    one = draw(module, "he", conv="keep")
    assert torch.equal(one["0.weight"], module[0].weight)
    assert torch.equal(one["2.weight"], draw(module, "he")["2.weight"])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"scheme": "normal", "fan": "in"},
            "init.fan must be null with init=normal, which divides by no fan, got in: "
            "xavier, xavier_uniform, he, he_uniform, lecun have one",
        ),
        (
            {"scheme": "he", "linear": "zeros", "conv": "torch", "gain": 2.0},
            "init.gain must be null with init=zeros and torch, where it has no effect, got 2.0",
        ),
    ],
)
def test_what_no_scheme_reads_is_refused(given, message):
    with pytest.raises(InputError) as caught:
        init.check(Init(**given), "relu")
    assert caught.value.mistakes == [message]
    init.check(Init(**given | {"conv": "he"}), "relu")
