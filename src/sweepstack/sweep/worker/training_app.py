"""sweepstack as the application that is swept, before any trial exists: its configs, all of them
checked, what is optimized, in which direction, and what constraints name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sweepstack.config import composition, trust
from sweepstack.config import reading as config
from sweepstack.config.composition import Composition
from sweepstack.config.effect import effect
from sweepstack.config.errors import InputError, nearest
from sweepstack.config.schema import RunConfig
from sweepstack.config.space import Space, points
from sweepstack.runs import logger
from sweepstack.sweep import pruners
from sweepstack.sweep.plan import PLACES, Plan
from sweepstack.sweep.worker.trainer import Trainer
from sweepstack.training import checkpoint
from sweepstack.training.spec import TrialSpec

if TYPE_CHECKING:
    from sweepstack.engine.program import Program
    from sweepstack.sweep.worker.worker import Worker
    from sweepstack.training.loss import Task

SAME_IN_ALL = frozenset({"training.seeds", "objective", "logger"})
"""Keys without which the trials of a study could not be compared."""
MOST_COUNTED = 20_000
"""Points of a grid whose effects are compared at most before a sweep; each takes a tenth of a
millisecond or two."""
NUMBERS = ("num_parameters", "steps", "seconds", "samples_per_s")
"""What a trial has besides its metrics, for objectives and constraints."""
MOST_PROGRAMS = 50
"""Static parts that meet their data and model before the first trial; each takes a moment."""


@dataclass(frozen=True)
class TrainingApp:
    """sweepstack as the application that is swept.

    Attributes:
        config_dir: the folder of `--config-dir`.
        config_name: the primary config.
    """

    config_dir: str | None = None
    config_name: str = composition.CONFIG_NAME
    prefix = "sweepstack"

    def __reduce__(self) -> tuple[type[TrainingApp], tuple[str | None, str]]:
        return TrainingApp, (self.config_dir, self.config_name)  # another process composes anew

    @property
    def origin(self) -> dict[str, str | None]:
        """Where its configs come from."""
        folder = None if self.config_dir is None else str(Path(self.config_dir).absolute())
        return {"name": "sweepstack", "config_dir": folder, "config_name": self.config_name}

    def prepare(self, plan: Plan) -> tuple[Plan, dict[str, Any]]:
        """Check every value of the space, and resolve what is optimized.

        Returns:
            The plan with objectives and directions, and what else must be the same when the study
            is resumed.

        Raises:
            InputError: one line for each mistake.
            EnvironmentFault: the dataset or the device is missing.
        """
        configs = self._configs(plan.space)
        objectives, directions = resolve(plan, meet(configs))
        swept = {parameter.path for parameter in plan.space.parameters}
        same = {
            "objectives": list(objectives),
            "config": _without(asdict(configs[0]), "", swept | PLACES),
        }

        def static(overrides: list[str]) -> Any:
            return TrialSpec(self.read([*plan.space.fixed, *overrides])).static

        ranks = points.ranks(plan.space, static) if plan.grid else {}
        alike = len({TrialSpec(each).static for each in configs}) == 1
        found = replace(plan, objectives=objectives, directions=directions, order=ranks)
        return replace(found, alike=configs[0] if alike else None), same

    def runner(self, plan: Plan, folder: Path, worker: Worker) -> Trainer:
        """What a worker runs its trials with."""
        return Trainer(self.read, plan, folder, worker)

    def checkpointed(self, folder: Path, number: int) -> int | None:
        """Steps that the whole checkpoints of a trial hold, of all its seeds together; None if it
        never began. One whose study has no folder at all counts as begun: the files may lie on
        another host."""
        place = folder / str(number)
        if not place.is_dir():
            return None if folder.is_dir() else 0
        return sum(map(checkpoint.steps, place.glob("**/checkpoints")))

    @cached_property
    def composition(self) -> Composition:
        """Composes overrides of this application quickly; what it has composed, it keeps."""
        places = [composition.folder("conf"), composition.folder("sweeps").parent]
        places += [Path(self.config_dir)] if self.config_dir else []

        @cache
        def is_group(key: str) -> bool:
            return any((place / key.partition("@")[0]).is_dir() for place in places)

        def load(overrides: list[str]) -> Any:
            return composition.compose(
                overrides, config_dir=self.config_dir, config_name=self.config_name, with_hydra=True
            )

        return Composition(load, is_group)

    def repeats(self, plan: Plan) -> int | None:
        """How many points of a grid duplicate an earlier one; None where there are too many points
        to know it soon, or there is no grid."""
        if not plan.grid or plan.total is None or plan.total > MOST_COUNTED:
            return None
        known: dict[tuple[str, str], Any] = {}  # a group is read once per value
        effects: set[str] = set()
        for point in points.arranged(plan.space, plan.order)[: plan.total]:
            plain = self.composition([*plan.space.fixed, *plan.space.overrides(point)])
            texts = [(group, repr(node)) for group, node in plain.items()]
            if not all(text in known for text in texts):
                found = config.read_plain(plain)
                known |= {text: getattr(found, text[0]) for text in texts}
            effects.add(effect(RunConfig(**{text[0]: known[text] for text in texts})))
        return plan.total - len(effects)

    def config(self, plan: Plan) -> Any:
        """The config without the swept values."""
        return self.composition(list(plan.space.fixed))

    def read(self, overrides: Sequence[str]) -> RunConfig:
        """The typed config of overrides.

        Raises:
            InputError: one line for each mistake.
        """
        try:
            return config.read_plain(self.composition(overrides))
        except composition.REFUSALS:
            composition.compose(overrides, self.config_dir, self.config_name)  # says it for people
            raise

    def check(self, space: Space) -> None:
        """Check every value of a space.

        Raises:
            InputError: one line for each mistake.
        """
        self._configs(space)

    def _configs(self, space: Space) -> list[RunConfig]:
        """The config of every point at which a space is checked."""
        mistakes: dict[str, None] = {}
        configs: list[RunConfig] = []
        for overrides in points.to_check(space):
            try:
                configs.append(self.read([*space.fixed, *overrides]))
            except InputError as error:
                mistakes |= dict.fromkeys(error.mistakes)
        for path in SAME_IN_ALL & {parameter.path for parameter in space.parameters}:
            hint = ", or a list: logger=[tensorboard,csv]" if path == "logger" else ""
            mistakes[f"{path} must be the same in the whole sweep: give one value{hint}"] = None
        if mistakes:
            raise InputError(list(mistakes))
        return configs


def _without(node: Mapping[str, Any], prefix: str, left_out: set[str] | frozenset[str]) -> Any:
    """A config without the keys that are swept or only say where things are."""
    kept: dict[str, Any] = {}
    for key, value in node.items():
        path = f"{prefix}{key}"
        # Of a group that is swept, what is fixed in it still counts.
        if path in left_out and (path in PLACES or not isinstance(value, Mapping)):
            continue
        kept[key] = _without(value, f"{path}.", left_out) if isinstance(value, Mapping) else value
    return kept


def meet(configs: Sequence[RunConfig]) -> Program:
    """Let configs meet their data, model and device, as far as few static parts differ.

    Returns:
        The program of the first.

    Raises:
        InputError: one line for each that does not fit, and where they cannot be compared.
        EnvironmentFault: a dataset, a device or a package is missing.
    """
    from sweepstack.engine.program import Program

    trust.see_own_packages(configs[0].trust)
    for each in configs:
        logger.check(each)
    specs = {spec.static: spec for spec in map(TrialSpec, configs)}
    mistakes: dict[str, None] = {}
    programs: list[Program] = []
    for spec in islice(specs.values(), MOST_PROGRAMS):
        try:
            programs.append(Program.of(spec))
        except InputError as error:
            mistakes |= dict.fromkeys(error.mistakes)
    objectives = dict.fromkeys(program.objective for program in programs)
    if len(objectives) > 1:
        names, *others = [program.task.objectives for program in programs]
        common = [name for name in names if all(name in other for other in others)]
        mistakes[
            f"all trials must have the same objective, got {' and '.join(objectives)}: set "
            f"objective to one of {', '.join(common)}"
        ] = None
    if mistakes:
        raise InputError(list(mistakes))
    return programs[0]


def resolve(plan: Plan, program: Program) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The objectives and the direction of each.

    Raises:
        InputError: they name no number of a trial, do not go together, or forbid the pruner.
    """
    # Numbers that a trial ends with; what test data say must choose nothing.
    known = [*program.task.objectives, *NUMBERS]
    objectives = plan.objectives or (program.objective,)
    constraints, task = [constraint.name for constraint in plan.constraints], program.task
    _check_names("objectives", objectives, known, task)
    _check_names("constraints", constraints, known, task)
    twice = [name for name in dict.fromkeys(objectives) if objectives.count(name) > 1]
    if twice:
        raise InputError(f"hydra.sweeper.objectives must differ, got {twice[0]} twice")
    directions = _directions(plan, objectives, known, task)
    if plan.sampler.name == "cmaes" and len(directions) > 1:
        raise InputError("hydra.sweeper.sampler must not be cmaes with several objectives")
    pruners.build(plan.pruner.name, plan.pruner.given, directions)
    if len(objectives) == 1 and plan.pruner.name != "none" and objectives[0] != program.objective:
        name = objectives[0]
        remedy = "" if name in NUMBERS else f"; set objective={name} instead"
        raise InputError(
            f"hydra.sweeper.pruner must be none: it compares by {program.objective}, and {name} is "
            f"optimized{remedy}"
        )
    return objectives, directions


