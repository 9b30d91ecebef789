"""From Hydra's sweeper to `iolaus.sweep`: whose sweep it is, and who carries the workers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.plugins import Plugins
from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf

from iolaus.check import shown
from iolaus.errors import EXIT_INTERRUPTED, EnvironmentFault, InputError, IolausError, one_line
from iolaus.sweep import sweep as sweeps
from iolaus.sweep.launch import Crew, Launch
from iolaus.sweep.other import Other
from iolaus.sweep.own import Own

_LOCAL = "hydra._internal.core_plugins.basic_launcher.BasicLauncher"


def sweep(
    node: Mapping[str, Any],
    arguments: Sequence[str],
    context: HydraContext,
    task: Callable[[DictConfig], Any],
    config: DictConfig,
) -> None:
    """Run a sweep.

    Raises:
        IolausError: something is wrong, nothing completed, or a signal ended the sweep.
    """
    app = _own(config) if _is_iolaus(task) else Other(context, config, task)
    results = None if isinstance(app, Own) else Path(str(config.hydra.sweep.dir))
    target = OmegaConf.select(config, "hydra.launcher._target_")
    if not isinstance(target, str):
        raise InputError(
            f"hydra.launcher must be a config group, got {shown(config.hydra.launcher)}"
        )
    launcher = None if target == _LOCAL else _carry(context, config)
    sweeps.sweep(
        *(_plain(node), arguments, app),
        hydra=list(config.hydra.overrides.hydra),
        launcher=launcher,
        results=results,
    )


def _is_iolaus(task: Callable[[DictConfig], Any]) -> bool:
    return getattr(task, "__module__", None) == "iolaus.app"


def _own(config: DictConfig) -> Own:
    """iolaus with the folder of `--config-dir` and the primary config."""
    given = [
        source.path
        for source in config.hydra.runtime.config_sources
        if source.provider == "command-line"
    ]
    return Own(given[0] if given else None, config.hydra.job.config_name)


def _plain(node: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
        for key, value in node.items()
    }


def _carry(context: HydraContext, config: DictConfig) -> Launch:
    """Workers as jobs of the launcher that the user named."""

    def launch(crew: Any, jobs: int) -> int | None:
        assert isinstance(crew, Crew)
        launcher = Plugins.instance().instantiate_launcher(
            hydra_context=context, task_function=crew, config=config
        )
        # A worker's files must not lie in the folder of the trial with its number.
        words = [*crew.plan.space.fixed, "hydra.sweep.subdir=worker_${hydra:job.num}"]
        try:
            returned = launcher.launch([words] * jobs, initial_job_idx=0)
            codes = [job.return_value for job in returned]  # raises what the worker raised
        except IolausError:
            raise
        except KeyboardInterrupt:
            return EXIT_INTERRUPTED
        except Exception as error:  # each launcher has exceptions of its own
            name = str(config.hydra.launcher._target_).rpartition(".")[2]
            reason = f"{type(error).__name__}: {one_line(error)}"
            raise EnvironmentFault(
                f"the workers that {name} started ended early ({reason}); "
                "the same command goes on with a study that has a storage"
            ) from error
        return next((code for code in codes if code is not None), None)

    return launch
