"""From a composed Hydra config to a typed `RunConfig`, with all mistakes at once.

`compose` asks Hydra for a config as the command line would; `read` checks every value against
`schema.py` and builds the config.
"""

from __future__ import annotations

import json
import typing
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from sweepstack.config import check, hydra_adapter, schema
from sweepstack.config.errors import InputError, nearest, one_line

CONFIG_NAME = "config"

_hints = lru_cache(maxsize=None)(typing.get_type_hints)
"""Types of a schema class's fields; a sweep reads thousands of configs."""
_fields = lru_cache(maxsize=None)(fields)
_groups: dict[tuple[str, str], Any] = {}
"""Typed groups by their name and values: most trials of a sweep differ in one or two."""
_MOST_GROUPS = 512
_OPTIONAL = frozenset(item.name for item in fields(schema.RunConfig) if item.default is not MISSING)


def _home() -> str:
    """The folder in which sweeps/ lies, for `hydra.searchpath` in conf/config.yaml."""
    return str(folder("sweeps").parent)


def folder(name: str) -> Path:
    """Where `conf` or `sweeps` lies: inside an installed wheel, or at the top of a checkout.

    Raises:
        FileNotFoundError: neither place has it, so the installation is broken.
    """
    here = Path(__file__).resolve().parents[1]
    for place in (here / name, here.parents[1] / name):
        if place.is_dir():
            return place
    raise FileNotFoundError(f"sweepstack is installed without its {name}/ folder")


hydra_adapter.register_resolver("sweepstack_home", _home)


def compose(
    overrides: Sequence[str] = (),
    *,
    config_dir: str | None = None,
    config_name: str = CONFIG_NAME,
    with_hydra: bool = False,
) -> DictConfig:
    """Compose conf/ with `overrides`, as the command line does.

    Args:
        overrides: as typed, for example "optimizer.lr=0.01".
        config_dir: a folder searched before conf/, like `--config-dir`.
        config_name: the primary config.
        with_hydra: keep the `hydra` node.

    Raises:
        hydra.errors.HydraException: an override names no key or option, or does not parse.
    """
    cfg = hydra_adapter.compose(folder("conf"), overrides, config_name, config_dir)
    if not with_hydra:
        with open_dict(cfg):
            cfg.pop("hydra")
    return cfg


def read(cfg: DictConfig) -> schema.RunConfig:
    """Check `cfg` and build the typed config.

    Raises:
        InputError: one line for each mistake, all of them.
    """
    try:
        keys = [str(key) for key in cfg if key != "hydra"]
        plain = OmegaConf.to_container(OmegaConf.masked_copy(cfg, keys), resolve=True)
    except OmegaConfBaseException as error:
        raise InputError(one_line(error)) from None
    assert isinstance(plain, dict)
    return read_plain({str(key): value for key, value in plain.items()})


def read_plain(plain: Mapping[str, Any]) -> schema.RunConfig:
    """`read` for a plain nested mapping."""
    mistakes: list[str] = []
    values: dict[str, Any] = {}
    groups = _hints(schema.RunConfig)
    for key in plain:
        if key not in groups:
            mistakes.append(f"unknown key '{key}'{nearest(key, groups)}")
    for key, hint in groups.items():
        if key not in plain:
            if key not in _OPTIONAL:
                mistakes.append(f"{key} is missing")
        elif key in schema.OPTIONS or key in schema.PLAIN:
            values[key] = _kept_group(key, plain[key], mistakes)
        else:
            values[key] = check.value(key, hint, {}, plain[key], mistakes)
    if not mistakes:
        config = schema.RunConfig(**values)
        mistakes += _across(config)
    if mistakes:
        raise InputError(mistakes)
    return config


def _kept_group(group: str, given: Any, mistakes: list[str]) -> Any:
    """`_group`, once for equal values; those that look different (1, 1.0, true) are."""
    key, before = (group, repr(given)), len(mistakes)
    found = _groups.get(key)
    if found is None:
        found = _group(group, given, mistakes)
        if len(mistakes) == before:
            if len(_groups) >= _MOST_GROUPS:
                _groups.pop(next(iter(_groups)))
            _groups[key] = found
    return found


def _group(group: str, given: Any, mistakes: list[str]) -> Any:
    if not isinstance(given, Mapping):
        mistakes.append(f"{group} must be a config group, got {given!r}")
        return None
    if group in schema.PLAIN:
        return _build(schema.PLAIN[group], group, given, mistakes)
    if group == "model" and "_target_" in given:
        return _custom(given, mistakes)
    options = schema.OPTIONS[group]
    name = given.get("name")
    if not isinstance(name, str) or name not in options:
        known = ", ".join(options)
        mistakes.append(
            f"{group}.name must be one of {known}, got {name!r}{nearest(str(name), options)}"
        )
        return None
    return _build(options[name], group, given, mistakes)


def _custom(given: Mapping[str, Any], mistakes: list[str]) -> schema.Custom | None:
    target = given["_target_"]
    if not isinstance(target, str) or target == "???":
        mistakes.append("model._target_ must be given, for example model._target_=mypackage.Net")
        return None
    rest = {key: value for key, value in given.items() if key not in ("_target_", "name")}
    try:
        arguments = json.dumps(rest)
    except TypeError as error:  # a date, say
        mistakes.append(f"arguments of model._target_ must be JSON: {error}")
        return None
    return schema.Custom(name="custom", target=target, arguments=arguments)


def _build(cls: type, group: str, given: Mapping[str, Any], mistakes: list[str]) -> Any:
    hints, before = _hints(cls), len(mistakes)
    for key in given:
        if key not in hints:
            near = nearest(f"{group}.{key}", [f"{group}.{name}" for name in hints])
            mistakes.append(f"unknown key '{group}.{key}'{near}")
    values: dict[str, Any] = {}
    for item in _fields(cls):
        path = f"{group}.{item.name}"
        if item.name not in given:
            name = given.get("name", "OPTION")
            mistakes.append(f"{path} is missing; `defaults: [{name}]` in a file of your own has it")
        else:
            values[item.name] = check.value(
                path, hints[item.name], item.metadata, given[item.name], mistakes
            )
    return cls(**values) if len(mistakes) == before else None


def _across(config: schema.RunConfig) -> list[str]:
    """Rules that hold between keys."""
    mistakes: list[str] = []
    if config.training.max_steps is None and config.training.max_epochs is None:
        mistakes.append("training.max_steps or training.max_epochs must be given, both are null")
    last = config.training.seed + config.training.seeds - 1
    if last >= 2**63:
        mistakes.append(
            f"training.seed + training.seeds - 1 must be < {2**63}, the last seed, got {last}"
        )
    mistakes += config.data.mistakes()
    return mistakes


def inert(config: schema.RunConfig) -> list[str]:
    """One line for each key that was set away from "off" although it changes nothing here."""
    keys = schema.INERT.get(config.optimizer.name, frozenset())
    lines = [
        f"optimizer.{key} has no effect with optimizer={config.optimizer.name}"
        for key in sorted(keys)
        if getattr(config.optimizer, key)
    ]
    if isinstance(config.model, schema.Mlp) and not config.model.hidden:
        given = {"dropout": config.regularization.dropout > 0}
        given["batch_norm"] = config.regularization.batch_norm is True
        lines += [
            f"regularization.{key} has no effect without hidden layers"
            for key, on in given.items()
            if on
        ]
    return lines
