"""What a sweep is going to do, read and checked before any trial exists: reads `hydra.sweeper`.

A `Plan` is plain data and goes to the workers as it is. Made by `sweep.py`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import sqlalchemy

from iolaus import check
from iolaus.errors import InputError
from iolaus.sweep import constraints, grammar, hook, pruners, samplers, settings, space
from iolaus.sweep.constraints import Constraint
from iolaus.sweep.parameter import Label
from iolaus.sweep.settings import Choice
from iolaus.sweep.space import Space
from iolaus.sweep.storage import DEFAULT

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
    "custom_search_space": (str | None, {}),
    "trusted_storage": (bool, {}),
    "dry_run": (bool, {}),
}
_NODES = {
    *("sampler", "pruner", "direction", "directions", "objectives"),
    *("params", "conditions", "enqueue", "constraints"),
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
        max_failure_rate: the share of failed trials above which the sweep ends.
        max_restarts: how often a trial whose worker died is run again.
        enqueue: points to try first, by parameter name, perhaps incomplete.
        constraints: what a trial must keep to be feasible.
        custom_search_space: dotted name of a function (config, trial) that suggests more.
        on_mismatch: what to do about a study of this name with other trials.
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
    dry_run: bool = False


def read(node: Mapping[str, Any], arguments: Sequence[str], prefix: str) -> Plan:
    """The plan of a sweep, without its objectives where the config leaves them to the app.

    Args:
        node: `hydra.sweeper` as plain values.
        arguments: overrides of the command line, sweeps or not.
        prefix: what an unnamed study's name begins with.

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
    enqueue = attempt(_enqueued, found, node.get("enqueue"), grid) if found else ()
    name = values.get("study_name") or (attempt(_automatic, prefix, arguments) if found else "")
    attempt(_check_name, name)
    if values.get("custom_search_space"):
        attempt(hook.find, values["custom_search_space"])
    if mistakes:
        raise InputError(list(dict.fromkeys(mistakes)))
    kinds = (
        *("n_jobs", "timeout_s", "max_steps_total", "max_failure_rate", "max_restarts"),
        *("custom_search_space", "on_mismatch", "trusted_storage", "dry_run"),
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


def _values(node: Mapping[str, Any]) -> dict[str, Any]:
    given = {key: value for key, value in node.items() if key not in _NODES | {"_target_"}}
    given.pop("_recursive_", None)
    return settings.read(_WHERE, _RULES, given)


def _sampler(node: Any, values: Mapping[str, Any]) -> tuple[Choice, int | None]:
    chosen = Choice.read(f"{_WHERE}.sampler", node or "tpe", samplers.CLASSES)
    given = dict(chosen.given)
    seed = given.pop("seed", None)
    mistakes: list[str] = []
    check.value(f"{_WHERE}.sampler.seed", int | None, {"ge": 0}, seed, mistakes)
    if mistakes:
        raise InputError(mistakes)
    trusted = bool(values.get("trusted_storage"))
    samplers.build_sampler(chosen.name, given, seed, trusted_storage=trusted)
    return Choice(chosen.name, given), seed


def _pruner(node: Any, directions: Sequence[str]) -> Choice:
    chosen = Choice.read(f"{_WHERE}.pruner", node or "none", pruners.CLASSES)
    pruners.build(chosen.name, chosen.given, directions)
    return chosen


def _directions(node: Mapping[str, Any]) -> tuple[str, ...]:
    given = node.get("directions") or node.get("direction")
    if node.get("directions") and node.get("direction"):
        raise InputError(f"{_WHERE} must have direction or directions, not both")
    words = tuple(getattr(word, "name", word) for word in _names(given))
    for word in words:
        settings.choice(f"{_WHERE}.direction", word, ("minimize", "maximize"))
    return words


def _names(given: Any) -> tuple[Any, ...]:
    if given is None:
        return ()
    return tuple(given) if isinstance(given, list | tuple) else (given,)


def _total(found: Space, values: Mapping[str, Any], sampler: Choice) -> tuple[int | None, bool]:
    """How many trials, and whether they are the points of a grid."""
    n_trials, hook = values.get("n_trials"), values.get("custom_search_space")
    other = values.get("timeout_s") or values.get("max_steps_total")
    if sampler.name == "grid":
        if any(parameter.when for parameter in found.parameters):
            raise InputError(
                f"{_WHERE}.sampler grid cannot have conditions: leave n_trials out to run every "
                "point of a conditional space once"
            )
        if hook:
            raise InputError(f"{_WHERE}.sampler grid cannot have a custom_search_space")
        continuous = [parameter.path for parameter in found.parameters if parameter.size is None]
        if continuous:
            raise InputError(
                f"{_WHERE}.sampler grid needs lists or ranges, got an interval for "
                f"{', '.join(continuous)}"
            )
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


def _enqueued(found: Space, given: Any, grid: bool) -> tuple[Mapping[str, Label], ...]:
    points: list[Mapping[str, Label]] = []
    mistakes: list[str] = []
    for number, item in enumerate(given or ()):
        if isinstance(item, str):
            item = [item]
        if isinstance(item, Mapping):
            item = [f"{key}={check_text(value)}" for key, value in item.items()]
        try:
            point = found.values_of(item)
        except InputError as error:
            mistakes += [f"{_WHERE}.enqueue[{number}]: {line}" for line in error.mistakes]
            continue
        if grid and point not in found.grid():
            mistakes.append(
                f"{_WHERE}.enqueue[{number}] must be a whole point of the grid, got {item}"
            )
        points.append(point)
    if mistakes:
        raise InputError(mistakes)
    return tuple(points)


def check_text(value: Any) -> str:
    """A value of a YAML file as an override writes it; words stand as they are."""
    return value if isinstance(value, str) else grammar.text_of(value)


def _automatic(prefix: str, arguments: Sequence[str]) -> str:
    """A name made of what was asked for, so that the same command goes on with its study."""
    words = [prefix]
    for argument in arguments:
        key, _, value = argument.lstrip("+").partition("=")
        if key == "sweeps":
            words[0] = value
        elif key not in PLACES:
            words.append(f"{key}={value}")
    if len(words) > 1 and words[0] == "iolaus":
        words = words[1:]
    name = re.sub(r"[^\w.=,-]+", "-", "_".join(words)).strip("-")
    if len(name) <= _LONGEST:
        return name
    import hashlib

    return f"{name[: _LONGEST - 9]}-{hashlib.sha256(' '.join(words).encode()).hexdigest()[:8]}"


_LONGEST = 80
PLACES = frozenset(
    {
        *("data.root", "data.download", "data.workers", "data.placement", "trust"),
        *("training.device", "training.checkpoint_every", "training.width"),
    }
)
"""Keys that say where and how a trial is run, not what it is: they make no other study."""


def _check_name(name: str | None) -> None:
    if name is None:
        return
    if not name or name in (".", "..") or "/" in name or "\0" in name or len(name) > 200:
        raise InputError(
            f"{_WHERE}.study_name must be a name that a folder can have (no '/', at most 200 "
            f"letters), got '{name}'"
        )


def _absolute(url: str | None) -> str | None:
    """Workers may have another working folder."""
    if url is None:
        return None
    try:
        parsed = sqlalchemy.make_url(url)
    except (sqlalchemy.exc.ArgumentError, ValueError):
        return url  # `storage.connect` says what is wrong
    if parsed.get_backend_name() != "sqlite" or parsed.database in (None, "", ":memory:"):
        return url
    return f"sqlite:///{Path(str(parsed.database)).absolute()}"
