"""`data=quadratic`: a 1-D regression set made on the spot, y = x² + x·noise.

x ~ U(-1, 1) and noise ~ N(0, noise_std²): the noise of y grows with |x|, so that the lowest mean
squared error is noise_std² · E[x²] = noise_std² / 3.
"""

from __future__ import annotations

import torch

from sweepstack.config.schema import Quadratic
from sweepstack.data.dataset import Dataset, TensorSplit
from sweepstack.data.splits import normalize, partition
from sweepstack.data.streams import derive


def load(config: Quadratic) -> Dataset:
    """Draw the samples (1,) and targets; targets are not normalized.

    Raises:
        InputError: `test`, `validation` or `subset` do not fit `samples`.
    """
    # A stream of its own, so that the samples do not share draws with the order that splits them.
    generator = torch.Generator().manual_seed(derive(config.split_seed, 0))
    x = torch.rand(config.samples, 1, generator=generator) * 2 - 1
    noise = torch.randn(config.samples, 1, generator=generator) * config.noise_std
    raw = TensorSplit(x, (x.square() + x * noise).squeeze(1))
    held_out = {"test": config.test, "validation": config.validation}
    train, test, val = (raw.take(part) for part in partition(config, len(raw), held_out))
    affine, (train, val, test) = normalize(config, train, val, test)
    return Dataset(config.name, train, val, test, "regression", 1, (1,), (), affine)
