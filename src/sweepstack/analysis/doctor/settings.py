"""What the settings did: are the best at an edge of the space, do they differ by more than seed
noise, and which keys did nothing?"""

from __future__ import annotations

from collections.abc import Iterator
from math import comb

import numpy as np
import pandas as pd

from sweepstack.analysis.doctor import overrides
from sweepstack.analysis.doctor.finding import (
    Array,
    Finding,
    Mask,
    count,
    explained,
    percent,
    short,
)
from sweepstack.config.commands import shell
from sweepstack.config.errors import one_line
from sweepstack.study.frame import ranks
from sweepstack.study.keys import Parameter
from sweepstack.study.view import StudyView, best_of, is_numeric

NEAR = 0.1
"""The share of a range that counts as its edge."""
MIN_TRIED, MIN_COMPLETE = 15, 5
"""Configurations below which no edge is judged: tried ones, and complete ones among them."""
SEEDS = 5
"""Runs of a configuration that are enough."""
MIN_TRIALS = 40
"""Trials below which an effect may hide."""
BINS = 4
"""Quantile bins of a key of numbers."""
P, SHARE = 0.1, 0.02
"""An idle key has a larger p, and explains less than this of what the other keys leave open."""
KNOWN = 0.25
"""The keys must together explain so much that what one does could have been seen."""


# --- edges ---------------------------------------------------------------------------------------


def check_edges(view: StudyView) -> Iterator[Finding]:
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
    done = view.configurations
    if not view.has_one_objective or done.empty:
        return
    tried = pd.concat([done, view.pruned], ignore_index=True)
    if len(tried) < MIN_TRIED or len(done) < MIN_COMPLETE:
        if any(parameter.span or overrides.numbers(parameter) for parameter in view.parameters):
            text = (
                f"it is unknown whether the best lie at an edge of the space: "
                f"{count(len(done), 'complete configuration')} of {len(tried)} are too few to say"
            )
            yield Finding("edge", "fact", text)
        return
    for parameter in view.parameters:
        if parameter.column in view.varied:
            rows = parameter.within(tried)
            if len(rows) >= MIN_TRIED and np.isfinite(rows[".score"]).sum() >= MIN_COMPLETE:
                yield from _edges_of(view, parameter, rows)


def _edges_of(view: StudyView, parameter: Parameter, rows: pd.DataFrame) -> Iterator[Finding]:
    values = pd.to_numeric(rows[parameter.column], errors="coerce").to_numpy(dtype=float)
    listed, bounds = overrides.numbers(parameter), parameter.span
    if np.isnan(values).any() or not (listed or bounds):
        return
    if listed:
        low, high = min(listed), max(listed)
        places = np.searchsorted(sorted(listed), values) / (len(listed) - 1)
        share, near = 1 / len(listed), 1e-9
    elif bounds:
        low, high = bounds
        scale = np.log if parameter.is_log else np.asarray
        places = (scale(values) - scale(low)) / (scale(high) - scale(low))
        share = near = NEAR
    best = min(best_of(len(rows)), int(np.isfinite(rows[".score"]).sum()))
    for upper in (False, True):
        bound = high if upper else low
        at = places >= 1 - near if upper else places <= near
        there = int(at[:best].sum())
        if overrides.is_natural(parameter, bound, upper) or not at[0] or 2 * there < best:
            continue
        # P(X >= there), X ~ Binomial(best, share)
        chances = (comb(best, n) * share**n * (1 - share) ** (best - n) for n in range(there))
        if 1 - sum(chances) < 0.01 and (
            _rises(rows, places, upper, len(listed)) if listed else _is_greater(rows[".score"], at)
        ):
            text = f"{there} of the {best} best configurations{_edge_text(parameter, bound, upper)}"
            wider = overrides.widened(view, parameter, upper)
            yield Finding("edge", "hint", text, None if wider is None else shell(wider))


def _is_greater(score: pd.Series, at: Mask) -> bool:
    """Whether the scores at the edge tend to be greater than the others (see `check_edges`)."""
    from scipy.stats import mannwhitneyu

    if at.all() or score.nunique() < 2:
        return False
    test = mannwhitneyu(score[at], score[~at], alternative="greater", method="asymptotic")
    return bool(test.pvalue < 0.05)


def _rises(rows: pd.DataFrame, places: Array, upper: bool, values: int) -> bool:
    """Whether the best at the last value is above the best at the one next to it."""
    levels = np.rint(places * (values - 1)).astype(int)
    last, before = (values - 1, values - 2) if upper else (0, 1)
    at, beside = rows[levels == last], rows[levels == before]
    if at.empty or beside.empty:
        return not at.empty
    noise = np.sqrt(np.nanmedian(rows[".std"] ** 2)) if rows[".std"].notna().any() else 0.0
    error = noise * np.sqrt(1 / at[".runs"].iloc[0] + 1 / beside[".runs"].iloc[0])
    return bool(at[".score"].max() - beside[".score"].max() > error)


