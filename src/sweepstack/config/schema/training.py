"""Keys of what is trained and how: model, init, loss, optimizer, schedule, regularization, batch,
early stopping, evaluation, training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sweepstack.config.check import dynamic, place, rule

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
