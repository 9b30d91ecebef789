"""Before Hydra makes a folder: check a run or a sweep as a whole, then claim the run's folder."""

from __future__ import annotations

import contextlib
import ctypes
import glob
import inspect
import os
import re
import shutil
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.core.utils import configure_log
from hydra.plugins.sweeper import Sweeper
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sweepstack.config import composition, hydra_adapter, trust
from sweepstack.config import reading as config
from sweepstack.config.check import shown
from sweepstack.config.errors import InputError, nearest, one_line
from sweepstack.config.hydra_adapter import quoted
from sweepstack.runs import folder as run_folder
from sweepstack.runs import logger
from sweepstack.training.spec import TrialSpec

if TYPE_CHECKING:
    from sweepstack.engine.program import Program


_STORAGE = re.compile(r"""(\+{0,2}hydra\.sweeper\.storage=)(['"]?)(.*://.*)\2""")
GPUS = "/dev/nvidia[0-9]*"
_NON_ASCII = re.compile(r"""[^][(){},:='"]*[^\x00-\x7f][^][(){},:='"]*""")


def resumed(argv: list[str]) -> list[str]:
    """Replace `--resume FOLDER` by the arguments which that run was started with.

    Raises:
        InputError: the folder holds no run.
    """
    argv = [
        part
        for word in map(_spelled, argv)
        for part in (word.split("=", 1) if word.startswith("--resume=") else [word])
    ]
    if "--resume" not in argv:
        return argv
    at = argv.index("--resume")
    folder = argv[at + 1] if at + 1 < len(argv) else ""
    manifest = run_folder.read(Path(folder) / "manifest.json") if folder else None
    if manifest is None and folder and (Path(folder) / "overrides.yaml").exists():
        raise InputError(
            f"{folder} holds a trial of a sweep: the sweep's own command resumes it, and "
            "sweepstack.log there says how to run it alone"
        )
    if manifest is None or "arguments" not in manifest:
        raise InputError(
            f"--resume must name the folder of a run, got '{folder}' without a manifest.json"
        )
    before = manifest["arguments"]
    if not isinstance(before, list) or not all(isinstance(word, str) for word in before):
        raise InputError(
            f"{folder}/manifest.json is not what sweepstack writes: arguments={shown(before)}"
        )
    # The user did not type what a manifest holds: it may name no package to trust, folder of
    # configs, file of weights, server or Hydra setting, and may not download. What the run needs
    # of these is given again.
    if "--config-dir" in before and "--config-dir" not in argv:
        raise InputError(f"{folder} was started with --config-dir: give it again with --resume")
    given = {_key(word) for word in argv}
    unsafe = {"hydra", "trust", "download"}
    kept = [w for w in before if "=" in w and not w.startswith("-") and _key(w) not in given]
    kept = [word for word in kept if unsafe.isdisjoint(trust.parts(word))]
    for word in kept:
        outside = trust.parts(word) in (["model", "weights"], ["logger", "tracking_uri"])
        if outside and word.partition("=")[2] != "null":
            raise InputError(
                f"{folder} was started with {shown(word)}: give it again with --resume"
            )
        why = trust.beyond_values(word)
        if why:
            raise InputError(
                f"{folder}/manifest.json is refused: its override {shown(word)} {why}; if you "
                "trust it, give it again with --resume"
            )
    # A job of `-m +sweeps=NAME` is resumed alone, though that file asks for a sweep.
    kept += ["hydra.mode=RUN", f"hydra.run.dir={quoted(folder)}"]
    return with_overrides([*argv[:at], *argv[at + 2 :]], kept)


def without_password(word: str) -> str:
    """An override without the password of a storage, which Hydra would write to hydra.yaml; an
    environment variable keeps it (`storage_url.take_password`)."""
    found = _STORAGE.fullmatch(word)
    if found is None:
        return word
    from sweepstack.storage import url as storage_url

    key, _, url = found.groups()
    bare = storage_url.take_password(url)
    return word if bare == url else key + quoted(bare)


def _add_storage(cfg: DictConfig, added: list[str], given: Sequence[str]) -> None:
    """Override a storage that a file names with its password."""
    url = OmegaConf.select(cfg, "hydra.sweeper.storage")
    if isinstance(url, str) and "://" in url:
        from sweepstack.storage import url as storage_url

        bare = storage_url.take_password(url)
        if bare != url and any(url in word for word in given):  # in an override of the whole node
            raise InputError(
                "hydra.sweeper.storage must be given by itself where it holds a password, got "
                "it inside another override"
            )
        added += [] if bare == url else [f"hydra.sweeper.storage={quoted(bare)}"]


def parsed(argv: Sequence[str]) -> tuple[Any, list[str]]:
    """The command line as Hydra's parser has it, and the options that it does not know.

    Raises:
        InputError: an option lacks its value, or has a wrong one.
    """
    return hydra_adapter.arguments_parser().parse_known_args(list(argv))


