"""The small convolutional network of PyTorch courses: conf/model/convnet.yaml.

Built by `models.build`. Notation: B samples, K channels, h and w height and width in pixels, C
outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F

from sweepstack.config import schema
from sweepstack.config.errors import InputError
from sweepstack.models import layers
from sweepstack.models.layers import BatchNorm, Dropout, optional
from sweepstack.models.mlp import Mlp


class ConvNet(nn.Module):
    """`depth` times convolution, (batch norm), activation, 2x2 max pool, (dropout of channels);
    then an `Mlp` with the hidden layers.

    The convolutions keep the size of the picture and have width, 2·width, 4·width, ... channels.

    Args:
        config: width, depth, kernel_size, hidden and activation.
        input_shape: (K, h, w).
        outputs: C.
        dropout: whether there are dropout layers, with a p per trial.
        batch_norm: whether there are batch norms; convolutions have no bias then, see `Mlp`.

    Raises:
        InputError: samples that are no pictures, an even kernel, too many pools for the picture.
    """

    def __init__(
        self,
        config: schema.ConvNet,
        input_shape: Sequence[int],
        outputs: int,
        dropout: bool,
        batch_norm: bool,
    ):
        super().__init__()
        channels, height, width = picture_shape("convnet", input_shape)
        _check(config, height, width)
        sizes = [channels, *(config.width * 2**i for i in range(config.depth))]
        self.convs = nn.ModuleList(
            nn.Conv2d(
                a, b, config.kernel_size, padding=config.kernel_size // 2, bias=not batch_norm
            )
            for a, b in pairwise(sizes)
        )
        self.norms = nn.ModuleList(optional(BatchNorm(size), batch_norm) for size in sizes[1:])
        self.dropouts = nn.ModuleList(
            optional(Dropout(None, channels=True), dropout) for _ in sizes[1:]
        )
        self.activation = layers.activation(config.activation)
        pooled = (sizes[-1], height >> config.depth, width >> config.depth)
        self.head = Mlp(pooled, outputs, config.hidden, config.activation, dropout, batch_norm)

    def forward(self, x: Tensor) -> Tensor:
        """From x (B, K, h, w) to (B, C)."""
        for conv, norm, dropout in zip(self.convs, self.norms, self.dropouts, strict=True):
            x = dropout(F.max_pool2d(self.activation(norm(conv(x))), 2))
        output: Tensor = self.head(x)
        return output


def picture_shape(model: str, input_shape: Sequence[int]) -> tuple[int, int, int]:
    """Channels, height and width of a sample.

    Raises:
        InputError: samples that are no pictures.
    """
    if len(input_shape) != 3:
        raise InputError(
            f"model={model} needs pictures (channels, height, width), got samples of shape "
            f"{tuple(input_shape)}; model=mlp takes any shape"
        )
    channels, height, width = input_shape
    return channels, height, width


def _check(config: schema.ConvNet, height: int, width: int) -> None:
    mistakes = []
    if config.kernel_size % 2 == 0:
        mistakes.append(f"model.kernel_size must be odd, got {config.kernel_size}")
    deepest = min(height, width).bit_length() - 1
    if config.depth > deepest:
        mistakes.append(
            f"model.depth must be <= {deepest} for pictures of {height}x{width}, got {config.depth}"
        )
    if mistakes:
        raise InputError(mistakes)
