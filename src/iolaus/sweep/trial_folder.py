"""What a trial of a sweep leaves in outputs/studies/STUDY/NUMBER.

    overrides.yaml   what Hydra was told
    config.yaml      the whole config
    history.csv      one row per evaluation (and per seed, where there are several)
    metrics.json     what Optuna's user attributes say too; written last. `equals` names the trial
                     of the same effect that was trained in this one's place
    iolaus.log       what happened when
    best.pt          of the trials that `hydra.sweeper.keep_models` keeps
    tensorboard/     of these trials, with logger=tensorboard
    checkpoints/     only while it is unfinished

The study's database holds the same numbers durably; these files are for people, and for a trial
that goes on after an interruption.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import is_dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from iolaus import checkpoint, commands, files, logger, run_folder
from iolaus.errors import EnvironmentFault
from iolaus.seeds import Group
from iolaus.spec import TrialSpec, by_group, plain
from iolaus.sweep.trial import Outcome

_DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_SIMPLE = re.compile(r"[a-z_][a-z_.]*=[a-z0-9_.+-]+")
"""Overrides that YAML writes as they are."""


class TrialFolder:
    """One trial's folder; `of` is what metrics.json says of its study: name, and storage."""

    def __init__(self, path: Path, of: Mapping[str, str] | None = None):
        self.path, self._of = path, of or {}
        self._lines: list[str] = []

    def begin(
        self, spec: TrialSpec, overrides: Sequence[str], continues: Sequence[int] = ()
    ) -> None:
        """Make the folder, write what the trial is, and take over checkpoints.

        Args:
            spec: the trial.
            overrides: what Hydra was told.
            continues: numbers of the lost trials that it stands for, the last one first. More than
                one may have checkpoints: one that died at its very beginning had taken none over.

        Raises:
            EnvironmentFault: the disk is full or the folder cannot be made.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise EnvironmentFault(f"cannot make {self.path}: {error.strerror or error}") from error
        words = "".join(f"- {text}\n" for text in map(_yaml_word, overrides))
        files.write_bytes(self.path / "overrides.yaml", words.encode(), durable=False)
        text = "".join(by_group(spec.config, "_yaml", _yaml).values())
        files.write_bytes(self.path / "config.yaml", text.encode(), durable=False)
        for number in continues:
            self._take_over(self.path.with_name(str(number)), text)
        went_on = f", goes on from trial {continues[0]}" if continues else ""
        self.log(f"trial {spec.number} begins, config {spec.config_hash}{went_on}")
        self.log(f"the same alone: {alone(overrides)}")

    def log(self, line: str) -> None:
        """Note a line for iolaus.log, with the time."""
        self._lines.append(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}\n")

    def end(self, group: Group, outcome: Outcome, *, keep_model: bool) -> None:
        """Write what came of the trial and drop its checkpoints.

        Raises:
            EnvironmentFault: the disk is full or the folder cannot be written.
        """
        several = group.size > 1
        rows = [
            {"seed": result.spec.config.training.seed, **row} if several else row
            for result in group.results
            for row in result.history
        ]
        if rows:
            run_folder.write_history(self.path, rows, durable=False)
        if keep_model and group.results[0].best_state:  # of several seeds the first
            run_folder.write_model(self.path, group.results[0])
            logger.write(self.path, group.spec.config, group.results)
        self.log(f"{outcome.state}" + (f": {group.error}" if group.error else ""))
        self._close(outcome)

    def equal(self, outcome: Outcome, number: int) -> None:
        """Write that a trial was not trained, because trial `number` does the same.

        Raises:
            EnvironmentFault: the disk is full or the folder cannot be written.
        """
        with contextlib.suppress(OSError):  # someone cleaned; the database has the numbers
            history = self.path.with_name(str(number)).joinpath("history.csv").read_bytes()
            files.write_bytes(self.path / "history.csv", history, durable=False)
        self.log(f"{outcome.state}: it has the effect of trial {number} and was not trained again")
        self._close(outcome)

    def _close(self, outcome: Outcome) -> None:
        """Write what every trial has, and drop the checkpoints."""
        files.write_bytes(self.path / "iolaus.log", "".join(self._lines).encode(), durable=False)
        summary = {"state": outcome.state, **self._of, **outcome.attributes}
        run_folder.write_json(self.path / "metrics.json", summary, durable=False)
        for place in [self.path / "checkpoints", *self.path.glob("seed_*/checkpoints")]:
            checkpoint.clear_trial(place)
            if place.parent != self.path and not any(place.parent.iterdir()):
                place.parent.rmdir()

    def _take_over(self, old: Path, config: str) -> None:
        """Move the checkpoints of a lost trial here, if it had the very same config: the command
        may have another `training.device` now, for example, and then the trial begins anew.

        Raises:
            EnvironmentFault: they cannot be moved.
        """
        try:
            if not _equal_configs((old / "config.yaml").read_text("utf-8"), config):
                return
        except (
            OSError,
            UnicodeDecodeError,
            yaml.YAMLError,
        ):  # it died before it was written, or someone cleaned
            return
        try:
            for place in old.glob("**/checkpoints"):
                new = self.path / place.relative_to(old)
                if not new.exists():
                    new.parent.mkdir(parents=True, exist_ok=True)
                    os.replace(place, new)
        except OSError as error:
            raise EnvironmentFault(f"cannot move {old}: {error.strerror or error}") from error


def _equal_configs(one: str, other: str) -> bool:
    """Whether two configs are the same, however many trials share a stack and whoever logs."""
    nodes = [yaml.load(text, Loader=_LOADER) for text in (one, other)]
    for node in nodes:
        if isinstance(node, dict) and isinstance(node.get("training"), dict):
            node["training"].pop("width", None)
            node.pop("logger", None)
    return bool(nodes[0] == nodes[1])


def alone(overrides: Sequence[str]) -> str:
    """The command that trains a trial again as a single run."""
    words = list(overrides)
    if any(word.startswith("+sweeps=") for word in words):
        words.append("hydra.mode=RUN")  # a sweep's file asks for a sweep
    return commands.shell("iolaus", *words)


def _yaml(key: str, value: Any) -> str:
    """A key of a config; one after the other they are the whole."""
    return _dumped({key: plain(value)}) if is_dataclass(value) else _yaml_value(key, value)


@lru_cache(maxsize=256)
def _yaml_value(key: str, value: str | tuple[str, ...]) -> str:
    return _dumped({key: value})


def _dumped(value: Any) -> str:
    text: str = yaml.dump(value, Dumper=_DUMPER, sort_keys=False, allow_unicode=True)
    return text


@lru_cache(maxsize=4096)
def _yaml_word(text: str) -> str:
    if _SIMPLE.fullmatch(text):
        return text
    dumped: str = yaml.dump(text, Dumper=_DUMPER, allow_unicode=True, width=10**6)
    return dumped.removesuffix("...\n").strip()