def with_overrides(argv: Sequence[str], added: Sequence[str]) -> list[str]:
    """Options first, then `added`, then all overrides: Hydra wants them to stand together."""
    arguments, unknown = parsed(argv)
    overrides = [*arguments.overrides, *(word for word in unknown if not word.startswith("-"))]
    return [*(word for word in argv if word not in overrides), *added, *overrides]


def _spelled(word: str) -> str:
    """An override with quotes around the parts whose letters Hydra's grammar does not know."""
    key, _, value = word.partition("=")
    if word.isascii() or word.startswith("-"):
        return word
    try:
        OverridesParser.create().parse_override(word)
    except composition.UNREADABLE:
        return f"{key}={_NON_ASCII.sub(lambda found: quoted(found[0].strip()), value)}"
    return word


def check_cfg(arguments: Any) -> None:
    """Check what `--cfg` is to print.

    Raises:
        InputError: the config does not compose, or has no such package.
    """
    name = arguments.config_name or composition.CONFIG_NAME
    cfg = composition.compose(arguments.overrides, arguments.config_dir, name, with_hydra=True)
    if (
        arguments.package not in (None, "_global_")
        and OmegaConf.select(cfg, arguments.package) is None
    ):
        raise InputError(f"--package must be a key of the config, got '{arguments.package}'")


def _key(word: str) -> str:
    return word.partition("=")[0].lstrip("+~")


@dataclass(frozen=True)
class Ready:
    """What is about to run: overrides to `add` to the command line, and the folders that were
    `made` for it, the run's first."""

    added: Sequence[str] = ()
    made: Sequence[Path] = ()

    def undo(self) -> None:
        """Remove the run's folder, and those that were made to hold it and are empty."""
        for folder in self.made[:1]:
            shutil.rmtree(folder, ignore_errors=True)
        with contextlib.suppress(OSError):
            for folder in self.made[1:]:
                folder.rmdir()


def check(arguments: Any, argv: Sequence[str]) -> Ready | None:
    """Check what is about to run.

    Args:
        arguments: the command line as Hydra's parser has it.
        argv: the same as typed.

    Returns:
        What is to be run, or None when the run has already finished.

    Raises:
        SweepstackError: something is wrong; nothing was written.
    """
    name = arguments.config_name or composition.CONFIG_NAME
    if not arguments.multirun:
        cfg = composition.compose(arguments.overrides, arguments.config_dir, name, with_hydra=True)
    if arguments.multirun or cfg.hydra.mode == RunMode.MULTIRUN:
        _check_sweep(arguments, name)
        return Ready()
    added: list[str] = []
    _add_storage(cfg, added, arguments.overrides)
    spec = TrialSpec(config.read(cfg))
    program = _program(spec)
    wanted = _wanted(cfg)
    copies = 2 * (2 + len(program.rule.moments)) + 2  # two checkpoints, best.pt, model.pt
    run_folder.need_space(wanted, 1 + 4e-6 * program.num_parameters * copies)
    missing = [folder for folder in (wanted, *wanted.parents) if not folder.exists()]
    if any(text.startswith("hydra.run.dir=") for text in arguments.overrides):
        finished = run_folder.compare(wanted, spec)
        if finished is not None:
            from sweepstack.runs.progress import show_result

            print("this run has already finished:")
            show_result(finished, wanted)
            return None
        run_folder.begin(run_folder.make(wanted), spec, argv)
        return Ready(added, [other.absolute() for other in missing])
    folder = run_folder.claim(wanted)
    run_folder.begin(folder, spec, argv)
    made = [folder, *(other for other in missing if other != wanted)]
    added.append(f"hydra.run.dir={quoted(str(folder))}")
    return Ready(added, [other.absolute() for other in made])


@contextlib.contextmanager
def _resolving(cfg: DictConfig) -> Iterator[None]:
    """Let `${hydra:...}` be resolved; a reference that leads nowhere is an InputError."""
    HydraConfig.instance().set_config(cfg)
    try:
        yield
    except OmegaConfBaseException as error:
        raise InputError(f"{error.full_key}: {str(error).splitlines()[0]}") from None
    finally:
        HydraConfig.instance().cfg = None


def _wanted(cfg: DictConfig) -> Path:
    """The run's folder as hydra.run.dir says."""
    with _resolving(cfg):
        given = cfg.hydra.run.dir
    if not given:
        raise InputError("hydra.run.dir must name a folder, got ''")
    return Path(given)


def _program(spec: TrialSpec) -> Program:
    trust.see_own_packages(spec.config.trust)
    logger.check(spec.config)
    from sweepstack.engine.program import Program

    return Program.of(spec)


