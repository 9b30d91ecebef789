"""How many trials failed or diverged, and do the best lie next to them?"""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np
import pandas as pd

from sweepstack.analysis.doctor import overrides
from sweepstack.analysis.doctor.finding import Array, Finding, Level, count, percent, short
from sweepstack.config.commands import shell
from sweepstack.config.errors import one_line
from sweepstack.study.keys import Parameter
from sweepstack.study.view import LARGEST, StudyView

HINT, PROBLEM = 0.1, 0.5
"""Shares of failed trials from which it is worth a look, and from which it is a problem."""
MIN_FAILED = 3
"""Failed trials below which nothing is made of where they lie."""
BORDER = 0.15
"""How far from the failed ones, as a share of the range, the best still border on them."""
_NOT_FINITE = re.compile(r"\b(nan|inf|infinite|not finite|diverged?|overflow)\b", re.I)


def check(view: StudyView) -> Iterator[Finding]:
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
    finished = view.finished
    values = finished[list(view.objectives)].abs()
    infinite = (finished["state"] == "complete") & (values >= LARGEST).any(axis=1)
    failed = (finished["state"] == "failed") | infinite
    n, of = int(failed.sum()), len(finished)
    if not n:
        if of and not (finished["state"] == "complete").any():
            text = f"all {count(of, 'trial')} were pruned, none completed"
            yield Finding("pruning", "problem", text)
        return
    errors = finished.loc[failed, "error"].dropna().astype(str) if "error" in finished else None
    errors = pd.Series(dtype="str") if errors is None else errors
    reason = _reason(errors)
    text = f"{n:,} of {count(of, 'trial')} failed ({percent(n / of)}){reason}"
    if n == of:
        text = f"{'all ' + count(n, 'trial') if n > 1 else 'the one trial'} failed{reason}"
    level: Level = "hint" if n >= HINT * of and of >= 10 else "fact"
    if n == of or (n >= PROBLEM * of and of >= MIN_FAILED):
        level = "problem"
    diverged = int(infinite.sum()) + sum(bool(_NOT_FINITE.search(error)) for error in errors)
    yield Finding("diverged" if diverged * 2 >= n else "failed", level, text)
    if n >= MIN_FAILED and view.has_one_objective and len(view.configurations) >= 5:
        for parameter in view.parameters:
            if parameter.column in view.varied:
                yield from _border(view, parameter, failed)


def check_chaos(view: StudyView) -> Iterator[Finding]:
    """Trials whose numbers rounding decides, of those that `sweepstack-study rerun --probe` probed.

    Rule: a rerun's probes, whose learning rates are off by a few roundings, differ in a loss by
    0.1 % or more (runs/rerun/compare.py). The best trial: a problem. Another: a hint. None: a
    fact. Of a trial that was not probed nothing is known.
    """
    chaotic = {trial: most for trial, (most, begins) in view.probed.items() if begins is not None}
    if not view.probed:
        return
    of = count(len(view.probed), "probed trial")
    if not chaotic:
        most = max(most for most, _ in view.probed.values())
        yield Finding("chaotic", "fact", f"rounding grows to {most:.1e} of the losses of {of}")
        return
    best = set(view.best_rows()["number"].head(1)) & set(chaotic)
    repeats = view.config("training.deterministic") is True
    named = ", ".join(map(str, sorted(chaotic)[:10])) + ", ..." * (len(chaotic) > 10)
    text = (
        f"{len(chaotic)} of {of} {'is' if len(chaotic) == 1 else 'are'} chaotic (trial {named}"
        f"{', the best' if best else ''}): rounding grows to {percent(max(chaotic.values()))} of "
        f"the losses, so that they depend on {'' if repeats else 'the width of the stack and '}"
        "the machine"
    )
    yield Finding("chaotic", "problem" if best else "hint", text)


def _reason(errors: pd.Series) -> str:
    """The most frequent error; numbers in it differ from trial to trial."""
    if errors.empty:
        return ""
    alike = errors.map(lambda error: re.sub(r"\d+", "0", error))
    return f", most often with: {one_line(errors[alike == alike.mode().iloc[0]].iloc[0], 120)}"


def _border(view: StudyView, parameter: Parameter, failed: pd.Series) -> Iterator[Finding]:
    listed = overrides.numbers(parameter)
    bounds = (min(listed), max(listed)) if listed else parameter.span
    rows, best = parameter.within(view.finished), parameter.within(view.best)
    bad = failed[rows.index].to_numpy()
    # The very best must have this parameter.
    if bounds is None or best.empty or best.index[0] != 0 or bad.sum() < MIN_FAILED:
        return
    low, high = bounds
    is_log = parameter.is_log or (listed and low > 0 and high / low >= 10)

    def place(values: pd.Series) -> Array:
        """As a share of the range."""
        numbers = pd.to_numeric(values, errors="coerce").to_numpy(dtype=float)
        share = (numbers - low) / (high - low)
        found: Array = np.log(numbers / low) / np.log(high / low) if is_log else share
        return found

    at, good = place(rows[parameter.column]), place(best[parameter.column])
    if np.isnan(at).any():
        return
    for side in (1, -1):
        beyond = at * side > (good * side).max()
        n = int((beyond & bad).sum())
        # Failures that lie on both sides have another cause.
        if n < MIN_FAILED or 2 * n < beyond.sum() or n < 0.8 * bad.sum():
            continue
        edge = (at[beyond & bad] * side).min() * side
        # On a list the value next to the best borders on it.
        if abs(edge - good[0]) > (1.5 / (len(listed) - 1) if listed else BORDER):
            continue
        worst = rows[parameter.column].to_numpy()[at == edge][0]
        value = best[parameter.column].iloc[0]
        text = (
            f"the best {parameter.column}, {short(float(value))}, borders on failure: "
            f"{n} of the {count(int(beyond.sum()), 'trial')} "
            f"{'above' if side > 0 else 'below'} the best failed, from {short(float(worst))} on"
        )
        yield Finding("diverged", "hint", text, _remedy(view, parameter, side > 0))
        return


def _remedy(view: StudyView, parameter: Parameter, upper: bool) -> str | None:
    """Warmup for a learning rate, of a tenth of the steps; else nothing that surely helps."""
    steps, warmup = view.config("training.max_steps"), view.config("schedule.warmup_steps")
    if parameter.column != "optimizer.lr" or not upper or warmup != 0 or not isinstance(steps, int):
        return None
    return shell(f"schedule.warmup_steps={max(1, steps // 10)}")
