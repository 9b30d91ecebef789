"""The user's own loss, metrics and optimizer: found under the trust rule, built, tried.

A loss is a function of outputs and targets that gives one number per sample, or a class whose
objects are such functions (a torch.nn loss). A metric is a function of the outputs and targets of a
whole split, on the CPU, that gives one number. Both are called once before any training, so that
what cannot work is refused then.

Notation: B samples of a batch, N of a split, C outputs.
"""

from __future__ import annotations

import inspect
import json
import logging
import math
import pickle
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from sweepstack.config import schema, trust
from sweepstack.config.errors import InputError, ModuleExit, contained, nearest, reason
from sweepstack.data.dataset import Dataset
from sweepstack.models.custom import arguments_of
from sweepstack.training.loss import Task
from sweepstack.training.metrics import Metric

log = logging.getLogger(__name__)

SAMPLES, PART = 8, 3
"""Samples that a loss is tried on, and how many of them once more without the others."""
KEY = "optimizer._target_"
Again = Callable[[], tuple[Tensor, Sequence[Tensor]]]
"""Losses (1,) and gradients (1, *shape) of the step's batch at the present parameters."""


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
        with contained(), torch.random.fork_rng([]):
            for name in {"weight", "pos_weight"} & arguments.keys():
                if make.__module__ == "torch.nn.modules.loss" and arguments[name] is not None:
                    arguments[name] = torch.tensor(arguments[name], dtype=torch.float32)
            torch.manual_seed(0)  # for what draws its buffers
            made: Any = make(**arguments)
    except Exception as error:
        raise InputError(
            f"loss._target_ '{loss.target}' cannot be built: {reason(error)}"
        ) from error
    if isinstance(made, nn.Module):
        if any(parameter.requires_grad for parameter in made.parameters()):
            raise InputError(f"loss._target_ '{loss.target}' must have no parameters to train")
        made = made.to(device).eval()
    if not callable(made):
        raise InputError(f"loss._target_ '{loss.target}' must give something to call")
    return made  # type: ignore[no-any-return]


def _try_loss(task: Task, target: str, data: Dataset, device: torch.device) -> None:
    """Call it twice on random outputs; refuse what is no loss of each sample."""
    index = torch.arange(min(SAMPLES, len(data.train)))
    y = data.train.y[index].to(device)
    random, key, before = torch.get_rng_state(), f"loss._target_ '{target}'", y.clone()
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(len(y), data.outputs, generator=generator).to(device)
    outputs = drawn.clone().requires_grad_() * 1  # no leaf, as the outputs of a model
    try:
        with contained():
            one, held = task.losses(outputs, y), _pickled(task.own)
            other, kept = task.losses(outputs, y), _pickled(task.own)
            intact = torch.equal(outputs, drawn) and torch.equal(y, before)
            some = task.losses(outputs[:PART], y[:PART])
    except Exception as error:
        raise InputError(_misfit(key, outputs, y, error)) from error
    if one.shape != (len(y),):
        raise InputError(
            f"{key} must return one loss per sample, of shape (B,), got {tuple(one.shape)} for "
            f"B = {len(y)}; reduction='none' gives them"
        )
    if not intact:
        raise InputError(f"{key} must not change the outputs or the targets in place")
    if one.is_complex():
        raise InputError(f"{key} must return real losses, got {one.dtype}")
    if not one.requires_grad:
        raise InputError(f"{key} must be differentiable: its losses do not depend on the outputs")
    if not torch.equal(one.nan_to_num(), other.nan_to_num()) or not torch.equal(
        random, torch.get_rng_state()
    ):
        raise InputError(f"{key} must be a function of outputs and targets alone, without chance")
    if held != kept:
        raise InputError(f"{key} must not change itself when called: trials share it")
    near = max(torch.finfo(one.dtype).eps, 1e-7) ** 0.5
    if not torch.allclose(some, one[:PART], rtol=near, atol=near, equal_nan=True):
        raise InputError(
            f"{key} must give each sample its own loss: that of the first {PART} of {len(y)} "
            "samples depends on the others of the batch"
        )


def _pickled(thing: object) -> bytes:
    """All that an object holds, or nothing where it cannot be pickled."""
    with suppress(Exception):  # whatever its classes raise
        return pickle.dumps(thing)
    return b""


def _misfit(key: str, outputs: Tensor, targets: Tensor, error: Exception) -> str:
    there, here = tuple(outputs.shape), tuple(targets.shape)
    return (
        f"{key} does not run on outputs of shape {there} and targets of shape {here}: "
        f"{reason(error)}"
    )


def _metric(metric: Metric, trusted: tuple[str, ...]) -> Metric:
    """One of the user's own, as a function of a whole split."""
    function = _found(metric.target, trusted, {}, "metrics")
    if inspect.isclass(function):
        raise InputError(f"metrics must name functions, got the class '{metric.target}'")

    key = f"metrics: '{metric.target}'"

    def whole(outputs: Tensor, targets: Tensor) -> float:
        # Copies: it may write into them, and on a CPU the targets are the data themselves.
        try:
            with contained():
                found = function(outputs.cpu().clone(), targets.cpu().clone())
        except Exception as error:
            raise RuntimeError(_misfit(key, outputs, targets, error)) from error
        try:
            return float("" if isinstance(found, str) else found)
        except (TypeError, ValueError, RuntimeError) as error:
            shape = f" of shape {tuple(found.shape)}" if hasattr(found, "shape") else ""
            got = f"{type(found).__name__}{shape}"
            raise RuntimeError(f"{key} must return one number, got {got}") from error

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
            value = metric.whole(outputs, given.y)
        except RuntimeError as error:
            raise InputError(str(error)) from error
        if not math.isfinite(value):
            why = "" if metric.target else ", which needs samples of two classes or more"
            raise InputError(f"{name} must be a number, got {value} on {split} data{why}")
        # As text, in which NaN equals itself.
        tried = split == "validation" and metric.target
        if tried and repr(metric.whole(outputs, given.y)) != repr(value):
            raise InputError(f"{name} must be a function of its arguments, without chance")


