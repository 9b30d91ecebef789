"""MNIST as numpy arrays, for the programs that throughput.py compares sweepstack with.

They run in environments that have neither sweepstack nor torchvision, so the files are read here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
VALIDATION = 5000


def load(root: str, test: bool = False) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    """(x, y) of 55,000 training and of 5,000 validation samples; x is (N, 784) in [0, 1].

    With `test` the 10,000 test samples stand behind the validation samples.
    """
    x, y = _read(root, "train")
    order = np.random.default_rng(0).permutation(len(x))
    parts = order[VALIDATION:], order[:VALIDATION]
    train, val = ((x[part], y[part]) for part in parts)
    if test:
        more = zip(val, _read(root, "t10k"), strict=True)
        val_x, val_y = (np.concatenate(pair) for pair in more)
        return train, (val_x, val_y)
    return train, val


def _read(root: str, split: str) -> tuple[Array, Array]:
    raw = Path(root) / "MNIST" / "raw"
    pixels = np.frombuffer((raw / f"{split}-images-idx3-ubyte").read_bytes(), np.uint8, offset=16)
    labels = np.frombuffer((raw / f"{split}-labels-idx1-ubyte").read_bytes(), np.uint8, offset=8)
    x = (pixels.reshape(-1, 784) / np.float32(255)).astype(np.float32)
    return x, labels.astype(np.int64)
