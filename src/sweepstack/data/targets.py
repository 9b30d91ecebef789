"""Targets of data of your own: what is learnt from them, and how they become tensors.

Raw targets are y (N,) or (N, K) of numbers or strings, one row for each of N samples.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sweepstack.config.errors import InputError
from sweepstack.data.dataset import Task

log = logging.getLogger(__name__)

Array = NDArray[Any]

MAX_CLASSES = 100
"""Whole numbers with more different values are regression targets, unless `data.task` says."""


def checked(y: Array | None, count: int, what: str) -> Array:
    """Targets that fit `count` samples: (N,), or (N, K) with K > 1.

    Raises:
        InputError: there are none, or not one for each sample.
    """
    if y is None:
        raise InputError(f"{what} must hold targets y, it has none")
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.ndim not in (1, 2) or not y.size:
        raise InputError(f"y of {what} must have shape (N,) or (N, K), got {y.shape}")
    if len(y) != count:
        raise InputError(f"x and y of {what} must be of equal length, got {count} and {len(y)}")
    if y.dtype.kind == "S":
        try:
            y = np.char.decode(y, "utf-8")
        except UnicodeDecodeError:
            raise InputError(f"y of {what} must hold strings in UTF-8, got other bytes") from None
    if y.dtype.kind not in "buifUO":
        raise InputError(f"y of {what} must hold numbers or strings, got type {y.dtype}")
    with np.errstate(over="ignore"):
        strange = int((~np.isfinite(y.astype(np.float32))).sum()) if y.dtype.kind == "f" else 0
    if strange:
        raise InputError(f"y of {what} must hold finite numbers, {strange:,} of them are not")
    if y.dtype.kind == "O" and any(value is None or value != value for value in y.flat):
        raise InputError(f"y of {what} must be given for each sample, some are missing")
    return y


@dataclass(frozen=True)
class Targets:
    """What is learnt, and how targets become tensors.

    Attributes:
        task: of the dataset.
        classes: their names, by number; of several labels their names; empty for regression.
        values: the value of each class, sorted; None where targets are taken as they are.
        one_hot: whether targets (N, K) are rows of one 1.
        columns: K; 0 for targets (N,).
    """

    task: Task
    classes: tuple[str, ...] = ()
    values: Array | None = None
    one_hot: bool = False
    columns: int = 0

    @classmethod
    def of(cls, y: Array, asked: str, what: str, names: Sequence[str] = ()) -> Targets:
        """The rule for training targets y, as `checked` leaves them.

        Args:
            asked: `data.task`. `auto` takes strings, truth values and whole numbers with at most
                `MAX_CLASSES` different values as classes, other numbers as values; (N, K) of 0 and
                1 as labels, or as classes where each row has one 1.
            what: for messages.
            names: of the classes, or of the K targets, where they have some.

        Raises:
            InputError: the targets do not fit the task.
        """
        numbers = y.dtype.kind in "buif"
        if y.ndim == 2:
            return cls._of_several(y, asked, what, names)
        few = y.dtype.kind in "iu" and len(np.unique(y)) <= MAX_CLASSES
        if asked == "auto":
            asked = "multiclass" if few or y.dtype.kind in "bUO" else "regression"
            asked = "binary" if asked == "multiclass" and len(_distinct(y)) == 2 else asked
        if asked == "regression" and numbers:
            check_fine(y[:, None], what)
            return cls("regression")
        if asked not in ("multiclass", "binary"):
            need = "numbers" if asked == "regression" else "shape (N, K)"
            raise InputError(f"{what} must have {need} for data.task={asked}, got {y.dtype} (N,)")
        if y.dtype.kind == "f" and (y != np.round(y)).any():
            raise InputError(f"{what} must hold whole numbers or strings for data.task={asked}")
        values = _distinct(y)
        known = len(names) > 1 and numbers and set(values) <= set(range(len(names)))
        if known:
            values = np.arange(len(names))
        if len(values) < 2 or (asked == "binary" and len(values) > 2):
            need = "two" if asked == "binary" else "two or more"
            raise InputError(
                f"{what} must hold {need} classes for data.task={asked}, got {len(values)}"
            )
        classes = tuple(names) if known else tuple(map(_name, values))
        return cls(cast(Task, asked), classes, values)

    @classmethod
    def _of_several(cls, y: Array, asked: str, what: str, names: Sequence[str]) -> Targets:
        if y.dtype.kind not in "buif":
            raise InputError(f"{what} must hold numbers in its {y.shape[1]} columns, got {y.dtype}")
        bits = bool(np.isin(y, (0, 1)).all())
        one_hot = bits and bool((y.sum(1) == 1).all())
        if asked == "auto":
            asked = ("multiclass" if one_hot else "multilabel") if bits else "regression"
            asked = "binary" if one_hot and y.shape[1] == 2 else asked
        classes = tuple(names) or tuple(map(str, range(y.shape[1])))
        if asked == "regression":
            check_fine(y, what)
            return cls("regression", columns=y.shape[1])
        if asked == "multilabel" and bits:
            return cls("multilabel", classes, columns=y.shape[1])
        if one_hot and (asked == "multiclass" or y.shape[1] == 2):
            values = np.arange(y.shape[1])
            return cls(cast(Task, asked), classes, values, one_hot=True, columns=y.shape[1])
        need = "of 0 and 1" if asked == "multilabel" else "with one 1 in each row"
        raise InputError(f"{what} (N, {y.shape[1]}) must be {need} for data.task={asked}")

    def tensor(self, y: Array, what: str) -> Tensor:
        """Targets of any split as a dataset has them: see `Split.y`.

        Raises:
            InputError: they are not like the training targets.
        """
        columns = y.shape[1] if y.ndim == 2 else 0
        if columns != self.columns and not (self.one_hot and columns == 0):
            shapes = [f"(N, {k})" if k else "(N,)" for k in (self.columns, columns)]
            raise InputError(f"{what} must have shape {shapes[0]} like data.train, got {shapes[1]}")
        if self.one_hot and columns:
            if y.dtype.kind not in "buif" or not (
                np.isin(y, (0, 1)).all() and (y.sum(1) == 1).all()
            ):
                raise InputError(f"{what} must have one 1 in each row, like data.train")
            y = y.argmax(1)
        if self.values is None:
            wrong = y.dtype.kind not in "buif" or (
                self.task == "multilabel" and not np.isin(y, (0, 1)).all()
            )
            if wrong:
                raise InputError(f"{what} must hold numbers like data.train, got {y.dtype}")
            return torch.from_numpy(y.astype(np.float32))
        if (y.dtype.kind in "buif") != (self.values.dtype.kind in "buif"):
            raise InputError(f"{what} must be like the targets of data.train, got {y.dtype}")
        y = y if y.dtype.kind in "buif" else y.astype(str)
        at = np.searchsorted(self.values, y).clip(max=len(self.values) - 1)
        unknown = np.unique(y[self.values[at] != y])
        if len(unknown):
            raise InputError(
                f"{what} must hold classes of data.train only, '{_name(unknown[0])}' is none"
            )
        return torch.from_numpy(at.astype(np.float32 if self.task == "binary" else np.int64))


def _distinct(y: Array) -> Array:
    return np.unique(y if y.dtype.kind in "buif" else y.astype(str))


def _name(value: Any) -> str:
    whole = isinstance(value, float | np.floating) and value == int(value)
    return str(int(value)) if whole else str(value)


def warn_unscaled(y: Tensor) -> None:
    """Warn of regression targets far from 0, where a model starts: y (N,) or (N, C)."""
    mean, std = y.double().mean(0).reshape(-1), y.double().std(0, correction=0).reshape(-1)
    far = (mean.abs() > 5 * std) | (std > 10)
    if far.any():
        at = int(far.nonzero()[0])
        log.warning(
            "targets are not scaled, and their mean is %.4g, their standard deviation %.4g: "
            "training begins near 0 and may not get there; subtract the mean and divide by the "
            "standard deviation first",
            *(float(mean[at]), float(std[at])),
        )


def check_fine(x: Array, what: str) -> None:
    """Check that float32 can tell the numbers of each column of x (N, D) apart.

    Raises:
        InputError: some lie so close together, for their size, that it cannot.
    """
    if x.dtype.itemsize < 4 or x.dtype == np.float32 or not len(x):
        return
    low, high = x.min(0).astype(float), x.max(0).astype(float)
    with np.errstate(over="ignore", invalid="ignore"):
        lost = np.abs(x - x.astype(np.float32).astype(float)).max(0)
        span = high - low
        coarse = (lost > span * 2.0**-10) & np.isfinite(lost) & (span > 0)
        # Whole numbers from 2**53 on may look equal to float64 already.
        coarse = np.flatnonzero(coarse | ((span == 0) & (np.abs(low) >= 2.0**53)))
    if len(coarse):
        place = f"of column {coarse[0]} " if x.shape[1] > 1 else ""
        raise InputError(
            f"{what}: the numbers {place}from {low[coarse[0]]:.15g} to {high[coarse[0]]:.15g} are "
            "too close together for float32: subtract their mean"
        )
