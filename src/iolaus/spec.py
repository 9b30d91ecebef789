"""What goes into the engine and what comes out: `TrialSpec` and `TrialResult`.

A spec has a *static* part (equal for all trials of a stack); the rest, per slot, is *dynamic*.
Which is which stands in the schema. Built by `app.py` and `iolaus.compose`, consumed by
`train.py`. Imports neither torch nor
Hydra.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from iolaus.schema import FEATURES, RunConfig

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
        return tuple(_static(self.config, "")) + features

    def uses(self, feature: str) -> bool:
        """Whether a feature of `schema.FEATURES` is on for this trial."""
        return FEATURES[feature](self.config)

    @cached_property
    def config_hash(self) -> str:
        """SHA-256 of the config (first 16 hex digits), the same for equal configs anywhere."""
        text = json.dumps(asdict(self.config), sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def _static(node: Any, prefix: str) -> list[tuple[str, Any]]:
    pairs: list[tuple[str, Any]] = []
    for item in fields(node):
        value, key = getattr(node, item.name), f"{prefix}{item.name}"
        if is_dataclass(value):
            pairs += _static(value, f"{key}.")
        elif not item.metadata.get("dynamic"):
            pairs.append((key, value))
    return pairs


@dataclass(repr=False)
class TrialResult:
    """What a trial gave.

    `metrics` are those of the best state (validation and, once, test) plus `train_loss` at that
    evaluation; `history` has one row per evaluation; `best_state` maps parameter and buffer names
    to CPU tensors; `inputs` says what the model takes and gives (input_shape, outputs, classes,
    shift, scale); `seconds` is the trial's share of the stack's wall time; `stopped` says why early
    stopping ended it and `error` why it failed, in one line.
    """

    spec: TrialSpec
    state: State
    metrics: dict[str, float]
    history: list[dict[str, float]]
    steps: int
    best_step: int
    seconds: float
    num_parameters: int
    samples_per_s: float
    device: str
    objective: str
    best_state: Mapping[str, Any] = field(default_factory=dict)
    inputs: Mapping[str, Any] = field(default_factory=dict)
    stopped: str | None = None
    error: str | None = None

    def __repr__(self) -> str:
        """Number, state, steps and metrics; not the tensors."""
        metrics = ", ".join(f"{name}={value:.4g}" for name, value in self.metrics.items())
        return f"TrialResult({self.spec.number}, {self.state}, steps={self.steps}, {metrics})"

    @property
    def value(self) -> float:
        """The objective at the best state; NaN when there was none."""
        return self.metrics.get(self.objective, float("nan"))
