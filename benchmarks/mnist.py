"""MNIST as numpy arrays, for the programs that throughput.py compares iolaus with.

They run in environments that have neither iolaus nor torchvision, so the files are read here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
VALIDATION = 5000


def load(root: str) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    """(x, y) of 55,000 training and of 5,000 validation samples; x is (N, 784) in [0, 1]."""
    raw = Path(root) / "MNIST" / "raw"
    pixels = np.frombuffer((raw / "train-images-idx3-ubyte").read_bytes(), np.uint8, offset=16)
    labels = np.frombuffer((raw / "train-labels-idx1-ubyte").read_bytes(), np.uint8, offset=8)
    x = (pixels.reshape(-1, 784) / np.float32(255)).astype(np.float32)
    order = np.random.default_rng(0).permutation(len(x))
    parts = order[VALIDATION:], order[:VALIDATION]
    train, val = ((x[part], labels[part].astype(np.int64)) for part in parts)
    return train, val
