"""The user's own loss and metrics: found under the trust rule, built, tried on the data.

A loss is a function of outputs and targets that gives one number per sample, or a class whose
objects are such functions (a torch.nn loss). A metric is a function of the outputs and targets of a
whole split, on the CPU, that gives one number. Both are called once before any training, so that
what cannot work is refused then.

Notation: B samples of a batch, N of a split, C outputs.
"""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from sweepstack.config import schema, trust
from sweepstack.config.errors import InputError, ModuleExit, contained, reason
from sweepstack.data.dataset import Dataset
from sweepstack.models.custom import arguments_of
from sweepstack.training.loss import Task
from sweepstack.training.metrics import Metric

SAMPLES = 8
"""Samples that a loss is tried on."""


def completed(
    task: Task, config: schema.RunConfig, data: Dataset, device: torch.device
) -> tuple[Task, list[str]]:
    """The task with its own loss and metrics in place, and what is wrong with them."""
    mistakes: list[str] = []
    made, extra = task.own, []
    if isinstance(config.loss, schema.CustomLoss):
        try:
            made = _loss(config.loss, config.trust, device)
            _try_loss(replace(task, own=made), config.loss.target, data, device)
        except InputError as error:
            mistakes += error.mistakes
    for metric in task.extra:
        try:
            known = metric if not metric.target else _metric(metric, config.trust)
            if known.whole is not None:
                _try_metric(known, data)
            extra.append(known)
        except InputError as error:
            mistakes += error.mistakes
    return (task, mistakes) if mistakes else (replace(task, own=made, extra=tuple(extra)), [])


def _found(target: str, trusted: tuple[str, ...], given: Mapping[str, Any], key: str) -> Any:
    """The function or class of a name. Of the closed table only torch's losses will do: the rest
    of it makes modules."""
    try:
        with contained():
            found = trust.locate(target, trusted, given, key)
    except ModuleExit as error:  # of a module that ends the process when it is imported
        raise InputError(f"{key} '{target}' cannot be imported: {error}") from error
    theirs = not trust.within(found.__module__, trusted)
    if theirs and (key == "metrics" or found.__module__ != "torch.nn.modules.loss"):
        raise InputError(
            f"{key} must name {'' if key == 'metrics' else 'a loss of torch.nn or '}something "
            f"defined in a package of trust=[...], got '{target}'"
        )
    return found


def _loss(
    loss: schema.CustomLoss, trusted: tuple[str, ...], device: torch.device
) -> Callable[[Tensor, Tensor], Tensor]:
    """The loss as a function of outputs and targets; `reduction="none"` where it has that."""
    given: dict[str, Any] = json.loads(loss.arguments)
    make = _found(loss.target, trusted, given, "loss._target_")
    arguments = arguments_of(make, loss.target, given, {"reduction": "none"}, "loss")
    if not inspect.isclass(make):
        return partial(make, **arguments)
    try:
        with contained():
            made: Any = make(**arguments)
    except Exception as error:
        raise InputError(
            f"loss._target_ '{loss.target}' cannot be built: {reason(error)}"
        ) from error
    if isinstance(made, nn.Module):
        if next(made.parameters(), None) is not None:
            raise InputError(
                f"loss._target_ '{loss.target}' must have no parameters: only the model is trained"
            )
        made = made.to(device)
    if not callable(made):
        raise InputError(f"loss._target_ '{loss.target}' must give something to call")
    return made  # type: ignore[no-any-return]


def _try_loss(task: Task, target: str, data: Dataset, device: torch.device) -> None:
    """Call it twice on random outputs; refuse what is no loss of each sample."""
    index = torch.arange(min(SAMPLES, len(data.train)))
    y = data.train.y[index].to(device)
    random, key = torch.get_rng_state(), f"loss._target_ '{target}'"
    generator = torch.Generator().manual_seed(0)
    outputs = torch.randn(len(y), data.outputs, generator=generator).to(device).requires_grad_()
    try:
        with contained():
            one, other = (task.losses(outputs, y) for _ in range(2))
    except Exception as error:
        raise InputError(
            f"{key} does not run on outputs of shape {tuple(outputs.shape)} and targets of shape "
            f"{tuple(y.shape)}: {reason(error)}"
        ) from error
    if one.shape != (len(y),):
        raise InputError(
            f"{key} must return one loss per sample, of shape (B,), got {tuple(one.shape)} for "
            f"B = {len(y)}; reduction='none' gives them"
        )
    if not one.requires_grad:
        raise InputError(f"{key} must be differentiable: its losses do not depend on the outputs")
    if not torch.equal(one.nan_to_num(), other.nan_to_num()) or not torch.equal(
        random, torch.get_rng_state()
    ):
        raise InputError(f"{key} must be a function of outputs and targets alone, without chance")


def _metric(metric: Metric, trusted: tuple[str, ...]) -> Metric:
    """One of the user's own, as a function of a whole split."""
    function = _found(metric.target, trusted, {}, "metrics")
    if inspect.isclass(function):
        raise InputError(f"metrics must name functions, got the class '{metric.target}'")

    def whole(outputs: Tensor, targets: Tensor) -> float:
        return float(function(outputs.cpu(), targets.cpu()))

    return replace(metric, whole=whole)


def _try_metric(metric: Metric, data: Dataset) -> None:
    """Call it on random outputs and the targets of the splits; refuse what gives no number."""
    assert metric.whole is not None
    name = f"metrics: '{metric.target or metric.name}'"
    for split, given in (("validation", data.val), ("test", data.test)):
        if given is None:
            continue
        generator = torch.Generator().manual_seed(0)
        outputs = torch.randn(len(given), data.outputs, generator=generator)
        try:
            with contained():
                value = metric.whole(outputs, given.y)
        except Exception as error:
            raise InputError(
                f"{name} does not run on outputs of shape {tuple(outputs.shape)} and targets of "
                f"shape {tuple(given.y.shape)}: {reason(error)}"
            ) from error
        if not math.isfinite(value):
            why = "" if metric.target else ", which needs samples of two classes or more"
            raise InputError(f"{name} must be a number, got {value} on {split} data{why}")
