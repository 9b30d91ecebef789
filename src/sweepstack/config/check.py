"""Fields of the schema: how their rules are declared, and one value against one of them (its type,
its range, what to say if it is wrong); and where two values of JSON differ."""

from __future__ import annotations

import json
import math
import operator
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import MISSING, field, fields
from typing import Any, Literal

from sweepstack.config.errors import InputError, nearest, one_line

_BOUNDS = {
    "gt": (">", operator.gt),
    "ge": (">=", operator.ge),
    "lt": ("<", operator.lt),
    "le": ("<=", operator.le),
}


def rule(*, default: Any = MISSING, **rules: Any) -> Any:
    """Declare a static field; `rules` are ge, gt, le, lt, the bounds of each number, and items, the
    most numbers of a list. A config may lack a field with a default, which is then no part of what
    identifies it: older studies and files do."""
    return field(default=default, metadata=rules)


def place(**rules: Any) -> Any:
    """Declare a field that says how a trial is run and changes nothing about it: slots may differ,
    and it is no part of what identifies a config."""
    return dynamic(place=True, **rules)


def dynamic(**rules: Any) -> Any:
    """Declare a field in which the slots of a stack may differ."""
    return rule(dynamic=True, **rules)


def value(path: str, hint: Any, rules: Mapping[str, Any], given: Any, mistakes: list[str]) -> Any:
    """Convert `given` to the annotated type and check its range; add what is wrong."""
    try:
        converted = _convert(hint, given)
    except ValueError:
        allowed = describe(hint)
        words = [str(word) for word in _literals(hint)]
        hint_text = nearest(given, words) if isinstance(given, str) else ""
        mistakes.append(f"{path} must be {allowed}, got {shown(given)}{hint_text}")
        return None
    several = isinstance(converted, tuple)
    if isinstance(converted, tuple) and len(converted) > rules.get("items", math.inf):
        mistakes.append(
            f"{path} must have at most {rules['items']} numbers, got {len(converted):,} of them"
        )
    numbers = converted if several else (converted,)
    for number in numbers:
        if isinstance(number, bool) or not isinstance(number, int | float):
            continue
        broken = [
            f"{symbol} {rules[name]}"
            for name, (symbol, holds) in _BOUNDS.items()
            if name in rules and not holds(number, rules[name])
        ]
        rule = f"{'hold numbers' if several else 'be'} {' and '.join(broken)}" if broken else ""
        if isinstance(number, float) and not math.isfinite(number):
            rule = "hold finite numbers" if several else "be a finite number"
        if rule:
            mistakes.append(f"{path} must {rule}, got {shown(given)}")
            break
    return converted


def settings(
    where: str, declared: Any, given: Mapping[str, Any], mistakes: list[str] | None = None
) -> dict[str, Any]:
    """The `given` settings, converted to the types of the dataclass `declared`.

    Args:
        where: the key that they stand under.
        declared: a class of `config/sweeper.py`.
        given: settings by name; the rest keep their defaults.
        mistakes: takes one line for each wrong setting, which is then left out of the result.

    Raises:
        InputError: without `mistakes`: one line for each unknown, missing or wrong setting.
    """
    hints = typing.get_type_hints(declared)
    known = {item.name: item.metadata for item in fields(declared)}
    found = [] if mistakes is None else mistakes
    required = [name for name, rules in known.items() if rules.get("required")]
    found += [f"{where}.{name} is missing" for name in required if name not in given]
    values: dict[str, Any] = {}
    for name, asked in given.items():
        path, before = f"{where}.{name}", len(found)
        if name not in known:
            allowed = f"it has {', '.join(known)}" if known else "it has no settings"
            found.append(f"unknown key '{path}', {allowed}{nearest(str(name), known)}")
        elif "example" in known[name]:
            shape = typing.get_origin(typing.get_args(hints[name])[0])
            values[name] = asked
            if asked is not None and not isinstance(asked, shape):
                example = known[name]["example"]
                found.append(f"{path} must look like {example}, got {shown(asked)}")
        elif hints[name] is Any:
            values[name] = asked
        else:
            values[name] = value(path, hints[name], known[name], asked, found)
        if len(found) > before:
            values.pop(name, None)
    if mistakes is None and found:
        raise InputError(found)
    return values


def option(where: str, given: object, known: Iterable[str]) -> str:
    """Return `given` if it is one of the `known` names.

    Raises:
        InputError: it is not.
    """
    names = list(known)
    if isinstance(given, str) and given in names:
        return given
    near = nearest(str(given), names)
    raise InputError(f"{where} must be one of {', '.join(names)}, got {shown(given)}{near}")


def shown(value: Any) -> str:
    """A value as an error shows it."""
    return "null" if value is None else one_line(repr(value), 80)


def _convert(hint: Any, value: Any) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        # The most specific first: null, words, truth values, whole numbers.
        for option in arguments:
            try:
                return _convert(option, value)
            except ValueError:
                continue
    elif origin is Literal:
        if value in arguments and not isinstance(value, bool):
            return value
    elif origin is tuple:
        if arguments[-1] is ... and not isinstance(value, list | tuple | type(None)):
            value = [value]  # hidden=100 is [100]
        if isinstance(value, list | tuple):
            if arguments[-1] is ...:
                return tuple(_convert(arguments[0], item) for item in value)
            if len(value) == len(arguments):
                return tuple(_convert(a, item) for a, item in zip(arguments, value, strict=True))
    elif hint is float:
        if isinstance(value, int | float) and not isinstance(value, bool):
            try:
                return float(value)
            except OverflowError:
                raise ValueError(value) from None
    elif isinstance(value, hint) and isinstance(value, bool) == (hint is bool):
        return value
    raise ValueError(value)


def _literals(hint: Any) -> list[Any]:
    if typing.get_origin(hint) is Literal:
        return list(typing.get_args(hint))
    return [word for part in typing.get_args(hint) for word in _literals(part)]


def describe(hint: Any) -> str:
    """Say in words what a type annotation allows, for errors and the key reference."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(describe(each) for each in arguments)
    if origin is Literal:
        return ("one of " if len(arguments) > 1 else "") + ", ".join(map(str, arguments))
    if origin is tuple:
        inner = {int: "whole numbers", float: "numbers", str: "strings"}[arguments[0]]
        return f"a list of {'' if arguments[-1] is ... else f'{len(arguments)} '}{inner}"
    return {
        type(None): "null",
        bool: "true or false",
        int: "a whole number",
        float: "a number",
        str: "a string",
    }[hint]


def differences(there: Any, here: Any, name: str = "") -> Iterator[str]:
    """Yield a line for each value that differs between two JSON values."""
    if isinstance(there, dict) and isinstance(here, dict):
        for key in dict.fromkeys([*here, *there]):
            inner = f"{name}.{key}" if name else key
            if key not in there:
                yield f"{inner}: not in the study, now {_json(here[key])}"
            elif key not in here:
                yield f"{inner}: {_json(there[key])} in the study, not set now"
            else:
                yield from differences(there[key], here[key], inner)
    elif there != here or type(there) is not type(here):
        yield f"{name}: {_json(there)} in the study, now {_json(here)}"


def _json(value: Any) -> str:
    return one_line(json.dumps(value, ensure_ascii=False), 120)
