"""From a composed config to a typed `RunConfig`, with all mistakes at once: every value is checked
against `schema`, and rules between keys."""

from __future__ import annotations

import json
import typing
from collections.abc import Mapping
from dataclasses import MISSING, fields
from functools import lru_cache
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sweepstack.config import check, schema
from sweepstack.config.errors import InputError, masked, nearest, one_line

_hints = lru_cache(maxsize=None)(typing.get_type_hints)
"""Types of a schema class's fields; a sweep reads thousands of configs."""
_fields = lru_cache(maxsize=None)(fields)
_groups: dict[tuple[str, str], Any] = {}
"""Typed groups by their name and values: most trials of a sweep differ in one or two."""
_MOST_GROUPS = 512
_OPTIONAL = frozenset(item.name for item in fields(schema.RunConfig) if item.default is not MISSING)


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
    if group == "logger" and "name" in given:  # as studies of before have it
        given = {} if given["name"] == "none" else {str(given["name"]): True}
    if group in schema.PLAIN:
        return _build(schema.PLAIN[group], group, given, mistakes)
    if "_target_" in given and "custom" in schema.OPTIONS[group]:
        return _custom(group, given, mistakes)
    if group == "model" and given.get("name") == "hub":
        given = _with_arguments(given, schema.HubModel)
    options = schema.OPTIONS[group]
    name = given.get("name")
    if not isinstance(name, str) or name not in options:
        known = ", ".join(options)
        mistakes.append(
            f"{group}.name must be one of {known}, got {name!r}{nearest(str(name), options)}"
        )
        return None
    return _build(options[name], group, given, mistakes)


def _custom(group: str, given: Mapping[str, Any], mistakes: list[str]) -> Any:
    """What `_target_` names: keys that the group's custom option has are its own, all others are
    arguments."""
    cls = schema.OPTIONS[group]["custom"]
    own = {item.name for item in _fields(cls)} - {"target", "arguments"}
    key, target = f"{group}._target_", given["_target_"]
    if not isinstance(target, str) or target == "???":
        examples = {"optimizer": "torch.optim.Adadelta", "data": "mypackage.MyDataset"}
        examples["loss"] = "mypackage.my_loss"
        example = examples.get(group, "mypackage.Net")
        mistakes.append(f"{key} must be given, for example {key}={example}")
        return None
    own -= {"name"} if given.get("name", "custom") != "custom" else set()  # an argument
    rest = {name: value for name, value in given.items() if name not in ("_target_", *own)}
    try:
        called = {"name": "custom", "target": target, "arguments": json.dumps(rest)}
    except TypeError as error:  # a date, say
        mistakes.append(f"arguments of {key} must be JSON: {error}")
        return None
    kept = {name: value for name, value in given.items() if name in own}
    if group == "data":
        kept |= _splits(kept, mistakes)
    return _build(cls, group, {**kept, **called}, mistakes)


def _splits(given: Mapping[str, Any], mistakes: list[str]) -> dict[str, str]:
    """The arguments in which the splits of data=custom differ, as JSON."""
    found = {}
    for key in ("val", "test"):
        if isinstance(given.get(key), Mapping):
            found[key] = json.dumps(given[key], default=str)
        elif isinstance(given.get(key), str):
            mistakes.append(
                f"data.{key} must hold the arguments of that split, as data.{key}='{{split: "
                f"{key}}}', got {given[key]!r}"
            )
    return found


def _with_arguments(given: Mapping[str, Any], cls: type) -> Mapping[str, Any]:
    """A group in which the keys that its class does not have are `arguments`, as JSON."""
    known = {item.name for item in _fields(cls)}
    own = {key: value for key, value in given.items() if key in known}
    rest = {key: value for key, value in given.items() if key not in known}
    return own | ({"arguments": json.dumps(rest, default=str)} if rest else {})


def _build(cls: type, group: str, given: Mapping[str, Any], mistakes: list[str]) -> Any:
    hints, before = _hints(cls), len(mistakes)
    for key in given:
        if key not in hints:
            near = nearest(f"{group}.{key}", [f"{group}.{name}" for name in hints])
            mistakes.append(f"unknown key '{group}.{key}'{near}")
    values: dict[str, Any] = {}
    for item in _fields(cls):
        path = f"{group}.{item.name}"
        if item.name not in given and item.default is not MISSING:
            values[item.name] = item.default
        elif item.name not in given:
            name = given.get("name", "OPTION")
            mistakes.append(f"{path} is missing; `defaults: [{name}]` in a file of your own has it")
        elif given[item.name] == "???":
            mistakes.append(f"{path} must be given")
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
    if config.training.unfreeze_at is not None:
        if not getattr(config.model, "freeze", ()):
            mistakes.append(
                "training.unfreeze_at must be null where model.freeze names nothing, "
                f"got {config.training.unfreeze_at}"
            )
        if isinstance(config.optimizer, schema.CustomOptimizer):
            mistakes.append(
                "training.unfreeze_at must be null with optimizer=custom, "
                f"got {config.training.unfreeze_at}"
            )
        if getattr(config.model, "cache_features", False) is True:
            mistakes.append(
                "model.cache_features must be auto or false with training.unfreeze_at, got true"
            )
    uri = config.logger.tracking_uri or ""
    if masked(uri) != uri:
        mistakes.append(
            "logger.tracking_uri must have no password, which each trial's files would hold: set "
            f"MLFLOW_TRACKING_URI instead, got {masked(uri)}"
        )
    mistakes += config.data.mistakes()
    if schema.dampens(config.optimizer) and getattr(config.optimizer, "nesterov", False):
        mistakes.append("optimizer.dampening must be 0 with optimizer.nesterov=true, as in torch")
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
