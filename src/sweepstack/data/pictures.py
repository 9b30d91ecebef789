"""Reading one picture, a uint8 tensor (channels, height, width): 1 channel is gray, 3 are RGB."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sweepstack.config.errors import EnvironmentFault, one_line


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
            yield picture
    except Exception as error:  # Pillow's readers raise almost anything on a damaged file
        raise EnvironmentFault(
            f"the picture {path} cannot be read ({one_line(error)}): replace or remove it"
        ) from error
