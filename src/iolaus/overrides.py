"""Composing what a person typed: Hydra's many ways to say no, turned into one line each.

Called by `app.py`; the result is checked further by `config.read`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from iolaus import config
from iolaus.errors import InputError, nearest, one_line


def compose(
    overrides: Sequence[str],
    config_dir: str | None = None,
    config_name: str = config.CONFIG_NAME,
) -> DictConfig:
    """`config.compose` with the `hydra` node, whose mistakes are InputErrors.

    Raises:
        InputError: every override that does not apply, and every value that is out of range.
    """
    if config_dir is not None and not Path(config_dir).is_dir():
        raise InputError(f"--config-dir must be a folder, got '{config_dir}'")

    def attempt(chosen: Sequence[str]) -> DictConfig:
        return config.compose(
            chosen, config_dir=config_dir, config_name=config_name, with_hydra=True
        )

    try:
        return attempt(overrides)
    except (HydraException, OmegaConfBaseException) as error:
        first = error
    good: list[str] = []
    mistakes: list[str] = []
    for override in overrides:
        try:
            attempt([*good, override])
            good.append(override)
        except (HydraException, OmegaConfBaseException) as error:
            mistakes.append(_explain(override, error, attempt(good), config_dir))
    if not mistakes:  # the config itself does not compose
        raise InputError(one_line(first))
    try:
        config.read(attempt(good))
    except InputError as error:
        mistakes += error.mistakes
    raise InputError(mistakes)


def _explain(text: str, error: Exception, composed: DictConfig, config_dir: str | None) -> str:
    try:
        override: Override = OverridesParser.create().parse_override(text)
    except HydraException:
        return f"'{text}' must have the form KEY=VALUE; quote a value with special characters"
    if override.is_sweep_override():
        return f"{text} names several values: add -m to sweep over them, or quote the value"
    key, value = override.key_or_group, override.get_value_element_as_str()
    options = _options(key, config_dir)
    if options and isinstance(error, MissingConfigException):
        return f"{key} must be one of {', '.join(options)}, got '{value}'{nearest(value, options)}"
    known = _keys(OmegaConf.to_container(composed, resolve=False))
    if key not in known:
        return f"unknown key '{key}'{nearest(key, [k for k in known if k[:6] != 'hydra.'])}"
    return f"{text}: {one_line(error)}"


def _options(group: str, config_dir: str | None) -> list[str]:
    places = [config.folder("conf"), *([Path(config_dir)] if config_dir else [])]
    return sorted({file.stem for place in places for file in (place / group).glob("*.yaml")})


def _keys(node: object, prefix: str = "") -> list[str]:
    if not isinstance(node, dict):
        return []
    keys = []
    for name, value in node.items():
        keys += [f"{prefix}{name}", *_keys(value, f"{prefix}{name}.")]
    return keys
