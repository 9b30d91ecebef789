"""From Hydra's sweeper to `sweepstack.sweep`: whose sweep it is, and who carries the workers."""

from __future__ import annotations

import contextlib
import copy
import glob
import logging
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf, flag_override
from omegaconf.errors import OmegaConfBaseException

from sweepstack.config.check import shown
from sweepstack.config.composition import folder
from sweepstack.config.errors import EnvironmentFault, InputError, one_line
from sweepstack.config.hydra_adapter import quoted
from sweepstack.storage import url as storage_url
from sweepstack.sweep import sweep as sweeps
from sweepstack.sweep.worker.application import HydraApp
from sweepstack.sweep.worker.jobs import Crew, JobsFailed, Launch
from sweepstack.sweep.worker.launch import WorkerFailed
from sweepstack.sweep.worker.training_app import TrainingApp

log = logging.getLogger("sweepstack.sweep")
STORAGE = "hydra.sweeper.storage"
RAY = "hydra_plugins.hydra_ray_launcher.ray_launcher.RayLauncher"
OBJECTS_BYTES = 75 * 2**20
"""Memory of a local Ray for objects, the least that it takes: workers exchange none."""


def sweep(
    node: Mapping[str, Any],
    arguments: Sequence[str],
    context: HydraContext,
    task: Callable[[DictConfig], Any],
    config: DictConfig,
) -> None:
    """Run a sweep.

    Raises:
        SweepstackError: something is wrong, nothing completed, or a signal ended the sweep.
    """
    config = _without_password(config)
    is_sweepstack = getattr(task, "__module__", None) == "sweepstack.cli.app"
    app = _own(config) if is_sweepstack else HydraApp(context, config, task)
    target = OmegaConf.select(config, "hydra.launcher._target_")
    if not isinstance(target, str):
        raise InputError(
            f"hydra.launcher must be a config group, got {shown(config.hydra.launcher)}"
        )
    is_local = target.endswith(".BasicLauncher")  # Hydra's own default: processes of ours instead
    launcher = None if is_local else _carry(context, config)
    results = None
    if not isinstance(app, TrainingApp):
        results = _results(config)
    elif launcher is None:
        _check_places(config)
    sweeps.sweep(
        *(_plain(node), arguments, app),
        hydra=[str(line) for line in OmegaConf.to_container(config.hydra.overrides.hydra) or []],
        launcher=launcher,
        results=results,
    )


def _without_password(config: DictConfig) -> DictConfig:
    """The config without the password of its storage: Hydra and its launchers write it, and what
    HydraConfig holds, to hydra.yaml and into pickles. See `storage_url.take_password`."""
    whole = OmegaConf.select(config, "hydra.sweeper.storage")
    bare = storage_url.take_password(str(whole))
    if bare == str(whole):
        return config
    config = copy.deepcopy(config)
    with flag_override(config, ["readonly", "struct"], False):
        config.hydra.sweeper.storage = bare
        given = OmegaConf.to_container(config.hydra.overrides.hydra) or []
        kept = [word for word in map(str, given) if STORAGE not in word and str(whole) not in word]
        config.hydra.overrides.hydra = [*kept, f"{STORAGE}={quoted(bare)}"]
    HydraConfig.instance().set_config(config)
    return config


def _own(config: DictConfig) -> TrainingApp:
    """sweepstack with the folder of `--config-dir` and the primary config."""
    given = [
        source.path
        for source in config.hydra.runtime.config_sources
        if source.provider == "command-line"
    ]
    return TrainingApp(given[0] if given else None, config.hydra.job.config_name)


def _results(config: DictConfig) -> Path:
    try:
        return Path(str(config.hydra.sweep.dir))
    except OmegaConfBaseException as error:
        raise InputError(f"hydra.sweep.dir: {one_line(error)}") from None


def _check_places(config: DictConfig) -> None:
    """Say that Hydra's settings place no trial of sweepstack: its folders are numbered by trial.

    Raises:
        InputError: hydra.sweep.dir is not the default.
    """
    default = OmegaConf.load(folder("conf") / "config.yaml")
    (old, new) = (OmegaConf.to_container(cfg.hydra.sweep) for cfg in (default, config))
    assert isinstance(old, dict)
    assert isinstance(new, dict)
    where = "trials are in outputs/studies/STUDY/NUMBER"
    if new["dir"] != old["dir"]:
        raise InputError(
            f"hydra.sweep.dir must be left out, got {shown(new['dir'])}: {where}; "
            "name STUDY with hydra.sweeper.study_name"
        )
    if new["subdir"] != old["subdir"]:
        log.warning("hydra.sweep.subdir has no effect: %s", where)


def _plain(node: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
        for key, value in node.items()
    }


