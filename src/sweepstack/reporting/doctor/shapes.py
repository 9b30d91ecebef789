"""The shapes of learning curves: which trials improve until their end, saturate early, overfit, or
are noisy late.

A curve is a trial's metric at its evaluations, the mean over its seeds. Each shape is a mask over
the trials, and its rule stands with it. Notation: `T` trials, `E` evaluations; NaN where there was
none.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from sweepstack.reporting.doctor.chance import Array, Mask, roughness
from sweepstack.reporting.doctor.evidence import Evidence
from sweepstack.reporting.doctor.finding import short

FEWEST_STEPS = 5
"""Evaluations of a curve below which it is not judged."""
DECAYED = 0.1
"""Below this share of its largest a learning rate has decayed, and what improves is the decay."""


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
    def of(cls, evidence: Evidence) -> Curves | None:
        """None where the objective has no history."""
        curves = evidence.curves
        complete = evidence.complete.set_index("number")
        if curves.empty or complete.empty:
            return None
        # An infinite evaluation says nothing of a shape.
        curves = curves[curves.index.isin(complete.index)]
        curves = curves.where(np.isfinite(curves))
        full = curves.notna().sum(axis=1) >= FEWEST_STEPS
        curves = curves[full].dropna(axis=1, how="all")
        if curves.empty:
            none, nobody = np.zeros(0), np.zeros(0, dtype=bool)
            return cls(none, none, np.zeros((0, 0)), nobody, nobody, none, 0)
        steps = curves.columns.to_numpy(dtype=float)
        # Early stopping is a decision, not a curve that ends at its last step.
        ends = (curves.notna().to_numpy() * steps).max(axis=1)
        whole = ends >= 0.95 * np.median(ends)
        if "stopped" in complete:
            whole &= complete["stopped"].reindex(curves.index).isna().to_numpy()
        evaluated = int(curves.index.isin(evidence.best_trials).sum())
        curves = curves[whole]
        numbers = curves.index.to_numpy()
        return cls(
            steps,
            numbers,
            curves.to_numpy(dtype=float),
            np.isin(numbers, list(evidence.best_trials)),
            _decayed_trials(evidence, numbers),
            complete["score"].reindex(curves.index).to_numpy(dtype=float),
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
    def improving_text(self) -> str:
        """With what the best gained, median."""
        gain = float(np.median(self.gains[self.best]))
        return (
            f"still improving at the end (by {short(gain)} in the last quarter, median of the best)"
        )

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
    def saturated_text(self) -> str:
        """With the step by which it was reached."""
        last = float(self.steps[-1])
        return f"saturated early, by step {short(0.2 * last)} of {short(last)}"

    @property
    def noisy(self) -> Mask:
        """(T,) The `roughness` of its later half (5 evaluations or more) is larger than the
        distance from the best to the median trial, and than a tenth of that from the best to the
        median first evaluation: which trial wins is then decided by when it was looked at."""
        firsts = np.array([row[0] for _, row in self.packed])
        best = float(self.scores.max())
        bound = max(best - float(np.median(self.scores)), 0.1 * (best - float(np.median(firsts))))
        late = [row[len(row) // 2 :] for _, row in self.packed]
        rough = [roughness(row) if len(row) >= FEWEST_STEPS else 0.0 for row in late]
        noisy: Mask = np.array(rough) > bound if bound > 0 else np.zeros(len(rough), dtype=bool)
        return noisy


@dataclass(frozen=True)
class Losses:
    """Validation and training loss of the same trials; `validation`, `training` are (T, E)."""

    name: str
    validation: Array
    training: Array

    @classmethod
    def of(cls, evidence: Evidence, curves: Curves) -> Losses | None:
        """None where the history has not both."""
        tables = []
        for name in ("val_loss", "train_loss"):
            table = evidence.curve_of(name)
            if table.empty:
                return None
            table = table.reindex(index=curves.numbers, columns=curves.steps)
            tables.append(table.to_numpy(dtype=float))
        return cls("val_loss", tables[0], tables[1])

    @property
    def overfitting(self) -> Mask:
        """(T,) The validation loss has its smallest mean of three evaluations in the first 70 % of
        the curve and is at the end (mean of the last three) larger by 10 % and by three standard
        errors of its noise, while the training loss fell in between."""
        found = []
        for validation, training in zip(self.validation, self.training, strict=True):
            kept = ~np.isnan(validation) & ~np.isnan(training)
            found.append(_overfits(validation[kept], training[kept]))
        return np.array(found, dtype=bool)


def _overfits(validation: Array, training: Array) -> bool:
    if len(validation) < FEWEST_STEPS or not np.isfinite([validation, training]).all():
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


def _decayed_trials(evidence: Evidence, numbers: Array) -> Mask:
    rate = evidence.curve_of("lr")
    if rate.empty:
        return np.zeros(len(numbers), dtype=bool)
    rate = rate.reindex(numbers)
    last = rate.ffill(axis=1).iloc[:, -1]
    decayed: Mask = (last < DECAYED * rate.max(axis=1)).to_numpy(dtype=bool)
    return decayed
