"""The typed schema of every config group: names, types, ranges, and which values may differ
inside one stack.

Each option of a group in `conf/` is one frozen dataclass here; the YAML file holds the default
values, the dataclass what is allowed. A field is *static* when it decides tensor shapes or code
paths (trials with unequal static fields never share a stack) and *dynamic* when every slot may
have its own value. `reading.py` checks a composed config against these classes; the modules named
after the groups read them. Imports neither torch nor Hydra.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sweepstack.config.check import place
from sweepstack.config.schema.data import *
from sweepstack.config.schema.training import *

LOGGERS = ("tensorboard", "csv", "mlflow", "wandb")


@dataclass(frozen=True, kw_only=True)
class Logger:
    """Where runs are logged while they train, besides history.csv and the study; any number may be
    on. `experiment` and `tracking_uri` are MLflow's, `project` is that of W&B."""

    tensorboard: bool = place(default=False)
    csv: bool = place(default=False)
    mlflow: bool = place(default=False)
    experiment: str = place(default="sweepstack")
    tracking_uri: str | None = place(default=None)
    wandb: bool = place(default=False)
    project: str = place(default="sweepstack")

    @property
    def names(self) -> list[str]:
        """The loggers that are on."""
        return [name for name in LOGGERS if getattr(self, name)]


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """A whole run. `objective` is a metric's name or `auto` (the task's own); `metrics` are
    measured too; `trust` lists the packages whose modules a `_target_` may name besides the closed
    table. What an older best.pt or study holds may lack what has a default."""

    data: Data
    model: Mlp | ConvNet | ResNet | TorchvisionModel | HubModel | Custom
    init: Init
    optimizer: Optimizer
    schedule: Schedule
    regularization: Regularization
    batch: Batch
    early_stopping: NoStopping | Patience | ConsecutiveIncreases
    training: Training
    objective: str
    trust: tuple[str, ...]
    logger: Logger = Logger()
    evaluation: Evaluation = Evaluation(shift=0, rotation=0.0, noise=0.0)  # noqa: RUF009  (frozen)
    loss: Loss | CustomLoss = AUTO_LOSS
    metrics: tuple[str, ...] = ()


OPTIONS: dict[str, dict[str, type]] = {
    "data": {
        "digits": Digits,
        "mnist": Torchvision,
        "fashion_mnist": Torchvision,
        "cifar10": Torchvision,
        "image_folder": ImageFolder,
        "quadratic": Quadratic,
        "arrays": Arrays,
        "table": Table,
        "custom": CustomData,
        "huggingface": HuggingFace,
    },
    "model": {
        "mlp": Mlp,
        "convnet": ConvNet,
        "resnet": ResNet,
        "torchvision": TorchvisionModel,
        "hub": HubModel,
        "custom": Custom,
    },
    "optimizer": {
        "sgd": Sgd,
        "adam": Adam,
        "adamw": Adam,
        "rmsprop": RmsProp,
        "nadam": Nadam,
        "radam": Adam,
        "adagrad": Adagrad,
        "lion": Lion,
        "muon": Adam,
        "custom": CustomOptimizer,
    },
    "loss": {
        **dict.fromkeys(("auto", "cross_entropy", "bce", "nll"), Weighted),
        **{"mse": Loss, "huber": Huber, "focal": Focal, "custom": CustomLoss},
    },
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
}
"""Groups whose options differ in their keys: the option's `name` selects the class."""

PLAIN: dict[str, type] = {
    "init": Init,
    "regularization": Regularization,
    "batch": Batch,
    "evaluation": Evaluation,
    "training": Training,
    "logger": Logger,
}
"""Groups with one set of keys."""

INERT: dict[str, frozenset[str]] = {
    **dict.fromkeys(
        ("adam", "adamw", "nadam", "radam", "adagrad", "lion"),
        frozenset({"momentum", "nesterov"}),
    ),
    "rmsprop": frozenset({"nesterov"}),
}
"""Per optimizer, the keys that change nothing for it."""

FEATURES: dict[str, Callable[[RunConfig], bool]] = {
    "weight_decay": lambda c: c.regularization.weight_decay > 0,
    "backbone_lr": lambda c: getattr(c.optimizer, "backbone_lr_factor", 1) != 1,
    "unfreeze": lambda c: c.training.unfreeze_at is not None,
    "dampening": lambda c: dampens(c.optimizer),
    "ema": lambda c: c.training.ema_decay > 0,
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
    "resized_crop": lambda c: c.regularization.random_resized_crop > 0,
    "color": lambda c: (
        max(c.regularization.brightness, c.regularization.contrast, c.regularization.saturation) > 0
    ),
    "hue": lambda c: c.regularization.hue > 0,
    "rand_augment": lambda c: c.regularization.rand_augment > 0,
    "random_erasing": lambda c: c.regularization.random_erasing > 0,
}
"""Dynamic values whose being on or off decides the code path, and so is static."""
