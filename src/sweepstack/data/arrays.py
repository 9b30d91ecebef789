"""`data=arrays`, `data=custom` and `data=huggingface`: samples and targets of your own.

All come down to raw samples x (N, ...) and targets y (N,) or (N, K) of each split; `targets.py`
says what is learnt from them.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import pickle
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sweepstack.config import schema, trust
from sweepstack.config.errors import (
    EnvironmentFault,
    InputError,
    contained,
    nearest,
    one_line,
    reason,
)
from sweepstack.data import streams
from sweepstack.data.dataset import Dataset, TensorSplit, pixels
from sweepstack.data.splits import deal, normalized
from sweepstack.data.targets import Array, Targets, check_fine, checked, warn_unscaled

Raw = tuple[Array, Array | None]

_KINDS = (".npz", ".npy", ".pt", ".safetensors")
_CHANNELS = (1, 3, 4)


def load(config: schema.Own, trusted: Sequence[str] = ()) -> Dataset:
    """Load the splits; samples as `samples` says.

    Raises:
        EnvironmentFault: a file is missing or damaged, or a package that reads it is.
        InputError: what is read does not fit the config, or is not trusted.
    """
    classes: Sequence[str] = ()
    if isinstance(config, schema.Arrays):
        raw = {split: read(path) for split, path in places(config).items()}
    elif isinstance(config, schema.CustomData):
        raw, classes = _custom(config, trusted)
    else:
        assert isinstance(config, schema.HuggingFace)
        raw, classes = _saved(config)
    return _dataset(config, raw, classes)


def _dataset(config: schema.Own, raw: Mapping[str, Raw], classes: Sequence[str]) -> Dataset:
    x, y = {}, {}
    for split, (inputs, targets) in raw.items():
        x[split] = samples(inputs, f"x of {_named(config, split)}")
        y[split] = checked(targets, len(inputs), _named(config, split))
        if x[split].shape[1:] != x["train"].shape[1:]:
            raise InputError(
                f"samples of {_named(config, split)} must have the shape of data.train's, "
                f"{tuple(x['train'].shape[1:])}, got {tuple(x[split].shape[1:])}"
            )
    side = getattr(config, "image_size", None)
    if side is not None and x["train"].dim() != 4:
        raise InputError(
            f"data.image_size must be null for samples of shape {tuple(x['train'].shape[1:])}, "
            f"which are no pictures (channels, height, width), got {side}"
        )
    if x["train"].dim() != 4:
        check_fine(raw["train"][0].reshape(len(x["train"]), -1), f"x of {_named(config, 'train')}")
    rule = Targets.of(y["train"], config.task, f"y of {_named(config, 'train')}", classes)
    whole = {s: TensorSplit(x[s], rule.tensor(y[s], f"y of {_named(config, s)}")) for s in x}
    parts = {s: whole["train"].take(i) for s, i in deal(config, len(x["train"]), raw).items()}
    if rule.task == "regression":
        warn_unscaled(parts.get("train", whole["train"]).y)
    order = [s for s in ("train", "val", "test") if s in parts or s in whole]
    splits = [parts[s] if s in parts else whole[s] for s in order]
    found = normalized(config, rule.task, rule.classes, *splits)
    return replace(found, fingerprint=fingerprint(splits))


def places(config: schema.Arrays | schema.Table) -> dict[str, Path]:
    """The files of train and, where they have their own, val and test.

    Raises:
        EnvironmentFault: one does not exist.
        InputError: two splits name the same file.
    """
    named = {"train": config.train, "val": config.val, "test": config.test}
    found = {s: Path(n).expanduser() for s, n in named.items() if isinstance(n, str)}
    for split, path in found.items():
        there = path.exists()
        if not path.is_file():
            what = "is not a file" if there else "does not exist"
            raise EnvironmentFault(f"data.{split} must name a file, '{path}' {what}")
    if len({path.resolve() for path in found.values()}) < len(found):
        shown = ", ".join(f"data.{split}={path}" for split, path in found.items())
        raise InputError(f"the files of the splits must differ from each other, got {shown}")
    return found


def _named(config: schema.Own, split: str) -> str:
    """A split as an error names it."""
    name = getattr(config, split, None)
    return f"data.{split}={name}" if isinstance(config, schema.Arrays) else f"the {split} split"


def fingerprint(splits: Sequence[TensorSplit]) -> str:
    """SHA-256 of samples and targets, first 16 hex digits."""
    digest = hashlib.sha256()
    for split in splits:
        for tensor in (split.x, split.y):
            digest.update(f"{tuple(tensor.shape)}{tensor.dtype}".encode())
            digest.update(tensor.contiguous().numpy().data)
    return digest.hexdigest()[:16]


# --- files ---------------------------------------------------------------------------------------


def read(path: Path) -> Raw:
    """x and y of a file, y None where it has none. Nothing is unpickled.

    Raises:
        InputError: another kind of file, or it has no x.
        EnvironmentFault: it cannot be read, or needs a package that is not installed.
    """
    kind = path.suffix.lower()
    if kind not in _KINDS:
        raise InputError(
            f"a file of arrays must end in {', '.join(_KINDS)}, got '{path.name}'"
            f"{'; data=table reads it' if kind in ('.csv', '.parquet') else nearest(kind, _KINDS)}"
        )
    if kind == ".safetensors" and find_spec("safetensors") is None:
        raise EnvironmentFault(f"{path} needs the package safetensors: pip install safetensors")
    try:
        found = _content(path, kind)
        named = {str(name).lower(): value for name, value in found.items()}
        raw = {name: _array(named[name]) for name in ("x", "y") if name in named}
    except Exception as error:  # whatever a reader raises on a damaged file
        if isinstance(error, pickle.UnpicklingError) or "allow_pickle" in str(error):
            raise InputError(
                f"{path} must hold plain arrays or tensors, it holds Python objects, which are not "
                "read: save numbers as float and strings by astype(str)"
            ) from None
        raise EnvironmentFault(
            f"{path} cannot be read ({one_line(error) or type(error).__name__})"
        ) from error
    if "x" not in raw:
        has = ", ".join(map(str, list(found)[:8])) or "nothing"
        raise InputError(f"{path} must hold arrays named x and y, it holds {has}")
    return raw["x"], raw.get("y")


def _content(path: Path, kind: str) -> Mapping[Any, Any]:
    if kind == ".npz":
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            return {name: file[name] for name in file.files if name.lower() in ("x", "y")} or (
                dict.fromkeys(file.files)
            )
    if kind == ".npy":
        beside = _beside(path)
        found = {"x": np.load(path, allow_pickle=False)}
        return found | ({"y": np.load(beside, allow_pickle=False)} if beside else {})
    if kind == ".pt":
        loaded = torch.load(path, weights_only=True, map_location="cpu")
        if isinstance(loaded, list | tuple) and len(loaded) == 2:
            return dict(zip("xy", loaded, strict=True))
        return loaded if isinstance(loaded, Mapping) else {"x": loaded}
    from safetensors.torch import load_file

    return cast(Mapping[Any, Any], load_file(path))


def _beside(path: Path) -> Path | None:
    """y_train.npy beside x_train.npy: the name whose part x, alone between signs, is y."""
    parts = re.split(r"[-_.]", path.stem)
    at = 0
    for part in parts:
        if part in ("x", "X"):
            names = (f"{path.stem[:at]}{y}{path.stem[at + 1 :]}{path.suffix}" for y in "yY")
            return next((p for p in map(path.with_name, names) if p.is_file()), None)
        at += len(part) + 1
    return None


def _array(value: Any) -> Array:
    if isinstance(value, Tensor):
        value = value.detach().cpu()
        value = (value.float() if value.dtype == torch.bfloat16 else value).numpy()
    return np.asarray(value)


# --- samples -------------------------------------------------------------------------


def samples(x: Array, what: str) -> Tensor:
    """Raw samples as float32 (N, *shape).

    (N,) becomes (N, 1). Whole numbers with three axes per sample are pictures in 0..255, divided
    by 255; (N, height, width, channels) of 1, 3 or 4 channels, whole numbers or square, become
    (N, channels, height, width), and so does (N, height, width) of unsigned bytes.

    Raises:
        InputError: no numbers, none at all, or some that are not finite.
    """
    if x.dtype.kind not in "buif" or not x.size or not x.ndim:
        kind = f"type {x.dtype}" if x.size and x.ndim else f"shape {x.shape}"
        raise InputError(f"{what} must be an array (N, ...) of real numbers, got {kind}")
    if x.ndim == 1:
        x = x[:, None]
    if x.dtype == np.uint8 and x.ndim == 3:
        x = x[:, None]
    whole = x.ndim == 4 and x.dtype.kind in "iu"
    last = x.ndim == 4 and x.shape[3] in _CHANNELS and x.shape[1] not in _CHANNELS
    if last and (whole or x.shape[1] == x.shape[2]):
        x = x.transpose(0, 3, 1, 2)
    if whole and not 0 <= int(x.min()) <= int(x.max()) <= 255:
        raise InputError(
            f"{what} must hold pictures of whole numbers in 0..255, got {x.min()}..{x.max()}"
        )
    with np.errstate(over="ignore"):
        found = torch.from_numpy(np.array(x, dtype=np.float32, order="C"))
    strange = int((~found.isfinite()).sum())
    if strange:
        raise InputError(f"{what} must hold finite float32 numbers, {strange:,} of them are not")
    return found.div_(255) if whole else found


# --- a torch Dataset of the user's ----------------------------------------------------------------


def _custom(
    config: schema.CustomData, trusted: Sequence[str]
) -> tuple[dict[str, Raw], Sequence[str]]:
    """Raw splits of `data._target_`, and the names of its classes if it has some."""
    given = {"train": {}} | {
        split: json.loads(text)
        for split in ("val", "test")
        if isinstance(text := getattr(config, split), str)
    }
    arguments = json.loads(config.arguments)
    raw, classes = {}, list[str]()
    for split, changed in given.items():
        if not isinstance(changed, Mapping):
            raise InputError(f"data.{split} must hold the arguments of that split, got {changed}")
        made = _made(config.target, {**arguments, **changed}, trusted)
        # What the dataset draws from torch's generator follows data.split_seed.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(streams.derive(config.split_seed, 0))
            raw[split] = _items(made, f"data._target_ '{config.target}' ({split})")
        names = getattr(made, "classes", ()) if split == "train" else classes
        if isinstance(names, list | tuple) and all(isinstance(name, str) for name in names):
            classes = list(names)
    return raw, classes


def _saved(config: schema.HuggingFace) -> tuple[dict[str, Raw], Sequence[str]]:
    """Raw splits of a folder that the package datasets wrote, and the names of the classes."""
    if find_spec("datasets") is None:
        raise EnvironmentFault("data=huggingface needs the package datasets: pip install datasets")
    folder = Path(config.path).expanduser().absolute()
    if not folder.is_dir():
        raise EnvironmentFault(f"data.path must name a folder, '{config.path}' is none")
    import datasets

    try:
        found = datasets.load_from_disk(str(folder))
    except Exception as error:  # whatever stands in the folder
        raise EnvironmentFault(f"{folder} cannot be read ({one_line(error)})") from error
    parts = found if isinstance(found, datasets.DatasetDict) else {"train": found}
    named = {split: getattr(config, split) for split in ("train", "val", "test")}
    raw, classes = {}, list[str]()
    for split, name in named.items():
        if not isinstance(name, str):
            continue
        if name not in parts:
            raise InputError(f"data.{split} must be one of {', '.join(parts)}, got '{name}'")
        pairs = _Pairs(parts[name], config)
        raw[split] = _items(pairs, f"split '{name}' of {folder}")
        classes = pairs.classes if split == "train" else classes
    return raw, classes


class _Pairs:
    """The rows of a split as (x, y): its one input column and the target."""

    def __init__(self, rows: Any, config: schema.HuggingFace):
        kinds = {name: type(kind).__name__ for name, kind in rows.features.items()}
        labels = [name for name, kind in kinds.items() if kind == "ClassLabel"]
        target = config.target or (labels[0] if len(labels) == 1 else None)
        if target not in kinds:
            raise InputError(
                f"data.target must be a column of {config.path} ({', '.join(kinds)}), got "
                f"{target or 'null'}"
            )
        inputs = [name for name in kinds if name != target]
        if len(inputs) != 1:
            raise InputError(
                f"{config.path} must have one column besides '{target}', of pictures or lists of "
                f"numbers, got {', '.join(inputs) or 'none'}: select_columns keeps some, and "
                "data=table reads what to_parquet writes"
            )
        self.rows, self.input, self.target = rows, inputs[0], target
        self.classes = list(getattr(rows.features[target], "names", ()))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        row = self.rows[index]
        return row[self.input], row[self.target]


def _made(target: str, arguments: Mapping[str, Any], trusted: Sequence[str]) -> Any:
    with _theirs(f"data._target_ '{target}' cannot be built"):
        make: Callable[..., Any] = trust.locate(target, trusted, arguments, "data._target_")
        named = inspect.signature(make).parameters
        if not any(p.kind is p.VAR_KEYWORD for p in named.values()):
            unknown = [name for name in arguments if name not in named]
            if unknown:
                raise InputError(
                    [f"unknown key 'data.{n}' of '{target}'{nearest(n, named)}" for n in unknown]
                )
        made = make(**arguments)
    if not (hasattr(made, "__len__") and hasattr(made, "__getitem__")):
        raise InputError(
            f"data._target_ '{target}' must be a map-style Dataset, with __len__ and __getitem__, "
            f"got {type(made).__name__}"
        )
    return made


@contextmanager
def _theirs(what: str) -> Iterator[None]:
    """Run the user's code, whose errors become a line that begins with `what`."""
    try:
        with contained():
            yield
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{what}: {reason(error)}") from error


