"""From what a person typed to a typed `RunConfig`, with all mistakes at once.

`compose` asks Hydra for a config as the command line does, and turns its many ways to refuse an
override into one line each; `read` checks every value against `schema` and builds the config.
"""

from __future__ import annotations

import contextlib
import json
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from sweepstack.config import check, hydra_adapter, schema
from sweepstack.config.errors import InputError, masked, nearest, one_line

CONFIG_NAME = "config"

UNREADABLE = (HydraException, ValueError, RecursionError)
"""What Hydra's parser raises: ValueError for 5,000 digits, RecursionError for 1,000 brackets."""
REFUSALS = (
    *(*UNREADABLE, OmegaConfBaseException, yaml.YAMLError),
    *(AssertionError, AttributeError, OSError, TypeError),
)
"""What Hydra raises for a wrong override: ValueError for a group set to a number, TypeError for one
set to [null], OSError for a name of 5,000 letters, YAMLError for a file of the user's own that does
not parse."""

_LAUNCHERS = {
    "joblib": "; pip install hydra-joblib-launcher",
    "submitit_slurm": "; pip install 'sweepstack[slurm]'",
    "submitit_local": "; pip install 'sweepstack[slurm]'",
    "ray": "; pip install 'sweepstack[ray]'",
    "rq": "; hydra-rq-launcher 1.2 does not work with Python 3.11 or newer",
}
"""By launcher that may not be installed: what to do about it."""
_OTHER_NAMES = {
    "epochs": "training.max_epochs",
    "steps": "training.max_steps",
    "learning_rate": "optimizer.lr",
    "batch_size": "batch.size",
    "accumulate_grad_batches": "batch.accumulate",
    "accumulation_steps": "batch.accumulate",
    "ema": "training.ema_decay",
    "layers": "model.hidden",
    "hidden_size": "model.hidden",
    "path": "data.root",
    "random_crop": "regularization.random_resized_crop regularization.crop_padding",
    "color_jitter": "regularization.brightness regularization.contrast",
    "randaugment": "regularization.rand_augment",
    "erasing": "regularization.random_erasing",
    "resize": "data.image_size",
    "normalize": "data.normalization",
    "kaiming": "he",
    "mode": "init.fan",
    "filters": "model.channels model.width",
    "noise_type": "data.noise",
    "glorot": "xavier",
    "plain": "none",
    "init=none": "keep",
    "schedule=none": "constant",
    "l2": "regularization.weight_decay",
    "init_from": "model.weights",
    "pretrained": "model.weights",
    "model.init": "init",
}
"""What people call a key, a value, or a value of a group, and what it is called here."""

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
    config_dir: str | None = None,
    config_name: str = CONFIG_NAME,
    *,
    with_hydra: bool = False,
) -> DictConfig:
    """Compose conf/ with `overrides`, as the command line does.

    Args:
        overrides: as typed, for example "optimizer.lr=0.01".
        config_dir: a folder searched after conf/, like `--config-dir`.
        config_name: the primary config.
        with_hydra: keep the `hydra` node.

    Raises:
        InputError: every override that does not apply, and every value that is out of range.
    """
    if isinstance(overrides, str) or not all(isinstance(word, str) for word in overrides):
        raise InputError(
            f'overrides must be strings such as "optimizer.lr=0.01", got {one_line(overrides, 80)}'
        )
    if config_dir is not None and not Path(config_dir).is_dir():
        raise InputError(f"--config-dir must be a folder, got '{config_dir}'")

    known: dict[tuple[str, ...], DictConfig | Exception] = {}

    def attempt(chosen: Sequence[str]) -> DictConfig:
        if (key := tuple(chosen)) not in known:
            try:
                known[key] = hydra_adapter.compose(folder("conf"), key, config_name, config_dir)
            except REFUSALS as error:
                known[key] = error
        if isinstance(found := known[key], Exception):
            raise found
        return found

    try:
        cfg = attempt(overrides)
    except REFUSALS as error:
        raise InputError(_mistakes(attempt, overrides, config_dir) or one_line(error)) from None
    if not with_hydra:
        with open_dict(cfg):
            cfg.pop("hydra")
    return cfg


