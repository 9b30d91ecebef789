"""`data=digits`: scikit-learn's 1,797 handwritten digits of 8x8 pixels, bundled with it.

Source: the test set of E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI
Machine Learning Repository, 1998.
"""

from __future__ import annotations

import gzip
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from sweepstack.config.schema import Digits
from sweepstack.data.dataset import Dataset, TensorSplit
from sweepstack.data.splits import normalize, partition

FILE = "datasets/data/digits.csv.gz"
"""Where scikit-learn keeps the digits: 64 gray levels and the class in each row."""


def load(config: Digits) -> Dataset:
    """Load the digits; samples (1, 8, 8), their 17 gray levels divided by 16.

    Raises:
        InputError: `test`, `validation` or `subset` do not fit 1,797 samples.
    """
    levels, targets = _read()
    x = torch.from_numpy(levels).float().div_(16).view(-1, 1, 8, 8)
    raw = TensorSplit(x, torch.from_numpy(targets).long())
    held_out = {"test": config.test, "validation": config.validation}
    train, test, val = (raw.take(part) for part in partition(config, len(raw), held_out))
    affine, (train, val, test) = normalize(config, train, val, test)
    classes = tuple(str(digit) for digit in range(10))
    outputs, shape = len(classes), (1, 8, 8)
    return Dataset(config.name, train, val, test, "multiclass", outputs, shape, classes, affine)


def _read() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Gray levels from 0 to 16, (1797, 64), and classes, (1797,)."""
    spec = find_spec("sklearn")
    assert spec is not None
    assert spec.origin is not None
    try:
        with gzip.open(Path(spec.origin).parent / FILE) as file:
            rows = np.loadtxt(file, delimiter=",")
        return rows[:, :-1], rows[:, -1]
    except (OSError, ValueError):  # it lies elsewhere: importing scikit-learn takes a second or two
        from sklearn.datasets import load_digits

        bunch = load_digits()
        return bunch.data, bunch.target
