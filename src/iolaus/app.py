"""The command line `iolaus`: Hydra in front, the engine behind.

A single run is checked as a whole before Hydra makes its folder: `_preflight` composes the
config, reads it, loads the data and builds the model, so that a mistake leaves nothing behind.
torch is imported only when something is about to train.
"""

from __future__ import annotations

import json
import logging
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from iolaus import compat, config, overrides
from iolaus.errors import (
    EXIT_INTERRUPTED,
    EXIT_TERMINATED,
    EnvironmentFault,
    InputError,
    IolausError,
    TrainingFailed,
)
from iolaus.spec import TrialSpec

if TYPE_CHECKING:
    from iolaus.progress import Watch
    from iolaus.schema import RunConfig

log = logging.getLogger(__name__)


def main() -> None:
    """Entry point of the console script."""
    try:
        sys.argv[1:] = _resumed(sys.argv[1:])
        arguments = get_args_parser().parse_args()
        informs = (arguments.help, arguments.hydra_help, arguments.cfg, arguments.info)
        if not any(informs) and not arguments.shell_completion and not arguments.multirun:
            ready = _preflight(arguments)
            if ready is None:
                return
            sys.argv += ready.extra_overrides
    except IolausError as error:
        _complain(error)
    hydra.main(
        config_path=str(config.folder("conf")),
        config_name=config.CONFIG_NAME,
        **compat.MAIN_ARGUMENTS,
    )(run)()


def _complain(error: IolausError) -> NoReturn:
    for line in str(error).splitlines():
        print(f"iolaus: {line}", file=sys.stderr)
    sys.exit(error.exit_code)


def _resumed(argv: list[str]) -> list[str]:
    """Replace `--resume FOLDER` by the arguments which that run was started with."""
    if "--resume" not in argv:
        return argv
    at = argv.index("--resume")
    folder = argv[at + 1] if at + 1 < len(argv) else ""
    manifest = Path(folder) / "manifest.json"
    if not folder or not manifest.is_file():
        raise InputError(f"--resume must name the folder of a run, got '{folder}'")
    before = [
        word
        for word in json.loads(manifest.read_text("utf-8"))["arguments"]
        if not word.startswith("hydra.run.dir=")
    ]
    return [*before, *argv[:at], *argv[at + 2 :], f"hydra.run.dir={_quoted(folder)}"]


def _quoted(folder: str) -> str:
    escaped = folder.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


# --- before Hydra makes a folder --------------------------------------------------------------


@dataclass(frozen=True)
class _Ready:
    """Overrides that the preflight adds to the command line."""

    extra_overrides: list[str]


def _preflight(arguments: Any) -> _Ready | None:
    """Check a single run as a whole and claim its folder; None when it is finished already.

    Raises:
        IolausError: something is wrong; nothing was written.
    """
    name = arguments.config_name or config.CONFIG_NAME
    if arguments.config_path is not None:
        raise InputError("--config-path is not supported; --config-dir adds your own groups")
    cfg = overrides.compose(arguments.overrides, arguments.config_dir, name)
    if cfg.hydra.mode == RunMode.MULTIRUN:
        return _Ready([])
    spec = TrialSpec(config.read(cfg))
    _see_own_packages(spec.config)

    from iolaus import device, run_folder
    from iolaus.program import Program

    program = Program.of(spec)
    wanted = Path(cfg.hydra.run.dir)
    states = 3 + len(program.rule.moments)
    run_folder.need_space(wanted, 1 + 4e-6 * program.num_parameters * states * 2)
    if any(text.startswith("hydra.run.dir=") for text in arguments.overrides):
        finished = run_folder.compare(wanted, spec)
        if finished is not None:
            print(f"{wanted} holds this very run, finished:")
            print(json.dumps(finished, indent=2))
            return None
        _make(wanted)
        folder, added = wanted, []
    else:
        folder = run_folder.claim(wanted)
        added = [f"hydra.run.dir={_quoted(str(folder))}"]
    try:
        given = [word for word in sys.argv[1:] if word not in added]
        run_folder.write_manifest(folder, spec, given, device.describe(program.device))
    except EnvironmentFault:
        if not any(folder.iterdir()):
            folder.rmdir()
        raise
    return _Ready(added)


def _see_own_packages(run_config: RunConfig) -> None:
    """Let `trust=[mypackage]` find a package in the working folder, as `python -m` does."""
    if run_config.trust and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EnvironmentFault(f"cannot make {folder}: {error.strerror or error}") from error


# --- under Hydra --------------------------------------------------------------------------------


def run(cfg: DictConfig) -> float:
    """Hydra's task function: train one run and return its objective.

    Raises:
        SystemExit: the run failed or was interrupted; the exit code says which.
        IolausError: the same under `--multirun`, where the sweeper decides what follows.
    """
    settings = HydraConfig.get()
    try:
        return _run(config.read(cfg), Path(settings.runtime.output_dir))
    except IolausError as error:
        if settings.mode == RunMode.MULTIRUN:
            raise
        _complain(error)


def _run(run_config: RunConfig, folder: Path) -> float:
    from iolaus import run_folder
    from iolaus.progress import Watch, show_result
    from iolaus.train import Interrupted, train

    _see_own_packages(run_config)
    for line in config.inert(run_config):
        log.warning("%s", line)
    spec = TrialSpec(run_config, folder=folder)
    try:
        with Watch() as watch, _signals(watch):
            (result,) = train([spec], watch)
    except Interrupted as stop:
        stop.args = (f"interrupted; go on with: iolaus --resume {_shown(folder)}",)
        raise
    run_folder.write_result(folder, result)
    if result.state == "failed":
        kept = f"; metrics so far are in {_shown(folder)}" if result.history else ""
        raise TrainingFailed(f"the run failed: {result.error}{kept}")
    log.info("%s", result.metrics)
    show_result(result, _shown(folder))
    return result.value


def _shown(folder: Path) -> Path:
    """The folder as a person would type it."""
    here = Path.cwd()
    return folder.relative_to(here) if folder.is_relative_to(here) else folder


@contextmanager
def _signals(watch: Watch) -> Iterator[None]:
    """Ctrl-C or SIGTERM once asks for a checkpoint and an end; the second time ends at once."""

    def ask(number: int, frame: FrameType | None) -> None:
        watch.stop_code = EXIT_INTERRUPTED if number == signal.SIGINT else EXIT_TERMINATED
        signal.signal(number, before[number])

    before: dict[int, Any] = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    for number in before:
        signal.signal(number, ask)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
