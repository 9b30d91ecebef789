"""What the doctor says, and the words that its checks share."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal

from sweepstack.config.errors import one_line

Level = Literal["problem", "hint", "fact"]
LEVELS: tuple[Level, ...] = ("problem", "hint", "fact")
"""The most important first: results cannot be trusted or used; something is worth doing; known."""


@dataclass(frozen=True)
class Finding:
    """One thing that a person should know of a study.

    Attributes:
        kind: what it is about, for example "edge" or "overfitting".
        level: one of `LEVELS`.
        text: one sentence with its numbers, plain text.
        command: overrides of the sweep that act on it, as words of a shell; None where there is
            nothing to do, or nothing that is known to help.
    """

    kind: str
    level: Level
    text: str
    command: str | None = None


def plain(text: object, limit: int = 120) -> str:
    """Text of a study in one line, without control characters."""
    return one_line(text, limit)


def short(value: Any) -> str:
    """A value for people: four digits, 0.0001 as 1e-4."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return plain(value, 60)
    if isinstance(value, int) or (value == round(value, 0) and abs(value) < 1e6):
        return str(int(value))
    text = f"{value:.4g}" if abs(value) >= 1e-3 else f"{value:.3g}"
    return re.sub(r"e([+-])0*(\d)", lambda m: f"e{m[1].strip('+')}{m[2]}", text)


def percent(share: float) -> str:
    """For example "37 %"; "0.4 %" below two."""
    return f"{100 * share:.1f} %" if 0 < share < 0.02 else f"{100 * share:.0f} %"


def count(n: int, what: str) -> str:
    """For example "1 trial", "1,200 trials"."""
    return f"{n:,} {what}" + ("" if n == 1 else "s")
