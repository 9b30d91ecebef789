"""The few statistics that the checks use, on NumPy arrays."""

from __future__ import annotations

from math import comb, erfc, sqrt

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]


def binomial_tail(successes: int, n: int, p: float) -> float:
    """P(X >= successes) for X ~ Binomial(n, p): how easily chance alone does as much."""
    return sum(comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(successes, n + 1))


def ranks(values: Array) -> Array:
    """Ranks from 1, ties share their mean rank; (n,)."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    means: Array = ends - (counts - 1) / 2
    return means[inverse.reshape(-1)]


def greater(one: Array, other: Array) -> float:
    """One-sided p of the Mann-Whitney U test that `one` tends to be greater than `other`.

    Normal approximation with the correction for ties and for continuity; 1 where nothing differs.
    """
    n, m = len(one), len(other)
    if not n or not m:
        return 1.0
    both = np.concatenate([one, other])
    u = ranks(both)[:n].sum() - n * (n + 1) / 2
    _, ties = np.unique(both, return_counts=True)
    total = n + m
    variance = n * m / 12 * (total + 1 - (ties**3 - ties).sum() / (total * max(total - 1, 1)))
    if variance <= 0:
        return 1.0
    return float(erfc((u - n * m / 2 - 0.5) / sqrt(2 * variance)) / 2)


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