def _edge_text(parameter: Parameter, bound: float, upper: bool) -> str:
    conditions = [f"{key}={'|'.join(map(str, v))}" for key, v in parameter.when.items()]
    which = f" with {' and '.join(conditions)}" if conditions else ""
    if parameter.span is None:
        side = "largest" if upper else "smallest"
        return f"{which} have {parameter.column}={short(bound)}, the {side} value that was tried"
    low, high = parameter.span
    return (
        f"{which} have {parameter.column} in the {'upper' if upper else 'lower'} {percent(NEAR)} "
        f"of its range{' (log scale)' if parameter.is_log else ''}, {short(low)} to {short(high)}"
    )


# --- seed noise ----------------------------------------------------------------------------------


def check_seeds(view: StudyView) -> Iterator[Finding]:
    """Whether the best is better than the next ones, or luckier.

    Source: the tuning playbook, "Determining whether to adopt a training pipeline change":
    variance between runs of the same settings must be known before a difference is believed.

    Rule: runs of one configuration are its seeds: of trials with training.seeds > 1, or trials that
    differ in their seed alone. s² is the mean of the variances of the best (top tenth, at least
    5), weighted by their degrees of freedom; two configurations with n and m runs are told apart if
    their means differ by more than 2 s √(1/n + 1/m) (a t test with pooled variance at about 5 %).
    Among many the best is also the luckiest, so that this is the least that can be asked. Fewer
    than 4 degrees of freedom, or one run each: unknown, a fact. Two or more not told apart from the
    best with fewer than 5 runs: a hint to give them more seeds; with 5 or more a fact: then choose
    by something else, such as size or speed.
    """
    done = view.configurations
    if not view.has_one_objective or len(done) < 2:
        return
    more = shell(f"training.seeds={SEEDS}") if view.identity.get("config") else None
    several = view.best[view.best[".runs"] > 1]
    freedom = int((several[".runs"] - 1).sum())
    if freedom < 4:
        most = int(view.best[".runs"].max())
        text = (
            "it is unknown whether the best differ by more than seed noise: each was trained with "
            f"{f'at most {most} seeds' if freedom else 'one seed'}"
        )
        yield Finding("seed-noise", "fact", text, more if len(done) >= 5 else None)
        return
    variance = float(((several[".runs"] - 1) * several[".std"] ** 2).sum()) / freedom
    runs = int(done[".runs"].iloc[0])
    gap = done[".score"].iloc[0] - done[".score"].to_numpy()
    error = np.sqrt(variance * (1 / runs + 1 / done[".runs"].to_numpy()))
    tied = int((gap[1:] <= 2 * error[1:]).sum())
    noise = (
        "seed noise (standard error "
        f"{short(float(np.sqrt(variance / runs)))} over {count(runs, 'seed')})"
    )
    of = count(len(done), "configuration")
    if not tied:
        text = f"the best of {of} leads by more than {noise}"
        yield Finding("seed-noise", "fact", text)
        return
    text = f"the best {tied + 1} of {of} do not differ by more than {noise}"
    if runs < SEEDS and tied < len(done) - 1:
        yield Finding("seed-noise", "hint", f"{text}; more seeds may tell them apart", more)
    else:
        yield Finding("seed-noise", "fact", text)


# --- keys that did nothing -----------------------------------------------------------------------


def check_idle(view: StudyView) -> Iterator[Finding]:
    """Swept keys that changed nothing that can be told from chance, and known duplicates.

    Source: the tuning playbook, "Identifying scientific, nuisance, and fixed hyperparameters": what
    does not matter is better fixed, and the budget spent on what does.

    Rule: per key, on the trained trials in which it exists (a conditional key among those alone),
    at least 40: the ranks of the objective (Conover and Iman 1981) are explained by main effects of
    all keys, choices as they are and numbers in 4 quantile bins, seeds left to the noise. A key is
    idle if its partial F test has p > 0.1 and it explains less than 2 % of what the others leave
    open (partial ε²), among all and among the better half alone (where an effect that needs good
    company would show), and if all keys together explain at least a quarter: otherwise nothing is
    known, and nothing is said. Where trials agree in all other keys and the seed, as in a grid, it
    must not differ between them either (`_acts_in_blocks`). A key that decides whether another
    exists is not idle while that one acts. A hint.
    Duplicates are a fact, with the keys in which they differ from the trials they equal.
    """
    yield from _duplicates(view)
    done = view.trained
    if not view.has_one_objective or len(done) < MIN_TRIALS or len(view.varied) < 2:
        return
    children = {
        key: {other.column for other in view.parameters if key in other.when} for key in view.varied
    }
    designs = {key: _design(done[key]) for key in view.varied}
    idle = {}
    for key in view.varied:
        # What exists only with some of its values tells them apart as well as the key itself.
        columns = {name: designs[name] for name in view.varied if name not in children[key]}
        found = _idle(view, done, key, columns)
        if found is not None:
            idle[key] = found
    for key, (p, share, n) in idle.items():
        if (children[key] & set(view.varied)) - set(idle):
            continue  # it decides whether there is something that acts
        text = (
            f"{key} did nothing that can be told from chance: it explains {percent(share)} of what "
            f"the other keys leave open (p = {p:.2g}, {count(n, 'trial')})"
        )
        yield Finding("idle-parameter", "hint", text, _fixing(view, key))


