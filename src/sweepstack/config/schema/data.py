"""Keys of the `data` group, read by `sweepstack.data`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from sweepstack.config.schema.fields import rule


@dataclass(frozen=True, kw_only=True)
class Data:
    """What every dataset has.

    `validation` is the share of the training samples (below 1) or their number (an integer);
    `subset` keeps that many training samples; `minmax_range` is the target of
    `normalization=minmax`; `order_seed` fixes the batch order for all trials (null: each trial's
    own seed); `placement` says where samples live while training; `workers` are the DataLoader
    processes of `placement=stream`.
    """

    name: str
    validation: float = rule(gt=0)
    split_seed: int = rule(ge=0, lt=2**63)
    normalization: Literal["standardize", "minmax", "none"]
    minmax_range: tuple[float, ...]
    subset: int | None = rule(ge=1)
    order_seed: int | None = rule(ge=0, lt=2**63)
    placement: Literal["auto", "device", "stream"]
    workers: int = rule(ge=0, le=1024)

    def mistakes(self) -> list[str]:
        """Rules between keys, or that need more than a bound: one line for each broken one."""
        found = []
        for key in ("test", "validation"):
            amount = getattr(self, key, 0.5)
            if not 0 < amount < 1 and not (amount >= 1 and float(amount).is_integer()):
                found.append(
                    f"data.{key} must be a share between 0 and 1 or a whole number of samples, "
                    f"got {amount:.15g}"
                )
        given = self.minmax_range
        finite = len(given) == 2 and all(math.isfinite(bound) for bound in given)
        if self.normalization == "minmax" and not (finite and given[0] < given[1]):
            found.append(
                "data.minmax_range must be two numbers, the lower first, "
                f"got [{', '.join(f'{bound:.15g}' for bound in given)}]"
            )
        return found


@dataclass(frozen=True, kw_only=True)
class Digits(Data):
    """scikit-learn's 1,797 8x8 digits, bundled with it; `test` is the share or number held out."""

    test: float = rule(gt=0)


@dataclass(frozen=True, kw_only=True)
class Torchvision(Data):
    """mnist, fashion_mnist and cifar10 in torchvision's folder layout under `root`."""

    root: str
    download: bool


@dataclass(frozen=True, kw_only=True)
class ImageFolder(Data):
    """Folders of class folders of pictures; a null `val_folder` splits `validation` off train."""

    root: str
    train_folder: str
    val_folder: str | None
    test_folder: str | None
    image_size: int | None = rule(ge=1, le=2**14)


@dataclass(frozen=True, kw_only=True)
class Quadratic(Data):
    """The small 1-D regression set y = x² + x·noise, x ~ U(-1, 1), noise ~ N(0, noise_std²)."""

    samples: int = rule(ge=8, le=10**8)
    noise_std: float = rule(ge=0)
    test: float = rule(gt=0)
