"""Keys of the `optimizer` and `schedule` groups, read by `training`."""

from __future__ import annotations

from dataclasses import dataclass

from sweepstack.config.schema.fields import dynamic


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """What every optimizer has. `momentum` and `nesterov` are accepted by all, so that one grid
    can span optimizers; `INERT` lists where they change nothing."""

    name: str
    lr: float = dynamic(gt=0)
    momentum: float = dynamic(ge=0, lt=1)
    nesterov: bool = dynamic()


@dataclass(frozen=True, kw_only=True)
class Sgd(Optimizer):
    """Stochastic gradient descent with (Nesterov) momentum."""


@dataclass(frozen=True, kw_only=True)
class Adam(Optimizer):
    """Adam and AdamW; `betas` are the decay rates of the two moment estimates."""

    betas: tuple[float, float] = dynamic(ge=0, lt=1)
    eps: float = dynamic(gt=0)


@dataclass(frozen=True, kw_only=True)
class RmsProp(Optimizer):
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
    """lr is multiplied by `gamma` every `step_size` steps."""

    step_size: int = dynamic(ge=1)
    gamma: float = dynamic(gt=0, le=1)


@dataclass(frozen=True, kw_only=True)
class Exponential(Schedule):
    """lr is multiplied by `gamma` every step."""

    gamma: float = dynamic(gt=0, le=1)


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
