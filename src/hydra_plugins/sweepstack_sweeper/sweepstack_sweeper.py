"""`hydra/sweeper=sweepstack`: what Hydra discovers, and nothing more.

Every Hydra application on this machine imports this module at its start, so it imports neither
torch nor optuna; the sweep itself is in `_impl.py`. The nodes below are the defaults of
`hydra.sweeper` and its groups `sampler` and `pruner`; null means the default of Optuna or of the
pruner's class. What each key means stands in sweepstack.sweep.plan. No dataclasses here: Hydra 1.3
runs plugin modules before they are in `sys.modules`, which breaks them.
"""

from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

SWEEPER = {
    "_target_": "hydra_plugins.sweepstack_sweeper.sweepstack_sweeper.SweepstackSweeper",
    "_recursive_": False,
    "defaults": [{"sampler": "tpe"}, {"pruner": "none"}],
    "study_name": None,
    "storage": "sqlite:///outputs/studies.db",
    "direction": None,
    "directions": None,
    "objectives": None,
    "n_trials": None,
    "n_jobs": 1,
    "params": None,
    "conditions": None,
    "enqueue": None,
    "timeout_s": None,
    "max_steps_total": None,
    "max_failure_rate": 0.5,
    "max_restarts": 3,
    "constraints": None,
    "custom_search_space": None,
    "on_mismatch": "refuse",
    "duplicates": "once",
    "keep_models": "best",
    "trusted_storage": False,
    "report": True,
    "dry_run": False,
}
_MEDIAN = {
    "n_startup_trials": None,
    "n_warmup_steps": None,
    "interval_steps": None,
    "n_min_trials": None,
}
SAMPLERS: dict[str, dict[str, Any]] = {
    "tpe": {
        "n_startup_trials": None,
        "n_ei_candidates": None,
        "multivariate": None,
        "group": None,
        "constant_liar": None,
    },
    "random": {},
    "qmc": {"qmc_type": None, "scramble": None, "warn_independent_sampling": None},
    "grid": {},
    "gp": {
        "n_startup_trials": None,
        "deterministic_objective": None,
        "warn_independent_sampling": None,
    },
    "nsgaii": {
        "population_size": None,
        "mutation_prob": None,
        "crossover_prob": None,
        "swapping_prob": None,
    },
    "nsgaiii": {
        "population_size": None,
        "mutation_prob": None,
        "crossover_prob": None,
        "swapping_prob": None,
        "dividing_parameter": None,
    },
    "cmaes": {
        "sigma0": None,
        "n_startup_trials": None,
        "popsize": None,
        "consider_pruned_trials": None,
        "use_separable_cma": None,
        "with_margin": None,
        "lr_adapt": None,
        "warn_independent_sampling": None,
    },
    "brute_force": {"avoid_premature_stop": None},
}
PRUNERS: dict[str, dict[str, Any]] = {
    "none": {},
    "median": _MEDIAN,
    "percentile": {"percentile": 50.0, **_MEDIAN},
    "asha": {
        "min_resource": None,
        "reduction_factor": None,
        "min_early_stopping_rate": None,
        "max_resource": None,
    },
    "hyperband": {
        "min_resource": None,
        "max_resource": None,
        "reduction_factor": None,
        "bootstrap_count": None,
    },
    "patient": {"patience": 5, "min_delta": None, "wrapped": None},
    "threshold": {"lower": None, "upper": None, "n_warmup_steps": None, "interval_steps": None},
    "wilcoxon": {"p_threshold": None, "n_startup_steps": None},
}


def _store(group: str, name: str, node: dict[str, Any]) -> None:
    """Keep a node, unless another plugin has one of this name (hydra-optuna-sweeper's samplers,
    which this sweeper understands too)."""
    known: dict[str, Any] = ConfigStore.instance().repo
    for part in group.split("/"):
        known = known.get(part, {})
    if f"{name}.yaml" not in known:
        ConfigStore.instance().store(group=group, name=name, node=node, provider="sweepstack")


_store("hydra/sweeper", "sweepstack", SWEEPER)
for _name, _settings in SAMPLERS.items():
    _store("hydra/sweeper/sampler", _name, {"name": _name, "seed": 0, **_settings})
for _name, _settings in PRUNERS.items():
    _store("hydra/sweeper/pruner", _name, {"name": _name, **_settings})


class SweepstackSweeper(Sweeper):
    """Hands everything to `_impl`, which imports what a sweep needs."""

    def __init__(self, **node: Any) -> None:
        self.node = node

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Keep what Hydra says."""
        self.hydra_context, self.task_function = hydra_context, task_function
        self.config = config

    def sweep(self, arguments: list[str]) -> None:
        """Run the sweep that the command line and `hydra.sweeper` describe; a mistake ends the
        process with one line and its exit code.

        Raises:
            SystemExit: something is wrong, nothing completed, or a signal ended the sweep.
        """
        from sweepstack.config import commands
        from sweepstack.config.errors import SweepstackError

        assert self.hydra_context is not None
        assert self.task_function is not None
        assert self.config is not None
        try:
            from hydra_plugins.sweepstack_sweeper import (
                _impl,  # may find that an Optuna will not do
            )

            _impl.sweep(self.node, arguments, self.hydra_context, self.task_function, self.config)
        except SweepstackError as error:
            commands.complain("sweepstack", error)
