"""Every key of `hydra.sweeper` and of its groups `sampler` and `pruner`, declared once.

A field has its type, its default in Hydra's node, its meaning, and bounds as in `check.py`.
The plugin's nodes, the plan, the checks and docs/config.md are made from these classes, so a field
that is added here is accepted, checked and documented. A default of None in a sampler or pruner
leaves the setting to its class in Optuna or in `sweep/pruners.py`.

Every Hydra application of this machine imports this module at its start: it stands outside of
`schema`, whose import takes 40 ms, and imports neither torch, Optuna nor OmegaConf.
"""

# ruff: noqa: RUF009  # `key` returns a field
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from sweepstack import STORAGE


def key(default: Any, meaning: str, **rules: Any) -> Any:
    """Declare a key.

    Args:
        default: its value in Hydra's node.
        meaning: one line for the reference.
        rules: the bounds ge, gt, le, lt; `required` of what a node must give; `example` of a
            mapping or list, whose shape alone `check.settings` looks at; `allowed`, what the
            reference says instead of the type.
    """
    return field(default=default, metadata={"meaning": meaning, **rules})


def defaults(declared: Any) -> dict[str, Any]:
    """The default of each key of a class."""
    return {item.name: item.default for item in fields(declared)}


_group = dataclass(frozen=True, init=False, repr=False, eq=False)
"""Of classes that declare and are never made: cheap to import."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Keys that a plan holds as they are given."""

    n_jobs: int = key(1, "workers: processes here, or jobs of `hydra/launcher`", ge=1)
    workers_per_gpu: int | None = key(
        None, "most workers on one GPU of a host; null: no limit, they are spread evenly", ge=1
    )
    storage_timeout_s: float = key(
        120.0, "how long a storage that does not answer is tried again", ge=0
    )
    timeout_s: float | None = key(
        None, "no trial begins later than this after the start of the sweep", gt=0
    )
    max_steps_total: int | None = key(
        None, "no trial begins once all trials together have taken so many optimizer steps", ge=1
    )
    max_failure_rate: float = key(
        0.5, "share of trials that may fail; beyond it the exit code is 1", ge=0, le=1
    )
    max_restarts: int = key(
        3, "how often in a row a trial whose process died is run again without progress", ge=0
    )
    custom_search_space: str | None = key(
        None, "dotted name of a function (config, trial) that suggests more"
    )
    on_mismatch: Literal["refuse", "new"] = key(
        "refuse", "a study of this name with other trials: refuse, or open NAME_2 (new)"
    )
    duplicates: Literal["once", "train"] = key(
        "once", "equivalent trials: train one of them (once) or all (train)"
    )
    keep_models: Literal["best", "all", "none"] | int = key(
        "best",
        "trials whose best.pt is kept in the end: best (the Pareto front of several objectives), "
        "all, none, or how many of the best",
        ge=1,
    )
    artifacts: str | None = key(
        None,
        "where trials keep their files for all machines too: a shared folder, s3://BUCKET/PREFIX "
        "or gs://BUCKET/PREFIX; null: where the study has them, or nowhere",
    )
    trusted_storage: bool = key(False, "allow cmaes, which unpickles from the storage")
    report: bool = key(
        True, "write outputs/reports/STUDY.html, and notes and files for the dashboard, at the end"
    )
    dry_run: bool = key(False, "print what would be done, and do nothing")


