"""Datasets that need no files: `data=digits` and `data=quadratic`."""

from __future__ import annotations

import gzip
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from sweepstack.config.schema import Digits, Quadratic
from sweepstack.data.dataset import Dataset, TensorSplit
from sweepstack.data.splits import normalized, partition
from sweepstack.data.streams import derive

FILE = "datasets/data/digits.csv.gz"
"""Where scikit-learn keeps the digits: 64 gray levels and the class in each row."""


def load_digits(config: Digits) -> Dataset:
    """Load scikit-learn's 1,797 handwritten digits; samples (1, 8, 8), gray levels over 16.

    Source: the test set of E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits",
    UCI Machine Learning Repository, 1998.

    Raises:
        InputError: `test`, `validation` or `subset` do not fit 1,797 samples.
    """
    levels, targets = _read_digits()
    x = torch.from_numpy(levels).float().div_(16).view(-1, 1, 8, 8)
    return _dataset(config, TensorSplit(x, torch.from_numpy(targets).long()), tuple("0123456789"))


def load_quadratic(config: Quadratic) -> Dataset:
    """Draw a 1-D regression set y = x² + x·noise; samples (1,), targets not normalized.

    x is uniform in `range`, noise ~ N(0, noise_std²): the noise of y grows with |x|, so that the
    lowest mean squared error is noise_std² · E[x²], which is noise_std² / 3 from -1 to 1. With
    noise=additive y = x² + noise, and the lowest error is noise_std². With `clean_validation` the
    targets of validation and test are x², and the lowest error there is 0.

    Raises:
        InputError: `test`, `validation` or `subset` do not fit `samples`.
    """
    # A stream of its own, so that the samples do not share draws with the order that splits them.
    generator = torch.Generator().manual_seed(derive(config.split_seed, 0))
    low, high = config.range
    x = torch.rand(config.samples, 1, generator=generator) * (high - low) + low
    noise = torch.randn(config.samples, 1, generator=generator) * config.noise_std
    clean = TensorSplit(x, x.square().squeeze(1))
    noise = noise if config.noise == "additive" else x * noise
    noisy = TensorSplit(x, (x.square() + noise).squeeze(1))
    return _dataset(config, noisy, (), clean if config.clean_validation else noisy)


def _dataset(
    config: Digits | Quadratic,
    raw: TensorSplit,
    classes: tuple[str, ...],
    held: TensorSplit | None = None,
) -> Dataset:
    """Training samples of `raw`, the others of `held` (None: of the same)."""
    held_out = {"test": config.test, "validation": config.validation}
    parts = partition(config, len(raw), held_out)
    train, (test, val) = raw.take(parts[0]), ((held or raw).take(part) for part in parts[1:])
    return normalized(config, "multiclass" if classes else "regression", classes, train, val, test)


def _read_digits() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Gray levels from 0 to 16, (1797, 64), and classes, (1797,)."""
    spec = find_spec("sklearn")
    assert spec is not None
    assert spec.origin is not None
    try:
        with gzip.open(Path(spec.origin).parent / FILE) as file:
            rows = np.loadtxt(file, delimiter=",")
        return rows[:, :-1], rows[:, -1]
    except (OSError, ValueError):  # moved: importing scikit-learn takes a second or two
        from sklearn import datasets

        bunch = datasets.load_digits()
        return bunch.data, bunch.target
