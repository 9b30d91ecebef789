"""`sweepstack-study rerun`: a trial trained again alone, from what its study keeps, and compared.

    restore    the config, with nothing of the study trusted
    compare    how far the numbers may differ, and why

The database alone suffices; where the trial's folder is there too, every metric of every evaluation
is compared.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial, TrialState
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sweepstack.config import schema
from sweepstack.config import trust as trust_rule
from sweepstack.config.errors import EXIT_DIFFERENT, EnvironmentFault, InputError, one_line
from sweepstack.engine.program import Program
from sweepstack.engine.train import train
from sweepstack.runs import folder as run_folder
from sweepstack.runs import progress, seeds
from sweepstack.runs.folder import environment
from sweepstack.runs.rerun.compare import (
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
from sweepstack.runs.rerun.restore import Restored, refuse_others, restore
from sweepstack.study.attributes import DATA_HASH, ENVIRONMENT
from sweepstack.study.frame import STATES, rows_of
from sweepstack.study.view import StudyView, outputs
from sweepstack.training import device
from sweepstack.training.spec import Monitor, TrialResult, TrialSpec

MAX_WIDTH = 16
"""Probes that are trained as one stack, at most."""
_AT_END = re.compile(r"(train|val|test)_\w+")


def rerun(
    view: StudyView,
    number: int,
    *,
    overrides: Sequence[str] = (),
    trust: Sequence[str] = (),
    folder: Path | None = None,
    config_dir: str | None = None,
    probe: bool = False,
) -> int:
    """Train a trial again, alone, and say whether it gives what is recorded.

    Args:
        view: the study.
        number: the trial's.
        overrides: on top of the recorded config, as typed.
        trust: packages that `model._target_` may name besides the closed table.
        folder: a new one for the run; by default outputs/reruns/STUDY-NUMBER.
        config_dir: the user's folder of configs, as for the sweep.
        probe: whether to measure how far it amplifies rounding, even where it agrees.

    Returns:
        0 where it agrees within the tolerance, else `EXIT_DIFFERENT`.

    Raises:
        InputError: there is no such trial, or it cannot or must not be trained.
        EnvironmentFault: the data are missing or the folder cannot be written.
    """
    refuse_others(view, "rerun trains only what sweepstack trained", number)
    trial = _ended_trial(view, number)
    restored = _on_this_machine(restore(view, trial, overrides, trust, config_dir))
    trust_rule.see_own_packages(restored.config.trust)
    program = Program.of(TrialSpec(restored.config))
    console = progress.console()
    for line in [*_changes(view, trial, program), *restored.notes, *data_read(program.config.data)]:
        progress.say(line, console)
    place = run_folder.claim(
        folder or outputs(view.where) / "reruns" / _folder_name(view.name, number)
    )
    spec = TrialSpec(restored.config, number=number, folder=place)
    swept = any(override.startswith("+sweeps=") for override in restored.overrides)
    run_folder.begin(place, spec, [*restored.overrides, *(["hydra.mode=RUN"] if swept else [])])
    recorded = _recorded(view, trial, restored, program)
    comparison = _compared(console, spec, program, trial, recorded, probe)
    _print_table(console, comparison)
    _write(place, view, trial, comparison, overrides)
    progress.say(f"results: {progress.shown(place)}", console)
    progress.say(one_line(comparison.verdict), console)
    return 0 if comparison.agrees else EXIT_DIFFERENT


def _compared(
    console: Console,
    spec: TrialSpec,
    program: Program,
    trial: FrozenTrial,
    recorded: Given,
    probe: bool,
) -> Comparison:
    """Train, write what it gave into the spec's folder, and compare; with probes where needed or
    asked for."""
    stop = _stopped_at(trial, recorded)
    with progress.Watch(console) as watch:
        monitor = _Stop(stop, watch if console.is_terminal else None)
        results = list(train(seeds.members(spec), monitor))
    assert spec.folder is not None
    run_folder.write_results(spec.folder, spec, results)
    now = _given(spec, results, program.objective)
    tolerance = _tolerance(trial, program)
    comparison = compare(recorded, now, tolerance)
    # Probes can excuse a difference only where they train, and none does where the rerun cannot.
    trains = any(key.step is not None for key in now.numbers) or now.broke_at is not None
    if trains and (probe or not comparison.agrees):
        probed = f"{len(PROBES)} probes measure how far this trial amplifies rounding"
        progress.say(f"{probed}; before: {comparison.verdict}", console)
        probes = _probe(spec, stop, program.objective, tolerance.floor)
        comparison = compare(recorded, now, tolerance, probes)
    return comparison


def _ended_trial(view: StudyView, number: int) -> FrozenTrial:
    """A trial that ended; InputError where there is none of that number."""
    trials = view.trials
    if not 0 <= number < len(trials):
        allowed = f"0 to {len(trials) - 1}" if trials else "none: the study is empty"
        raise InputError(f"the trials of {one_line(view.name)} are {allowed}, got {number}")
    trial = trials[number]
    if trial.state in (TrialState.RUNNING, TrialState.WAITING):
        state = STATES[trial.state]
        raise InputError(f"trial {number} is {state}: only a finished trial can be run again")
    return trial


def _folder_name(study: str, number: int) -> str:
    """A study's name may be anything; that of a folder in outputs/reruns may not."""
    name = re.sub(r"[^\w.=,+-]+", "-", study)[:80].lstrip(".-") or "study"
    return f"{name}-{number}"


