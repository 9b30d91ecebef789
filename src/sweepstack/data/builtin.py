"""Datasets by name: `data=digits`, `quadratic`, which need no files, `mnist`, `fashion_mnist` and
`cifar10`, laid out as torchvision does under its root.

torchvision, which takes seconds to import, fetches files and reads cifar10. The other two are IDX
files: two zero bytes, the type of the numbers (8: unsigned bytes), the number of axes, the length
of each axis as a big-endian 32-bit integer, then the numbers, the last axis running fastest
(Y. LeCun, C. Cortes and C. Burges, "The MNIST database of handwritten digits", 1998).
"""

from __future__ import annotations

import gzip
import math
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sweepstack.config.errors import EnvironmentFault, one_line
from sweepstack.config.schema import Digits, Quadratic, Torchvision
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


# --- torchvision ---------------------------------------------------------------------------------


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


def load_torchvision(config: Torchvision) -> Dataset:
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
