"""From raw samples to splits: hold out validation and test, keep a subset, normalize.

The random order that decides who goes where is `torch.randperm` of a generator seeded with
`data.split_seed`. Test samples are taken first, then validation, then the training subset, each
from the front of what is left: another subset changes neither test nor validation.

Notation: M samples of a chunk, D features.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from typing import TypeVar

import torch
from torch import Tensor

from sweepstack.config.errors import InputError
from sweepstack.config.schema import Data, Own
from sweepstack.data.dataset import Affine, Dataset, ResizedSplit, Split, Task, TensorSplit

S = TypeVar("S", bound=Split)

HELD_BYTES = 2**30
"""Decoded or resized splits are held in memory up to this size, all together."""
STATISTICS_AT_MOST = 2000
"""Training pictures that give the statistics of a larger dataset."""
_CHUNK = 2**22
"""Numbers (samples times features) that the statistics take at once: 32 MiB as float64."""


def partition(config: Data, total: int, held_out: Mapping[str, float]) -> list[Tensor]:
    """Deal `total` samples out, in an order drawn from `split_seed`.

    Args:
        config: `split_seed` and `subset` are read.
        total: number of samples.
        held_out: key of `data` -> share (below 1) or number of the samples still left there.

    Returns:
        int64 index tensors: the training samples, then one for each entry of `held_out`.

    Raises:
        InputError: an entry holds out nothing or leaves nothing to train on, or `subset` asks
            for more than is left.
    """
    order = torch.randperm(total, generator=torch.Generator().manual_seed(config.split_seed))
    parts = []
    for key, amount in held_out.items():
        left = len(order)
        count = round(amount * left) if amount < 1 else int(amount)
        if not 0 < count < left:
            rule = "leave at least one training sample" if count else "hold out at least one sample"
            raise InputError(f"data.{key} must {rule}, got {amount:.15g} of {left}")
        parts.append(order[:count])
        order = order[count:]
    if config.subset is not None and config.subset > len(order):
        raise InputError(
            f"data.subset must be <= the {len(order)} training samples, got {config.subset}"
        )
    return [order[: config.subset], *parts]


def deal(config: Own, total: int, given: Collection[str]) -> dict[str, Tensor]:
    """Deal the samples of the training file out to the splits that have no file of their own.

    Args:
        given: the splits (val, test) that have one.

    Returns:
        int64 indices of train and, if dealt, val and test.

    Raises:
        InputError: as `partition`.
    """
    held_out = {"test": config.test} if isinstance(config.test, float) else {}
    held_out |= {} if "val" in given else {"validation": config.validation}
    parts = partition(config, total, held_out)
    names = ["train", *("val" if key == "validation" else key for key in held_out)]
    return dict(zip(names, parts, strict=True))


def normalized(
    config: Data,
    task: Task,
    classes: tuple[str, ...],
    train: Split,
    val: Split,
    *test: Split,
    at_most: int | None = None,
) -> Dataset:
    """The dataset of raw splits, normalized; see `normalize`.

    Pictures in memory are resized to `data.image_size`: all at once up to `HELD_BYTES`, above that
    when needed, and then `STATISTICS_AT_MOST` training pictures give the statistics.

    Raises:
        InputError: see `normalize`.
    """
    raw: list[Split] = [train, val, *test]
    side = getattr(config, "image_size", None)
    if side is not None and raw[0].shape[1:] != (side, side):
        raw = [ResizedSplit(s, side) if isinstance(s, TensorSplit) else s for s in raw]
        if sum(split.nbytes for split in raw) <= HELD_BYTES:
            raw = [split.tensor() for split in raw]
        else:
            at_most = STATISTICS_AT_MOST
    affine, splits = normalize(config, *raw, at_most=at_most)
    last = splits[2] if test else None
    return Dataset(config.name, splits[0], splits[1], last, task, classes, affine)


def normalize(
    config: Data, train: S, *others: S, at_most: int | None = None
) -> tuple[Affine | None, list[S]]:
    """Normalize all splits by the statistics of the raw training split.

    Args:
        config: `normalization`, `minmax_range`, `mean` and `std` are read.
        train, others: raw splits; pictures in [0, 1].
        at_most: take the statistics from the first so many training samples, which `partition`
            left in random order; None takes all.

    Returns:
        The map that was applied (None for none), and the normalized splits.

    Raises:
        InputError: `mean` or `std` have not one number, nor one for each channel or feature.
    """
    splits = [train, *others]
    if config.normalization == "none":
        return None, splits
    if config.normalization == "fixed":
        affine = _fixed(config, train.shape)
    else:
        affine = _fit(config, train.shape, _chunks(train, at_most))
    return affine, [split.normalized(affine) for split in splits]


def _fixed(config: Data, shape: tuple[int, ...]) -> Affine:
    """(x - mean) / std with the numbers of the config, one or one for each channel or feature."""
    given = {"mean": config.mean or (), "std": config.std or ()}
    kind = "channel" if len(shape) == 3 else "feature"
    mistakes = [
        f"data.{key} must have 1 number or {shape[0]}, one for each {kind} of {config.name}, "
        f"got {len(numbers)}"
        for key, numbers in given.items()
        if len(numbers) not in (1, shape[0])
    ]
    if mistakes:
        raise InputError(mistakes)
    broadcast = (shape[0], 1, 1) if len(shape) == 3 else (shape[0],)
    full = [torch.tensor(numbers).expand(shape[0]).reshape(broadcast) for numbers in given.values()]
    return Affine(*(tensor.clone() for tensor in full))


def _chunks(split: Split, at_most: int | None) -> Iterator[Tensor]:
    index = torch.arange(len(split))[:at_most]
    rows = max(1, _CHUNK // math.prod(split.shape))
    for start in range(0, len(index), rows):
        # As a split of its own, so that pictures are decoded in threads.
        yield split.take(index[start : start + rows]).tensor().x


def _fit(config: Data, shape: tuple[int, ...], chunks: Iterator[Tensor]) -> Affine:
    """The affine map of `data.normalization`, in one pass over training samples (M, *shape).

    A picture's statistics are per channel, any other sample's per feature.
    - standardize: shift = mean, scale = standard deviation (divided by N, not N - 1).
    - global: likewise, with one mean and deviation of all pixels and channels, or features.
    - minmax to [l, u]: scale = (max - min) / (u - l), shift = min - l * scale, so that training
      samples lie in [l, u] and others may fall outside.

    A constant channel or feature is divided by 1, or by 1 / (u - l) for minmax. Sums are kept in
    float64, so that the result does not depend on how the samples are cut into chunks.
    """
    axes = [0, 2, 3] if len(shape) == 3 else [0]
    count, total, squares = 0, torch.zeros(()).double(), torch.zeros(()).double()
    lowest, highest = torch.tensor(torch.inf), torch.tensor(-torch.inf)
    for chunk in chunks:
        wide = chunk.double()
        total = total + wide.sum(axes)
        count += chunk.numel() // total.numel()
        squares = squares + wide.square_().sum(axes)
        lowest = torch.minimum(lowest, chunk.amin(axes))
        highest = torch.maximum(highest, chunk.amax(axes))
    if config.normalization == "global":
        count, size = count * total.numel(), total.shape
        total, squares = (sums.sum().expand(size) for sums in (total, squares))
        lowest, highest = lowest.amin().expand(size), highest.amax().expand(size)
    span = highest.double() - lowest.double()
    if config.normalization in ("standardize", "global"):
        shift = total / count
        scale = (squares / count - shift.square()).clamp_min(0).sqrt()
        # Rounding can leave a constant feature a tiny deviation: the span alone tells.
        scale = scale.where((span > 0) & (scale > 0), 1)
    else:
        low, high = config.minmax_range
        scale = span.where(span > 0, 1) / (high - low)
        shift = lowest.double() - low * scale
    broadcast = (-1, 1, 1) if len(shape) == 3 else shape
    return Affine(shift.float().reshape(broadcast), scale.float().reshape(broadcast))
