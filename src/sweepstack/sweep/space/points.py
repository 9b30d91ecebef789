"""The points of a space at which a sweep is checked before it starts.

Every value of every parameter is in some point, beside the first values of the others, and the
bounds of every range are; so are all combinations of config groups, since each composes its own
config.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice, product

from sweepstack.sweep.space.parameter import Label, Parameter
from sweepstack.sweep.space.space import Space

MOST_COMBINATIONS = 200
"""Combinations of groups that are composed at most; a check must not last longer than the sweep."""


def to_check(space: Space) -> Iterator[list[str]]:
    """Overrides of each point, without `space.fixed`; the first point comes first."""
    seen: set[tuple[str, ...]] = set()
    for point in (*_one_by_one(space), *_groups(space)):
        words = space.overrides(point)
        if tuple(words) not in seen:
            seen.add(tuple(words))
            yield words


def ends(parameter: Parameter) -> list[Label]:
    """All choices, or the two ends of a range."""
    if parameter.kind == "choice":
        return list(parameter.choices)
    low, high = parameter.low, parameter.high
    return [int(low), int(high)] if parameter.kind == "int" else [low, high]


def filled(space: Space, wanted: dict[str, Label]) -> dict[str, Label]:
    """A point with the wanted labels where they may be, and first ones elsewhere."""
    point: dict[str, Label] = {}
    texts: dict[str, str] = {}
    for parameter in space.parameters:
        if parameter.exists(texts):
            label = wanted.get(parameter.name, ends(parameter)[0])
            point[parameter.name] = label
            texts[parameter.path] = parameter.text(label)
    return point


def _one_by_one(space: Space) -> Iterator[dict[str, Label]]:
    yield filled(space, {})
    for parameter in space.parameters:
        beside = parents(space, parameter)
        for label in ends(parameter):
            yield filled(space, beside | {parameter.name: label})


def parents(space: Space, parameter: Parameter) -> dict[str, Label]:
    """Labels of its parents, and of theirs, with which a parameter exists."""
    wanted: dict[str, Label] = {}
    for path, allowed in parameter.when:
        for parent in space.parameters:
            if parent.path == path:
                texts = [text for text in allowed if text in parent.texts]
                if texts:
                    wanted[parent.name] = parent.choices[parent.texts.index(texts[0])]
                    wanted |= parents(space, parent)
    return wanted


def _groups(space: Space) -> Iterator[dict[str, Label]]:
    """Combinations of the choices that have no dot: config groups."""
    groups = [p for p in space.parameters if p.kind == "choice" and "." not in p.path]
    combinations = product(*(group.choices for group in groups))
    for labels in islice(combinations, MOST_COMBINATIONS):
        yield filled(space, {g.name: label for g, label in zip(groups, labels, strict=True)})
