"""Reading an IDX file, the format of MNIST and Fashion-MNIST.

Two zero bytes, the type of the numbers (8: unsigned bytes), the number of axes, the length of each
axis as a big-endian 32-bit integer, then the numbers, the last axis running fastest (Y. LeCun,
C. Cortes and C. Burges, "The MNIST database of handwritten digits", 1998).

torchvision reads it as well, but importing torchvision takes seconds.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor


def read(path: Path, axes: int) -> Tensor:
    """Read a file of unsigned bytes as a uint8 tensor with `axes` axes.

    Raises:
        ValueError: the file is no such file, or is longer or shorter than its header says.
        OSError: the file cannot be read.
    """
    content = np.fromfile(path, dtype=np.uint8)
    start = 4 + 4 * axes
    if len(content) < start or content[:4].tolist() != [0, 0, 8, axes]:
        raise ValueError(f"{path.name} does not start like an IDX file with {axes} axes")
    shape = content[4:start].view(">u4").tolist()
    if len(content) != start + math.prod(shape):
        size = start + math.prod(shape)
        raise ValueError(f"{path.name} has {len(content)} bytes, by its header {size}")
    return torch.from_numpy(content[start:]).reshape(shape)