def _carry(context: HydraContext, config: DictConfig) -> Launch:
    """Workers as jobs of the launcher that the user named.

    Raises:
        InputError: Hydra cannot make it, for example of a plugin that is not installed.
    """
    if is_ray := config.hydra.launcher._target_ == RAY:
        _prepare_ray(config)
    try:
        launcher = Plugins.instance().instantiate_launcher(
            hydra_context=context, task_function=_not_yet, config=config
        )
    except Exception as error:  # each launcher checks its settings in its own way
        raise InputError(f"hydra.launcher cannot be used: {one_line(error)}") from None

    begun = 0

    def run(crew: Crew, jobs: int) -> int | None:
        nonlocal begun
        first, begun = begun, begun + jobs
        launcher.setup(hydra_context=context, task_function=crew, config=config)
        # A worker's files must not lie in the folder of the trial with its number.
        overrides = [*crew.plan.space.fixed, "hydra.sweep.subdir=worker_${hydra:job.num}"]
        try:
            returned = launcher.launch([overrides] * jobs, initial_job_idx=first)
            ends = [job.return_value for job in returned]  # raises what the worker raised
        except Exception as error:  # each launcher has exceptions of its own
            name = str(config.hydra.launcher._target_).rpartition(".")[2]
            reason = f"{type(error).__name__}: {one_line(error)}"
            raise JobsFailed(
                f"the workers that {name} started ended early ({reason}); "
                "run the same command again to resume a study that has a storage"
            ) from error
        for failed in (end for end in ends if isinstance(end, tuple)):
            raise WorkerFailed(*failed)
        return min((code for code in ends if code is not None), default=None)

    if "submitit" in config.hydra.launcher._target_:
        return _submitit(run, config)
    logs = Path(str(config.hydra.sweep.dir)).absolute()
    if not is_ray:
        return Launch(run, logs=logs)
    return Launch(run, logs=logs, begin=partial(_start_ray, config))


def _submitit(run: Callable[[Crew, int], int | None], config: DictConfig) -> Launch:
    """A launcher of submitit's: each of its jobs has a file in a folder with the job's number."""
    kind = "slurm" if config.hydra.launcher._target_.endswith(".SlurmLauncher") else "local"
    before, _, after = str(config.hydra.launcher.submitit_folder).partition("%j")
    here = glob.escape(os.path.abspath(before) + "/" * before.endswith("/"))
    pattern, ending = f"{here}*{glob.escape(after)}/*_submitted.pkl", "_submitted.pkl"
    earlier = set(glob.glob(pattern))

    names: set[bytes] = set()
    owned: dict[str, bool] = {}

    def is_mine(file: str) -> bool:
        """Whether a job's pickle holds the crew: sweeps that begin in the same second share a
        folder, and end their own jobs only."""
        with contextlib.suppress(OSError):
            if file not in owned:
                content = Path(file).read_bytes()
                owned[file] = any(name in content for name in names)
        return owned.get(file, False)

    def jobs() -> list[str]:
        mine = filter(is_mine, sorted(set(glob.glob(pattern)) - earlier) if names else ())
        return [f"{kind} {Path(file).name.removesuffix(ending)}" for file in mine]

    def quietly(crew: Crew, count: int) -> int | None:
        names.add(crew.name.encode())
        import submitit

        # It tells that a cluster has no accounts, again and again.
        logging.getLogger(submitit.__name__).setLevel(logging.ERROR)
        return run(crew, count)

    return Launch(quietly, jobs, Path(before).absolute())


def _prepare_ray(config: DictConfig) -> None:
    """What must be so before Ray is imported and its launcher made."""
    if "max_retries" not in config.hydra.launcher.ray.remote:  # the sweep replaces dead workers
        OmegaConf.update(config.hydra.launcher.ray, "remote.max_retries", 0, force_add=True)
    # Under `uv run` Ray would copy the working folder to its workers, with outputs/: SQLite loses
    # its locks on a file that its own process opens and closes, and the study may break.
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")


def _start_ray(config: DictConfig, crew: Crew) -> None:
    """Start Ray, or find it, as its launcher would, which fails at `address` and leaves SIGTERM to
    Ray: that ends the process at once.

    Raises:
        EnvironmentFault: Ray does not start.
    """
    import ray

    if ray.is_initialized():
        return
    if "num_gpus" not in config.hydra.launcher.ray.remote and crew.misses_gpus():
        log.warning(
            "Ray gives workers no GPU: +hydra.launcher.ray.remote.num_gpus=1 asks for one each, "
            "0.5 for half of one"
        )
    given: Any = OmegaConf.to_container(config.hydra.launcher.ray.init, resolve=True)
    if given.get("address") is None and "RAY_ADDRESS" not in os.environ:
        given.setdefault("object_store_memory", OBJECTS_BYTES)
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        ray.init(**given)
    except Exception as error:  # of an argument, a port, a cluster
        shown = OmegaConf.to_container(config.hydra.launcher.ray.init)
        raise EnvironmentFault(
            f"Ray cannot be started with hydra.launcher.ray.init={shown}: {one_line(error)}"
        ) from error
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _not_yet(job: Any) -> None:
    """The task of a launcher that is given its workers once the study is open."""
