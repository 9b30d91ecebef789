"""Losses and metrics of a user's own, for tests: `own_losses.poly`."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


def poly(outputs, targets, epsilon=1.0):
    """Poly-1 loss (Leng et al. 2022): cross-entropy + ε (1 - p)."""
    nll = F.cross_entropy(outputs, targets, reduction="none")
    return nll + epsilon * (1 - torch.exp(-nll))


def mean(outputs, targets):
    return F.cross_entropy(outputs, targets)


def by_chance(outputs, targets):
    return poly(outputs, targets) * torch.rand(())


def constant(outputs, targets):
    return torch.zeros(len(targets))


def looks(outputs, targets):
    """Reads a number out of a tensor, which vmap refuses."""
    return poly(outputs, targets) * (2.0 if float(outputs.detach().sum()) > 1e9 else 1.0)


class Learns(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, outputs, targets):
        return poly(outputs, targets) * self.scale


def kappa(outputs, targets):
    from sklearn.metrics import cohen_kappa_score

    return cohen_kappa_score(targets.numpy(), outputs.argmax(1).numpy())


def fails(outputs, targets):
    raise ValueError("no such thing")


def nothing(outputs, targets):
    return float("nan")


def writes(outputs, targets):
    """Changes what it is given, as `targets[targets > 1] = 1` would."""
    return float(targets.zero_().sum() + outputs.zero_().sum())


def caps(outputs, targets):
    targets[targets > 5] = 5
    return poly(outputs, targets)


def number(outputs, targets):
    return mean(outputs, targets).item()


def shifts(outputs, targets):
    outputs -= outputs.max(-1, keepdim=True).values
    return poly(outputs, targets)


def pairs(outputs, targets):
    """(B, B): a forgotten axis, whose mean over the last axis would pass for losses."""
    losses = poly(outputs, targets)
    return losses[:, None] - 0.1 * losses.detach()


def relative(outputs, targets):
    losses = poly(outputs, targets)
    return losses / losses.detach().mean()


def waves(outputs, targets):
    return poly(outputs, targets).to(torch.complex64)


class Counts:
    """Another loss from its 100th call on."""

    def __init__(self):
        self.calls = 0

    def __call__(self, outputs, targets):
        self.calls += 1
        return poly(outputs, targets) * (1 if self.calls < 100 else 2)


class Teacher(nn.Module):
    """Pulls outputs to a fixed map of them."""

    def __init__(self):
        super().__init__()
        self.map = nn.Sequential(nn.Linear(10, 10), nn.BatchNorm1d(10)).requires_grad_(False)

    def forward(self, outputs, targets):
        return poly(outputs, targets) + (outputs - self.map(outputs)).square().mean(-1)


def vector(outputs, targets):
    return (outputs.argmax(1) == targets).float()


def guesses(outputs, targets):
    return torch.rand(())


def leaves(outputs, targets):
    """Fails for outputs of a trained model alone, whose biases are not 0."""
    if outputs.abs().max() > 20:
        raise SystemExit(3)
    return 0.5


def noisy_right(outputs, targets):
    return vector(outputs, targets).mean()
