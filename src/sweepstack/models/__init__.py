"""Models: conf/model. `build` makes the template module that all trials of a static part share.

A template is written for one trial, x (B, *input_shape) to (B, C); `step.py` runs it with each
trial's parameters and buffers, and for many trials under vmap.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from torch import nn

from sweepstack.config import schema
from sweepstack.config.errors import InputError
from sweepstack.models import custom, pretrained
from sweepstack.models.networks import ConvNet, Mlp, ResNet


def build(
    config: schema.RunConfig, input_shape: Sequence[int], outputs: int, seed: int = 0
) -> nn.Module:
    """Build the model of `config` on the CPU.

    Args:
        input_shape: shape of a sample, without the batch axis.
        outputs: C, the width of the last layer.
        seed: what the constructor draws from, as after `torch.manual_seed(seed)`, and likewise of
            random and NumPy; the process's own generators stay as they were.

    Raises:
        InputError: the model does not fit the data, or a custom module is refused.
    """
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            random.seed(seed)
            np.random.seed(seed % 2**32)
            return _build(config, input_shape, outputs)
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


def _build(config: schema.RunConfig, input_shape: Sequence[int], outputs: int) -> nn.Module:
    model = config.model
    if isinstance(model, schema.Custom | schema.HubModel | schema.TorchvisionModel):
        _check_own(config.regularization, model.name)
    if isinstance(model, schema.Custom):
        return custom.build(model, config.trust, input_shape, outputs)
    if isinstance(model, schema.TorchvisionModel):
        return pretrained.build(model, input_shape, outputs)
    if isinstance(model, schema.HubModel):
        make = partial(
            pretrained.hub_entry, model, config.trust, json.loads(model.arguments), outputs
        )
        return custom.checked(f"model.entry '{model.entry}'", make, input_shape)
    dropout, batch_norm = config.regularization.dropout > 0, config.regularization.batch_norm
    if batch_norm == "auto":
        batch_norm = isinstance(model, schema.ResNet)
    if isinstance(model, schema.ConvNet):
        return ConvNet(model, input_shape, outputs, dropout, batch_norm)
    if isinstance(model, schema.ResNet):
        return ResNet(model, input_shape, outputs, dropout, batch_norm)
    return Mlp(input_shape, outputs, model.hidden, model.activation, dropout, batch_norm)


def _check_own(regularization: schema.Regularization, name: str) -> None:
    mistakes = []
    if regularization.batch_norm != "auto":
        given = str(regularization.batch_norm).lower()
        mistakes.append(
            f"regularization.batch_norm must be auto with model={name}, got {given}: the module "
            "itself decides where it normalizes"
        )
    if regularization.dropout > 0:
        mistakes.append(
            f"regularization.dropout must be 0 with model={name}, got {regularization.dropout}: "
            "the module's own torch.nn.Dropout layers and their p are used"
        )
    if mistakes:
        raise InputError(mistakes)
