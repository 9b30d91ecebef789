"""The search space of a sweep: parameters, grid, points as Optuna's trials and as overrides.

A *label* is what Optuna stores (str, int, float, bool or None); a *text* is what stands after
`key=` in an override. Of a choice each label has its text; of a number the text is the number. A
*point* maps the name of each parameter that exists in it to a label. Parameters stand parents
before children, and the first varies slowest in the grid.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from itertools import product
from math import prod
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeGuard

from sweepstack.config.errors import InputError, nearest

if TYPE_CHECKING:
    from optuna.trial import BaseTrial

Label: TypeAlias = str | int | float | bool | None
When: TypeAlias = tuple[tuple[str, tuple[str, ...]], ...]


@dataclass(frozen=True)
class Parameter:
    """One hyperparameter and the conditions under which it exists.

    Attributes:
        name: its name in Optuna: the key without "+", and its condition where the key has several
            cases, for example "optimizer.lr[optimizer=sgd]".
        key: Hydra's key or group as written in an override, with "+", "++" or "@package".
        kind: "choice", "float" or "int".
        choices: of a choice, pairwise different labels.
        texts: of a choice, the value of each label as written after `key=`.
        low: of a number, the smallest value.
        high: of a number, the largest value, itself included and on the step.
        log: whether numbers are drawn from the logarithm.
        step: distance between two values; None for a continuous parameter.
        when: (path of a parent, its allowed texts), all of which must hold.
    """

    name: str
    key: str
    kind: Literal["choice", "float", "int"]
    choices: tuple[Label, ...] = ()
    texts: tuple[str, ...] = ()
    low: float = 0
    high: float = 0
    log: bool = False
    step: float | None = None
    when: When = ()

    @property
    def path(self) -> str:
        """The key without the "+" that an override may start with; conditions name it so."""
        return self.key.lstrip("+")

    @property
    def size(self) -> int | None:
        """The number of values, None for a continuous parameter."""
        if self.kind == "choice":
            return len(self.choices)
        return None if self.step is None else self._index(self.high) + 1

    def labels(self) -> Iterator[Label]:
        """Every value in order; InputError of a continuous parameter."""
        if self.size is None:
            raise InputError(f"{self.path} is continuous and has no list of values")
        return iter(self.choices) if self.kind == "choice" else map(self._at, range(self.size))

    def exists(self, texts: Mapping[str, str]) -> bool:
        """Whether all conditions hold for `texts`, the value of each path that has one."""
        return all(texts.get(path) in allowed for path, allowed in self.when)

    def suggest(self, trial: BaseTrial) -> Label:
        """Ask `trial` for a label."""
        if self.kind == "choice":
            return trial.suggest_categorical(self.name, self.choices)
        if self.kind == "int":
            low, high, step = int(self.low), int(self.high), int(self.step or 1)
            return trial.suggest_int(self.name, low, high, step=step, log=self.log)
        value = trial.suggest_float(self.name, self.low, self.high, step=self.step, log=self.log)
        return self._snapped(value)

    def text(self, label: Label) -> str:
        """The value of `label` in an override; InputError if it is no choice or no number."""
        if self.kind == "choice":
            if label not in self.choices:
                raise InputError(f"{self.path} must be one of {self.values}, got {label!r}")
            return self.texts[self.choices.index(label)]
        if not _is_number(label):
            raise InputError(f"{self.path} must be a number, got {label!r}")
        return str(self._snapped(label)) if self.kind == "float" else str(int(label))

    def label(self, text: str, value: object) -> Label:
        """The label of a known `value`, which is `text` as `grammar.text_of` writes it; InputError
        if it lies outside the parameter."""
        if self.kind == "choice":
            if text in self.texts:
                return self.choices[self.texts.index(text)]
            near = nearest(text, self.texts)
            if _is_number(value):  # 0 is meant where 0.0 is offered
                equal = [label for label in self.choices if _is_number(label) and label == value]
                if equal:
                    return equal[0]
                near = ""
            raise InputError(f"{self.path} must be one of {self.values}, got {text}{near}")
        if not (_is_number(value) and self._holds(value)):
            raise InputError(f"{self.path} must be {self.values}, got {text}")
        return int(value) if self.kind == "int" else self._snapped(value)

    @property
    def values(self) -> str:
        """For people: "adam, sgd" or "a float from 0.001 to 1.0, log"."""
        if self.kind == "choice":
            return ", ".join(self.texts)
        article = "an int" if self.kind == "int" else "a float"
        step = f" in steps of {self.step}" if self.step not in (None, 1) else ""
        return f"{article} from {self.low} to {self.high}{step}{', log' if self.log else ''}"

    @property
    def description(self) -> str:
        """Values and conditions for people."""
        return f"{self.values} (only with {self.condition})" if self.when else self.values

    @property
    def condition(self) -> str:
        """For people, for example "optimizer=adam|adamw,model=mlp"."""
        return condition_text(self.when)

    def signature(self) -> dict[str, Any]:
        """What makes this parameter itself, as JSON knows it."""
        domain: dict[str, Any] = (
            {"choices": list(self.choices), "texts": list(self.texts)}
            if self.kind == "choice"
            else {"low": self.low, "high": self.high, "log": self.log, "step": self.step}
        )
        when = {path: list(allowed) for path, allowed in self.when}
        return {"key": self.path, "kind": self.kind, **domain, "when": when}

    # Decimals, because 3 * 0.1 in floats is not 0.3, and a grid point must be found again.

    def _at(self, index: int) -> float:
        value = Decimal(str(self.low)) + index * Decimal(str(self.step))
        return int(value) if self.kind == "int" else float(value)

    def _index(self, value: float) -> int:
        return round((Decimal(str(value)) - Decimal(str(self.low))) / Decimal(str(self.step)))

    def _snapped(self, value: float) -> float:
        return float(value) if self.step is None else self._at(self._index(value))

    def _holds(self, value: float) -> bool:
        if not self.low <= value <= self.high or (self.kind == "int" and value != int(value)):
            return False
        # The tolerance is Optuna's own for what it accepts as lying on a step.
        return self.step is None or abs(self._snapped(value) - value) < 1e-8 * self.step


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
        """The number of points of the grid; InputError with a continuous parameter."""
        self._require_finite()
        parents = {path for parameter in self.parameters for path, _ in parameter.when}
        deciding = [p for p in self.parameters if p.path in parents]
        others = [p for p in self.parameters if p.path not in parents]
        return sum(
            prod(p.size or 1 for p in others if p.exists(texts))
            for _, texts in _points(deciding, {}, {})
        )

    def grid(self) -> Iterator[dict[str, Label]]:
        """Every point exactly once, the first parameter varying slowest; the first `next` raises an
        InputError with a continuous parameter."""
        self._require_finite()
        if not any(parameter.when for parameter in self.parameters):
            names = [parameter.name for parameter in self.parameters]
            every = product(*(parameter.labels() for parameter in self.parameters))
            yield from (dict(zip(names, labels, strict=True)) for labels in every)
            return
        for point, _ in _points(self.parameters, {}, {}):
            yield point

    def _require_finite(self) -> None:
        continuous = [p.name for p in self.parameters if p.size is None]
        if continuous:
            raise InputError(
                f"{', '.join(continuous)} {'is' if len(continuous) == 1 else 'are'} continuous, "
                "so there is no full grid: set hydra.sweeper.n_trials"
            )

    def suggest(self, trial: BaseTrial) -> dict[str, Label]:
        """Ask `trial` for a point, each parameter only where its conditions hold."""
        return self.point(lambda parameter: parameter.suggest(trial))

    def point(self, label_of: Callable[[Parameter], Label]) -> dict[str, Label]:
        """The point with these labels, asked for parents before children where conditions hold."""
        point: dict[str, Label] = {}
        texts: dict[str, str] = {}
        for parameter in self.parameters:
            if parameter.exists(texts):
                label = point[parameter.name] = label_of(parameter)
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


def condition_text(when: Iterable[tuple[str, Sequence[str]]]) -> str:
    """Parents and their allowed texts, for example "optimizer=adam|adamw,model=mlp"."""
    return ",".join(f"{path}={'|'.join(allowed)}" for path, allowed in when)


def _is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)
