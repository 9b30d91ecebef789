"""Why a network does or does not learn: what each layer does on a fixed batch of training data.

With `training.diagnostics`, at step 0 and at each evaluation, for each layer that has trained
parameters of its own (`ROW`):
- activation_mean, activation_std: of the numbers that the layer hands on, over samples and units:
  the output of the activation module that runs next, before any other layer; without one (or with
  a function such as F.relu, which no hook sees) its own output.
- unit_spread: √(variance between the units / mean square), 0 where all units do the same, as those
  of a layer of zeros or ones do; they get equal gradients and stay the same.
- saturated: the share of a tanh with |a| > 0.97, of a sigmoid with |2a - 1| > 0.97 (there the
  derivative is below 6% of its largest; the bound of Glorot and Bengio 2010's figures).
- dead: the share of relu units that are 0 on the whole batch.
- weight_norm, gradient_norm: of all its trained parameters together.
- update_ratio: |Δθ| / |θ| of the step that the optimizer would take now on this batch; NaN with
  optimizer=custom, which cannot be asked without taking it.
And of the whole network, after McCandlish et al., "An Empirical Model of Large-Batch Training",
2018, appendix A.1:
- gradient_noise: tr(Σ), the sum of the variances of one sample's gradient; a batch of m samples has
  the gradient's noise tr(Σ) / m.
- gradient_noise_scale: B_simple = tr(Σ) / |G|², the batch size at which noise and gradient are
  equally large; inf where the batch cannot tell the gradient from noise.

The batch is the same for all trials, without augmentation; dropout is off and batch norms use the
batch's statistics, as in training. Nothing is drawn from a trial's streams and nothing of it is
changed: it trains to the bit as without.

Notation: S trials, n parts of the batch of b samples each, θ parameters, g_i gradient of a part.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import vmap

from sweepstack.config.errors import LAYERS, EnvironmentFault, contained
from sweepstack.config.schema import Custom, HubModel
from sweepstack.data import streams
from sweepstack.engine.step import Step
from sweepstack.training.device import autocast
from sweepstack.training.fused import Row
from sweepstack.training.stack import Stack

ROW = (
    *("step", "layer", "activation_mean", "activation_std", "unit_spread", "saturated", "dead"),
    *("weight_norm", "gradient_norm", "update_ratio"),
)
NOISE = ("gradient_noise", "gradient_noise_scale")
SAMPLES, PARTS = 128, 4
"""Of the batch, where there are as many."""
LIMIT = 0.97
"""Part of its range beyond which a sigmoid or tanh is saturated."""
MAX_NUMBERS = 2**26
"""Of gradients that are held at once: 256 MiB."""
_ACTIVATIONS = (
    *(nn.ReLU, nn.LeakyReLU, nn.ReLU6, nn.Tanh, nn.Sigmoid, nn.GELU, nn.ELU, nn.CELU, nn.SELU),
    *(nn.SiLU, nn.Mish, nn.Softplus, nn.Softsign, nn.Hardtanh, nn.Hardswish, nn.Hardsigmoid),
)
_UNITS_LAST = (nn.Linear, nn.LayerNorm, nn.Embedding, nn.RNNBase)
"""Layers whose units lie on the last axis; of others, such as convolutions, on the one after the
samples'."""

Found = dict[str, dict[str, Tensor]]


