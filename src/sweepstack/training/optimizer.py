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
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from sweepstack.config import schema

Hyper = Mapping[str, Tensor]


@dataclass(frozen=True)
class Rule(ABC):
    """One optimizer family; `decays` says whether any slot has weight decay."""

    decays: bool
    name: ClassVar[str]
    moments: ClassVar[tuple[str, ...]] = ()  # names of the tensors kept per parameter
    shaped: ClassVar[bool] = False  # whether it needs the parameters' shapes and not just a row
    alone: ClassVar[bool] = False  # whether its trials train one by one

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

    def suited(self, module: nn.Module, trained: Mapping[str, Tensor]) -> Rule:
        """The rule for a module's trained parameters."""
        return self

    def among(self, numbers: slice) -> Rule:
        """The rule for some of these parameters, by their places."""
        return self

    def decay(self, hyper: Hyper, lr: Tensor) -> dict[str, Tensor]:
        """L2: the coefficient λ of θ in the gradient."""
        return {"decay": hyper["weight_decay"]}

    def shrink(self, param: Tensor, grad: Tensor, c: dict[str, Tensor]) -> None:
        """L2: g ← g + λθ."""
        grad.addcmul_(param, c["decay"])


@dataclass(frozen=True)
class Sgd(Rule):
    """b ← μb + (1-τ)g; θ ← θ - η·(g + μb with Nesterov, else b). Sutskever et al. 2013.

    The dampening τ spares the first step, as in torch; `dampens` says whether any slot has it.
    """

    dampens: bool = False
    name: ClassVar[str] = "sgd"
    moments: ClassVar[tuple[str, ...]] = ("momentum",)

    @staticmethod
    def hyper(config: schema.Optimizer) -> dict[str, float]:
        """Momentum μ, whether it is Nesterov's (1 or 0), and its dampening τ."""
        assert isinstance(config, schema.Sgd)
        numbers = {"momentum": config.momentum, "nesterov": float(config.nesterov)}
        return numbers | ({"dampening": config.dampening} if schema.dampens(config) else {})

    def coefficients(self, hyper: Hyper, lr: Tensor, step: Tensor) -> dict[str, Tensor]:
        """Weights of g and b in the direction, already times η, so that slots may differ."""
        momentum, nesterov = hyper["momentum"], hyper["nesterov"]
        numbers = {
            "momentum": momentum,
            "of_grad": -lr * nesterov,
            "of_buffer": -lr * (1 - nesterov + nesterov * momentum),
        }
        return numbers | ({"new": 1 - hyper["dampening"] * (step > 1)} if self.dampens else {})

    def apply(
        self, param: Tensor, grad: Tensor, moments: Sequence[Tensor], c: dict[str, Tensor]
    ) -> None:
        """See the class."""
        (buffer,) = moments
        buffer.mul_(c["momentum"]).add_(grad * c["new"] if self.dampens else grad)
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