# --- training ------------------------------------------------------------------------------------


class _Stop(Monitor):
    """Ends every trial at its first evaluation at or after a step; passes the rest on to
    `watch`."""

    def __init__(self, step: int | None, watch: Monitor | None = None):
        self._step, self._watch = step, watch or Monitor()
        self._at: dict[int, float] = {}

    def started(
        self, spec: TrialSpec, step: int, total_steps: int, history: Sequence[Mapping[str, float]]
    ) -> None:
        """Pass it on."""
        self._watch.started(spec, step, total_steps, history)

    def stepped(self, steps: int, specs: Sequence[TrialSpec]) -> None:
        """Pass it on."""
        self._watch.stepped(steps, specs)

    def report(self, spec: TrialSpec, row: Mapping[str, float]) -> None:
        """Note how far a trial is."""
        self._at[id(spec)] = row["step"]
        self._watch.report(spec, row)

    def should_stop(self, spec: TrialSpec) -> bool:
        """Whether it is as far as it was."""
        return self._step is not None and self._at.get(id(spec), -1) >= self._step


def _on_this_machine(restored: Restored) -> Restored:
    """The config on a device that this machine has."""
    training = restored.config.training
    try:
        device.resolve(training)
    except EnvironmentFault:
        note = f"this machine has no training.device={one_line(training.device)}: using auto"
        here = replace(restored.config, training=replace(training, device="auto"))
        return replace(restored, config=here, notes=[*restored.notes, note])
    return restored


def _probe(spec: TrialSpec, step: int | None, objective: str, floor: float) -> list[Given]:
    """The trial once for each of `PROBES`, in a stack, with a learning rate that is off by that
    many floors."""
    specs: list[TrialSpec] = []
    for index, times in enumerate(PROBES):
        rate = spec.config.optimizer.lr * (1 + times * floor)
        config = replace(spec.config, optimizer=replace(spec.config.optimizer, lr=rate))
        specs += seeds.members(TrialSpec(config, number=index))
    found: dict[int, list[TrialResult]] = {}
    for result in train(specs, _Stop(step), width=min(len(specs), MAX_WIDTH)):
        found.setdefault(result.spec.number, []).append(result)
    for results in found.values():
        results.sort(key=lambda result: result.spec.config.training.seed)
    return [_given(spec, results, objective) for results in found.values()]


def _tolerance(trial: FrozenTrial, program: Program) -> Tolerance:
    floor = FLOORS[program.config.training.precision]
    if _kind_then(trial) not in (None, program.device.type):
        floor *= OTHER_DEVICE
    splits = {"val": program.data.val, "test": program.data.test, "train": program.data.train}
    samples = {name: len(split) for name, split in splits.items() if split is not None}
    return Tolerance(floor, samples)


