"""Composing what a person typed: Hydra's many ways to say no, turned into one line each."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sweepstack.config import hydra_adapter, schema
from sweepstack.config import reading as config
from sweepstack.config.errors import InputError, nearest, one_line

UNREADABLE = (HydraException, ValueError, RecursionError)
"""What Hydra's parser raises: ValueError for 5,000 digits, RecursionError for 1,000 brackets."""
REFUSALS = (
    *(*UNREADABLE, OmegaConfBaseException, yaml.YAMLError),
    *(AssertionError, AttributeError, OSError, TypeError),
)
"""What Hydra raises for a wrong override: ValueError for a group set to a number, TypeError for one
set to [null], OSError for a name of 5,000 letters, YAMLError for a file of the user's own that does
not parse."""

_OTHER_NAMES = {
    "epochs": "training.max_epochs",
    "steps": "training.max_steps",
    "learning_rate": "optimizer.lr",
    "batch_size": "batch.size",
    "layers": "model.hidden",
    "hidden_size": "model.hidden",
    "path": "data.root",
    "kaiming": "he",
    "glorot": "xavier",
    "plain": "none",
}


def compose(
    overrides: Sequence[str],
    config_dir: str | None = None,
    config_name: str = config.CONFIG_NAME,
) -> DictConfig:
    """`config.compose` with the `hydra` node, whose mistakes are InputErrors.

    Raises:
        InputError: every override that does not apply, and every value that is out of range.
    """
    if isinstance(overrides, str) or not all(isinstance(word, str) for word in overrides):
        raise InputError(
            f'overrides must be words such as "optimizer.lr=0.01", got {one_line(overrides, 80)}'
        )
    if config_dir is not None and not Path(config_dir).is_dir():
        raise InputError(f"--config-dir must be a folder, got '{config_dir}'")

    def attempt(chosen: Sequence[str]) -> DictConfig:
        return config.compose(
            chosen, config_dir=config_dir, config_name=config_name, with_hydra=True
        )

    try:
        return attempt(overrides)
    except REFUSALS as error:
        first = error
    good: list[str] = []
    mistakes: list[str] = []
    for override in overrides:
        try:
            attempt([*good, override])
            good.append(override)
        except REFUSALS as error:
            mistakes.append(_explain(override, error, attempt(good), config_dir))
    if not mistakes:  # the config itself does not compose
        raise InputError(one_line(first))
    try:
        config.read(attempt(good))
    except InputError as error:
        mistakes += error.mistakes
    raise InputError(mistakes)


def on_top(
    plain: Mapping[str, Any], words: Sequence[str], config_dir: str | None = None
) -> dict[str, Any]:
    """A composed config of plain values, changed as `words` say: `optimizer=sgd` takes the whole
    group anew, `optimizer.lr=0.1` one value.

    Args:
        plain: without interpolations.
        words: overrides as typed.
        config_dir: as for `compose`.

    Raises:
        InputError: a word that names no key or option, or refers to none.
    """
    cfg, parser = OmegaConf.create(dict(plain)), OverridesParser.create()
    for word in words:
        try:
            override = parser.parse_override(word)
            key = override.key_or_group
            if override.is_sweep_override() or key.startswith("hydra"):
                raise InputError(f"one value of a key of the config is meant, got '{word}'")
            if override.type == OverrideType.CHANGE and _options(key, config_dir):
                cfg[key] = compose([word], config_dir)[key]
                continue
            OmegaConf.set_struct(cfg, True)
            hydra_adapter.apply_override(cfg, override)
        except REFUSALS as error:
            raise InputError(_explain(word, error, cfg, config_dir)) from None
        finally:
            OmegaConf.set_struct(cfg, False)
    try:
        found = OmegaConf.to_container(cfg, resolve=True)
    except OmegaConfBaseException as error:  # a reference of the user's that leads nowhere
        raise InputError(f"{error.full_key}: {one_line(str(error).splitlines()[0])}") from None
    assert isinstance(found, dict)
    return {str(key): value for key, value in found.items()}


