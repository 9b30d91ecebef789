"""What pruning saved, and whether it was too early."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd

from sweepstack.config.commands import shell
from sweepstack.reporting.doctor.chance import roughness
from sweepstack.reporting.doctor.evidence import Evidence
from sweepstack.reporting.doctor.finding import Finding, count, percent, short

FEWEST, SHARE = 3, 0.1
"""Pruned trials, and their share of all pruned, that must look better than the best did."""


def check(evidence: Evidence) -> Iterator[Finding]:
    """Steps that pruning saved, and pruned trials that were on their way to the best.

    Source: successive halving gives up what is behind at a rung (Li et al. 2020, ASHA); the
    playbook asks to look at training curves before they are trusted.

    Rule, saved: each pruned trial would have taken the median steps of the complete ones; the
    share is of the steps that all trials would have taken. A fact.
    Rule, too early: at its last evaluation a pruned trial was above the median of the best (top
    tenth, at least 3 that have a curve) at the same step, by more than their noise (`roughness`);
    or it was below, had risen over its last three evaluations faster than they, and would at that
    pace have reached them within as many steps as it had taken, before the end. At least 3
    trials and a tenth of all pruned: a hint.
    """
    pruned = evidence.frame[evidence.frame["state"] == "pruned"]
    if pruned.empty:
        return
    yield from _saved(evidence, pruned)
    if evidence.goal is not None:
        yield from _too_early(evidence)


def _saved(evidence: Evidence, pruned: pd.DataFrame) -> Iterator[Finding]:
    complete = evidence.frame[(evidence.frame["state"] == "complete") & ~evidence.repeats]
    taken = _steps(evidence)
    of_pruned, of_complete = taken.reindex(pruned["number"]), taken.reindex(complete["number"])
    of_pruned, of_complete = of_pruned.dropna(), of_complete.dropna()
    if of_pruned.empty or of_complete.empty:
        return
    full = float(of_complete.median())
    saved = float((full - of_pruned).clip(lower=0).sum())
    total = float(of_complete.sum() + of_pruned.sum()) + saved
    if total > 0:
        trials = len(pruned) + len(complete)
        text = (
            f"pruning saved {percent(saved / total)} of all steps: {len(pruned):,} of "
            f"{count(trials, 'trial')} ended after {short(float(of_pruned.median()))} of "
            f"{short(full)} steps (median)"
        )
        yield Finding("pruning", "fact", text)


def _steps(evidence: Evidence) -> pd.Series:
    """Steps of each trial, by number: as it counted them, or its last evaluation."""
    frame = evidence.frame.set_index("number")
    if "steps" in frame:
        return pd.to_numeric(frame["steps"], errors="coerce").astype("float64")
    history = evidence.opened.history
    if history.empty:
        return pd.Series(dtype="float64")
    return history.groupby("number")["step"].max().astype("float64")


def _too_early(evidence: Evidence) -> Iterator[Finding]:
    curves = evidence.curves
    if curves.empty:
        return
    states = evidence.frame.set_index("number")["state"].reindex(curves.index)
    best = curves[curves.index.isin(evidence.best_trials)].dropna(axis=1, how="all")
    pruned = curves[states.to_numpy() == "pruned"].reindex(columns=best.columns)
    pruned = pruned.dropna(how="all")
    if len(best) < FEWEST or pruned.empty:
        return
    middle = best.median().to_numpy()
    noise = np.nanmedian([0.0, *(roughness(row[~np.isnan(row)]) for row in best.to_numpy())])
    noise = 0.0 if np.isnan(noise) else float(noise)
    steps = best.columns.to_numpy(dtype=float)
    values = pruned.to_numpy()
    places = np.where(~np.isnan(values), np.arange(values.shape[1]), -1)
    last = places.max(axis=1)
    at = values[np.arange(len(values)), last]
    above = at > middle[last] + noise
    overtaking = np.array(
        [not up and _overtakes(steps, row, middle) for up, row in zip(above, values, strict=True)]
    )
    n = int(above.sum() + overtaking.sum())
    if n < FEWEST or n < SHARE * len(pruned):
        return
    text = (
        f"{n} of {count(len(pruned), 'pruned trial')} may have been stopped too early: "
        f"{int(above.sum())} were above the best at the same step, {int(overtaking.sum())} were "
        "catching up"
    )
    yield Finding("pruning", "hint", text, _later(evidence, steps))


def _overtakes(steps: np.ndarray, row: np.ndarray, middle: np.ndarray) -> bool:
    known = np.flatnonzero(~np.isnan(row))
    if len(known) < 3:
        return False
    first, last = known[-3], known[-1]
    run = steps[last] - steps[first]
    gap = middle[last] - row[last]
    closing = (row[last] - row[first]) / run - (middle[last] - middle[first]) / run
    left = min(steps[last], steps[-1] - steps[last])
    # It must have come nearer at each evaluation: one jump is noise.
    gaps = (middle - row)[known[-3:]]
    return bool(closing > 0 and (np.diff(gaps) < 0).all() and gap / closing <= left)


def _later(evidence: Evidence, steps: np.ndarray) -> str | None:
    """The pruner's setting that lets trials live longer: twice to the first rung."""
    pruner = evidence.opened.asked.get("pruner")
    name = pruner.get("name") if isinstance(pruner, dict) else None
    first = int(2 * steps[0])
    key = {"asha": "min_resource", "median": "n_warmup_steps", "percentile": "n_warmup_steps"}
    if name not in key:
        return None
    return shell(f"hydra.sweeper.pruner.{key[name]}={first}")
