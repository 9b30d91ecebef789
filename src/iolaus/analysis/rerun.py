"""`iolaus-study rerun`: a trial trained again alone, from what its study keeps, and compared.

    restore   the config, with nothing of the study trusted
    here      the trial's record, its training, what has changed around it, the verdict
    compare   how far numbers may differ, and why

The database alone suffices; where the trial's folder is there too, every metric of every evaluation
is compared. Called by `cli.py`. The only module of `analysis` that imports the engine.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial, TrialState
from rich.table import Table
from rich.text import Text

from iolaus import device, preflight, run_folder, seeds
from iolaus.analysis.compare import (
    EXACT,
    FLOORS,
    OTHER_DEVICE,
    PROBES,
    Comparison,
    Difference,
    Given,
    Key,
    Tolerance,
    broken_step,
    compare,
    shown,
)
from iolaus.analysis.frame import STATES, objectives
from iolaus.analysis.history import _from_folder
from iolaus.analysis.library import OpenStudy
from iolaus.analysis.restore import Restored, restore, said
from iolaus.attributes import ENVIRONMENT
from iolaus.environment import environment
from iolaus.errors import EXIT_DIFFERENT, EnvironmentFault, InputError
from iolaus.monitor import Monitor
from iolaus.program import Program
from iolaus.progress import Watch, console
from iolaus.progress import shown as typed
from iolaus.schema import RunConfig
from iolaus.spec import TrialResult, TrialSpec
from iolaus.train import train

PLACE = Path("outputs/reruns")
MOST_WIDTH = 16
"""Probes that are trained as one stack, at most."""
_AT_END = re.compile(r"(train|val|test)_\w+")


def rerun(
    opened: OpenStudy,
    number: int,
    *,
    overrides: Sequence[str] = (),
    trust: Sequence[str] = (),
    folder: Path | None = None,
    config_dir: str | None = None,
) -> int:
    """Train a trial again, alone, and say whether it gives what is recorded.

    Args:
        opened: the study.
        number: the trial's.
        overrides: on top of the recorded config, as typed.
        trust: packages that `model._target_` may name besides the allow list.
        folder: a new one for the run; by default outputs/reruns/STUDY-NUMBER.
        config_dir: the folder of configs of one's own, as for the sweep.

    Returns:
        0 where it agrees within the tolerance, else `EXIT_DIFFERENT`.

    Raises:
        InputError: there is no such trial, or it cannot or must not be trained.
        EnvironmentFault: the data are missing or the folder cannot be written.
    """
    trial = _trial(opened, number)
    restored = restore(opened, trial, overrides, trust, config_dir)
    restored = _on_this_machine(restored)
    found = restored.config
    preflight.see_own_packages(found)
    program = Program.of(TrialSpec(found))
    say = console()
    for line in [*_changes(opened, trial, program), *restored.notes, *_read(found)]:
        say.print(line, markup=False, highlight=False, soft_wrap=True)
    place = run_folder.claim(folder or PLACE / _folder_name(opened.name, number))
    spec = TrialSpec(found, number=number, folder=place)
    preflight.begin(place, spec, _command(restored.words))
    recorded = _recorded(opened, trial, restored, program.objective)
    cuts = _cuts(trial, recorded)
    with Watch(say) as watch:
        told = watch if say.is_terminal else None
        results = list(train(seeds.members(spec), _Cut(cuts, told)))
    run_folder.write_results(place, spec, results)
    now = _given(spec, results, program.objective)
    tolerance = _tolerance(trial, program)
    comparison = compare(recorded, now, tolerance)
    if not comparison.agrees and _may_amplify(recorded, now):
        line = (
            f"{len(PROBES)} probes say how far this trial carries rounding: the first comparison "
        )
        line += comparison.verdict
        say.print(line, markup=False, highlight=False, soft_wrap=True)
        probes = _probe(spec, cuts, program.objective, tolerance.floor)
        comparison = compare(recorded, now, tolerance, probes)
    _show(say, comparison)
    _write(place, opened, number, comparison)
    say.print(f"all of it is in {typed(place)}", markup=False, highlight=False, soft_wrap=True)
    say.print(said(comparison.verdict), markup=False, highlight=False, soft_wrap=True)
    return 0 if comparison.agrees else EXIT_DIFFERENT


# --- what is recorded ----------------------------------------------------------------------------


def _trial(opened: OpenStudy, number: int) -> FrozenTrial:
    """A trial that ended.

    Raises:
        InputError: there is none of that number, or it has not ended.
    """
    storage, study_id = opened.study._storage, opened.study._study_id
    count = storage.get_n_trials(study_id)
    if not 0 <= number < count:
        allowed = f"0 to {count - 1}" if count else "none: the study is empty"
        raise InputError(f"the trials of {said(opened.name)} are {allowed}, got {number}")
    # `get_trials` would read the whole study.
    known = storage.get_trial_id_from_study_id_trial_number(study_id, number)
    trial = storage.get_trial(known)
    if trial.state in (TrialState.RUNNING, TrialState.WAITING):
        raise InputError(
            f"trial {number} is {STATES[trial.state]}: only one that has ended can be run again"
        )
    return trial


def _recorded(opened: OpenStudy, trial: FrozenTrial, restored: Restored, objective: str) -> Given:
    """All numbers that the study keeps of a trial."""
    attributes, training = trial.user_attrs, restored.config.training
    several = training.seeds > 1
    numbers: dict[Key, float] = {}
    if restored.verified:  # or the folder may be another study's
        for row in _from_folder(opened.folder, trial):
            seed, step = row.get("seed"), row.get("step")
            if (isinstance(seed, int) or not several) and isinstance(step, int):
                _add_row(numbers, row, step, seed if several else None)
    if len(objectives(opened.study)) == 1:
        for step, value in trial.intermediate_values.items():
            numbers[Key(objective, int(step))] = value
    error = attributes.get("error")
    state = STATES[trial.state]
    if state != "failed" or not several:  # else the other seeds were cut wherever they were
        _add_end(numbers, attributes, several, attributes.get("best_step"))
    if state == "complete" and several and isinstance(attributes.get("values"), list):
        for seed, value in enumerate(attributes["values"], training.seed):
            if _is_number(value):
                numbers[Key(objective, None, seed)] = float(value)
    best = attributes.get("best_step")
    told = said(error) if isinstance(error, str) else None
    steps = (int(best),) if isinstance(best, int) else ()
    return Given(numbers, state, told, steps)


def _add_row(
    numbers: dict[Key, float], row: Mapping[str, Any], step: int, seed: int | None
) -> None:
    for name, value in row.items():
        if name == "lr" or _AT_END.fullmatch(name):
            numbers[Key(name, step, seed)] = float(value)


def _add_end(
    numbers: dict[Key, float], summary: Mapping[str, Any], several: bool, best_step: Any
) -> None:
    """Metrics of the best state. Of one seed, those of the training and validation are an
    evaluation's, known by its step; the others depend on which evaluation was the best."""
    for name, value in summary.items():
        if not isinstance(name, str) or not _is_number(value):
            continue
        if name in EXACT:
            numbers[Key(name)] = float(value)
        elif _AT_END.fullmatch(name):
            at_step = not several and not name.startswith("test_") and _is_number(best_step)
            key = Key(name, int(best_step) if at_step else None)
            known = numbers.get(key, value)
            numbers[key if known == value else replace(key, again=True)] = float(value)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _cuts(trial: FrozenTrial, recorded: Given) -> int | None:
    """The step at which a trial ended before its budget, None where it did not."""
    broke = broken_step(recorded.error)
    if recorded.ended == "pruned":
        steps = [key.step for key in recorded.numbers if key.step is not None]
        return max([*map(int, trial.intermediate_values), *steps], default=None)
    return broke if recorded.ended == "failed" else None