def check_sweep(
    overrides: Sequence[str],
    params: Mapping[str, str],
    *,
    config_dir: str | None = None,
    config_name: str = config.CONFIG_NAME,
) -> DictConfig:
    """Check every value of a sweep by itself, beside the first values of the others.

    Args:
        overrides: the command line's, which win over `params`.
        params: `hydra.sweeper.params`.
        config_dir, config_name: as for `compose`.

    Returns:
        The config of the first point.

    Raises:
        InputError: every mistake, each once.
    """
    parser = OverridesParser.create()
    swept: dict[str, list[str]] = {}
    for text in [*(f"{key}={value}" for key, value in params.items()), *overrides]:
        try:
            override = parser.parse_override(text)
        except UNREADABLE:
            swept[text] = [text]  # `compose` says what is wrong with it
            continue
        key = override.get_key_element()
        if override.is_sweep_override() and not override.is_discrete_sweep():
            continue  # an interval: the sweeper checks its bounds
        if override.is_sweep_override():
            swept[key] = [f"{key}={value}" for value in override.sweep_string_iterator()]
        else:
            swept[key] = [text]
    first = {key: values[0] for key, values in swept.items()}
    points = [first]
    points += [first | {key: value} for key, values in swept.items() for value in values[1:]]
    mistakes: dict[str, None] = {}
    composed: list[DictConfig] = []
    for point in points:
        try:
            composed.append(compose(list(point.values()), config_dir, config_name))
            config.read(composed[-1])
        except InputError as error:
            mistakes |= dict.fromkeys(error.mistakes)
    if mistakes:
        raise InputError(list(mistakes))
    return composed[0]


def _explain(text: str, error: Exception, composed: DictConfig, config_dir: str | None) -> str:
    override: Override | None = None
    with contextlib.suppress(*UNREADABLE):
        override = OverridesParser.create().parse_override(text)
    if override is None or not override.key_or_group:
        return (
            f"'{one_line(text, 80)}' must have the form KEY=VALUE, in quotes if it has spaces or "
            "brackets: 'KEY=[1,2]'"
        )
    key = override.key_or_group
    if isinstance(error, OSError) and error.strerror:  # Hydra's own have none
        return f"{one_line(text, 80)}: {error.strerror}"
    known = _keys(OmegaConf.to_container(composed, resolve=False))
    if override.is_sweep_override():
        listed = "" if _options(key, config_dir) else f", or write a list as '{key}=[...]'"
        return f"{text} names several values: add -m to sweep over them{listed}"
    value = override.get_value_element_as_str()
    options = _options(key, config_dir)
    if options and value not in options:
        near = nearest(_OTHER_NAMES.get(value.lower(), value), options)
        inner = [name for name in known if name.startswith(f"{key}.")]
        keys = f" (its keys are {', '.join(inner)})" if options == ["default"] else ""
        return f"{key} must be one of {', '.join(options)}, got '{value}'{near}{keys}"
    if key.startswith("hydra/"):
        return f"{text}: {one_line(error)}"
    if options and key not in known and override.type == OverrideType.CHANGE:
        return f"'{text}' must be written '+{text}': no {key} is chosen so far"
    if key not in known:
        return f"unknown key '{key}'{_suggest(key, known, composed)}"
    return f"{text}: {one_line(error)}"


def _suggest(key: str, known: Sequence[str], composed: DictConfig) -> str:
    """What an unknown key was probably meant to be."""
    group, _, last = key.rpartition(".")
    elsewhere = [
        option
        for option, cls in schema.OPTIONS.get(group, {}).items()
        if last in {item.name for item in dataclasses.fields(cls)}
    ]
    if elsewhere:
        chosen = OmegaConf.select(composed, f"{group}.name")
        return f": {group}={chosen} has none, {group}={'|'.join(elsewhere)} have"
    leaves = [name for name in known if not name.startswith("hydra.") and "." in name]
    other = _OTHER_NAMES.get(last, "")
    same = [name for name in leaves if name.rpartition(".")[2] == last]
    if not same and other in leaves:
        same = [other]
    if same:
        return f"; did you mean {' or '.join(repr(name) for name in same)}?"
    near = nearest(key, [name for name in known if not name.endswith(".name")])
    inner = [name for name in leaves if group and name.startswith(f"{group}.")]
    if near and (not inner or f"{group}." in near):
        return near
    return f"; {group} has {', '.join(inner)}" if inner else near


def _options(group: str, config_dir: str | None) -> list[str]:
    places = [config.folder("conf"), *([Path(config_dir)] if config_dir else [])]
    places += [config.folder("sweeps").parent] if group == "sweeps" else []
    files = {file.stem for place in places for file in (place / group).glob("*.yaml")}
    if group.startswith("hydra/"):  # of Hydra and its plugins
        with contextlib.suppress(OSError):
            files |= {
                name.removesuffix(".yaml")
                for name in ConfigStore.instance().list(group)
                if name.endswith(".yaml")
            }
    return sorted(files)


def _keys(node: object, prefix: str = "") -> list[str]:
    if not isinstance(node, dict):
        return []
    keys = []
    for name, value in node.items():
        keys += [f"{prefix}{name}", *_keys(value, f"{prefix}{name}.")]
    return keys