# --- numbers, recorded and now, by the same keys -------------------------------------------------


def _recorded(view: StudyView, trial: FrozenTrial, restored: Restored, program: Program) -> Given:
    """All numbers that the study keeps of a trial."""
    attributes, training = trial.user_attrs, restored.config.training
    several, objective = training.seeds > 1, program.objective
    numbers: dict[Key, float] = {}
    if restored.verified:  # or the folder may be another study's
        for row in rows_of(view.files({trial.number}), trial):
            seed, step = row.get("seed"), row.get("step")
            if (isinstance(seed, int) or not several) and isinstance(step, int):
                _add_row(numbers, row, step, seed if several else None)
    if view.has_one_objective:
        reports = trial.intermediate_values.items()
        numbers |= {Key(objective, int(step)): value for step, value in reports}
    error, best, state = attributes.get("error"), attributes.get("best_step"), STATES[trial.state]
    if state != "failed" or not several:  # else the other seeds were stopped wherever they were
        _add_end(numbers, attributes, several, best)
    if state == "complete" and several and isinstance(attributes.get("values"), list):
        for seed, value in enumerate(attributes["values"], training.seed):
            if _is_number(value):
                numbers[Key(objective, None, seed)] = _float(value)
    error = one_line(error) if isinstance(error, str) else None
    return Given(numbers, state, error, (int(best),) if isinstance(best, int) else ())


def _given(spec: TrialSpec, results: Sequence[TrialResult], objective: str) -> Given:
    """All numbers of a trial that was trained now."""
    several = spec.config.training.seeds > 1
    group = seeds.Group(spec, len(results))
    numbers: dict[Key, float] = {}
    seed_of = {id(result): result.spec.config.training.seed for result in results}
    for result in results:
        for row in result.history:
            _add_row(numbers, row, int(row["step"]), seed_of[id(result)] if several else None)
    for result in results:
        for row in result.history:
            reports = group.observe(seed_of[id(result)], int(row["step"]), row[objective])
            numbers |= {Key(objective, step): value for step, value in reports}
        numbers |= {Key(objective, step): value for step, value in group.end(result)}
    summary = run_folder.summary_of(spec, results)
    _add_end(numbers, summary, several, summary["best_step"])
    if several:
        numbers |= {Key(objective, None, seed_of[id(result)]): result.value for result in results}
    return Given(numbers, group.state, group.error, tuple(result.best_step for result in results))


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
            numbers[Key(name)] = _float(value)
        elif _AT_END.fullmatch(name):
            at_step = not several and not name.startswith("test_") and isinstance(best_step, int)
            key = Key(name, best_step if at_step else None)
            known = numbers.get(key, value)
            numbers[key if known == value else replace(key, again=True)] = _float(value)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _float(value: float) -> float:
    try:
        return float(value)
    except OverflowError:  # a study may hold an integer of any length
        return math.inf


def _stopped_at(trial: FrozenTrial, recorded: Given) -> int | None:
    """The step at which a trial ended before its budget, None where it did not."""
    if recorded.ended == "pruned":
        steps = [key.step for key in recorded.numbers if key.step is not None]
        return max([*map(int, trial.intermediate_values), *steps], default=None)
    return broken_step(recorded.error) if recorded.ended == "failed" else None


# --- what is printed and written -----------------------------------------------------------------


def _kind_then(trial: FrozenTrial) -> str | None:
    """cpu or cuda, by the name of the device that trained a trial, as `device.describe` writes it;
    None if unknown."""
    name = trial.user_attrs.get("device")
    if not isinstance(name, str) or not name:
        return None
    return "cpu" if re.search(r"\(\d+ threads?\)$", name) else "cuda"


