"""Points of a space: a trial's, those tried first, those checked before, the order of a grid.

A sweep is checked at every value of every parameter, beside the first values of the others, at the
bounds of every range, and at all combinations of config groups, since each composes its own config.

In a grid, points that can share a stack follow each other. `ranks` finds out which parameters
decide the static part of a trial: it looks at each value of a parameter with the others at their
first. What it cannot see, such as two parameters that decide only together, costs speed and nothing
else. The order follows from the space alone, so every process has the same.
"""

from __future__ import annotations

import copy
import importlib
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from itertools import islice, product
from math import prod
from typing import Any, TypeAlias

import optuna
from omegaconf import OmegaConf

from sweepstack.config import trust
from sweepstack.config.check import shown
from sweepstack.config.errors import InputError, SweepstackError, nearest, noted, one_line
from sweepstack.config.space import Label, Parameter, Space, grammar

MAX_COMBINATIONS = 200
"""Combinations of groups that are checked at most; a check must not last longer than the sweep."""
MAX_VALUES = 100
"""Values of one parameter that `ranks` looks at; of a longer range only the two ends."""

Ranks: TypeAlias = Mapping[str, Mapping[Label, int]]
"""For each parameter that decides the static part, the rank of each value: equal for values with
the same static part, else in declared order."""
SearchFunction: TypeAlias = Callable[[Any, optuna.Trial], None]


# --- one trial -----------------------------------------------------------------------------------


class Overrides:
    """Finds the overrides of trials, whose parameters are suggested on the way.

    `custom_search_space` is the dotted name of the user's function or None; `config` gives the
    config without the swept values, asked only for that function; `failures` are the errors of
    a storage, which are no fault of the trial.
    """

    def __init__(
        self,
        space: Space,
        custom_search_space: str | None,
        config: Callable[[], Any],
        failures: tuple[type[Exception], ...] = (),
    ):
        self._space = space
        self._failures = failures
        self._function: SearchFunction | None = None
        if custom_search_space:
            self._function = search_function(custom_search_space)
            self._config = OmegaConf.create(config())

    def of(self, trial: optuna.Trial) -> list[str]:
        """The overrides of a trial.

        Raises:
            ValueError: it has parameters of another space, or the sampler or the user's function
                raised.
        """
        try:
            point = self._space.suggest(trial)
        except (SweepstackError, ValueError):
            raise
        except self._failures:
            raise
        except Exception as error:  # of its mathematics
            raise ValueError(f"the sampler raised {type(error).__name__}: {error}") from error
        overrides = [*self._space.fixed, *self._space.overrides(point)]
        if self._function is None:
            return overrides
        try:
            self._function(copy.deepcopy(self._config), trial)
        except Exception as error:  # the user's code may raise anything
            raise ValueError(
                f"custom_search_space raised {type(error).__name__}: {error}"
            ) from error
        # A waiting trial brings parameters from the study, which may not say what is trusted.
        return overrides + [
            f"{name}={grammar.text_of(value)}"
            for name, value in trial.params.items()
            if name not in point and "trust" not in trust.parts(name)
        ]


def search_function(name: str) -> SearchFunction:
    """The user's function that `hydra.sweeper.custom_search_space` names.

        def suggest(config, trial):        # mypackage/space.py, in the working folder or installed
            trial.suggest_int("model.hidden", 8, 64)  # becomes an override of the trial

    A leading dot is ignored, as in older versions of Hydra. The module may be `__main__`.

    Raises:
        InputError: there is no such function, or its module does not import.
    """
    rule = (
        "hydra.sweeper.custom_search_space must name a function (config, trial), such as "
        f"mypackage.space.suggest, got '{name}'"
    )
    module, _, function = name.lstrip(".").rpartition(".")
    if not module:
        raise InputError(rule)
    trust.see_own_packages([module])
    try:
        found: SearchFunction = getattr(importlib.import_module(module), function)
    except Exception as error:  # the user's module may raise anything
        raise InputError(f"{rule}: {one_line(error) or type(error).__name__}") from None
    if not callable(found):
        raise InputError(f"{rule}, which is no function")
    return found


# --- known points --------------------------------------------------------------------------------


def known(space: Space, given: Sequence[Any], grid: bool) -> tuple[dict[str, Label], ...]:
    """The points of `hydra.sweeper.enqueue`, which a sweep tries first.

    enqueue:
      - {optimizer.lr: 0.1, init: he}
      - [optimizer.lr=0.1, init=he]
      - optimizer.lr=0.1                 # the sampler chooses the rest

    Raises:
        InputError: one line for each that lies outside the space, or is part of a point in a
            sweep of a `grid`.
    """
    points: list[dict[str, Label]] = []
    mistakes: list[str] = []
    for number, item in enumerate(given):
        where = f"hydra.sweeper.enqueue[{number}]"
        if isinstance(item, str):
            item = [item]
        elif isinstance(item, Mapping):
            item = [f"{key}={grammar.written(value)}" for key, value in item.items()]
        if not isinstance(item, list | tuple):
            form = '{optimizer.lr: 0.1, init: he} or "optimizer.lr=0.1"'
            mistakes.append(f"{where} must look like {form}, got {shown(item)}")
            continue
        try:
            point = labels_of(space, [str(override) for override in item])
        except InputError as error:
            mistakes += [f"{where}: {line}" for line in error.mistakes]
            continue
        if grid and point not in space.grid():
            mistakes.append(f"{where} must be a whole point of the grid, got {', '.join(item)}")
        points.append(point)
    if mistakes:
        raise InputError(mistakes)
    return tuple(points)


