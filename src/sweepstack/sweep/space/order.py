"""The order in which a grid is visited: points that can share a stack follow each other.

`ranks` finds out which parameters decide the static part of a trial (`spec.TrialSpec.static`): it
looks at each value of a parameter with the others at their first. `arranged` sorts the grid by
them, stably. What it cannot see, such as two parameters that decide only together, costs speed and
nothing else. The order follows from the space alone, so every process has the same; a study that
began in another goes on properly, because the ledger knows points by their values.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Mapping
from typing import TypeAlias

from sweepstack.config.errors import InputError
from sweepstack.sweep.space import points
from sweepstack.sweep.space.parameter import Label, Parameter
from sweepstack.sweep.space.space import Space

Ranks: TypeAlias = Mapping[str, Mapping[Label, int]]
"""For each parameter that decides the static part, the rank of each value: equal for values with
the same static part, else in declared order."""

MOST_VALUES = 100
"""Values of one parameter that are looked at; of a longer range only the two ends."""


def ranks(space: Space, static_of: Callable[[list[str]], Hashable]) -> Ranks:
    """The parameters of a finite space by which its grid is to be sorted.

    Args:
        space: its points are looked at one parameter at a time.
        static_of: the static part of a trial by its overrides, without `space.fixed`.
    """
    found: dict[str, dict[Label, int]] = {}
    for parameter in space.parameters:
        labels = _looked_at(parameter)
        beside = points.parents(space, parameter)
        kinds: dict[Hashable, int] = {}
        known: dict[Label, int] = {}
        for label in labels:
            words = space.overrides(points.filled(space, beside | {parameter.name: label}))
            try:
                known[label] = kinds.setdefault(static_of(words), len(kinds))
            except InputError:  # this value needs others beside it than the first ones
                known[label] = kinds.setdefault(("refused", label), len(kinds))
        if len(kinds) > 1:
            whole = len(labels) == parameter.size
            found[parameter.name] = known if whole else _by_place(parameter)
    return found


def arranged(space: Space, by: Ranks) -> list[dict[str, Label]]:
    """The points of the grid, those with equal ranks together.

    Raises:
        InputError: a parameter is continuous.
    """
    grid = list(space.grid())
    if not by:
        return grid
    return sorted(grid, key=lambda point: _place(point, by))


def most_alike(space: Space, by: Ranks) -> int:
    """How many points of the grid share a static part, at most."""
    return max(Counter(_place(point, by) for point in space.grid()).values(), default=0)


def _place(point: Mapping[str, Label], by: Ranks) -> tuple[int, ...]:
    """A point's ranks; a parameter that does not exist in it comes before all of its values."""
    return tuple(by[n][point[n]] if n in point else -1 for n in by)


def _looked_at(parameter: Parameter) -> list[Label]:
    if (parameter.size or 0) <= MOST_VALUES or parameter.kind == "choice":
        return list(parameter.labels())
    return points.ends(parameter)


def _by_place(parameter: Parameter) -> dict[Label, int]:
    return {label: place for place, label in enumerate(parameter.labels())}
