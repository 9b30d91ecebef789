"""Any torch optimizer, optimizer=custom: found under the trust rule, tried, and driven for a trial.

Such an optimizer has one set of numbers for all of its parameters: its trials train one by one.
"""

from __future__ import annotations

import inspect
import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from sweepstack.config import trust
from sweepstack.config.errors import InputError, ModuleExit, contained, nearest, reason
from sweepstack.config.schema import CustomOptimizer, RunConfig

log = logging.getLogger(__name__)

KEY = "optimizer._target_"
Again = Callable[[], tuple[Tensor, Sequence[Tensor]]]
"""Losses (1,) and gradients (1, *shape) of the step's batch at the present parameters."""


class OwnOptimizer:
    """The optimizer of one trial and the parameters that it moves in place.

    Raises:
        InputError: a target that is not allowed, not found or no optimizer, or wrong arguments.
    """

    def __init__(self, config: RunConfig, parameters: Iterable[Tensor]):
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


def check(config: RunConfig, module: nn.Module) -> None:
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


def _of(config: RunConfig) -> CustomOptimizer:
    assert isinstance(config.optimizer, CustomOptimizer)
    return config.optimizer


def _built(config: RunConfig, parameters: Sequence[Tensor]) -> torch.optim.Optimizer:
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
    make: type[torch.optim.Optimizer], config: RunConfig, given: Mapping[str, Any]
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