class Diagnosis:
    """Diagnoses the trials of a program's stacks."""

    def __init__(self, step: Step):
        self.step, self.program, self.module = step, step.program, step.module
        trained = self.program.params()
        owned = {
            name: [f"{name}.{leaf}".lstrip(".") for leaf, _ in layer.named_parameters("", False)]
            for name, layer in self.module.named_modules()
        }
        kept = {name: [each for each in own if each in trained] for name, own in owned.items()}
        self.layers = {name: own for name, own in kept.items() if own}
        samples = len(self.program.data.train)
        size = max(2, min(SAMPLES, samples) // PARTS)  # a batch norm needs two
        parts = min(PARTS, samples // size)
        chosen = streams.permutation(0, samples)[: parts * size].view(1, parts, size)
        ((self.x, self.y),) = self.program.sources["train"].batches(chosen)

    def __call__(
        self, stack: Stack, slots: Sequence[int], lrs: Sequence[float], steps: Sequence[int]
    ) -> list[tuple[list[dict[str, Any]], dict[str, float]]]:
        """For each of some slots its rows, one per layer, and the noise of its gradient.

        Args:
            lrs, steps: learning rate of each slot's next step, and steps taken so far.
        """
        numbers = sum(view[0].numel() for view in stack.params.views.values()) * len(self.x)
        most = max(1, MAX_NUMBERS // max(numbers, 1))
        results = []
        for first in range(0, len(slots), most):
            part = slice(first, first + most)
            results += self._of(stack, slots[part], lrs[part], steps[part])
        return results

    def _of(
        self, stack: Stack, slots: Sequence[int], lrs: Sequence[float], steps: Sequence[int]
    ) -> list[tuple[list[dict[str, Any]], dict[str, float]]]:
        chosen = torch.tensor(slots, device=stack.device)

        def rows(views: Mapping[str, Tensor]) -> Row:
            return {name: view.index_select(0, chosen) for name, view in views.items()}

        params, strengths = rows(stack.params.views), rows(stack.strengths)
        found, grads, small = self._differentiated(params, rows(stack.buffers.views), strengths)
        parts, size = self.y.shape[:2]
        noise = _noise(small, sum(_squares(g) for g in grads), parts, size)
        norms = [_squares(t) for t in (*params.values(), *grads)]
        moments = {name: list(rows(bank.views).values()) for name, bank in stack.moments.items()}
        lr = torch.tensor(lrs, dtype=torch.float64, device=stack.device)
        at = torch.tensor(steps, device=stack.device) + 1
        moved = [param.clone() for param in params.values()]
        with torch.no_grad():
            self.step.regularize(grads, moved, strengths, at - 1)
            for group, hyper, rate, step in self.step.of_groups(rows(stack.optimizer), lr, at):
                some = group.numbers
                mine = {name: kept[some] for name, kept in moments.items()}
                if stack.own is None:
                    group.rule.update(moved[some], grads[some], mine, hyper, rate, step)
            if stack.own is not None:  # it cannot be asked without taking the step
                moved = [param.mul_(math.nan) for param in moved]
        norms += [_squares(a - b) for a, b in zip(moved, params.values(), strict=True)]
        return self._rows(found, torch.stack(norms).view(3, len(params), -1), steps, noise)

    # --- forward and backward --------------------------------------------------------------------

    def _differentiated(
        self, params: Row, buffers: Row, strengths: Row
    ) -> tuple[Found, list[Tensor], Tensor]:
        """What the layers do, (S, n, ...); the gradients (S, ...) over the whole batch; and the
        mean of |g_i|² (S,)."""
        slots, parts = len(next(iter(params.values()))), len(self.x)
        custom_alone = isinstance(self.program.config.model, Custom | HubModel) and slots == 1
        extra = {"key": torch.zeros(slots, dtype=torch.int64, device=self.y.device)}
        extra |= {"dropout": torch.zeros(slots, device=self.y.device)}
        smoothing = ["label_smoothing"] if self.step.uses("label_smoothing") else []
        extra |= {name: strengths[name] for name in (*smoothing, *self.step.task.numbers)}
        if self.program.stacking_loses or custom_alone:
            each = [
                self._at_once(
                    *(_row(params, slot), _row(buffers, slot)), x[None], y[None], _row(extra, slot)
                )
                for slot in range(slots)
                for x, y in zip(self.x, self.y, strict=True)
            ]
            found = {
                name: {key: torch.cat([one[0][name][key] for one in each]) for key in values}
                for name, values in each[0][0].items()
            }
            grads = [torch.cat(of_one) for of_one in zip(*(one[1] for one in each), strict=True)]
        else:
            several = [{n: _repeated(t, parts) for n, t in r.items()} for r in (params, buffers)]
            x, y = (t.expand(slots, *t.shape).flatten(0, 1) for t in (self.x, self.y))
            more = {name: _repeated(t, parts) for name, t in extra.items()}
            found, grads = self._at_once(several[0], several[1], x, y, more)
        shaped = {
            name: {key: t.view(slots, parts, *t.shape[1:]) for key, t in values.items()}
            for name, values in found.items()
        }
        grads = [grad.view(slots, parts, *grad.shape[1:]) for grad in grads]
        small = sum((_squares(g.flatten(0, 1)) for g in grads), torch.zeros(()))
        return shaped, [g.mean(1) for g in grads], small.view(slots, parts).mean(1)

    def _at_once(
        self, params: Row, buffers: Row, x: Tensor, y: Tensor, extra: Row
    ) -> tuple[Found, list[Tensor]]:
        """What the layers do and the gradients, for K parts of batches: params (K, ...), x
        (K, b, *shape). A single one runs as it is, without vmap."""
        self.module.train()
        for _, _, dropout in self.program.dropouts:
            dropout.eval()
        device, precision = self.y.device, self.program.config.training.precision
        leaves = {name: view.detach().requires_grad_() for name, view in params.items()}
        with autocast(precision, device), self.step.rules(1), contained():
            if len(y) == 1:
                one = [{n: t[0] for n, t in row.items()} for row in (leaves, buffers, extra)]
                total, found = self._watched(one[0], one[1], x[0], y[0], one[2])
                found = {n: {k: t.unsqueeze(0) for k, t in v.items()} for n, v in found.items()}
            else:
                losses, found = vmap(self._watched)(leaves, buffers, x, y, extra)
                total = losses.sum()
        grads = torch.autograd.grad(
            total, list(leaves.values()), allow_unused=True, materialize_grads=True
        )
        return found, list(grads)

    def _watched(
        self, params: Row, buffers: Row, x: Tensor, y: Tensor, extra: Row
    ) -> tuple[Tensor, Found]:
        """The loss of one trial on one part, and what its layers do there."""
        with watching(self.module, self.layers) as found:
            loss, _ = self.step.loss(params, buffers, x, y, extra)
        return loss, found

    # --- numbers ---------------------------------------------------------------------------------

    def _rows(
        self, found: Found, norms: Tensor, steps: Sequence[int], noise: list[dict[str, float]]
    ) -> list[tuple[list[dict[str, Any]], dict[str, float]]]:
        """A row for each layer of each trial; `norms` are the squared ones of parameters, gradients
        and updates, (3, parameters, S)."""
        index = {name: place for place, name in enumerate(self.program.params())}
        rows: list[list[dict[str, Any]]] = [[] for _ in steps]
        for layer, own in self.layers.items():
            weights, grads, updates = norms[:, [index[name] for name in own]].sum(1).sqrt().tolist()
            acts = _activity(found.get(layer, {}), len(steps))
            for slot, step in enumerate(steps):
                weight = weights[slot]
                row = {"step": step, "layer": layer or "model"}
                row |= {name: values[slot] for name, values in acts.items()}
                ratio = updates[slot] / weight if weight else math.nan
                row |= {"weight_norm": weight, "gradient_norm": grads[slot], "update_ratio": ratio}
                row |= {name: float(f"{row[name]:.7g}") for name in ROW[2:]}  # float32 has no more
                rows[slot].append(row)
        return list(zip(rows, noise, strict=True))


@contextmanager
def watching(module: nn.Module, layers: Mapping[str, Any]) -> Iterator[Found]:
    """While `module` runs once, collect what its `layers` hand on, by name (see `_statistics`)."""
    found: Found = {}
    handed: dict[str, tuple[nn.Module, Any, nn.Module | None]] = {}
    last: list[str] = []

    def of_layer(name: str, layer: nn.Module, output: Any) -> None:
        last[:] = [name]
        handed[name] = (layer, output, None)

    def of_activation(activation: nn.Module, output: Any) -> None:
        if last:
            name = last.pop()
            handed[name] = (handed[name][0], output, activation)

    hooks = []
    for name, layer in module.named_modules():
        if name in layers:
            hooks.append(
                layer.register_forward_hook(lambda m, _, out, name=name: of_layer(name, m, out))
            )
        elif isinstance(layer, _ACTIVATIONS):
            hooks.append(layer.register_forward_hook(lambda m, _, out: of_activation(m, out)))
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()
    for name, (layer, output, activation) in handed.items():
        output = output[0] if isinstance(output, tuple) and output else output
        if isinstance(output, Tensor) and output.is_floating_point() and output.dim() > 0:
            found[name] = _statistics(output.detach().float(), layer, activation)


def _statistics(a: Tensor, layer: nn.Module, activation: nn.Module | None) -> dict[str, Tensor]:
    """mean, var and between (the mean variance between units) of one part's activations; of a
    sigmoid or tanh how many are saturated, of a relu which units are alive."""
    a = a.unsqueeze(1) if a.dim() == 1 else a
    if not isinstance(layer, _UNITS_LAST):
        a = a.movedim(1, -1)
    a = a.flatten(0, -2)
    mean = a.mean()
    around = a - mean
    var = around.square().mean()
    found = {"mean": mean, "var": var}
    if a.shape[1] > 1:
        found["between"] = (var - around.mean(1).square().mean()).clamp(min=0)
    if isinstance(activation, nn.Sigmoid | nn.Tanh):
        signed = 2 * a - 1 if isinstance(activation, nn.Sigmoid) else a
        found["saturated"] = (signed.abs() > LIMIT).float().mean()
    elif isinstance(activation, nn.ReLU):
        found["alive"] = a.amax(0) > 0
    return found


def _activity(found: Mapping[str, Tensor], trials: int) -> dict[str, list[float]]:
    """The activations' numbers of a layer over all parts, for each trial; NaN what there is not."""
    nothing = [math.nan] * trials
    names = ("activation_mean", "activation_std", "unit_spread", "saturated", "dead")
    rows = dict.fromkeys(names, nothing)
    if "mean" in found:
        means = found["mean"].double()
        mean = means.mean(1)
        var = found["var"].double().mean(1) + means.var(1, correction=0)
        rows |= {"activation_mean": mean.tolist(), "activation_std": var.sqrt().tolist()}
        if "between" in found:
            share = found["between"].double().mean(1) / (var + mean**2)
            rows["unit_spread"] = torch.where(var + mean**2 == 0, 0, share).sqrt().tolist()
    if "saturated" in found:
        rows["saturated"] = found["saturated"].mean(1).tolist()
    if "alive" in found:
        rows["dead"] = (1 - found["alive"].any(1).float().mean(1)).tolist()
    return rows


def _noise(small: Tensor, big: Any, parts: int, size: int) -> list[dict[str, float]]:
    """tr(Σ) and B_simple of each trial from the mean of |g_i|² and from |mean of g_i|², which are
    |G|² + tr(Σ) / b and |G|² + tr(Σ) / (n·b)."""
    rows = []
    for one, whole in zip(small.double().tolist(), big.double().tolist(), strict=True):
        if parts < 2:
            rows.append(dict.fromkeys(NOISE, math.nan))
            continue
        trace = (one - whole) * size * parts / (parts - 1)
        length = (parts * whole - one) / (parts - 1)
        scale = trace / length if length > 0 else (math.inf if trace > 0 else math.nan)
        rows.append({"gradient_noise": trace, "gradient_noise_scale": scale})
    return rows


def _squares(tensor: Tensor) -> Tensor:
    """Sum of squares of each row."""
    return tensor.detach().flatten(1).square().sum(1)


def _repeated(tensor: Tensor, times: int) -> Tensor:
    return tensor.repeat_interleave(times, 0)


def _row(row: Row, slot: int) -> Row:
    return {name: view[slot : slot + 1] for name, view in row.items()}


def write(folder: Path, rows: Sequence[Mapping[str, Any]], *, anew: bool) -> None:
    """Add rows to layers.csv of a trial's folder, or write it anew.

    Raises:
        EnvironmentFault: the disk is full or the folder cannot be written.
    """
    path = folder / LAYERS
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with path.open("w" if anew else "a", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, ROW, lineterminator="\n")
            if anew:
                writer.writeheader()
            writer.writerows(rows)
    except OSError as error:
        raise EnvironmentFault(f"cannot write {path}: {error.strerror or error}") from error