def labels_of(space: Space, overrides: Sequence[str]) -> dict[str, Label]:
    """The labels of a known configuration; it may leave parameters open and repeat what is fixed.

    Raises:
        InputError: one line for each override that lies outside the space.
    """
    mistakes: list[str] = []
    given: dict[str, tuple[str, Any]] = {}
    rule = "a known configuration has one value for each key"
    for line in overrides:
        with noted(mistakes):
            path, text, value = grammar.read_value(line, rule)
            given[path] = (text, value)
    labels: dict[str, Label] = {}
    texts: dict[str, str] = {}
    for parameter in space.parameters:
        if parameter.path in given and parameter.exists(texts):
            with noted(mistakes):
                label = labels[parameter.name] = parameter.label(*given.pop(parameter.path))
                texts[parameter.path] = parameter.text(label)
    fixed = {grammar.path_of(o): o for o in map(grammar.read_override, space.fixed)}
    paths = [parameter.path for parameter in space.parameters]
    for path, (text, _) in given.items():
        common = grammar.text_of(fixed[path].value()) if path in fixed else None
        if path in paths:
            conditions = [p.condition for p in space.parameters if p.path == path]
            mistakes.append(f"{path}={text} needs {' or '.join(conditions)} beside it")
        elif common is None:
            mistakes.append(f"{path} is not in the search space{nearest(path, paths)}")
        elif common != text:
            mistakes.append(f"{path} is {common} in the whole sweep, got {text}")
    if mistakes:
        raise InputError(mistakes)
    return labels


# --- points that are checked ---------------------------------------------------------------------


def to_check(space: Space) -> Iterator[list[str]]:
    """Overrides of each point to check, without `space.fixed`; the first point comes first."""
    seen: set[tuple[str, ...]] = set()
    for point in (*_one_by_one(space), *_groups(space)):
        overrides = space.overrides(point)
        if tuple(overrides) not in seen:
            seen.add(tuple(overrides))
            yield overrides


def _one_by_one(space: Space) -> Iterator[dict[str, Label]]:
    yield _filled(space, {})
    for parameter in space.parameters:
        parents = _parents(space, parameter)
        for label in _ends(parameter):
            yield _filled(space, parents | {parameter.name: label})


def _groups(space: Space) -> Iterator[dict[str, Label]]:
    """Combinations of the choices that have no dot: config groups."""
    groups = [p for p in space.parameters if p.kind == "choice" and "." not in p.path]
    combinations = product(*(group.choices for group in groups))
    for labels in islice(combinations, MAX_COMBINATIONS):
        yield _filled(space, {g.name: label for g, label in zip(groups, labels, strict=True)})


def _ends(parameter: Parameter) -> list[Label]:
    """All choices, or the two ends of a range."""
    if parameter.kind == "choice":
        return list(parameter.choices)
    low, high = parameter.low, parameter.high
    return [int(low), int(high)] if parameter.kind == "int" else [low, high]


def _filled(space: Space, wanted: Mapping[str, Label]) -> dict[str, Label]:
    """A point with the wanted labels where they may be, and first ones elsewhere."""
    return space.point(lambda parameter: wanted.get(parameter.name, _ends(parameter)[0]))


def _parents(space: Space, parameter: Parameter) -> dict[str, Label]:
    """Labels of its parents, and of theirs, with which a parameter exists."""
    wanted: dict[str, Label] = {}
    for path, allowed in parameter.when:
        for parent in space.parameters:
            texts = [text for text in allowed if text in parent.texts]
            if parent.path == path and texts:
                wanted[parent.name] = parent.choices[parent.texts.index(texts[0])]
                wanted |= _parents(space, parent)
    return wanted


# --- the order of a grid -------------------------------------------------------------------------


def ranks(space: Space, static_of: Callable[[list[str]], Hashable]) -> Ranks:
    """The parameters of a finite space by which its grid is to be sorted; `static_of` gives the
    static part of a trial from its overrides, without `space.fixed`."""
    found: dict[str, dict[Label, int]] = {}
    for parameter in space.parameters:
        is_long = (parameter.size or 0) > MAX_VALUES and parameter.kind != "choice"
        parents = _parents(space, parameter)
        kinds: dict[Hashable, int] = {}
        by_label: dict[Label, int] = {}
        for label in _ends(parameter) if is_long else parameter.labels():
            overrides = space.overrides(_filled(space, parents | {parameter.name: label}))
            try:
                static = static_of(overrides)
            except InputError:  # this value needs others beside it than the first ones
                static = ("refused", label)
            by_label[label] = kinds.setdefault(static, len(kinds))
        if len(kinds) > 1:
            if is_long:
                by_label = {label: place for place, label in enumerate(parameter.labels())}
            found[parameter.name] = by_label
    return found


def arranged(space: Space, by: Ranks) -> list[dict[str, Label]]:
    """The points of the grid, those with equal ranks together, else in the grid's order."""
    return sorted(space.grid(), key=lambda point: _ranks_of(point, by))


def most_alike(space: Space, by: Ranks) -> int:
    """How many points of the grid share a static part, at most."""
    if any(parameter.when for parameter in space.parameters):
        return max(Counter(_ranks_of(point, by) for point in space.grid()).values(), default=0)
    same = (Counter(each.values()).most_common(1)[0][1] for each in by.values())
    return prod(same) * prod(p.size or 1 for p in space.parameters if p.name not in by)


def _ranks_of(point: Mapping[str, Label], by: Ranks) -> tuple[int, ...]:
    """A point's ranks; a parameter that does not exist in it comes before all of its values."""
    return tuple(by[n][point[n]] if n in point else -1 for n in by)
