"""The typed schema of every config group: names, types, ranges, and which values may differ
inside one stack.

Each option of a group in `conf/` is one frozen dataclass here; the YAML file holds the default
values, the dataclass what is allowed. A field is *static* when it decides tensor shapes or code
paths (trials with unequal static fields never share a stack) and *dynamic* when every slot may
have its own value. `reading.py` checks a composed config against these classes; the modules named
after the groups read them. Imports neither torch nor Hydra.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import MISSING, dataclass, field
from typing import Any, Literal


def rule(*, default: Any = MISSING, **rules: Any) -> Any:
    """Declare a static field; `rules` are ge, gt, le, lt, the bounds of each number, and items, the
    most numbers of a list. A config may lack a field with a default, which is then no part of what
    identifies it: older studies and files do."""
    return field(default=default, metadata=rules)


def place(**rules: Any) -> Any:
    """Declare a field that says how a trial is run and changes nothing about it: slots may differ,
    and it is no part of what identifies a config."""
    return dynamic(place=True, **rules)


def dynamic(**rules: Any) -> Any:
    """Declare a field in which the slots of a stack may differ."""
    return rule(dynamic=True, **rules)


@dataclass(frozen=True, kw_only=True)
class Data:
    """What every dataset has.

    `validation` is the share of the training samples (below 1) or their number (an integer);
    `subset` keeps that many training samples; `minmax_range` is the target of
    `normalization=minmax`, `mean` and `std` are those of `normalization=fixed`, one number or one
    for each channel or feature; `order_seed` fixes the batch order for all trials (null: each
    trial's own seed); `placement` says where samples live while training; `workers` are the
    DataLoader processes of `placement=stream`.
    """

    name: str
    validation: float = rule(gt=0)
    split_seed: int = rule(ge=0, lt=2**63)
    normalization: Literal["standardize", "global", "minmax", "fixed", "none"]
    minmax_range: tuple[float, ...]
    mean: tuple[float, ...] | None = rule(default=None)
    std: tuple[float, ...] | None = rule(default=None, gt=0)
    subset: int | None = rule(ge=1)
    order_seed: int | None = rule(ge=0, lt=2**63)
    placement: Literal["auto", "device", "stream"]
    workers: int = rule(ge=0, le=1024)

    def mistakes(self) -> list[str]:
        """Rules between keys, or that need more than a bound: one line for each broken one."""
        found = []
        for key in ("test", "validation"):
            amount = getattr(self, key, None)
            if not isinstance(amount, float):  # null, or what is the split
                continue
            if not 0 < amount < 1 and not (amount >= 1 and float(amount).is_integer()):
                found.append(
                    f"data.{key} must be a share between 0 and 1 or a whole number of samples, "
                    f"got {amount:.15g}"
                )
        given = self.minmax_range
        finite = len(given) == 2 and all(math.isfinite(bound) for bound in given)
        if self.normalization == "minmax" and not (finite and given[0] < given[1]):
            found.append(
                "data.minmax_range must be two numbers, the lower first, "
                f"got [{', '.join(f'{bound:.15g}' for bound in given)}]"
            )
        if self.normalization == "fixed":
            found += [
                f"data.{key} must be a number, or a list of one for each channel or feature, with "
                f"data.normalization=fixed, got {'null' if value is None else '[]'}"
                for key, value in (("mean", self.mean), ("std", self.std))
                if not value
            ]
        return found


@dataclass(frozen=True, kw_only=True)
class Pictures(Data):
    """Datasets of pictures, which are resized to `image_size` (null: as they are)."""

    image_size: int | None = rule(default=None, ge=1, le=2**14)


@dataclass(frozen=True, kw_only=True)
class Digits(Pictures):
    """scikit-learn's 1,797 8x8 digits, bundled with it; `test` is the share or number held out."""

    test: float = rule(gt=0)


@dataclass(frozen=True, kw_only=True)
class Torchvision(Pictures):
    """mnist, fashion_mnist and cifar10 in torchvision's folder layout under `root`."""

    root: str
    download: bool


@dataclass(frozen=True, kw_only=True)
class ImageFolder(Pictures):
    """Folders of class folders of pictures; a null `val_folder` splits `validation` off train."""

    root: str
    train_folder: str
    val_folder: str | None
    test_folder: str | None


@dataclass(frozen=True, kw_only=True)
class Quadratic(Data):
    """The small 1-D regression set y = x² + x·noise, or with noise=additive x² + noise, with x
    uniform in `range` and noise ~ N(0, noise_std²); `clean_validation` leaves the noise out of
    validation and test."""

    samples: int = rule(ge=8, le=10**8)
    range: tuple[float, float]
    noise: Literal["proportional", "additive"]
    clean_validation: bool
    noise_std: float = rule(ge=0)
    test: float = rule(gt=0)

    def mistakes(self) -> list[str]:
        """See `Data.mistakes`."""
        low, high = self.range
        found = super().mistakes()
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            found.append(
                f"data.range must be two numbers, the lower first, got [{low:.15g}, {high:.15g}]"
            )
        return found


@dataclass(frozen=True, kw_only=True)
class Own(Data):
    """Data of your own. `auto` takes the task from the targets; `test` is the test split, or the
    share or number held out of the training samples, or null for none; a null `val` holds out
    `validation`."""

    task: Literal["auto", "multiclass", "binary", "multilabel", "regression"]
    val: str | None
    test: float | str | None = rule(gt=0)

    def mistakes(self) -> list[str]:
        """See `Data`."""
        found = super().mistakes()
        for key, example in (("train", "FILE"), ("path", "FOLDER")):
            if getattr(self, key, "") == "???":
                found.append(f"data.{key} must be given, for example data.{key}={example}")
        if getattr(self, "target", None) in ((), ("???",)):
            found.append("data.target must be given, for example data.target=COLUMN")
        return found


@dataclass(frozen=True, kw_only=True)
class Arrays(Own, Pictures):
    """Files that hold arrays x and y: .npz, .npy, .pt or .safetensors."""

    train: str


@dataclass(frozen=True, kw_only=True)
class Table(Own):
    """Files that hold a row for each sample: .csv or .parquet; `target` are the columns to be
    predicted, `exclude` columns that are not read."""

    train: str
    target: tuple[str, ...]
    exclude: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class CustomData(Own, Pictures):
    """Any map-style torch Dataset under the trust rule; all other keys are its `arguments`, held as
    JSON; so are `val` and `test`, the arguments in which those splits differ."""

    target: str
    arguments: str


@dataclass(frozen=True, kw_only=True)
class HuggingFace(Own, Pictures):
    """A folder written by `datasets.Dataset.save_to_disk`; `val` and `test` are names of splits."""

    path: str
    train: str
    target: str | None


Activation = Literal["relu", "leaky_relu", "tanh", "sigmoid", "gelu", "elu", "silu", "selu"]


@dataclass(frozen=True, kw_only=True)
class Model:
    """What models of conf/model have besides model=custom.

    `weights` is a file of tensors or the folder of another run, and for torchvision also a name of
    its weights; null draws all by `init`. `freeze` names parameters that are not trained, by globs
    or as `backbone`: all but the last layer. `cache_features` computes once for each sample what
    frozen layers give, where that is possible; it changes numbers by rounding alone.
    """

    name: str
    weights: str | None = rule(default=None)
    freeze: tuple[str, ...] = rule(default=())
    cache_features: bool | Literal["auto"] = rule(default="auto", place=True)


@dataclass(frozen=True, kw_only=True)
class Mlp(Model):
    """A multilayer perceptron; `hidden` lists the units of each hidden layer."""

    hidden: tuple[int, ...] = rule(ge=1, le=2**24, items=1000)
    activation: Activation


@dataclass(frozen=True, kw_only=True)
class ConvNet(Model):
    """The two-convolution network of PyTorch courses: `depth` convolutions, `width` channels in
    the first and twice as many in each next, or `channels` of each, each followed by a 2x2 max
    pool, then `hidden`."""

    width: int = rule(ge=1, le=2**16)
    depth: int = rule(ge=1, le=32)
    channels: tuple[int, ...] | None = rule(default=None, ge=1, le=2**16, items=32)
    kernel_size: int = rule(ge=1, le=1001)
    hidden: tuple[int, ...] = rule(ge=1, le=2**24, items=1000)
    activation: Activation

    @property
    def sizes(self) -> tuple[int, ...]:
        """Channels of each convolution."""
        own = self.channels
        return tuple(self.width * 2**i for i in range(self.depth)) if own is None else own


@dataclass(frozen=True, kw_only=True)
class ResNet(Model):
    """`depth` residual blocks with batch norm in up to three stages; `width` channels at first."""

    width: int = rule(ge=1, le=2**16)
    depth: int = rule(ge=1, le=1000)
    activation: Activation


@dataclass(frozen=True, kw_only=True)
class TorchvisionModel(Model):
    """A classification model of torchvision by its name there, with the data's outputs."""

    arch: str


@dataclass(frozen=True, kw_only=True)
class HubModel(Model):
    """`entry` of the hubconf.py in `repo`, a folder or owner/name on GitHub, which `trust` must
    name; all other keys are its `arguments`, held as JSON."""

    repo: str
    entry: str
    arguments: str = "{}"


@dataclass(frozen=True, kw_only=True)
class Custom:
    """Any torch module under the trust rule; all other keys are its `arguments`, held as JSON."""

    name: str
    target: str
    arguments: str


Scheme = Literal[
    "xavier",
    "xavier_uniform",
    "he",
    "he_uniform",
    "normal",
    "uniform",
    "zeros",
    "ones",
    "lecun",
    "orthogonal",
    "torch",
    "keep",
]
OWN_FAN = {"xavier": "average", "xavier_uniform": "average"}
OWN_FAN |= {"he": "in", "he_uniform": "in", "lecun": "in"}
"""The schemes that divide by a fan, and by which one."""


@dataclass(frozen=True, kw_only=True)
class Init:
    """How weights start; `gain` null is the scheme's own, `auto` the activation's. `fan`, what the
    variance is divided by, null is the scheme's own too. `linear` and `conv` are schemes for one
    type of layer, null the same as the other's."""

    scheme: Scheme = dynamic()  # noqa: RUF009  (a word)
    gain: float | Literal["auto"] | None = dynamic(gt=0)
    fan: Literal["in", "out", "average"] | None = dynamic(default=None)
    linear: Scheme | None = dynamic(default=None)  # noqa: RUF009
    conv: Scheme | None = dynamic(default=None)  # noqa: RUF009

    @property
    def schemes(self) -> tuple[str, str]:
        """Of linear layers and of convolutions."""
        return self.linear or self.scheme, self.conv or self.scheme


@dataclass(frozen=True, kw_only=True)
class Loss:
    """What is minimized, the mean over samples. mse has no more keys than its name."""

    name: str


@dataclass(frozen=True, kw_only=True)
class Weighted(Loss):
    """auto, cross_entropy, bce and nll. `class_weights` multiply the losses of a class: a number
    for each, or `balanced`: N / (C · n_c) of the training samples, as scikit-learn computes it."""

    class_weights: tuple[float, ...] | Literal["balanced"] | None = rule(gt=0, items=2**16)


AUTO_LOSS = Weighted(name="auto", class_weights=None)


@dataclass(frozen=True, kw_only=True)
class Huber(Loss):
    """Squared up to an error of `delta`, linear beyond it."""

    delta: float = dynamic(gt=0)


@dataclass(frozen=True, kw_only=True)
class Focal(Weighted):
    """Cross-entropy times (1 - p)^`gamma`, p the probability of the right class."""

    gamma: float = dynamic(ge=0, le=100)


@dataclass(frozen=True, kw_only=True)
class CustomLoss:
    """A function or class under the trust rule; all other keys are its `arguments`, as JSON."""

    name: str
    target: str
    arguments: str


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """What every optimizer has."""

    name: str
    lr: float = dynamic(gt=0)


@dataclass(frozen=True, kw_only=True)
class CustomOptimizer(Optimizer):
    """A class of torch.optim, or another under the trust rule; all other keys are its `arguments`,
    held as JSON."""

    target: str
    arguments: str = dynamic()


@dataclass(frozen=True, kw_only=True)
class Stacked(Optimizer):
    """Those that train stacks. `momentum` and `nesterov` are accepted by all, so that one grid can
    span optimizers; `INERT` lists where they change nothing. All layers but the last learn at lr
    times `backbone_lr_factor`."""

    backbone_lr_factor: float = dynamic(default=1.0, gt=0)
    momentum: float = dynamic(ge=0, lt=1)
    nesterov: bool = dynamic()


@dataclass(frozen=True, kw_only=True)
class Sgd(Stacked):
    """Stochastic gradient descent with (Nesterov) momentum; `dampening` is the share of a new
    gradient that the momentum leaves out."""

    dampening: float = dynamic(default=0.0, ge=0, lt=1)


def dampens(config: Optimizer) -> bool:
    """Whether an optimizer has a dampening that counts: only momentum is dampened."""
    return isinstance(config, Sgd) and config.dampening > 0 and config.momentum > 0


@dataclass(frozen=True, kw_only=True)
class Adam(Stacked):
    """Adam, AdamW and RAdam, and Muon, whose AdamW has them; `betas` are the decay rates of the two
    moment estimates."""

    betas: tuple[float, float] = dynamic(ge=0, lt=1)
    eps: float = dynamic(gt=0)


@dataclass(frozen=True, kw_only=True)
class Nadam(Adam):
    """NAdam; `momentum_decay` says how fast its momentum grows to betas[0]."""

    momentum_decay: float = dynamic(ge=0)


@dataclass(frozen=True, kw_only=True)
class Adagrad(Stacked):
    """Adagrad; lr is divided by 1 + t·`lr_decay`."""

    lr_decay: float = dynamic(ge=0)
    initial_accumulator_value: float = dynamic(ge=0)
    eps: float = dynamic(gt=0)


@dataclass(frozen=True, kw_only=True)
class Lion(Stacked):
    """Lion; `betas` are the shares of its momentum that a step and the next momentum keep."""

    betas: tuple[float, float] = dynamic(ge=0, lt=1)


@dataclass(frozen=True, kw_only=True)
class RmsProp(Stacked):
    """RMSprop; `alpha` is the decay rate of the squared-gradient average."""

    alpha: float = dynamic(ge=0, lt=1)
    eps: float = dynamic(gt=0)


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """A learning-rate schedule; `warmup_steps` ramps lr up linearly before it starts."""

    name: str = dynamic()
    warmup_steps: int = dynamic(ge=0)


@dataclass(frozen=True, kw_only=True)
class Constant(Schedule):
    """lr stays as it is."""


@dataclass(frozen=True, kw_only=True)
class StepDecay(Schedule):
    """lr is multiplied by `gamma` every `step_size` steps or epochs, the `unit`."""

    step_size: int = dynamic(ge=1)
    gamma: float = dynamic(gt=0, le=1)
    unit: Literal["step", "epoch"] = dynamic(default="step")


@dataclass(frozen=True, kw_only=True)
class Exponential(Schedule):
    """lr is multiplied by `gamma` every step or epoch, the `unit`."""

    gamma: float = dynamic(gt=0, le=1)
    unit: Literal["step", "epoch"] = dynamic(default="step")


@dataclass(frozen=True, kw_only=True)
class Cosine(Schedule):
    """lr falls along half a cosine to `min_factor` times its start."""

    min_factor: float = dynamic(ge=0, le=1)


@dataclass(frozen=True, kw_only=True)
class OneCycle(Schedule):
    """lr, the peak, is reached from lr / `div_factor` after `pct_start` of the run and then
    falls to lr / `div_factor` / `final_div_factor`, both along a cosine."""

    pct_start: float = dynamic(gt=0, lt=1)
    div_factor: float = dynamic(ge=1)
    final_div_factor: float = dynamic(ge=1)


@dataclass(frozen=True, kw_only=True)
class Plateau(Schedule):
    """lr is multiplied by `factor` when `metric` has not improved for `patience` evaluations."""

    metric: str = dynamic()
    factor: float = dynamic(gt=0, lt=1)
    patience: int = dynamic(ge=0)
    min_delta: float = dynamic(ge=0)


@dataclass(frozen=True, kw_only=True)
class Regularization:
    """All of it at once; 0, false or null is off.

    `weight_decay` is L2 or decoupled as the optimizer defines it, `l1` the factor of the sum of
    absolute parameters, `dropout` a probability, `clip_norm` and `clip_value` bounds of the
    gradient, `mixup` the α of Beta(α, α), `cutout` the side of the erased square in pixels,
    `random_resized_crop` the least share of the area that is kept, between rectangles
    `random_resized_crop_ratio` times as long as high and as high as long, `crop_padding` in pixels,
    `rotation` in degrees, `translation` as a share of the side; `brightness`, `contrast`,
    `saturation` and `hue` as torchvision's ColorJitter has them, `rand_augment` the magnitude of
    `rand_augment_operations` operations, `random_erasing` a probability.
    """

    weight_decay: float = dynamic(ge=0)
    l1: float = dynamic(ge=0)
    dropout: float = dynamic(ge=0, lt=1)
    label_smoothing: float = dynamic(ge=0, lt=1)
    clip_norm: float | None = dynamic(gt=0)
    clip_value: float | None = dynamic(gt=0)
    batch_norm: bool | Literal["auto"]
    mixup: float = dynamic(ge=0)
    cutout: int = dynamic(ge=0)
    crop_padding: int = dynamic(ge=0)
    horizontal_flip: bool = dynamic()
    rotation: float = dynamic(ge=0, le=180)
    translation: float = dynamic(ge=0, lt=1)
    random_resized_crop: float = dynamic(default=0.0, ge=0, le=1)
    random_resized_crop_ratio: float = dynamic(default=1.333, ge=1, le=100)
    brightness: float = dynamic(default=0.0, ge=0, le=10)
    contrast: float = dynamic(default=0.0, ge=0, le=10)
    saturation: float = dynamic(default=0.0, ge=0, le=10)
    hue: float = dynamic(default=0.0, ge=0, le=0.5)
    rand_augment: float = dynamic(default=0.0, ge=0, le=30)
    rand_augment_operations: int = rule(default=2, ge=1, le=16)
    random_erasing: float = dynamic(default=0.0, ge=0, le=1)


@dataclass(frozen=True, kw_only=True)
class Batch:
    """A step is one update: by `accumulate` batches of `size` samples, whose gradients are
    averaged. lr is scaled by size·accumulate / `base_size`, linearly or by its root."""

    size: int = rule(ge=1)
    accumulate: int = rule(default=1, ge=1, le=4096)
    lr_scaling: Literal["none", "linear", "sqrt"] = dynamic()
    base_size: int = dynamic(ge=1)


@dataclass(frozen=True, kw_only=True)
class NoStopping:
    """Train to the end; the best state is kept all the same."""

    name: str = dynamic()


@dataclass(frozen=True, kw_only=True)
class Patience:
    """Stop after `patience` evaluations without an improvement by more than `min_delta`."""

    name: str = dynamic()
    patience: int = dynamic(ge=1)
    min_delta: float = dynamic(ge=0)


@dataclass(frozen=True, kw_only=True)
class ConsecutiveIncreases:
    """Stop when the validation loss rose `increases` times in a row."""

    name: str = dynamic()
    increases: int = dynamic(ge=1)


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Changed copies of validation and test split that are measured as well; 0 measures none.

    `shift` in whole pixels, `rotation` in degrees, `noise` a standard deviation of raw pixels;
    `training/evaluation.py` says which copies.
    """

    shift: int = rule(ge=0)
    rotation: float = rule(ge=0, le=180)
    noise: float = rule(ge=0, le=100)


@dataclass(frozen=True, kw_only=True)
class Training:
    """Budget, cadence, seed, device. `max_steps`, when given, wins over `max_epochs`;
    `eval_every` counts steps (null: every epoch); `checkpoint_every` too (0: never). `seeds` runs
    with the seeds from `seed` on count as one, by their mean (`seeds.py`). `width` is the most
    trials of a sweep that are trained as one stack (`width.py`). With `ema_decay`, an average of
    the weights is evaluated and kept, 0 is off (`stack.py`). `diagnostics` says what the layers do
    (`diagnostics.py`). What `model.freeze` names trains too after `unfreeze_at` steps (null:
    never)."""

    max_steps: int | None = dynamic(ge=1)
    max_epochs: int | None = dynamic(ge=1)
    eval_every: int | None = rule(ge=1)
    seed: int = dynamic(ge=0, lt=2**63)
    seeds: int = dynamic(ge=1, le=1000)
    device: str
    precision: Literal["fp32", "tf32", "bf16"]
    deterministic: bool
    checkpoint_every: int = dynamic(ge=0)
    unfreeze_at: int | None = dynamic(default=None, ge=1)
    ema_decay: float = dynamic(default=0.0, ge=0, lt=1)
    width: int | Literal["auto"] = place(ge=1, le=65536)
    compile: bool
    diagnostics: bool = place(default=False)


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
    evaluation: Evaluation = Evaluation(shift=0, rotation=0.0, noise=0.0)
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
