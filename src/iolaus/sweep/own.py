"""Trials of iolaus itself: composed, checked, and trained by the engine as one stream of specs.

`Own` says what a sweep of iolaus asks, before any trial exists; `Trainer` runs the trials of one
worker. Its sibling for other Hydra applications is `other.py`. Called by `sweep.py` and
`worker.py`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from iolaus import config, overrides, preflight, seeds
from iolaus.errors import InputError, IolausError, nearest, one_line
from iolaus.monitor import Monitor
from iolaus.schema import RunConfig
from iolaus.seeds import Group
from iolaus.spec import TrialResult, TrialSpec
from iolaus.sweep import points
from iolaus.sweep.composition import Composition
from iolaus.sweep.plan import PLACES, Plan
from iolaus.sweep.records import CONTINUES
from iolaus.sweep.trial import Asked, Outcome, Verdicts
from iolaus.sweep.trial_folder import TrialFolder

NUMBERS = ("num_parameters", "steps", "seconds", "samples_per_s")
"""What a trial has besides its metrics, for objectives and constraints."""


@dataclass(frozen=True)
class Own:
    """iolaus as the application that is swept.

    Attributes:
        config_dir: the folder of `--config-dir`.
        config_name: the primary config.
    """

    config_dir: str | None = None
    config_name: str = config.CONFIG_NAME
    prefix = "iolaus"
    prunes = True

    def prepare(self, plan: Plan) -> tuple[Plan, dict[str, Any]]:
        """Check every value of the space, and find out what is optimized.

        Returns:
            The plan with objectives and directions, and what else must be the same when the study
            is gone on with.

        Raises:
            InputError: one line for each mistake.
            EnvironmentFault: the dataset or the device is missing.
        """
        first = self._check(plan)
        from iolaus.program import Program

        preflight.see_own_packages(first)
        program = Program.of(TrialSpec(first))
        known = _known(program)
        objectives = plan.objectives or (program.objective,)
        directions = plan.directions or (program.direction,)
        if len(directions) != len(objectives):
            raise InputError(
                f"hydra.sweeper.objectives must name {len(directions)}, one for each direction, "
                f"of {', '.join(known)}; got {list(plan.objectives)}"
            )
        _check_names("hydra.sweeper.objectives", objectives, known)
        _check_names("hydra.sweeper.constraints", [c.name for c in plan.constraints], known)
        if len(objectives) == 1 and objectives[0] == program.objective:
            _check_direction(program.objective, directions[0], program.direction)
        elif len(objectives) == 1 and plan.pruner.name != "none":
            raise InputError(
                f"hydra.sweeper.pruner must be none: it compares by {program.objective}, and "
                f"{objectives[0]} is optimized; set objective={objectives[0]} instead"
            )
        swept = {parameter.path for parameter in plan.space.parameters}
        question = {
            "objectives": list(objectives),
            "config": _without(asdict(first), "", swept | PLACES),
        }
        return replace(plan, objectives=objectives, directions=directions), question

    def runner(self, plan: Plan, folder: Path, verdicts: Verdicts) -> Trainer:
        """What a worker runs its trials with."""
        return Trainer(self, plan, folder, verdicts)

    def composition(self) -> Composition:
        """Composes overrides of this application quickly."""
        places = [config.folder("conf"), config.folder("sweeps").parent]
        places += [Path(self.config_dir)] if self.config_dir else []

        def is_group(key: str) -> bool:
            return any((place / key.partition("@")[0]).is_dir() for place in places)

        def load(words: list[str]) -> Any:
            return config.compose(
                words, config_dir=self.config_dir, config_name=self.config_name, with_hydra=True
            )

        return Composition(load, is_group)

    def config(self, plan: Plan) -> Any:
        """The config without the swept values."""
        return self.composition()(list(plan.space.fixed))

    def read(self, composition: Composition, words: Sequence[str]) -> RunConfig:
        """The typed config of `words`.

        Raises:
            InputError: one line for each mistake.
        """
        try:
            return config.read_plain(composition(words))
        except (HydraException, OmegaConfBaseException):
            overrides.compose(words, self.config_dir, self.config_name)  # says it for people
            raise

    def _check(self, plan: Plan) -> RunConfig:
        """Every value of every parameter in some point; the config of the first."""
        composition, mistakes = self.composition(), dict[str, None]()
        first: RunConfig | None = None
        for words in points.to_check(plan.space):
            try:
                found = self.read(composition, [*plan.space.fixed, *words])
                first = first or found
            except InputError as error:
                mistakes |= dict.fromkeys(error.mistakes)
        if any(parameter.path == "training.seeds" for parameter in plan.space.parameters):
            mistakes["training.seeds must be the same in the whole sweep: give one value"] = None
        if mistakes:
            raise InputError(list(mistakes))
        assert first is not None
        return first


def _known(program: Any) -> list[str]:
    """Names of the numbers that a trial ends with."""
    splits = ["val", *(["test"] if "test" in program.sources else [])]
    metrics = [f"{split}_{measure}" for split in splits for measure in program.task.measures]
    return ["train_loss", *metrics, *NUMBERS]


def _check_names(where: str, names: Iterable[str], known: Sequence[str]) -> None:
    mistakes = [
        f"{where} must be among {', '.join(known)}, got '{name}'{nearest(str(name), known)}"
        for name in names
        if name not in known
    ]
    if mistakes:
        raise InputError(mistakes)


def _check_direction(objective: str, given: str, own: str) -> None:
    if given != own:
        raise InputError(
            f"hydra.sweeper.direction must be {own} for the objective {objective}, got '{given}'"
        )


def _without(node: Mapping[str, Any], prefix: str, left_out: set[str] | frozenset[str]) -> Any:
    """A config without the keys that are swept or say only where things are."""
    kept: dict[str, Any] = {}
    for key, value in node.items():
        path = f"{prefix}{key}"
        if path in left_out:
            continue
        kept[key] = _without(value, f"{path}.", left_out) if isinstance(value, Mapping) else value
    return kept


class Trainer(Monitor):
    """Trains the trials of one worker and reports to its study.

    A trial of several seeds is trained as a stack of them, so that pruning acts on their mean.
    """

    def __init__(self, app: Own, plan: Plan, folder: Path, verdicts: Verdicts):
        self.app, self.plan, self.folder, self.verdicts = app, plan, folder, verdicts
        self.composition = app.composition()
        self._groups: dict[int, tuple[Asked, Group, TrialFolder]] = {}
        self._refused: list[Outcome] = []
        self._width = 1

    def run(self, asked: Iterator[Asked]) -> Iterator[Outcome]:
        """Train trials until no more are asked; each ends in one outcome.

        Raises:
            Interrupted: a signal asked to stop while trials were left; they are checkpointed.
            EnvironmentFault: the disk is full, the data are gone.
        """
        from iolaus.train import train

        first = next(asked, None)
        if first is None:
            return
        specs = self._specs(first, asked)
        head = next(specs, None)
        if head is not None:
            width = len(seeds.members(self._groups[head.number][1].spec))
            for result in train(_chain(head, specs), self, width=width):
                yield from self._refusals()
                yield from self._ended(result)
        yield from self._refusals()

    def _refusals(self) -> Iterator[Outcome]:
        while self._refused:
            yield self._refused.pop(0)

    def _specs(self, first: Asked, rest: Iterator[Asked]) -> Iterator[TrialSpec]:
        for asked in _chain(first, rest):
            try:
                run_config = self.app.read(self.composition, asked.overrides)
                preflight.see_own_packages(run_config)
            except (IolausError, HydraException, OmegaConfBaseException) as error:
                self._refused.append(Outcome.failed(asked, one_line(error)))
                continue
            place = TrialFolder(self.folder / str(asked.number))
            spec = TrialSpec(run_config, number=asked.number, folder=place.path)
            place.begin(spec, asked.overrides, self._line(asked))
            members = seeds.members(spec)
            self._groups[spec.number] = (asked, Group(spec, len(members)), place)
            yield from members

    def _line(self, asked: Asked) -> list[int]:
        """Numbers of the lost trials that a trial stands for, the last one first."""
        numbers: list[int] = []
        number = asked.continues
        trials = [] if number is None else self.verdicts.study.get_trials(deepcopy=False)
        while number is not None:
            numbers.append(number)
            number = trials[number].user_attrs.get(CONTINUES)
        return numbers

    def _ended(self, result: TrialResult) -> Iterator[Outcome]:
        asked, group, place = self._groups[result.spec.number]
        self._report(asked, group.end(result))
        if result.state != "complete":
            self.verdicts.condemn(asked)  # the other seeds need not go on
        if not group.is_over:
            return
        del self._groups[asked.number]
        outcome = self._outcome(asked, group)
        best = outcome.state == "complete" and self.verdicts.is_best(outcome)
        place.end(group, outcome, keep_model=best)
        yield outcome

    def _outcome(self, asked: Asked, group: Group) -> Outcome:
        results, training = group.results, group.spec.config.training
        metrics = group.metrics()
        numbers = {
            "num_parameters": results[0].num_parameters,
            "steps": sum(result.steps for result in results),
            "seconds": round(sum(result.seconds for result in results), 4),
            "samples_per_s": round(results[0].samples_per_s, 1),
        }
        attributes: dict[str, Any] = {
            **metrics,
            **numbers,
            "best_step": max(result.best_step for result in results),
            "device": results[0].device,
            "seed": training.seed,
            "config_hash": group.spec.config_hash,
        }
        if group.size > 1:
            values = [result.value for result in results]
            attributes |= {"seeds": group.size, "values": values, "std": seeds.spread(values)}
        stopped = [result.stopped for result in results if result.stopped]
        attributes |= {"stopped": stopped[0]} if stopped else {}
        attributes |= {"error": group.error} if group.error else {}
        finite = {k: None if _is_not_finite(v) else v for k, v in attributes.items()}
        values_of = metrics | numbers
        objectives = tuple(float(values_of.get(n, math.nan)) for n in self.plan.objectives)
        return Outcome(asked, group.state, objectives, finite, numbers=values_of)

    # --- what the engine tells -------------------------------------------------------------------

    def started(
        self, spec: TrialSpec, step: int, total_steps: int, history: Sequence[Mapping[str, float]]
    ) -> None:
        """Tell the study what a resumed trial has reported before."""
        place = self._groups[spec.number][2]
        place.log(f"step {step} of {total_steps}, seed {spec.config.training.seed}")
        for row in history:
            self.report(spec, row)

    def stepped(self, steps: int) -> None:
        """Nothing: the heart beats by itself."""

    def report(self, spec: TrialSpec, row: Mapping[str, float]) -> None:
        """Note an evaluation; the study learns of all of a stack's together."""
        asked, group, place = self._groups[spec.number]
        training = spec.config.training
        place.log(" ".join(f"{name} {value:.6g}" for name, value in row.items()))
        value = row[self._objective(row, spec)]
        self._report(asked, group.observe(training.seed, int(row["step"]), value))

    def _objective(self, row: Mapping[str, float], spec: TrialSpec) -> str:
        """The metric that is reported step by step: the run's own objective."""
        from iolaus.program import Program

        return Program.of(spec).objective

    def _report(self, asked: Asked, means: Iterable[tuple[int, float]]) -> None:
        if len(self.plan.objectives) == 1:  # Optuna takes reports of a single objective only
            for step, value in means:
                self.verdicts.report(asked, step, value)

    def should_stop(self, spec: TrialSpec) -> bool:
        """What the pruner says, asked once for all trials that have reported."""
        return self.verdicts.ends(self._groups[spec.number][0])

    def interrupted(self) -> int | None:
        """The exit code of a signal."""
        return self.verdicts.stop.code


def _chain(first: Any, rest: Iterator[Any]) -> Iterator[Any]:
    yield first
    yield from rest


def _is_not_finite(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)
