"""Update rules for a stack, conf/optimizer: hyperparameters are tensors (S,), a value per trial.

The rules are those of torch.optim, written in place on tensors with a leading axis S. Coefficients
are computed in float64 and then rounded once to the parameters' type, as torch.optim does with
Python floats.

Notation: θ parameters, g gradient, t the step counted from 1, λ weight decay, η learning rate.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sweepstack.config import schema

Hyper = Mapping[str, Tensor]


@dataclass(frozen=True)
class Rule(ABC):
    """One optimizer family; `decays` says whether any slot has weight decay."""

    decays: bool
    name: ClassVar[str]
    moments: ClassVar[tuple[str, ...]] = ()  # names of the tensors kept per parameter

    @staticmethod
    @abstractmethod
    def hyper(config: schema.Optimizer) -> dict[str, float]:
        """The hyperparameters of one trial, besides lr and weight_decay."""

    @abstractmethod
    def coefficients(self, hyper: Hyper, lr: Tensor, step: Tensor) -> dict[str, Tensor]:
        """Per-slot numbers of this step, float64 (S,)."""

    @abstractmethod
    def apply(
        self, param: Tensor, grad: Tensor, moments: Sequence[Tensor], c: dict[str, Tensor]
    ) -> None:
        """Update one (S, ...) tensor in place; `c` broadcasts against it; `grad` may be reused."""

    def update(
        self,
        params: Sequence[Tensor],
        grads: Sequence[Tensor],
        moments: Mapping[str, Sequence[Tensor]],
        hyper: Hyper,
        lr: Tensor,
        step: Tensor,
    ) -> None:
        """Take one step in place.

        Args:
            params: tensors (S, ...).
            grads: gradients of the same shapes; they may be overwritten.
            moments: for each name in `moments`, tensors like `params`, zero at first.
            hyper: float64 (S,) by name, with `weight_decay`.
            lr: float64 (S,), after schedule and scaling.
            step: (S,) number of this step, counted from 1.
        """
        numbers = self.coefficients(hyper, lr, step)
        if self.decays:
            numbers |= self.decay(hyper, lr)
        stacked = torch.stack(list(numbers.values())).to(params[0].dtype)
        for index, (param, grad) in enumerate(zip(params, grads, strict=True)):
            shape = (len(numbers), -1, *([1] * (param.dim() - 1)))
            c = dict(zip(numbers, stacked.view(shape).unbind(0), strict=True))
            if self.decays:
                self.shrink(param, grad, c)
            self.apply(param, grad, [moments[name][index] for name in self.moments], c)

    def decay(self, hyper: Hyper, lr: Tensor) -> dict[str, Tensor]:
        """L2: the coefficient λ of θ in the gradient."""
        return {"decay": hyper["weight_decay"]}

    def shrink(self, param: Tensor, grad: Tensor, c: dict[str, Tensor]) -> None:
        """L2: g ← g + λθ."""
        grad.addcmul_(param, c["decay"])


@dataclass(frozen=True)
class Sgd(Rule):
    """b ← μb + g; θ ← θ - η·(g + μb with Nesterov, else b). Sutskever et al. 2013."""

    name: ClassVar[str] = "sgd"
    moments: ClassVar[tuple[str, ...]] = ("momentum",)

    @staticmethod
    def hyper(config: schema.Optimizer) -> dict[str, float]:
        """Momentum μ and whether it is Nesterov's (1 or 0)."""
        return {"momentum": config.momentum, "nesterov": float(config.nesterov)}

    def coefficients(self, hyper: Hyper, lr: Tensor, step: Tensor) -> dict[str, Tensor]:
        """Weights of g and b in the direction, already times η, so that slots may differ."""
        momentum, nesterov = hyper["momentum"], hyper["nesterov"]
        return {
            "momentum": momentum,
            "of_grad": -lr * nesterov,
            "of_buffer": -lr * (1 - nesterov + nesterov * momentum),
        }

    def apply(
        self, param: Tensor, grad: Tensor, moments: Sequence[Tensor], c: dict[str, Tensor]
    ) -> None:
        """See the class."""
        (buffer,) = moments
        buffer.mul_(c["momentum"]).add_(grad)
        param.addcmul_(grad, c["of_grad"]).addcmul_(buffer, c["of_buffer"])


