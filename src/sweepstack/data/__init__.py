"""Datasets: `load(config.data)` reads, splits and normalizes what `data.name` says.

builtin, image_folder, arrays, table   the sources; targets: what is learnt from one's own data
dataset    what they return: splits with random access to their samples
splits     who is held out, and normalization
batches    brings splits to the training loop
streams    random draws that depend on a trial's seed alone
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from sweepstack.config import schema
from sweepstack.config.errors import InputError
from sweepstack.data import builtin, image_folder
from sweepstack.data.dataset import Dataset

Stamp = tuple[tuple[str, int, int], ...]


def load(config: schema.Data, trust: Sequence[str] = ()) -> Dataset:
    """Load a dataset; the last two are kept, so that a sweep loads its data once.

    Args:
        config: which.
        trust: packages that `data._target_` may name.

    Raises:
        InputError: the config contradicts itself or does not fit the data.
        EnvironmentFault: the data are missing, damaged or could not be fetched.
    """
    # Batch order and worker processes come later: they change no sample.
    trusted = tuple(trust) if isinstance(config, schema.CustomData) else ()
    return _load(replace(config, order_seed=None, workers=0), trusted, stamp(config))


def stamp(config: schema.Data) -> Stamp:
    """When the user's files were written, and their sizes: a changed file is read again."""
    if not isinstance(config, schema.Arrays | schema.Table):
        return ()
    found = []
    for name in (config.train, config.val, config.test):
        with suppress(OSError):  # `load` says what is missing
            status = Path(name).expanduser().stat() if isinstance(name, str) else None
            found += [(str(name), status.st_mtime_ns, status.st_size)] if status else []
    return tuple(found)


@lru_cache(maxsize=2)
def _load(config: schema.Data, trust: tuple[str, ...], _stamp: Stamp) -> Dataset:
    if mistakes := config.mistakes():
        raise InputError(mistakes)
    match config:
        case schema.Digits():
            return builtin.load_digits(config)
        case schema.Torchvision():
            return builtin.load_torchvision(config)
        case schema.ImageFolder():
            return image_folder.load(config)
        case schema.Quadratic():
            return builtin.load_quadratic(config)
    from sweepstack.data import arrays, table

    if isinstance(config, schema.Table):
        return table.load(config)
    assert isinstance(config, schema.Own)
    return arrays.load(config, trust)
