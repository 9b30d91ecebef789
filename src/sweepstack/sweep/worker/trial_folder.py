"""What a trial of a sweep leaves in outputs/studies/STUDY/NUMBER.

    overrides.yaml   the overrides that Hydra composed
    config.yaml      the whole config
    history.csv      one row per evaluation (and per seed, where there are several)
    layers.csv       what each layer does, with training.diagnostics; written while it trains, of
                     several seeds in seed_N until they have ended
    metrics.json     the trial's user attributes; written last. `equals` names the trial that was
                     trained in place of this duplicate
    sweepstack.log   what happened when
    best.pt, model.pt, classes.json  of the trials that `hydra.sweeper.keep_models` keeps
    checkpoints/     only while it is unfinished

The study's database holds the same numbers durably; these files are for people, and for a trial
that is resumed. A trial that replaces another takes over its folder.

With `hydra.sweeper.artifacts` the files go to all machines by `Uploads`, in this order: the files
are written here, the trial's end is written to the database (from then on its result is
acknowledged, whatever becomes of the artifacts), the files are put into the store. What a killed
process, or a store that failed, left undone is done by the next start on this machine.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import re
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import is_dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import optuna
import yaml
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from sweepstack.config import commands, errors
from sweepstack.config.errors import LAYERS, EnvironmentFault
from sweepstack.runs import folder as run_folder
from sweepstack.runs.seeds import Group
from sweepstack.storage import artifacts
from sweepstack.storage.uploads import Uploads
from sweepstack.study.attributes import CONTINUES, EQUALS, KEEP_MODELS, is_retried
from sweepstack.study.read import best, best_trials, trials_of
from sweepstack.sweep.worker import Outcome
from sweepstack.training import checkpoint
from sweepstack.training.spec import TrialSpec, by_group, plain

log = logging.getLogger(__name__)

_DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_SIMPLE = re.compile(r"[a-z_][a-z_.]*=[a-z0-9_.+-]+")
"""Overrides that YAML writes as they are."""

Keep = Literal["best", "all", "none"] | int
_PARETO_FRONT = 2**31
"""The limit of "best" in a study of several objectives: the whole Pareto front."""


class TrialFolder:
    """One trial's folder; `of` is what metrics.json says of its study: name, and storage."""

    def __init__(self, path: Path, of: Mapping[str, str] | None = None):
        self.path, self._of = path, of or {}
        self._lines: list[str] = []
        self._is_new = False  # made by this object: no file counts before the trial has ended

    def begin(
        self, spec: TrialSpec, overrides: Sequence[str], continues: Sequence[int] = ()
    ) -> None:
        """Make the folder, or take over that of a trial before it, and write the config.

        Args:
            spec: the trial.
            overrides: as Hydra composed them.
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
            self._make()
        except OSError as error:
            raise EnvironmentFault(f"cannot make {self.path}: {error.strerror or error}") from error
        lines = "".join(f"- {text}\n" for text in map(_yaml_word, overrides))
        self._write("overrides.yaml", lines.encode())
        self._write("config.yaml", text.encode())
        resumed = f", resumes trial {continues[0]}" if continues else ""
        self.log(f"trial {spec.number} begins, config {spec.config_hash}{resumed}")
        self.log(f"as a single run: {alone(overrides)}")

    def _make(self) -> None:
        with contextlib.suppress(FileExistsError):
            try:
                self.path.mkdir()
            except FileNotFoundError:
                self.path.mkdir(parents=True)
            self._is_new = True

    def _write(self, name: str, content: bytes) -> None:
        errors.write_bytes(self.path / name, content, durable=False, in_place=self._is_new)

    def log(self, line: str) -> None:
        """Note a line for sweepstack.log, with the time."""
        self._lines.append(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}\n")

    def end(self, group: Group, outcome: Outcome, *, keep_model: bool) -> None:
        """Write the trial's results and remove its checkpoints.

        Raises:
            EnvironmentFault: the disk is full or the folder cannot be written.
        """
        if not self.path.is_dir():  # presumed dead: another trial has taken it over
            return
        if rows := _rows(group, "history"):
            self._write("history.csv", run_folder.as_csv(rows).encode())
        if group.size > 1 and (rows := _rows(group, "layers")):
            self._write(LAYERS, run_folder.as_csv(rows).encode())
        if keep_model and group.results[0].best_state:  # of several seeds the first
            run_folder.write_model(self.path, group.results[0])
        self.log(f"{outcome.state}" + (f": {group.error}" if group.error else ""))
        self._lines += [result.trace for result in group.results if result.trace]
        every = group.spec.config.training.checkpoint_every
        self._close(outcome, keeps_more=group.size > 1 or bool(every))

    def equal(self, spec: TrialSpec, outcome: Outcome, number: int) -> None:
        """Write that the trial was not trained, because it duplicates trial `number`.

        Raises:
            EnvironmentFault: the disk is full or the folder cannot be written.
        """
        diagnosed = spec.config.training.diagnostics
        for name in ("history.csv", LAYERS) if diagnosed else ("history.csv",):
            with contextlib.suppress(OSError):  # someone cleaned; the database has the numbers
                source = self.path.with_name(str(number)) / name
                try:
                    os.link(source, self.path / name)
                except OSError:  # no links here, or the file is there already
                    self._write(name, source.read_bytes())
        self.log(f"{outcome.state}: a duplicate of trial {number}, not trained again")
        self._close(outcome)

    def _close(self, outcome: Outcome, *, keeps_more: bool = False) -> None:
        self._write("sweepstack.log", "".join(self._lines).encode())
        summary = {"state": outcome.state, **self._of, **outcome.attributes}
        self._write("metrics.json", run_folder.as_json(summary).encode())
        if not self._is_new or keeps_more:
            _clear(self.path)

    def _take_over(self, config: str) -> None:
        """Keep the checkpoints of the trial before this one if it had the same config; with another
        `training.device`, for example, this one begins anew."""
        same = False
        with contextlib.suppress(OSError, UnicodeDecodeError, yaml.YAMLError):  # it died too soon
            same = _equal_configs((self.path / "config.yaml").read_text("utf-8"), config)
        if not same:
            _clear(self.path)
        (self.path / "metrics.json").unlink(missing_ok=True)  # of one that failed


def _rows(group: Group, name: Literal["history", "layers"]) -> list[dict[str, Any]]:
    """The rows of all seeds; of several each with its seed."""
    return [
        {"seed": result.spec.config.training.seed, **row} if group.size > 1 else row
        for result in group.results
        for row in getattr(result, name)
    ]


def _clear(folder: Path) -> None:
    """Remove a trial's checkpoints, and files that a killed process left half written."""
    names = os.listdir(folder) if folder.is_dir() else []
    seeds = [folder / name for name in names if name.startswith("seed_")]
    half_written = [folder / n for n in names if n.startswith(".") and n.endswith(".tmp")]
    for left in (*half_written, *(place / LAYERS for place in seeds)):
        left.unlink(missing_ok=True)
    for place in (*seeds, *([folder] if "checkpoints" in names else [])):
        checkpoint.clear_trial(place / "checkpoints")
        if place != folder and place.is_dir() and not any(place.iterdir()):
            place.rmdir()


