"""Keys of the `model` and `init` groups, read by `models` and `training.init`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sweepstack.config.schema.fields import dynamic, rule

Activation = Literal["relu", "leaky_relu", "tanh", "sigmoid", "gelu", "elu", "silu", "selu"]


@dataclass(frozen=True, kw_only=True)
class Mlp:
    """A multilayer perceptron; `hidden` lists the units of each hidden layer."""

    name: str
    hidden: tuple[int, ...] = rule(ge=1, le=2**24, items=1000)
    activation: Activation


@dataclass(frozen=True, kw_only=True)
class ConvNet:
    """The two-convolution network of PyTorch courses: `depth` convolutions, `width` channels in
    the first and twice as many in each next, each followed by a 2x2 max pool, then `hidden`."""

    name: str
    width: int = rule(ge=1, le=2**16)
    depth: int = rule(ge=1, le=32)
    kernel_size: int = rule(ge=1, le=1001)
    hidden: tuple[int, ...] = rule(ge=1, le=2**24, items=1000)
    activation: Activation


@dataclass(frozen=True, kw_only=True)
class ResNet:
    """`depth` residual blocks with batch norm in up to three stages; `width` channels at first."""

    name: str
    width: int = rule(ge=1, le=2**16)
    depth: int = rule(ge=1, le=1000)
    activation: Activation


@dataclass(frozen=True, kw_only=True)
class Custom:
    """Any torch module under the trust rule; all other keys are its `arguments`, held as JSON."""

    name: str
    target: str
    arguments: str


@dataclass(frozen=True, kw_only=True)
class Init:
    """How weights start; `gain` null is the scheme's own, `auto` the activation's."""

    scheme: Literal[
        "xavier",
        "xavier_uniform",
        "he",
        "he_uniform",
        "normal",
        "uniform",
        "zeros",
        "ones",
        "lecun",
        "orthogonal",
        "torch",
        "keep",
    ] = dynamic()
    gain: float | Literal["auto"] | None = dynamic(gt=0)
