"""Checked settings of the sweeper, its samplers and pruners, and the objects made from them.

A sampler or pruner declares for each of its settings the type and the range that `check.value`
understands. Only what the user gave is passed on, so that what is left out is the default of the
class itself.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from optuna.exceptions import ExperimentalWarning

from sweepstack.config import check
from sweepstack.config.errors import InputError, nearest, one_line

Rules = Mapping[str, tuple[Any, Mapping[str, float]]]
"""The name of each setting, with its type and the bounds ge, gt, le, lt of its number."""

Built = TypeVar("Built")


@dataclass(frozen=True)
class Choice:
    """An option of a config group: its name, and those of its settings that were given."""

    name: str
    given: Mapping[str, Any]

    @classmethod
    def read(cls, where: str, node: object, classes: Mapping[str, str]) -> Choice:
        """From `{name: tpe, ...}`, from a bare name, or from `{_target_: ..., ...}`.

        The last is how hydra-optuna-sweeper's groups and many a config of its users are written.
        A setting that is null is left to the default of its class.

        Args:
            where: the key that the group stands under.
            node: the group's config.
            classes: last part of a `_target_` -> name.

        Raises:
            InputError: the node is no such thing, or its class is not known.
        """
        if isinstance(node, str):
            return cls(node, {})
        if not isinstance(node, Mapping):
            raise InputError(f"{where} must be a config group such as tpe, got {check.shown(node)}")
        given = {str(k): v for k, v in node.items() if v is not None and k != "_partial_"}
        target = given.pop("_target_", None)
        if target is None:
            return cls(str(given.pop("name", "")), given)
        name = classes.get(str(target).rpartition(".")[2])
        if name is None:
            known = ", ".join(dict.fromkeys(classes.values()))
            raise InputError(f"{where} must be one of {known}, got the class '{target}'")
        given.pop("name", None)  # of the node that the class was written over
        return cls(name, given)


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
