"""A module that brings a part of itself: `frozen_support.Net`."""

from __future__ import annotations

import torch
from torch import nn


class Net(nn.Module):
    """On pictures of digits: a frozen trunk, loaded weights that train on, a random head."""

    def __init__(self, outputs):
        super().__init__()
        self.trunk = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.BatchNorm1d(16))
        self.middle, self.norm = nn.Linear(16, 16), nn.BatchNorm1d(16)
        self.drop, self.head = nn.Dropout(0.2), nn.Linear(16, outputs)
        numbers = torch.linspace(-900, 900, 64 * 16).view(16, 64)
        with torch.no_grad():
            self.trunk[1].weight.copy_(0.2 * numbers.sin())
            self.trunk[1].bias.fill_(0.1)
            self.trunk[2].weight.fill_(1.5)
            self.trunk[2].running_var.fill_(4.0)
            self.middle.weight.copy_(0.3 * numbers[:, :16].cos())
        self.trunk.requires_grad_(False)
        self.register_buffer("shift", torch.randn(16))

    def forward(self, x):
        y = self.norm(torch.tanh(self.middle(self.trunk(x) + self.shift)))
        return self.head(self.drop(y))


class OwnEval(Net):
    """Keeps its trunk in eval mode by hand, as is usual where torch trains it."""

    def train(self, mode=True):
        super().train(mode)
        self.trunk.eval()
        return self


class SignSgd(torch.optim.Optimizer):
    """An optimizer of somebody's own: θ ← θ - η·sign(g); with `rebinds`, by new tensors."""

    def __init__(self, params, lr, rebinds=False):
        super().__init__(params, {"lr": lr, "rebinds": rebinds})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if group["rebinds"]:
                    p.data = p - group["lr"] * p.grad.sign()
                else:
                    p.sub_(p.grad.sign(), alpha=group["lr"])
