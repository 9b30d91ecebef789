"""`hydra.sweeper.dry_run=true`: what a sweep would do. Runs nothing, writes nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import optuna
from rich.table import Table

from sweepstack.config.errors import masked
from sweepstack.runs import progress
from sweepstack.study import storage
from sweepstack.study.read import trials_of
from sweepstack.sweep.plan import Choice, Plan
from sweepstack.sweep.space.space import Parameter


def show(plan: Plan, repeats: int | None = None) -> None:
    """Print the space, the number of trials, sampler, pruner, storage and budgets.

    `repeats` says how many trials will not be trained, because another does the same.
    """
    console = progress.console()
    space = Table(box=None, pad_edge=False)
    space.add_column("parameter")
    space.add_column("values", overflow="fold")
    constant = {parameter.name for parameter in _constant(plan)}
    for name, values in plan.space.describe():
        if name not in constant:
            space.add_row(name, values)
    console.print(space)
    facts = Table(box=None, pad_edge=False, show_header=False)
    facts.add_column()
    facts.add_column(overflow="fold")
    for key, value in _facts(plan, repeats).items():
        facts.add_row(key, value)
    console.print()
    console.print(facts)
    console.print("nothing was run (hydra.sweeper.dry_run=true)", highlight=False)


def _constant(plan: Plan) -> list[Parameter]:
    """Parameters that have one value in all trials."""
    return [found for found in plan.space.parameters if found.size == 1 and not found.when]


def _facts(plan: Plan, repeats: int | None) -> dict[str, str]:
    objectives = zip(plan.objectives, plan.directions, strict=True)
    constant = [f"{p.path}={p.text(label)}" for p in _constant(plan) for label in p.labels()]
    facts = {
        "study": plan.study,
        "trials": _trials(plan, repeats),
        "objective": ", ".join(f"{direction} {name}" for name, direction in objectives),
        "sampler": "every point of the grid once"
        if plan.grid
        else _chosen(plan.sampler, plan.seed),
        "pruner": _chosen(plan.pruner),
        "storage": _storage(plan),
        "workers": str(plan.n_jobs),
        "fixed": " ".join([*plan.space.fixed, *constant]) or "nothing besides the defaults",
    }
    if plan.enqueue:
        facts["tried first"] = f"{len(plan.enqueue)} known points"
    for constraint in plan.constraints:
        facts[f"constraint {constraint.name}"] = f"{constraint.relation} {constraint.bound:g}"
    return facts


def _trials(plan: Plan, repeats: int | None) -> str:
    parts = ["no limit" if plan.total is None else str(plan.total)]
    same = f"{repeats} of them do what another does and will not be trained again"
    parts += [same] if repeats else []
    parts += [f"none begins after {plan.timeout_s:g} s"] if plan.timeout_s else []
    parts += [f"none begins after {plan.max_steps_total} steps"] if plan.max_steps_total else []
    return ", ".join(parts)


def _chosen(choice: Choice, seed: int | None = None) -> str:
    given: Mapping[str, Any] = dict(choice.given) | ({} if seed is None else {"seed": seed})
    settings = ", ".join(f"{key}={value}" for key, value in given.items())
    return f"{choice.name} ({settings})" if settings else choice.name


def _storage(plan: Plan) -> str:
    """The storage, and how far the study is if it is there already."""
    if plan.storage is None:
        return "a temporary file"
    shown = masked(plan.storage)
    if storage.is_new(plan.storage):
        return f"{shown} (new)"
    opened = storage.connect(plan.storage)
    if plan.study not in optuna.get_all_study_names(opened):
        return f"{shown} (the study is new)"
    trials = trials_of(optuna.load_study(study_name=plan.study, storage=opened), opened)
    finished = sum(trial.state.is_finished() for trial in trials)
    return f"{shown} (the study has {finished} finished trials)"
