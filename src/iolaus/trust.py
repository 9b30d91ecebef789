"""The trust rule: which Python objects a config may name.

A `_target_` is text that may come from a study, a checkpoint or a report, and building it runs
code. It is accepted only when it stands in a package of `ALLOWED` or in one that the user named
in `trust=[...]`, and when what it leads to is *defined* in such a package: modules import other
modules, so `torchvision.os.system` would otherwise be in torchvision. Called by `models.custom`.
Imports neither torch nor anything else that a target may name.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterable, Sequence
from types import ModuleType
from typing import Any

from iolaus.errors import InputError, nearest, one_line

ALLOWED = ("iolaus", "torch.nn", "torch.optim", "torchvision", "optuna.samplers", "optuna.pruners")
"""Packages that any config may name."""


def within(name: str, packages: Iterable[str]) -> bool:
    """Whether the dotted `name` is one of `packages` or lies inside one."""
    return _package(name, packages) is not None


def _package(name: str, packages: Iterable[str]) -> str | None:
    inside = (p for p in packages if name == p or name.startswith(f"{p}."))
    return min(inside, key=len, default=None)


def check_target(target: str, trusted: Sequence[str] = ()) -> None:
    """Check the text alone; nothing is imported.

    Raises:
        InputError: no dotted name, or one outside `ALLOWED` and `trusted`.
    """
    names = target.split(".")
    proper = all(name.isidentifier() and not name.startswith("__") for name in names)
    if not proper or not within(target, (*ALLOWED, *trusted)):
        raise InputError(
            f"model._target_ must name something in {', '.join(ALLOWED)} or a package of "
            f"trust=[...], got '{target}'"
        )


def locate(target: str, trusted: Sequence[str] = ()) -> Any:
    """Import and return the class or function that `target` names.

    Only modules in `ALLOWED` and `trusted` are imported.

    Raises:
        InputError: not allowed, not found, neither class nor function, or defined elsewhere.
    """
    check_target(target, trusted)
    packages = (*ALLOWED, *trusted)
    path = _package(target, packages)
    assert path is not None
    found: Any = _import(path, target)
    for name in target[len(path) + 1 :].split(".") if target != path else ():
        found = _member(found, path, name, target)
        path = f"{path}.{name}"
        if isinstance(found, ModuleType):
            _check_home(found.__name__, target, packages)
    if not (inspect.isclass(found) or inspect.isfunction(found)):
        kind = type(found).__name__
        raise InputError(
            f"model._target_ must name a class or a function, '{target}' is of type {kind}"
        )
    _check_home(found.__module__, target, packages)
    return found


def _check_home(module: object, target: str, packages: Sequence[str]) -> None:
    if not isinstance(module, str) or not within(module, packages):
        raise InputError(
            f"model._target_ must name something defined in {', '.join(ALLOWED)} or a package of "
            f"trust=[...], '{target}' leads to {module}"
        )


def _member(owner: Any, path: str, name: str, target: str) -> Any:
    """The attribute `name` of a module or class, or the submodule of that name."""
    try:
        return getattr(owner, name)
    except AttributeError:
        pass
    except Exception as error:  # packages that import lazily fail here
        raise InputError(_broken(target, f"{type(error).__name__}: {one_line(error)}")) from error
    if hasattr(owner, "__path__"):
        return _import(f"{path}.{name}", target, known=dir(owner))
    raise InputError(_unknown(target, path, name, dir(owner)))


def _import(path: str, target: str, known: Iterable[str] = ()) -> ModuleType:
    try:
        return importlib.import_module(path)
    except ModuleNotFoundError as error:
        parent, _, name = path.rpartition(".")
        if error.name == path and parent:
            raise InputError(_unknown(target, parent, name, known)) from error
        hint = "; is its folder on PYTHONPATH?" if error.name == path else ""
        reason = f"{one_line(error)}{hint}"
    except Exception as error:
        reason = f"{type(error).__name__}: {one_line(error)}"
    raise InputError(_broken(target, reason))


def _broken(target: str, reason: str) -> str:
    return f"model._target_ '{target}' cannot be imported: {reason}"


def _unknown(target: str, path: str, name: str, known: Iterable[str]) -> str:
    public = [word for word in known if not word.startswith("_")]
    return f"model._target_ '{target}': {path} has no '{name}'{nearest(name, public)}"