def tidy(study: Path, replaced: Sequence[int], lost: Sequence[int]) -> None:
    """Remove what trials without a result left, once no trial needs it: the folders of those that
    others replaced, the checkpoints of those that were lost for good."""
    with contextlib.suppress(OSError, EnvironmentFault):  # of no importance
        for number in replaced:
            shutil.rmtree(study / str(number), ignore_errors=True)
        for number in lost:
            _clear(study / str(number))


def _equal_configs(one: str, other: str) -> bool:
    """Whether two configs are the same but for the stack's width and the logger."""
    nodes = [yaml.load(text, Loader=_LOADER) for text in (one, other)]
    for node in nodes:
        if isinstance(node, dict) and isinstance(node.get("training"), dict):
            node["training"].pop("width", None)
            node.pop("logger", None)
    return bool(nodes[0] == nodes[1])


def alone(overrides: Sequence[str]) -> str:
    """The command that trains a trial as a single run."""
    arguments = list(overrides)
    if any(each.startswith("+sweeps=") for each in arguments):
        arguments.append("hydra.mode=RUN")  # a sweep's file asks for a sweep
    return commands.shell("sweepstack", *arguments)


def _yaml(key: str, value: Any) -> str:
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


class BestModels:
    """The best trials as far as one worker knows; `keep` is `hydra.sweeper.keep_models`.

    A worker writes best.pt of a trial that is among the best so far; `remove_models` removes in the
    end those that are not.
    """

    def __init__(self, study: optuna.Study, storage: BaseStorage, keep: Keep):
        self._study, self._storage, self._limit = study, storage, _limit(study, keep)
        self._best: list[tuple[int, tuple[float, ...]]] | None = None

    def wants(self, outcome: Outcome, *, feasible: bool) -> bool:
        """Whether the model of a trial that has ended is worth a file."""
        if outcome.state != "complete" or not self._limit or math.isinf(self._limit):
            return outcome.state == "complete" and self._limit > 0
        if not feasible or any(map(math.isnan, outcome.values)):
            return False
        if self._best is None:
            trials = best_trials(self._study, trials_of(self._study, self._storage))
            self._best = [(trial.number, tuple(trial.values)) for trial in trials]
        known = [*self._best, (outcome.asked.number, outcome.values)]
        directions = [direction.name.lower() for direction in self._study.directions]
        values = np.array([values for _, values in known])
        places = best(values, [number for number, _ in known], directions)
        self._best = [known[place] for place in places[: int(self._limit)]]
        return outcome.asked.number in dict(self._best)


