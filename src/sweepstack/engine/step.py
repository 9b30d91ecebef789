"""One training step and one evaluation of a stack.

The model is written for one trial; `torch.func.vmap` batches it over the `S` slots, and with one
slot it runs as it is. The gradient of the sum of the slots' losses is each slot's own gradient,
since no slot's loss depends on another's parameters.

Notation: x (S, B, *shape), y (S, B); everything per slot has shape (S,).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from types import FunctionType
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call, vmap

from sweepstack.config.errors import contained
from sweepstack.data import streams
from sweepstack.data.batches import Source
from sweepstack.engine.device import autocast
from sweepstack.engine.kernels import fused
from sweepstack.engine.program import Program
from sweepstack.engine.stack import Row, Stack
from sweepstack.training import metrics, regularization
from sweepstack.training.regularization import Augmentation

EVALUATION_CHUNK = {"cpu": 256, "cuda": 1024}
"""Samples of a split that are evaluated at once: on a CPU what its cache holds, on a GPU enough to
be worth its launches."""


AT_ONCE = 2**17
"""Numbers of past steps that are kept until right predictions are counted."""
_TOLD = "told "


@dataclass(frozen=True)
class Batch:
    """One step's samples, and its numbers for each slot.

    x (S, B, *shape) and y (S, B), or one batch that all slots `share`, (B, *shape) and (B,); lr
    (S,) float64, after schedule and scaling; step (S,) counted from 1; keys (S,) of random streams.
    Targets of several numbers have an axis more.
    """

    x: Tensor
    y: Tensor
    lr: Tensor
    step: Tensor
    keys: Row
    shared: bool = False

    def of(self, slots: slice) -> Batch:
        """The batch of some slots."""
        x, y = (self.x, self.y) if self.shared else (self.x[slots], self.y[slots])
        keys = {name: key[slots] for name, key in self.keys.items()}
        return Batch(x, y, self.lr[slots], self.step[slots], keys, self.shared)


@dataclass(frozen=True)
class Block:
    """T steps: their sample indices (T, S, B), or (T, B) where all slots see the same; lr, step and
    keys (T, S) as in `Batch`."""

    samples: Tensor
    lr: Tensor
    step: Tensor
    keys: Row

    @property
    def shared(self) -> bool:
        """Whether all slots see the same samples."""
        return self.samples.dim() == 2

    def of(self, slots: slice) -> Block:
        """The block of some slots."""
        samples = self.samples if self.shared else self.samples[:, slots]
        keys = {name: key[:, slots] for name, key in self.keys.items()}
        return Block(samples, self.lr[:, slots], self.step[:, slots], keys)

    def after(self, steps: int) -> Block:
        """The block without its first `steps`."""
        keys = {name: key[steps:] for name, key in self.keys.items()}
        return Block(self.samples[steps:], self.lr[steps:], self.step[steps:], keys)

    def batches(self, source: Source) -> Iterator[Batch]:
        """One batch after the other."""
        rows = zip(
            *(row.unbind(0) for row in (self.lr, self.step, *self.keys.values())), strict=True
        )
        for (x, y), (lr, step, *keys) in zip(source.batches(self.samples), rows, strict=True):
            named = dict(zip(self.keys, keys, strict=True))
            yield Batch(x, y, lr, step, named, self.shared)


class Step:
    """A program's forward, backward and update; `compiles` overrules `training.compile`."""

    def __init__(self, program: Program, *, compiles: bool | None = None):
        self.compiles = program.config.training.compile if compiles is None else compiles
        self.program, self.module, self.task = program, program.module, program.task
        self.rule, self.uses = program.rule, program.spec.uses
        uses = self.uses
        self.augment = Augmentation(
            crop=uses("crop"),
            flip=uses("flip"),
            affine=uses("rotation") or uses("translation"),
            cutout=uses("cutout"),
        )
        parameters = sum(1 for _ in self.module.parameters())
        every = sum(1 for _ in self.module.named_parameters(remove_duplicate=False))
        self.tied = parameters != every
        self.axes = program.data.train.y.dim()  # of the targets of one trial's batch
        on_cpu = program.device.type == "cpu" and not self.compiles
        self.fused = on_cpu and fused.works(self.rule.name)
        self._compiled: dict[Hashable, Callable[..., Any]] = {}

    @property
    def shares_batches(self) -> bool:
        """Whether slots with the same samples can share the tensor: nothing changes it."""
        return not (self.augment.any or self.uses("mixup"))

    def streams(self) -> list[str]:
        """Names of the random streams that this program draws from."""
        names = {
            "dropout": bool(self.program.dropouts),
            "augment": self.augment.any,
            "mixup": self.uses("mixup"),
        }
        return [name for name, used in names.items() if used]

    # --- training -------------------------------------------------------------------------------

    def __call__(self, stack: Stack, batch: Batch) -> list[Tensor]:
        """Advance every slot by one step in place; return what `gradients` tells."""
        told, grads = self.gradients(stack, batch.x, batch.y, batch.keys)
        self.update(stack, grads, batch)
        return told

    def gradients(
        self, stack: Stack, x: Tensor, y: Tensor, keys: Row
    ) -> tuple[list[Tensor], list[Tensor]]:
        """What a step tells, the losses (S,) and what `count` takes; and gradients, laid out as
        `stack.params.packed`, with L1 and clipping. Updates batch norms' statistics. Which
        operations run depends on no number, so that they can be recorded."""
        x, extra = self._prepare(stack, x, y, keys)
        with contained():
            losses, each, updated = self._differentiated(stack, x, y, extra)
        with torch.no_grad():
            params, grads = stack.params.packed, stack.packed_grads(each)
            if self.uses("l1"):
                regularization.add_l1(grads, params, stack.strengths["l1"])
            if self.uses("clip_value"):
                regularization.clip_by_value(grads, stack.strengths["clip_value"])
            if self.uses("clip_norm"):
                regularization.clip_by_norm(grads, stack.strengths["clip_norm"])
            told = [updated.pop(name) for name in list(updated) if name.startswith(_TOLD)]
            for name, value in updated.items():
                stack.live_buffers[name].copy_(value)
        return [
            losses,
            *([each.unsqueeze(0) for each in told] if stack.width == 1 else told),
        ], grads

    def count(self, stack: Stack, kept: list[list[Tensor]], *, most: int = 0) -> None:
        """Add the right predictions of some steps to those of the slots, and forget the steps.

        Args:
            kept: what each step told besides its losses, (S, B) or (S,).
            most: wait until there are more numbers than this.
        """
        if not kept or len(kept) * kept[0][0].numel() <= most:
            return
        with torch.no_grad():
            told = [torch.stack(rows) for rows in zip(*kept, strict=True)]
            stack.counts.views["hits"].add_(self.task.counted(told).sum(0))
        kept.clear()

    def update(self, stack: Stack, grads: Sequence[fused.Grad], batch: Batch) -> None:
        """Move the parameters in place; see `optim.Rule.update`."""
        rule, hyper = self.rule, stack.optimizer
        with torch.no_grad():
            if self.fused:
                moments = [stack.moments[name] for name in rule.moments]
                known = {key: hyper[key] for key in hyper if rule.decays or key != "weight_decay"}
                fused.update(rule.name, stack.params, grads, moments, known, batch.lr, batch.step)
                return
            update = self._compiled_for(("update", stack.width), rule.update)
            groups = {name: bank.packed for name, bank in stack.moments.items()}
            update(stack.params.packed, grads, groups, hyper, batch.lr, batch.step)

    def _prepare(
        self, stack: Stack, x: Tensor, y: Tensor, keys: Row
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Augment and mix the batch; collect what the loss needs per slot."""
        extra: dict[str, Tensor] = {}
        if self.augment.any:
            x = self.augment(x, keys["augment"], stack.strengths)
        if self.uses("mixup"):
            assert stack.mixup is not None
            lam = regularization.mixup_lambda(keys["mixup"], stack.mixup)
            x, partner = regularization.mix_inputs(x, lam), regularization.partners(y)
            extra |= {"lam": lam, "partner": partner}
        if self.program.dropouts:
            extra |= {"key": keys["dropout"], "dropout": stack.strengths["dropout"]}
        if self.uses("label_smoothing"):
            extra["label_smoothing"] = stack.strengths["label_smoothing"]
        return x, extra | self.numbers(stack)

    def numbers(self, stack: Stack) -> Row:
        """What the loss takes from each slot, in training and in evaluation."""
        return {name: stack.strengths[name] for name in self.task.numbers}

    def _differentiated(
        self, stack: Stack, x: Tensor, y: Tensor, extra: dict[str, Tensor]
    ) -> tuple[Tensor, list[Tensor], Row]:
        """Losses (S,), gradients in the order of the parameters, new batch-norm statistics, and
        what `count` takes.

        With one slot, all but the losses come without the slot axis.
        """
        self.module.train()
        leaves, buffers = stack.leaves, stack.live_buffers
        with autocast(self.program.config.training.precision, stack.device):
            shared = y.dim() == self.axes
            if stack.width == 1:
                only = {name: value[0] for name, value in extra.items()}
                batch = (x, y) if shared else (x[0], y[0])
                forward = self._compiled_for(("loss", 1, shared), self._loss)
                total, updated = forward(leaves, buffers, *batch, only)
                losses = total.detach().unsqueeze(0)
            else:
                axis = None if shared else 0
                stacked = vmap(self._loss, in_dims=(0, 0, axis, axis, 0))
                forward = self._compiled_for(("loss", stack.width, shared), stacked)
                each, updated = forward(leaves, buffers, x, y, extra)
                total, losses = each.sum(), each.detach()
        grads = torch.autograd.grad(
            total, list(leaves.values()), allow_unused=True, materialize_grads=True
        )
        return losses, list(grads), updated

    def _compiled_for(self, key: Hashable, function: Callable[..., Any]) -> Callable[..., Any]:
        """A function compiled for one kind of call, or as it is. torch stops after 8 recompilations
        of a code object: each kind has its own."""
        if not self.compiles:
            return function
        if key not in self._compiled:

            def call(*given: Any) -> Any:
                return function(*given)

            copy = FunctionType(call.__code__.replace(), call.__globals__, closure=call.__closure__)
            self._compiled[key] = torch.compile(copy, dynamic=False)
        return self._compiled[key]

    def _loss(
        self, params: Row, buffers: Row, x: Tensor, y: Tensor, extra: Row
    ) -> tuple[Tensor, Row]:
        """Mean loss of one trial's batch, written without the slot axis."""
        tensors = {**params, **buffers}
        for index, (name, layer) in enumerate(self.program.dropouts):
            tensors[f"{name}.key"] = streams.split(extra["key"], index)
            if not layer.fixed:
                tensors[f"{name}.p"] = extra["dropout"]
        outputs = functional_call(self.module, tensors, (x,), tie_weights=self.tied).float()
        scores = self.task.scores(outputs)
        losses = self.task.losses(scores, y, extra)
        told = self._told(scores.detach(), y, losses.detach(), extra)
        updated = {f"{_TOLD}{place}": each for place, each in enumerate(told)}
        if "lam" in extra:
            other = self.task.losses(scores, extra["partner"], extra)
            losses = extra["lam"] * losses + (1 - extra["lam"]) * other
        for name, norm in self.program.batch_norms:
            if norm.updated is not None:  # neither frozen nor kept in eval mode by the module
                updated[f"{name}.running_mean"], updated[f"{name}.running_var"] = norm.updated
                norm.updated = None
        return losses.mean(), updated

    def _told(self, scores: Tensor, y: Tensor, losses: Tensor, extra: Row) -> list[Tensor]:
        """What `count` takes; of mixed samples how many are right: λ times those of the first
        target and (1 - λ) times those of the other."""
        plain = not ({"label_smoothing", "lam"} & extra.keys())
        told = self.task.tells(scores, y, losses, plain=plain)
        if "lam" not in extra or not told:
            return told
        (other,) = self.task.tells(scores, extra["partner"], losses, plain=False)
        return [extra["lam"] * told[0] + (1 - extra["lam"]) * other]

    # --- evaluation -------------------------------------------------------------------------------

    def measure(
        self, params: Row, buffers: Row, numbers: Row, source: Source, samples: int
    ) -> list[list[float]]:
        """Sums of every measure over a split, for each slot, in eval mode without gradients; then
        the metrics that need the whole split.

        Args:
            params, buffers: tensors (S, *shape) by name.
            numbers: (S,) by name, see `Step.numbers`.
            source: the split, in chunks with a short last one.
            samples: N, only to choose the chunk.
        """
        self.module.eval()
        one_by_one = len(next(iter(params.values()))) == 1 or self.program.stacking_loses
        stacked = vmap(self._sums, in_dims=(0, 0, 0, None, None))
        function = self._each_sums if one_by_one else stacked
        total: Tensor | None = None
        kept: list[tuple[Tensor, Tensor]] = []
        precision, device = self.program.config.training.precision, self.program.device
        with torch.no_grad(), autocast(precision, device), contained():
            for x, y in source.chunks(min(EVALUATION_CHUNK[device.type], samples)):
                sums, *outputs = function(params, buffers, numbers, x, y)
                total = sums if total is None else total + sums
                kept += [(each, y) for each in outputs]
        assert total is not None
        rows = [[float(value) for value in row] for row in total.tolist()]
        if kept:
            whole, y = torch.cat([o for o, _ in kept], 1), torch.cat([y for _, y in kept])
            for row, each in zip(rows, whole, strict=True):
                row += [metric.whole(each, y) for metric in self.task.whole if metric.whole]
        return rows

    def confusion(self, state: Row) -> Tensor:
        """Validation samples of each class (row) by what is predicted (column), (K, K) int64; of
        several labels right predictions, predictions and samples of each, (3, K).

        Args:
            state: one trial's parameters and buffers, without a slot axis.
        """
        self.module.eval()
        program, labels = self.program, self.task.name == "multilabel"
        tensors = {name: tensor.to(program.device) for name, tensor in state.items()}
        total: Any = 0
        with torch.no_grad(), autocast(program.config.training.precision, program.device):
            for x, y in program.sources["val"].chunks(EVALUATION_CHUNK[program.device.type]):
                outputs = functional_call(self.module, tensors, (x,), tie_weights=self.tied).float()
                said, true = (each.double() for each in metrics.predicted(outputs, y))
                counts = torch.stack([(said * true).sum(0), said.sum(0), true.sum(0)])
                total = total + (counts if labels else true.T @ said)
        found: Tensor = total.long().cpu()
        return found

    def _each_sums(
        self, params: Row, buffers: Row, numbers: Row, x: Tensor, y: Tensor
    ) -> tuple[Tensor, ...]:
        """`_sums` of every slot, without vmap."""

        def of(row: Row, slot: int) -> Row:
            return {name: view[slot] for name, view in row.items()}

        slots = range(len(next(iter(params.values()))))
        rows = (of(params, n) | of(buffers, n) for n in slots)
        each = [self._sums(row, {}, of(numbers, n), x, y) for n, row in enumerate(rows)]
        return tuple(torch.stack(parts) for parts in zip(*each, strict=True))

    def _sums(
        self, params: Row, buffers: Row, numbers: Row, x: Tensor, y: Tensor
    ) -> tuple[Tensor, ...]:
        tensors = {**params, **buffers}
        outputs = functional_call(self.module, tensors, (x,), tie_weights=self.tied).float()
        sums = self.task.sums(outputs, y, numbers)
        return (sums, outputs) if self.task.whole else (sums,)
