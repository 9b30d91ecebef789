"""Which trials end early: reads `hydra.sweeper.pruner`.

median, percentile and asha are ours and compare a trial with all trials that have reported at its
rung. The others are Optuna's: hyperband and wilcoxon compare in the order of asking or with
finished trials only, patient and threshold look at one trial.

Trials that run side by side must be compared with each other, in one stack as in several
processes. So a decision is a function of the reports alone: of every trial that has reported at the
rung, RUNNING, COMPLETE and PRUNED alike, FAIL excluded. When all reports of an evaluation are in
before the first question, the order of the questions changes nothing.

Notation: a *rung* is a step (the number that `report` is given); a trial *has reported at* a rung
when it has a report at it or after it, so that evaluations need not hit the rung. Its *loss* there
is its best value up to its first report at or after the rung, with the sign turned if the study
maximizes, so that a smaller loss is better. Best so far and not the newest value, because a trial
keeps its best state: what it would be worth if it stopped there. NaN and ±inf reports hold no
value; a trial that has nothing else up to there has the loss +inf, the worst. Equal losses are not
better than each other: ties continue.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import cache, partial
from itertools import accumulate
from typing import Any, Literal, NamedTuple

import optuna.pruners as optunas
from optuna import Study
from optuna.pruners import BasePruner
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from sweepstack.config import check
from sweepstack.config.errors import InputError
from sweepstack.config.sweeper import PRUNERS
from sweepstack.sweep.samplers import construct

_COMPARED = (TrialState.RUNNING, TrialState.COMPLETE, TrialState.PRUNED)


class Curve(NamedTuple):
    """A trial's reports: `steps` ascending, and at each the best loss so far."""

    steps: list[int]
    losses: list[float]

    @classmethod
    def of(cls, trial: FrozenTrial, direction: StudyDirection) -> Curve:
        """The reports of `trial`, in whatever order they came."""
        sign = -1.0 if direction == StudyDirection.MAXIMIZE else 1.0
        steps = sorted(trial.intermediate_values)
        values = (trial.intermediate_values[step] for step in steps)
        losses = (sign * value if math.isfinite(value) else math.inf for value in values)
        return cls(steps, list(accumulate(losses, min)))

    def at(self, rung: int) -> float | None:
        """The loss at `rung`; None when the trial has not reported at it."""
        index = bisect_left(self.steps, rung)
        return self.losses[index] if index < len(self.steps) else None

    @property
    def previous_step(self) -> int:
        """The last step but one; -1 when there is only one."""
        return self.steps[-2] if len(self.steps) > 1 else -1

    @property
    def first_step(self) -> int | None:
        """The first step >= 1 with a report; a report at step 0 is of an untrained model."""
        return next((step for step in self.steps[:2] if step >= 1), None)


class RungPruner(BasePruner):
    """Judges a trial once at each rung, at its first report at or after it.

    A pruner says in `rungs` where it judges and in `continues` how. The curves of finished trials
    change no more and are kept. A kept curve counts only for a trial of the same number that
    finished at the same time, so a pruner may serve several studies.
    """

    def __init__(self) -> None:
        self._finished: dict[int, tuple[datetime, Curve]] = {}

    @abstractmethod
    def rungs(self, mine: Curve, others: Callable[[], list[Curve]]) -> list[int]:
        """The rungs that the newest report of the curve `mine` is the first to reach.

        `others` gives the curves of all other trials that have reported and did not fail. It reads
        the study: not to be called where no decision depends on it.
        """

    @abstractmethod
    def continues(self, loss: float, losses: list[float], reported: int) -> bool:
        """Whether a trial with this best `loss` continues (+inf: it has no finite value), given the
        `losses` of the others at the rung; `reported` is the number of others anywhere."""

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        """Whether `trial` is pruned at its newest report; see the class.

        Raises:
            RuntimeError: the study has several objectives.
        """
        return self.decisions(study, [trial])[0]

    def decisions(self, study: Study, trials: Sequence[FrozenTrial]) -> list[bool]:
        """`prune` for each of `trials`, for a stack: the study is read once, not S times."""
        direction = study.direction
        curves = cache(partial(self._read, study))

        def is_pruned(trial: FrozenTrial) -> bool:
            def others() -> list[Curve]:
                return [each for number, each in curves().items() if number != trial.number]

            mine = Curve.of(trial, direction)
            rungs = self.rungs(mine, others) if mine.steps else []
            if not rungs:
                return False
            rivals = others()
            losses = (
                [at for each in rivals if (at := each.at(rung)) is not None] for rung in rungs
            )
            return not all(self.continues(mine.losses[-1], at, len(rivals)) for at in losses)

        return [is_pruned(trial) for trial in trials]

    def _read(self, study: Study) -> dict[int, Curve]:
        direction = study.direction
        trials = study.get_trials(deepcopy=False, states=_COMPARED)
        curves = {trial.number: self._curve(trial, direction) for trial in trials}
        return {number: each for number, each in curves.items() if each.steps}

    def _curve(self, trial: FrozenTrial, direction: StudyDirection) -> Curve:
        finished = trial.datetime_complete
        if finished is None:
            return Curve.of(trial, direction)
        kept = self._finished.get(trial.number)
        if kept is None or kept[0] != finished:
            kept = self._finished[trial.number] = (finished, Curve.of(trial, direction))
        return kept[1]


