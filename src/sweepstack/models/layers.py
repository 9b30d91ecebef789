"""Layers that can be batched over trials: everything per trial comes in as a parameter or buffer.

torch's Dropout draws from the process's generator and its BatchNorm writes its running statistics
in place; both would tie a trial to its neighbours. The layers here compute the same from what
`torch.func.functional_call` hands them, so that `torch.func.vmap` can run them for many trials at
once. `adapt` puts them into a user's module.

Notation: x is one trial's input, (B, C) or (B, C, *), with B samples and C features or channels.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import handle_torch_function, has_torch_function

from sweepstack.config.errors import InputError
from sweepstack.config.schema import Activation
from sweepstack.data import streams

_ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "gelu": nn.GELU,
    "elu": nn.ELU,
    "silu": nn.SiLU,
    "selu": nn.SELU,
}


def activation(name: Activation) -> nn.Module:
    """The activation of that name; leaky_relu has slope 0.01, elu α = 1, gelu is the exact one."""
    return _ACTIVATIONS[name]()


class Dropout(nn.Module):
    """Zero each number, or each channel, with probability p; divide what stays by 1 - p.

    Srivastava et al., "Dropout", JMLR 2014; by channels: Tompson et al., CVPR 2015. The mask is a
    pure function of `key`, the shape of x and `call`, the same at any width. In eval mode x is
    returned as it is.

    Args:
        p: the module's own probability, or None when every trial brings its own.
        channels: zero whole channels of x (B, C, *).
        rows: zero whole samples (stochastic depth: Huang et al., ECCV 2016).
        kind: the layer of torch that does the same.

    Attributes:
        p: 0-dim float32 buffer; replaced per trial unless `fixed`.
        key: 0-dim int64 buffer, the key of this layer's stream at this step; replaced per trial.
        fixed: whether p is the module's own.
        call: how often the layer ran before in the same forward pass; kept by `adapt`.
    """

    p: Tensor
    key: Tensor

    def __init__(
        self,
        p: float | None,
        channels: bool = False,
        kind: Callable[[float], nn.Module] | None = None,
        rows: bool = False,
    ):
        super().__init__()
        self.own_axes = 1 if rows else 2 if channels else None  # of x, that have masks of their own
        self.fixed, self.channels, self.call = p is not None, channels, 0
        self.kind = kind or (nn.Dropout2d if channels else nn.Dropout)
        self.register_buffer("p", torch.tensor(p or 0.0), persistent=False)
        self.register_buffer("key", torch.tensor(0), persistent=False)
        self._counters: dict[tuple[int, torch.device], Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        """Mask x (B, *), or x (B, C, *) by channels; the result has the shape and type of x."""
        if not self.training:
            return x
        own = x.shape[: self.own_axes]
        drawn, n = (*own, *[1] * (x.dim() - len(own))), own.numel()
        key = streams.split(self.key, self.call) if self.call else self.key
        p = self.p.float()
        keep = streams.uniform(key, self._steps(n, x.device)) >= p
        # where, not a product: p = 1 must give 0, not 0 · inf.
        return x * torch.where(keep, 1 / (1 - p), 0.0).to(x.dtype).view(drawn)

    def _steps(self, n: int, device: torch.device) -> Tensor:
        if (n, device) not in self._counters:
            self._counters[n, device] = streams.counters(n, device)
        return self._counters[n, device]

    def extra_repr(self) -> str:
        """p (when it is the module's own) and the kind, for print(module)."""
        p = f"p={float(self.p):g}" if self.fixed else "p per trial"
        return f"{p}, channels={self.channels}"


class BatchNorm(nn.Module):
    """Batch norm over all axes but the channels': (x - mean) / √(var + eps) · weight + bias.

    Ioffe and Szegedy, "Batch Normalization", ICML 2015, with torch's conventions: the batch is
    normalized by its biased variance, the running variance averages the unbiased one. In eval mode
    the running statistics are used. Low-precision x is normalized in the statistics' precision. A
    layer that runs twice in one forward pass averages both batches in turn.

    Attributes:
        weight, bias: parameters (C,), or None without `affine`.
        running_mean, running_var: buffers (C,).
        updated: after a forward pass in training mode, what the running statistics become; the
            caller puts them in place, and sets None.
        frozen: whether its parameters are frozen: then it always runs as in eval mode, and its
            statistics stay.
        kind: the class of torch's layer that it stands for, None in a built-in model.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(
        self, channels: int, eps: float = 1e-5, momentum: float = 0.1, affine: bool = True
    ):
        super().__init__()
        self.channels, self.eps, self.momentum = channels, eps, momentum
        self.weight = nn.Parameter(torch.ones(channels)) if affine else None
        self.bias = nn.Parameter(torch.zeros(channels)) if affine else None
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))
        self.updated: tuple[Tensor, Tensor] | None = None
        self._began = 0  # id of the running mean that these began with
        self.frozen = False
        self.kind: Callable[..., nn.Module] | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Normalize x (B, C) or (B, C, *).

        Raises:
            ValueError: in training mode, a batch with one value per channel has no variance.
        """
        mean, var = self.running_mean, self.running_var
        training = self.training and not self.frozen
        if training:
            if x.numel() == x.shape[1]:
                raise ValueError(
                    "batch norm must see more than one value per channel to train, got a batch of "
                    f"shape {tuple(x.shape)}; use batch.size >= 2"
                )
            if self.updated is not None and self._began == id(mean):
                mean, var = self.updated
            mean, var = mean.clone(), var.clone()
            self.updated, self._began = (mean, var), id(self.running_mean)
        # The clones are written in place by F.batch_norm; the buffers stay as they are.
        given = self.weight, self.bias, training, self.momentum, self.eps
        return batch_norm(x, mean, var, *given)

    def extra_repr(self) -> str:
        """Channels and constants, for print(module)."""
        return f"{self.channels}, eps={self.eps}, momentum={self.momentum}"


def batch_norm(
    x: Tensor,
    mean: Tensor,
    var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
) -> Tensor:
    """F.batch_norm in the precision of the statistics; modes of torch.overrides see the call."""
    if has_torch_function((x,)):
        given = x, mean, var, weight, bias, training, momentum, eps
        found: Tensor = handle_torch_function(batch_norm, (x,), *given)
        return found
    y = F.batch_norm(x.to(mean.dtype), mean, var, weight, bias, training, momentum, eps)
    return y.to(x.dtype)


def optional(layer: nn.Module, on: bool) -> nn.Module:
    """`layer` or nothing, so that a forward pass reads the same with and without it."""
    return layer if on else nn.Identity()


def dropouts(module: nn.Module) -> list[tuple[str, Dropout]]:
    """All dropout layers with their dotted names, in module order."""
    return [(name, layer) for name, layer in module.named_modules() if isinstance(layer, Dropout)]


def batch_norms(module: nn.Module) -> list[tuple[str, BatchNorm]]:
    """All batch norms with their dotted names, in module order."""
    return [(name, layer) for name, layer in module.named_modules() if isinstance(layer, BatchNorm)]


# --- a user's module ------------------------------------------------------------------------------

_DROPOUTS = {nn.Dropout: False, nn.Dropout1d: True, nn.Dropout2d: True, nn.Dropout3d: True}
"""Whether they drop whole channels."""
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_OTHER_BATCH_NORMS = (
    *(nn.LazyBatchNorm1d, nn.LazyBatchNorm2d, nn.LazyBatchNorm3d),
    nn.SyncBatchNorm,
)
_INSTANCE_NORMS = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
_RANDOM = (
    *(nn.AlphaDropout, nn.FeatureAlphaDropout, nn.RReLU),
    *(nn.FractionalMaxPool2d, nn.FractionalMaxPool3d),
)


def adapt(module: nn.Module) -> nn.Module:
    """Put this file's Dropout and BatchNorm into `module` in the place of torch's.

    Parameters, running statistics, constants and names stay; `num_batches_tracked` goes. A dropout
    layer that runs several times in one forward pass has a mask of its own each time.

    Returns:
        The same module, changed; wrapped in a Sequential when it was itself replaced.

    Raises:
        InputError: layers that share state or random numbers between trials, one line each.
    """
    mistakes, scripts = [], list[nn.Module]()
    for name, layer in module.named_modules():
        reason = None if layer in scripts else _refusal(layer)
        if reason is not None:
            mistakes.append(
                f"the model's layer '{name}' {reason}" if name else f"the model {reason}"
            )
            scripts += layer.modules() if isinstance(layer, torch.jit.ScriptModule) else []
        elif isinstance(layer, nn.Embedding | nn.EmbeddingBag):
            layer.sparse = False  # the same numbers; updates of a stack take dense gradients
    if mistakes:
        raise InputError(mistakes)
    # By identity, because one layer may stand in several places.
    known: dict[nn.Module, nn.Module] = {}
    for name, layer in list(module.named_modules(remove_duplicate=False)):
        if (new := _replacement(layer, known)) is None:
            continue
        if name:
            module.set_submodule(name, new)
        else:
            module = nn.Sequential(new)
    for _, dropout in dropouts(module):
        dropout.register_forward_hook(_count_call)
    return counting(module)


def counting(module: nn.Module) -> nn.Module:
    """Let a module whose dropout layers count their calls begin at 0 in each forward pass."""
    if dropouts(module):
        module.register_forward_pre_hook(_start_calls)
    return module


def aliases(module: nn.Module) -> dict[str, str]:
    """The name in `named_parameters` for each further one of a tied tensor. A layer in several
    places has one: `functional_call(tie_weights=True)` would put wrong tensors back into it."""
    first: dict[int, str] = {}
    found: dict[str, str] = {}
    for path, layer in module.named_modules():
        for kind in (layer.named_parameters, layer.named_buffers):
            for leaf, tensor in kind(recurse=False, remove_duplicate=False):
                name = f"{path}.{leaf}".lstrip(".")
                if (known := first.setdefault(id(tensor), name)) != name:
                    found[name] = known
    return found


def restore(module: nn.Module, p: float) -> None:
    """Put torch's dropout layers, which draw from torch's generator, and a user's batch norms back
    into an adapted module; dropout without a p of its own gets `p`."""
    for name, layer in list(module.named_modules(remove_duplicate=False)):
        if isinstance(layer, Dropout):
            new: Any = layer.kind(float(layer.p) if layer.fixed else p)
        elif isinstance(layer, BatchNorm) and layer.kind is not None:
            new = layer.kind(layer.channels, layer.eps, layer.momentum, layer.weight is not None)
            new.weight, new.bias = layer.weight, layer.bias
            new.running_mean, new.running_var = layer.running_mean, layer.running_var
        else:
            continue
        module.set_submodule(name, new.train(layer.training))


def _refusal(layer: nn.Module) -> str | None:
    """Why a layer cannot train beside other trials, or None."""
    kind = type(layer).__name__
    if isinstance(layer, torch.jit.ScriptModule):
        return "is TorchScript, whose parameters no trial can bring; use the module it is made from"
    if isinstance(layer, (*_RANDOM, *_DROPOUTS)) and type(layer) not in _DROPOUTS:
        return (
            f"is {kind}, whose random numbers cannot be drawn from the trial's seed; "
            "use Dropout, Dropout1d, Dropout2d or Dropout3d"
        )
    if isinstance(layer, nn.RNNBase | nn.MultiheadAttention) and layer.dropout > 0:
        return (
            f"is {kind} with dropout {layer.dropout}, which cannot be drawn from the trial's seed; "
            "use dropout=0 and Dropout layers around it"
        )
    if isinstance(layer, _BATCH_NORMS + _OTHER_BATCH_NORMS):
        if type(layer) not in _BATCH_NORMS:
            return f"is {kind}; use BatchNorm1d, BatchNorm2d or BatchNorm3d"
        if layer.momentum is None or not layer.track_running_stats:
            return f"is {kind}, which must have a momentum and track_running_stats=True"
    if isinstance(layer, _INSTANCE_NORMS) and layer.track_running_stats:
        return f"is {kind}, which must have track_running_stats=False"
    return None


def _replacement(layer: nn.Module, known: dict[nn.Module, nn.Module]) -> nn.Module | None:
    if layer in known:
        return known[layer]
    if isinstance(layer, nn.Dropout | nn.Dropout1d | nn.Dropout2d | nn.Dropout3d):
        new: nn.Module = Dropout(layer.p, _DROPOUTS[type(layer)], type(layer))
    elif isinstance(layer, _BATCH_NORMS):
        new = _batch_norm(layer)
    elif type(layer).__name__ == "StochasticDepth" and getattr(layer, "mode", "") == "row":
        kind: Any = type(layer)  # torchvision's, which is not imported here
        new = Dropout(float(getattr(layer, "p", 0)), kind=partial(kind, mode="row"), rows=True)
    else:
        return None
    known[layer] = new.train(layer.training)
    return new


def _batch_norm(layer: nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d) -> BatchNorm:
    assert layer.momentum is not None
    assert layer.running_mean is not None
    assert layer.running_var is not None
    new = BatchNorm(layer.num_features, layer.eps, layer.momentum, layer.affine)
    new.weight, new.bias = layer.weight, layer.bias
    new.running_mean, new.running_var = layer.running_mean, layer.running_var
    new.kind = type(layer)
    new.frozen = layer.affine and not any(p.requires_grad for p in layer.parameters())
    return new


def _start_calls(module: nn.Module, _inputs: Any) -> None:
    for _, layer in dropouts(module):
        layer.call = 0


def _count_call(layer: Dropout, _inputs: Any, _output: Any) -> None:
    layer.call += 1
