"""Tasks and losses: conf/loss. What is learnt from the data (classes, 0/1 targets, numbers), by
which loss, and what is measured.

A `Task` gives per-sample losses and sums over samples; means are taken over all samples of a split,
never over batches. Every function is written for one trial. Notation: `B` samples, `C` outputs,
`K` labels or numbers that are predicted at once.

Weights of classes are scaled so that their mean over the training samples is 1: what counts is
their ratio, and the mean over all training samples is torch's weighted mean, Σ w·l / Σ w.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from sweepstack.config import schema
from sweepstack.config.errors import nearest
from sweepstack.data.dataset import Dataset
from sweepstack.training import evaluation, metrics
from sweepstack.training.metrics import Direction, Metric

TaskName = Literal["multiclass", "binary", "multilabel", "regression"]
Given = Mapping[str, Tensor]
"""A trial's own numbers: label_smoothing, delta, gamma, where they are in use; all 0-dim."""

_MEASURES: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("multiclass", "binary", "multilabel"), ("loss", "accuracy")),
    "regression": ("loss", "mse", "mae"),
}
LOSSES: dict[str, tuple[str, ...]] = {
    "multiclass": ("cross_entropy", "nll", "focal", "custom"),
    "binary": ("bce", "focal", "custom"),
    "multilabel": ("bce", "focal", "custom"),
    "regression": ("mse", "huber", "custom"),
}
"""Losses that fit a task; the first is what `loss=auto` means."""
SMOOTHED = ("cross_entropy", "nll", "bce")
"""Losses that `regularization.label_smoothing` is defined for."""


def direction_of(metric: str) -> Direction:
    """Which way is better: losses and errors are minimized, all other known metrics maximized."""
    name = _measure_of(metric)
    known = metrics.find(name)
    if known is not None:
        return known.direction
    return "maximize" if name.endswith("accuracy") else "minimize"


def _measure_of(metric: str) -> str:
    """A metric's name without its split, as "accuracy" of "val_shifted_accuracy"."""
    name = metric.partition("_")[2]
    changed = next((x for x in evaluation.NAMES.values() if name.startswith(f"{x}_")), None)
    return name if changed is None else name.removeprefix(f"{changed}_")


