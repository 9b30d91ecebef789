"""Reading one picture file. Called by `dataset.LazySplit` and `image_folder.py`.

A picture is a uint8 tensor (channels, height, width); 1 channel is gray, 3 are red, green, blue.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from iolaus.errors import EnvironmentFault, one_line


def decode(path: str, shape: tuple[int, ...]) -> Tensor:
    """Read a picture as uint8 of `shape`, resized bilinearly when it has another size.

    Raises:
        EnvironmentFault: the file is no picture that can be read; names it.
    """
    channels, height, width = shape
    with _opened(path) as picture:
        picture = picture.convert("L" if channels == 1 else "RGB")
        if picture.size != (width, height):
            picture = picture.resize((width, height), Image.Resampling.BILINEAR)
        return torch.from_numpy(np.array(picture)).reshape(height, width, channels).permute(2, 0, 1)


def probe(path: str) -> tuple[int, int, int]:
    """Shape (channels, height, width) of a picture, from its header alone.

    Raises:
        EnvironmentFault: as `decode`.
    """
    with _opened(path) as picture:
        return (1 if picture.mode == "L" else 3), picture.height, picture.width


@contextmanager
def _opened(path: str) -> Iterator[Image.Image]:
    try:
        with Image.open(path) as picture:
            if picture.mode in ("I", "F") or picture.mode.startswith("I;"):
                # Pillow would clip these to 0..255 without a word.
                raise ValueError(f"its pixels must have 8 bits a channel, got mode {picture.mode}")
            yield picture
    except Exception as error:  # Pillow's readers raise almost anything on a damaged file
        raise EnvironmentFault(
            f"the picture {path} cannot be read ({one_line(error)}): replace or remove it"
        ) from error
