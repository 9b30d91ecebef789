"""The trust rule: which Python objects a config may name, and which recorded overrides count.

A `_target_` may come from a study, a checkpoint or a report, and building it runs code. One rule
holds for every config. A name is accepted

- in a closed table: the layers of torch.nn, the classification models of torchvision.models
  without weights, and sweepstack's MLP; as an optimizer, the optimizers of torch.optim. Nothing in
  it reads files, opens networks, runs its arguments, or takes packages to trust;
- in a package that the user trusts by name (`trust=[...]`, `--trust`), where it must be defined in
  such a package too: modules import others, so `mypackage.os.system` is in mypackage. What a file
  says about trust is never read. sweepstack itself cannot be trusted: its functions load configs.

Arguments that hold a `_target_` of their own follow the same rule. Imports torch and torchvision
only when their names are asked for, and no package that is not trusted.
"""

from __future__ import annotations

import importlib
import inspect
import re
import sys
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from sweepstack.config.errors import InputError, nearest, one_line

Maker = Callable[..., Any]

_LISTED = {"optimizer._target_": "an optimizer of torch.optim or ", "data._target_": ""}
_MODELS = "a layer of torch.nn, a model of torchvision.models"
_HERE = __name__.partition(".")[0]


def within(name: str, packages: Iterable[str]) -> bool:
    """Whether the dotted `name` is one of `packages` or lies inside one."""
    return _package(name, packages) is not None


def _package(name: str, packages: Iterable[str]) -> str | None:
    inside = (p for p in packages if name == p or name.startswith(f"{p}."))
    return min(inside, key=len, default=None)


def _rule(key: str) -> str:
    listed = _LISTED.get(key, f"{_MODELS} or ")
    return f"{key} must name {listed}something defined in a package of trust=[...]"


@cache
def table(library: str, key: str = "model._target_") -> Mapping[str, Maker]:
    """The closed table: what may be built untrusted, by its public name and by that of its home.

    Args:
        library: torch, torchvision or sweepstack; the table of any other is empty.
        key: of the config, which says what is built.
    """
    public: dict[str, Maker] = {}
    if key == "optimizer._target_":
        if library == "torch":
            from torch import optim

            public = {
                f"torch.optim.{name}": kind
                for name, kind in vars(optim).items()
                if inspect.isclass(kind) and issubclass(kind, optim.Optimizer)
                # The first is none by itself, the other takes sparse gradients only.
                if name not in ("Optimizer", "SparseAdam")
            }
    elif key == "data._target_":
        pass  # a dataset reads files
    elif library == "torch":
        from torch import nn

        public = {
            f"torch.nn.{name}": layer
            for name, layer in vars(nn).items()
            if inspect.isclass(layer) and issubclass(layer, nn.Module)
            # DataParallel, which takes devices, has another home.
            if layer.__module__.startswith("torch.nn.modules.")
        }
    elif library == "torchvision":
        from torchvision import models

        names = models.list_models(module=models)
        public = {f"torchvision.models.{name}": getattr(models, name) for name in names}
    elif library == _HERE:
        from sweepstack.models.networks import Mlp

        public = {_home(Mlp): Mlp}
    return {**public, **{_home(make): make for make in public.values()}}


def _home(found: Any) -> str:
    return f"{found.__module__}.{found.__qualname__}"


def _table_of(name: str, key: str) -> Mapping[str, Maker]:
    return table(name.partition(".")[0], key)


def check_target(target: object, trusted: Sequence[str] = (), key: str = "model._target_") -> None:
    """Check a name alone; no package of `trusted` is imported.

    Raises:
        InputError: no dotted name, or one outside of the table and `trusted`.
    """
    name = str(target)
    listed = _table_of(name, key)
    if name in listed:
        return
    proper = all(part.isidentifier() and not part.startswith("__") for part in name.split("."))
    if not proper or not within(name, _own(trusted)):
        why = f"; {_HERE} itself cannot be trusted" if within(name, [_HERE]) else ""
        near = nearest(name, listed)
        if name == "torchvision.models.get_model":
            near = "; did you mean model=torchvision model.arch=NAME?"
        if key == "optimizer._target_":  # also of a name without its package
            near = nearest(f"torch.optim.{name.rpartition('.')[2]}", table("torch", key))
        raise InputError(f"{_rule(key)}, got '{one_line(target)}'{why}{near}")


