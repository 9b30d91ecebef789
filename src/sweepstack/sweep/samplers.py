"""Which values a trial tries: reads `hydra.sweeper.sampler`.

All are Optuna's, with Optuna's defaults except that qmc scrambles.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, TypeVar

from optuna import Study, samplers
from optuna.distributions import BaseDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, RandomSampler
from optuna.trial import FrozenTrial

from sweepstack.config import check
from sweepstack.config.errors import EnvironmentFault, InputError, one_line
from sweepstack.config.sweeper import SAMPLERS

_WHERE = "hydra.sweeper.sampler"
_MAKE: Mapping[str, Callable[..., BaseSampler]] = {
    "tpe": samplers.TPESampler,
    "random": samplers.RandomSampler,
    "qmc": samplers.QMCSampler,
    "gp": samplers.GPSampler,
    "nsgaii": samplers.NSGAIISampler,
    "nsgaiii": samplers.NSGAIIISampler,
    "cmaes": samplers.CmaEsSampler,
    "brute_force": samplers.BruteForceSampler,
}
CLASSES = {
    **{make.__name__: name for name, make in _MAKE.items()},
    "GridSampler": "grid",
    "create_nsgaii_sampler": "nsgaii",  # hydra-optuna-sweeper's
    "create_nsgaiii_sampler": "nsgaiii",
}
"""Class -> name, for configs that name a class."""
WITHOUT_EFFECT: Mapping[str, Mapping[str, Any]] = {
    "tpe": {
        "consider_prior": True,
        "prior_weight": 1.0,
        "consider_magic_clip": True,
        "consider_endpoints": False,
        "warn_independent_sampling": None,
    },
    "qmc": {"warn_asynchronous_seeding": None},
    "cmaes": {"inc_popsize": None, "restart_strategy": None},
}
"""Settings in configs of hydra-optuna-sweeper that Optuna 5 ignores or takes one value of (None:
any, it changes nothing)."""
BLIND = ("random", "qmc")
"""Samplers that ask nothing of the parameters of trials that run."""
INDEPENDENT = (*BLIND, "grid", "brute_force")
"""Samplers that learn nothing from what earlier trials gave."""
SHARED = ("qmc", "cmaes")
"""Samplers whose trials are one sequence: all trials of a study are asked of one seed."""

Built = TypeVar("Built")


def build_sampler(
    name: str, given: Mapping[str, Any], seed: int | None, *, trusted_storage: bool = False
) -> BaseSampler | None:
    """The sampler `name` with the settings `given`; None for grid, whose points are enqueued.

    Args:
        name: one of `SAMPLERS`.
        given: its settings; only these are passed on.
        seed: the trial's, or the study's for samplers in `SHARED`; without one qmc scrambles by 0,
            so that all workers have its scrambling in common.
        trusted_storage: whether unpickling what the storage holds is safe; cmaes does.

    Raises:
        InputError: one line for each mistake; cmaes without `trusted_storage`.
        EnvironmentFault: cmaes without the package of that name.
    """
    declared = SAMPLERS[check.option(_WHERE, name, SAMPLERS)]
    idle = WITHOUT_EFFECT.get(name, {})
    given = {k: v for k, v in given.items() if not (k in idle and idle[k] in (None, v))}
    values = check.settings(_WHERE, declared, {"seed": seed, **given})
    if name == "grid":
        return None
    if name == "cmaes":
        _check_cmaes(trusted_storage)
        if seed is not None:
            values["independent_sampler"] = SeededByTrial(seed)
    if name == "qmc":
        values = {"scramble": True, **values, "seed": seed or 0}
    return construct(_WHERE, _MAKE[name], values)


def _check_cmaes(trusted_storage: bool) -> None:
    if not trusted_storage:
        raise InputError(
            f"{_WHERE} cmaes unpickles its state from the storage, which can run any code: "
            "allow it with hydra.sweeper.trusted_storage=true if only you write there"
        )
    if importlib.util.find_spec("cmaes") is None:
        raise EnvironmentFault(f"{_WHERE} cmaes needs the package 'cmaes', which is not installed")


class SeededByTrial(RandomSampler):
    """Draws each trial as `RandomSampler` with a seed of its own, whichever worker asks: random
    search, and of cmaes, which all trials share, start-up trials and choices. A trial is asked for
    all of its values before another one is."""

    def __init__(self, seed: int):
        super().__init__()
        self._seed = seed
        self._current: int | None = None

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """The next draw of this trial."""
        if self._current != trial.number:
            self._begin(_derived(self._seed, trial.number))
            self._current = trial.number
        return super().sample_independent(study, trial, param_name, param_distribution)

    def _begin(self, seed: int) -> None:
        """Draw as a new sampler of that seed, which takes fifty times as long to make."""
        try:
            from sweepstack.study.book.bulk import reseed

            reseed(self, seed)
        except (ImportError, AttributeError):  # another Optuna
            super().__init__(seed)


class PerTrial(BaseSampler):
    """Gives each trial a sampler of its own, seeded by its number: whoever asks, it draws the same.

    Without a seed, and for those in `SHARED`, all trials have one.

    Args:
        build: the sampler of a seed.
        seed: the study's.
        is_shared: whether all trials have one in any case.
        kept: samplers that are kept, those of as many trials as are asked for at once; one that
            learns (gp) holds what it has learnt.
    """

    def __init__(
        self,
        build: Callable[[int | None], BaseSampler],
        seed: int | None,
        *,
        is_shared: bool,
        kept: int = 1,
    ):
        self._one = build(seed) if is_shared or seed is None else None
        base = seed or 0
        self._by_number = lru_cache(maxsize=kept)(lambda number: build(_derived(base, number)))

    def _of(self, trial: FrozenTrial) -> BaseSampler:
        return self._one or self._by_number(trial.number)

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """See `BaseSampler`, as all that follow."""
        return self._of(trial).infer_relative_search_space(study, trial)

    def sample_relative(  # noqa: D102
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return self._of(trial).sample_relative(study, trial, search_space)

    def sample_independent(  # noqa: D102
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        return self._of(trial).sample_independent(study, trial, param_name, param_distribution)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:  # noqa: D102
        self._of(trial).before_trial(study, trial)


def _derived(seed: int, number: int) -> int:
    from sweepstack.data import streams  # which imports torch

    return streams.derive(seed, number) % 2**32


def construct(where: str, make: Callable[..., Built], values: Mapping[str, Any]) -> Built:
    """Call `make(**values)`, without Optuna's notices that a class is experimental.

    Raises:
        InputError: settings that are fine one by one and not together.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        try:
            return make(**values)
        except (TypeError, ValueError) as error:
            raise InputError(f"{where}: {one_line(error)}") from None
