"""What goes into the engine and what comes out: `TrialSpec`, `TrialResult` and `Monitor`.

A spec has a *static* part (equal for all trials of a stack); the rest, per slot, is *dynamic*.
Which is which stands in the schema. Imports neither torch nor Hydra.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, is_dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from sweepstack.config.schema import FEATURES, RunConfig

State = Literal["complete", "pruned", "failed"]


@dataclass(frozen=True)
class TrialSpec:
    """One trial: its config, its number in the study, and where its checkpoints go.

    `folder` is None for a trial that keeps no checkpoints.
    """

    config: RunConfig
    number: int = 0
    folder: Path | None = None

    @cached_property
    def static(self) -> tuple[tuple[str, Any], ...]:
        """All that must be equal inside one stack, as (dotted key, value) pairs; hashable."""
        features = tuple((f"uses.{name}", test(self.config)) for name, test in FEATURES.items())
        groups = by_group(self.config, "_static", _static)
        pairs = [pair for found in groups.values() for pair in found]
        return tuple(pairs) + features

    def uses(self, feature: str) -> bool:
        """Whether a feature of `schema.FEATURES` is on for this trial."""
        return FEATURES[feature](self.config)

    @cached_property
    def config_hash(self) -> str:
        """SHA-256 of the config (first 16 hex digits), the same for equal configs anywhere."""
        parts = by_group(self.config, "_json", _json)
        kept = sorted(filter(None, parts.values()))
        text = f"{{{', '.join(kept)}}}"  # as json.dumps writes the whole
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def by_group(config: RunConfig, name: str, make: Callable[[str, Any], Any]) -> dict[str, Any]:
    """`make(key, value)` for each key of a config. A group, which many trials of a sweep share,
    keeps it under `name`."""
    found = {}
    for key, value in vars(config).items():
        kept = getattr(value, "__dict__", None)
        if kept is None:
            found[key] = make(key, value)
            continue
        if name not in kept:
            kept[name] = make(key, value)
        found[key] = kept[name]
    return found


def plain(value: Any) -> Any:
    """A group as nested mappings; any other value as it is."""
    if not is_dataclass(value) or isinstance(value, type):
        return value
    return {item.name: plain(getattr(value, item.name)) for item in fields(value)}


def _json(name: str, value: Any) -> str:
    """A key as JSON; '' for a group of which nothing counts."""
    node = plain(value)
    for item in fields(value) if is_dataclass(value) else ():
        # What changes nothing about the trial, and what older configs lack.
        if item.metadata.get("place") or node[item.name] == item.default:
            del node[item.name]
    if node == {}:
        return ""
    return f'"{name}": {json.dumps(node, sort_keys=True, default=str)}'


def _static(key: str, value: Any) -> list[tuple[str, Any]]:
    """The static fields of a group, or the value of a key that is none."""
    if not is_dataclass(value):
        return [(key, value)]
    return [
        pair
        for item in fields(value)
        if not item.metadata.get("dynamic")
        for pair in _static(f"{key}.{item.name}", getattr(value, item.name))
    ]


class Kept:
    """One trial's tensors among those (n, ...) of n trials, with the `shared` ones besides. They
    come to the CPU when they are first asked for: of most trials nobody does."""

    def __init__(self, rows: Mapping[str, Any], place: int, shared: Mapping[str, Any]):
        self._rows, self._place, self._found = rows, place, dict(shared)

    def settle(self) -> dict[str, Any]:
        """All tensors, on the CPU; the other trials' are let go."""
        rows, self._rows, place = self._rows, {}, self._place
        mine = {name: row[place].detach().to("cpu", copy=True) for name, row in rows.items()}
        self._found = mine | self._found
        return self._found

    def __getstate__(self) -> dict[str, Any]:
        self.settle()
        return vars(self)


@dataclass(repr=False)
class TrialResult:
    """A trial's result.

    `metrics` are those of the best state (validation and, once, test) plus `train_loss` at that
    evaluation; `history` has one row per evaluation, `layers` (with training.diagnostics) one per
    layer too, see `diagnostics.py`; `kept` has `best_state`; `inputs` says what the model takes and
    gives (input_shape, outputs, classes, shift, scale); `seconds` is the trial's share of the
    stack's wall time; `stopped` says why early stopping ended it and `error` why it failed, in one
    line; `trace` is the traceback of what a module raised.
    """

    spec: TrialSpec
    state: State
    objective: str
    metrics: dict[str, float] = field(default_factory=dict)
    history: list[dict[str, float]] = field(default_factory=list)
    layers: list[dict[str, Any]] = field(default_factory=list)
    steps: int = 0
    best_step: int = 0
    seconds: float = 0.0
    num_parameters: int = 0
    samples_per_s: float = 0.0
    device: str = ""
    kept: Kept | None = None
    inputs: Mapping[str, Any] = field(default_factory=dict)
    stopped: str | None = None
    error: str | None = None
    trace: str | None = None

    def __repr__(self) -> str:
        """Number, state, steps and metrics; not the tensors."""
        metrics = ", ".join(f"{name}={value:.4g}" for name, value in self.metrics.items())
        return f"TrialResult({self.spec.number}, {self.state}, steps={self.steps}, {metrics})"

    @property
    def best_state(self) -> dict[str, Any]:
        """Parameters and buffers of the best state by name, CPU tensors."""
        return {} if self.kept is None else self.kept.settle()

    @property
    def value(self) -> float:
        """The objective at the best state; NaN when there was none."""
        return self.metrics.get(self.objective, float("nan"))


class Raised(Exception):
    """A monitor raised `error`; no trial failed."""

    def __init__(self, error: Exception):
        super().__init__(str(error))
        self.error = error


@contextmanager
def telling() -> Iterator[None]:
    """Around calls of a monitor, where a model may raise as well; raises `Raised`."""
    try:
        yield
    except Exception as error:
        raise Raised(error) from error


class Monitor:
    """Watches trials: `train` tells it what happens and asks it whether to go on.

    Subclass what you need; every method does nothing by default. What one raises is no trial's
    failure: it ends the training and comes out of `train` as it is.
    """

    def room(self, slots: int) -> None:
        """So many slots are free and about to be filled."""

    def started(
        self, spec: TrialSpec, step: int, total_steps: int, history: Sequence[Mapping[str, float]]
    ) -> None:
        """A trial starts at `step` of at most `total_steps`; a resumed one, at a step above 0, has
        reported the rows of `history` already."""

    def stepped(self, steps: int, specs: Sequence[TrialSpec]) -> None:
        """The trials of a stack advanced by `steps` each."""

    def report(self, spec: TrialSpec, row: Mapping[str, float]) -> None:
        """A trial was evaluated; `row` has step, epoch, lr, train_loss and the val metrics. At an
        evaluation of a stack, the reports of all slots come before any `should_stop`."""

    def diagnosed(self, spec: TrialSpec, rows: Sequence[Mapping[str, Any]]) -> None:
        """What the layers of a trial do at a step (`diagnostics.py`); of a resumed one first all
        that was found before."""

    def should_stop(self, spec: TrialSpec) -> bool:
        """Whether to prune the trial, asked once after each of its reports."""
        return False

    def interrupted(self) -> int | None:
        """A signal's exit code to checkpoint and stop now, or None to continue."""
        return None