# --- training ------------------------------------------------------------------------------------


class _Cut(Monitor):
    """Ends every trial at its first evaluation at or after a step; tells `watch` of the rest."""

    def __init__(self, step: int | None, watch: Monitor | None = None):
        self._step, self._watch = step, watch or Monitor()
        self._at: dict[int, float] = {}

    def started(
        self, spec: TrialSpec, step: int, total_steps: int, history: Sequence[Mapping[str, float]]
    ) -> None:
        """Let the watch say it."""
        self._watch.started(spec, step, total_steps, history)

    def stepped(self, steps: int) -> None:
        """Let the watch move."""
        self._watch.stepped(steps)

    def report(self, spec: TrialSpec, row: Mapping[str, float]) -> None:
        """Note how far a trial is."""
        self._at[id(spec)] = row["step"]
        self._watch.report(spec, row)

    def should_stop(self, spec: TrialSpec) -> bool:
        """Whether it is as far as it was."""
        return self._step is not None and self._at.get(id(spec), -1) >= self._step


def _on_this_machine(restored: Restored) -> Restored:
    """The config on a device that is here."""
    training = restored.config.training
    try:
        device.resolve(training)
    except EnvironmentFault:
        note = f"training.device={said(training.device)} is not here: trained on what is"
        here = replace(restored.config, training=replace(training, device="auto"))
        return replace(restored, config=here, notes=[*restored.notes, note])
    return restored


