"""Tasks: multiclass (cross-entropy), binary (BCE with logits) or regression (MSE).

A `Task` gives per-sample losses and sums over samples; means are taken over all samples of a split,
never over batches. Every function is written for one trial. Notation: `B` samples, `C` outputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

TaskName = Literal["multiclass", "binary", "multilabel", "regression"]
Direction = Literal["maximize", "minimize"]

_MEASURES: dict[TaskName, tuple[str, ...]] = {
    "multiclass": ("loss", "accuracy"),
    "binary": ("loss", "accuracy"),
    "regression": ("loss", "mse", "mae"),
}


def direction_of(metric: str) -> Direction:
    """Accuracies are maximized, everything else is minimized."""
    return "maximize" if metric.endswith("accuracy") else "minimize"


@dataclass(frozen=True)
class Task:
    """One of the three tasks; the data decide.

    `changed` names what is measured on changed samples as well, as "shifted".
    """

    name: TaskName
    changed: tuple[str, ...] = ()

    @property
    def measures(self) -> tuple[str, ...]:
        """Names of what is measured on a split, without the split's prefix."""
        return _MEASURES[self.name]

    @property
    def objectives(self) -> tuple[str, ...]:
        """The metrics that `objective` may name; test metrics are not among them."""
        splits = ["val", *(f"val_{name}" for name in self.changed)]
        own = [f"{split}_{measure}" for split in splits for measure in self.measures]
        return (*own, "train_loss")

    @property
    def default_objective(self) -> str:
        """val_accuracy for classification, val_mse for regression."""
        return f"val_{self.measures[1]}"

    def losses(self, outputs: Tensor, targets: Tensor, smoothing: Tensor | None = None) -> Tensor:
        """Loss of each sample, (B,).

        Args:
            outputs: (B, C) logits, or (B, 1) for binary and regression.
            targets: (B,) class numbers, 0/1, or values.
            smoothing: 0-dim share ε of the target spread over the classes: (1-ε)·nll + ε·mean
                (Szegedy et al. 2016); for binary the target becomes y·(1-ε) + ε/2.
        """
        if self.name == "multiclass":
            # vmap takes cross_entropy apart into a dozen operations; these stay what they are.
            log_p = outputs.log_softmax(-1)
            summed = log_p.device.type == "cuda" and torch.are_deterministic_algorithms_enabled()
            hit = picked(log_p, targets, summed=summed)
            if smoothing is None:
                return -hit
            return -(1 - smoothing) * hit - smoothing * log_p.mean(-1)
        outputs = outputs.squeeze(-1)
        if self.name == "binary":
            if smoothing is not None:
                targets = targets * (1 - smoothing) + smoothing / 2
            return F.binary_cross_entropy_with_logits(outputs, targets, reduction="none")
        return (outputs - targets) ** 2

    def sums(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Sum of every measure over the samples, float64 (number of measures,)."""
        losses = self.losses(outputs, targets)
        if self.name == "multiclass":
            rows = [losses, (outputs.argmax(-1) == targets)]
        elif self.name == "binary":
            rows = [losses, ((outputs.squeeze(-1) > 0) == (targets > 0.5))]
        else:
            rows = [losses, losses, (outputs.squeeze(-1) - targets).abs()]
        return torch.stack([row.to(torch.float64).sum() for row in rows])

    def means(self, sums: list[float], samples: int, split: str) -> Mapping[str, float]:
        """Name the sums of a split and divide them by its number of samples."""
        return {
            f"{split}_{measure}": total / samples
            for measure, total in zip(self.measures, sums, strict=True)
        }


def picked(log_p: Tensor, targets: Tensor, *, summed: bool) -> Tensor:
    """The number of each sample's class, (B,).

    Args:
        log_p: (B, C).
        targets: (B,) class numbers.
        summed: as a sum with zeros in place of the others: the same numbers. The derivative of
            `gather` scatters, and where that has to be deterministic, a GPU asks the host for
            numbers, which no CUDA graph can hold.
    """
    if not summed:
        return log_p.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
    classes = torch.arange(log_p.shape[-1], device=log_p.device)
    return torch.where(targets.unsqueeze(-1) == classes, log_p, 0.0).sum(-1)