def _own(trusted: Sequence[str]) -> list[str]:
    return [package for package in trusted if not within(package, [_HERE])]


def locate(
    target: str,
    trusted: Sequence[str] = (),
    arguments: Mapping[str, Any] | None = None,
    key: str = "model._target_",
) -> Maker:
    """Import and return the class or function that `target` names.

    Args:
        target: a dotted name.
        trusted: packages that the user trusts; only their modules are imported.
        arguments: of the later call.
        key: of the config, which says what is built.

    Raises:
        InputError: not allowed, not found, neither class nor function, defined elsewhere, or
            arguments that name what is not allowed or ask torchvision for weights.
    """
    check_target(target, trusted, key)
    _check_nested(arguments or {}, trusted)
    try:
        found = _table_of(target, key).get(target) or _walk(target, _own(trusted))
    except InputError as error:
        pairs = ((_rule("model._target_"), _rule(key)), ("model._target_", key))
        lines = error.mistakes
        for old, new in pairs:
            lines = [line.replace(old, new) for line in lines]
        raise InputError(lines) from error
    if within(found.__module__, ["torchvision"]) and not within("torchvision", trusted):
        for key, value in (arguments or {}).items():
            if key.startswith(("weights", "pretrained")) and value is not None:
                raise InputError(
                    f"model.{key} of '{target}' must be null, got {one_line(value)}: weights are "
                    "downloaded only with trust=[torchvision]"
                )
    return found


def _check_nested(node: Any, trusted: Sequence[str]) -> None:
    """A trusted module may build what its arguments name."""
    if isinstance(node, Mapping):
        if "_target_" in node:
            check_target(node["_target_"], trusted)
        node = node.values()
    elif not isinstance(node, list | tuple):
        return
    for inner in node:
        _check_nested(inner, trusted)


def _walk(target: str, packages: Sequence[str]) -> Maker:
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
    if table(found.__module__.partition(".")[0]).get(_home(found)) is not found:
        _check_home(found.__module__, target, packages)
    return typing.cast(Maker, found)


def _check_home(module: object, target: str, packages: Sequence[str]) -> None:
    if not isinstance(module, str) or not within(module, packages):
        raise InputError(f"{_rule('model._target_')}, '{target}' leads to {module}")


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


# --- overrides that a study or a manifest records ------------------------------------------------

_WORD = re.compile(r"(?:\+\+?|~)?(?P<key>[A-Za-z_][\w./@-]*)(?:=(?P<value>.*))?")
_OPTION = re.compile(r"'?[\w+-]+(?:[./][\w+-]+)*'?")
_REFERENCE = re.compile(r"\$\{[\w.]+\}")


def parts(word: str) -> list[str]:
    """The names in an override's key: of `+a/b@c.d=x` a, b, c and d."""
    return re.split(r"[./@]", word.partition("=")[0].lstrip("+~"))


def beyond_values(word: str) -> str | None:
    """Why a recorded override is refused; None where it only sets a value or picks an option."""
    match = _WORD.fullmatch(word)
    if match is None or not word.isprintable():
        return "is not of the form KEY=VALUE"
    key, value = match["key"], match["value"] or ""
    if ".." in key or "${" in _REFERENCE.sub("", value):
        return "calls a resolver or leaves its folder"
    several = re.fullmatch(r"\[(.*)\]", value)
    options = [name.strip() for name in several[1].split(",")] if several else [value]
    is_option = ".." not in value and all(not name or _OPTION.fullmatch(name) for name in options)
    if "." not in key.partition("@")[0] and key not in ("trust", "metrics") and not is_option:
        return "does not name an option of a group"
    return None


def see_own_packages(packages: Sequence[str]) -> None:
    """Let `trust=[mypackage]` find a package in the working folder, as `python -m` does."""
    if packages and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
