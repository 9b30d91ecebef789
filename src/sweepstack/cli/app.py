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
import re
import signal
import sys
import textwrap
from collections.abc import Iterator, Sequence
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sweepstack.cli import preflight
from sweepstack.config import commands, composition, hydra_adapter, trust
from sweepstack.config import reading as config
from sweepstack.config.errors import (
    InputError,
    SweepstackError,
    TrainingFailed,
    nearest,
    one_line,
    without_passwords,
)
from sweepstack.runs import seeds
from sweepstack.training.spec import TrialSpec

if TYPE_CHECKING:
    from sweepstack.config.schema import RunConfig
    from sweepstack.runs.logger import Logged
    from sweepstack.runs.progress import Watch

log = logging.getLogger(__name__)
_began: list[bool] = []
"""Not empty once Hydra has called `run`."""
_USAGE = """\
sweepstack: hyperparameter sweeps for PyTorch

Train one network
  sweepstack                                    an MLP on bundled digits
  sweepstack model=convnet optimizer.lr=0.01    choose options, set values

Sweep
  sweepstack -m init=he,xavier training.seed=0,1,2
                                                a trial per combination
  sweepstack -m 'optimizer.lr=interval(1e-4,1e-1)' hydra.sweeper.n_trials=20
                                                a search of 20 trials, by TPE
  sweepstack -m +sweeps=init_activation_grid    a sweep from a file in sweeps/
  sweepstack -m ... hydra.sweeper.dry_run=true  print the plan, run nothing
  The same command again resumes a sweep.

Read the results
  sweepstack-study list, show, report, ...      see sweepstack-study --help

Look up
  sweepstack --help optimizer                   the keys of a group
  sweepstack --help model=resnet                the keys of another option
  sweepstack --cfg job [OVERRIDES]              the whole config; trains nothing
  sweepstack --cfg hydra -p hydra.sweeper       the settings of a sweep

More
  sweepstack --resume outputs/runs/DATE_TIME    resume a run that was stopped
  sweepstack predict outputs/runs/DATE_TIME FILE|FOLDER
                                                classes and probabilities
  sweepstack export outputs/runs/DATE_TIME -o FILE.onnx|.pt2|.safetensors|.pt
  sweepstack --config-dir FOLDER                groups of your own
  sweepstack --version, --hydra-help            versions, Hydra's own help
  eval "$(sweepstack -sc install=bash)"         complete words with the Tab key
"""


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
    if sys.argv[1:2] in (["predict"], ["export"]):
        from sweepstack.cli import predict

        commands.imported()
        predict.run(sys.argv[1:])
        return
    # Until training can be interrupted in good order, Ctrl-C just ends the process.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    typed = map(preflight.without_password, preflight.resumed(sys.argv[1:]))
    sys.argv[1:] = preflight.with_overrides(list(typed), [])
    arguments = _arguments()
    if arguments.help:
        print(_help(arguments.overrides, arguments.config_dir))
        return
    if arguments.cfg or arguments.info:
        preflight.check_cfg(arguments)
    if arguments.cfg or arguments.hydra_help or arguments.info or arguments.shell_completion:
        printed = io.StringIO()
        try:
            with contextlib.redirect_stdout(printed):
                _hydra()
        finally:  # after some of it Hydra exits
            print(without_passwords(printed.getvalue()), end="")
        return
    ready = preflight.check(arguments, sys.argv[1:])
    if ready is None:
        return
    sys.argv[1:] = preflight.with_overrides(sys.argv[1:], ready.added)
    try:
        _hydra()
    except Exception as error:
        # Hydra did not even call the task: its own settings are wrong.
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
        config_path=str(composition.folder("conf")),
        config_name=composition.CONFIG_NAME,
        **hydra_adapter.MAIN_ARGUMENTS,
    )
    try:
        main(run)()
    finally:
        os.environ.pop("HYDRA_FULL_ERROR")
        if before is not None:
            os.environ["HYDRA_FULL_ERROR"] = before


def _help(words: Sequence[str], config_dir: str | None) -> str:
    """How to call the command, and the options of each group; for `words`, overrides or names of
    groups, every key of what they choose with its comment."""
    conf = composition.folder("conf")
    known = sorted(path.name for path in conf.iterdir() if path.is_dir())
    named = [word for word in words if "=" not in word]
    if wrong := [f"there is no group '{n}'{nearest(n, known)}" for n in named if n not in known]:
        raise InputError(wrong)
    overrides = [word for word in words if word not in named]
    composed = composition.compose(overrides, config_dir, with_hydra=True)
    choices = dict(reversed(composed.hydra.runtime.choices.items()))
    if not words:
        rows = [_row(group, choices[group]) for group in choices if group in known]
        return "\n".join([_USAGE, "Groups, with their default first", *rows])
    given = {re.split(r"[.=@]", word.lstrip("+~"))[0] for word in words}
    chosen = {group: name for group, name in choices.items() if group in given & {*known}}
    parts = [_keys_of(conf / group / f"{name}.yaml") for group, name in chosen.items()]
    if given - chosen.keys():
        top = (conf / f"{composition.CONFIG_NAME}.yaml").read_text("utf-8")
        keys = top[top.index("\n\n") : top.index("hydra:")].strip()
        parts.append("\n".join(["top level", *_indented(keys)]))
    return "\n\n".join(parts)