def _mistakes(
    attempt: Callable[[Sequence[str]], DictConfig],
    overrides: Sequence[str],
    config_dir: str | None,
) -> list[str]:
    """What is wrong with each override beside the good ones; nothing, where the config itself does
    not compose."""
    good: list[str] = []
    mistakes: list[str] = []
    for override in overrides:
        try:
            attempt([*good, override])
            good.append(override)
        except REFUSALS as error:
            mistakes.append(_explain(override, error, attempt(good), config_dir))
    if mistakes:
        try:
            read(attempt(good))
        except InputError as error:
            mistakes += error.mistakes
    return mistakes


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
                raise InputError(f"an override must set one value of a config key, got '{word}'")
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
    config_name: str = CONFIG_NAME,
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
            composed.append(compose(list(point.values()), config_dir, config_name, with_hydra=True))
            read(composed[-1])
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
    if override.is_sweep_override() and key == "logger":
        return f"{text} names several loggers: write {key}=[{text.partition('=')[2]}]"
    if override.is_sweep_override():
        lists = "" if _options(key, config_dir) else f", or write a list as '{key}=[...]'"
        return f"{text} names several values: add -m to sweep over them{lists}"
    value = override.get_value_element_as_str()
    options = _options(key, config_dir)
    if key == "logger" and isinstance(listed := override.value(), list):
        value = next((str(each) for each in listed if str(each) not in options), value)
    if options and value not in options:
        meant = _OTHER_NAMES.get(f"{key}={value.lower()}", _OTHER_NAMES.get(value.lower(), value))
        near = nearest(meant, options)
        inner = [name for name in known if name.startswith(f"{key}.")]
        keys = f" (its keys are {', '.join(inner)})" if options == ["default"] else ""
        near = _LAUNCHERS.get(value, near) if key == "hydra/launcher" else near
        return f"{key} must be one of {', '.join(options)}, got '{value}'{near}{keys}"
    if key.startswith("hydra/"):
        return f"{text}: {one_line(error)}"
    if options and key not in known and override.type == OverrideType.CHANGE:
        return f"'{text}' must be written '+{text}': no {key} is chosen so far"
    if key not in known and key.startswith("hydra.launcher.") and key.rpartition(".")[0] in known:
        return f"unknown key '{key}'; what the launcher passes on is written '+{text}'"
    if key not in known:
        target = f"{key.partition('.')[0]}._target_"
        further = f"; an argument of {target} is written '+{text}'" if target in known else ""
        return f"unknown key '{key}'{further or _suggest(key, known, composed)}"
    return f"{text}: {one_line(error)}"


def _suggest(key: str, known: Sequence[str], composed: DictConfig) -> str:
    """What an unknown key was probably meant to be."""
    group, _, last = key.rpartition(".")
    elsewhere = [
        option
        for option, cls in schema.OPTIONS.get(group, {}).items()
        if {last.replace("_target_", "target")} & {item.name for item in fields(cls)}
    ]
    if elsewhere:
        chosen = OmegaConf.select(composed, f"{group}.name", default="custom")
        return f": {group}={chosen} has none, {group}={'|'.join(elsewhere)} have"
    leaves = [name for name in known if not name.startswith("hydra.") and "." in name]
    others = _OTHER_NAMES.get(key, _OTHER_NAMES.get(last, "")).split()
    same = [name for name in leaves if name.rpartition(".")[2] == last and key not in _OTHER_NAMES]
    same = same or [name for name in others if name in known]
    if same:
        return f"; did you mean {' or '.join(repr(name) for name in same)}?"
    near = nearest(key, [name for name in known if not name.endswith(".name")])
    inner = [name for name in leaves if group and name.startswith(f"{group}.")]
    if near and (not inner or f"{group}." in near):
        return near
    return f"; {group} has {', '.join(inner)}" if inner else near


def _options(group: str, config_dir: str | None) -> list[str]:
    places = [folder("conf"), *([Path(config_dir)] if config_dir else [])]
    places += [folder("sweeps").parent] if group == "sweeps" else []
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
