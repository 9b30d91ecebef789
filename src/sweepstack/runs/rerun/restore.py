"""What a trial is to be trained with again, from what its study keeps: nothing of it is trusted.

A study may come from anyone. From what it says of a trial only a config is made: plain values that
are checked against the schema. Nothing in it names a folder of configs, a setting of Hydra, a
resolver, a package to trust, or a file that is run or unpickled:

- config.yaml in the trial's folder is read as plain YAML, and believed where its hash is the one
  in the database. Otherwise the recorded overrides are composed with the configs of sweepstack.
- Overrides of `hydra` are left out: they decide how a sweep runs, never what a trial is.
- `--config-dir` of the sweep is not taken from the study: its configs may name further folders.
  Whoever needs it gives it again.
- `model.weights` is a file that is read or downloaded: the user repeats it.
- `trust` is what the user says now. `data.download` and checkpoints are off: they write files.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import yaml
from optuna.trial import FrozenTrial

from sweepstack.config import commands, composition, reading
from sweepstack.config.errors import InputError, one_line
from sweepstack.config.schema import RunConfig
from sweepstack.config.trust import beyond_values, check_target, parts
from sweepstack.runs.folder import differences
from sweepstack.study.attributes import OVERRIDES, RETRIED
from sweepstack.study.view import StudyView
from sweepstack.training.spec import TrialSpec

Plain = dict[str, Any]

MAX_BYTES = 1_000_000
"""Bytes of a config.yaml that is read."""
MAX_NAMED = 6
"""Keys that a line names."""


@dataclass(frozen=True)
class Restored:
    """A trial's config.

    Attributes:
        config: what is trained.
        overrides: those that make it, for a manifest: the study's and the user's.
        verified: whether it is known to be the recorded one, so that its folder's history is too.
        notes: what a person has to know, a line each.
    """

    config: RunConfig
    overrides: list[str]
    verified: bool
    notes: list[str] = field(default_factory=list)


def restore(
    view: StudyView,
    trial: FrozenTrial,
    given: Sequence[str] = (),
    trust: Sequence[str] = (),
    config_dir: str | None = None,
) -> Restored:
    """Make the config of a trial from what its study keeps.

    Args:
        view: the study.
        trial: a trial of it.
        given: the user's overrides, on top.
        trust: packages that `model._target_` may name besides `trust.table`.
        config_dir: the user's folder of configs.

    Raises:
        InputError: the study does not keep what is needed, or it names what is not trusted.
    """
    recorded = _hash(trial)
    kept_overrides, notes = _overrides(trial)
    kept, composed = kept_config(view, trial), None
    kept_hash = None if kept is None else _hash_of(kept)
    try:
        composed = _composed(view, trial, kept_overrides, config_dir)
    except InputError:
        if kept is None or not recorded or kept_hash != recorded:
            raise
    composed_hash = None if composed is None else _hash_of(composed)
    is_kept = kept is not None and recorded is not None and kept_hash == recorded
    if recorded and composed is not None and composed_hash != recorded:
        differs = "" if kept is None else _named(kept, composed)
        if is_kept:
            note = f"composed today it would be another config ({differs}): using the recorded one"
        else:
            note = "the recorded config is unavailable: using today's"
            note += f", which differs: {differs}" if differs else ""
        notes.append(f"{note}; config_hash {recorded} then, {composed_hash} now")
    plain = kept if is_kept else composed
    assert plain is not None
    verified = recorded is not None and (is_kept or composed_hash == recorded)
    _check_weights(trial, plain, given)
    config, changed = _changed(plain, given, trust, config_dir)
    _check_target(trial, config, trust)
    return Restored(config, [*kept_overrides, *given], verified, [*notes, *changed])


def _changed(
    plain: Plain, given: Sequence[str], trust: Sequence[str], config_dir: str | None
) -> tuple[RunConfig, list[str]]:
    """The config with what the user gives on top and without what writes files, and a note on what
    the user changed."""
    if "trust" in {override.lstrip("+~").partition("=")[0] for override in given}:
        raise InputError("packages are trusted with --trust PACKAGE, not with trust=[...]")
    before = reading.read_plain(plain)
    safe = {**plain, "trust": list(trust), "logger": {}}
    if "download" in safe["data"]:  # it would write where data.root says
        safe["data"] = {**safe["data"], "download": False}
    safe["training"] = {**safe["training"], "checkpoint_every": 0, "width": 1}
    if not given:
        return reading.read_plain(safe), []
    config = reading.read_plain(composition.on_top(safe, given, config_dir))
    wanted = reading.read_plain(composition.on_top(plain, given, config_dir))
    if TrialSpec(wanted).config_hash == TrialSpec(before).config_hash:
        return config, []
    return config, [f"changed on purpose: {_named(asdict(before), asdict(wanted))}"]


def _check_target(trial: FrozenTrial, found: RunConfig, trust: Sequence[str]) -> None:
    """Refuse a custom model, optimizer, dataset, loss or metric that nobody trusts, before anything
    of it is looked at."""
    chosen = {group: getattr(found, group) for group in ("model", "optimizer", "data", "loss")}
    own = [
        (f"{group}._target_", part.target)
        for group, part in chosen.items()
        if part.name == "custom"
    ]
    own += [("metrics", name.partition(":")[0]) for name in found.metrics if "." in name]
    for key, target in own:
        try:
            check_target(target, trust, key)
        except InputError as error:
            raise InputError(
                f"trial {trial.number}: {one_line(error)}: a study is not trusted; if you trust "
                "it, add --trust PACKAGE"
            ) from None


def _check_weights(trial: FrozenTrial, plain: Plain, given: Sequence[str]) -> None:
    """Refuse to read a file, or to download, because a study says so: the user repeats it."""
    weights = plain["model"].get("weights") if plain["model"].get("name") != "custom" else None
    if weights is None or any(word.partition("=")[0] == "model.weights" for word in given):
        return
    word = shlex.quote(f"model.weights={one_line(weights)}")
    raise InputError(
        f"trial {trial.number} starts from the weights '{one_line(weights, 120)}', and a study is "
        f"not trusted to name files: if you trust it, add {word} to the command"
    )


def _hash(trial: FrozenTrial) -> str | None:
    found = trial.user_attrs.get("config_hash")
    return found if isinstance(found, str) and re.fullmatch("[0-9a-f]{16}", found) else None


def _hash_of(plain: Plain) -> str | None:
    try:
        return TrialSpec(reading.read_plain(plain)).config_hash
    except InputError:
        return None


# --- what the study keeps ----------------------------------------------------------------------


def _overrides(trial: FrozenTrial) -> tuple[list[str], list[str]]:
    """The recorded overrides that say what a trial is, and a line on those that do not.

    Raises:
        InputError: there are none, or one is nothing that a sweep of sweepstack records.
    """
    found = trial.user_attrs.get(OVERRIDES)
    if not found and RETRIED in trial.user_attrs:
        raise InputError(
            f"trial {trial.number} has no numbers to compare with: it died and was run again under "
            "another number; sweepstack-study show lists the trials that count"
        )
    if not isinstance(found, list) or not all(isinstance(word, str) for word in found):
        raise InputError(
            f"trial {trial.number} cannot be run again: it has no attribute {OVERRIDES}, in which "
            "sweepstack records the overrides of each finished trial"
        )
    kept, dropped = list[str](), list[str]()
    for word in found:
        why = beyond_values(word)
        if why:
            raise InputError(
                f"trial {trial.number} is refused: its recorded override "
                f"'{one_line(word, 80)}' {why}"
            )
        (dropped if "hydra" in parts(word) else kept).append(word)
    if not dropped:
        return kept, []
    names = ", ".join(one_line(word.partition("=")[0], 60) for word in dropped[:MAX_NAMED])
    return kept, [f"left out, as a study may not set Hydra: {names}"]


def _composed(
    view: StudyView, trial: FrozenTrial, given: Sequence[str], config_dir: str | None
) -> Plain:
    """The recorded overrides, composed today.

    Raises:
        InputError: they do not compose, or need a folder of configs that the user must name.
    """
    application = view.asked.get("application")
    application = application if isinstance(application, Mapping) else {}
    before = application.get("config_dir")
    if before and config_dir is None:
        raise InputError(
            f"trial {trial.number} was composed with --config-dir {one_line(before, 80)}: give it "
            "again, a study may not name it"
        )
    name = application.get("config_name")
    if config_dir is None or not isinstance(name, str) or not re.fullmatch(r"[\w-]+", name):
        name = composition.CONFIG_NAME
    try:
        read = reading.read(composition.compose(given, config_dir, name))
    except InputError as error:
        lines = [f"trial {trial.number}: {one_line(line)}" for line in error.mistakes]
        raise InputError(lines) from None
    return as_typed(asdict(read))


def kept_config(view: StudyView, trial: FrozenTrial) -> Plain | None:
    """config.yaml of the trial's folder, None where there is none that can be read."""
    folder = view.files({trial.number})
    if folder is None:
        return None
    try:
        with (folder / str(trial.number) / "config.yaml").open("rb") as file:
            text = file.read(MAX_BYTES + 1)
        if len(text) > MAX_BYTES or b"${" in text:
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
        return as_typed(asdict(reading.read_plain(found)))
    except (InputError, ValueError):
        return None