def _given(spec: TrialSpec, results: Sequence[TrialResult], objective: str) -> Given:
    """All numbers of a trial that was trained now."""
    several = spec.config.training.seeds > 1
    group = seeds.Group(spec, len(results))
    numbers: dict[Key, float] = {}
    reports: list[tuple[int, float]] = []
    for result in results:
        seed = result.spec.config.training.seed
        for row in result.history:
            _add_row(numbers, row, int(row["step"]), seed if several else None)
    for result in results:
        reports += [
            found
            for row in result.history
            for found in group.observe(
                result.spec.config.training.seed, int(row["step"]), row[objective]
            )
        ]
        reports += group.end(result)
    numbers |= {Key(objective, step): value for step, value in reports}
    summary = run_folder.summary_of(spec, results)
    _add_end(numbers, summary, several, summary["best_step"])
    if several:
        numbers |= {
            Key(objective, None, result.spec.config.training.seed): result.value
            for result in results
        }
    best = tuple(result.best_step for result in results)
    return Given(numbers, group.state, group.error, best)


def _probe(spec: TrialSpec, step: int | None, objective: str, floor: float) -> list[Given]:
    """The trial once for each of `PROBES`, in a stack, with a learning rate that is off by that
    many floors."""
    specs: list[TrialSpec] = []
    for index, times in enumerate(PROBES):
        optimizer = replace(
            spec.config.optimizer, lr=spec.config.optimizer.lr * (1 + times * floor)
        )
        nudged = TrialSpec(replace(spec.config, optimizer=optimizer), number=index)
        specs += seeds.members(nudged)
    found: dict[int, list[TrialResult]] = {}
    for result in train(specs, _Cut(step), width=min(len(specs), MOST_WIDTH)):
        found.setdefault(result.spec.number, []).append(result)
    for results in found.values():
        results.sort(key=lambda result: result.spec.config.training.seed)
    return [_given(spec, results, objective) for results in found.values()]


def _may_amplify(recorded: Given, now: Given) -> bool:
    """Whether probes could excuse a difference: none of them trains where the rerun cannot."""
    compared = any(key.step is not None for key in now.numbers)
    return compared or now.broke_at is not None


def _tolerance(trial: FrozenTrial, program: Program) -> Tolerance:
    floor = FLOORS[program.config.training.precision]
    then = trial.user_attrs.get("device")
    if isinstance(then, str) and then and _kind(then) != program.device.type:
        floor *= OTHER_DEVICE
    splits = {"val": program.data.val, "test": program.data.test, "train": program.data.train}
    samples = {name: len(split) for name, split in splits.items() if split is not None}
    return Tolerance(floor, samples)


def _kind(name: str) -> str:
    """cpu or cuda, by a device's name as `device.describe` writes it."""
    return "cpu" if re.search(r"\(\d+ threads\)$", name) else "cuda"


# --- what a person is told -----------------------------------------------------------------------


