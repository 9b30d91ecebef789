"""What a sweep is going to do, read and checked before any trial exists: reads `hydra.sweeper`.

A `Plan` is plain data and goes to the workers as it is.
"""

from __future__ import annotations

import hashlib
import math
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any, Literal

from sweepstack.config import check, schema, sweeper
from sweepstack.config.check import shown
from sweepstack.config.errors import InputError
from sweepstack.config.schema import RunConfig
from sweepstack.config.space import Label, Space, points
from sweepstack.config.space.declare import parse
from sweepstack.storage.artifacts import SETTING, place
from sweepstack.storage.url import absolute, take_password
from sweepstack.sweep import pruners, samplers

_WHERE = "hydra.sweeper"
_HYDRAS = ("_target_", "_recursive_", "_convert_")
_BOUND = re.compile(r"\s*(<=|>=)\s*([-+0-9.eE]+)\s*")
_LONGEST_NAME = 40
"""Bytes."""
PLACES = frozenset(
    {
        *("data.root", "data.download", "data.workers", "data.placement", "trust"),
        *("training.device", "training.checkpoint_every", "training.width"),
        *("training.diagnostics", "logger"),
        *(f"logger.{item.name}" for item in fields(schema.Logger)),
    }
)
"""Keys that say where and how a trial is run, not what it is: they make no other study."""


@dataclass(frozen=True)
class Choice:
    """An option of a config group: its name, and those of its settings that were given."""

    name: str
    given: Mapping[str, Any]

    @classmethod
    def read(cls, where: str, node: object, classes: Mapping[str, str]) -> Choice:
        """From `{name: tpe, ...}`, from a bare name, or as hydra-optuna-sweeper writes its groups,
        from `{_target_: ..., ...}`, whose last part is in `classes`. InputError otherwise.

        A setting that is null is left to the default of its class.
        """
        if isinstance(node, str):
            return cls(node, {})
        if not isinstance(node, Mapping):
            raise InputError(f"{where} must be a config group such as tpe, got {shown(node)}")
        given = {str(k): v for k, v in node.items() if v is not None and k != "_partial_"}
        target, name = given.pop("_target_", None), given.pop("name", "")
        if target is None:
            return cls(str(name), given)
        named = classes.get(str(target).rpartition(".")[2])
        if named is None:
            known = ", ".join(dict.fromkeys(classes.values()))
            raise InputError(f"{where} must be one of {known}, got the class '{target}'")
        return cls(named, given)


@dataclass(frozen=True)
class Constraint:
    """A trial is feasible if its final number `name` (a metric, num_parameters, seconds, steps) is
    <= or >= `bound`."""

    name: str
    relation: Literal["<=", ">="]
    bound: float

    def violation(self, numbers: Mapping[str, float]) -> float | None:
        """How far a trial is on the wrong side of the bound; None when it has no such number."""
        value = numbers.get(self.name)
        if value is None or math.isnan(value):
            return None
        return value - self.bound if self.relation == "<=" else self.bound - value


