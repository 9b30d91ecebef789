"""The networks of conf/model/mlp.yaml, convnet.yaml and resnet.yaml, built by `models.build`.

Notation: B samples, H units of a hidden layer, K channels, h and w height and width in pixels,
C outputs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F

from sweepstack.config import schema
from sweepstack.config.errors import InputError
from sweepstack.config.schema import Activation
from sweepstack.models import layers
from sweepstack.models.layers import BatchNorm, Dropout, optional

MAX_STAGES = 3


class Mlp(nn.Module):
    """Hidden layers of linear, (batch norm), activation, (dropout); then a plain linear output.

    Args:
        input_shape: shape of a sample, flattened here.
        outputs: C.
        hidden: H of each hidden layer; empty gives a linear model.
        activation: of the hidden layers.
        dropout: whether there are dropout layers, with a p per trial.
        batch_norm: whether there are batch norms; the layers before them have no bias then,
            which the norm would take out again (its gradient is rounding noise, and Adam would
            turn that into steps of full length).
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        outputs: int,
        hidden: Sequence[int],
        activation: Activation,
        dropout: bool,
        batch_norm: bool,
    ):
        super().__init__()
        sizes = [math.prod(input_shape), *hidden]
        self.hidden = nn.ModuleList(
            nn.Linear(a, b, bias=not batch_norm) for a, b in pairwise(sizes)
        )
        self.norms = nn.ModuleList(optional(BatchNorm(size), batch_norm) for size in hidden)
        self.dropouts = nn.ModuleList(optional(Dropout(None), dropout) for _ in hidden)
        self.activation = layers.activation(activation)
        self.output = nn.Linear(sizes[-1], outputs)

    def forward(self, x: Tensor) -> Tensor:
        """From x (B, *input_shape) to (B, C)."""
        x = x.flatten(1)
        for linear, norm, dropout in zip(self.hidden, self.norms, self.dropouts, strict=True):
            x = dropout(self.activation(norm(linear(x))))
        output: Tensor = self.output(x)
        return output


class ConvNet(nn.Module):
    """The small network of PyTorch courses: `depth` times convolution, (batch norm), activation,
    2x2 max pool, (dropout of channels); then an `Mlp` with the hidden layers.

    The convolutions keep the size of the picture and have width, 2·width, 4·width, ... channels, or
    those that `channels` lists.

    Args:
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
        sizes, depth = [channels, *config.sizes], len(config.sizes)
        kernel, bias = config.kernel_size, not batch_norm
        self.convs = nn.ModuleList(
            nn.Conv2d(a, b, kernel, padding=kernel // 2, bias=bias) for a, b in pairwise(sizes)
        )
        self.norms = nn.ModuleList(optional(BatchNorm(size), batch_norm) for size in sizes[1:])
        self.dropouts = nn.ModuleList(
            optional(Dropout(None, channels=True), dropout) for _ in sizes[1:]
        )
        self.activation = layers.activation(config.activation)
        pooled = (sizes[-1], height >> depth, width >> depth)
        self.head = Mlp(pooled, outputs, config.hidden, config.activation, dropout, batch_norm)

    def forward(self, x: Tensor) -> Tensor:
        """From x (B, K, h, w) to (B, C)."""
        for conv, norm, dropout in zip(self.convs, self.norms, self.dropouts, strict=True):
            x = dropout(F.max_pool2d(self.activation(norm(conv(x))), 2))
        output: Tensor = self.head(x)
        return output


class Block(nn.Module):
    """act(f(x) + shortcut(x)) with f = 3x3 conv, (norm), act, (dropout), 3x3 conv, (norm).

    The shortcut is x itself, or a 1x1 convolution with batch norm where the shape changes.
    """

    def __init__(
        self, before: int, after: int, stride: int, activation: nn.Module, dropout: bool, norm: bool
    ):
        super().__init__()
        bias = not norm  # a bias before a batch norm would be subtracted again
        self.conv1 = nn.Conv2d(before, after, 3, stride, padding=1, bias=bias)
        self.norm1 = optional(BatchNorm(after), norm)
        self.dropout = optional(Dropout(None, channels=True), dropout)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=bias)
        self.norm2 = optional(BatchNorm(after), norm)
        changes = stride != 1 or before != after
        self.shortcut = optional(nn.Conv2d(before, after, 1, stride, bias=bias), changes)
        self.shortcut_norm = optional(BatchNorm(after), norm and changes)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        """From (B, before, h, w) to (B, after, ⌈h / stride⌉, ⌈w / stride⌉)."""
        inner = self.dropout(self.activation(self.norm1(self.conv1(x))))
        inner = self.norm2(self.conv2(inner))
        output: Tensor = self.activation(inner + self.shortcut_norm(self.shortcut(x)))
        return output


class ResNet(nn.Module):
    """A small residual network: a 3x3 convolution, `depth` blocks, the mean over the pixels, a
    linear output.

    He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, in the form for small
    pictures of its section 4.2: no pool after the stem, up to three stages.
    The blocks are spread evenly over min(3, depth) stages, the first stages taking what is left
    over. Stages have width, 2·width and 4·width channels; each after the first halves the picture.

    The arguments are those of `ConvNet`.

    Raises:
        InputError: samples that are no pictures.
    """

    def __init__(
        self,
        config: schema.ResNet,
        input_shape: Sequence[int],
        outputs: int,
        dropout: bool,
        batch_norm: bool,
    ):
        super().__init__()
        channels, _, _ = picture_shape("resnet", input_shape)
        self.activation = layers.activation(config.activation)
        self.stem = nn.Conv2d(channels, config.width, 3, padding=1, bias=not batch_norm)
        self.stem_norm = optional(BatchNorm(config.width), batch_norm)
        self.blocks = nn.ModuleList()
        before, stages = config.width, min(MAX_STAGES, config.depth)
        for stage in range(stages):
            after = config.width * 2**stage
            for index in range(config.depth // stages + (stage < config.depth % stages)):
                stride = 2 if stage > 0 and index == 0 else 1
                block = Block(before, after, stride, self.activation, dropout, batch_norm)
                self.blocks.append(block)
                before = after
        self.output = nn.Linear(before, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """From x (B, K, h, w) to (B, C)."""
        x = self.activation(self.stem_norm(self.stem(x)))
        for block in self.blocks:
            x = block(x)
        output: Tensor = self.output(x.mean((2, 3)))
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
    if not config.sizes:
        mistakes.append("model.channels must have at least one number, or be null, got []")
    if len(config.sizes) > deepest:
        key = "model.depth must be" if config.channels is None else "model.channels must have"
        mistakes.append(
            f"{key} <= {deepest}{'' if config.channels is None else ' numbers'} for pictures of "
            f"{height}x{width}, got {len(config.sizes)}"
        )
    if mistakes:
        raise InputError(mistakes)