@dataclass(frozen=True)
class Nadam(Adam):
    """Adam with Nesterov's momentum: θ ← θ - η·(μₜ₊₁/(1-Π·μₜ₊₁)·m + (1-μₜ)/(1-Π)·g) / (√v̂ + ε).

    Dozat 2016, with his schedule μₜ = β₁(1 - ½·0.96^(tψ)) and Π = μ₁·…·μₜ; ψ is `momentum_decay`.
    """

    name: ClassVar[str] = "nadam"

    @staticmethod
    def hyper(config: schema.Optimizer) -> dict[str, float]:
        """Adam's and ψ."""
        assert isinstance(config, schema.Nadam)
        return Adam.hyper(config) | {"momentum_decay": config.momentum_decay}

    def coefficients(self, hyper: Hyper, lr: Tensor, step: Tensor) -> dict[str, Tensor]:
        """Π without a memory of the steps: with q = 0.96^ψ, ln Π(1 - ½qⁱ) is the power series
        -Σₖ 2⁻ᵏ/k · qᵏ(1-qᵏᵗ)/(1-qᵏ), of which 50 terms are exact in float64."""
        beta1, beta2, time = hyper["beta1"], hyper["beta2"], step.to(torch.float64)
        log_q = hyper["momentum_decay"] * math.log(0.96)
        k = torch.arange(1, 51, dtype=torch.float64, device=lr.device).unsqueeze(1)
        below = torch.expm1(k * log_q)
        steps = torch.where(below == 0, time, torch.expm1(k * log_q * time) / below)  # ψ = 0
        series = (torch.exp(k * log_q) * steps / (k * 2**k)).sum(0)
        product = beta1**time * torch.exp(-series)
        now, later = (beta1 * (1 - 0.5 * torch.exp(log_q * t)) for t in (time, time + 1))
        root = (1 - beta2**time).sqrt()
        return {
            "one_minus_beta1": 1 - beta1,
            "beta2": beta2,
            "one_minus_beta2": 1 - beta2,
            "eps": hyper["eps"] * root,
            "of_grad": -lr * root * (1 - now) / (1 - product),
            "of_first": -lr * root * later / (1 - product * later),
        }

    def apply(
        self, param: Tensor, grad: Tensor, moments: Sequence[Tensor], c: dict[str, Tensor]
    ) -> None:
        """See the class."""
        first, second = moments
        first.lerp_(grad, c["one_minus_beta1"].expand_as(first))
        second.mul_(c["beta2"]).addcmul_(grad, grad * c["one_minus_beta2"])
        direction = (grad * c["of_grad"]).addcmul_(first, c["of_first"])
        param.add_(direction / second.sqrt().add_(c["eps"]))


@dataclass(frozen=True)
class Radam(Adam):
    """Adam, rectified by r while v̂ has seen few steps; plain momentum while it has seen too few.
    Liu et al. 2020."""

    name: ClassVar[str] = "radam"

    def coefficients(self, hyper: Hyper, lr: Tensor, step: Tensor) -> dict[str, Tensor]:
        """ρ∞ = 2/(1-β₂) - 1; ρ = ρ∞ - 2tβ₂ᵗ/(1-β₂ᵗ); r = √((ρ-4)(ρ-2)ρ∞ / ((ρ∞-4)(ρ∞-2)ρ))
        where ρ > 5."""
        beta1, beta2, time = hyper["beta1"], hyper["beta2"], step.to(torch.float64)
        rate, seen = -lr / (1 - beta1**time), 1 - beta2**time
        longest = 2 / (1 - beta2) - 1
        rho = longest - 2 * time * beta2**time / seen
        rest = (longest - 4) * (longest - 2) * rho
        rectified = ((rho - 4) * (rho - 2) * longest / rest).sqrt()
        return {
            "one_minus_beta1": 1 - beta1,
            "beta2": beta2,
            "one_minus_beta2": 1 - beta2,
            "eps": hyper["eps"],
            "adaptive": torch.where(rho > 5, rate * rectified * seen.sqrt(), 0.0),
            "plain": torch.where(rho > 5, 0.0, rate),
        }

    def apply(
        self, param: Tensor, grad: Tensor, moments: Sequence[Tensor], c: dict[str, Tensor]
    ) -> None:
        """See the class."""
        first, second = moments
        first.lerp_(grad, c["one_minus_beta1"].expand_as(first))
        second.mul_(c["beta2"]).addcmul_(grad, grad * c["one_minus_beta2"])
        param.addcmul_(first, c["plain"])
        param.addcmul_(first / second.sqrt().add_(c["eps"]), c["adaptive"])