def _keys_of(file: Path) -> str:
    """The file of an option, below the names of the others; nothing of an option of the user's."""
    others = ", ".join(_others(file))
    title = f"{file.parent.name}={file.stem}{others and f'   (or {others})'}"
    return "\n".join([title, *(_indented(file.read_text("utf-8")) if file.is_file() else [])])


def _indented(text: str) -> list[str]:
    return [f"  {line}".rstrip() for line in text.splitlines()]


def _others(file: Path) -> list[str]:
    return sorted(path.stem for path in file.parent.glob("*.yaml") if path.stem != file.stem)


def _row(group: str, name: str) -> str:
    """A group's options in lines of 80 columns."""
    others = _others(composition.folder("conf") / group / f"{name}.yaml")
    text = ", ".join([name, *others]) if others else "values alone, no options"
    margin = " " * 18
    text = textwrap.fill(text, 79, initial_indent=margin, subsequent_indent=margin)
    return f"  {group:<16}{text[18:]}"


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
            "--resume FOLDER resumes a run, sweepstack-study rerun repeats a trial"
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
    verbs = ("install=", "uninstall=", "query=")
    if arguments.shell_completion and not " ".join(arguments.overrides).startswith(verbs):
        mistakes.append(f"--shell-completion must come with one of {', '.join(verbs)} and a shell")
    return mistakes


def run(cfg: DictConfig) -> float:
    """Hydra's task function: train one run and return its objective.

    Under `--multirun` a failed run prints its error and returns NaN, so that the sweep goes on.

    Raises:
        SystemExit: the run failed or was interrupted; the exit code says which.
    """
    _began.append(True)
    commands.imported()
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
    from sweepstack.engine.train import Interrupted, train
    from sweepstack.runs import folder as run_folder
    from sweepstack.runs import logger
    from sweepstack.runs.progress import Watch, on_signal, show_result, shown
    from sweepstack.training import device

    trust.see_own_packages(run_config.trust)
    logger.check(run_config)
    for line in config.inert(run_config):
        log.warning("%s", line)
    device.keep_memory()
    spec = TrialSpec(run_config, folder=folder)
    if not (folder / "manifest.json").exists():  # a job of --multirun
        run_folder.begin(folder, spec, as_typed())
    try:
        with Watch() as watch, on_signal(watch.interrupt), _logged(spec, watch) as logged:
            results = []
            for result in train(seeds.members(spec), logged):
                results.append(result)
                logged.end(result)
    except Interrupted as stop:
        command = commands.shell("sweepstack", "--resume", shown(folder))
        stop.args = (f"interrupted at step {stop.step}; resume with: {command}",)
        raise
    summary = run_folder.summary_of(spec, results)
    if summary["state"] == "complete":
        show_result(summary, shown(folder))  # before writing: a full disk must not hide it
    log.info("%s", summary)
    run_folder.write_results(folder, spec, results)
    if summary["state"] == "failed":
        kept = f"; metrics so far are in {shown(folder)}" if results[0].history else ""
        raise TrainingFailed(f"the run failed: {summary['error']}{kept}")
    return float(summary[str(summary["objective"])])


@contextlib.contextmanager
def _logged(spec: TrialSpec, watch: Watch) -> Iterator[Logged]:
    """What logs a run; at its end it is written."""
    from sweepstack.runs.logger import Logged, run_of

    assert spec.folder is not None
    words = [str(word) for word in HydraConfig.get().overrides.task]
    run = partial(run_of, words=words, place=spec.folder, seeds=spec.config.training.seeds)
    logged = Logged(watch, spec.config.logger, run)
    try:
        yield logged
    finally:
        logged.close(stopped=lambda: watch.interrupted() is not None)


def as_typed() -> list[str]:
    """The arguments of this job, its references unresolved."""
    given = preflight.parsed(sys.argv[1:])[0].config_dir
    typed = OmegaConf.to_container(HydraConfig.get().overrides.task) or []
    return [*([] if given is None else ["--config-dir", given]), *map(str, typed)]
