"""What a trial must keep to be feasible: reads `hydra.sweeper.constraints`.

    constraints: {num_parameters: "<= 100000", val_accuracy: ">= 0.9"}

A constraint compares a final number of a trial (a metric, num_parameters, seconds, steps) with a
bound. Optuna is told the violation, which is 0 or less where the bound is kept; samplers that
know constraints (tpe, gp, nsgaii) prefer feasible trials. Made by `plan.py`, used by `worker.py`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from sweepstack.config.errors import InputError

_WHERE = "hydra.sweeper.constraints"
_FORM = re.compile(r"\s*(<=|>=)\s*([-+0-9.eE]+)\s*")


@dataclass(frozen=True)
class Constraint:
    """`name` must be <= or >= `bound`."""

    name: str
    relation: Literal["<=", ">="]
    bound: float

    def violation(self, numbers: Mapping[str, float]) -> float | None:
        """How far a trial is on the wrong side of the bound; None when it has no such number."""
        value = numbers.get(self.name)
        if value is None or math.isnan(value):
            return None
        return value - self.bound if self.relation == "<=" else self.bound - value


def read(given: Mapping[str, Any]) -> tuple[Constraint, ...]:
    """The constraints of a sweep.

    Raises:
        InputError: one line for each that is not "<= NUMBER" or ">= NUMBER".
    """
    mistakes: list[str] = []
    found: list[Constraint] = []
    if not isinstance(given, Mapping):
        raise InputError(f'{_WHERE} must look like {{num_parameters: "<= 100000"}}, got {given!r}')
    for name, text in given.items():
        match = _FORM.fullmatch(str(text))
        try:
            bound = float(match[2]) if match else math.nan
        except ValueError:
            bound = math.nan
        if match is None or math.isnan(bound):
            mistakes.append(f'{_WHERE}.{name} must look like "<= 100000" or ">= 0.9", got {text!r}')
            continue
        found.append(Constraint(str(name), match[1], bound))  # type: ignore[arg-type]
    if mistakes:
        raise InputError(mistakes)
    return tuple(found)
