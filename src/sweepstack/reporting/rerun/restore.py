"""What a trial is to be trained with again, from what its study keeps: nothing of it is trusted.

A study may come from anyone. From what it says of a trial only a config is made: plain values that
are checked against the schema. Nothing in it names a folder of configs, a setting of Hydra, a
resolver, a package to trust, or a file that is run or unpickled:

- config.yaml in the trial's folder is read as plain YAML, and believed where its hash is the one
  in the database. Otherwise the recorded overrides are composed with the configs of sweepstack.
- Overrides of `hydra` are left out: they decide how a sweep runs, never what a trial is.
- `--config-dir` of the sweep is not taken from the study: its configs may name further folders.
  Whoever needs it gives it again.
- `trust` is what the user says now. `data.download` and checkpoints are off: they write files.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import yaml
from optuna.trial import FrozenTrial

from sweepstack.config import reading as config
from sweepstack.config.errors import InputError, one_line
from sweepstack.config.schema import Custom, RunConfig
from sweepstack.config.trust import beyond_values, check_target, parts
from sweepstack.engine.spec import TrialSpec
from sweepstack.study.attributes import OVERRIDES
from sweepstack.study.library import OpenStudy

Plain = dict[str, Any]

LARGEST = 1_000_000
"""Bytes of a config.yaml that is read."""
MOST_NAMED = 6
"""Keys that a line names."""


@dataclass(frozen=True)
class Restored:
    """A trial's config.

    Attributes:
        config: what is trained.
        words: overrides that make it, for a manifest: the study's and the user's.
        verified: whether it is known to be the recorded one, so that its folder's history is too.
        notes: what a person has to know, a line each.
    """

    config: RunConfig
    words: list[str]
    verified: bool
    notes: list[str] = field(default_factory=list)


def restore(
    opened: OpenStudy,
    trial: FrozenTrial,
    given: Sequence[str] = (),
    trust: Sequence[str] = (),
    config_dir: str | None = None,
) -> Restored:
    """Make the config of a trial from what its study keeps.

    Args:
        opened: the study.
        trial: a trial of it.
        given: the user's overrides, on top.
        trust: packages that `model._target_` may name besides `trust.table`.
        config_dir: the user's folder of configs.

    Raises:
        InputError: the study does not keep what is needed, or it names what is not trusted.
    """
    recorded = _hash(trial)
    words, notes = _words(trial)
    kept = _kept(opened, trial)
    composed, problem = _attempt(lambda: _composed(opened, trial, words, config_dir))
    hashes = {name: _hash_of(plain) for name, plain in (("kept", kept), ("now", composed)) if plain}
    if kept and recorded and hashes["kept"] == recorded:
        plain = kept
    elif composed is not None:
        plain = composed
    else:
        assert problem is not None
        raise problem
    verified = recorded is not None and _hash_of(plain) == recorded
    if recorded and composed is not None and hashes["now"] != recorded:
        between = f"config_hash {recorded} then, {hashes['now']} now"
        if kept is not None and hashes["kept"] == recorded:
            notes.append(
                f"composed today it would be another config ({_named(kept, composed)}): trained is "
                "the recorded one"
            )
        else:
            known = f": {_named(kept, composed)}" if kept is not None else ""
            notes.append(f"the recorded config is not to be had, today's is trained{known}")
        notes[-1] += f"; {between}"
    return _with_own(trial, plain, words, verified, notes, (given, trust, config_dir))


def _with_own(
    trial: FrozenTrial,
    plain: Plain,
    words: list[str],
    verified: bool,
    notes: list[str],
    own: tuple[Sequence[str], Sequence[str], str | None],
) -> Restored:
    """What the user says, on top of what the study keeps."""
    given, trust, config_dir = own
    told = {word.lstrip("+~").partition("=")[0] for word in given}
    if "trust" in told:
        raise InputError("packages are trusted with --trust PACKAGE, not with trust=[...]")
    before = config.read_plain(plain)
    safe = {**plain, "trust": list(trust)}
    if "download" in safe["data"]:  # it would write where data.root says
        safe["data"] = {**safe["data"], "download": False}
    safe["training"] = {**safe["training"], "checkpoint_every": 0, "width": 1}
    safe["logger"] = {"name": "none"}
    found = config.read_plain(config.on_top(safe, given, config_dir) if given else safe)
    if given:
        wanted = config.read_plain(config.on_top(plain, given, config_dir))
        if TrialSpec(wanted).config_hash != TrialSpec(before).config_hash:
            notes.append(f"changed on purpose: {_named(asdict(before), asdict(wanted))}")
    _check_target(trial, found, trust)
    return Restored(found, [*words, *given], verified, notes)


def _check_target(trial: FrozenTrial, found: RunConfig, trust: Sequence[str]) -> None:
    """Refuse a custom model that nobody trusts, before anything of it is looked at."""
    if isinstance(found.model, Custom):
        try:
            check_target(found.model.target, trust)
        except InputError as error:
            raise InputError(
                f"trial {trial.number}: {said(error)}: a study is not trusted; if you trust it, "
                "add --trust PACKAGE"
            ) from None


def _hash(trial: FrozenTrial) -> str | None:
    found = trial.user_attrs.get("config_hash")
    return found if isinstance(found, str) and re.fullmatch("[0-9a-f]{16}", found) else None


def _hash_of(plain: Plain) -> str | None:
    try:
        return TrialSpec(config.read_plain(plain)).config_hash
    except InputError:
        return None


def _attempt(make: Callable[[], Plain]) -> tuple[Plain | None, InputError | None]:
    try:
        return make(), None
    except InputError as error:
        return None, error


# --- what the study keeps ----------------------------------------------------------------------


def _words(trial: FrozenTrial) -> tuple[list[str], list[str]]:
    """The recorded overrides that say what a trial is, and a line on those that do not.

    Raises:
        InputError: there are none, or one is nothing that a sweep of sweepstack records.
    """
    found = trial.user_attrs.get(OVERRIDES)
    if not isinstance(found, list) or not all(isinstance(word, str) for word in found):
        raise InputError(
            f"trial {trial.number} cannot be run again: it has no attribute {OVERRIDES} (what "
            "Hydra was told), which sweepstack records of each trial that ends"
        )
    kept, dropped = list[str](), list[str]()
    for word in found:
        why = beyond_values(word)
        if why:
            raise InputError(
                f"trial {trial.number} is refused: its recorded override '{said(word, 80)}' {why}"
            )
        (dropped if "hydra" in parts(word) else kept).append(word)
    if not dropped:
        return kept, []
    names = ", ".join(said(word.partition("=")[0], 60) for word in dropped[:MOST_NAMED])
    return kept, [f"left out, as a study may not set Hydra: {names}"]


def _composed(
    opened: OpenStudy, trial: FrozenTrial, words: Sequence[str], config_dir: str | None
) -> Plain:
    """The recorded overrides, composed today.

    Raises:
        InputError: they do not compose, or need a folder of configs that the user must name.
    """
    application = opened.asked.get("application")
    application = application if isinstance(application, Mapping) else {}
    before = application.get("config_dir")
    if before and config_dir is None:
        raise InputError(
            f"trial {trial.number} was composed with --config-dir {said(before, 80)}: give it "
            "again, a study may not name it"
        )
    name = application.get("config_name")
    if config_dir is None or not isinstance(name, str) or not re.fullmatch(r"[\w-]+", name):
        name = config.CONFIG_NAME
    try:
        read = config.read(config.compose(words, config_dir, name))
    except InputError as error:
        lines = [f"trial {trial.number}: {said(line)}" for line in error.mistakes]
        raise InputError(lines) from None
    return _as_typed(asdict(read))


def _kept(opened: OpenStudy, trial: FrozenTrial) -> Plain | None:
    """config.yaml of the trial's folder, None where there is none that can be read."""
    if opened.folder is None:
        return None
    try:
        with (opened.folder / str(trial.number) / "config.yaml").open("rb") as file:
            text = file.read(LARGEST + 1)
        if len(text) > LARGEST or b"${" in text:
            return None
        # Aliases of aliases of aliases fill the memory.
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, yaml.SafeLoader)):
            return None
        found = yaml.safe_load(text)
    except (OSError, ValueError, yaml.YAMLError, RecursionError):
        return None
    if not isinstance(found, dict) or not all(isinstance(key, str) for key in found):
        return None
    try:
        return _as_typed(asdict(config.read_plain(found)))
    except (InputError, ValueError):
        return None


