"""Which parameters did nothing?"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd

from sweepstack.config.commands import shell
from sweepstack.reporting.doctor import chance, overrides
from sweepstack.reporting.doctor.chance import Array
from sweepstack.reporting.doctor.evidence import Case, Evidence
from sweepstack.reporting.doctor.finding import Finding, count, percent, plain

FEWEST = 40
"""Trials below which an effect may hide."""
BINS = 4
"""Quantile bins of a key of numbers."""
P, SHARE = 0.1, 0.02
"""An idle key has a larger p, and explains less than this of what the other keys leave open."""
KNOWN = 0.25
"""The keys must together explain so much that what one does could have been seen."""


def check(evidence: Evidence) -> Iterator[Finding]:
    """Swept keys that changed nothing that can be told from chance, and known twins.

    Source: the tuning playbook, "Identifying scientific, nuisance, and fixed hyperparameters": what
    does not matter is better fixed, and the budget spent on what does.

    Rule: per key, on the complete trials in which it exists (a conditional key among those alone),
    trials with the numbers of another left out, at least 40: the ranks of the objective (Conover
    and Iman 1981) are explained by main effects of all keys, choices as they are and numbers in 4
    quantile bins, seeds left to the noise. A key is idle if its partial F test has p > 0.1 and it
    explains less than 2 % of what the others leave open (partial ε²), among all and among the
    better half alone (where an effect that needs good company would show), and if all keys
    together explain at least a quarter: otherwise nothing is known, and nothing is said. Where
    trials agree in all other keys and the seed, as in a grid, it must not differ between them
    either (`_acts_in_blocks`). A key that decides whether another exists is not idle while that one
    acts. A hint.
    Trials that the sweeper found to be the same as another are a fact, with the keys in which
    these pairs differ.
    """
    yield from _twins(evidence)
    done = evidence.complete
    if evidence.goal is None or len(done) < FEWEST or len(evidence.varied) < 2:
        return
    idle = {key: found for key in evidence.varied if (found := _idle(evidence, done, key))}
    for key, (p, share, n) in idle.items():
        children = {case.column for case in evidence.cases if key in case.when}
        if (children & set(evidence.varied)) - set(idle):
            continue  # it decides whether there is something that acts
        text = (
            f"{key} did nothing that can be told from chance: it explains {percent(share)} of what "
            f"the other keys leave open (p = {p:.2g}, {count(n, 'trial')})"
        )
        yield Finding("idle-parameter", "hint", text, _fixing(evidence, key))


def _idle(evidence: Evidence, done: pd.DataFrame, key: str) -> tuple[float, float, int] | None:
    """p, the share that it explains, and of how many trials; None where it may do something."""
    there = done[key].notna().to_numpy()
    if there.sum() < FEWEST:
        return None
    # What exists only with some of its values tells them apart as well as the key itself.
    children = {case.column for case in evidence.cases if key in case.when}
    columns = {name: _design(done[name]) for name in evidence.varied if name not in children}
    score = done["score"].to_numpy(dtype=float)
    p, share, known = _effect(key, columns, score, there)
    # NaN, what cannot be told, is not idle either.
    if not (p > P and share < SHARE and known >= KNOWN):
        return None
    better = there & (score >= np.median(score[there]))
    if not _effect(key, columns, score, better)[0] > P or _acts_in_blocks(evidence, key, done):
        return None
    return p, share, int(there.sum())


def _effect(
    key: str, columns: dict[str, Array], score: Array, rows: np.ndarray
) -> tuple[float, float, float]:
    """p of `key`, the share of what the others leave open that it explains, and the share that all
    keys explain; (NaN, 0, 0) where there are too few rows for so many values."""
    constant = np.ones((int(rows.sum()), 1))
    others = [values[rows] for name, values in columns.items() if name != key]
    ranked = chance.ranks(score[rows])
    ranked = ranked - ranked.mean()
    reduced = np.hstack([constant, *others])
    full = np.hstack([reduced, columns[key][rows]])
    if len(ranked) < 1.5 * full.shape[1]:
        return float("nan"), 0.0, 0.0
    _, known = chance.explained(ranked, full, constant)
    p, share = chance.explained(ranked, full, reduced)
    return p, share, known


def _acts_in_blocks(evidence: Evidence, key: str, done: pd.DataFrame) -> bool:
    """Whether a key does something among trials that agree in all others.

    In 20 or more such blocks: the differences from each block's mean have p <= 0.1 in an F test,
    or are larger than seeds make them (a key that helps here and hurts there): their median
    square is more than half of the square of the standard deviation over seeds.
    """
    others = [name for name in evidence.keys if name != key]
    blocks = done["score"].groupby(evidence.codes(done, others) or [0] * len(done))
    several = (blocks.transform("size") > 1).to_numpy()
    if several.sum() < FEWEST:
        return False
    apart = (done["score"] - blocks.transform("mean")).to_numpy()[several]
    constant = np.ones((len(apart), 1))
    design = np.hstack([constant, _design(done[key])[several]])
    p, _ = chance.explained(apart, design, constant)
    std = evidence.configurations["std"].dropna()
    noise = float((std**2).median()) if len(std) else np.inf
    return bool(p <= P or np.median(apart**2) > 0.5 * max(noise, 0.0) > 0)


def _design(values: pd.Series) -> Array:
    """Indicator columns of a key's values or bins, all but the first; missing is a value."""
    numbers = pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values)
    if numbers and values.nunique() > 2 * BINS:
        cuts = values.quantile(np.arange(1, BINS) / BINS).to_numpy(dtype=float)
        codes = np.searchsorted(np.unique(cuts), values.to_numpy(dtype=float), side="right")
        codes = np.where(values.isna(), -1, codes)
    else:
        codes = pd.factorize(values)[0]
    _, codes = np.unique(codes, return_inverse=True)
    design: Array = np.eye(codes.max() + 1)[codes.reshape(-1)][:, 1:]
    return design


def _fixing(evidence: Evidence, key: str) -> str | None:
    """The override that fixes a key at what the best have most often."""
    cases: list[Case] = [case for case in evidence.cases if case.column == key]
    values = evidence.best[key].dropna()
    if len(cases) != 1 or values.empty:
        return None
    is_number = overrides.span(cases[0]) is not None
    value = values.iloc[0] if is_number else values.mode().iloc[0]
    if is_number and cases[0].entry.get("kind") == "float":
        value = float(f"{float(value):.2g}")
    found = overrides.fixed(cases[0], value)
    return None if found is None else shell(found)


def _twins(evidence: Evidence) -> Iterator[Finding]:
    repeats = evidence.frame[evidence.repeats]
    if repeats.empty:
        return
    originals = evidence.frame.set_index("number").reindex(
        pd.to_numeric(repeats["equals"], errors="coerce")
    )
    differing = []
    for key in evidence.keys:
        one, other = repeats[key].to_numpy(dtype=object), originals[key].to_numpy(dtype=object)
        both_missing = pd.isna(one) & pd.isna(other)
        if ((one != other) & ~both_missing).any():
            differing.append(plain(key))
    total = int((evidence.frame["state"] == "complete").sum())
    text = (
        f"{len(repeats):,} of {count(total, 'trial')} did the same as another and were not trained"
    )
    if differing:
        text += f": they differ only in {', '.join(differing)}"
    yield Finding("twins", "fact", text)