@dataclass(frozen=True, kw_only=True)
class Sweeper(Settings):
    """All keys of `hydra.sweeper`; a plan is made of those declared here."""

    sampler: Any = key(
        "tpe",
        "which values are tried next, see below",
        allowed="an option of hydra/sweeper/sampler",
    )
    pruner: Any = key(
        "none", "which trials end early, see below", allowed="an option of hydra/sweeper/pruner"
    )
    study_name: str | None = key(
        None, "the study's name; null: made of the command, so that the same command finds it"
    )
    storage: str | None = key(
        STORAGE,
        "database URL, journal:///FILE or grpc://HOST:PORT; null: a temporary file, removed at the "
        "end",
    )
    direction: Any = key(
        None,
        "null: the metric's own (other applications: minimize)",
        allowed="minimize, maximize or null",
    )
    directions: Any = key(
        None, "one for each of several objectives", allowed="a list of minimize, maximize"
    )
    objectives: Any = key(
        None,
        "metrics, or num_parameters, steps, seconds, samples_per_s; null: `objective`",
        allowed="a list of names",
    )
    n_trials: int | None = key(
        None,
        "finished trials that the study is to have in all; null: every point of a grid",
        ge=1,
    )
    params: Mapping[str, Any] | None = key(
        None,
        "what is swept: key -> values as on the command line, or cases",
        allowed="a mapping",
        example="{init: 'he,xavier', optimizer.lr: 'interval(0.01,1)'}",
    )
    conditions: Mapping[str, Any] | None = key(
        None,
        "key -> {parent: values} under which it is set",
        allowed="a mapping",
        example="{optimizer.momentum: {optimizer: sgd}}",
    )
    enqueue: list[Any] | None = key(
        None,
        "known points that are tried first",
        allowed="a list",
        example="[{optimizer.lr: 0.1, init: he}]",
    )
    constraints: Mapping[str, Any] | None = key(
        None,
        'bounds of final numbers, `{num_parameters: "<= 100000"}`',
        allowed="a mapping",
        example='{num_parameters: "<= 100000"}',
    )


# --- hydra.sweeper.sampler -----------------------------------------------------------------------

_WARN = "log a line when a parameter is drawn independently of the others"
_STARTUP = "trials drawn at random before the sampler learns"


@_group
class Sampler:
    """What every sampler has."""

    seed: int | None = key(0, "null draws other trials each time", ge=0, lt=2**32)


@_group
class Random(Sampler):
    """Draws without regard to earlier trials."""


@_group
class Grid(Sampler):
    """Every point of the grid once, in order."""


@_group
class Tpe(Sampler):
    """Tree-structured Parzen estimator."""

    n_startup_trials: int = key(None, _STARTUP, ge=0)
    n_ei_candidates: int = key(
        None, "candidates among which the expected improvement chooses", ge=1
    )
    multivariate: bool | None = key(None, "model the parameters jointly")
    group: bool = key(None, "with multivariate: model conditional parameters in groups")
    constant_liar: bool = key(None, "keep trials that run at the same time apart")


@_group
class Qmc(Sampler):
    """Quasi-Monte Carlo sequences."""

    qmc_type: Literal["sobol", "halton"] = key(None, "the sequence")
    scramble: bool = key(None, "randomize the sequence; our default is true")
    warn_independent_sampling: bool = key(None, _WARN)


@_group
class Gp(Sampler):
    """Gaussian process."""

    n_startup_trials: int = key(None, _STARTUP, ge=0)
    deterministic_objective: bool = key(None, "the objective has no noise")
    warn_independent_sampling: bool = key(None, _WARN)


@_group
class NsgaII(Sampler):
    """Genetic algorithm for several objectives."""

    population_size: int = key(None, "trials of a generation", ge=2)
    mutation_prob: float | None = key(
        None, "chance to draw a parameter anew; null: 1 / number of parameters", ge=0, le=1
    )
    crossover_prob: float = key(None, "chance of a trial to have two parents", ge=0, le=1)
    swapping_prob: float = key(None, "chance of a parameter to change parents", ge=0, le=1)


@_group
class NsgaIII(NsgaII):
    """NSGA-II with reference points, for many objectives."""

    dividing_parameter: int = key(None, "density of the reference points", ge=1)