def _as_typed(plain: Plain) -> Plain:
    """A config as its YAML files have it: a custom model's arguments beside its target."""
    model = plain["model"]
    if model.get("name") != "custom" or "arguments" not in model:
        return plain
    arguments = json.loads(model["arguments"])
    if not isinstance(arguments, dict):
        raise InputError("model.arguments must be a JSON object")
    return {**plain, "model": {**arguments, "name": "custom", "_target_": model["target"]}}


# --- for people --------------------------------------------------------------------------------


def _named(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """The keys in which two configs differ, with their values."""
    lines = [
        f"{key} {said(a, 40)} then, {said(b, 40)} now"
        for key, a, b in _differences(old, new)
        if key != "trust"
    ]
    more = f", and {len(lines) - MOST_NAMED} more" if len(lines) > MOST_NAMED else ""
    return "; ".join(lines[:MOST_NAMED]) + more


def _differences(old: Any, new: Any, path: str = "") -> list[tuple[str, Any, Any]]:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        return [
            found
            for key in sorted({*old, *new}, key=str)
            for found in _differences(old.get(key), new.get(key), f"{path}.{key}".lstrip("."))
        ]
    same = list(old) == list(new) if _are_lists(old, new) else old == new
    return [] if same else [(path, old, new)]


def _are_lists(*values: Any) -> bool:
    return all(isinstance(value, list | tuple) for value in values)


def said(text: object, limit: int = 300) -> str:
    """What a study says, as one line that does nothing to a terminal."""
    return one_line(text, limit)
