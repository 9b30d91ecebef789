"""Which values a trial tries: reads `hydra.sweeper.sampler`.

All are Optuna's, with Optuna's defaults except that qmc scrambles.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from typing import Any, Literal

from optuna import samplers
from optuna.samplers import BaseSampler

from sweepstack.config.errors import EnvironmentFault, InputError
from sweepstack.sweep import settings

_WHERE = "hydra.sweeper.sampler"
_SHARE = (float, {"ge": 0, "le": 1})
_STARTUP = (int, {"ge": 0})

_KINDS: Mapping[str, tuple[Callable[..., BaseSampler] | None, settings.Rules]] = {
    "tpe": (
        samplers.TPESampler,
        {
            "n_startup_trials": _STARTUP,
            "n_ei_candidates": (int, {"ge": 1}),
            "multivariate": (bool | None, {}),
            "group": (bool, {}),
            "constant_liar": (bool, {}),
        },
    ),
    "random": (samplers.RandomSampler, {}),
    "qmc": (
        samplers.QMCSampler,
        {
            "qmc_type": (Literal["sobol", "halton"], {}),
            "scramble": (bool, {}),
            "warn_independent_sampling": (bool, {}),
        },
    ),
    "grid": (None, {}),
    "gp": (
        samplers.GPSampler,
        {
            "n_startup_trials": _STARTUP,
            "deterministic_objective": (bool, {}),
            "warn_independent_sampling": (bool, {}),
        },
    ),
    "nsgaii": (
        samplers.NSGAIISampler,
        {
            "population_size": (int, {"ge": 2}),
            "mutation_prob": (float | None, _SHARE[1]),
            "crossover_prob": _SHARE,
            "swapping_prob": _SHARE,
        },
    ),
    "nsgaiii": (
        samplers.NSGAIIISampler,
        {
            "population_size": (int, {"ge": 2}),
            "mutation_prob": (float | None, _SHARE[1]),
            "crossover_prob": _SHARE,
            "swapping_prob": _SHARE,
            "dividing_parameter": (int, {"ge": 1}),
        },
    ),
    "cmaes": (
        samplers.CmaEsSampler,
        {
            "sigma0": (float, {"gt": 0}),
            "n_startup_trials": _STARTUP,
            "popsize": (int | None, {"ge": 2}),
            "consider_pruned_trials": (bool, {}),
            "use_separable_cma": (bool, {}),
            "with_margin": (bool, {}),
            "lr_adapt": (bool, {}),
            "warn_independent_sampling": (bool, {}),
        },
    ),
    "brute_force": (samplers.BruteForceSampler, {"avoid_premature_stop": (bool, {})}),
}
NAMES = tuple(_KINDS)
CLASSES = {
    "TPESampler": "tpe",
    "RandomSampler": "random",
    "QMCSampler": "qmc",
    "GridSampler": "grid",
    "GPSampler": "gp",
    "NSGAIISampler": "nsgaii",
    "create_nsgaii_sampler": "nsgaii",  # hydra-optuna-sweeper's
    "NSGAIIISampler": "nsgaiii",
    "create_nsgaiii_sampler": "nsgaiii",
    "CmaEsSampler": "cmaes",
    "BruteForceSampler": "brute_force",
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


def build_sampler(
    name: str, given: Mapping[str, Any], seed: int | None, *, trusted_storage: bool = False
) -> BaseSampler | None:
    """The sampler `name` with the settings `given`; None for grid, whose points are enqueued.

    Only given settings are passed on. TPE's default `constant_liar` keeps trials that are asked
    side by side apart.

    Args:
        name: one of `NAMES`.
        given: its settings.
        seed: the study's. With one worker it gives the same trials again. A worker gives
            each trial a sampler seeded by its number, but for those in `SHARED`: all of them must
            have the scrambling of qmc in common (None scrambles by 0).
        trusted_storage: whether unpickling what the storage holds is safe; cmaes does.

    Raises:
        InputError: one line for each mistake; cmaes without `trusted_storage`.
        EnvironmentFault: cmaes without the package of that name.
    """
    make, rules = _KINDS[settings.choice(_WHERE, name, NAMES)]
    idle = WITHOUT_EFFECT.get(name, {})
    given = {k: v for k, v in given.items() if not (k in idle and idle[k] in (None, v))}
    values = settings.read(_WHERE, rules, given)
    if make is None:
        return None
    if name == "cmaes":
        _check_cmaes(trusted_storage)
    if name == "qmc":
        values, seed = {"scramble": True, **values}, seed or 0
    return settings.construct(_WHERE, make, {**values, "seed": seed})


def _check_cmaes(trusted_storage: bool) -> None:
    if not trusted_storage:
        raise InputError(
            f"{_WHERE} cmaes unpickles its state from the storage, which can run any code: "
            "allow it with hydra.sweeper.trusted_storage=true if only you write there"
        )
    if importlib.util.find_spec("cmaes") is None:
        raise EnvironmentFault(f"{_WHERE} cmaes needs the package 'cmaes', which is not installed")
