"""Hydra as sweepstack uses it: the only file that depends on which Hydra is installed.

Hydra 1.3 (OmegaConf 2.3) and 1.4 (OmegaConf 2.4) differ in two calls. What Hydra has only in
`hydra._internal`, its command line and applying one override, is written here with its public
parts; tests/config/test_hydra_adapter.py compares both and fails when Hydra changes.
"""

from __future__ import annotations

import argparse
import contextlib
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import hydra
import omegaconf
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.errors import ConfigCompositionException
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig, OmegaConf, open_dict

from sweepstack.config.errors import EnvironmentFault, InputError, one_line


def _at_least(given: str, major: int, minor: int) -> bool:
    first, second = given.split(".")[:2]
    return (int(first), int(second)) >= (major, minor)


MAIN_ARGUMENTS: dict[str, Any] = (
    {} if _at_least(hydra.__version__, 1, 4) else {"version_base": "1.3"}
)
"""For `hydra.main` and `initialize_config_dir`: the defaults of Hydra 1.3, which 1.4 has anyway and
asks not to name."""


def register_resolver(name: str, function: Callable[..., Any]) -> None:
    """Make `${name:}` call `function` in configs."""
    if _at_least(omegaconf.__version__, 2, 4):
        register: Callable[..., Any] = OmegaConf.register_resolver
    else:
        register = OmegaConf.register_new_resolver
    register(name, function, replace=True)


class _ConfigDir(SearchPathPlugin):
    """Adds the folder of `--config-dir` where Hydra's command line adds it."""

    folder: Path | None = None

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Add the folder between Hydra's own sources and the schemas."""
        if self.folder is not None:
            search_path.append("command-line", f"file://{self.folder}")


@contextlib.contextmanager
def _also_from(folder: str | None) -> Iterator[None]:
    if folder is None:
        yield
        return
    Plugins.instance().register(_ConfigDir)
    _ConfigDir.folder = Path(folder).resolve()
    try:
        yield
    finally:
        _ConfigDir.folder = None


def compose(
    conf: Path, overrides: Sequence[str], config_name: str, config_dir: str | None = None
) -> DictConfig:
    """Compose a config with its `hydra` node, as the command line does.

    Args:
        conf: the folder of the groups.
        overrides: as typed, for example "optimizer.lr=0.01".
        config_name: the primary config.
        config_dir: a folder searched after `conf`, like `--config-dir`.

    Raises:
        hydra.errors.HydraException: an override names no key or option, or does not parse.
        EnvironmentFault: a plugin of Hydra's cannot be imported.
    """
    _import_plugins()
    running = GlobalHydra.instance().hydra  # a sweep composes its trials
    try:
        GlobalHydra.instance().clear()
        with (
            _also_from(config_dir),
            hydra.initialize_config_dir(str(conf), "sweepstack", **MAIN_ARGUMENTS),
        ):
            return hydra.compose(config_name, list(overrides), return_hydra_config=True)
    finally:
        GlobalHydra.instance().hydra = running


def _import_plugins() -> None:
    """Import the plugins that are installed; one that fails would end every Hydra application."""
    try:
        Plugins.instance()
    except Exception as error:  # whatever its code raises
        files = [Path(frame.filename) for frame in traceback.extract_tb(error.__traceback__)]
        parents = [file.parts for file in files if "hydra_plugins" in file.parts]
        name = ".".join(parents[-1][parents[-1].index("hydra_plugins") :][:2]) if parents else "?"
        raise EnvironmentFault(
            f"Hydra cannot import its plugin {name}; uninstall or update it: {one_line(error, 200)}"
        ) from error


def quoted(text: str) -> str:
    """A value of an override in quotes, so that Hydra's grammar takes it as it is."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(f"{one_line(message)}; --help lists the options")


def arguments_parser() -> argparse.ArgumentParser:
    """The options of Hydra's command line; a wrong one is an InputError."""
    parser = _Parser(add_help=False)
    parser.add_argument("overrides", nargs="*")
    for flags in (
        *(("--help", "-h"), ("--hydra-help",), ("--resolve",), ("--run", "-r")),
        *(("--multirun", "-m"), ("--shell-completion", "-sc")),
    ):
        parser.add_argument(*flags, action="store_true")
    for flags in (
        *(("--package", "-p"), ("--config-path", "-cp"), ("--config-name", "-cn")),
        *(("--config-dir", "-cd"), ("--experimental-rerun",)),
    ):
        parser.add_argument(*flags)
    parser.add_argument("--version", action="version", version=f"Hydra {hydra.__version__}")
    parser.add_argument("--cfg", "-c", choices=["job", "hydra", "all"])
    kinds = ["all", "config", "defaults", "defaults-tree", "plugins", "searchpath"]
    parser.add_argument("--info", "-i", const="all", nargs="?", choices=kinds)
    return parser


def apply_override(cfg: DictConfig, override: Override) -> None:
    """Change `cfg`, which is in struct mode, as Hydra does for an override that picks no option.

    Raises:
        ConfigCompositionException: the override does not apply.
        OmegaConfBaseException: the same, with the key in question.
    """
    key, value, text = override.key_or_group, override.value(), override.input_line
    if override.package is not None:
        raise ConfigCompositionException(f"{text}: there is no config group '{key}'")
    present = OmegaConf.select(cfg, key, throw_on_missing=False)
    if override.is_delete():
        if present is None:
            raise ConfigCompositionException(f"'{key}' does not exist")
        if value is not None and value != present:
            raise ConfigCompositionException(f"'{key}' is {present} and not {value}")
        parent, _, last = key.rpartition(".")
        with open_dict(cfg):
            del (OmegaConf.select(cfg, parent) if parent else cfg)[last]
    elif override.is_add() and present is not None and not isinstance(value, dict | list):
        raise ConfigCompositionException(f"'{key}' exists: it is changed without the '+'")
    else:
        added = override.is_add() or override.is_force_add()
        OmegaConf.update(cfg, key, value, merge=True, force_add=added)
