"""Which configs are equivalent: `effect` hashes a config without the keys that change nothing.

Each rule below is a promise about the engine's code: two configs that differ only there train
alike to the bit on the same device (a test trains both for every rule). Imports neither torch nor
Hydra.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from typing import Any

from sweepstack.config import schema
from sweepstack.config.schema import RunConfig


@dataclass(frozen=True)
class Rule:
    """Keys that change nothing where `holds` says so."""

    keys: tuple[str, ...]
    holds: Callable[[RunConfig], bool]


def _is_plain_rate(config: RunConfig) -> bool:
    """Whether the schedule's factor is 1 at every step after the warmup."""
    match config.schedule:
        case schema.Constant():
            return True
        case schema.StepDecay(gamma=gamma) | schema.Exponential(gamma=gamma):
            return gamma == 1  # 1.0**t is 1.0
        case schema.Cosine(min_factor=least):
            return least == 1  # 1 + (1 - 1)·... is 1.0
    return False


def _is_default_gain(config: RunConfig) -> bool:
    """Whether `init.gain` is the default of the schemes."""
    return all(_is_gain_of(config, scheme) for scheme in config.init.schemes)


def _is_gain_of(config: RunConfig, scheme: str) -> bool:
    gain, he = config.init.gain, scheme in ("he", "he_uniform")
    if gain is None:
        return True
    if gain == "auto":  # torch.nn.init.calculate_gain: relu √2, sigmoid 1
        return getattr(config.model, "activation", None) == ("relu" if he else "sigmoid")
    return gain == (math.sqrt(2) if he else 1.0)


def _is_default_fan(config: RunConfig) -> bool:
    fan = config.init.fan
    return fan is None or all(schema.OWN_FAN.get(s) in (None, fan) for s in config.init.schemes)


def _is_default_norm(config: RunConfig) -> bool:
    """Whether `regularization.batch_norm` is what `auto` means for the model."""
    given, resnet = config.regularization.batch_norm, isinstance(config.model, schema.ResNet)
    others = schema.Custom | schema.HubModel | schema.TorchvisionModel
    return not isinstance(config.model, others) and given in ("auto", resnet)


def _is_linear(config: RunConfig) -> bool:
    return isinstance(config.model, schema.Mlp) and not config.model.hidden


RULES: tuple[Rule, ...] = (
    # train.train: a trial's numbers never depend on the width; the others look on.
    Rule(
        (
            *("training.width", "training.diagnostics"),
            *(f"logger.{item.name}" for item in fields(schema.Logger)),
        ),
        lambda c: True,
    ),
    # optimizer.py: the optimizer's rule does not read them.
    *(
        Rule(
            tuple(f"optimizer.{key}" for key in sorted(keys)),
            lambda c, name=name: c.optimizer.name == name,  # type: ignore[misc]
        )
        for name, keys in schema.INERT.items()
    ),
    # optimizer.Sgd: with μ = 0 the buffer is g, which only momentum dampens, and the direction
    # g + 0·b is the buffer's.
    Rule(
        ("optimizer.nesterov", "optimizer.dampening"),
        lambda c: isinstance(c.optimizer, schema.Sgd) and c.optimizer.momentum == 0,
    ),
    # optimizer.AdamW: adam but for its weight decay, which is not computed where it is 0.
    Rule(
        ("optimizer.name",),
        lambda c: c.optimizer.name in ("adam", "adamw") and c.regularization.weight_decay == 0,
    ),
    # optimizer.scaled_lr: lr times 1.0, the only reader of both.
    Rule(
        ("batch.lr_scaling", "batch.base_size"),
        lambda c: (
            c.batch.lr_scaling == "none" or c.batch.size * c.batch.accumulate == c.batch.base_size
        ),
    ),
    # schedule.py: the factor is 1.0 at every step after the warmup, which all have.
    Rule(
        tuple(f"schedule.{key}" for key in ("name", "gamma", "step_size", "min_factor", "unit")),
        _is_plain_rate,
    ),
    # max_steps wins.
    Rule(("training.max_epochs",), lambda c: c.training.max_steps is not None),
    # splits.normalize: read for this normalization only.
    Rule(("data.minmax_range",), lambda c: c.data.normalization != "minmax"),
    Rule(("data.mean", "data.std"), lambda c: c.data.normalization != "fixed"),
    # networks.ConvNet: channels wins.
    Rule(
        ("model.width", "model.depth"),
        lambda c: isinstance(c.model, schema.ConvNet) and c.model.channels is not None,
    ),
    # init.gain_of and init.draw: the scheme's defaults.
    Rule(("init.gain",), _is_default_gain),
    Rule(("init.fan",), _is_default_fan),
    # schema.Init.schemes: null is the other's.
    Rule(("init.linear",), lambda c: c.init.linear in (None, c.init.scheme)),
    Rule(("init.conv",), lambda c: c.init.conv in (None, c.init.scheme)),
    # init.draw: an mlp has no convolutions; init.check reads it for gain and fan.
    Rule(
        ("init.conv",),
        lambda c: (
            isinstance(c.model, schema.Mlp)
            and c.init.conv != "keep"
            and (c.init.gain, c.init.fan) == (None, None)
        ),
    ),
    # augmentation.resized_crop: read there only.
    Rule(
        ("regularization.random_resized_crop_ratio",),
        lambda c: c.regularization.random_resized_crop == 0,
    ),
    # step.Step: times whether there are any.
    Rule(
        ("regularization.rand_augment_operations",),
        lambda c: c.regularization.rand_augment == 0,
    ),
    # models.build: auto is true for a resnet and false for the other built-in models.
    Rule(("regularization.batch_norm",), _is_default_norm),
    # models.networks: they stand behind hidden layers, and there are none; init.gain=auto reads
    # the activation besides.
    Rule(("regularization.batch_norm", "regularization.dropout"), _is_linear),
    Rule(("model.activation",), lambda c: _is_linear(c) and c.init.gain != "auto"),
)
"""Keys that change nothing, below the places in the code that say so. Seeds are never among them:
each draws its own order of batches."""


def effect(config: RunConfig) -> str:
    """SHA-256 of what a config does (first 16 hex digits), equal for configs that train alike."""
    left_out: dict[str, set[str]] = {}
    for key in idle(config):
        group, _, name = key.partition(".")
        left_out.setdefault(group, set()).add(name)
    groups = sorted(vars(config).items())
    texts = [_text(name, group, frozenset(left_out.get(name, ()))) for name, group in groups]
    text = f"{{{', '.join(filter(None, texts))}}}"  # as json.dumps writes the whole
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _text(name: str, group: Any, left_out: frozenset[str]) -> str:
    """A group without some keys as JSON, '' if none is left. Trials of a sweep share most of their
    groups, so a group keeps its texts, as it does for `training.spec.by_group`: under a name that
    begins with an underscore."""
    if not hasattr(group, "__dict__"):
        return f'"{name}": {json.dumps(group, sort_keys=True, default=str)}'
    texts: dict[frozenset[str], str] = vars(group).setdefault("_effects", {})
    if left_out not in texts:
        kept = {k: v for k, v in vars(group).items() if k[0] != "_" and k not in left_out}
        json_text = json.dumps(kept, sort_keys=True, default=str)
        texts[left_out] = "" if left_out and not kept else f'"{name}": {json_text}'
    return texts[left_out]


def idle(config: RunConfig) -> Iterable[str]:
    """The keys that change nothing in a config."""
    return (key for rule in RULES if rule.holds(config) for key in rule.keys)
