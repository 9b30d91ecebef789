"""The multilayer perceptron: conf/model/mlp.yaml. Built by `models.build`; the head of `ConvNet`.

Notation: B samples, H units of a hidden layer, C outputs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from sweepstack.config.schema import Activation
from sweepstack.models import layers
from sweepstack.models.layers import BatchNorm, Dropout, optional


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
