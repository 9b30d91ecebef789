"""The search space of a sweep: its grid, its points as Optuna's trials, its points as overrides.

A point maps the name of each parameter that exists in it to a label (`parameter.py`). Parameters
stand parents before children, and the first varies slowest in the grid; `order.py` says in which
order it is visited.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from sweepstack.config.errors import InputError, nearest
from sweepstack.sweep.space import grammar
from sweepstack.sweep.space.declare import declare
from sweepstack.sweep.space.parameter import Label, Parameter, Trial


def parse(
    arguments: Sequence[str],
    params: Mapping[str, Any] | None = None,
    conditions: Mapping[str, Any] | None = None,
) -> Space:
    """Read a search space; `grammar.py` and `declare.py` say what may be written.

    Args:
        arguments: overrides of the command line, sweeps or not; they win over `params`.
        params: `hydra.sweeper.params`, from a key to its values or cases.
        conditions: `hydra.sweeper.conditions`, from a key to {parent: value or list of values}.

    Raises:
        InputError: one line for each mistake, all of them.
    """
    return Space(*declare(arguments, params or {}, conditions or {}))


@dataclass(frozen=True)
class Space:
    """What is the same in all trials, and what differs.

    Attributes:
        fixed: overrides of every trial, as they were written.
        parameters: parents before children, as `parse` orders them.
    """

    fixed: tuple[str, ...] = ()
    parameters: tuple[Parameter, ...] = ()

    @property
    def is_finite(self) -> bool:
        """Whether no parameter is continuous."""
        return all(parameter.size is not None for parameter in self.parameters)

    @property
    def grid_size(self) -> int:
        """The number of points of the grid.

        Raises:
            InputError: a parameter is continuous.
        """
        self._require_finite()
        parents = {path for parameter in self.parameters for path, _ in parameter.when}
        deciding = [p for p in self.parameters if p.path in parents]
        others = [p for p in self.parameters if p.path not in parents]
        return sum(
            prod(p.size or 1 for p in others if p.exists(texts))
            for _, texts in _points(deciding, {}, {})
        )

    def grid(self) -> Iterator[dict[str, Label]]:
        """Every point exactly once, the first parameter varying slowest.

        Raises:
            InputError: a parameter is continuous, when the first point is asked for.
        """
        self._require_finite()
        for point, _ in _points(self.parameters, {}, {}):
            yield point

    def _require_finite(self) -> None:
        continuous = [p.name for p in self.parameters if p.size is None]
        if continuous:
            are = "is" if len(continuous) == 1 else "are"
            raise InputError(
                f"{', '.join(continuous)} {are} continuous, so there is no full grid:"
                " hydra.sweeper.n_trials must say how many trials to run"
            )

    def suggest(self, trial: Trial) -> dict[str, Label]:
        """Ask `trial` for a point, each parameter only where its conditions hold."""
        point: dict[str, Label] = {}
        texts: dict[str, str] = {}
        for parameter in self.parameters:
            if parameter.exists(texts):
                label = parameter.suggest(trial)
                point[parameter.name] = label
                texts[parameter.path] = parameter.text(label)
        return point

    def overrides(self, values: Mapping[str, Label]) -> list[str]:
        """The overrides of the point `values`, without `fixed`.

        Raises:
            InputError: `values` has a name that is no parameter, or a label that is no choice.
        """
        names = {parameter.name for parameter in self.parameters}
        unknown = [name for name in values if name not in names]
        if unknown:
            raise InputError(
                [f"{n} is not in the search space{nearest(n, names)}" for n in unknown]
            )
        return [f"{p.key}={p.text(values[p.name])}" for p in self.parameters if p.name in values]

    def values_of(self, overrides: Sequence[str]) -> dict[str, Label]:
        """The labels of a known configuration, which may leave parameters open.

        Args:
            overrides: for example ["optimizer=sgd", "optimizer.lr=0.1"]; a fixed override may be
                repeated.

        Raises:
            InputError: one line for each override that lies outside the space.
        """
        given, mistakes = _read(overrides)
        fixed = {grammar.path_of(o): _text(o) for o in map(grammar.read_override, self.fixed)}
        paths = [parameter.path for parameter in self.parameters]
        found: dict[str, Label] = {}
        texts: dict[str, str] = {}
        for parameter in self.parameters:
            if parameter.path in given and parameter.exists(texts):
                text, value = given.pop(parameter.path)
                try:
                    found[parameter.name] = parameter.label(text, value)
                    texts[parameter.path] = parameter.text(found[parameter.name])
                except InputError as error:
                    mistakes += error.mistakes
        for path, (text, _) in given.items():
            if path in paths:
                conditions = [p.condition for p in self.parameters if p.path == path]
                mistakes.append(f"{path}={text} needs {' or '.join(conditions)} beside it")
            elif path in fixed and fixed[path] != text:
                mistakes.append(f"{path} is {fixed[path]} in the whole sweep, got {text}")
            elif path not in fixed:
                mistakes.append(f"{path} is not in the search space{nearest(path, paths)}")
        if mistakes:
            raise InputError(mistakes)
        return found

    def describe(self) -> list[tuple[str, str]]:
        """One (name, values and condition) for each parameter, for people."""
        return [(parameter.name, parameter.description) for parameter in self.parameters]

    def signature(self) -> dict[str, Any]:
        """What a study of this space must keep on resume, equal after a trip through JSON.

        `fixed` and the order of the parameters are left out, the order of choices is in.
        """
        return {parameter.name: parameter.signature() for parameter in self.parameters}


def _points(
    parameters: Sequence[Parameter], point: dict[str, Label], texts: dict[str, str]
) -> Iterator[tuple[dict[str, Label], dict[str, str]]]:
    """Extend `point` (labels by name) and `texts` (by path) in every way."""
    if not parameters:
        yield point, texts
        return
    first, rest = parameters[0], parameters[1:]
    if not first.exists(texts):
        yield from _points(rest, point, texts)
        return
    for label in first.labels():
        known = {**texts, first.path: first.text(label)}
        yield from _points(rest, {**point, first.name: label}, known)


def _read(overrides: Sequence[str]) -> tuple[dict[str, tuple[str, Any]], list[str]]:
    """(text, value) by path, and the mistakes."""
    given: dict[str, tuple[str, Any]] = {}
    mistakes: list[str] = []
    for line in overrides:
        try:
            override = grammar.read_override(line)
        except InputError as error:
            mistakes += error.mistakes
            continue
        if override.is_sweep_override():
            mistakes.append(f"a known configuration has one value for each key, got {line}")
        else:
            given[grammar.path_of(override)] = (_text(override), override.value())
    return given, mistakes


def _text(override: Any) -> str:
    return grammar.text_of(override.value())


def difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What differs between two signatures, one line each for people."""
    lines = [f"{name} is no longer swept" for name in old if name not in new]
    lines += [f"{name} was not swept before" for name in new if name not in old]
    for name in old:
        if name in new and old[name] != new[name]:
            was, now = (Parameter.from_signature(name, side[name]) for side in (old, new))
            lines.append(f"{name} was {was.description}, now {now.description}")
    return lines
