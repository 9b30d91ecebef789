"""The command line `sweepstack`: Hydra in front, the engine behind.

A run is checked as a whole before Hydra makes its folder (`preflight.py`), so that a mistake
leaves nothing behind. torch is imported only when something is about to train.
"""

from __future__ import annotations

import contextlib
import io
import logging
import math
import os
import signal
import sys
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sweepstack.cli import preflight, usage
from sweepstack.config import commands, hydra_adapter, trust
from sweepstack.config import reading as config
from sweepstack.config.errors import (
    InputError,
    SweepstackError,
    TrainingFailed,
    one_line,
)
from sweepstack.engine import seeds
from sweepstack.engine.spec import TrialSpec

if TYPE_CHECKING:
    from sweepstack.config.schema import RunConfig

log = logging.getLogger(__name__)
_began: list[bool] = []
"""Whether Hydra has called `run`."""


def main() -> None:
    """Entry point of the console script."""
    with commands.running("sweepstack"):
        try:
            _main()
        except (HydraException, OmegaConfBaseException) as error:
            raise InputError(one_line(error)) from error


def _main() -> None:
    if sys.argv[1:] == ["--version"]:
        print(f"sweepstack {metadata.version('sweepstack')}")
        return
    # Until training can be interrupted in good order, Ctrl-C just ends the process.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    sys.argv[1:] = preflight.with_overrides(preflight.resumed(sys.argv[1:]), [])
    arguments = _arguments()
    if arguments.help:
        print(usage.text(arguments.overrides, arguments.config_dir))
        return
    if arguments.cfg or arguments.info:
        preflight.check_cfg(arguments)
    if arguments.cfg or arguments.hydra_help or arguments.info or arguments.shell_completion:
        printed = io.StringIO()
        try:
            with contextlib.redirect_stdout(printed):
                _hydra()
        finally:  # after some of it Hydra exits
            print(printed.getvalue(), end="")
        return
    ready = preflight.check(arguments, sys.argv[1:])
    if ready is None:
        return
    sys.argv[1:] = preflight.with_overrides(sys.argv[1:], ready.added)
    try:
        _hydra()
    except Exception as error:
        # A run of which Hydra did not even call the task: its own settings are wrong.
        if not ready.made or _began:
            raise
        ready.undo()
        raise InputError(
            f"Hydra cannot start: {one_line(error) or type(error).__name__}"
        ) from error


def _hydra() -> None:
    """Do what the command line asks of Hydra."""
    before = os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = "1"  # or it prints a traceback itself, and exits
    main = hydra.main(
        config_path=str(config.folder("conf")),
        config_name=config.CONFIG_NAME,
        **hydra_adapter.MAIN_ARGUMENTS,
    )
    try:
        main(run)()
    finally:
        os.environ.pop("HYDRA_FULL_ERROR")
        if before is not None:
            os.environ["HYDRA_FULL_ERROR"] = before


def _arguments() -> Any:
    arguments, unknown = preflight.parsed(sys.argv[1:])
    if unknown:
        raise InputError(
            f"there is no option {unknown[0]}: values are written KEY=VALUE, for example "
            "optimizer.lr=0.1; --help lists the options"
        )
    if mistakes := _misused(arguments):
        raise InputError(mistakes)
    return arguments


def _misused(arguments: Any) -> list[str]:
    """What is wrong with Hydra's own options: each does what it says or is refused."""
    mistakes = []
    if arguments.config_path is not None:
        mistakes.append("--config-path is not supported; --config-dir adds your own groups")
    if arguments.experimental_rerun is not None:
        mistakes.append(
            "--experimental-rerun is not supported: it would run code of a pickle; "
            "--resume FOLDER goes on with a run, sweepstack-study rerun repeats a trial"
        )
    for name in ("package", "resolve"):
        if getattr(arguments, name) not in (None, False) and not arguments.cfg:
            mistakes.append(f"--{name} must come with --cfg job, hydra or all")
    kinds = ("run", "multirun", "cfg", "info", "shell_completion")
    given = [f"--{kind.replace('_', '-')}" for kind in kinds if getattr(arguments, kind)]
    if len(given) > 1:
        mistakes.append(f"only one of {', '.join(given)} must be given")
    if arguments.config_dir is not None and not Path(arguments.config_dir).is_dir():
        mistakes.append(f"--config-dir must be a folder, got '{arguments.config_dir}'")
    words = [f"{word}=" for word in ("install", "uninstall", "query")]
    if arguments.shell_completion and not " ".join(arguments.overrides).startswith(tuple(words)):
        mistakes.append(f"--shell-completion must come with one of {', '.join(words)} and a shell")
    return mistakes


def run(cfg: DictConfig) -> float:
    """Hydra's task function: train one run and return its objective.

    Under `--multirun` a run that failed is said to have failed and returns NaN, so that the sweep
    goes on.

    Raises:
        SystemExit: the run failed or was interrupted; the exit code says which.
    """
    _began.append(True)
    settings = HydraConfig.get()
    try:
        return _run(config.read(cfg), Path(settings.runtime.output_dir))
    except TrainingFailed as error:
        if settings.mode != RunMode.MULTIRUN:
            commands.complain("sweepstack", error)
        print(f"sweepstack: job {settings.job.num}: {error}", file=sys.stderr)
        return math.nan
    except SweepstackError as error:
        commands.complain("sweepstack", error)


def _run(run_config: RunConfig, folder: Path) -> float:
    from sweepstack.engine import device
    from sweepstack.engine.train import Interrupted, train
    from sweepstack.runs import folder as run_folder
    from sweepstack.runs import logger
    from sweepstack.runs.progress import Watch, on_signal, show_result, shown

    trust.see_own_packages(run_config.trust)
    logger.check(run_config)
    for line in config.inert(run_config):
        log.warning("%s", line)
    device.keep_memory()
    spec = TrialSpec(run_config, folder=folder)
    if not (folder / "manifest.json").exists():  # a job of --multirun
        run_folder.begin(folder, spec, [*_flags(), *_words()])
    try:
        with Watch() as watch, on_signal(watch.interrupt):
            results = list(train(seeds.members(spec), logger.follow(spec, folder, watch)))
    except Interrupted as stop:
        where = f"interrupted at step {stop.step}"
        stop.args = (
            f"{where}; go on with: {commands.shell('sweepstack', '--resume', shown(folder))}",
        )
        raise
    summary = run_folder.summary_of(spec, results)
    if summary["state"] == "complete":
        show_result(summary, shown(folder))  # before writing: a full disk must not hide it
    log.info("%s", summary)
    logger.finish(folder, spec, results)
    run_folder.write_results(folder, spec, results)
    if summary["state"] == "failed":
        kept = f"; metrics so far are in {shown(folder)}" if results[0].history else ""
        raise TrainingFailed(f"the run failed: {summary['error']}{kept}")
    return float(summary[str(summary["objective"])])


def _words() -> list[str]:
    """Overrides of the task as typed: what they refer to is not resolved."""
    return [str(word) for word in OmegaConf.to_container(HydraConfig.get().overrides.task) or []]


def _flags() -> list[str]:
    given = preflight.parsed(sys.argv[1:])[0].config_dir
    return [] if given is None else ["--config-dir", given]
