"""Metrics besides the task's own: `metrics=[f1_macro,auroc,...]`.

Most come from a few sums over samples (hits, counts of each class), which vmap takes for all trials
of a stack at once and which do not depend on how a split is cut into chunks. `auroc` and a metric
of the user's own need the outputs of the whole split: they are computed trial by trial.

A class that occurs neither among the targets nor among the predictions does not count in a macro
mean; such a label counts as 0. A class that is never predicted has precision 0, one that never
occurs recall 0. All of it is what scikit-learn does by default.

Notation: B samples of a chunk, N of a split, C outputs, K classes or labels.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from sweepstack.config.errors import nearest

Direction = Literal["maximize", "minimize"]
Sums = Mapping[str, Tensor]
_CLASSES = ("multiclass", "binary", "multilabel")
_TOP = re.compile(r"top([1-9][0-9]{0,4})_accuracy")
_RATES = ("precision", "recall", "f1")
_OWN = re.compile(r"([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)+)(?::(\w+))?")


@dataclass(frozen=True)
class Metric:
    """One metric of a split.

    Attributes:
        name: without the split's prefix.
        tasks: which it is defined for.
        direction: which way is better.
        sums: names of the sums in `SUMS` that `value` takes, with N.
        value: the metric from the sums, float64.
        whole: the metric from the outputs (N, C) and targets of a whole split, instead.
        target: the dotted name of the user's own, whose `whole` is found later.
    """

    name: str
    tasks: tuple[str, ...]
    direction: Direction = "maximize"
    sums: tuple[str, ...] = ()
    value: Callable[[Sums, int], Tensor] | None = None
    whole: Callable[[Tensor, Tensor], float] | None = None
    target: str = ""


# --- sums over samples ----------------------------------------------------------------------------


def predicted(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Predictions and truth for each class or label, two boolean tensors (B, K).

    Multiclass takes the largest output, 0/1 targets what is above 0; a single 0/1 target makes the
    two classes 0 and 1.
    """
    if targets.is_floating_point():
        said, true = outputs > 0, targets > 0.5
        if true.dim() == 1:
            said = said.squeeze(-1)
            return torch.stack([~said, said], -1), torch.stack([~true, true], -1)
        return said, true
    classes = torch.arange(outputs.shape[-1], device=outputs.device)
    said = outputs.argmax(-1)
    return said.unsqueeze(-1) == classes, targets.unsqueeze(-1) == classes


def _counts(outputs: Tensor, targets: Tensor) -> Tensor:
    """Right predictions, all predictions and samples of each class, (3, K)."""
    said, true = predicted(outputs, targets)
    return torch.stack([(said & true).sum(0), said.sum(0), true.sum(0)])


def _moments(outputs: Tensor, targets: Tensor) -> Tensor:
    """Of each number that is predicted: squared errors, targets, squared targets, (3, K)."""
    y = targets.reshape(outputs.shape).to(torch.float64)
    return torch.stack([((outputs - y) ** 2).sum(0), y.sum(0), (y**2).sum(0)])


def _top(k: int) -> Callable[[Tensor, Tensor], Tensor]:
    def hits(outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs.topk(k, -1).indices == targets.unsqueeze(-1)).any(-1).sum()

    return hits


SUMS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "counts": _counts,
    "moments": _moments,
    "exact": lambda outputs, targets: ((outputs > 0) == (targets > 0.5)).all(-1).sum(),
    "log_loss": lambda outputs, targets: torch.nn.functional.cross_entropy(
        outputs, targets, reduction="sum"
    ),
}
"""From outputs (B, C) and targets to sums over the samples: one number, or (3, K) of `BY_CLASS`."""
BY_CLASS = ("counts", "moments")


def sums_of(name: str) -> Callable[[Tensor, Tensor], Tensor]:
    """The function of a sum that a metric names."""
    top = _TOP.fullmatch(name)
    return SUMS[name] if top is None else _top(int(top[1]))


# --- values ---------------------------------------------------------------------------------------


