"""What the doctor says, how values read in it, and the statistics that its checks share."""

from __future__ import annotations

import re
from dataclasses import dataclass
from math import sqrt
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from sweepstack.config.errors import one_line

Array: TypeAlias = npt.NDArray[np.float64]
Mask: TypeAlias = npt.NDArray[np.bool_]
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
        command: overrides of the sweep that act on it, quoted for a shell; None where there is
            nothing to do, or nothing that is known to help.
    """

    kind: str
    level: Level
    text: str
    command: str | None = None


def short(value: Any) -> str:
    """A value for people: four digits, 0.0001 as 1e-4."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return one_line(value, 60)
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


def roughness(values: Array) -> float:
    """The standard deviation of the noise on a curve whose trend is smooth.

    The median of absolute second differences, whose standard deviation is √6 times that of
    independent noise, scaled to a normal distribution (x 1.4826). NaN for fewer than 4 points.
    """
    if len(values) < 4:
        return float("nan")
    return float(1.4826 * np.median(np.abs(np.diff(values, 2))) / sqrt(6))


def explained(values: Array, full: Array, reduced: Array) -> tuple[float, float]:
    """Partial F test of the columns that `full` has besides those of `reduced`.

    Args:
        values: (n,).
        full, reduced: design matrices (n, columns), a constant among the columns.

    Returns:
        p, and the share of what `reduced` leaves open that the columns explain, less what chance
        columns would (partial ε², Kelley 1935). (NaN, 0) where it cannot be told: nothing is open,
        or the columns say nothing that those of `reduced` do not.
    """
    from scipy.special import fdtrc

    rest, rank = _residual(values, full)
    before, rank_before = _residual(values, reduced)
    degrees, free = rank - rank_before, len(values) - rank
    if degrees < 1 or free < 1 or before <= 1e-12 * max(float(values @ values), 1e-300):
        return float("nan"), 0.0
    gained = max(before - rest, 0.0)
    if rest <= 0:
        return 0.0, 1.0
    share = max(0.0, (gained - degrees * rest / free) / before)
    return float(fdtrc(degrees, free, gained / degrees / (rest / free))), share


def _residual(values: Array, design: Array) -> tuple[float, int]:
    """Sum of squares that `design` leaves, and its rank."""
    # Normal equations: the columns are few, zeros and ones, and the rows may be 10,000.
    gram, right = design.T @ design, design.T @ values
    solution, _, rank, _ = np.linalg.lstsq(gram, right, rcond=1e-10)
    return float(np.sum((values - design @ solution) ** 2)), int(rank)
