"""`sweepstack-study rerun`: a trial trained again alone, from what its study keeps, and compared.

    restore    the config, with nothing of the study trusted
    recorded   the trial's numbers, then and now
    compare    how far they may differ, and why
    told       what has changed around it, the table and the verdict

The database alone suffices; where the trial's folder is there too, every metric of every evaluation
is compared. The only module of `analysis` that imports the engine.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from optuna.trial import FrozenTrial

from sweepstack.config import trust as trust_rule
from sweepstack.config.errors import EXIT_DIFFERENT, EnvironmentFault
from sweepstack.engine import device, seeds
from sweepstack.engine.program import Program
from sweepstack.engine.spec import Monitor, TrialResult, TrialSpec
from sweepstack.engine.train import train
from sweepstack.reporting.rerun.compare import (
    FLOORS,
    OTHER_DEVICE,
    PROBES,
    Given,
    Tolerance,
    compare,
)
from sweepstack.reporting.rerun.recorded import cut_of, given_of, recorded_of, trial_of
from sweepstack.reporting.rerun.restore import Restored, restore, said
from sweepstack.reporting.rerun.told import changes, data_read, kind_of, show, write_verdict
from sweepstack.runs import folder as run_folder
from sweepstack.runs.progress import Watch, console
from sweepstack.runs.progress import shown as typed
from sweepstack.study.library import OpenStudy

PLACE = Path("outputs/reruns")
MOST_WIDTH = 16
"""Probes that are trained as one stack, at most."""


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
        trust: packages that `model._target_` may name besides the closed table.
        folder: a new one for the run; by default outputs/reruns/STUDY-NUMBER.
        config_dir: the folder of configs of one's own, as for the sweep.

    Returns:
        0 where it agrees within the tolerance, else `EXIT_DIFFERENT`.

    Raises:
        InputError: there is no such trial, or it cannot or must not be trained.
        EnvironmentFault: the data are missing or the folder cannot be written.
    """
    trial = trial_of(opened, number)
    restored = restore(opened, trial, overrides, trust, config_dir)
    restored = _on_this_machine(restored)
    found = restored.config
    trust_rule.see_own_packages(found.trust)
    program = Program.of(TrialSpec(found))
    say = console()
    for line in [
        *changes(opened, trial, device.describe(program.device), program.device.type),
        *restored.notes,
        *data_read(found),
    ]:
        say.print(line, markup=False, highlight=False, soft_wrap=True)
    place = run_folder.claim(folder or PLACE / _folder_name(opened.name, number))
    spec = TrialSpec(found, number=number, folder=place)
    run_folder.begin(place, spec, _command(restored.words))
    recorded = recorded_of(opened, trial, restored, program.objective)
    cuts = cut_of(trial, recorded)
    with Watch(say) as watch:
        told = watch if say.is_terminal else None
        results = list(train(seeds.members(spec), _Cut(cuts, told)))
    run_folder.write_results(place, spec, results)
    now = given_of(spec, results, program.objective)
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
    show(say, comparison)
    write_verdict(place, opened, number, comparison)
    say.print(f"results: {typed(place)}", markup=False, highlight=False, soft_wrap=True)
    say.print(said(comparison.verdict), markup=False, highlight=False, soft_wrap=True)
    return 0 if comparison.agrees else EXIT_DIFFERENT


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
    return [given_of(spec, results, objective) for results in found.values()]


def _may_amplify(recorded: Given, now: Given) -> bool:
    """Whether probes could excuse a difference: none of them trains where the rerun cannot."""
    compared = any(key.step is not None for key in now.numbers)
    return compared or now.broke_at is not None


def _tolerance(trial: FrozenTrial, program: Program) -> Tolerance:
    floor = FLOORS[program.config.training.precision]
    then = trial.user_attrs.get("device")
    if isinstance(then, str) and then and kind_of(then) != program.device.type:
        floor *= OTHER_DEVICE
    splits = {"val": program.data.val, "test": program.data.test, "train": program.data.train}
    samples = {name: len(split) for name, split in splits.items() if split is not None}
    return Tolerance(floor, samples)


def _folder_name(study: str, number: int) -> str:
    """A study's name may be anything; that of a folder in outputs/reruns may not."""
    name = re.sub(r"[^\w.=,+-]+", "-", study)[:80].lstrip(".-") or "study"
    return f"{name}-{number}"


def _command(words: Sequence[str]) -> list[str]:
    """What `sweepstack` would be told for the same run."""
    swept = any(word.startswith("+sweeps=") for word in words)
    return [*words, *(["hydra.mode=RUN"] if swept else [])]