class PercentilePruner(RungPruner):
    """Prunes a trial when more than `percentile` % of the others are strictly better at the rung.

    With m other trials at the rung, b of them with a smaller loss, the trial continues iff
    100·b ≤ percentile·m. That is: its loss is at most the linearly interpolated percentile of all
    m + 1 losses, its own among them, so one cut serves all. A trial that has reported no finite
    value is pruned.

    Every interval is judged once, at the first report in it, and only those who continued report
    at the next one: a stack of trials that run in step shrinks to `percentile` % at each rung until
    no more than `n_min_trials` are left. A longer `interval_steps` gives them more time.

    After the median stopping rule of Golovin et al. 2017 (Google Vizier), which takes the running
    averages of completed trials where this takes the best so far of all trials.

    Args:
        percentile: the share in % that continues, 0 (the best and its equals) to 100 (all).
        n_startup_trials: nothing is pruned before this many other trials have reported at all.
        n_warmup_steps: the first rung; nothing is pruned before this step.
        interval_steps: steps from rung to rung.
        n_min_trials: nothing is pruned at a rung where fewer other trials have reported.

    Raises:
        InputError: a setting is out of its range.
    """

    def __init__(
        self,
        percentile: float,
        n_startup_trials: int = 5,
        n_warmup_steps: int = 0,
        interval_steps: int = 1,
        n_min_trials: int = 1,
    ) -> None:
        super().__init__()
        given = {
            "percentile": percentile,
            "n_startup_trials": n_startup_trials,
            "n_warmup_steps": n_warmup_steps,
            "interval_steps": interval_steps,
            "n_min_trials": n_min_trials,
        }
        check.settings(type(self).__name__, PRUNERS["percentile"], given)
        self._percentile = percentile
        self._n_startup_trials = n_startup_trials
        self._n_warmup_steps = n_warmup_steps
        self._interval_steps = interval_steps
        self._n_min_trials = n_min_trials

    def rungs(self, mine: Curve, others: Callable[[], list[Curve]]) -> list[int]:
        """The last rung at or before the newest report; none during the warmup."""
        step = mine.steps[-1]
        past = step - self._n_warmup_steps
        rung = step - past % self._interval_steps
        return [rung] if past >= 0 and rung > mine.previous_step else []

    def continues(self, loss: float, losses: list[float], reported: int) -> bool:
        """See the class."""
        if reported < self._n_startup_trials:
            return True
        if math.isinf(loss):
            return False
        better = sum(other < loss for other in losses)
        return len(losses) < self._n_min_trials or 100 * better <= self._percentile * len(losses)


class MedianPruner(PercentilePruner):
    """Prunes a trial whose loss is above the median: `PercentilePruner` with percentile 50."""

    def __init__(
        self,
        n_startup_trials: int = 5,
        n_warmup_steps: int = 0,
        interval_steps: int = 1,
        n_min_trials: int = 1,
    ) -> None:
        super().__init__(50.0, n_startup_trials, n_warmup_steps, interval_steps, n_min_trials)


