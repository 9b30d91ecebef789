"""Initialization schemes: conf/init. Draws a trial's first parameters from its seed.

Weights of linear layers and convolutions follow the scheme; their biases are 0 (scheme `torch`
apart). All other parameters keep their constructed values, as do frozen ones and a custom module's
loaded weights (`constant`); with scheme `keep`, all do.

Notation: fan_in and fan_out, the numbers of inputs of one output and of outputs of one input; for
a convolution channels / groups · pixels of the kernel. The gain is the factor that makes up for
the activation after the layer.

Sources: Glorot and Bengio, "Understanding the difficulty of training deep feedforward neural
networks", AISTATS 2010 (xavier); He et al., "Delving deep into rectifiers", ICCV 2015 (he); LeCun
et al., "Efficient BackProp", 1998, and Klambauer et al., "Self-normalizing neural networks", 2017
(lecun); Saxe et al., "Exact solutions to the nonlinear dynamics of learning in deep linear neural
networks", ICLR 2014 (orthogonal).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor, nn

from sweepstack.config import schema
from sweepstack.config.errors import InputError
from sweepstack.data import streams

_NONNEGATIVE = 2**63 - 1
_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_OWN_GAIN = {"he": math.sqrt(2), "he_uniform": math.sqrt(2)}
_WITHOUT_GAIN = ("zeros", "torch", "keep")
_SECOND_MOMENT_GAIN = {
    "gelu": 1.5335304411955353,
    "elu": 1.2451983007007064,
    "silu": 1.6765324703310913,
}


def check(init: schema.Init, activation: str | None) -> None:
    """Find what no scheme of `init` makes use of.

    Raises:
        InputError: a gain or a fan where no scheme has one, or `auto` without a known activation.
    """
    mistakes = []
    used = list(dict.fromkeys(init.schemes))
    shown = f"init={' and '.join(used)}"
    if init.gain is not None and all(scheme in _WITHOUT_GAIN for scheme in used):
        mistakes.append(
            f"init.gain must be null with {shown}, where it has no effect, got {init.gain}"
        )
    elif init.gain == "auto" and activation is None:
        mistakes.append(
            "init.gain must be a number or null with model=custom, whose activation is not known, "
            "got auto"
        )
    if init.fan is not None and not any(scheme in schema.OWN_FAN for scheme in used):
        mistakes.append(
            f"init.fan must be null with {shown}, which divides by no fan, got {init.fan}: "
            f"{', '.join(schema.OWN_FAN)} have one"
        )
    if mistakes:
        raise InputError(mistakes)


def gain_of(init: schema.Init, scheme: str, activation: str | None) -> float:
    """The gain that `init` means for a scheme and a model with that activation (None: unknown).

    null is the scheme's own: √2 for he and he_uniform, otherwise 1. `auto` is the activation's:
    that of `torch.nn.init.calculate_gain` where it knows one, and for gelu, elu and silu
    1 / √E[f(z)²] with z ~ N(0, 1), integrated numerically: 1.5335, 1.2452 and 1.6765. (By the
    same rule relu has √2.)
    """
    if init.gain is None or scheme in _WITHOUT_GAIN:
        return _OWN_GAIN.get(scheme, 1.0)
    if init.gain != "auto":
        return init.gain
    assert activation is not None  # see `check`
    if activation in _SECOND_MOMENT_GAIN:
        return _SECOND_MOMENT_GAIN[activation]
    return nn.init.calculate_gain(activation)  # type: ignore[arg-type]


@dataclass(frozen=True)
class _Weight:
    """What a scheme needs to know: the weight's shape (out, in / groups, *kernel), its fan_in and
    the fan that is asked for, the gain and where random numbers come from."""

    shape: torch.Size
    fan_in: int
    fan: float
    gain: float
    generator: Generator

    def normal(self, std: float) -> Tensor:
        return torch.empty(self.shape).normal_(0.0, std, generator=self.generator)

    def uniform(self, bound: float) -> Tensor:
        return torch.empty(self.shape).uniform_(-bound, bound, generator=self.generator)


def _fan_normal(w: _Weight) -> Tensor:
    """N(0, gain² / fan): xavier with (fan_in + fan_out) / 2 (Glorot and Bengio 2010), he with
    fan_in and gain √2 (He et al. 2015), lecun with fan_in and gain 1."""
    return w.normal(w.gain * math.sqrt(1 / w.fan))


def _fan_uniform(w: _Weight) -> Tensor:
    """U(-a, a), a = gain · √(3 / fan), which has the variance gain² / fan."""
    return w.uniform(w.gain * math.sqrt(3 / w.fan))


def _orthogonal(w: _Weight) -> Tensor:
    """gain · Q: orthonormal rows, or columns, of the weight as an (out, rest) matrix.

    Q of the QR decomposition of a normal matrix, with the signs of R's diagonal, is uniform over
    the orthogonal matrices (Saxe et al. 2014; Mezzadri 2007).
    """
    out, rest = w.shape[0], w.shape.numel() // w.shape[0]
    tall = torch.empty(max(out, rest), min(out, rest)).normal_(generator=w.generator)
    q, r = torch.linalg.qr(tall)
    q *= torch.where(r.diagonal() < 0, -w.gain, w.gain)
    matrix: Tensor = q if out >= rest else q.T
    return matrix.reshape(w.shape)


def _torch(w: _Weight) -> Tensor:
    """U(-a, a), a = 1 / √fan_in, as the layers of torch construct themselves; no gain."""
    return w.uniform(1 / math.sqrt(w.fan_in))


_SCHEMES: dict[str, Callable[[_Weight], Tensor]] = {
    "xavier": _fan_normal,
    "xavier_uniform": _fan_uniform,
    "he": _fan_normal,
    "he_uniform": _fan_uniform,
    "lecun": _fan_normal,
    "normal": lambda w: w.normal(w.gain),
    "uniform": lambda w: w.uniform(w.gain),
    "zeros": lambda w: torch.zeros(w.shape),
    "ones": lambda w: torch.full(w.shape, w.gain),
    "orthogonal": _orthogonal,
    "torch": _torch,
}


def constant(module: nn.Module, again: nn.Module) -> set[str]:
    """Names of the parameters and buffers that do not depend on a seed: loaded weights, constants.

    Args:
        module, again: the same, constructed under two states of torch's generator.

    Raises:
        InputError: they differ in names or shapes.
    """
    one, other = module.state_dict(), again.state_dict()
    if {name: t.shape for name, t in one.items()} != {name: t.shape for name, t in other.items()}:
        raise InputError(
            "the model must have the same parameters each time it is constructed, their names or "
            "shapes differ"
        )
    return {n for n, t in one.items() if torch.allclose(t, other[n], 0, 0, equal_nan=True)}


def drawn(module: nn.Module, kept: Collection[str] = ()) -> list[str]:
    """Names of the parameters that a scheme draws: those of linear layers and convolutions, but for
    frozen ones and those in `kept`."""
    return _drawn(module, _owners(module), kept)


def _drawn(module: nn.Module, owned: _Owners, kept: Collection[str]) -> list[str]:
    return [
        name
        for name, parameter in module.named_parameters()
        if isinstance(owned[parameter][0], _LAYERS)
        and owned[parameter][1] in ("weight", "bias")
        and parameter.requires_grad
        and name not in kept
    ]


_Owners = dict[nn.Parameter, tuple[nn.Module, str]]


def _owners(module: nn.Module) -> _Owners:
    """For each parameter the first layer that has it, and its name there."""
    owners: _Owners = {}
    for layer in module.modules():
        for leaf, parameter in layer.named_parameters(recurse=False):
            owners.setdefault(parameter, (layer, leaf))
    return owners


def draw(
    module: nn.Module,
    init: schema.Init,
    activation: str | None,
    seed: int,
    kept: Collection[str] = (),
) -> dict[str, Tensor]:
    """Draw the initial parameters of one trial.

    Each parameter has a stream of its own, by its place in `module.named_parameters()`, so the
    numbers depend on nothing but the module's shapes, `init` and `seed`.

    Args:
        module: the template; it is only read.
        activation: the model's activation for `init.gain=auto`, None when it is not known.
        seed: the trial's.
        kept: names of parameters that keep their constructed values.

    Returns:
        A new float32 CPU tensor for every parameter, by name.

    Raises:
        InputError: see `check`.
    """
    check(init, activation)
    owners, values = _owners(module), {}
    chosen = set(_drawn(module, owners, kept))
    for index, (name, parameter) in enumerate(module.named_parameters()):
        layer, leaf = owners[parameter]
        scheme = init.schemes[0 if isinstance(layer, nn.Linear) else 1]
        if name not in chosen or scheme == "keep":
            values[name] = parameter.detach().to("cpu", torch.float32, copy=True)
            continue
        key = streams.derive(seed, streams.INIT, index) & _NONNEGATIVE
        generator = Generator().manual_seed(key)
        gain = gain_of(init, scheme, activation)
        values[name] = _draw(layer, leaf, scheme, init.fan, gain, generator)
    return values


def _draw(
    layer: Any, leaf: str, scheme: str, fan: str | None, gain: float, generator: Generator
) -> Tensor:
    """The weight or bias of a linear layer or convolution."""
    out, inputs, *kernel = layer.weight.shape
    pixels = math.prod(kernel)
    groups = 1 if isinstance(layer, nn.Linear) else layer.groups
    shape = getattr(layer, leaf).shape
    fans = {"in": inputs * pixels, "out": out // groups * pixels}
    fans["average"] = (fans["in"] + fans["out"]) / 2
    weight = _Weight(
        shape, fans["in"], fans[fan or schema.OWN_FAN.get(scheme, "in")], gain, generator
    )
    if leaf == "weight":
        return _SCHEMES[scheme](weight)
    return _torch(weight) if scheme == "torch" else torch.zeros(shape)