def as_typed(plain: Plain) -> Plain:
    """A config as its YAML files have it: a custom group's arguments beside its target."""
    found = dict(plain)
    for group, given in plain.items():
        if not isinstance(given, dict) or given.get("name") != "custom" or "arguments" not in given:
            continue
        arguments, own = json.loads(given["arguments"]), {**given}
        if group == "data":
            splits = {key: own[key] for key in ("val", "test") if isinstance(own[key], str)}
            own |= {key: json.loads(text) for key, text in splits.items()}
        if not isinstance(arguments, dict):
            raise InputError(f"{group}.arguments must be a JSON object")
        target = own.pop("target")
        del own["arguments"]
        found[group] = {**own, **arguments, "_target_": target}
    return found


# --- for people --------------------------------------------------------------------------------


def _named(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """The keys in which two configs differ, with their values."""
    lines = [
        f"{key} {one_line(a, 40)} then, {one_line(b, 40)} now"
        for key, a, b in differences(old, new)
        if key != "trust"
    ]
    more = f", and {len(lines) - MAX_NAMED} more" if len(lines) > MAX_NAMED else ""
    return "; ".join(lines[:MAX_NAMED]) + more


def refuse_others(view: StudyView, rule: str, number: int) -> None:
    """Raise an InputError with the `rule`, and how to run a trial again, where another program
    trained it."""
    application = view.asked.get("application")
    name = application.get("name") if isinstance(application, Mapping) else None
    if name == "sweepstack":
        return
    owner = f" ({one_line(name, 40)})" if isinstance(name, str) else ""
    found = next((t.params.items() for t in view.trials if t.number == number), ())
    pairs = commands.shell(*(one_line(f"{key}={value}", 80) for key, value in found))
    how = f" with the parameters of trial {number}: {one_line(pairs, 400)}" if pairs else ""
    raise InputError(
        f"study {one_line(view.name)} is another program's{owner}, and {rule}: run that program"
        f"{how or ' again'}"
    )
