"""From what a person typed to a composed config; of a sweep, thousands of them quickly.

`compose` asks Hydra as the command line does, and turns its many ways to refuse an override into
one line each. It costs tens of milliseconds, most of it for the defaults list. Trials of a sweep
differ mostly in plain values, which change nothing in that list: `Composition` keeps the config of
everything else, and puts the values into a copy of it. The result is that of a full composition (a
property test compares them).
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from sweepstack.config import hydra_adapter, schema
from sweepstack.config.errors import InputError, nearest, one_line
from sweepstack.config.reading import read

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
Plain = dict[str, Any]

# As Hydra's grammar has them, without what it writes in more than one way (1_000, inf).
_INTEGER = re.compile(r"-?(0|[1-9][0-9]*)")
_NUMBER = re.compile(r"([A-Za-z_][\w.]*)=(-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?)")


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


# Where sweeps/ lies, for `hydra.searchpath` in conf/config.yaml.
hydra_adapter.register_resolver("sweepstack_home", lambda: str(folder("sweeps").parent))


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


class Composition:
    """Composes overrides to plain nested values, without the `hydra` node.

    Args:
        load: a full composition of overrides.
        is_group: whether a key is a config group, whose choice changes the defaults list.
    """

    def __init__(self, load: Callable[[list[str]], DictConfig], is_group: Callable[[str], bool]):
        self._load, self._is_group = load, is_group
        self._parser = OverridesParser.create()
        self._kept: dict[tuple[str, ...], Plain | None] = {}
        self._parsed: dict[str, tuple[str, Any] | None] = {}

    def __call__(self, overrides: Sequence[str]) -> Plain:
        """The config of `overrides`, resolved; it must not be changed.

        Raises:
            hydra.errors.HydraException: an override names no key or option, or does not parse.
        """
        values: list[tuple[str, Any]] = []
        structural: list[str] = []
        for text in overrides:
            value = self._value(text)
            if value is None:
                structural.append(text)
            else:
                values.append(value)
        base = self._base(tuple(structural))
        if base is None:
            return self._full(overrides)
        plain: Plain = dict(base)  # what no value goes into is shared with other configs
        own = {key.partition(".")[0] for key, _ in values}
        plain.update((name, _copied(base[name])) for name in own if name in base)
        for key, value in values:
            if not _put(plain, key.split("."), _copied(value)):
                return self._full(overrides)  # which says what is wrong, or knows better
        return plain

    def _value(self, text: str) -> tuple[str, Any] | None:
        """(key, value) where an override sets one existing key to a number, word, list or null;
        None where it may change the defaults list."""
        number = _NUMBER.fullmatch(text)
        if number is not None:  # most of what a sweep tries, and slow to parse
            key, digits = number.groups()
            if not key.startswith("hydra.") and not self._is_group(key):
                return key, int(digits) if _INTEGER.fullmatch(digits) else float(digits)
        if text not in self._parsed:
            override = self._parser.parse_overrides([text])[0]
            plain = (override.key_or_group, _unquoted(override.value()))
            self._parsed[text] = plain if self._is_value(override) else None
        return self._parsed[text]

    def _is_value(self, override: Override) -> bool:
        """Whether an override only puts a plain value under a key."""
        plain = override.type == OverrideType.CHANGE and override.package is None
        if not plain or override.is_sweep_override() or "[" in override.key_or_group:
            return False
        if override.key_or_group.startswith("hydra.") or self._is_group(override.key_or_group):
            return False
        return not _interpolates(override.value()) and not isinstance(override.value(), dict)

    def _base(self, structural: tuple[str, ...]) -> Plain | None:
        """The kept composition, or None where values refer to each other."""
        if structural not in self._kept:
            raw = self._full(structural, resolve=False)
            self._kept[structural] = None if _interpolates(raw) else raw
        return self._kept[structural]

    def _full(self, overrides: Sequence[str], *, resolve: bool = True) -> Plain:
        cfg = self._load(list(overrides))
        cfg = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])
        raw = OmegaConf.to_container(cfg, resolve=resolve)
        assert isinstance(raw, dict)
        return {str(key): value for key, value in raw.items()}


def _interpolates(node: Any) -> bool:
    if isinstance(node, dict):
        return any(_interpolates(value) for value in node.values())
    if isinstance(node, list | tuple):
        return any(_interpolates(value) for value in node)
    return isinstance(node, str) and ("${" in node or node == "???")


def _put(node: Plain, path: Sequence[str], value: Any) -> bool:
    """Set an existing leaf; False where there is none or it is no leaf."""
    for key in path[:-1]:
        inner = node.get(key)
        if not isinstance(inner, dict):
            return False
        node = inner
    if path[-1] not in node or isinstance(node[path[-1]], dict):
        return False
    node[path[-1]] = value
    return True


def _copied(node: Any) -> Any:
    """A copy of plain nested values; `copy.deepcopy` takes ten times as long."""
    if isinstance(node, dict):
        return {key: _copied(value) for key, value in node.items()}
    return [_copied(item) for item in node] if isinstance(node, list) else node


def _unquoted(value: Any) -> Any:
    """Hydra's quoted strings as strings, also inside of lists."""
    if isinstance(value, list):
        return [_unquoted(item) for item in value]
    return getattr(value, "text", value)