def _items(dataset: Any, what: str) -> Raw:
    """All samples and targets of a map-style dataset, each read once, in order.

    Raises:
        InputError: its code raises, or what it gives is no (x, y), has another shape than the
            first one's, or differs from call to call.
    """
    with _theirs(f"{what} raises"):
        count = len(dataset)
        if count < 1:
            raise InputError(f"{what} must hold samples, it is empty")
        given = dataset[0]
        if not isinstance(given, list | tuple) or len(given) != 2:
            raise InputError(f"{what} must give pairs (x, y), got {type(given).__name__}")
        like = given[0] if isinstance(given[0], Image.Image) else None
        first, again = _numbers(given[0], like), _numbers(dataset[0][0], like)
        if not np.array_equal(first, again, equal_nan=first.dtype.kind == "f"):
            raise InputError(
                f"{what} must give the same sample each time, as each is read once, index 0 "
                "differs: augment by regularization.* instead"
            )
        x, y = np.empty((count, *first.shape), first.dtype), []
        for index in range(count):
            inputs, target = dataset[index]
            inputs = _numbers(inputs, like)
            if inputs.shape != first.shape:
                raise InputError(
                    f"{what} must give samples of one shape, {first.shape} at 0, {inputs.shape} "
                    f"at {index}"
                )
            x[index] = inputs
            y.append(_array(target))
        return x, np.stack(y)


def _numbers(x: Any, like: Image.Image | None) -> Array:
    """A sample; of a picture its bytes (channels, height, width), in the size of `like`."""
    if not isinstance(x, Image.Image) or like is None:
        return _array(x)
    found: Array = pixels(x, 1 if like.mode in ("1", "L") else 3, like.size).numpy()
    return found