def _idle(
    view: StudyView, done: pd.DataFrame, key: str, columns: dict[str, Array]
) -> tuple[float, float, int] | None:
    """p, the share that it explains, and of how many trials; None where it may do something."""
    there = done[key].notna().to_numpy()
    if there.sum() < MIN_TRIALS:
        return None
    score = view.scores(done)
    p, share, known = _effect(key, columns, score, there)
    # NaN, what cannot be told, is not idle either.
    if not (p > P and share < SHARE and known >= KNOWN):
        return None
    better = there & (score >= score[there].median()).to_numpy()
    if not _effect(key, columns, score, better)[0] > P or _acts_in_blocks(view, key, done):
        return None
    return p, share, int(there.sum())


def _effect(
    key: str, columns: dict[str, Array], score: pd.Series, rows: Mask
) -> tuple[float, float, float]:
    """p of `key`, the share of what the others leave open that it explains, and the share that all
    keys explain; (NaN, 0, 0) where there are too few rows for so many values."""
    constant = np.ones((int(rows.sum()), 1))
    others = [values[rows] for name, values in columns.items() if name != key]
    ranked = score[rows].rank().to_numpy()
    ranked = ranked - ranked.mean()
    reduced = np.hstack([constant, *others])
    full = np.hstack([reduced, columns[key][rows]])
    if len(ranked) < 1.5 * full.shape[1]:
        return float("nan"), 0.0, 0.0
    _, known = explained(ranked, full, constant)
    p, share = explained(ranked, full, reduced)
    return p, share, known


def _acts_in_blocks(view: StudyView, key: str, done: pd.DataFrame) -> bool:
    """Whether a key does something among trials that agree in all others.

    In 20 or more such blocks: the differences from each block's mean have p <= 0.1 in an F test,
    or are larger than seeds make them (a key that helps here and hurts there): their median
    square is more than half of the square of the standard deviation over seeds.
    """
    others = [name for name in view.keys if name != key]
    score = view.scores(done)
    blocks = score.groupby(ranks(done, others)[0] or [0] * len(done))
    several = (blocks.transform("size") > 1).to_numpy()
    if several.sum() < MIN_TRIALS:
        return False
    apart = (score - blocks.transform("mean")).to_numpy()[several]
    constant = np.ones((len(apart), 1))
    design = np.hstack([constant, _design(done[key])[several]])
    p, _ = explained(apart, design, constant)
    std = view.configurations[".std"].dropna()
    noise = float((std**2).median()) if len(std) else np.inf
    return bool(p <= P or np.median(apart**2) > 0.5 * max(noise, 0.0) > 0)


def _design(values: pd.Series) -> Array:
    """Indicator columns of a key's values or bins, all but the first; missing is a value."""
    if is_numeric(values) and values.nunique() > 2 * BINS:
        cuts = values.quantile(np.arange(1, BINS) / BINS).to_numpy(dtype=float)
        codes = np.searchsorted(np.unique(cuts), values.to_numpy(dtype=float), side="right")
        codes = np.where(values.isna(), -1, codes)
    else:
        codes = pd.factorize(values)[0]
    design: Array = pd.get_dummies(codes, drop_first=True, dtype=float).to_numpy()
    return design


def _fixing(view: StudyView, key: str) -> str | None:
    """The override that fixes a key at what the best have most often."""
    values = view.best[key].dropna()
    parameters = view.keys[key].parameters
    if len(parameters) != 1 or values.empty:
        return None
    [parameter] = parameters
    value = values.iloc[0] if parameter.span else values.mode().iloc[0]
    if parameter.span and not parameter.is_integer:
        value = float(f"{float(value):.2g}")
    found = overrides.fixed(parameter, value)
    return None if found is None else shell(found)


def _duplicates(view: StudyView) -> Iterator[Finding]:
    rows = view.frame[view.duplicates]
    if rows.empty:
        return
    numbers = pd.to_numeric(rows["equals"], errors="coerce")
    equal = view.frame.set_index("number").reindex(numbers).set_axis(rows.index)
    differing = [
        one_line(key, 120)
        for key in view.keys
        if ((rows[key] != equal[key]) & ~(rows[key].isna() & equal[key].isna())).any()
    ]
    total = int((view.frame["state"] == "complete").sum())
    text = f"{len(rows):,} of {count(total, 'trial')} equal another and were not trained"
    if differing:
        text += f": they differ only in {', '.join(differing)}"
    yield Finding("duplicates", "fact", text)
