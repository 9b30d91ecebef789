"""One training step and one evaluation of a stack.

The model is written for one trial; `torch.func.vmap` batches it over the `S` slots, and with one
slot it runs as it is. The gradient of the sum of the slots' losses is each slot's own gradient,
since no slot's loss depends on another's parameters.

Notation: x (S, B, *shape), y (S, B); everything per slot has shape (S,).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from types import FunctionType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.func import functional_call, vmap

from sweepstack.config.errors import contained, one_line
from sweepstack.data import streams
from sweepstack.data.batches import Source
from sweepstack.engine.program import Group, Program
from sweepstack.models import autotune, layers
from sweepstack.training import fused, metrics, regularization
from sweepstack.training.augmentation import Augmentation
from sweepstack.training.device import autocast, out_of_memory
from sweepstack.training.evaluation import Change
from sweepstack.training.fused import Bank, Row, shares
from sweepstack.training.stack import Stack

if TYPE_CHECKING:
    from sweepstack.engine.update import Update

log = logging.getLogger(__name__)

TRITON = {"cuda"}
"""Devices whose updates Triton's kernels may do."""
_NO_RULES = {"ema_decay", "backbone_lr_factor", "unfreeze_at"}
"""Hyperparameters that no update rule reads."""
EVALUATION_CHUNK = {"cpu": 256, "cuda": 1024}
"""Samples of a split that are evaluated at once: on a CPU what its cache holds, on a GPU enough to
be worth its launches, or more where their activations take a small share of its memory."""
MEMORY_SHARE = 64
SMALL_SAMPLE = 2**12
"""Bytes that a sample and its activations take at most where a CPU evaluates four times as many."""

AT_ONCE = 2**17
"""Numbers of past steps that are kept until right predictions are counted."""
_TOLD = "told "