@_group
class CmaEs(Sampler):
    """Covariance matrix adaptation; needs trusted_storage."""

    sigma0: float = key(None, "initial standard deviation", gt=0)
    n_startup_trials: int = key(None, _STARTUP, ge=0)
    popsize: int | None = key(None, "trials of a generation", ge=2)
    consider_pruned_trials: bool = key(None, "learn from pruned trials too")
    use_separable_cma: bool = key(None, "a diagonal covariance matrix")
    with_margin: bool = key(None, "keep the variance of discrete parameters above a margin")
    lr_adapt: bool = key(None, "adapt the learning rate, for noisy objectives")
    warn_independent_sampling: bool = key(None, _WARN)


@_group
class BruteForce(Sampler):
    """Every point once, in random order."""

    avoid_premature_stop: bool = key(None, "cover every point for certain; may repeat some")


SAMPLERS: Mapping[str, type] = {
    "tpe": Tpe,
    "random": Random,
    "qmc": Qmc,
    "grid": Grid,
    "gp": Gp,
    "nsgaii": NsgaII,
    "nsgaiii": NsgaIII,
    "cmaes": CmaEs,
    "brute_force": BruteForce,
}


# --- hydra.sweeper.pruner ------------------------------------------------------------------------


@_group
class NoPruner:
    """Every trial is trained to its end."""


@_group
class Median:
    """Prune what is worse than the median at a rung."""

    n_startup_trials: int = key(
        None, "nothing is pruned before this many other trials have reported", ge=0
    )
    n_warmup_steps: int = key(None, "the first rung, in steps", ge=0)
    interval_steps: int = key(None, "steps from rung to rung", ge=1)
    n_min_trials: int = key(
        None, "nothing is pruned at a rung where fewer other trials have reported", ge=1
    )


@_group
class Percentile(Median):
    """Prune what is not in the best `percentile` % at a rung."""

    percentile: float = key(50.0, "share in % that continues", required=True, ge=0, le=100)


@_group
class Asha:
    """Asynchronous successive halving: the best 1 / reduction_factor continue at each rung."""

    min_resource: int | Literal["auto"] = key(
        None, "the first rung, in steps; auto: the first step that any trial reports", ge=1
    )
    reduction_factor: int = key(None, "each rung is this many times the one before", ge=2)
    min_early_stopping_rate: int = key(None, "number of first rungs that are left out", ge=0)
    max_resource: int | None = key(
        None, "steps of a whole trial; there and later nothing is pruned", ge=1
    )


@_group
class Hyperband:
    """Optuna's: several brackets of successive halving."""

    min_resource: int = key(None, "steps of the first rung", ge=1)
    max_resource: int | Literal["auto"] = key(None, "steps of a whole trial", ge=1)
    reduction_factor: int = key(None, "the best 1 / reduction_factor continue", ge=2)
    bootstrap_count: int = key(None, "trials that a rung needs before any may continue", ge=0)


@_group
class Patient:
    """Optuna's: prune what has not improved for a while."""

    patience: int = key(5, "reports without improvement that are tolerated", required=True, ge=0)
    min_delta: float = key(None, "what counts as an improvement", ge=0)
    wrapped: Any = key(
        None,
        "the pruner that decides then",
        allowed="null, a pruner's name, or a mapping with `name`",
    )


@_group
class Threshold:
    """Optuna's: prune what reports a value outside of bounds."""

    lower: float | None = key(None, "the smallest allowed value")
    upper: float | None = key(None, "the largest allowed value")
    n_warmup_steps: int = key(None, "nothing is pruned before this step", ge=0)
    interval_steps: int = key(None, "steps between two checks", ge=1)


@_group
class Wilcoxon:
    """Optuna's: prune what is worse than the best trial by a signed-rank test of equal steps."""

    p_threshold: float = key(None, "p-value below which a trial is pruned", ge=0, le=1)
    n_startup_steps: int = key(None, "reports before a trial can be pruned", ge=0)


PRUNERS: Mapping[str, type] = {
    "none": NoPruner,
    "median": Median,
    "percentile": Percentile,
    "asha": Asha,
    "hyperband": Hyperband,
    "patient": Patient,
    "threshold": Threshold,
    "wilcoxon": Wilcoxon,
}