def _changes(opened: OpenStudy, trial: FrozenTrial, program: Program) -> list[str]:
    """A line for each thing, besides the config, that is not as it was."""
    key = trial.user_attrs.get(ENVIRONMENT)
    then = opened.user_attrs.get(f"{ENVIRONMENT}.{key}") if isinstance(key, str) else None
    lines = []
    if isinstance(then, Mapping):
        now = environment()
        lines = _changed_versions(then, now)
        lines += _changed("platform", then.get("platform"), now["platform"])
        lines += _changed("git commit", _commit(then.get("git")), _commit(now["git"]))
    else:
        lines.append("the study does not say with which versions it was trained")
    where = device.describe(program.device)
    before = trial.user_attrs.get("device")
    lines += _changed("device", before, where) if before else []
    if isinstance(before, str) and before and _kind(before) != program.device.type:
        lines.append(f"another kind of device: the tolerance is {OTHER_DEVICE} times as wide")
    return lines


def _changed_versions(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    old, new = then.get("versions"), now["versions"]
    old = old if isinstance(old, Mapping) else {}
    names = [*new, *(name for name in old if name not in new)]
    return [
        line
        for name in names[:50]
        for line in _changed(said(name, 40), old.get(name, "none"), new.get(name, "none"))
    ]


def _changed(what: str, then: object, now: object) -> list[str]:
    return [] if then == now else [f"changed: {what} {said(then, 100)} then, {said(now, 100)} now"]


def _commit(git: object) -> str:
    if not isinstance(git, Mapping):
        return "none"
    return f"{said(git.get('commit'), 12)}{' (changed files)' if git.get('dirty') else ''}"


def _read(found: RunConfig) -> list[str]:
    """Which files of this machine are read."""
    root = getattr(found.data, "root", None)
    return [] if root is None else [f"data are read from {said(Path(root).absolute())}"]


def _show(say: Any, comparison: Comparison) -> None:
    """Print the table: every number at the end, and of each metric the worst evaluation."""
    table = Table(box=None, pad_edge=False)
    for title in ("metric", "recorded", "now", "difference", "allowed"):
        table.add_column(title, justify="left" if title == "metric" else "right")
    for row in _worst(comparison.differences):
        style = "" if row.share <= 1 else "bold"
        numbers = (_number(row.recorded), _number(row.now), shown(row.amount), shown(row.allowed))
        table.add_row(*(Text(text, style=style) for text in (str(row.key), *numbers)))
    say.print(table)


def _worst(differences: Sequence[Difference]) -> list[Difference]:
    worst: dict[object, Difference] = {}
    for found in differences:
        name = (found.key.name, found.key.step is None, found.key.seed)
        if found.key.step is not None:
            name = (found.key.name, False, None)
        if name not in worst or found.share > worst[name].share:
            worst[name] = found
    return list(worst.values())


def _number(value: float) -> str:
    return str(int(value)) if value == int(value or 0) and abs(value) < 1e15 else f"{value:.7g}"


def _write(place: Path, opened: OpenStudy, number: int, comparison: Comparison) -> None:
    """Write rerun.json: the verdict and every number, then and now."""
    run_folder.write_json(
        place / "rerun.json",
        {
            "study": opened.name,
            "trial": number,
            "agrees": comparison.agrees,
            "verdict": comparison.verdict,
            "numbers": [
                {
                    "metric": found.key.name,
                    "step": found.key.step,
                    "seed": found.key.seed,
                    "recorded": _plain(found.recorded),
                    "now": _plain(found.now),
                    "allowed": _plain(found.allowed),
                }
                for found in comparison.differences
            ],
        },
    )


def _plain(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _folder_name(study: str, number: int) -> str:
    """A study's name may be anything; that of a folder in outputs/reruns may not."""
    name = re.sub(r"[^\w.=,+-]+", "-", study)[:80].lstrip(".-") or "study"
    return f"{name}-{number}"


def _command(words: Sequence[str]) -> list[str]:
    """What `iolaus` would be told for the same run."""
    swept = any(word.startswith("+sweeps=") for word in words)
    return [*words, *(["hydra.mode=RUN"] if swept else [])]
