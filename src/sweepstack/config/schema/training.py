"""Keys of the `regularization`, `batch`, `early_stopping`, `training` and `logger` groups, each
read by the module of its name (`training` by `train.py` and `device.py`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sweepstack.config.schema.fields import dynamic, place, rule


@dataclass(frozen=True, kw_only=True)
class Regularization:
    """All of it at once; 0, false or null is off.

    `weight_decay` is L2 or decoupled as the optimizer defines it, `l1` the factor of the sum of
    absolute parameters, `dropout` a probability, `clip_norm` and `clip_value` bounds of the
    gradient, `mixup` the α of Beta(α, α), `cutout` the side of the erased square in pixels,
    `crop_padding` in pixels, `rotation` in degrees, `translation` as a share of the side.
    """

    weight_decay: float = dynamic(ge=0)
    l1: float = dynamic(ge=0)
    dropout: float = dynamic(ge=0, lt=1)
    label_smoothing: float = dynamic(ge=0, lt=1)
    clip_norm: float | None = dynamic(gt=0)
    clip_value: float | None = dynamic(gt=0)
    batch_norm: bool | Literal["auto"]
    mixup: float = dynamic(ge=0)
    cutout: int = dynamic(ge=0)
    crop_padding: int = dynamic(ge=0)
    horizontal_flip: bool = dynamic()
    rotation: float = dynamic(ge=0, le=180)
    translation: float = dynamic(ge=0, lt=1)


@dataclass(frozen=True, kw_only=True)
class Batch:
    """`size` samples a step; lr is scaled by size / `base_size`, linearly or by its root."""

    size: int = rule(ge=1)
    lr_scaling: Literal["none", "linear", "sqrt"] = dynamic()
    base_size: int = dynamic(ge=1)


@dataclass(frozen=True, kw_only=True)
class NoStopping:
    """Train to the end; the best state is kept all the same."""

    name: str = dynamic()


@dataclass(frozen=True, kw_only=True)
class Patience:
    """Stop after `patience` evaluations without an improvement by more than `min_delta`."""

    name: str = dynamic()
    patience: int = dynamic(ge=1)
    min_delta: float = dynamic(ge=0)


@dataclass(frozen=True, kw_only=True)
class ConsecutiveIncreases:
    """Stop when the validation loss rose `increases` times in a row."""

    name: str = dynamic()
    increases: int = dynamic(ge=1)


@dataclass(frozen=True, kw_only=True)
class Training:
    """Budget, cadence, seed, device. `max_steps`, when given, wins over `max_epochs`;
    `eval_every` counts steps (null: every epoch); `checkpoint_every` too (0: never). `seeds` runs
    with the seeds from `seed` on count as one, by their mean (`seeds.py`). `width` is the most
    trials of a sweep that are trained as one stack (`width.py`)."""

    max_steps: int | None = dynamic(ge=1)
    max_epochs: int | None = dynamic(ge=1)
    eval_every: int | None = rule(ge=1)
    seed: int = dynamic(ge=0, lt=2**63)
    seeds: int = dynamic(ge=1, le=1000)
    device: str
    precision: Literal["fp32", "tf32", "bf16"]
    deterministic: bool
    checkpoint_every: int = dynamic(ge=0)
    width: int | Literal["auto"] = place(ge=1, le=65536)
    compile: bool


@dataclass(frozen=True, kw_only=True)
class NoLogger:
    """history.csv and the study have all numbers; nothing else is written."""

    name: str = place()


@dataclass(frozen=True, kw_only=True)
class TensorBoard:
    """Scalars and the config for TensorBoard: of a single run, of a sweep's best trials."""

    name: str = place()
