"""Are the best trials near an edge of the space?"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd

from sweepstack.config.commands import shell
from sweepstack.reporting.doctor import chance, overrides
from sweepstack.reporting.doctor.evidence import Case, Evidence, best_of
from sweepstack.reporting.doctor.finding import Finding, count, percent, short

NEAR = 0.1
"""The share of a range that counts as its edge."""
ALPHA = 0.01
"""How rarely chance may put as many of the best at an edge."""
FEWEST, LEAST = 15, 5
"""Configurations below which nothing is said: tried ones, and complete ones among them."""


def check(evidence: Evidence) -> Iterator[Finding]:
    """Best trials at an edge: the search space is perhaps too narrow.

    Source: the tuning playbook, "Identifying bad search space boundaries": a space is suspicious
    if the best point sampled from it is close to its boundary.

    Rule, per parameter (per case of a key): the best are the top tenth of the configurations that
    were tried, at least 5; pruned trials are worse than all that completed. Near an edge is the
    outer tenth of a range, on its own scale, or the first or last value of a list of three or more
    numbers. An edge is named if at least half of the best and the very best lie there, if chance
    (binomial tail with p = 0.1, or 1/values of a list) would do as much in less than 1 of 100
    studies, and if what lies there is better than the rest: for a range by a Mann-Whitney U test
    (p < 0.05; a key that does nothing has its best anywhere, and a sampler that gathers points
    there says nothing of them), for a list by the best at the edge being above the best at the
    value next to it by more than one standard error of seeds.
    Left out: seeds; bounds beyond which nothing lies (`overrides.is_natural`: dropout 0, momentum
    0.99); fewer than 15 tried or 5 complete configurations, where it is unknown.
    """
    done = evidence.configurations
    if evidence.goal is None or done.empty:
        return
    tried = pd.concat([done, evidence.pruned], ignore_index=True)
    if len(tried) < FEWEST or len(done) < LEAST:
        swept = any(overrides.span(c) or overrides.numbers(c) for c in evidence.cases)
        if swept:
            text = (
                f"it is unknown whether the best lie at an edge of the space: "
                f"{count(len(done), 'complete configuration')} of {len(tried)} are too few to say"
            )
            yield Finding("edge", "fact", text)
        return
    for case in evidence.cases:
        if case.column in evidence.varied:
            rows = evidence.within(case, tried)
            if len(rows) >= FEWEST and np.isfinite(rows["score"]).sum() >= LEAST:
                yield from _of(evidence, case, rows)


def _of(evidence: Evidence, case: Case, rows: pd.DataFrame) -> Iterator[Finding]:
    values = pd.to_numeric(rows[case.column], errors="coerce").to_numpy(dtype=float)
    if np.isnan(values).any():
        return
    listed, bounds = overrides.numbers(case), overrides.span(case)
    if listed:
        low, high = min(listed), max(listed)
        places = np.searchsorted(sorted(listed), values) / (len(listed) - 1)
        chance_of, near = 1 / len(listed), 1e-9
    elif bounds:
        low, high = bounds
        scale = np.log if case.entry.get("log") else np.asarray
        places = (scale(values) - scale(low)) / (scale(high) - scale(low))
        chance_of, near = NEAR, NEAR
    else:
        return
    best = min(best_of(len(rows)), int(np.isfinite(rows["score"]).sum()))
    score = rows["score"].to_numpy(dtype=float)
    for upper in (False, True):
        bound = high if upper else low
        at = places >= 1 - near if upper else places <= near
        there = int(at[:best].sum())
        if overrides.is_natural(case, bound, upper) or not at[0] or 2 * there < best:
            continue
        if chance.binomial_tail(there, best, chance_of) >= ALPHA:
            continue
        if listed:
            is_better = _rises(rows, places, upper, len(listed))
        else:
            is_better = chance.greater(score[at], score[~at]) < 0.05
        if is_better:
            wider = overrides.widened(evidence, case, upper)
            yield Finding(
                "edge",
                "hint",
                _text(case, listed is not None, upper, bound, low, high, there, best),
                None if wider is None else shell(wider),
            )


def _rises(rows: pd.DataFrame, places: np.ndarray, upper: bool, values: int) -> bool:
    """Whether the best at the last value is above the best at the one next to it."""
    levels = np.rint(places * (values - 1)).astype(int)
    last, before = (values - 1, values - 2) if upper else (0, 1)
    at, beside = rows[levels == last], rows[levels == before]
    if at.empty or beside.empty:
        return not at.empty
    noise = np.sqrt(np.nanmedian(rows["std"] ** 2)) if rows["std"].notna().any() else 0.0
    error = noise * np.sqrt(1 / at["runs"].iloc[0] + 1 / beside["runs"].iloc[0])
    return bool(at["score"].max() - beside["score"].max() > error)


def _text(
    case: Case, listed: bool, upper: bool, bound: float, low: float, high: float, n: int, best: int
) -> str:
    which = f"{n} of the {best} best configurations"
    if case.when:
        with_ = " and ".join(f"{k}={'|'.join(map(str, v))}" for k, v in case.when.items())
        which += f" with {with_}"
    if listed:
        side = "largest" if upper else "smallest"
        return f"{which} have {case.column}={short(bound)}, the {side} value that was tried"
    scale = " (log scale)" if case.entry.get("log") else ""
    return (
        f"{which} have {case.column} in the {'upper' if upper else 'lower'} {percent(NEAR)} of its "
        f"range{scale}, {short(low)} to {short(high)}"
    )
