"""How many trials failed or diverged, and do the best lie next to them?"""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np
import pandas as pd

from sweepstack.config.commands import shell
from sweepstack.reporting.doctor import overrides
from sweepstack.reporting.doctor.chance import Array
from sweepstack.reporting.doctor.evidence import FINISHED, Case, Evidence
from sweepstack.reporting.doctor.finding import Finding, Level, count, percent, plain, short

HINT, PROBLEM = 0.1, 0.5
"""Shares of failed trials from which it is worth a look, and from which it is a problem."""
FEWEST = 3
"""Failed trials below which nothing is made of where they lie."""
BORDER = 0.15
"""How far from the failed ones, as a share of the range, the best still border on them."""
_NOT_FINITE = re.compile(r"\b(nan|inf|infinite|not finite|diverged?|overflow)\b", re.I)


def check(evidence: Evidence) -> Iterator[Finding]:
    """The share of failed and diverged trials, and whether they border on the best.

    Source: the tuning playbook, "Identifying bad search space boundaries" (many infeasible
    trials) and "How can optimization failures be debugged": where the best learning rate lies at
    the edge of instability, warmup or clipping may allow a larger and better one.

    Rule: failed are trials in that state, and complete ones whose objective is infinite; diverged
    are those of them whose error speaks of nan or inf. No trial completed, or at least half
    failed: a problem. At least a tenth of ten or more: a hint. Fewer: a fact. The border, for each
    parameter of numbers with at least 3 failed trials: beyond a value on one side at least half
    of all trials failed, none of the best (top tenth, at least 5) lies there, and the very best
    is nearer to it than 15 % of the range on the parameter's own scale: a hint, whatever the share.
    """
    finished = evidence.frame[evidence.frame["state"].isin(FINISHED)]
    if finished.empty:
        return
    failed = _failed(evidence, finished)
    n, of = int(failed.sum()), len(finished)
    if n:
        reason = _reason(finished[failed])
        said = f"{n:,} of {count(of, 'trial')} failed ({percent(n / of)}){reason}"
        if n == of:
            said = (
                f"all {count(of, 'trial')} failed{reason}"
                if n > 1
                else f"the one trial failed{reason}"
            )
        level: Level = "fact"
        if n == of or (n >= PROBLEM * of and of >= FEWEST):
            level = "problem"
        elif n >= HINT * of and of >= 10:
            level = "hint"
        kind = "diverged" if _diverged(finished[failed]) * 2 >= n else "failed"
        border = list(_borders(evidence, finished, failed)) if n >= FEWEST else []
        yield Finding(kind, level, said)
        yield from border
    elif not (finished["state"] == "complete").any():
        yield Finding("pruning", "problem", f"all {count(of, 'trial')} were pruned, none completed")


def _failed(evidence: Evidence, finished: pd.DataFrame) -> pd.Series:
    failed = finished["state"] == "failed"
    for goal in evidence.frame.attrs.get("objectives", {}):
        values = pd.to_numeric(finished[goal], errors="coerce").astype("float64")
        failed |= (finished["state"] == "complete") & np.isinf(values)
    return failed


def _errors(failed: pd.DataFrame) -> pd.Series:
    if "error" not in failed:
        return pd.Series(dtype="object")
    return failed["error"].dropna().astype(str)


def _diverged(failed: pd.DataFrame) -> int:
    infinite = int((failed["state"] == "complete").sum())
    return infinite + int(_errors(failed).map(lambda e: bool(_NOT_FINITE.search(e))).sum())


def _reason(failed: pd.DataFrame) -> str:
    """The most frequent error; numbers in it differ from trial to trial."""
    errors = _errors(failed)
    if errors.empty:
        return ""
    alike = errors.map(lambda error: re.sub(r"\d+", "0", error))
    first = errors[alike == alike.mode().iloc[0]].iloc[0]
    return f", most often with: {plain(first)}"


def _borders(evidence: Evidence, finished: pd.DataFrame, failed: pd.Series) -> Iterator[Finding]:
    if evidence.goal is None or len(evidence.configurations) < 5:
        return
    for case in evidence.cases:
        listed = overrides.numbers(case)
        bounds = (min(listed), max(listed)) if listed else overrides.span(case)
        if bounds is None or case.column not in evidence.varied:
            continue
        rows = evidence.within(case, finished)
        best = evidence.within(case, evidence.best)
        if not best.empty and evidence.within(case, evidence.best.head(1)).size:
            yield from _border(evidence, case, bounds, rows, failed[rows.index], best)


def _border(
    evidence: Evidence,
    case: Case,
    bounds: tuple[float, float],
    rows: pd.DataFrame,
    failed: pd.Series,
    best: pd.DataFrame,
) -> Iterator[Finding]:
    log = case.entry.get("log") or _is_geometric(case)

    def place(values: pd.Series) -> Array:
        numbers = pd.to_numeric(values, errors="coerce").to_numpy(dtype=float)
        low, high = bounds
        share = (numbers - low) / (high - low)
        found: Array = np.log(numbers / low) / np.log(high / low) if log else share
        return found

    if int(failed.sum()) < FEWEST:
        return
    at, good = place(rows[case.column]), place(best[case.column])
    bad = failed.to_numpy()
    if np.isnan(at).any():
        return
    for upper in (True, False):
        side = 1 if upper else -1
        beyond = at * side > (good * side).max()
        if not (beyond & bad).sum() >= FEWEST or 2 * (beyond & bad).sum() < beyond.sum():
            continue
        # Failures that lie on both sides have another cause.
        if (bad & beyond).sum() < 0.8 * bad.sum():
            continue
        edge = np.sort(at[beyond & bad] * side)[0] * side
        if abs(edge - good[0]) > _border_of(case):
            continue
        worst = rows[case.column].to_numpy()[at == edge][0]
        value = best[case.column].iloc[0]
        text = (
            f"the best {case.column}, {short(float(value))}, borders on failure: "
            f"{int((beyond & bad).sum())} of the {count(int(beyond.sum()), 'trial')} "
            f"{'above' if upper else 'below'} the best ones failed, from {short(float(worst))} on"
        )
        yield Finding("diverged", "hint", text, _remedy(evidence, case, upper))
        return


def _border_of(case: Case) -> float:
    """On a list the value next to the best borders on it."""
    listed = overrides.numbers(case)
    return 1.5 / (len(listed) - 1) if listed else BORDER


def _is_geometric(case: Case) -> bool:
    listed = sorted(overrides.numbers(case) or [0.0])
    return listed[0] > 0 and listed[-1] / listed[0] >= 10


def _remedy(evidence: Evidence, case: Case, upper: bool) -> str | None:
    """Warmup for a learning rate, of a tenth of the steps; else nothing that surely helps."""
    steps, warmup = evidence.config("training.max_steps"), evidence.config("schedule.warmup_steps")
    if case.column != "optimizer.lr" or not upper or warmup != 0 or not isinstance(steps, int):
        return None
    return shell(f"schedule.warmup_steps={max(1, steps // 10)}")