@dataclass(frozen=True)
class Adagrad(Rule):
    """s ← s + g²; θ ← θ - η/(1 + (t-1)δ) · g / (√(s + s₀) + ε). Duchi et al. 2011; δ is `lr_decay`,
    s₀ `initial_accumulator_value`."""

    name: ClassVar[str] = "adagrad"
    moments: ClassVar[tuple[str, ...]] = ("sum",)

    @staticmethod
    def hyper(config: schema.Optimizer) -> dict[str, float]:
        """δ, s₀ and ε."""
        assert isinstance(config, schema.Adagrad)
        start = config.initial_accumulator_value
        return {"lr_decay": config.lr_decay, "start": start, "eps": config.eps}

    def coefficients(self, hyper: Hyper, lr: Tensor, step: Tensor) -> dict[str, Tensor]:
        """See the class."""
        rate = -lr / (1 + (step - 1) * hyper["lr_decay"])
        return {"start": hyper["start"], "eps": hyper["eps"], "rate": rate}

    def apply(
        self, param: Tensor, grad: Tensor, moments: Sequence[Tensor], c: dict[str, Tensor]
    ) -> None:
        """See the class."""
        (total,) = moments
        total.addcmul_(grad, grad)
        param.addcmul_(grad / (total + c["start"]).sqrt_().add_(c["eps"]), c["rate"])


@dataclass(frozen=True)
class Lion(AdamW):
    """θ ← (1 - ηλ)θ - η·sign(β₁m + (1-β₁)g); m ← β₂m + (1-β₂)g. Chen et al. 2023."""

    name: ClassVar[str] = "lion"
    moments: ClassVar[tuple[str, ...]] = ("first",)

    @staticmethod
    def hyper(config: schema.Optimizer) -> dict[str, float]:
        """β₁ and β₂."""
        assert isinstance(config, schema.Lion)
        return {"beta1": config.betas[0], "beta2": config.betas[1]}

    def coefficients(self, hyper: Hyper, lr: Tensor, step: Tensor) -> dict[str, Tensor]:
        """See the class."""
        return {"beta1": 1 - hyper["beta1"], "beta2": 1 - hyper["beta2"], "rate": -lr}

    def apply(
        self, param: Tensor, grad: Tensor, moments: Sequence[Tensor], c: dict[str, Tensor]
    ) -> None:
        """See the class."""
        (first,) = moments
        direction = torch.lerp(first, grad, c["beta1"].expand_as(first)).sign_()
        first.lerp_(grad, c["beta2"].expand_as(first))
        param.addcmul_(direction, c["rate"])


