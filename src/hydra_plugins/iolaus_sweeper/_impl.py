"""From Hydra's sweeper to `iolaus.sweep`: whose sweep it is, and who carries the workers."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.plugins import Plugins
from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf

from iolaus.errors import IolausError
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
    """Run a sweep; a mistake ends the process with one line and its exit code.

    Raises:
        SystemExit: something is wrong, nothing completed, or a signal ended the sweep.
    """
    app = _own(config) if _is_iolaus(task) else Other(context, config, task)
    results = None if isinstance(app, Own) else Path(str(config.hydra.sweep.dir))
    launcher = None if config.hydra.launcher._target_ == _LOCAL else _carry(context, config)
    try:
        sweeps.sweep(_plain(node), arguments, app, launcher=launcher, results=results)
    except IolausError as error:
        for line in str(error).splitlines():
            print(f"iolaus: {line}", file=sys.stderr)
        sys.exit(error.exit_code)


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

    def launch(crew: Any, jobs: int) -> None:
        assert isinstance(crew, Crew)
        launcher = Plugins.instance().instantiate_launcher(
            hydra_context=context, task_function=crew, config=config
        )
        fixed = list(crew.plan.space.fixed)
        for returned in launcher.launch([fixed] * jobs, initial_job_idx=0):
            _ = returned.return_value  # raises what the worker raised

    return launch