@dataclass(frozen=True)
class Batch:
    """One step's samples, and its numbers for each slot.

    x (S, B, *shape) and y (S, B), or one batch that all slots `share`, (B, *shape) and (B,); lr
    (S,) float64, after schedule and scaling; step (S,) counted from 1; keys (S,) of random streams.
    Targets of several numbers have an axis more. `numbers` are what `update` reads, where
    they were computed for a whole block.
    """

    x: Tensor
    y: Tensor
    lr: Tensor
    step: Tensor
    keys: Row
    shared: bool = False
    numbers: Tensor | None = None

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

    def __getitem__(self, steps: slice) -> Block:
        """Some of the steps."""
        keys = {name: key[steps] for name, key in self.keys.items()}
        return Block(self.samples[steps], self.lr[steps], self.step[steps], keys)

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
        self.augment = self._augmentation()
        self.aliases = layers.aliases(self.module)
        self.axes = program.data.train.y.dim()  # of the targets of one trial's batch
        on_cpu = program.device.type == "cpu" and not self.compiles
        self.fused = on_cpu and not self.uses("dampening") and fused.works(self.rule.name)
        self._compiled: dict[Hashable, Callable[..., Any]] = {}
        self._kernels: dict[bool, Update | None] = {}
        self.trying: autotune.Rules | None = None  # in place of the program's

    def _augmentation(self) -> Augmentation:
        uses, program = self.uses, self.program
        affine = program.data.affine
        return Augmentation(
            resized=uses("resized_crop"),
            crop=uses("crop"),
            flip=uses("flip"),
            affine=uses("rotation") or uses("translation"),
            color=uses("color"),
            hue=uses("hue"),
            operations=uses("rand_augment") * program.config.regularization.rand_augment_operations,
            erasing=uses("random_erasing"),
            cutout=uses("cutout"),
            shift=None if affine is None else affine.shift.to(program.device),
            scale=None if affine is None else affine.scale.to(program.device),
        )

    @property
    def shares_batches(self) -> bool:
        """Whether slots with the same samples can share the tensor: nothing changes it."""
        return not (self.augment.any or self.uses("mixup"))

    def keys(self, stack: Stack, index: Tensor) -> Row:
        """What each step has of its own, for steps number `index` (T, S) counted from 0: the keys
        of random streams, and with `training.unfreeze_at` the number itself, as `at`."""
        found = {name: streams.split(stack.keys[name], index) for name in self.streams()}
        return found | ({"at": index} if self.uses("unfreeze") else {})

    def streams(self) -> list[str]:
        """Names of the random streams that this program draws from."""
        names = {
            "dropout": bool(self.program.dropouts),
            "augment": self.augment.any,
            "mixup": self.uses("mixup"),
        }
        return [name for name, used in names.items() if used]

    def kernel(self, stack: Stack) -> Update | None:
        """The Triton kernel that does such a stack's updates, if one does."""
        if stack.device.type not in TRITON or self.compiles or not stack.whole:
            return None
        if stack.one_row not in self._kernels:
            try:
                from sweepstack.engine.update import Update
            except ImportError as error:
                log.info("updates run without Triton: %s", one_line(error))
                self._kernels[stack.one_row] = None
            else:
                self._kernels[stack.one_row] = Update.of(self, one_row=stack.one_row)
        return self._kernels[stack.one_row]

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
        `stack.params.packed`, with L1 and clipping unless a kernel does both. Updates batch norms'
        statistics. Which operations run depends on no number, so that they can be recorded."""
        x, extra = self._prepare(stack, x, y, keys)
        with contained():
            losses, each, updated = self._accumulated(stack, x, y, extra)
        with torch.no_grad():
            grads = stack.packed_grads(each)
            if self.kernel(stack) is None:
                self.regularize(grads, stack.params.packed, stack.strengths, keys.get("at"))
            told = [updated.pop(name) for name in list(updated) if name.startswith(_TOLD)]
            for name, value in updated.items():
                stack.live_buffers[name].copy_(value)
        return [
            losses,
            *([each.unsqueeze(0) for each in told] if stack.width == 1 else told),
        ], grads

    def tried(self, stack: Stack, batch: Batch) -> list[list[Tensor]]:
        """The losses (S,), the raw gradients, and what the batch adds to the statistics of batch
        norms, of a step that changes nothing."""
        x, extra = self._prepare(stack, batch.x, batch.y, batch.keys)
        with contained():
            losses, each, updated = self._differentiated(stack, x, batch.y, extra)
        added = []
        for name, norm in self.program.batch_norms:
            for key in (f"{name}.running_mean", f"{name}.running_var"):
                if key in updated:
                    kept = (1 - norm.momentum) * stack.live_buffers[key]
                    added.append(updated[key].detach() - kept)
        return [[losses], each, added]

    def count(self, stack: Stack, kept: list[list[Tensor]], *, most: int = 0) -> None:
        """Add the right predictions of some steps to those of the slots, and forget the steps.

        Args:
            kept: what each step told besides its losses, (S, B) or (S,).
            most: wait until there are more numbers than this.
        """
        if not kept or len(kept) * kept[0][0].numel() <= most:
            return
        with torch.no_grad():
            self.add_hits(stack, [torch.stack(rows) for rows in zip(*kept, strict=True)])
        kept.clear()

    def add_hits(self, stack: Stack, told: Sequence[Tensor]) -> None:
        """`count` of T steps, what they told side by side: (T, S, B) or (T, S)."""
        right = self.task.counted(told).sum(0, dtype=torch.float64)  # in any order
        stack.counts.views["hits"].add_(right)

    def regularize(
        self,
        grads: Sequence[Tensor],
        params: Sequence[Tensor],
        strengths: Row,
        at: Tensor | None = None,
    ) -> None:
        """L1 and clipping of gradients (S, ...), in place; what `training.unfreeze_at` holds back
        after `at` (S,) steps has none."""
        if self.uses("l1"):
            regularization.add_l1(grads, params, strengths["l1"])
        if self.uses("unfreeze"):
            assert at is not None
            held = at < strengths["unfreeze_at"]
            for group in self.program.groups:
                mine = shares(grads, self.program.sizes, group.numbers) if group.late else []
                for grad in mine:
                    grad.masked_fill_(held.view(-1, *[1] * (grad.dim() - 1)), 0.0)
        if self.uses("clip_value"):
            regularization.clip_by_value(grads, strengths["clip_value"])
        if self.uses("clip_norm"):
            regularization.clip_by_norm(grads, strengths["clip_norm"])

    def update(self, stack: Stack, grads: Sequence[fused.Grad], batch: Batch) -> None:
        """Move the parameters in place; see `optim.Rule.update`.

        Raises:
            Exception: a kernel failed in spite of its probe; it is not used again.
        """
        kernel = self.kernel(stack)
        with torch.no_grad():
            whole = [grad for grad in grads if isinstance(grad, Tensor)]
            if stack.own is not None:
                again = partial(self._again, stack, batch)
                stack.own.step(whole, float(batch.lr[0]), again)
            elif kernel is not None:
                numbers, at = batch.numbers, batch.keys.get("at")
                if numbers is None:
                    numbers = kernel.numbers(stack, batch.lr, batch.step, at)
                try:
                    kernel(stack, whole, numbers)
                except Exception as error:  # of a size or an alignment that the probe did not have
                    if not out_of_memory(error):
                        kernel.refuse(one_line(error))
                        self._kernels[stack.one_row] = None
                    raise
            else:
                self.move(stack, grads, batch.lr, batch.step)
            if self.uses("ema"):
                self.average(stack, batch.step, *(["buffers"] if kernel else stack.averages))

    def move(self, stack: Stack, grads: Sequence[fused.Grad], lr: Tensor, step: Tensor) -> None:
        """Move the parameters in place by the rule of each group."""
        banks = [stack.params, *(stack.moments[name] for name in self.rule.moments)]
        if len(self.program.groups) == 1:
            (numbers,) = self.of_groups(stack.optimizer, lr, step)
            self._update(stack.width, banks, grads, *numbers)
            return
        for numbers in self.of_groups(stack.optimizer, lr, step):
            parts = [bank.among(numbers[0].numbers) for bank in banks]
            mine = shares(grads, self.program.sizes, numbers[0].numbers)
            self._update(stack.width, parts, mine, *numbers)

    def _again(self, stack: Stack, batch: Batch) -> tuple[Tensor, list[Tensor]]:
        """The losses (S,) and gradients of a batch, for an optimizer that asks more than once."""
        told, grads = self.gradients(stack, batch.x, batch.y, batch.keys)
        return told[0], grads

    def of_groups(
        self, hyper: Row, lr: Tensor, step: Tensor
    ) -> Iterator[tuple[Group, Row, Tensor, Tensor]]:
        """For each group of parameters its hyperparameters, lr and step (S,).

        Until a late group trains, its lr and weight decay are 0, and its moments stay 0 as its
        gradients are; then its steps count from 1, as in a new optimizer.
        """
        for group in self.program.groups:
            own, rate, at = hyper, lr, step
            if group.backbone:
                rate = rate * hyper["backbone_lr_factor"]
            if group.late:
                at = at - hyper["unfreeze_at"].to(at.dtype)
                on = (at > 0).to(rate.dtype)
                rate, at = rate * on, at.clamp(min=1)
                own = {**hyper, "weight_decay": hyper["weight_decay"] * on}
            yield group, own, rate, at

    def _update(
        self,
        width: int,
        banks: Sequence[Bank],
        grads: Sequence[fused.Grad],
        group: Group,
        hyper: Row,
        lr: Tensor,
        step: Tensor,
    ) -> None:
        """Move a group's parameters, the first of `banks`; the others are their moments."""
        params, *moments = banks
        if self.fused:
            others = _NO_RULES if self.rule.decays else {*_NO_RULES, "weight_decay"}
            known = {key: hyper[key] for key in hyper if key not in others}
            fused.update(self.rule.name, params, grads, moments, known, lr, step)
        else:
            update = self._compiled_for(("update", width, group.numbers.start), group.rule.update)
            packed = [bank.packed for bank in moments]
            update(
                params.packed,
                grads,
                dict(zip(self.rule.moments, packed, strict=True)),
                hyper,
                lr,
                step,
            )

    def average_weight(self, stack: Stack, step: Tensor) -> Tensor:
        """1 - d with d = min(`ema_decay`, (1+t)/(10+t)), of `step` (..., S); float64."""
        time = step.to(torch.float64)
        return 1 - torch.minimum(stack.optimizer["ema_decay"], (1 + time) / (10 + time))

    def average(self, stack: Stack, step: Tensor, *names: str) -> None:
        """θ̄ ← θ̄ + (1-d)(θ - θ̄) with d = min(`ema_decay`, (1+t)/(10+t)), which lets go of the
        initial weights early, as TensorFlow's ExponentialMovingAverage with `num_updates`; batch
        norms' statistics, `buffers`, alike."""
        weight = self.average_weight(stack, step)
        for name in names:
            for key, now in getattr(stack, name).views.items():
                mean = stack.averages[name].views[key]
                if mean.is_floating_point():
                    share = weight.to(mean.dtype).view(-1, *([1] * (mean.dim() - 1)))
                    mean.lerp_(now, share.expand_as(mean))
                else:
                    mean.copy_(now)

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

    def _accumulated(
        self, stack: Stack, x: Tensor, y: Tensor, extra: dict[str, Tensor]
    ) -> tuple[Tensor, list[Tensor], Row]:
        """`_differentiated`, of `batch.accumulate` batches one after the other: means of their
        losses and gradients. Batch norms see each, and dropout draws masks for each."""
        count, axis = self.program.config.batch.accumulate, y.dim() - self.axes
        if count == 1:
            return self._differentiated(stack, x, y, extra)
        total: Tensor | None = None
        grads: list[Tensor] = []
        updated: Row = {}
        told: dict[str, list[Tensor]] = {}
        pairs = zip(x.chunk(count, axis), y.chunk(count, axis), strict=True)
        for number, (inputs, targets) in enumerate(pairs):
            own = dict(extra)
            if "key" in extra:
                own["key"] = streams.split(extra["key"], number)
            if "partner" in extra:
                own["partner"] = extra["partner"].chunk(count, axis)[number]
            losses, each, updated = self._differentiated(stack, inputs, targets, own)
            total = losses if total is None else total + losses
            grads = [a + b for a, b in zip(grads, each, strict=True)] if grads else each
            for name in [name for name in updated if name.startswith(_TOLD)]:
                told.setdefault(name, []).append(updated.pop(name))
            with torch.no_grad():
                for name, value in updated.items() if number < count - 1 else ():
                    stack.live_buffers[name].copy_(value)
        assert total is not None
        # What is told of each sample stands side by side; of a batch it is a sum.
        joined = {
            name: torch.cat(parts, -1) if len(told) > 1 else torch.stack(parts).sum(0)
            for name, parts in told.items()
        }
        return total / count, [grad / count for grad in grads], updated | joined

    def _differentiated(
        self, stack: Stack, x: Tensor, y: Tensor, extra: dict[str, Tensor]
    ) -> tuple[Tensor, list[Tensor], Row]:
        """Losses (S,), gradients in the order of the parameters, new batch-norm statistics, and
        what `count` takes.

        With one slot, all but the losses come without the slot axis.
        """
        self.module.train()
        leaves, buffers = stack.leaves, stack.live_buffers
        with (
            autocast(self.program.config.training.precision, stack.device),
            self.rules(stack.width),
        ):
            shared = y.dim() == self.axes
            if stack.width == 1:
                only = {name: value[0] for name, value in extra.items()}
                batch = (x, y) if shared else (x[0], y[0])
                forward = self._compiled_for(("loss", 1, shared), self.loss)
                total, updated = forward(leaves, buffers, *batch, only)
                losses = total.detach().unsqueeze(0)
            else:
                axis = None if shared else 0
                stacked = vmap(self.loss, in_dims=(0, 0, axis, axis, 0))
                forward = self._compiled_for(("loss", stack.width, shared), stacked)
                each, updated = forward(leaves, buffers, x, y, extra)
                total, losses = each.sum(), each.detach()
        grads = torch.autograd.grad(
            total, list(leaves.values()), allow_unused=True, materialize_grads=True
        )
        return losses, [g.to_dense() if g.is_sparse else g for g in grads], updated

    def rules(self, width: int) -> Any:
        """The context in which the model's convolutions, pools and batch norms run, and autocast
        where vmap hides from it."""
        program = self.program
        casts = program.config.training.precision == "bf16"
        if self.compiles or not (program.convolves or casts):
            return nullcontext()
        return self.trying or autotune.Rules(program.plan(width))

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

    def loss(
        self, params: Row, buffers: Row, x: Tensor, y: Tensor, extra: Row
    ) -> tuple[Tensor, Row]:
        """Mean loss of one trial's batch, written without the slot axis."""
        tensors = {**params, **buffers}
        for index, name, layer in self.program.dropouts:
            tensors[f"{name}.key"] = streams.split(extra["key"], index)
            if not layer.fixed:
                tensors[f"{name}.p"] = extra["dropout"]
        outputs = self.outputs(tensors, x)
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

    def outputs(self, tensors: Row, x: Tensor) -> Tensor:
        """What the module with these parameters and buffers gives, in float32."""
        tied = {name: tensors[known] for name, known in self.aliases.items() if known in tensors}
        found: Tensor = functional_call(self.module, {**tensors, **tied}, (x,), tie_weights=False)
        return found.float()

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
        self,
        params: Row,
        buffers: Row,
        numbers: Row,
        source: Source,
        samples: int,
        change: Change | None = None,
    ) -> list[list[float]]:
        """Sums of every measure over a split, for each slot, in eval mode without gradients; then
        the metrics that need the whole split.

        Args:
            params, buffers: tensors (S, *shape) by name.
            numbers: (S,) by name, see `Step.numbers`.
            source: the split, in chunks with a short last one.
            samples: N, at most these at once.
            change: what is done to the samples before.
        """
        self.module.eval()
        one_by_one = len(next(iter(params.values()))) == 1 or self.program.stacking_loses
        stacked = vmap(self._sums, in_dims=(0, 0, 0, None, None))
        function = self._each_sums if one_by_one else stacked
        total: Tensor | None = None
        seen = 0
        kept: list[tuple[Tensor, Tensor]] = []
        precision, device = self.program.config.training.precision, self.program.device
        rules = self.rules(1 if one_by_one else len(next(iter(params.values()))))
        with torch.no_grad(), autocast(precision, device), rules, contained():
            for x, y in source.chunks(self.chunk(len(next(iter(params.values()))), samples)):
                given = x if change is None else change(x, seen)
                seen += len(y)
                sums, *outputs = function(params, buffers, numbers, given, y)
                total = sums if total is None else total + sums
                kept += [(each, y) for each in outputs]
        assert total is not None
        rows = [[float(value) for value in row] for row in total.tolist()]
        if kept:
            whole, y = torch.cat([o for o, _ in kept], 1), torch.cat([y for _, y in kept])
            for row, each in zip(rows, whole, strict=True):
                row += [metric.whole(each, y) for metric in self.task.whole if metric.whole]
        return rows

    def chunk(self, slots: int, samples: int) -> int:
        """How many of a split's samples some slots evaluate at once."""
        place, most = self.program.device, EVALUATION_CHUNK[self.program.device.type]
        inputs, activations = math.prod(self.program.data.input_shape), self.program.activations
        if place.type == "cuda":
            memory = torch.cuda.get_device_properties(place).total_memory // MEMORY_SHARE
            most = max(most, memory // (4 * (slots * activations + inputs)))
        elif 4 * (inputs + activations) <= SMALL_SAMPLE:
            most *= 4
        size = -(-samples // -(-samples // most))  # chunks of about one size
        return size + (samples % size == 1)  # a module may squeeze a batch of one sample

    def confusion(self, state: Row) -> Tensor:
        """Validation samples of each class (row) by what is predicted (column), (K, K) int64; of
        several labels right predictions, predictions and samples of each, (3, K).

        Args:
            state: one trial's parameters and buffers, without a slot axis.
        """
        self.module.eval()
        program, labels = self.program, self.task.name == "multilabel"
        known = self.module.state_dict(keep_vars=True).keys()  # a cut model has only its head
        tensors = {name: t.to(program.device) for name, t in state.items() if name in known}
        total: Any = 0
        with torch.no_grad(), autocast(program.config.training.precision, program.device):
            for x, y in program.sources["val"].chunks(self.chunk(1, len(program.data.val))):
                outputs = self.outputs(tensors, x)
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
        outputs = self.outputs(tensors, x)
        sums = self.task.sums(outputs, y, numbers)
        return (sums, outputs) if self.task.whole else (sums,)
