"""A small residual network: conf/model/resnet.yaml.

He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, in the form for small
pictures of its section 4.2: no pool after the stem, up to three stages. Built by `models.build`.
Notation: B samples, K channels, h and w height and width in pixels, C outputs.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from sweepstack.config import schema
from sweepstack.models import layers
from sweepstack.models.convnet import picture_shape
from sweepstack.models.layers import BatchNorm, Dropout, optional

MAX_STAGES = 3


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
        output: Tensor = self.activation(
            self.norm2(self.conv2(inner)) + self.shortcut_norm(self.shortcut(x))
        )
        return output


class ResNet(nn.Module):
    """A 3x3 convolution, `depth` blocks, the mean over the pixels, a linear output.

    The blocks are spread evenly over min(3, depth) stages, the first stages taking what is left
    over. Stages have width, 2·width and 4·width channels; each after the first halves the picture.

    Args:
        config: width, depth and activation.
        input_shape: (K, h, w).
        outputs: C.
        dropout: whether the blocks have dropout layers, with a p per trial.
        batch_norm: whether there are batch norms; without, the convolutions have biases.

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
        width = config.width
        for stage, blocks in enumerate(_stages(config.depth)):
            after = config.width * 2**stage
            for index in range(blocks):
                stride = 2 if stage > 0 and index == 0 else 1
                block = Block(width, after, stride, self.activation, dropout, batch_norm)
                self.blocks.append(block)
                width = after
        self.output = nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """From x (B, K, h, w) to (B, C)."""
        x = self.activation(self.stem_norm(self.stem(x)))
        for block in self.blocks:
            x = block(x)
        output: Tensor = self.output(x.mean((2, 3)))
        return output


def _stages(depth: int) -> list[int]:
    """Blocks of each stage."""
    stages = min(MAX_STAGES, depth)
    return [depth // stages + (stage < depth % stages) for stage in range(stages)]
