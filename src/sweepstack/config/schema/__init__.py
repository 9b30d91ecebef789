"""The typed schema of every config group: names, types, ranges, and which values may differ
inside one stack.

Each option of a group in `conf/` is one frozen dataclass here; the YAML file holds the default
values, the dataclass what is allowed. A field is *static* when it decides tensor shapes or code
paths (trials with unequal static fields never share a stack) and *dynamic* when every slot may
have its own value. `config.py` checks a composed config against these classes; the modules named
after the groups read them. Imports neither torch nor Hydra.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sweepstack.config.schema.data import Data, Digits, ImageFolder, Quadratic, Torchvision
from sweepstack.config.schema.model import Activation, ConvNet, Custom, Init, Mlp, ResNet
from sweepstack.config.schema.optimizer import (
    Adam,
    Constant,
    Cosine,
    Exponential,
    OneCycle,
    Optimizer,
    Plateau,
    RmsProp,
    Schedule,
    Sgd,
    StepDecay,
)
from sweepstack.config.schema.training import (
    Batch,
    ConsecutiveIncreases,
    NoLogger,
    NoStopping,
    Patience,
    Regularization,
    TensorBoard,
    Training,
)

__all__ = [
    "FEATURES",
    "INERT",
    "OPTIONS",
    "PLAIN",
    "Activation",
    "Adam",
    "Batch",
    "ConsecutiveIncreases",
    "Constant",
    "ConvNet",
    "Cosine",
    "Custom",
    "Data",
    "Digits",
    "Exponential",
    "ImageFolder",
    "Init",
    "Mlp",
    "NoLogger",
    "NoStopping",
    "OneCycle",
    "Optimizer",
    "Patience",
    "Plateau",
    "Quadratic",
    "Regularization",
    "ResNet",
    "RmsProp",
    "RunConfig",
    "Schedule",
    "Sgd",
    "StepDecay",
    "TensorBoard",
    "Torchvision",
    "Training",
]


_NO_LOGGER = NoLogger(name="none")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """A whole run. `objective` is a metric's name or `auto` (the task's own); `trust` lists the
    packages whose modules `model._target_` may name besides the closed table. What an older
    best.pt or study holds may lack `logger`, which changes no number."""

    data: Data
    model: Mlp | ConvNet | ResNet | Custom
    init: Init
    optimizer: Optimizer
    schedule: Schedule
    regularization: Regularization
    batch: Batch
    early_stopping: NoStopping | Patience | ConsecutiveIncreases
    training: Training
    objective: str
    trust: tuple[str, ...]
    logger: NoLogger | TensorBoard = _NO_LOGGER


OPTIONS: dict[str, dict[str, type]] = {
    "data": {
        "digits": Digits,
        "mnist": Torchvision,
        "fashion_mnist": Torchvision,
        "cifar10": Torchvision,
        "image_folder": ImageFolder,
        "quadratic": Quadratic,
    },
    "model": {"mlp": Mlp, "convnet": ConvNet, "resnet": ResNet, "custom": Custom},
    "optimizer": {"sgd": Sgd, "adam": Adam, "adamw": Adam, "rmsprop": RmsProp},
    "schedule": {
        "constant": Constant,
        "step": StepDecay,
        "exponential": Exponential,
        "cosine": Cosine,
        "one_cycle": OneCycle,
        "plateau": Plateau,
    },
    "early_stopping": {
        "none": NoStopping,
        "patience": Patience,
        "consecutive_increases": ConsecutiveIncreases,
    },
    "logger": {"none": NoLogger, "tensorboard": TensorBoard},
}
"""Groups whose options differ in their keys: the option's `name` selects the class."""

PLAIN: dict[str, type] = {
    "init": Init,
    "regularization": Regularization,
    "batch": Batch,
    "training": Training,
}
"""Groups with one set of keys."""

INERT: dict[str, frozenset[str]] = {
    "adam": frozenset({"momentum", "nesterov"}),
    "adamw": frozenset({"momentum", "nesterov"}),
    "rmsprop": frozenset({"nesterov"}),
}
"""Per optimizer, the keys that change nothing for it."""

FEATURES: dict[str, Callable[[RunConfig], bool]] = {
    "weight_decay": lambda c: c.regularization.weight_decay > 0,
    "l1": lambda c: c.regularization.l1 > 0,
    "dropout": lambda c: c.regularization.dropout > 0,
    "label_smoothing": lambda c: c.regularization.label_smoothing > 0,
    "clip_norm": lambda c: c.regularization.clip_norm is not None,
    "clip_value": lambda c: c.regularization.clip_value is not None,
    "mixup": lambda c: c.regularization.mixup > 0,
    "cutout": lambda c: c.regularization.cutout > 0,
    "crop": lambda c: c.regularization.crop_padding > 0,
    "flip": lambda c: c.regularization.horizontal_flip,
    "rotation": lambda c: c.regularization.rotation > 0,
    "translation": lambda c: c.regularization.translation > 0,
}
"""Dynamic values whose being on or off decides the code path, and so is static."""
