"""What a sweep of sweepstack optimizes: its objectives, their directions, and what constraints
name.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice
from typing import TYPE_CHECKING

from sweepstack.config import trust
from sweepstack.config.errors import InputError, nearest
from sweepstack.runs import logger
from sweepstack.sweep import pruners
from sweepstack.sweep.plan import Plan
from sweepstack.training.spec import TrialSpec

if TYPE_CHECKING:
    from sweepstack.config.schema import RunConfig
    from sweepstack.engine.program import Program
    from sweepstack.training.loss import Task

NUMBERS = ("num_parameters", "steps", "seconds", "samples_per_s")
"""What a trial has besides its metrics, for objectives and constraints."""
MOST_PROGRAMS = 50
"""Static parts that meet their data and model before the first trial; each takes a moment."""


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
    for config in configs:
        logger.check(config)
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
