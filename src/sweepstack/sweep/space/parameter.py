"""One parameter of a search space: what Optuna is asked for and what Hydra is told.

A label is what Optuna stores (str, int, float, bool or None); a text is what stands after `key=` in
an override. Of a choice each label has its text; of a number the text is the number. `space.py`
holds the parameters together, `grammar.py` and `declare.py` make them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Literal, Protocol, TypeAlias, TypeGuard

from sweepstack.config.errors import InputError, nearest

Label: TypeAlias = str | int | float | bool | None
When: TypeAlias = tuple[tuple[str, tuple[str, ...]], ...]


class Trial(Protocol):
    """What is used of `optuna.Trial`, so that any sampler's or test's trial will do."""

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        """A float in [low, high]."""
        ...

    def suggest_int(
        self, name: str, low: int, high: int, *, step: int = 1, log: bool = False
    ) -> int:
        """An integer in [low, high]."""
        ...

    def suggest_categorical(self, name: str, choices: Sequence[Label]) -> Label:
        """One of `choices`."""
        ...


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
        """Every value in order.

        Raises:
            InputError: the parameter is continuous.
        """
        if self.size is None:
            raise InputError(f"{self.path} is continuous and has no list of values")
        return iter(self.choices) if self.kind == "choice" else map(self._at, range(self.size))

    def exists(self, texts: Mapping[str, str]) -> bool:
        """Whether all conditions hold for `texts`, the value of each path that has one."""
        return all(texts.get(path) in allowed for path, allowed in self.when)

    def suggest(self, trial: Trial) -> Label:
        """Ask `trial` for a label."""
        if self.kind == "choice":
            return trial.suggest_categorical(self.name, self.choices)
        if self.kind == "int":
            low, high, step = int(self.low), int(self.high), int(self.step or 1)
            return trial.suggest_int(self.name, low, high, step=step, log=self.log)
        value = trial.suggest_float(self.name, self.low, self.high, step=self.step, log=self.log)
        return self._snapped(value)

    def text(self, label: Label) -> str:
        """What Hydra is told for `label`.

        Raises:
            InputError: `label` is not one of the choices, or not a number.
        """
        if self.kind == "choice":
            if label not in self.choices:
                raise InputError(f"{self.path} must be one of {self.values}, got {label!r}")
            return self.texts[self.choices.index(label)]
        if not _is_number(label):
            raise InputError(f"{self.path} must be a number, got {label!r}")
        return str(self._snapped(label)) if self.kind == "float" else str(int(label))

    def label(self, text: str, value: object) -> Label:
        """The label of a known value.

        Args:
            text: the value as `grammar.text_of` writes it.
            value: the value itself.

        Raises:
            InputError: the value lies outside the parameter.
        """
        if self.kind == "choice":
            if text in self.texts:
                return self.choices[self.texts.index(text)]
            if _is_number(value):  # 0 is meant where 0.0 is offered
                for label in self.choices:
                    if _is_number(label) and label == value:
                        return label
            near = "" if _is_number(value) else nearest(text, self.texts)
            raise InputError(f"{self.path} must be one of {self.values}, got {text}{near}")
        if not (_is_number(value) and self._holds(value)):
            raise InputError(f"{self.path} must be {self.values}, got {text}")
        return int(value) if self.kind == "int" else self._snapped(value)

    @property
    def values(self) -> str:
        """What may be chosen, for people: "adam, sgd" or "a float from 0.001 to 1.0, log"."""
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
        """The conditions for people, for example "optimizer=adam|adamw,model=mlp"."""
        return ",".join(f"{path}={'|'.join(allowed)}" for path, allowed in self.when)

    def signature(self) -> dict[str, Any]:
        """What makes this parameter itself, as JSON knows it."""
        domain: dict[str, Any] = (
            {"choices": list(self.choices), "texts": list(self.texts)}
            if self.kind == "choice"
            else {"low": self.low, "high": self.high, "log": self.log, "step": self.step}
        )
        when = {path: list(allowed) for path, allowed in self.when}
        return {"key": self.path, "kind": self.kind, **domain, "when": when}

    @classmethod
    def from_signature(cls, name: str, signature: Mapping[str, Any]) -> Parameter:
        """The parameter `name` that had this `signature`."""
        when = tuple((path, tuple(allowed)) for path, allowed in signature["when"].items())
        domain: dict[str, Any] = {
            item: tuple(value) if isinstance(value, list) else value
            for item, value in signature.items()
            if item in ("key", "kind", "choices", "texts", "low", "high", "log", "step")
        }
        return cls(name=name, when=when, **domain)

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


def _is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)