@dataclass(frozen=True)
class Muon(AdamW):
    """b ← μb + (1-μ)g; θ ← (1 - ηλ)θ - 0.2·√max(A, B)·η·NS(g + μ(b - g) with Nesterov, else b).

    For the weights of hidden layers: matrices (A, B) = (out, in), convolutions' flattened to (out,
    in·kernel). NS makes all singular values about 1, by Jordan et al. 2024, "Muon: An optimizer for
    hidden layers in neural networks". Biases, norms, embeddings and the output layer, which is the
    last matrix, follow AdamW. The factor 0.2·√max(A, B), of Liu et al. 2025, "Muon is scalable for
    LLM training", gives both kinds of step about one size, so that they share η and λ.

    `matrices` are the places of those weights among the parameters.
    """

    matrices: tuple[int, ...] = ()
    name: ClassVar[str] = "muon"
    shaped: ClassVar[bool] = True
    series: ClassVar[tuple[float, float, float]] = (3.4445, -4.775, 2.0315)

    @staticmethod
    def hyper(config: schema.Optimizer) -> dict[str, float]:
        """AdamW's, μ and whether it is Nesterov's (1 or 0)."""
        assert isinstance(config, schema.Adam)
        numbers = {"momentum": config.momentum, "nesterov": float(config.nesterov)}
        return Adam.hyper(config) | numbers

    def suited(self, module: nn.Module, trained: Mapping[str, Tensor]) -> Muon:
        """See `Rule.suited`."""
        layers = dict(module.named_modules())
        found = [
            name
            for name, parameter in module.named_parameters()
            if parameter.dim() > 1
            and not isinstance(layers[name.rpartition(".")[0]], nn.Embedding | nn.EmbeddingBag)
        ]
        hidden = found[:-1]  # of all, trained or not, and whatever the groups' order is
        places = enumerate(trained)
        return replace(self, matrices=tuple(place for place, name in places if name in hidden))

    def among(self, numbers: slice) -> Muon:
        """See `Rule.among`."""
        inside = [n - numbers.start for n in self.matrices if numbers.start <= n < numbers.stop]
        return replace(self, matrices=tuple(inside))

    def update(
        self,
        params: Sequence[Tensor],
        grads: Sequence[Tensor],
        moments: Mapping[str, Sequence[Tensor]],
        hyper: Hyper,
        lr: Tensor,
        step: Tensor,
    ) -> None:
        """See `Rule.update`."""
        others = [place for place in range(len(params)) if place not in self.matrices]
        updates = (super().update, self.matrices), (AdamW(self.decays).update, others)
        for update, places in updates:
            if places:
                some = {name: [kept[n] for n in places] for name, kept in moments.items()}
                chosen = [params[n] for n in places], [grads[n] for n in places]
                update(*chosen, some, hyper, lr, step)

    def coefficients(self, hyper: Hyper, lr: Tensor, step: Tensor) -> dict[str, Tensor]:
        """Those of a matrix."""
        momentum = hyper["momentum"]
        ahead = 1 - hyper["nesterov"] * (1 - momentum)
        return {"new": 1 - momentum, "ahead": ahead, "rate": -lr}

    def apply(
        self, param: Tensor, grad: Tensor, moments: Sequence[Tensor], c: dict[str, Tensor]
    ) -> None:
        """Update a matrix."""
        first = moments[0]
        first.lerp_(grad, c["new"].expand_as(first))
        direction = self.orthogonal(torch.lerp(grad, first, c["ahead"].expand_as(first)).flatten(2))
        scale = 0.2 * math.sqrt(max(direction.shape[1:]))
        param.addcmul_(direction.reshape(param.shape), c["rate"] * scale)

    def orthogonal(self, matrices: Tensor) -> Tensor:
        """Five steps of the Newton-Schulz iteration X ← aX + (bXXᵀ + c(XXᵀ)²)X on (S, A, B)."""
        a, b, c = self.series
        tall = matrices.shape[1] > matrices.shape[2]
        given = matrices.mT if tall else matrices
        x: Tensor = given / torch.linalg.matrix_norm(given, keepdim=True).clamp(min=1e-7)
        for _ in range(5):
            gram = x @ x.mT
            x = a * x + (b * gram + c * (gram @ gram)) @ x
        return x.mT if tall else x


@dataclass(frozen=True)
class Custom(Rule):
    """A torch optimizer, which trains a trial alone; see own.py."""

    name: ClassVar[str] = "custom"
    shaped: ClassVar[bool] = True
    alone: ClassVar[bool] = True

    @staticmethod
    def hyper(config: schema.Optimizer) -> dict[str, float]:
        """The optimizer holds its own."""
        return {}

    def coefficients(self, hyper: Hyper, lr: Tensor, step: Tensor) -> dict[str, Tensor]:
        """Of no stack."""
        raise NotImplementedError

    def apply(
        self, param: Tensor, grad: Tensor, moments: Sequence[Tensor], c: dict[str, Tensor]
    ) -> None:
        """To no stack."""
        raise NotImplementedError


RULES: dict[str, type[Rule]] = {
    rule.name: rule
    for rule in (Sgd, Adam, AdamW, RmsProp, Nadam, Radam, Adagrad, Lion, Muon, Custom)
}


def rule_of(config: schema.Optimizer, decays: bool) -> Rule:
    """The update rule of an optimizer."""
    if schema.dampens(config):
        return Sgd(decays, dampens=True)
    return RULES[config.name](decays)


def scaled_lr(optimizer: schema.Optimizer, batch: schema.Batch) -> float:
    """η after `batch.lr_scaling`: times k (linear, Goyal et al. 2017, suits SGD) or √k (sqrt,
    Malladi et al. 2022, suits Adam) with k = size·accumulate / base_size."""
    ratio = batch.size * batch.accumulate / batch.base_size
    factor = {"none": 1.0, "linear": ratio, "sqrt": math.sqrt(ratio)}[batch.lr_scaling]
    return optimizer.lr * factor