# --- the optimizer -------------------------------------------------------------------------------


class OwnOptimizer:
    """The optimizer of one trial and the parameters that it moves in place.

    Raises:
        InputError: a target that is not allowed, not found or no optimizer, or wrong arguments.
    """

    def __init__(self, config: schema.RunConfig, parameters: Iterable[Tensor]):
        self.parameters = list(parameters)
        self.optimizer = _built(config, self.parameters)
        step = inspect.signature(self.optimizer.step).parameters.get("closure")
        self.closes = step is not None and step.default is step.empty  # as of LBFGS

    def step(self, grads: Sequence[Tensor], lr: float, again: Again) -> None:
        """One step at learning rate `lr`, with gradients (1, *shape); `again` is for optimizers
        that compute them several times in a step."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        homes = [parameter.data_ptr() for parameter in self.parameters]
        self._take(grads)
        if self.closes:
            self.optimizer.step(self._closure(again))  # type: ignore[arg-type]
        else:
            self.optimizer.step()
        for parameter, home in zip(self.parameters, homes, strict=True):
            parameter.grad = None
            if parameter.data_ptr() != home:
                raise InputError(
                    f"{KEY} must change its parameters in place, and puts others there"
                )

    def _closure(self, again: Again) -> Callable[[], Tensor]:
        def closure() -> Tensor:
            with torch.enable_grad():
                losses, grads = again()
            self._take(grads)
            return losses[0]

        return closure

    def _take(self, grads: Sequence[Tensor]) -> None:
        for parameter, grad in zip(self.parameters, grads, strict=True):
            parameter.grad = grad[0]

    def state(self) -> dict[str, Any]:
        """For a checkpoint: tensors and plain numbers."""
        return self.optimizer.state_dict()

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from what `state` returned."""
        self.optimizer.load_state_dict(state)


def check(config: schema.RunConfig, module: nn.Module) -> None:
    """Build the optimizer for a module, and take two steps with it on a few numbers.

    Raises:
        InputError: see `OwnOptimizer`, or it does not take a step.
    """
    OwnOptimizer(config, [p for p in module.parameters() if p.requires_grad])
    own = OwnOptimizer(config, [torch.ones(2, 2, requires_grad=True)])
    try:
        with torch.no_grad(), contained():
            for _ in range(2):
                grads = [torch.ones(1, 2, 2)]
                own.step(grads, config.optimizer.lr, lambda: (torch.ones(1), grads))  # noqa: B023
    except Exception as error:
        target = _of(config).target
        raise InputError(f"{KEY} '{target}' does not take a step: {reason(error)}") from error


@cache
def say_one_by_one(target: str) -> None:
    """Log once for each optimizer that its trials do not share stacks."""
    log.info("optimizer %s: its trials train one by one", target)


def _of(config: schema.RunConfig) -> schema.CustomOptimizer:
    assert isinstance(config.optimizer, schema.CustomOptimizer)
    return config.optimizer


def _built(config: schema.RunConfig, parameters: Sequence[Tensor]) -> torch.optim.Optimizer:
    target = _of(config).target
    given: dict[str, Any] = json.loads(_of(config).arguments)
    try:
        with contained():
            make = trust.locate(target, config.trust, given, KEY)
    except ModuleExit as error:
        raise InputError(f"{KEY} '{target}' cannot be imported: {error}") from error
    if not (inspect.isclass(make) and issubclass(make, torch.optim.Optimizer)):
        raise InputError(f"{KEY} must name a subclass of torch.optim.Optimizer, got '{target}'")
    arguments = _arguments(make, config, given)
    try:
        with contained():
            return make(parameters, **arguments)
    except Exception as error:
        raise InputError(f"{KEY} '{target}' cannot be built: {reason(error)}") from error


def _arguments(
    make: type[torch.optim.Optimizer], config: schema.RunConfig, given: Mapping[str, Any]
) -> dict[str, Any]:
    """All but the parameters: lr and weight decay are those of every optimizer."""
    target, decay = _of(config).target, config.regularization.weight_decay
    parameters = inspect.signature(make).parameters
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    named = [name for name in parameters if name not in ("params", "weight_decay")]
    mistakes = []
    for name in given:
        if name == "weight_decay":
            mistakes.append(
                "optimizer.weight_decay must be given as regularization.weight_decay, which all "
                "optimizers have"
            )
        elif name == "params" or (name not in named and not takes_all):
            mistakes.append(f"unknown key 'optimizer.{name}' of '{target}'{nearest(name, named)}")
    decays = takes_all or "weight_decay" in parameters
    if decay and not decays:
        mistakes.append(
            f"regularization.weight_decay must be 0 with '{target}', which has none, got {decay}"
        )
    if mistakes:
        raise InputError(mistakes)
    return {"lr": _of(config).lr, **given} | ({"weight_decay": decay} if decays else {})
