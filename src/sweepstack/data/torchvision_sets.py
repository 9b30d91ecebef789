"""`data=mnist`, `fashion_mnist` and `cifar10`, laid out as torchvision does under its root.

torchvision, which takes seconds to import, fetches them and reads cifar10. The other two are IDX
files: two zero bytes, the type of the numbers (8: unsigned bytes), the number of axes, the length
of each axis as a big-endian 32-bit integer, then the numbers, the last axis running fastest
(Y. LeCun, C. Cortes and C. Burges, "The MNIST database of handwritten digits", 1998).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sweepstack.config.errors import EnvironmentFault, one_line
from sweepstack.config.schema import Torchvision
from sweepstack.data.dataset import Dataset, TensorSplit
from sweepstack.data.splits import normalized, partition


@dataclass(frozen=True)
class _Layout:
    """A dataset's class in torchvision, its folder under root, the files there, its classes."""

    reader: str
    folder: str
    files: tuple[str, ...]
    classes: tuple[str, ...]


_IDX = tuple(
    f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")
)
_BATCHES = (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta")
_CLOTHES = (
    *("T-shirt/top", "trouser", "pullover", "dress", "coat"),
    *("sandal", "shirt", "sneaker", "bag", "ankle boot"),
)
_THINGS = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)
_LAYOUTS = {
    "mnist": _Layout("MNIST", "MNIST/raw", _IDX, tuple("0123456789")),
    "fashion_mnist": _Layout("FashionMNIST", "FashionMNIST/raw", _IDX, _CLOTHES),
    "cifar10": _Layout("CIFAR10", "cifar-10-batches-py", _BATCHES, _THINGS),
}


def load(config: Torchvision) -> Dataset:
    """Load a dataset; samples (1, 28, 28), or (3, 32, 32) for cifar10.

    Validation is held out of the training part; the test part is the test split.

    Raises:
        EnvironmentFault: files are missing or damaged, or could not be fetched.
        InputError: `validation` or `subset` do not fit the training part.
    """
    layout = _LAYOUTS[config.name]
    root = Path(config.root).expanduser()
    try:
        if config.download:
            _fetch(root, layout)
        elif _missing(root, layout):
            raise FileNotFoundError
        x, y = _read(root, layout, train=True)
        test_x, test_y = _read(root, layout, train=False)
    except Exception as error:  # torchvision's readers raise almost anything on a damaged file
        raise _fault(config, root, error) from error
    parts = partition(config, len(y), {"validation": config.validation})
    train, val = (TensorSplit(_unit(x[part]), y[part]) for part in parts)
    test = TensorSplit(_unit(test_x), test_y)
    return normalized(config, "multiclass", layout.classes, train, val, test)


def _unit(x: Tensor) -> Tensor:
    return x.float().div_(255)


def _missing(root: Path, layout: _Layout) -> list[str]:
    return [name for name in layout.files if not (root / layout.folder / name).is_file()]


def _fetch(root: Path, layout: _Layout) -> None:
    """Have torchvision download what is missing; it also replaces a damaged cifar10."""
    if layout.files is _BATCHES or _missing(root, layout):
        from torchvision import datasets

        getattr(datasets, layout.reader)(root, download=True)


def _read(root: Path, layout: _Layout, train: bool) -> tuple[Tensor, Tensor]:
    """Pictures uint8 (N, channels, height, width) and labels int64 (N,) of one part.

    Raises:
        Exception: the files are damaged.
    """
    if layout.files is _IDX:
        name = "train" if train else "t10k"
        x = read_idx(root / layout.folder / f"{name}-images-idx3-ubyte", axes=3).unsqueeze(1)
        y = read_idx(root / layout.folder / f"{name}-labels-idx1-ubyte", axes=1).long()
    else:
        from torchvision.datasets import CIFAR10

        part = CIFAR10(root, train=train)
        x, y = torch.from_numpy(part.data).permute(0, 3, 1, 2), torch.tensor(part.targets)
    if len(x) != len(y):
        raise ValueError(f"{len(x)} pictures but {len(y)} labels")
    if not len(y) or int(y.max()) >= len(layout.classes):
        raise ValueError(f"labels must be 0 to {len(layout.classes) - 1}")
    return x, y


def read_idx(path: Path, axes: int) -> Tensor:
    """Read an IDX file of unsigned bytes as a uint8 tensor with `axes` axes.

    Raises:
        ValueError: the file is no such file, or is longer or shorter than its header says.
        OSError: the file cannot be read.
    """
    content = np.fromfile(path, dtype=np.uint8)
    start = 4 + 4 * axes
    if len(content) < start or content[:4].tolist() != [0, 0, 8, axes]:
        raise ValueError(f"{path.name} does not start like an IDX file with {axes} axes")
    shape = content[4:start].view(">u4").tolist()
    size = start + math.prod(shape)
    if len(content) != size:
        raise ValueError(f"{path.name} has {len(content)} bytes, by its header {size}")
    return torch.from_numpy(content[start:]).reshape(shape)


def _fault(config: Torchvision, root: Path, error: Exception) -> EnvironmentFault:
    """Say why a dataset could not be read and what helps."""
    layout = _LAYOUTS[config.name]
    place, top = root / layout.folder, layout.folder.partition("/")[0]
    missing = _missing(root, layout)
    if not missing:
        # torchvision's message for a wrong checksum advises a flag of its own.
        checksum = "Dataset not found or corrupted" in str(error)
        reason = "a checksum differs" if checksum else one_line(error)
        return EnvironmentFault(
            f"{config.name} at {place} is damaged ({reason}): "
            "delete it and fetch it again with data.download=true"
        )
    if config.download:
        return EnvironmentFault(
            f"{config.name} could not be fetched into {place} ({one_line(error)}): "
            f"check the network, or set data.root to a folder that holds {top}/"
        )
    absent = "" if len(missing) == len(layout.files) else f" ({missing[0]} is missing)"
    return EnvironmentFault(
        f"{config.name} is not at {place}{absent}: fetch it with data.download=true, "
        f"or set data.root to the folder that holds {top}/"
    )
