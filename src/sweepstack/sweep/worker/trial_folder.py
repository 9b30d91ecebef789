"""What a trial of a sweep leaves in outputs/studies/STUDY/NUMBER.

    overrides.yaml   what Hydra was told
    config.yaml      the whole config
    history.csv      one row per evaluation (and per seed, where there are several)
    metrics.json     what Optuna's user attributes say too; written last. `equals` names the trial
                     of the same effect that was trained in this one's place
    sweepstack.log       what happened when
    best.pt          of the trials that `hydra.sweeper.keep_models` keeps
    tensorboard/     of these trials, with logger=tensorboard
    checkpoints/     only while it is unfinished

The study's database holds the same numbers durably; these files are for people, and for a trial
that goes on after an interruption. A trial that replaces another takes over its folder.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import is_dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from sweepstack.config import commands, files
from sweepstack.config.errors import EnvironmentFault
from sweepstack.engine import checkpoint
from sweepstack.engine.seeds import Group
from sweepstack.engine.spec import TrialSpec, by_group, plain
from sweepstack.runs import folder as run_folder
from sweepstack.runs import logger
from sweepstack.sweep.worker.trial import Outcome

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
        """Make the folder or take over that of a trial before it, and write what the trial is.

        Args:
            spec: the trial.
            overrides: what Hydra was told.
            continues: numbers of the trials that it replaces, the last one first; one that never
                began has no folder.

        Raises:
            EnvironmentFault: the disk is full or the folder cannot be made.
        """
        text = "".join(by_group(spec.config, "_yaml", _yaml).values())
        try:
            for number in continues:
                old = self.path.with_name(str(number))
                if old.is_dir() and not self.path.exists():
                    os.replace(old, self.path)
                    self._take_over(text)
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise EnvironmentFault(f"cannot make {self.path}: {error.strerror or error}") from error
        words = "".join(f"- {text}\n" for text in map(_yaml_word, overrides))
        files.write_bytes(self.path / "overrides.yaml", words.encode(), durable=False)
        files.write_bytes(self.path / "config.yaml", text.encode(), durable=False)
        went_on = f", goes on from trial {continues[0]}" if continues else ""
        self.log(f"trial {spec.number} begins, config {spec.config_hash}{went_on}")
        self.log(f"the same alone: {alone(overrides)}")

    def log(self, line: str) -> None:
        """Note a line for sweepstack.log, with the time."""
        self._lines.append(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}\n")

    def end(self, group: Group, outcome: Outcome, *, keep_model: bool) -> None:
        """Write what came of the trial and drop its checkpoints.

        Raises:
            EnvironmentFault: the disk is full or the folder cannot be written.
        """
        if not self.path.is_dir():  # presumed dead: another goes on with it
            return
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
        self._lines += [result.trace for result in group.results if result.trace]
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
        files.write_bytes(
            self.path / "sweepstack.log", "".join(self._lines).encode(), durable=False
        )
        summary = {"state": outcome.state, **self._of, **outcome.attributes}
        run_folder.write_json(self.path / "metrics.json", summary, durable=False)
        _clear(self.path)

    def _take_over(self, config: str) -> None:
        """Keep of a trial before this one its checkpoints, if it had the very same config: the
        command may have another `training.device` now, for example, and then the trial begins anew.
        """
        same = False
        with contextlib.suppress(OSError, UnicodeDecodeError, yaml.YAMLError):  # it died too soon
            same = _equal_configs((self.path / "config.yaml").read_text("utf-8"), config)
        if not same:
            _clear(self.path)
        (self.path / "metrics.json").unlink(missing_ok=True)  # of one that failed


def _clear(folder: Path) -> None:
    """Drop a trial's checkpoints, and files that a killed process left half written."""
    for left in folder.glob(".*.tmp"):
        left.unlink(missing_ok=True)
    for place in [folder / "checkpoints", *folder.glob("seed_*/checkpoints")]:
        checkpoint.clear_trial(place)
        if place.parent != folder and not any(place.parent.iterdir()):
            place.parent.rmdir()


def tidy(study: Path, replaced: Sequence[int], lost: Sequence[int]) -> None:
    """Remove what trials without a result left in a study's folder, once no trial needs it: all of
    those that others replaced, the checkpoints of those that were lost for good."""
    with contextlib.suppress(OSError, EnvironmentFault):  # of no importance
        for number in replaced:
            shutil.rmtree(study / str(number), ignore_errors=True)
        for number in lost:
            _clear(study / str(number))


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
    return commands.shell("sweepstack", *words)


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
