"""Keys of `data=`: what every dataset has, and what each has besides."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from sweepstack.config.check import rule


@dataclass(frozen=True, kw_only=True)
class Data:
    """What every dataset has.

    `validation` is the share of the training samples (below 1) or their number (an integer);
    `subset` keeps that many training samples; `minmax_range` is the target of
    `normalization=minmax`, `mean` and `std` are those of `normalization=fixed`, one number or one
    for each channel or feature; `order_seed` fixes the batch order for all trials (null: each
    trial's own seed); `placement` says where samples live while training; `workers` are the
    DataLoader processes of `placement=stream`.
    """

    name: str
    validation: float = rule(gt=0)
    split_seed: int = rule(ge=0, lt=2**63)
    normalization: Literal["standardize", "global", "minmax", "fixed", "none"]
    minmax_range: tuple[float, ...]
    mean: tuple[float, ...] | None = rule(default=None)
    std: tuple[float, ...] | None = rule(default=None, gt=0)
    subset: int | None = rule(ge=1)
    order_seed: int | None = rule(ge=0, lt=2**63)
    placement: Literal["auto", "device", "stream"]
    workers: int = rule(ge=0, le=1024)

    def mistakes(self) -> list[str]:
        """Rules between keys, or that need more than a bound: one line for each broken one."""
        found = []
        for key in ("test", "validation"):
            amount = getattr(self, key, None)
            if not isinstance(amount, float):  # null, or what is the split
                continue
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
        if self.normalization == "fixed":
            found += [
                f"data.{key} must be a number, or a list of one for each channel or feature, with "
                f"data.normalization=fixed, got {'null' if value is None else '[]'}"
                for key, value in (("mean", self.mean), ("std", self.std))
                if not value
            ]
        return found


@dataclass(frozen=True, kw_only=True)
class Pictures(Data):
    """Datasets of pictures, which are resized to `image_size` (null: as they are)."""

    image_size: int | None = rule(default=None, ge=1, le=2**14)


@dataclass(frozen=True, kw_only=True)
class Digits(Pictures):
    """scikit-learn's 1,797 8x8 digits, bundled with it; `test` is the share or number held out."""

    test: float = rule(gt=0)


@dataclass(frozen=True, kw_only=True)
class Torchvision(Pictures):
    """mnist, fashion_mnist and cifar10 in torchvision's folder layout under `root`."""

    root: str
    download: bool


@dataclass(frozen=True, kw_only=True)
class ImageFolder(Pictures):
    """Folders of class folders of pictures; a null `val_folder` splits `validation` off train."""

    root: str
    train_folder: str
    val_folder: str | None
    test_folder: str | None


@dataclass(frozen=True, kw_only=True)
class Quadratic(Data):
    """The small 1-D regression set y = x² + x·noise, or with noise=additive x² + noise, with x
    uniform in `range` and noise ~ N(0, noise_std²); `clean_validation` leaves the noise out of
    validation and test."""

    samples: int = rule(ge=8, le=10**8)
    range: tuple[float, float]
    noise: Literal["proportional", "additive"]
    clean_validation: bool
    noise_std: float = rule(ge=0)
    test: float = rule(gt=0)

    def mistakes(self) -> list[str]:
        """See `Data.mistakes`."""
        low, high = self.range
        found = super().mistakes()
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            found.append(
                f"data.range must be two numbers, the lower first, got [{low:.15g}, {high:.15g}]"
            )
        return found


@dataclass(frozen=True, kw_only=True)
class Own(Data):
    """Data of your own. `auto` takes the task from the targets; `test` is the test split, or the
    share or number held out of the training samples, or null for none; a null `val` holds out
    `validation`."""

    task: Literal["auto", "multiclass", "binary", "multilabel", "regression"]
    val: str | None
    test: float | str | None = rule(gt=0)

    def mistakes(self) -> list[str]:
        """See `Data`."""
        found = super().mistakes()
        for key, example in (("train", "FILE"), ("path", "FOLDER")):
            if getattr(self, key, "") == "???":
                found.append(f"data.{key} must be given, for example data.{key}={example}")
        if getattr(self, "target", None) in ((), ("???",)):
            found.append("data.target must be given, for example data.target=COLUMN")
        return found


@dataclass(frozen=True, kw_only=True)
class Arrays(Own, Pictures):
    """Files that hold arrays x and y: .npz, .npy, .pt or .safetensors."""

    train: str


@dataclass(frozen=True, kw_only=True)
class Table(Own):
    """Files that hold a row for each sample: .csv or .parquet; `target` are the columns to be
    predicted, `exclude` columns that are not read."""

    train: str
    target: tuple[str, ...]
    exclude: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class CustomData(Own, Pictures):
    """Any map-style torch Dataset under the trust rule; all other keys are its `arguments`, held as
    JSON; so are `val` and `test`, the arguments in which those splits differ."""

    target: str
    arguments: str


@dataclass(frozen=True, kw_only=True)
class HuggingFace(Own, Pictures):
    """A folder written by `datasets.Dataset.save_to_disk`; `val` and `test` are names of splits."""

    path: str
    train: str
    target: str | None
