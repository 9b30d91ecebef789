"""Datasets: `load(config.data)` reads, splits and normalizes what `data.name` says.

`dataset.py` says what the sources return, `batches.py` brings it to the training loop.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

from sweepstack.config import schema
from sweepstack.config.errors import InputError, nearest
from sweepstack.data import bundled, image_folder, torchvision_sets
from sweepstack.data.dataset import Dataset


def load(config: schema.Data) -> Dataset:
    """Load a dataset; the last two are kept, so that a sweep loads its data once.

    Raises:
        InputError: the config contradicts itself or does not fit the data.
        EnvironmentFault: the data are missing, damaged or could not be fetched.
    """
    # Batch order and worker processes come later: they change no sample.
    return _load(replace(config, order_seed=None, workers=0))


@lru_cache(maxsize=2)
def _load(config: schema.Data) -> Dataset:
    if mistakes := config.mistakes():
        raise InputError(mistakes)
    match config:
        case schema.Digits():
            return bundled.load_digits(config)
        case schema.Torchvision():
            return torchvision_sets.load(config)
        case schema.ImageFolder():
            return image_folder.load(config)
        case schema.Quadratic():
            return bundled.load_quadratic(config)
    known = schema.OPTIONS["data"]
    raise InputError(
        f"data.name must be one of {', '.join(known)}, got '{config.name}'"
        f"{nearest(config.name, known)}"
    )
