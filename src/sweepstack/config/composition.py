"""Composing thousands of trials: Hydra composes each set of group choices once.

A Hydra composition costs tens of milliseconds, most of it for the defaults list. Trials of a sweep
differ mostly in plain values, which change nothing in that list: the composition of everything else
is kept, and the values are put into a copy of it. The result is that of a full composition (a
property test compares them).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from omegaconf import DictConfig, OmegaConf

Plain = dict[str, Any]

# As Hydra's grammar has them, without what it writes in more than one way (1_000, inf).
_INTEGER = re.compile(r"-?(0|[1-9][0-9]*)")
_NUMBER = re.compile(r"([A-Za-z_][\w.]*)=(-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?)")


class Composition:
    """Composes overrides to plain nested values, without the `hydra` node.

    Args:
        load: a full composition of overrides.
        is_group: whether a key is a config group, whose choice changes the defaults list.
    """

    def __init__(self, load: Callable[[list[str]], DictConfig], is_group: Callable[[str], bool]):
        self._load, self._is_group = load, is_group
        self._parser = OverridesParser.create()
        self._kept: dict[tuple[str, ...], Plain | None] = {}
        self._parsed: dict[str, tuple[str, Any] | None] = {}

    def __call__(self, overrides: Sequence[str]) -> Plain:
        """The config of `overrides`, resolved; it must not be changed.

        Raises:
            hydra.errors.HydraException: an override names no key or option, or does not parse.
        """
        values: list[tuple[str, Any]] = []
        structural: list[str] = []
        for text in overrides:
            value = self._value(text)
            if value is None:
                structural.append(text)
            else:
                values.append(value)
        base = self._base(tuple(structural))
        if base is None:
            return self._full(overrides)
        plain: Plain = dict(base)  # what no value goes into is shared with other configs
        own = {key.partition(".")[0] for key, _ in values}
        plain.update((name, _copied(base[name])) for name in own if name in base)
        for key, value in values:
            if not _put(plain, key.split("."), _copied(value)):
                return self._full(overrides)  # which says what is wrong, or knows better
        return plain

    def _value(self, text: str) -> tuple[str, Any] | None:
        """(key, value) where an override sets one existing key to a number, word, list or null;
        None where it may change the defaults list."""
        number = _NUMBER.fullmatch(text)
        if number is not None:  # most of what a sweep tries, and slow to parse
            key, digits = number.groups()
            if not key.startswith("hydra.") and not self._is_group(key):
                return key, int(digits) if _INTEGER.fullmatch(digits) else float(digits)
        if text not in self._parsed:
            override = self._parser.parse_overrides([text])[0]
            plain = (override.key_or_group, _unquoted(override.value()))
            self._parsed[text] = plain if self._is_value(override) else None
        return self._parsed[text]

    def _is_value(self, override: Override) -> bool:
        """Whether an override only puts a plain value under a key."""
        plain = override.type == OverrideType.CHANGE and override.package is None
        if not plain or override.is_sweep_override() or "[" in override.key_or_group:
            return False
        if override.key_or_group.startswith("hydra.") or self._is_group(override.key_or_group):
            return False
        return not _interpolates(override.value()) and not isinstance(override.value(), dict)

    def _base(self, structural: tuple[str, ...]) -> Plain | None:
        """The kept composition, or None where values refer to each other."""
        if structural not in self._kept:
            raw = self._full(structural, resolve=False)
            self._kept[structural] = None if _interpolates(raw) else raw
        return self._kept[structural]

    def _full(self, overrides: Sequence[str], *, resolve: bool = True) -> Plain:
        cfg = self._load(list(overrides))
        cfg = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])
        raw = OmegaConf.to_container(cfg, resolve=resolve)
        assert isinstance(raw, dict)
        return {str(key): value for key, value in raw.items()}


def _interpolates(node: Any) -> bool:
    if isinstance(node, dict):
        return any(_interpolates(value) for value in node.values())
    if isinstance(node, list | tuple):
        return any(_interpolates(value) for value in node)
    return isinstance(node, str) and ("${" in node or node == "???")


def _put(node: Plain, path: Sequence[str], value: Any) -> bool:
    """Set an existing leaf; False where there is none or it is no leaf."""
    for key in path[:-1]:
        inner = node.get(key)
        if not isinstance(inner, dict):
            return False
        node = inner
    if path[-1] not in node or isinstance(node[path[-1]], dict):
        return False
    node[path[-1]] = value
    return True


def _copied(node: Any) -> Any:
    """A copy of plain nested values; `copy.deepcopy` takes ten times as long."""
    if isinstance(node, dict):
        return {key: _copied(value) for key, value in node.items()}
    return [_copied(item) for item in node] if isinstance(node, list) else node


def _unquoted(value: Any) -> Any:
    """Hydra's quoted strings as strings, also inside of lists."""
    if isinstance(value, list):
        return [_unquoted(item) for item in value]
    return getattr(value, "text", value)
