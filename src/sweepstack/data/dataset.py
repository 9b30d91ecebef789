"""What a loaded dataset is: its splits, with random access to their samples.

`TensorSplit` holds its samples as one tensor; `LazySplit` holds the names of picture files and
decodes what is asked for, `ResizedSplit` small pictures and resizes what is asked for. All give
the same numbers.

Notation: N samples of the split, M samples asked for, shape = a sample's axes: (channels, height,
width) for a picture, (D,) for D features.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, Protocol, Self

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor

from sweepstack.config.errors import EnvironmentFault, one_line

Task = Literal["multiclass", "binary", "multilabel", "regression"]


@dataclass(frozen=True, eq=False)
class Affine:
    """x -> (x - shift) / scale; both float32, (channels, 1, 1) for pictures, (D,) otherwise."""

    shift: Tensor
    scale: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """Normalize x (M, *shape) into a new tensor."""
        return (x - self.shift).div_(self.scale)


class Split(Protocol):
    """Random access to the N samples of one split."""

    @property
    def shape(self) -> tuple[int, ...]:
        """A sample's axes."""

    @property
    def y(self) -> Tensor:
        """Targets (N,): int64 class numbers, or float32 0/1 (binary) or values (regression);
        float32 (N, K) of several labels (0/1) or values."""

    @property
    def nbytes(self) -> int:
        """Bytes of the whole split as tensors, decoded or not."""

    def __len__(self) -> int:
        """N."""

    def gather(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Samples x (M, *shape) float32 and targets y (M,) at `index` (M,) int64, on the CPU.

        Raises:
            EnvironmentFault: a picture file cannot be read; names it.
        """

    def take(self, index: Tensor) -> Self:
        """The split that has only the samples at `index` (M,), in that order."""

    def normalized(self, affine: Affine) -> Self:
        """The split with `affine` applied to its raw samples."""

    def tensor(self) -> TensorSplit:
        """The whole split in memory; raises as `gather`."""


@dataclass(frozen=True, eq=False)
class TensorSplit:
    """A split in memory: samples x (N, *shape) float32 and targets y (N,) or (N, K)."""

    x: Tensor
    y: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.x.shape[1:])

    @property
    def nbytes(self) -> int:
        return self.x.nbytes + self.y.nbytes

    def __len__(self) -> int:
        return len(self.y)

    def gather(self, index: Tensor) -> tuple[Tensor, Tensor]:
        # On the flattened samples index_select copies whole rows, 2-3 times faster than x[index].
        x = self.x.flatten(1).index_select(0, index)
        return x.view(len(index), *self.shape), self.y.index_select(0, index)

    def take(self, index: Tensor) -> TensorSplit:
        return TensorSplit(*self.gather(index))

    def normalized(self, affine: Affine) -> TensorSplit:
        return replace(self, x=affine(self.x))

    def tensor(self) -> TensorSplit:
        return self


@dataclass(frozen=True, eq=False)
class LazySplit:
    """A split of picture files, decoded to [0, 1] and then normalized when asked for.

    Attributes:
        paths: the N files.
        y: targets (N,).
        shape: (channels, height, width) that every picture is brought to.
        affine: the normalization; None leaves [0, 1].
    """

    paths: tuple[str, ...]
    y: Tensor
    shape: tuple[int, ...]
    affine: Affine | None = None

    @property
    def nbytes(self) -> int:
        return len(self) * math.prod(self.shape) * 4 + self.y.nbytes

    def __len__(self) -> int:
        return len(self.paths)

    def gather(self, index: Tensor) -> tuple[Tensor, Tensor]:
        pictures = (decode(self.paths[i], self.shape) for i in index.tolist())
        return self._batch(pictures, len(index)), self.y[index]

    def take(self, index: Tensor) -> LazySplit:
        return replace(self, paths=tuple(self.paths[i] for i in index.tolist()), y=self.y[index])

    def normalized(self, affine: Affine) -> LazySplit:
        return replace(self, affine=affine)

    def tensor(self) -> TensorSplit:
        """Decode in as many threads as there are processors; see `Split`."""
        with ThreadPoolExecutor() as pool:
            pictures = pool.map(partial(decode, shape=self.shape), self.paths)
            return TensorSplit(self._batch(pictures, len(self)), self.y)

    def _batch(self, pictures: Iterable[Tensor], count: int) -> Tensor:
        x = torch.empty(count, *self.shape)
        for row, picture in zip(x, pictures, strict=True):
            row.copy_(picture)
        x.div_(255)
        return x if self.affine is None else self.affine(x)


@dataclass(frozen=True, eq=False)
class ResizedSplit:
    """Pictures in memory that are brought to another size, and then normalized, when asked for.

    Bilinear with antialiasing, as torchvision's `resize` does.

    Attributes:
        split: the pictures as they are, (N, channels, height, width) in [0, 1].
        side: height and width that every picture is brought to.
        affine: the normalization; None leaves [0, 1].
    """

    split: TensorSplit
    side: int
    affine: Affine | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.split.shape[0], self.side, self.side)

    @property
    def y(self) -> Tensor:
        return self.split.y

    @property
    def nbytes(self) -> int:
        return len(self) * math.prod(self.shape) * 4 + self.y.nbytes

    def __len__(self) -> int:
        return len(self.split)

    def gather(self, index: Tensor) -> tuple[Tensor, Tensor]:
        x, y = self.split.gather(index)
        return self._resized(x), y

    def take(self, index: Tensor) -> ResizedSplit:
        return replace(self, split=self.split.take(index))

    def normalized(self, affine: Affine) -> ResizedSplit:
        return replace(self, affine=affine)

    def tensor(self) -> TensorSplit:
        return TensorSplit(self._resized(self.split.x), self.y)

    def _resized(self, x: Tensor) -> Tensor:
        size = (self.side, self.side)
        x = F.interpolate(x, size, mode="bilinear", align_corners=False, antialias=True)
        return x if self.affine is None else self.affine(x)


@dataclass(frozen=True, eq=False)
class Dataset:
    """A dataset, split and normalized.

    Attributes:
        name: as in `data.name`.
        train, val, test: the splits; `test` is None when there are no test data.
        task: what is learnt from it.
        classes: names by class number, or of the labels; empty for regression.
        affine: the normalization that was applied, None for none.
        columns: how a row of a table becomes a sample, as `table.Columns.plain` has it.
        fingerprint: SHA-256 of the samples and targets (first 16 hex digits) where they come from
            files of the user's, which may change; '' otherwise.
    """

    name: str
    train: Split
    val: Split
    test: Split | None
    task: Task
    classes: tuple[str, ...]
    affine: Affine | None = None
    columns: Mapping[str, Any] | None = None
    fingerprint: str = ""

    @property
    def input_shape(self) -> tuple[int, ...]:
        """A sample's axes: (channels, height, width), or (D,)."""
        return self.train.shape

    @property
    def outputs(self) -> int:
        """C, how many numbers a model must give: the classes, else one for each target."""
        if self.task == "multiclass":
            return len(self.classes)
        return self.train.y.shape[1] if self.train.y.dim() == 2 else 1

    @property
    def is_image(self) -> bool:
        """Whether samples are pictures."""
        return len(self.input_shape) == 3


# --- reading one picture ----------------------------------------------------------------------


def decode(path: str, shape: tuple[int, ...]) -> Tensor:
    """Read a picture as uint8 of `shape`, resized bilinearly when it has another size.

    Raises:
        EnvironmentFault: the file is no picture that can be read; names it.
    """
    channels, height, width = shape
    with _opened(path) as picture:
        return pixels(picture, channels, (width, height))


def pixels(picture: Image.Image, channels: int, size: tuple[int, int] | None = None) -> Tensor:
    """A picture as uint8 (channels, height, width), resized bilinearly to `size` (width, height).

    Raises:
        ValueError: its pixels have more than 8 bits a channel.
    """
    _check_depth(picture)
    picture = picture.convert("L" if channels == 1 else "RGB")
    if size is not None and picture.size != size:
        picture = picture.resize(size, Image.Resampling.BILINEAR)
    values = torch.from_numpy(np.array(picture))
    return values.view(picture.height, picture.width, -1).permute(2, 0, 1)


def probe(path: str) -> tuple[int, int, int]:
    """Shape (channels, height, width) of a picture, from its header alone.

    Raises:
        EnvironmentFault: as `decode`.
    """
    with _opened(path) as picture:
        _check_depth(picture)
        return (1 if picture.mode == "L" else 3), picture.height, picture.width


def _check_depth(picture: Image.Image) -> None:
    if picture.mode in ("I", "F") or picture.mode.startswith("I;"):
        # Pillow would silently clip these to 0..255.
        raise ValueError(f"its pixels must have 8 bits a channel, got mode {picture.mode}")


@contextmanager
def _opened(path: str) -> Iterator[Image.Image]:
    try:
        Image.init()
        # EPS is a programming language: Pillow would start Ghostscript.
        with Image.open(path, formats=[kind for kind in Image.ID if kind != "EPS"]) as picture:
            ImageOps.exif_transpose(picture, in_place=True)  # as a viewer shows it
            yield picture
    except Exception as error:  # Pillow's readers raise almost anything on a damaged file
        raise EnvironmentFault(
            f"the picture {path} cannot be read ({one_line(error)}): replace or remove it"
        ) from error
