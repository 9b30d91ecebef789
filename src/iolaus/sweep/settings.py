"""Checked settings of samplers and pruners, and the Optuna object made from them.

A sampler or pruner declares for each of its settings the type and the range that `check.value`
understands. Only what the user gave is passed on, so that what is left out is the default of the
class itself. Called by `samplers.py` and `pruners`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from optuna.exceptions import ExperimentalWarning

from iolaus import check
from iolaus.errors import InputError, nearest, one_line

Rules = Mapping[str, tuple[Any, Mapping[str, float]]]
"""The name of each setting, with its type and the bounds ge, gt, le, lt of its number."""

Built = TypeVar("Built")


def choice(where: str, name: object, known: Iterable[str]) -> str:
    """Return `name` if it is one of the `known`.

    Raises:
        InputError: it is not; the line lists what is.
    """
    options = list(known)
    if isinstance(name, str) and name in options:
        return name
    near = nearest(str(name), options)
    raise InputError(f"{where} must be one of {', '.join(options)}, got {check.shown(name)}{near}")


def read(
    where: str, rules: Rules, given: Mapping[str, Any], required: Iterable[str] = ()
) -> dict[str, Any]:
    """The `given` settings, converted to their types; `where` is the key that they stand under.

    Raises:
        InputError: one line for each unknown, missing or wrong setting.
    """
    mistakes = [f"{where}.{key} is missing" for key in required if key not in given]
    values: dict[str, Any] = {}
    for key, value in given.items():
        if key in rules:
            hint, bounds = rules[key]
            values[key] = check.value(f"{where}.{key}", hint, bounds, value, mistakes)
        else:
            allowed = f"it has {', '.join(rules)}" if rules else "it has no settings"
            mistakes.append(f"unknown key '{where}.{key}', {allowed}{nearest(str(key), rules)}")
    if mistakes:
        raise InputError(mistakes)
    return values


def construct(where: str, make: Callable[..., Built], values: Mapping[str, Any]) -> Built:
    """Call `make(**values)`, without Optuna's notices that a class is experimental.

    Raises:
        InputError: settings that are fine one by one and not together.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        try:
            return make(**values)
        except (TypeError, ValueError) as error:
            raise InputError(f"{where}: {one_line(error)}") from None