def _check_names(key: str, names: Iterable[object], known: Sequence[str], task: Task) -> None:
    from sweepstack.training.metrics import remedy

    mistakes = [
        f"hydra.sweeper.{key} must be among {', '.join(known)}, got '{name}'"
        f"{remedy(str(name), task.name)}{nearest(str(name), known)}"
        for name in names
        if name not in known
    ]
    if mistakes:
        raise InputError(mistakes)


def _directions(
    plan: Plan, objectives: Sequence[str], known: Sequence[str], task: Task
) -> tuple[str, ...]:
    """One for each objective; a metric has its own."""
    own = {name: task.direction_of(name) for name in known if name not in NUMBERS}
    if not plan.directions:
        unclear = [name for name in objectives if name not in own]
        if unclear:
            key = "directions" if len(objectives) > 1 else "direction"
            raise InputError(
                f"hydra.sweeper.{key} must be given: {unclear[0]} can be minimized or maximized"
            )
        return tuple(own[name] for name in objectives)
    if len(plan.directions) != len(objectives):
        given = ", ".join(plan.objectives) or "none"
        raise InputError(
            f"hydra.sweeper.objectives and directions must be equally many, got {given} and "
            f"{', '.join(plan.directions)}; objectives are among {', '.join(known)}"
        )
    mistakes = [
        f"hydra.sweeper.direction must be {own[name]} for the objective {name}, got '{way}'"
        for name, way in zip(objectives, plan.directions, strict=True)
        if own.get(name, way) != way
    ]
    if mistakes:
        raise InputError(mistakes)
    return plan.directions
