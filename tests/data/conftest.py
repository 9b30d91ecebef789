"""Configs, folders of pictures and made-up datasets that the tests of the data package share."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sweepstack import data
from sweepstack.config import schema

SHARED = Path(__file__).parents[3] / "shared" / "data"

_COMMON: dict[str, Any] = {
    "split_seed": 0,
    "normalization": "standardize",
    "minmax_range": (0.0, 1.0),
    "mean": None,
    "std": None,
    "subset": None,
    "order_seed": None,
    "placement": "auto",
    "workers": 0,
    "validation": 0.25,
}
_OWN: dict[str, dict[str, Any]] = {
    "digits": {"test": 0.2, "image_size": None},
    "quadratic": {
        "test": 0.2,
        "samples": 400,
        "noise_std": 0.1,
        "range": (-1.0, 1.0),
        "noise": "proportional",
        "clean_validation": False,
    },
    "image_folder": {
        "root": "data",
        "train_folder": "train",
        "val_folder": None,
        "test_folder": None,
        "image_size": None,
    },
}
_FILES = {"train": "???", "val": None, "test": None, "task": "auto"}
_OWN["arrays"] = {**_FILES, "image_size": None}
_OWN["table"] = {**_FILES, "target": ("y",), "exclude": ()}
_OWN["huggingface"] = {**_FILES, "train": "train", "image_size": None}
_OWN["custom"] = {"val": None, "test": None, "task": "auto", "image_size": None}
_TORCHVISION = {"root": "data", "download": False, "image_size": None}

Configure = Callable[..., Any]


@pytest.fixture(autouse=True)
def fresh_cache():
    """Every test loads for itself."""
    data._load.cache_clear()


@pytest.fixture
def configure() -> Configure:
    """`configure(name, **changes)`: the config of a dataset, small defaults for the rest."""

    def make(name: str, **changes: Any) -> schema.Data:
        values = {**_COMMON, **_OWN.get(name, _TORCHVISION), "name": name, **changes}
        return schema.OPTIONS["data"][name](**values)

    return make


@pytest.fixture
def shared() -> Callable[[str], Path]:
    """`shared(folder)`: where real data lie beside the checkout; skips when they do not."""

    def find(folder: str) -> Path:
        if not (SHARED / folder).is_dir():
            pytest.skip(f"needs {folder} in the folder shared/data beside the checkout")
        return SHARED

    return find


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """ROOT with train/ and val/ of 5 and 3 random 6x4 color pictures of cats and of dogs."""
    rng = np.random.default_rng(0)
    for folder, count in (("train", 5), ("val", 3)):
        for name in ("cat", "dog"):
            place = tmp_path / folder / name
            place.mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 256, (4, 6, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(place / f"{i}.png")
    return tmp_path


@pytest.fixture
def mnist(tmp_path: Path) -> Path:
    """ROOT with a made-up MNIST of 40 training and 20 test pictures."""
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for part, count in (("train", 40), ("t10k", 20)):
        x = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        y = np.arange(count, dtype=np.uint8) % 10
        for kind, array in (("images-idx3", x), ("labels-idx1", y)):
            header = bytes((0, 0, 8, array.ndim)) + np.array(array.shape, ">u4").tobytes()
            (raw / f"{part}-{kind}-ubyte").write_bytes(header + array.tobytes())
    return tmp_path