class AshaPruner(RungPruner):
    """Prunes a trial that is not in the top 1/η of those that have reported at its rung so far.

    The rungs are r·η^(s+k), k = 0, 1, ..., below R. With n trials at the rung, itself included, b
    of them with a smaller loss, a trial continues iff n < η or b < ⌊n/η⌋; ties may make more than
    ⌊n/η⌋. A trial that has reported no finite value is pruned at its first rung. A report that
    jumps over several rungs must hold its own at each of them.

    Li et al. 2020, "A System for Massively Parallel Hyperparameter Tuning" (MLSys), algorithm 2,
    with trials that stop where the paper's pause: nothing is promoted later. Its notation; a
    resource is a step.

    Args:
        min_resource: r, in steps; "auto" is the smallest step >= 1 that any trial has reported.
        reduction_factor: η.
        min_early_stopping_rate: s; leaves out the first s rungs.
        max_resource: R, in steps, the budget of a trial that is never pruned: there it is finished
            and not judged. None judges at every rung.

    Raises:
        InputError: a setting is out of its range.
        ValueError: no rung lies below `max_resource`.
    """

    def __init__(
        self,
        min_resource: int | Literal["auto"] = "auto",
        reduction_factor: int = 3,
        min_early_stopping_rate: int = 0,
        max_resource: int | None = None,
    ) -> None:
        super().__init__()
        given = {
            "min_resource": min_resource,
            "reduction_factor": reduction_factor,
            "min_early_stopping_rate": min_early_stopping_rate,
            "max_resource": max_resource,
        }
        check.settings(type(self).__name__, PRUNERS["asha"], given)
        self._min_resource = min_resource
        self._factor = reduction_factor
        self._skipped = reduction_factor**min_early_stopping_rate
        self._max_resource = math.inf if max_resource is None else max_resource
        first = (1 if min_resource == "auto" else min_resource) * self._skipped
        if first >= self._max_resource:
            raise ValueError(f"max_resource must be > {first}, the first rung, got {max_resource}")

    def rungs(self, mine: Curve, others: Callable[[], list[Curve]]) -> list[int]:
        """See the class."""
        first: float
        if self._min_resource != "auto":
            first = self._min_resource
        else:
            started = (each.first_step for each in [mine, *others()])
            first = min((step for step in started if step is not None), default=math.inf)
        found: list[int] = []
        rung = first * self._skipped
        while rung <= mine.steps[-1] and rung < self._max_resource:
            if rung > mine.previous_step:
                found.append(int(rung))
            rung *= self._factor
        return found

    def continues(self, loss: float, losses: list[float], reported: int) -> bool:
        """See the class."""
        if math.isinf(loss):
            return False
        n = len(losses) + 1
        return n < self._factor or sum(other < loss for other in losses) < n // self._factor


# --- by name --------------------------------------------------------------------------------------

_WHERE = "hydra.sweeper.pruner"
_MAKE: Mapping[str, Callable[..., BasePruner]] = {
    "none": optunas.NopPruner,
    "median": MedianPruner,
    "percentile": PercentilePruner,
    "asha": AshaPruner,
    "hyperband": optunas.HyperbandPruner,
    "patient": optunas.PatientPruner,
    "threshold": optunas.ThresholdPruner,
    "wilcoxon": optunas.WilcoxonPruner,
}
CLASSES = {
    **{make.__name__: name for name, make in _MAKE.items()},
    "SuccessiveHalvingPruner": "asha",
}
"""Class -> name, for configs that name a class."""


def build(name: str, given: Mapping[str, Any], direction: str | Sequence[str]) -> BasePruner:
    """The pruner `name` with the settings `given`; the rest are the defaults of its class.

    Args:
        name: one of `PRUNERS`.
        given: its settings. `wrapped` of patient is null, a name, or a mapping with `name` and
            settings; it is asked only once patience has run out, so one that judges at rungs (asha,
            or a long interval) seldom acts.
        direction: of the study; with a list of several only `none` is allowed.

    Raises:
        InputError: one line for each mistake.
    """
    check.option(_WHERE, name, PRUNERS)
    if name != "none" and not isinstance(direction, str) and len(direction) > 1:
        raise InputError(
            f"{_WHERE} must be none with {len(direction)} objectives, got '{name}': "
            "pruning compares trials by one objective"
        )
    return _build(_WHERE, name, given)


def _build(where: str, name: str, given: Mapping[str, Any]) -> BasePruner:
    wrapped = _wrapped(f"{where}.wrapped", given.get("wrapped")) if name == "patient" else None
    values = check.settings(where, PRUNERS[name], given)
    if name == "patient":
        values["wrapped_pruner"] = wrapped
        values.pop("wrapped", None)
    if name == "hyperband":
        _check_brackets(where, values)
    return construct(where, _MAKE[name], values)


def _wrapped(where: str, given: object) -> BasePruner | None:
    if given is None:
        return None
    rest = dict(given) if isinstance(given, Mapping) else {"name": given}
    name = rest.pop("name", None)
    known = [known for known in PRUNERS if known not in ("none", "patient")]
    return _build(where, check.option(where, name, known), rest)


def _check_brackets(where: str, values: Mapping[str, Any]) -> None:
    # Optuna divides by zero at the first report when no bracket fits.
    lowest, highest = values.get("min_resource", 1), values.get("max_resource", "auto")
    if highest != "auto" and highest < lowest:
        raise InputError(f"{where}: max_resource must be >= {lowest}, min_resource, got {highest}")