def keep_models(study: optuna.Study, keep: Keep) -> None:
    """Record in the study which models to keep, unless an earlier command asked for more."""
    before = study.user_attrs.get(KEEP_MODELS)
    if before is None or _limit(study, keep) > _limit(study, before):
        study.set_user_attr(KEEP_MODELS, keep)


def remove_models(
    study: optuna.Study,
    folder: Path,
    storage: BaseStorage | None = None,
    store: artifacts.Store | None = None,
    trials: Sequence[FrozenTrial] | None = None,
) -> None:
    """Remove the models that the study is not to keep, but for running trials; in the artifact
    store too, which first gets what is here alone. `trials` are all of its, where they are read."""
    keep = study.user_attrs.get(KEEP_MODELS, "best")
    trials = trials_of(study, storage) if trials is None else trials
    for path in spare_models(study, folder, keep, trials):
        path.unlink(missing_ok=True)
    if store is not None:
        put_rest(study, storage, store, folder)


def spare_models(
    study: optuna.Study, folder: Path, keep: Keep, trials: Sequence[FrozenTrial]
) -> list[Path]:
    """The files of models of finished trials that are not among those to `keep`."""
    wanted = with_models(study, keep, trials)
    places = [f"{folder}/{trial.number}" for trial in trials if trial.number not in wanted]
    return [
        path
        for place in map(Path, [each for each in places if os.path.exists(f"{each}/best.pt")])
        for name in ("best.pt", "best.pt.sha256", "model.pt", "classes.json")
        if (path := place / name).exists()
    ]


def with_models(study: optuna.Study, keep: Keep, trials: Sequence[FrozenTrial]) -> set[int]:
    """The trials that are to `keep` their models, and those that run. In place of a duplicate,
    which was not trained, counts its original."""
    limit = _limit(study, keep)
    wanted = {trial.number for trial in trials if not trial.state.is_finished()}
    if math.isinf(limit):
        best = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    else:
        best = best_trials(study, trials)[: int(limit)]
    return wanted | {trial.user_attrs.get(EQUALS, trial.number) for trial in best}


def spare_checkpoints(folder: Path, trials: Sequence[FrozenTrial]) -> list[Path]:
    """Checkpoints, and files half written, of finished trials that no trial continues."""
    places = [folder / str(trial.number) for trial in trials if trial.state.is_finished()]
    needed = {t.user_attrs.get(CONTINUES) for t in trials if not t.state.is_finished()}
    return [
        path
        for place in places
        if int(place.name) not in needed
        for pattern in ("checkpoints", "seed_*/checkpoints", ".*.tmp")
        for path in place.glob(pattern)
    ]


# --- for all machines ----------------------------------------------------------------------------


def over(trials: Sequence[FrozenTrial]) -> set[int]:
    """The numbers of trials that ended for good: their files stay as they are."""
    return {t.number for t in trials if t.state.is_finished() and not is_retried(t)}


def spare_archives(
    study: optuna.Study, store: artifacts.Store, keep: Keep, trials: Sequence[FrozenTrial]
) -> dict[str, int]:
    """As `spare_models`, in the artifact store: bytes by name.

    Raises:
        EnvironmentFault: it cannot be read.
    """
    sizes, wanted = store.sizes(), with_models(study, keep, trials)
    found = artifacts.holdings(sizes)[1]
    names = (found.get(trial.number) for trial in trials if trial.number not in wanted)
    return {name: sizes[name] for name in names if name is not None}


def put_rest(
    study: optuna.Study, storage: BaseStorage | None, store: artifacts.Store, folder: Path
) -> None:
    """At the end of a sweep: put into the store what is here alone, and remove the models that
    the study is not to keep; a store that fails is named in a warning."""
    trials = cache(lambda: trials_of(study, storage))
    keep = study.user_attrs.get(KEEP_MODELS, "best")
    if not Uploads(store, folder, lambda: over(trials())).rest():
        return
    try:
        store.remove(spare_archives(study, store, keep, trials()))
    except EnvironmentFault as error:
        log.warning("%s; models that are not needed stay", error)


def _limit(study: optuna.Study, keep: Keep) -> float:
    best = _PARETO_FRONT if len(study.directions) > 1 else 1
    return {"none": 0, "best": best, "all": math.inf}[keep] if isinstance(keep, str) else keep
