"""What a sweep is going to do, read and checked before any trial exists: reads `hydra.sweeper`.

A `Plan` is plain data and goes to the workers as it is. Made by `sweep.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import sqlalchemy

from sweepstack.config import check
from sweepstack.config.check import shown
from sweepstack.config.errors import InputError, nearest
from sweepstack.study.storage import DEFAULT
from sweepstack.sweep import naming, pruners, samplers, settings
from sweepstack.sweep.settings import Choice
from sweepstack.sweep.space import constraints, hook, order, space
from sweepstack.sweep.space import enqueue as known
from sweepstack.sweep.space.constraints import Constraint
from sweepstack.sweep.space.parameter import Label
from sweepstack.sweep.space.space import Space

_WHERE = "hydra.sweeper"
_RULES: settings.Rules = {
    "study_name": (str | None, {}),
    "storage": (str | None, {}),
    "n_trials": (int | None, {"ge": 1}),
    "n_jobs": (int, {"ge": 1}),
    "timeout_s": (float | None, {"gt": 0}),
    "max_steps_total": (int | None, {"ge": 1}),
    "max_failure_rate": (float, {"ge": 0, "le": 1}),
    "max_restarts": (int, {"ge": 0}),
    "on_mismatch": (Literal["refuse", "new"], {}),
    "duplicates": (Literal["once", "train"], {}),
    "keep_models": (Literal["best", "all", "none"] | int, {"ge": 1}),
    "custom_search_space": (str | None, {}),
    "trusted_storage": (bool, {}),
    "report": (bool, {}),
    "dry_run": (bool, {}),
}
_NODES = {
    *("sampler", "pruner", "direction", "directions", "objectives"),
    *("params", "conditions", "enqueue", "constraints"),
}
_MAPPINGS = {
    "params": "{init: 'he,xavier', optimizer.lr: 'interval(0.01,1)'}",
    "conditions": "{optimizer.momentum: {optimizer: sgd}}",
}
_DEFAULTS: Mapping[str, Any] = {"n_jobs": 1, "max_failure_rate": 0.5, "max_restarts": 3}


@dataclass(frozen=True)
class Plan:
    """All decisions of a sweep.

    Attributes:
        study: its name in the storage.
        storage: a database URL; a SQLite file by its absolute path. None: a file that is removed
            when the sweep is over.
        space: what is fixed and what is swept.
        objectives: names of what is optimized.
        directions: "minimize" or "maximize" of each.
        sampler, pruner: names and given settings.
        seed: the sampler's; None draws other trials each time.
        total: finished trials that the study is to have; None for a budget other than trials.
        grid: whether the trials are the points of the space, each once.
        n_jobs: workers.
        timeout_s: no trial begins later than this after the start.
        max_steps_total: no trial begins once all trials together have taken so many steps.
        max_failure_rate: the share of the study's trials that may fail (see `failure_rate.py`).
        max_restarts: how often in a row a trial whose worker died is run again without progress.
        enqueue: points to try first, by parameter name, perhaps incomplete.
        constraints: what a trial must keep to be feasible.
        custom_search_space: dotted name of a function (config, trial) that suggests more.
        on_mismatch: what to do about a study of this name with other trials.
        duplicates: "once" trains one of the trials of equal effect, "train" all (`twins.py`; trials
            of other applications are all run).
        keep_models: whose best.pt the study keeps in the end.
        order: which values of a grid share a stack (`order.py`).
        report: whether a sweep that is over writes its report (`analysis/report`).
        dry_run: only print all this.
    """

    study: str
    storage: str | None
    space: Space
    objectives: tuple[str, ...]
    directions: tuple[str, ...]
    sampler: Choice
    pruner: Choice
    seed: int | None
    total: int | None
    grid: bool
    n_jobs: int = 1
    timeout_s: float | None = None
    max_steps_total: int | None = None
    max_failure_rate: float = 0.5
    max_restarts: int = 3
    enqueue: tuple[Mapping[str, Label], ...] = ()
    constraints: tuple[Constraint, ...] = ()
    custom_search_space: str | None = None
    on_mismatch: Literal["refuse", "new"] = "refuse"
    trusted_storage: bool = False
    duplicates: Literal["once", "train"] = "once"
    keep_models: Literal["best", "all", "none"] | int = "best"
    order: order.Ranks = field(default_factory=dict)
    report: bool = True
    dry_run: bool = False


def read(
    node: Mapping[str, Any],
    arguments: Sequence[str],
    prefix: str,
    check_space: Callable[[Space], None] = lambda space: None,
) -> Plan:
    """The plan of a sweep, without its objectives where the config leaves them to the app.

    Args:
        node: `hydra.sweeper` as plain values.
        arguments: overrides of the command line, sweeps or not.
        prefix: what an unnamed study's name begins with.
        check_space: raises what is wrong with the values of a space; asked here only where
            something else is wrong already, so that all mistakes are said together.

    Raises:
        InputError: one line for each mistake, all of them.
    """
    mistakes: list[str] = []

    def attempt(what: Any, *given: Any, **named: Any) -> Any:
        try:
            return what(*given, **named)
        except InputError as error:
            mistakes.extend(error.mistakes)
            return None

    node = attempt(_shaped, node) or {}
    given = attempt(_values, node)
    broken = given is None
    values = {**_DEFAULTS, **(given or {})}
    found = attempt(space.parse, arguments, node.get("params"), node.get("conditions"))
    sampler = attempt(_sampler, node.get("sampler"), values) or (Choice("random", {}), None)
    directions = attempt(_directions, node) or ()
    pruner = attempt(_pruner, node.get("pruner"), directions)
    kept = attempt(constraints.read, node.get("constraints") or {})
    objectives = attempt(_names, node.get("objectives")) or ()
    total, grid = None, False
    if found is not None and not broken:
        total, grid = attempt(_total, found, values, sampler[0]) or (None, False)
    enqueue = attempt(known.read, found, node.get("enqueue"), grid) if found else ()
    name = node.get("study_name")
    if name is None:
        name = naming.automatic(prefix, arguments)
    elif isinstance(name, str):
        attempt(naming.check, f"{_WHERE}.study_name", name)
    if values.get("custom_search_space"):
        attempt(hook.find, values["custom_search_space"])
    if mistakes and found is not None:
        attempt(check_space, found)
    if mistakes:
        raise InputError(list(dict.fromkeys(mistakes)))
    kinds = (
        *("n_jobs", "timeout_s", "max_steps_total", "max_failure_rate", "max_restarts"),
        *("custom_search_space", "on_mismatch", "duplicates", "trusted_storage"),
        "keep_models",
        *("report", "dry_run"),
    )
    return Plan(
        study=name,
        storage=_absolute(values.get("storage", DEFAULT)),
        space=found,
        objectives=objectives,
        directions=directions,
        sampler=sampler[0],
        pruner=pruner,
        seed=sampler[1],
        total=total,
        grid=grid,
        enqueue=enqueue,
        constraints=kept,
        **{key: values[key] for key in kinds if key in values},
    )


def _shaped(node: Mapping[str, Any]) -> Mapping[str, Any]:
    """The node, if it has the keys that it may have and these are lists or mappings as they are
    to be."""
    keys = [*_RULES, *sorted(_NODES)]
    mistakes = [
        f"unknown key '{_WHERE}.{key}', it has {', '.join(keys)}{nearest(str(key), keys)}"
        for key in node
        if key not in {*keys, "_target_", "_recursive_", "_convert_"}
    ]
    for key, example in _MAPPINGS.items():
        if node.get(key) is not None and not isinstance(node[key], Mapping):
            mistakes.append(f"{_WHERE}.{key} must look like {example}, got {shown(node[key])}")
    enqueue = node.get("enqueue")
    if enqueue is not None and not isinstance(enqueue, list | tuple):
        mistakes.append(f"{_WHERE}.enqueue must be a list of points, got {shown(enqueue)}")
    if mistakes:
        raise InputError(mistakes)
    return node


def _values(node: Mapping[str, Any]) -> dict[str, Any]:
    return settings.read(_WHERE, _RULES, {key: node[key] for key in _RULES if key in node})


def _sampler(node: Any, values: Mapping[str, Any]) -> tuple[Choice, int | None]:
    where = f"{_WHERE}.sampler"
    chosen = Choice.read(where, "tpe" if node is None else node, samplers.CLASSES)
    given = dict(chosen.given)
    seed = given.pop("seed", None)
    mistakes: list[str] = []
    check.value(f"{where}.seed", int | None, {"ge": 0, "lt": 2**32}, seed, mistakes)
    if mistakes:
        raise InputError(mistakes)
    trusted = bool(values.get("trusted_storage"))
    samplers.build_sampler(chosen.name, given, seed, trusted_storage=trusted)
    return Choice(chosen.name, given), seed


def _pruner(node: Any, directions: Sequence[str]) -> Choice:
    chosen = Choice.read(f"{_WHERE}.pruner", "none" if node is None else node, pruners.CLASSES)
    pruners.build(chosen.name, chosen.given, directions)
    return chosen


def _directions(node: Mapping[str, Any]) -> tuple[str, ...]:
    key = "directions" if node.get("directions") else "direction"
    if node.get("directions") and node.get("direction"):
        raise InputError(f"{_WHERE} must have direction or directions, not both")
    words = tuple(getattr(word, "name", word) for word in _names(node.get(key)))
    for word in words:
        settings.choice(f"{_WHERE}.{key}", word, ("minimize", "maximize"))
    return words


def _names(given: Any) -> tuple[Any, ...]:
    if given is None:
        return ()
    return tuple(given) if isinstance(given, list | tuple) else (given,)


def _total(found: Space, values: Mapping[str, Any], sampler: Choice) -> tuple[int | None, bool]:
    """How many trials, and whether they are the points of a grid."""
    n_trials, hook = values.get("n_trials"), values.get("custom_search_space")
    other = values.get("timeout_s") or values.get("max_steps_total")
    _check_sampler_of(found, sampler)
    if sampler.name == "grid":
        if any(parameter.when for parameter in found.parameters):
            raise InputError(
                f"{_WHERE}.sampler grid cannot have conditions: leave n_trials out to run every "
                "point of a conditional space once"
            )
        if hook:
            raise InputError(f"{_WHERE}.sampler grid cannot have a custom_search_space")
        size = found.grid_size
        return min(size, n_trials or size), True
    if n_trials is not None:
        # More trials than points would only be the same again.
        exhaustive = sampler.name == "brute_force" and found.is_finite and not hook
        return min(n_trials, found.grid_size) if exhaustive else n_trials, False
    if found.is_finite and not hook:
        return found.grid_size, True
    if other:
        return None, False
    if hook:
        raise InputError(f"{_WHERE}.n_trials must be given beside custom_search_space")
    return found.grid_size, True  # which says what is continuous


def _check_sampler_of(found: Space, sampler: Choice) -> None:
    continuous = [parameter.path for parameter in found.parameters if parameter.size is None]
    if sampler.name in ("grid", "brute_force") and continuous:
        raise InputError(
            f"{_WHERE}.sampler {sampler.name} needs lists or ranges, got an interval for "
            f"{', '.join(continuous)}"
        )


def _absolute(url: str | None) -> str | None:
    """Workers may have another working folder."""
    if url is None:
        return None
    try:
        parsed = sqlalchemy.make_url(url)
    except (sqlalchemy.exc.ArgumentError, ValueError):
        return url  # `storage.connect` says what is wrong
    if parsed.get_backend_name() != "sqlite":
        return url
    if parsed.database in (None, "", ":memory:"):
        return None  # workers could not share it
    return f"sqlite:///{Path(str(parsed.database)).absolute()}"