def _changes(view: StudyView, trial: FrozenTrial, program: Program) -> list[str]:
    """A line for each thing, besides the config, that is not as it was."""
    key = trial.user_attrs.get(ENVIRONMENT)
    then = view.user_attrs.get(f"{ENVIRONMENT}.{key}") if isinstance(key, str) else None
    lines, now_on = [*changes_since(then)], program.device
    pairs: list[tuple[str, object, object]] = []
    if before := trial.user_attrs.get("device"):
        pairs.append(("device", before, device.describe(now_on)))
    if before := trial.user_attrs.get(DATA_HASH):
        pairs.append(("SHA-256 of the data", before, program.data.fingerprint))
    lines += _changed(pairs)
    if _kind_then(trial) not in (None, now_on.type):
        lines.append(f"another kind of device: the tolerance is {OTHER_DEVICE} times as wide")
    return lines


def changes_since(then: object) -> list[str]:
    """A line for each version, platform and commit that is not as an environment of a study's
    (`runs.folder.environment`) says."""
    if not isinstance(then, Mapping):
        return ["the study does not record the versions that trained it"]
    now, old = environment(), then.get("versions")
    new, old = now["versions"], old if isinstance(old, Mapping) else {}
    names = [*new, *(name for name in old if name not in new)]
    pairs = [(one_line(n, 40), old.get(n, "none"), new.get(n, "none")) for n in names[:50]]
    pairs.append(("platform", then.get("platform"), now["platform"]))
    pairs.append(("git commit", _commit(then.get("git")), _commit(now["git"])))
    return _changed(pairs)


def _changed(pairs: Sequence[tuple[str, object, object]]) -> list[str]:
    return [
        f"changed: {what} {one_line(old, 100)} then, {one_line(new, 100)} now"
        for what, old, new in pairs
        if old != new
    ]


def _commit(git: object) -> str:
    if not isinstance(git, Mapping):
        return "none"
    return f"{one_line(git.get('commit'), 12)}{' (changed files)' if git.get('dirty') else ''}"


def data_read(data: schema.Data) -> list[str]:
    """Which files of this machine are read."""
    named = [getattr(data, key, None) for key in ("root", "path")]
    if isinstance(data, schema.Arrays | schema.Table):
        named += [data.train, data.val, data.test]
    places = [str(Path(name).absolute()) for name in named if isinstance(name, str)]
    return [f"data are read from {one_line(', '.join(places))}"] if places else []


def _print_table(console: Console, comparison: Comparison) -> None:
    """Every number at the end, and of each metric the worst evaluation."""
    table = Table(box=None, pad_edge=False)
    for title in ("metric", "recorded", "now", "difference", "allowed"):
        table.add_column(title, justify="left" if title == "metric" else "right")
    worst: dict[object, Difference] = {}
    for found in comparison.differences:
        at_end = found.key.step is None
        name = (found.key.name, at_end, found.key.seed if at_end else None)
        if name not in worst or found.share > worst[name].share:
            worst[name] = found
    for row in worst.values():
        style = "" if row.share <= 1 else "bold"
        numbers = (_text(row.recorded), _text(row.now), shown(row.amount), shown(row.allowed))
        table.add_row(*(Text(text, style=style) for text in (str(row.key), *numbers)))
    console.print(table)


def _text(value: float) -> str:
    whole = math.isfinite(value) and value == int(value) and abs(value) < 1e15
    return str(int(value)) if whole else f"{value:.7g}"


def _write(
    place: Path,
    view: StudyView,
    trial: FrozenTrial,
    comparison: Comparison,
    overrides: Sequence[str],
) -> None:
    """Write rerun.json: the verdict and every number, then and now, and what `StudyView.probed`
    reads."""

    def plain(value: float) -> float | None:
        return value if math.isfinite(value) else None

    numbers = [
        {
            "metric": found.key.name,
            "step": found.key.step,
            "seed": found.key.seed,
            "recorded": plain(found.recorded),
            "now": plain(found.now),
            "allowed": plain(found.allowed),
        }
        for found in comparison.differences
    ]
    known = {"study": view.name, "trial": trial.number, "agrees": comparison.agrees}
    if comparison.growth and not overrides:
        most, begins = max(comparison.growth.values()), comparison.chaotic_from
        known |= {"started": str(trial.datetime_start), "grows_to": most, "chaotic_from": begins}
    content = {**known, "verdict": comparison.verdict, "numbers": numbers}
    run_folder.write_json(place / "rerun.json", content)
