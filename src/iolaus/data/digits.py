"""`data=digits`: scikit-learn's 1,797 handwritten digits of 8x8 pixels, bundled with it.

Source: the test set of E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits",
UCI Machine Learning Repository, 1998. Called by `data.load`.
"""

from __future__ import annotations

import torch

from iolaus.data.dataset import Dataset, TensorSplit
from iolaus.data.splits import normalize, partition
from iolaus.schema import Digits


def load(config: Digits) -> Dataset:
    """Load the digits; samples (1, 8, 8), their 17 gray levels divided by 16.

    Raises:
        InputError: `test`, `validation` or `subset` do not fit 1,797 samples.
    """
    from sklearn.datasets import load_digits  # imports scipy: only when asked for

    bunch = load_digits()
    x = torch.from_numpy(bunch.images).float().div_(16).unsqueeze(1)
    raw = TensorSplit(x, torch.from_numpy(bunch.target).long())
    held_out = {"test": config.test, "validation": config.validation}
    train, test, val = (raw.take(part) for part in partition(config, len(raw), held_out))
    affine, (train, val, test) = normalize(config, train, val, test)
    classes = tuple(str(name) for name in bunch.target_names)
    outputs, shape = len(classes), (1, 8, 8)
    return Dataset(config.name, train, val, test, "multiclass", outputs, shape, classes, affine)