@dataclass(frozen=True)
class Task:
    """What the data ask for, by which loss; `build` makes it.

    Attributes:
        name: one of the four tasks; the data decide.
        loss: one of `LOSSES`.
        outputs: C.
        extra: metrics besides the task's own.
        weights: of the classes, (C,), (2,) for binary, of each label's 1 (K,); None for equal ones.
        own: the user's own loss.
        changed: names of what is measured on changed samples as well, as "shifted".
    """

    name: TaskName
    loss: str
    outputs: int
    extra: tuple[Metric, ...] = ()
    weights: Tensor | None = None
    own: Callable[[Tensor, Tensor], Tensor] | None = None
    changed: tuple[str, ...] = ()

    @property
    def measures(self) -> tuple[str, ...]:
        """Names of what is measured on a split, without the split's prefix."""
        return (*_MEASURES[self.name], *(metric.name for metric in self.extra))

    @property
    def objectives(self) -> tuple[str, ...]:
        """The metrics that `objective` may name; test metrics are not among them."""
        splits = ["val", *(f"val_{name}" for name in self.changed)]
        own = [f"{split}_{measure}" for split in splits for measure in self.measures]
        trained = ("train_loss", "train_accuracy")[: 2 if self.counts_hits else 1]
        return (*own, *trained)

    @property
    def default_objective(self) -> str:
        """val_accuracy for classification, val_mse for regression."""
        return f"val_{_MEASURES[self.name][1]}"

    @property
    def counts_hits(self) -> bool:
        """Whether there is an accuracy."""
        return self.name != "regression"

    @property
    def numbers(self) -> tuple[str, ...]:
        """What the loss takes from each trial, in training and in evaluation."""
        return {"huber": ("delta",), "focal": ("gamma",)}.get(self.loss, ())

    @property
    def whole(self) -> tuple[Metric, ...]:
        """Metrics that need the outputs of a whole split."""
        return tuple(metric for metric in self.extra if metric.whole is not None)

    def direction_of(self, metric: str) -> Direction:
        """Which way is better; the user's own metric has said so."""
        own = {each.name: each.direction for each in self.extra}
        plain = metric.partition("_")[2]  # which may be called noisy_..., too
        return own.get(plain) or own.get(_measure_of(metric)) or direction_of(metric)

    def scores(self, outputs: Tensor) -> Tensor:
        """Outputs (B, C) as the loss takes them: of logits of classes the log-probabilities."""
        # vmap takes cross_entropy apart into a dozen operations; these stay what they are.
        classes = self.name == "multiclass" and self.loss in ("cross_entropy", "focal")
        return outputs.log_softmax(-1) if classes else outputs

    def losses(self, outputs: Tensor, targets: Tensor, given: Given | None = None) -> Tensor:
        """Loss of each sample, (B,); of several labels or numbers the mean over them.

        Args:
            outputs: (B, C) `scores`, or (B, 1) for binary and regression.
            targets: (B,) class numbers, 0/1, or values; (B, K) of several labels or values.
            given: label_smoothing is the share ε of the target spread over the classes,
                (1-ε)·nll + ε·mean (Szegedy et al. 2016); of 0/1 targets it is y·(1-ε) + ε/2.
        """
        given = given or {}
        if self.own is not None:
            return self._own(outputs, targets)
        if self.name == "multiclass":
            return self._of_classes(outputs, targets, given)
        if targets.dim() < outputs.dim():
            outputs = outputs.squeeze(-1)
        if self.name == "regression":
            each = self._of_errors(outputs - targets, given)
        else:
            each = self._of_bits(outputs, targets, given)
        return each if each.dim() == 1 else each.mean(-1)

    def _of_classes(self, log_p: Tensor, targets: Tensor, given: Given) -> Tensor:
        summed = log_p.device.type == "cuda" and torch.are_deterministic_algorithms_enabled()
        hit = picked(log_p, targets, summed=summed)
        if self.loss == "focal":
            hit = hit * _focus(hit, given["gamma"])
        weighted = hit if self.weights is None else hit * self.weights[targets]
        smoothing = given.get("label_smoothing")
        if smoothing is None:
            return -weighted
        spread = log_p if self.weights is None else log_p * self.weights  # as torch weights it
        return -(1 - smoothing) * weighted - smoothing * spread.mean(-1)

    def _of_bits(self, outputs: Tensor, targets: Tensor, given: Given) -> Tensor:
        """Of 0/1 targets, in the shape of the targets."""
        soft, smoothing = targets, given.get("label_smoothing")
        if smoothing is not None:
            soft = targets * (1 - smoothing) + smoothing / 2
        each = F.binary_cross_entropy_with_logits(outputs, soft, reduction="none")
        if self.loss == "focal":
            each = each * _focus(-each, given["gamma"])
        if self.weights is None:
            return each
        if self.name == "binary":
            return each * torch.where(targets > 0.5, self.weights[1], self.weights[0])
        if self.loss == "focal":
            return each * torch.where(targets > 0.5, self.weights, 1)
        # torch's pos_weight p multiplies the term of y: p·y·(-log σ(o)) + (1-y)·(-log σ(-o)).
        return each + (self.weights - 1) * soft * F.softplus(-outputs)

    def _of_errors(self, errors: Tensor, given: Given) -> Tensor:
        if self.loss == "mse":
            return errors**2
        size, delta = errors.abs(), given["delta"]
        return torch.where(size <= delta, 0.5 * errors**2, delta * (size - 0.5 * delta))

    def _own(self, outputs: Tensor, targets: Tensor) -> Tensor:
        assert self.own is not None
        if self.name != "multiclass" and targets.dim() < outputs.dim():
            outputs = outputs.squeeze(-1)
        each = self.own(outputs, targets)
        if not isinstance(each, Tensor):
            raise TypeError(f"a loss must return a tensor, (B,), got {type(each).__name__}")
        return each if each.dim() == 1 else each.mean(-1)

    def hits(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Which samples are right, (B,) bool; of several labels the share of right ones. More axes
        may come before B."""
        if self.name == "multiclass":
            return outputs.argmax(-1) == targets
        if self.name == "binary" and targets.dim() < outputs.dim():
            return (outputs.squeeze(-1) > 0) == (targets > 0.5)
        return ((outputs > 0) == (targets > 0.5)).double().mean(-1)

    def tells(
        self, scores: Tensor, targets: Tensor, losses: Tensor, *, plain: bool
    ) -> list[Tensor]:
        """What is kept of a training step to count right predictions later, for many steps at once:
        one operation where `losses` (B,) are `plain`, the log-probabilities of the classes. All
        that `hits` takes, done at each step, costs a small model 6 % of its time.
        """
        if self.loss == "cross_entropy" and self.weights is None and plain:
            return [scores.amax(-1), losses]
        return [self.hits(scores, targets).sum()] if self.counts_hits else []

    def counted(self, told: Sequence[Tensor]) -> Tensor:
        """Right predictions of some steps, from what `tells` gave, with any axes before B. Two
        classes that share the largest output both count as right; all classes do not."""
        if len(told) == 1:
            return told[0]
        top, losses = told
        return ((-losses >= top) & (-losses > 1e-6 - math.log(self.outputs))).sum(-1)

    def sums(self, outputs: Tensor, targets: Tensor, given: Given | None = None) -> Tensor:
        """Sum of every measure over the samples, and what `extra` needs, float64 (n,)."""
        losses = self.losses(self.scores(outputs), targets, given)
        if self.counts_hits:
            rows = [losses, self.hits(outputs, targets)]
        else:
            errors = outputs - targets.reshape(outputs.shape)
            squared = losses if self.loss == "mse" else (errors**2).mean(-1)
            rows = [losses, squared, errors.abs().mean(-1)]
        found = torch.stack([row.to(torch.float64).sum() for row in rows])
        if not self.extra:
            return found
        more = [metrics.sums_of(name)(outputs, targets) for name in self._sums]
        return torch.cat([found, *(value.to(torch.float64).reshape(-1) for value in more)])

    @property
    def _sums(self) -> dict[str, tuple[int, ...]]:
        """Sums that `extra` needs, with their shapes."""
        count = 2 if self.name == "binary" else self.outputs
        names = [name for metric in self.extra for name in metric.sums]
        return {name: (3, count) if name in metrics.BY_CLASS else () for name in names}

    def means(self, sums: Sequence[float], samples: int, split: str) -> Mapping[str, float]:
        """The metrics of a split, by their names.

        Args:
            sums: over all samples, then the values of `whole`.
            samples: N.
        """
        own = _MEASURES[self.name]
        values = dict(zip(own, (total / samples for total in sums[: len(own)]), strict=True))
        if not self.extra:
            return {f"{split}_{measure}": value for measure, value in values.items()}
        shapes = self._sums
        sizes = [math.prod(shape) for shape in shapes.values()]
        end = len(own) + sum(sizes)
        row = torch.tensor(sums[len(own) : end], dtype=torch.float64)
        named = zip(shapes.items(), torch.split(row, sizes), strict=True)
        parts = {name: part.view(shape) for (name, shape), part in named}
        whole = iter(sums[end:])
        for metric in self.extra:
            by_sums = metric.value
            values[metric.name] = float(by_sums(parts, samples)) if by_sums else next(whole)
        return {f"{split}_{measure}": value for measure, value in values.items()}


def _focus(log_p: Tensor, gamma: Tensor) -> Tensor:
    """(1 - p)^γ (Lin et al. 2017), p the probability of the right class. Kept off 0, where the
    derivative of a root would be infinite."""
    return (-torch.expm1(log_p)).clamp_min(1e-7) ** gamma


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


# --- from a config and its data -------------------------------------------------------------------


def build(config: schema.RunConfig, data: Dataset, device: torch.device) -> tuple[Task, list[str]]:
    """The task of a config, with one line for each thing that does not fit; then it is the data's
    own task."""
    from sweepstack.training import own

    name: TaskName = data.task
    changed = tuple(evaluation.names(config.evaluation))
    asked, fits = config.loss.name, LOSSES[name]
    loss = fits[0] if asked == "auto" else asked
    mistakes = []
    if loss not in fits:
        mistakes.append(
            f"loss must be one of auto, {', '.join(fits)} for {name} on {data.name}, got "
            f"'{asked}'{nearest(asked, fits)}"
        )
        loss = fits[0]
    smoothing = config.regularization.label_smoothing
    if smoothing and loss not in SMOOTHED:
        why = "for regression" if name == "regression" else f"with loss={loss}"
        mistakes.append(f"regularization.label_smoothing must be 0 {why}, got {smoothing}")
    extra, wrong = metrics.asked(config.metrics, name, _MEASURES[name], data.outputs)
    mistakes += wrong
    weights, wrong = _weights(config.loss, name, data)
    mistakes += wrong
    if mistakes:
        return Task(name, fits[0], data.outputs, changed=changed), mistakes
    place = None if weights is None else weights.to(device)
    task = Task(name, loss, data.outputs, tuple(extra), place, changed=changed)
    return own.completed(task, config, data, device)


def _weights(
    loss: schema.Loss | schema.CustomLoss, name: TaskName, data: Dataset
) -> tuple[Tensor | None, list[str]]:
    """Weights of the classes, float32.

    `balanced` is N / (C · n_c) (King and Zeng 2001, as in scikit-learn's compute_class_weight); of
    several labels N_0 / N_1 of each, as in torch's documentation of `pos_weight`.
    """
    asked = loss.class_weights if isinstance(loss, schema.Weighted) else None
    if asked is None:
        return None, []
    if name == "regression":
        return None, ["loss.class_weights must be null for regression"]
    y, labels = data.train.y, name == "multilabel"
    count = 2 if name == "binary" else data.outputs
    ones = y.double().sum(0) if labels else torch.bincount(y.long(), minlength=count).double()
    if asked == "balanced":
        rest = len(y) - ones
        absent = (ones == 0) | (rest == 0) if labels else ones == 0
        if absent.any():
            place = int(absent.nonzero()[0])
            which = data.classes[place] if data.classes else place
            has = "both 0 and 1" if labels else "any"
            return None, [
                f"loss.class_weights=balanced needs training samples of every class: '{which}' "
                f"of {data.name} does not have {has}"
            ]
        weights = rest / ones if labels else len(y) / (count * ones)
    else:
        if len(asked) != count:
            return None, [
                f"loss.class_weights must have a number for each of the {count} "
                f"{'labels' if labels else 'classes'} of {data.name}, got {len(asked)} of them"
            ]
        weights = torch.tensor(asked, dtype=torch.float64)
    if not labels:
        weights = weights * len(y) / (weights * ones).sum()
    return weights.float(), []