def _check_sweep(arguments: Any, name: str) -> None:
    """Check of a sweep what the sweeper does not check; ours checks every value itself."""
    from sweepstack.config.space import grammar

    fixed: list[str] = []
    mistakes: list[str] = []
    for text in arguments.overrides:
        try:
            override = grammar.read_override(text)
        except InputError as error:
            mistakes += error.mistakes
            continue
        if not override.is_sweep_override():
            fixed.append(text)
        elif grammar.path_of(override).startswith(("hydra.", "hydra/")):
            mistakes.append(f"{grammar.path_of(override)} must have one value, got {text}")
    try:
        cfg = composition.compose(fixed, arguments.config_dir, name, with_hydra=True)
        if mistakes:
            config.read(cfg)
    except InputError as error:
        mistakes += error.mistakes
    if mistakes:
        raise InputError(mistakes)
    try:
        configure_log(cfg.hydra.hydra_logging, cfg.hydra.verbose)  # as Hydra does next
    except composition.REFUSALS as error:
        reason = one_line(error) or type(error).__name__
        raise InputError(f"hydra.hydra_logging and hydra.verbose: {reason}") from None
    sweeper = _sweeper(cfg)
    if str(sweeper.get("_target_")).endswith(".SweepstackSweeper"):
        launcher = str(OmegaConf.select(cfg, "hydra.launcher._target_"))
        if sweeper.get("n_jobs") == 1 and launcher.endswith(".BasicLauncher"):
            # Once it has a handle, cuBLAS can no longer be told to be deterministic.
            is_free = "deterministic" not in " ".join(arguments.overrides)
            is_free = is_free and not OmegaConf.select(cfg, "training.deterministic")
            begin_cuda(str(OmegaConf.select(cfg, "training.device")), with_blas=is_free)
        return
    params = sweeper.get("params") or {}
    first = composition.check_sweep(
        arguments.overrides, params, config_dir=arguments.config_dir, config_name=name
    )
    _program(TrialSpec(config.read(first)))


def begin_cuda(name: str, *, with_blas: bool) -> threading.Thread | None:
    """Begin in a thread what a start on a GPU waits for: the driver, its context, torch and cuBLAS,
    most of it without Python's lock. What fails here fails again where a device is needed, and is
    said there; where there is no GPU, nothing happens, nor of several without a number, of which
    the worker takes one later.

    Args:
        name: `training.device`.
        with_blas: whether cuBLAS may begin already.
    """
    found = re.fullmatch(r"auto|cuda(?::(\d+))?", name)
    seen, given = glob.glob(GPUS), os.environ.get("CUDA_VISIBLE_DEVICES")
    if seen and given is not None:
        seen = [word for word in given.split(",") if word]
    if found is None or not seen or (len(seen) > 1 and found[1] is None):
        return None

    def run() -> None:
        with contextlib.suppress(Exception):
            place = int(found[1] or 0)
            driver, handle = ctypes.CDLL("libcuda.so.1"), ctypes.c_int()
            if not driver.cuInit(0) and not driver.cuDeviceGet(ctypes.byref(handle), place):
                driver.cuDevicePrimaryCtxRetain(ctypes.byref(ctypes.c_void_p()), handle)
                import torch

                some = torch.ones(8, 8, device=f"cuda:{place}")
                if with_blas:
                    torch.mm(some, some)

    thread = threading.Thread(target=run, name="sweepstack-cuda")
    thread.start()
    return thread


def _sweeper(cfg: DictConfig) -> dict[str, Any]:
    """`hydra.sweeper` as plain values."""
    if not isinstance(cfg.hydra.sweeper, DictConfig):
        raise InputError(
            f"hydra.sweeper must be a group of settings, got {shown(cfg.hydra.sweeper)}; its keys "
            "are set one by one, for example hydra.sweeper.n_trials=20"
        )
    with _resolving(cfg):
        node: Any = OmegaConf.to_container(cfg.hydra.sweeper, resolve=True)
    missing = sorted(OmegaConf.missing_keys(cfg.hydra.sweeper))
    if missing:
        raise InputError([f"{key} must be given, got ???" for key in missing])
    _check_class(node)
    return dict(node)


def _check_class(node: Mapping[str, Any]) -> None:
    """Refuse a sweeper that Hydra cannot make, for example of a plugin that is not installed."""
    known = {f"{c.__module__}.{c.__name__}": c for c in Plugins.instance().discover(Sweeper)}
    target = str(node.get("_target_"))
    where = "hydra.sweeper._target_ must be left to the group hydra/sweeper"
    if target not in known:
        near = nearest(target, known)
        raise InputError(f"{where}: no sweeper '{target}' is installed{near}")
    try:
        given = {str(key): None for key in node if not str(key).startswith("_")}
        inspect.signature(known[target]).bind(**given)
    except TypeError as error:
        raise InputError(f"{where}: {target} {one_line(error)}") from None