@dataclass(frozen=True)
class Adam(Rule):
    """m ← β₁m + (1-β₁)g; v ← β₂v + (1-β₂)g²; θ ← θ - η·m̂ / (√v̂ + ε). Kingma & Ba 2015."""

    name: ClassVar[str] = "adam"
    moments: ClassVar[tuple[str, ...]] = ("first", "second")

    @staticmethod
    def hyper(config: schema.Optimizer) -> dict[str, float]:
        """β₁, β₂ and ε."""
        assert isinstance(config, schema.Adam)
        return {"beta1": config.betas[0], "beta2": config.betas[1], "eps": config.eps}

    def coefficients(self, hyper: Hyper, lr: Tensor, step: Tensor) -> dict[str, Tensor]:
        """The bias corrections 1-βᵗ are folded into η, β and ε."""
        beta1, beta2, time = hyper["beta1"], hyper["beta2"], step.to(torch.float64)
        root = (1 - beta2**time).sqrt()
        return {
            "one_minus_beta1": 1 - beta1,
            "beta2": beta2,
            "one_minus_beta2": 1 - beta2,
            "eps": hyper["eps"] * root,
            "rate": -lr * root / (1 - beta1**time),
        }

    def apply(
        self, param: Tensor, grad: Tensor, moments: Sequence[Tensor], c: dict[str, Tensor]
    ) -> None:
        """θ ← θ - η√(1-β₂ᵗ)/(1-β₁ᵗ) · m / (√v + ε√(1-β₂ᵗ)), the same number rearranged."""
        first, second = moments
        first.lerp_(grad, c["one_minus_beta1"].expand_as(first))
        second.mul_(c["beta2"]).addcmul_(grad, grad * c["one_minus_beta2"])
        param.addcmul_(first / second.sqrt().add_(c["eps"]), c["rate"])


@dataclass(frozen=True)
class AdamW(Adam):
    """Adam with θ ← (1 - ηλ)θ before each step. Loshchilov & Hutter 2019."""

    name: ClassVar[str] = "adamw"

    def decay(self, hyper: Hyper, lr: Tensor) -> dict[str, Tensor]:
        """The factor 1 - ηλ."""
        return {"decay": 1 - lr * hyper["weight_decay"]}

    def shrink(self, param: Tensor, grad: Tensor, c: dict[str, Tensor]) -> None:
        """Decoupled: θ ← (1 - ηλ)θ."""
        param.mul_(c["decay"])


@dataclass(frozen=True)
class RmsProp(Rule):
    """v ← αv + (1-α)g²; b ← μb + g / (√v + ε); θ ← θ - ηb. Hinton's lecture 6e, 2012."""

    name: ClassVar[str] = "rmsprop"
    moments: ClassVar[tuple[str, ...]] = ("square", "momentum")

    @staticmethod
    def hyper(config: schema.Optimizer) -> dict[str, float]:
        """α, ε and momentum μ."""
        assert isinstance(config, schema.RmsProp)
        return {"alpha": config.alpha, "eps": config.eps, "momentum": config.momentum}

    def coefficients(self, hyper: Hyper, lr: Tensor, step: Tensor) -> dict[str, Tensor]:
        """See the class."""
        kept = {name: hyper[name] for name in ("alpha", "eps", "momentum")}
        return kept | {"one_minus_alpha": 1 - hyper["alpha"], "rate": -lr}

    def apply(
        self, param: Tensor, grad: Tensor, moments: Sequence[Tensor], c: dict[str, Tensor]
    ) -> None:
        """See the class."""
        square, buffer = moments
        square.mul_(c["alpha"]).addcmul_(grad, grad * c["one_minus_alpha"])
        buffer.mul_(c["momentum"]).add_(grad.div_(square.sqrt().add_(c["eps"])))
        param.addcmul_(buffer, c["rate"])


RULES: dict[str, type[Rule]] = {rule.name: rule for rule in (Sgd, Adam, AdamW, RmsProp)}


def scaled_lr(optimizer: schema.Optimizer, batch: schema.Batch) -> float:
    """η after `batch.lr_scaling`: times k (linear, Goyal et al. 2017, suits SGD) or √k (sqrt,
    Malladi et al. 2022, suits Adam) with k = size / base_size."""
    ratio = batch.size / batch.base_size
    factor = {"none": 1.0, "linear": ratio, "sqrt": math.sqrt(ratio)}[batch.lr_scaling]
    return optimizer.lr * factor
