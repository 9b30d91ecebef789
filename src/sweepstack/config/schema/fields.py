"""How a field of the schema is declared: its bounds, and whether slots of a stack may differ."""

from __future__ import annotations

from dataclasses import field
from typing import Any


def rule(**rules: Any) -> Any:
    """Declare a static field; `rules` are ge, gt, le, lt, the bounds of each number, and items, the
    most numbers of a list."""
    return field(metadata=rules)


def place(**rules: Any) -> Any:
    """Declare a field that says how a trial is run and changes nothing about it: slots may differ,
    and it is no part of what identifies a config."""
    return dynamic(place=True, **rules)


def dynamic(**rules: Any) -> Any:
    """Declare a field in which the slots of a stack may differ."""
    return rule(dynamic=True, **rules)
