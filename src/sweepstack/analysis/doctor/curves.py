"""Learning curves: still improving, saturated early, overfitting, noisy late; and what pruning
saved, or stopped too early.

A curve is a trial's metric at its evaluations, the mean over its seeds. Each shape is a mask over
the trials, and its rule stands with it. Notation: `T` trials, `E` evaluations; NaN where there was
none.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

from sweepstack.analysis.doctor.finding import (
    Array,
    Finding,
    Mask,
    count,
    percent,
    roughness,
    short,
)
from sweepstack.config.commands import shell
from sweepstack.study.view import StudyView

MIN_EVALUATIONS = 5
"""Evaluations of a curve below which it is not judged."""
MIN_CURVES = 3
"""Curves of the best below which nothing is judged."""
DECAYED = 0.1
"""Below this share of its largest a learning rate has decayed, and what improves is the decay."""
MIN_EARLY, EARLY_SHARE = 3, 0.1
"""Pruned trials, and their share of all pruned, that must look better than the best did."""


def check_shapes(view: StudyView) -> Iterator[Finding]:
    """The shape of the learning curves of the best, with counts over all complete trials.

    Source: the tuning playbook, "Examining the training curves": problematic overfitting, high
    step-to-step variance late in training, whether trials still improve at the end, whether they
    saturated long before it. Judged are trained trials that took all of their steps, with 5
    evaluations or more; at least 3 of them must be among the best (top tenth, at least 5), and at
    least half of these must show what is named (saturation: 80 %). The rules of each are at
    `Curves`.
    """
    curves = Curves.of(view) if view.has_one_objective else None
    if curves is None:
        return
    best = int(curves.best.sum())
    if len(curves.values) < MIN_CURVES or best < MIN_CURVES:
        if len(view.trained) >= MIN_CURVES:
            yield _unknown(view, curves)
        return

    def found(kind: str, which: Mask, text: str, command: str | None, share: float = 0.5) -> bool:
        n = int((which & curves.best).sum())
        if n >= MIN_CURVES and n >= share * best:
            of = f"{int(which.sum()):,} of {count(len(which), 'trial')}"
            of = of if best == len(which) else f"{n} of the {best} best trials ({of})"
            findings.append(Finding(kind, "hint", f"{of} are {text}", command))
        return 2 * n >= best

    findings: list[Finding] = []
    gain = short(float(np.median(curves.gains[curves.best])))
    text = f"still improving at the end (by {gain} in the last quarter, median of the best)"
    if not found("improving", curves.improving, text, _budget(view, 2.0)):
        last = float(curves.steps[-1])
        text = f"saturated early, by step {short(0.2 * last)} of {short(last)}"
        found("saturated", curves.saturated, text, _budget(view, 0.5), 0.8)
    text = "overfitting: val_loss rises while the training loss still falls"
    text += curves.gap(view)
    found("overfitting", curves.overfitting(view), text, _regularized(view))
    text = "noisy late: in the second half an evaluation decides more than the settings do"
    constant = view.config("schedule.name") == "constant"
    swept = any(key.partition(".")[0] == "schedule" for key in view.keys)
    decay = shell("schedule=cosine") if constant and not swept else None
    found("noisy", curves.noisy, text, decay)
    yield from findings


def _unknown(view: StudyView, curves: Curves) -> Finding:
    """Why nothing can be said, and ten evaluations where there were too few."""
    command = None
    if curves.evaluated < MIN_CURVES:
        why = f"fewer than {MIN_EVALUATIONS} evaluations per trial"
        steps = view.config("training.max_steps")
        if isinstance(steps, int) and steps >= 10 and "training.eval_every" not in view.keys:
            command = shell(f"training.eval_every={steps // 10}")
    else:
        why = f"fewer than {MIN_CURVES} of the best trials ran to the end"
        why += " (others stopped early, or had fewer steps to take)"
    return Finding("curves", "fact", f"learning curves cannot be judged: {why}", command)


def _budget(view: StudyView, factor: float) -> str | None:
    """So many times the steps, or epochs."""
    for key in ("training.max_steps", "training.max_epochs"):
        if key in view.keys:
            return None  # it is swept, and an edge if it is too small
        value = view.config(key)
        if isinstance(value, int) and not isinstance(value, bool) and value > 1:
            return shell(f"{key}={max(1, int(value * factor))}")
    return None


def _regularized(view: StudyView) -> str | None:
    """Dropout or weight decay to choose from, whichever is not yet there."""
    for key, values in (
        ("regularization.dropout", "0.0,0.2,0.4"),
        ("regularization.weight_decay", "0.0,0.0001,0.001"),
    ):
        if key not in view.keys and view.config(key) == 0:
            return shell(f"{key}={values}")
    return None


@dataclass(frozen=True)
class Curves:
    """The objective of complete trials at their evaluations, where more is better.

    Attributes:
        steps: (E,).
        numbers: (T,) of the trials.
        values: (T, E).
        best: (T,) whether it is one of the best.
        decayed: (T,) whether its learning rate had decayed at the end.
        scores: (T,) what the study made of it.
        evaluated: how many of the best have evaluations enough, also of those that are left out
            because they did not take all of their steps.
    """

    steps: Array
    numbers: Array
    values: Array
    best: Mask
    decayed: Mask
    scores: Array
    evaluated: int

    @classmethod
    def of(cls, view: StudyView) -> Curves | None:
        """None where the objective has no history."""
        trained = view.trained.set_index("number")
        curves = view.score_curves
        if curves.empty or trained.empty:
            return None
        # An infinite evaluation says nothing of a shape.
        curves = curves[curves.index.isin(trained.index)]
        curves = curves.where(np.isfinite(curves))
        curves = curves[curves.notna().sum(axis=1) >= MIN_EVALUATIONS].dropna(axis=1, how="all")
        steps = curves.columns.to_numpy(dtype=float)
        evaluated = int(curves.index.isin(view.best_trials).sum())
        if len(curves):
            # Early stopping is a decision, not a curve that ends at its last step.
            ends = (curves.notna().to_numpy() * steps).max(axis=1)
            whole = ends >= 0.95 * np.median(ends)
            if "stopped" in trained:
                whole &= trained["stopped"].reindex(curves.index).isna().to_numpy()
            curves = curves[whole]
        numbers = curves.index.to_numpy()
        rate = view.curve("lr").reindex(numbers)
        last = rate.ffill(axis=1).iloc[:, -1] if rate.size else pd.Series(np.nan, numbers)
        return cls(
            steps,
            numbers,
            curves.to_numpy(dtype=float),
            np.isin(numbers, list(view.best_trials)),
            (last < DECAYED * rate.max(axis=1)).to_numpy(dtype=bool),
            view.scores(trained).reindex(numbers).to_numpy(dtype=float),
            evaluated,
        )

    @cached_property
    def packed(self) -> list[tuple[Array, Array]]:
        """(steps, values) of each trial without gaps."""
        there = ~np.isnan(self.values)
        pairs = zip(self.values, there, strict=True)
        return [(self.steps[kept], row[kept]) for row, kept in pairs]

    @property
    def of_best(self) -> list[tuple[Array, Array]]:
        """`packed` of the best."""
        return [pair for pair, best in zip(self.packed, self.best, strict=True) if best]

    @cached_property
    def climb(self) -> float:
        """How far the best rise from their first evaluation to their highest, median."""
        return float(np.median([row.max() - row[0] for _, row in self.of_best]))

    @cached_property
    def gains(self) -> Array:
        """(T,) What each trial gained over the last quarter of its steps."""
        found = []
        for steps, row in self.packed:
            end = row[-max(1, len(row) // 8) :].mean()
            found.append(end - np.interp(0.75 * steps[-1], steps, row))
        return np.array(found, dtype=float)

    @property
    def improving(self) -> Mask:
        """(T,) A trial gained more than 3 % of the climb of the best over the last quarter of its
        steps, and has its highest value there.

        None is, unless the better half of all trials gained (a t test of their mean gain at about
        5 %, and the mean at least 0.75 of the noise of an evaluation: the best alone are chosen for
        a high value, which is more often one of the last). None is where the learning rate has
        decayed: a cosine improves until its end.
        """
        half = self.scores >= np.sort(self.scores)[-max(5, len(self.scores) // 2) :].min()
        gains = self.gains[half]
        error = gains.std(ddof=1) / np.sqrt(len(gains))
        if gains.mean() <= max(2 * error, 0.75 * self.noise):
            return np.zeros(len(self.gains), dtype=bool)
        high = [row[steps >= 0.75 * steps[-1]].max() >= row.max() for steps, row in self.packed]
        gained = self.gains > max(0.03 * self.climb, 0.0)
        improving: Mask = gained & np.array(high, dtype=bool) & ~self.decayed
        return improving

    @cached_property
    def noise(self) -> float:
        """Of an evaluation: the median `roughness` of the later two thirds of the best."""
        found = np.nan_to_num([roughness(row[len(row) // 3 :]) for _, row in self.of_best])
        return float(np.median(found))

    @property
    def saturated(self) -> Mask:
        """(T,) A trial is, within the first fifth of its steps, as high as its later half ever is
        on average, less 2 % of the climb of the best and its own `roughness` there; seen only where
        2 evaluations or more lie in that fifth."""
        found = []
        for steps, row in self.packed:
            early = steps <= 0.2 * steps[-1]
            late = row[len(row) // 2 :]
            slack = 0.02 * max(self.climb, 0.0) + float(np.nan_to_num(roughness(late)))
            found.append(bool(early.sum() >= 2 and row[early].max() >= late.mean() - slack))
        return np.array(found, dtype=bool)

    @property
    def noisy(self) -> Mask:
        """(T,) The `roughness` of its later half (5 evaluations or more) is larger than the
        distance from the best to the median trial, and than a tenth of that from the best to the
        median first evaluation: which trial wins is then decided by when it was looked at."""
        firsts = np.array([row[0] for _, row in self.packed])
        best = float(self.scores.max())
        bound = max(best - float(np.median(self.scores)), 0.1 * (best - float(np.median(firsts))))
        late = [row[len(row) // 2 :] for _, row in self.packed]
        rough = [roughness(row) if len(row) >= MIN_EVALUATIONS else 0.0 for row in late]
        noisy: Mask = np.array(rough) > bound if bound > 0 else np.zeros(len(rough), dtype=bool)
        return noisy

    def overfitting(self, view: StudyView) -> Mask:
        """(T,) The validation loss has its smallest mean of three evaluations in the first 70 % of
        the curve and is at the end (mean of the last three) larger by 10 % and by three standard
        errors of its noise, while the training loss fell in between. None is where the history has
        not both losses."""
        tables = [view.curve(name) for name in ("val_loss", "train_loss")]
        if any(table.empty for table in tables):
            return np.zeros(len(self.numbers), dtype=bool)
        aligned = [table.reindex(index=self.numbers, columns=self.steps) for table in tables]
        pairs = zip(*(table.to_numpy(dtype=float) for table in aligned), strict=True)
        kept = ((v, t, ~np.isnan(v) & ~np.isnan(t)) for v, t in pairs)
        return np.array([_overfits(v[both], t[both]) for v, t, both in kept], dtype=bool)

    def gap(self, view: StudyView) -> str:
        """The generalization gap of the best: train_accuracy less val_accuracy at their last
        evaluation, median; empty where the history has not both."""
        names = ("train_accuracy", "val_accuracy")
        tables = [view.curve(name).reindex(index=self.numbers[self.best]) for name in names]
        if any(table.empty for table in tables):
            return ""
        train, val = (table.ffill(axis=1).iloc[:, -1].to_numpy(dtype=float) for table in tables)
        if not np.isfinite(train - val).any():
            return ""
        middle = [short(float(np.nanmedian(each))) for each in (train, val)]
        return f" (train_accuracy {middle[0]}, val_accuracy {middle[1]} at the end, median)"


def _overfits(validation: Array, training: Array) -> bool:
    if len(validation) < MIN_EVALUATIONS or not np.isfinite([validation, training]).all():
        return False
    smooth = np.convolve(validation, np.ones(3) / 3, "valid")
    fitted = np.convolve(training, np.ones(3) / 3, "valid")
    least = int(smooth.argmin())
    if least > 0.7 * (len(smooth) - 1):
        return False
    rise = smooth[-1] - smooth[least]
    noise = np.nan_to_num(roughness(validation)) * np.sqrt(2 / 3)
    rose = rise > 0.1 * abs(smooth[least]) and rise > 3 * noise
    return bool(rose and fitted[-1] < fitted[least])


# --- pruning -------------------------------------------------------------------------------------


def check_pruning(view: StudyView) -> Iterator[Finding]:
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
    states = view.frame.set_index("number")["state"]
    pruned = states.index[states == "pruned"]
    if pruned.empty:
        return
    trained = ~view.duplicates.set_axis(states.index)
    complete = states.index[(states == "complete") & trained]
    steps = _steps(view)
    of_pruned, of_complete = steps.reindex(pruned).dropna(), steps.reindex(complete).dropna()
    if len(of_pruned) and len(of_complete):
        full = float(of_complete.median())
        saved = float((full - of_pruned).clip(lower=0).sum())
        total = float(of_complete.sum() + of_pruned.sum()) + saved
        if total > 0:
            text = (
                f"pruning saved {percent(saved / total)} of all steps: {len(pruned):,} of "
                f"{count(len(pruned) + len(complete), 'trial')} ended after "
                f"{short(float(of_pruned.median()))} of {short(full)} steps (median)"
            )
            yield Finding("pruning", "fact", text)
    if view.has_one_objective and not view.score_curves.empty:
        yield from _too_early(view, pruned)


def _steps(view: StudyView) -> pd.Series:
    """Steps of each trial, by number: as it counted them, or its last evaluation."""
    if "steps" in view.frame:
        return pd.to_numeric(view.frame.set_index("number")["steps"], errors="coerce")
    return view.history.groupby("number")["step"].max().astype("float64")


def _too_early(view: StudyView, numbers: pd.Index) -> Iterator[Finding]:
    curves = view.score_curves
    best = curves[curves.index.isin(view.best_trials)].dropna(axis=1, how="all")
    pruned = curves[curves.index.isin(numbers)].reindex(columns=best.columns).dropna(how="all")
    if len(best) < MIN_CURVES or pruned.empty:
        return
    middle = best.median().to_numpy()
    noise = float(np.nanmedian([0.0, *(roughness(row[~np.isnan(row)]) for row in best.to_numpy())]))
    steps, values = best.columns.to_numpy(dtype=float), pruned.to_numpy()
    last = np.where(~np.isnan(values), np.arange(values.shape[1]), -1).max(axis=1)
    above = values[np.arange(len(values)), last] > middle[last] + noise
    overtaking = [_overtakes(steps, row, middle) for row in values[~above]]
    n = int(above.sum()) + sum(overtaking)
    if n < MIN_EARLY or n < EARLY_SHARE * len(pruned):
        return
    text = (
        f"{n} of {count(len(pruned), 'pruned trial')} may have been stopped too early: "
        f"{int(above.sum())} were above the best at the same step, {sum(overtaking)} were "
        "catching up"
    )
    # What lets trials live longer: twice the steps to the first rung.
    pruner = view.asked.get("pruner")
    name = pruner.get("name") if isinstance(pruner, dict) else None
    key = {"asha": "min_resource", "median": "n_warmup_steps", "percentile": "n_warmup_steps"}
    later = None
    if isinstance(name, str) and name in key:
        later = shell(f"hydra.sweeper.pruner.{key[name]}={int(2 * steps[0])}")
    yield Finding("pruning", "hint", text, later)


def _overtakes(steps: Array, row: Array, middle: Array) -> bool:
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
