"""`data=image_folder`: your own pictures, one folder for each class.

ROOT/train/CLASS/* and the same class folders under ROOT/val and, if there is one, ROOT/test. Files
whose names do not end as a picture's, and names that start with a dot, are skipped. Two classes
make a binary task, more a multiclass one.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image

from sweepstack.config.errors import EnvironmentFault, InputError
from sweepstack.config.schema import ImageFolder
from sweepstack.data.dataset import Dataset, LazySplit, Split, Task, probe
from sweepstack.data.splits import HELD_BYTES, STATISTICS_AT_MOST, normalized, partition

log = logging.getLogger(__name__)


def load(config: ImageFolder) -> Dataset:
    """Load the folders; samples (channels, height, width).

    Pictures are gray when the first one of every training class is, and have `image_size` or the
    size of the very first one. Up to `HELD_BYTES` they are decoded here, unless
    `placement=stream`, and the statistics come from all training pictures. Above, they are decoded
    when needed, and the statistics come from `STATISTICS_AT_MOST` of them. The placement never
    changes a number.

    Raises:
        EnvironmentFault: a folder is missing, empty or has other classes than the training
            folder, or a picture cannot be read.
        InputError: two splits name the same folder, or `validation` or `subset` do not fit.
    """
    given = {key: getattr(config, key) for key in ("train_folder", "val_folder", "test_folder")}
    places = _places(config, {key: name for key, name in given.items() if name is not None})
    classes = _classes(places["train_folder"])
    files = {key: _files(place, classes) for key, place in places.items()}
    shape = _shape(config, files["train_folder"])
    raw = _splits(config, {key: _lazy(files[key], shape) for key in files})

    small = sum(split.nbytes for split in raw) <= HELD_BYTES
    if small and config.placement != "stream":
        raw = [split.tensor() for split in raw]
    at_most = None if small else STATISTICS_AT_MOST
    task: Task = "binary" if len(classes) == 2 else "multiclass"
    return normalized(config, task, tuple(classes), *raw, at_most=at_most)


def _places(config: ImageFolder, names: dict[str, str]) -> dict[str, Path]:
    """The folder of each split, by key of the config."""
    root = Path(config.root).expanduser()
    places = {key: root / name for key, name in names.items()}
    if len({place.resolve() for place in places.values()}) < len(places):
        shown = ", ".join(f"{key}={name}" for key, name in names.items())
        raise InputError(f"the folders of data must differ from each other, got {shown}")
    for key, place in places.items():
        if not place.is_dir():
            way_out = "" if key == "train_folder" else f", or set data.{key}=null"
            raise EnvironmentFault(
                f"image_folder needs pictures at {place}/CLASS/*, there is no such folder: "
                f"set data.root and data.{key}{way_out}"
            )
    return places


def _classes(train: Path) -> list[str]:
    classes = _names(train, folders=True)
    if len(classes) < 2:
        found = f"only {classes[0]}" if classes else "none"
        raise EnvironmentFault(
            f"{train} must hold two or more class folders with pictures in them "
            f"({train}/CLASS/*), got {found}"
        )
    return classes


def _files(place: Path, classes: Sequence[str]) -> list[list[str]]:
    """Picture files of each class, sorted by name."""
    there = set(_names(place, folders=True))
    if there != set(classes):
        lacking, extra = sorted(set(classes) - there), sorted(there - set(classes))
        says = [f"lacks {', '.join(lacking)}"] * bool(lacking)
        says += [f"has {', '.join(extra)} besides"] * bool(extra)
        raise EnvironmentFault(
            f"{place} must have the class folders of the training folder, it {' and '.join(says)}"
        )
    files = []
    for name in classes:
        names = _names(place / name, folders=False)
        pictures = [n for n in names if Path(n).suffix.lower() in Image.registered_extensions()]
        if below := _names(place / name, folders=True):
            log.warning("%s: pictures in its folders are not read: %s", place / name, *below[:1])
        if not pictures:
            raise EnvironmentFault(f"{place / name} must hold at least one picture, it has none")
        files.append([str(place / name / picture) for picture in pictures])
    return files


def _names(place: Path, folders: bool) -> list[str]:
    return sorted(
        entry.name
        for entry in place.iterdir()
        if entry.is_dir() == folders and not entry.name.startswith(".")
    )


def _shape(config: ImageFolder, train: list[list[str]]) -> tuple[int, int, int]:
    """The shape of all pictures, from the first training picture of each class."""
    shapes = [probe(pictures[0]) for pictures in train]
    channels = max(shape[0] for shape in shapes)
    _, height, width = shapes[0]
    if config.image_size is not None:
        height = width = config.image_size
    return channels, height, width


def _lazy(files: list[list[str]], shape: tuple[int, ...]) -> LazySplit:
    """A raw split of the files of each class."""
    dtype = torch.float32 if len(files) == 2 else torch.int64
    counts = torch.tensor([len(pictures) for pictures in files])
    y = torch.arange(len(files), dtype=dtype).repeat_interleave(counts)
    paths = tuple(path for pictures in files for path in pictures)
    return LazySplit(paths, y, shape)


def _splits(config: ImageFolder, raw: dict[str, LazySplit]) -> list[Split]:
    """Training, validation and, if there is one, test split; still raw."""
    everything = raw["train_folder"]
    held_out = {} if "val_folder" in raw else {"validation": config.validation}
    train, *val = (everything.take(part) for part in partition(config, len(everything), held_out))
    given = [raw[key] for key in ("val_folder", "test_folder") if key in raw]
    return [train, *val, *given]