def rates(counts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Precision, recall and F1 of each class, (K,), from its counts (3, K); 0 / 0 is 0."""
    right, said, true = counts
    return (
        right / said.clamp_min(1),
        right / true.clamp_min(1),
        2 * right / (said + true).clamp_min(1),
    )


def _macro(which: int, *, labels: bool = False) -> Callable[[Sums, int], Tensor]:
    def mean(sums: Sums, _samples: int) -> Tensor:
        _, said, true = sums["counts"]
        return rates(sums["counts"])[which][(said + true > 0) | labels].mean()

    return mean


def _of_ones(which: int) -> Callable[[Sums, int], Tensor]:
    return lambda sums, _samples: rates(sums["counts"])[which][1]


def _balanced(sums: Sums, _samples: int) -> Tensor:
    """The mean recall of the classes that occur."""
    counts = sums["counts"]
    return rates(counts)[1][counts[2] > 0].mean()


def _r2(sums: Sums, samples: int) -> Tensor:
    """1 - squared errors / squared deviations of the targets; the mean over outputs. Where targets
    are constant it is 1 for a perfect model and else 0."""
    errors, total, squares = sums["moments"]
    spread = squares - total**2 / samples
    varies = spread > 1e-12 * squares
    constant = (errors == 0).to(errors.dtype)
    return torch.where(varies, 1 - errors / torch.where(varies, spread, 1), constant).mean()


def auroc(outputs: Tensor, targets: Tensor) -> float:
    """Area under the receiver operating characteristic, exact: the share of pairs of a positive and
    a negative sample that are ranked rightly, where ties count half (Mann and Whitney 1947).

    Multiclass is the mean of each class against the rest by its probability, multi-label the mean
    over labels; what has only positive or only negative samples is left out (NaN if all have).

    Args:
        outputs: (N, C) logits.
        targets: (N,), or (N, K) of several labels.
    """
    multiclass = not targets.is_floating_point()
    scores = outputs.double().log_softmax(-1) if multiclass else outputs.double()
    if multiclass:
        true = targets.unsqueeze(-1) == torch.arange(outputs.shape[-1], device=outputs.device)
    else:
        true = targets.reshape(outputs.shape) > 0.5
    areas = []
    for score, positive in zip(scores.unbind(-1), true.unbind(-1), strict=True):
        high, low = score[positive], score[~positive].sort().values
        if len(high) and len(low):
            below = torch.searchsorted(low, high) + torch.searchsorted(low, high, right=True)
            areas.append(below.double().mean() / (2 * len(low)))
    return float(torch.stack(areas).mean()) if areas else float("nan")


def _known() -> dict[str, Metric]:
    counts = ("counts",)
    found = [
        Metric("balanced_accuracy", _CLASSES[:2], sums=counts, value=_balanced),
        Metric("auroc", _CLASSES, whole=auroc),
        Metric("subset_accuracy", ("multilabel",), sums=("exact",), value=_mean("exact")),
        Metric("log_loss", ("multiclass",), "minimize", ("log_loss",), _mean("log_loss")),
        Metric("r2", ("regression",), sums=("moments",), value=_r2),
        Metric(
            *("rmse", ("regression",), "minimize", ("moments",)),
            lambda sums, samples: (sums["moments"][0] / samples).sqrt().mean(),
        ),
    ]
    for which, name in enumerate(_RATES):
        found.append(Metric(f"{name}_macro", _CLASSES, sums=counts, value=_macro(which)))
        found.append(Metric(name, ("binary",), sums=counts, value=_of_ones(which)))
    return {metric.name: metric for metric in found}


def _mean(name: str) -> Callable[[Sums, int], Tensor]:
    return lambda sums, samples: sums[name] / samples


KNOWN = _known()
"""Metrics by name; top5_accuracy, with any number, is one more."""


def find(name: str) -> Metric | None:
    """The metric of a name, or None; `mypackage.kappa:maximize` is one of the user's own."""
    if _TOP.fullmatch(name):
        return Metric(name, ("multiclass",), sums=(name,), value=_mean(name))
    own = _OWN.fullmatch(name)
    if own is not None and own[2] in ("maximize", "minimize"):
        short = own[1].rpartition(".")[2]
        tasks = (*_CLASSES, "regression")
        return Metric(short, tasks, own[2], target=own[1])  # type: ignore[arg-type]
    return KNOWN.get(name)


def remedy(objective: str, task: str) -> str:
    """What to add where an objective such as val_f1_macro is not measured; else nothing."""
    name = objective.removeprefix("val_")
    known = find(name) if name != objective else None
    return f"; metrics=[{name}] measures it" if known and task in known.tasks else ""


def asked(
    names: tuple[str, ...], task: str, present: tuple[str, ...], classes: int
) -> tuple[list[Metric], list[str]]:
    """The metrics of `metrics=[...]`, and one line for each that cannot be.

    Args:
        names: as given.
        task: what the data are.
        present: what the task measures anyway, which may be named all the same.
        classes: number of classes.
    """
    found: dict[str, Metric] = {}
    mistakes = []
    fitting = [name for name, metric in KNOWN.items() if task in metric.tasks]
    fitting += ["top5_accuracy"] if task == "multiclass" else []
    for name in names:
        metric, own = find(name), _OWN.fullmatch(name)
        if name in present:
            continue
        if metric is None and own is not None:
            mistakes.append(
                f"metrics: '{name}' must say which way is better: {own[1]}:maximize or "
                f"{own[1]}:minimize"
            )
        elif metric is None or task not in metric.tasks:
            mistakes.append(
                f"metrics must be among {', '.join([*present, *fitting])} for {task}, or a "
                f"function of yours such as mypackage.kappa:maximize, got '{name}'"
                f"{nearest(name, fitting)}"
            )
        elif metric.name in (*present, *found):
            mistakes.append(f"metrics must have different names, got {metric.name} twice")
        elif (top := _TOP.fullmatch(name)) and int(top[1]) >= classes:
            mistakes.append(
                f"metrics: {name} must name fewer than the {classes} classes, which it would "
                "always be right about"
            )
        else:
            if task == "multilabel" and name.endswith("_macro"):
                of_labels = _macro(_RATES.index(name.removesuffix("_macro")), labels=True)
                metric = replace(metric, value=of_labels)
            found[metric.name] = metric
    return list(found.values()), mistakes