@dataclass(frozen=True, kw_only=True)
class Plan(sweeper.Settings):
    """All decisions of a sweep; those that are given as they are stand in `config/sweeper.py`.

    Attributes:
        study: its name in the storage.
        storage: a database URL without its password (`storage_url.take_password`); a SQLite file by
            its absolute path. None: a file that is removed when the sweep is over.
        space: what is fixed and what is swept.
        objectives: names of what is optimized.
        directions: "minimize" or "maximize" of each.
        sampler, pruner: names and given settings.
        seed: the sampler's; None draws other trials each time.
        total: finished trials that the study is to have; None for a budget other than trials.
        grid: whether the trials are the points of the space, each once.
        enqueue: points to try first, by parameter name, perhaps incomplete.
        constraints: what a trial must keep to be feasible.
        artifacts: as `storage.artifacts.place` returns it.
        order: which values of a grid share a stack (`space/points.py`).
        alike: a config of sweepstack whose static part all trials share, as far as is known.
        identity: see `studies.py`; None before the study is opened.
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
    enqueue: tuple[Mapping[str, Label], ...]
    constraints: tuple[Constraint, ...]
    order: points.Ranks = field(default_factory=dict)
    alike: RunConfig | None = None
    identity: Mapping[str, Any] | None = None


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
    attempt = partial(_attempt, mistakes)
    node = {key: value for key, value in node.items() if key not in _HYDRAS}
    given = check.settings(_WHERE, sweeper.Sweeper, node, mistakes)
    values, is_sound = {**sweeper.defaults(sweeper.Sweeper), **given}, not mistakes
    space = attempt(parse, arguments, values["params"], values["conditions"])
    sampler, seed = attempt(_sampler, values) or (Choice("random", {}), None)
    directions = attempt(_directions, values) or ()
    pruner = attempt(_pruner, values["pruner"], directions)
    constraints = attempt(_constraints, values["constraints"] or {})
    total, grid = None, False
    if space is not None and is_sound:
        total, grid = attempt(_total, space, values, sampler) or (None, False)
    enqueue = attempt(points.known, space, values["enqueue"] or (), grid) if space else ()
    name, storage = values["study_name"], values["storage"]
    if name is None:
        name = name_of(prefix, arguments)
    attempt(check_name, f"{_WHERE}.study_name", name)
    if values["artifacts"] is not None:
        values["artifacts"] = attempt(place, values["artifacts"])
        if values["storage"] is None:
            mistakes.append(f"{SETTING} needs hydra.sweeper.storage, which is null: no study stays")
    if values["custom_search_space"]:
        attempt(points.search_function, values["custom_search_space"])
    if mistakes and space is not None:
        attempt(check_space, space)
    if mistakes:
        raise InputError(list(dict.fromkeys(mistakes)))
    return Plan(
        study=name,
        storage=absolute(storage and take_password(storage)),
        space=space,
        objectives=_listed(values["objectives"]),
        directions=directions,
        sampler=sampler,
        pruner=pruner,
        seed=seed,
        total=total,
        grid=grid,
        enqueue=enqueue,
        constraints=constraints,
        **{key: values[key] for key in sweeper.defaults(sweeper.Settings)},
    )


def _attempt(mistakes: list[str], call: Callable[..., Any], *arguments: Any) -> Any:
    """What `call` returns; None where it raises an InputError, whose mistakes are noted."""
    try:
        return call(*arguments)
    except InputError as error:
        mistakes.extend(error.mistakes)
        return None


def _sampler(values: Mapping[str, Any]) -> tuple[Choice, int | None]:
    node = "tpe" if values["sampler"] is None else values["sampler"]
    chosen = Choice.read(f"{_WHERE}.sampler", node, samplers.CLASSES)
    given = dict(chosen.given)
    seed = given.pop("seed", None)
    samplers.build_sampler(chosen.name, given, seed, trusted_storage=values["trusted_storage"])
    return Choice(chosen.name, given), seed


def _pruner(node: Any, directions: Sequence[str]) -> Choice:
    chosen = Choice.read(f"{_WHERE}.pruner", "none" if node is None else node, pruners.CLASSES)
    pruners.build(chosen.name, chosen.given, directions)
    return chosen


def _directions(values: Mapping[str, Any]) -> tuple[str, ...]:
    key = "directions" if values["directions"] else "direction"
    if values["directions"] and values["direction"]:
        raise InputError(f"{_WHERE} must have direction or directions, not both")
    names = [getattr(each, "name", each) for each in _listed(values[key])]
    return tuple(check.option(f"{_WHERE}.{key}", n, ("minimize", "maximize")) for n in names)


def _listed(given: Any) -> tuple[Any, ...]:
    if given is None:
        return ()
    return tuple(given) if isinstance(given, list | tuple) else (given,)


def _constraints(given: Mapping[str, Any]) -> tuple[Constraint, ...]:
    mistakes: list[str] = []
    found: list[Constraint] = []
    for name, text in given.items():
        match = _BOUND.fullmatch(str(text))
        try:
            relation: Any
            relation, bound = match.groups() if match else ("", "")
            found.append(Constraint(str(name), relation, float(bound)))
        except ValueError:
            mistakes.append(
                f'{_WHERE}.constraints.{name} must look like "<= 100000" or ">= 0.9", got {text!r}'
            )
    if mistakes:
        raise InputError(mistakes)
    return tuple(found)


def _total(space: Space, values: Mapping[str, Any], sampler: Choice) -> tuple[int | None, bool]:
    """How many trials, and whether they are the points of a grid."""
    n_trials, function = values["n_trials"], values["custom_search_space"]
    continuous = [parameter.path for parameter in space.parameters if parameter.size is None]
    if sampler.name in ("grid", "brute_force") and continuous:
        raise InputError(
            f"{_WHERE}.sampler {sampler.name} needs lists or ranges, got an interval for "
            f"{', '.join(continuous)}"
        )
    if sampler.name == "grid":
        if any(parameter.when for parameter in space.parameters):
            raise InputError(
                f"{_WHERE}.sampler grid cannot have conditions: leave n_trials out to run every "
                "point of a conditional space once"
            )
        if function:
            raise InputError(f"{_WHERE}.sampler grid cannot have a custom_search_space")
        size = space.grid_size
        return min(size, n_trials or size), True
    if n_trials is not None:
        # More trials than points would only be the same again.
        exhaustive = sampler.name == "brute_force" and space.is_finite and not function
        return min(n_trials, space.grid_size) if exhaustive else n_trials, False
    if space.is_finite and not function:
        return space.grid_size, True
    if values["timeout_s"] or values["max_steps_total"]:
        return None, False
    if function:
        raise InputError(f"{_WHERE}.n_trials must be given beside custom_search_space")
    return space.grid_size, True  # which says what is continuous


def name_of(prefix: str, arguments: Sequence[str]) -> str:
    """A short name made of what was asked for, so that the same command goes on with its study: the
    sweep's file, the last parts of the keys, and eight digits of a hash of the arguments."""
    name, keys, asked = prefix, [], []
    for argument in arguments:
        key, _, value = argument.lstrip("+").partition("=")
        if key == "sweeps":
            name = value
        elif key not in PLACES:
            keys.append(re.split("[./]", key)[-1])
            asked.append(f"{key}={value}")
    if not asked:
        return re.sub(r"[^\w.,-]+", "-", name).strip("-") or prefix
    own = [] if name == "sweepstack" else [name]
    words = re.sub(r"[^\w.,-]+", "-", "_".join([*own, *keys])).strip("-")
    if len(words) > _LONGEST_NAME - 9:
        words = words[: _LONGEST_NAME - 9].rpartition("_")[0] or words[: _LONGEST_NAME - 9]
    text = " ".join([name, *asked]).encode(errors="replace")
    return f"{words}-{hashlib.sha256(text).hexdigest()[:8]}"


def check_name(where: str, name: str) -> None:
    """Refuse a name that a folder cannot have.

    Raises:
        InputError: it cannot.
    """
    odd = any(unicodedata.category(letter) in ("Cc", "Cs") for letter in name)
    if not name.strip() or name in (".", "..") or "/" in name or odd or len(name.encode()) > 200:
        raise InputError(
            f"{where} must be a name that a folder can have (no '/', at most 200 bytes), "
            f"got {shown(name)}"
        )
