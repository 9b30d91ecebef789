"""Everything that a config's static fields determine: device, data, module template, task, update
rule. Everything that can be wrong before training is found here, all mistakes together."""

from __future__ import annotations

import hashlib
import logging
import math
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache, partial
from typing import Any

import torch
from torch import Tensor, fx, nn

from sweepstack import data, models
from sweepstack.config.errors import InputError, NoMemory, contained, nearest, noted, one_line
from sweepstack.config.schema import Custom, HubModel, Model, Plateau, TorchvisionModel
from sweepstack.data import batches, streams
from sweepstack.data.dataset import Dataset
from sweepstack.models import features, layers, pretrained
from sweepstack.models.autotune import Plan
from sweepstack.training import device, early_stopping, evaluation, metrics, own, schedule
from sweepstack.training import init as initialization
from sweepstack.training import loss as losses
from sweepstack.training import optimizer as optim
from sweepstack.training.regularization import beta_table
from sweepstack.training.spec import TrialSpec
from sweepstack.training.stack import Numbers, Stack

log = logging.getLogger(__name__)

_PICTURES_ONLY = (
    *("random_resized_crop", "crop_padding", "horizontal_flip", "rotation", "translation"),
    *("brightness", "contrast", "saturation", "hue", "rand_augment", "random_erasing", "cutout"),
)
_COLORS_ONLY = ("saturation", "hue")
_CHANGES_INPUTS = ("mixup", *_PICTURES_ONLY)
"""Keys of `regularization` that change samples from step to step."""
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_STRENGTHS = (
    *("dropout", "l1", "label_smoothing", "clip_norm", "clip_value"),
    *(*_PICTURES_ONLY, "random_resized_crop_ratio"),
)


@lru_cache(maxsize=2)
def _sources(
    config: Any, trust: tuple[str, ...], _stamp: data.Stamp, place: str
) -> dict[str, batches.Source]:
    """The splits of a dataset as sources of batches; kept, so that a sweep loads them once."""
    dataset, target = data.load(config, trust), torch.device(place)
    splits = {"train": dataset.train, "val": dataset.val, "test": dataset.test}
    return {
        name: batches.source(split, target, config.placement, config.workers)
        for name, split in splits.items()
        if split is not None
    }


_FOR_FEATURES = (
    *("data.", "model.", "trust"),
    *("training.device", "training.precision", "training.deterministic"),
)
KEPT = 16
_programs: dict[Any, Program] = {}  # by static part, the one last asked for at the end


@dataclass(frozen=True)
class Group:
    """Parameters that learn alike, by their numbers in `Program.params`: `backbone` those of all
    layers but the last, `late` those that `training.unfreeze_at` holds back. `rule` is the update
    rule for these parameters."""

    numbers: slice
    backbone: bool
    late: bool
    rule: optim.Rule


class Program:
    """Everything that all trials of a stack share.

    Args:
        spec: any trial with this static part.

    Raises:
        InputError: the config does not fit the data or the model; every mistake, one line each.
        EnvironmentFault: the dataset or the device is missing.
    """

    def __init__(self, spec: TrialSpec):
        config = spec.config
        self.spec, self.config = spec, config
        self.notes: list[str] = []  # lines for the log, when the first trial starts
        self.device = device.resolve(config.training)
        asked = config.data
        if isinstance(config.model, TorchvisionModel) and config.model.weights:
            raw = data.load(replace(config.data, normalization="none"), config.trust)
            asked = pretrained.as_weights_ask(config.model, config.data, raw.input_shape[0])
            if asked != config.data:
                self.notes.append(_said_of(config.model, asked))
        self.data: Dataset = data.load(asked, config.trust)
        self.seen = self.data  # what the whole model is fed
        self.task, mistakes = losses.build(config, self.data, self.device)
        affine = self.data.affine
        scale = None if affine is None else affine.scale.to(self.device)
        self.changes = evaluation.changes(config.evaluation, config.data.split_seed, scale)
        self.batch_size = config.batch.size * config.batch.accumulate  # samples of a step
        self.steps_per_epoch = len(self.data.train) // self.batch_size
        self.eval_every = config.training.eval_every or max(self.steps_per_epoch, 1)
        automatic = config.objective == "auto"
        self.objective = self.task.default_objective if automatic else config.objective
        self.direction = self.task.direction_of(self.objective)
        self.plans, self.unplanned = dict[int, Plan | None](), set[int]()  # see `width.plan`
        self.fits: int | None = None  # about how many trials fit into memory, where known
        self.rule = optim.rule_of(spec.config.optimizer, spec.uses("weight_decay"))
        mistakes += self._mistakes()
        for attempt in (self._build, lambda: self.check(spec)):
            try:
                attempt()
            except InputError as error:
                if isinstance(error, NoMemory) and not mistakes:
                    raise
                mistakes += error.mistakes
        if mistakes:
            raise InputError(mistakes)
        self.whole = self.module.to(self.device)
        self.sources = _sources(asked, config.trust, data.stamp(asked), str(self.device))
        self._cut()
        kept = dict(layers.dropouts(self.module))
        numbered = enumerate(layers.dropouts(self.whole))
        self.dropouts = [
            (number, name, layer) for number, (name, layer) in numbered if name in kept
        ]
        self.batch_norms = layers.batch_norms(self.module)
        self.rule = self.rule.suited(self.module, self.params())
        self.groups = self._grouped()
        if self.constant is not None:
            self.notes.append(self.init_summary)
        resident = isinstance(self.sources["train"], batches.DeviceSource)
        self.order_device = self.device if resident else torch.device("cpu")

    @classmethod
    def of(cls, spec: TrialSpec) -> Program:
        """The program of a spec's static part; those last asked for are kept."""
        # Files that changed are read again.
        key = (spec.static, data.stamp(spec.config.data), _stamp(spec.config.model))
        with device.settings(spec.config.training):  # features of frozen layers are computed
            program = _programs.pop(key, None) or cls(spec)
        _programs[key] = program
        if len(_programs) > KEPT:
            del _programs[next(iter(_programs))]
        return program

    # --- checks -----------------------------------------------------------------------------

    def _mistakes(self) -> list[str]:
        config, samples = self.config, len(self.data.train)
        mistakes = []
        if self.batch_size > samples:
            mistakes.append(
                f"batch.size{' * batch.accumulate' if config.batch.accumulate > 1 else ''} must "
                f"be <= the {samples} training samples of {config.data.name}, "
                f"got {self.batch_size}"
            )
        mistakes += evaluation.mistakes(config.evaluation, self.data)
        mistakes += self._unmeasured("objective", self.objective)
        asked = [key for key in _PICTURES_ONLY if getattr(config.regularization, key)]
        if not self.data.is_image:
            mistakes += [
                f"regularization.{key} needs pictures, {config.data.name} has none" for key in asked
            ]
        return mistakes

    def _unmeasured(self, key: str, metric: str) -> list[str]:
        """What is wrong with a key that names a metric which is not measured."""
        if metric in self.task.objectives:
            return []
        switch = evaluation.hint(metric) or metrics.remedy(metric, self.task.name)
        return [
            f"{key} must be one of {', '.join(self.task.objectives)} for {self.task.name} on "
            f"{self.config.data.name}, got '{metric}'"
            f"{switch or nearest(metric, self.task.objectives)}"
        ]

    def _build(self) -> None:
        config = self.config
        unseen = isinstance(config.model, Custom | HubModel)  # nobody knows what it does
        self.held = set[str]()  # names that model.freeze means
        # Before anything is allocated; some of torchvision's constructors read numbers.
        if not unseen and not isinstance(config.model, TorchvisionModel):
            with torch.device("meta"):
                trial = models.build(config, *self._shapes)
                self.held = pretrained.frozen(trial, getattr(config.model, "freeze", ()))
                self._check_memory(trial)
        self.module, self.constant = self._constructed()
        if isinstance(config.model, Custom | HubModel | TorchvisionModel) and self.constant is None:
            again, _ = self._constructed(seed=1)
            self.constant = initialization.constant(self.module, again)
        if isinstance(config.model, Model):
            self.held = pretrained.frozen(self.module, config.model.freeze)
            pretrained.hold_norms(self.module, self.held)
        if unseen:
            self._check_memory(self.module)
            self._try_module()
        else:
            self._check_memory(self.module, self._try_module())
        named = dict(self.module.named_parameters())
        for name in self.frozen & (self.constant or set()):
            named[name].requires_grad_(False)
        if self.task.loss == "nll":
            self._check_log_probabilities()

    def _constructed(self, seed: int = 0) -> tuple[nn.Module, set[str] | None]:
        """The model with its weights, and the names of those that were loaded, if any."""
        model = self.config.model
        module = models.build(self.config, *self._shapes, seed)
        if isinstance(model, Model) and model.weights is not None:
            return module, pretrained.load(module, model, self.seen.classes)
        return module, None

    @property
    def _shapes(self) -> tuple[tuple[int, ...], int]:
        """A sample's axes as the whole model sees it, and the number of outputs."""
        return self.seen.input_shape, self.seen.outputs

    @property
    def frozen(self) -> set[str]:
        """Names of the parameters that are never trained."""
        module = self.__dict__.get("whole", self.module)
        own = {n for n, p in module.named_parameters() if not p.requires_grad}
        return own | (set() if self.spec.uses("unfreeze") else self.held)

    def _cut(self) -> None:
        """Compute once what frozen layers give for each sample, where `model.cache_features` says
        so and nothing makes it another from step to step; only the rest is trained then."""
        model = self.config.model
        wanted = getattr(model, "cache_features", False)
        if not wanted:
            return
        try:
            if self.spec.uses("unfreeze") or not self.frozen:
                raise features.Uncuttable("nothing is frozen to the end")
            given = self.config.regularization
            changing = [name for name in _CHANGES_INPUTS if getattr(given, name)]
            if changing:
                raise features.Uncuttable(f"{changing[0]} changes the samples at each step")
            if self.changes:
                raise features.Uncuttable("evaluation measures on changed samples")
            trained = self.whole_params()
            sample = self.data.train.gather(torch.arange(min(2, len(self.data.train))))[0]
            parts = features.parts(
                self.whole, trained, self.constant or set(), sample.to(self.device)
            )
            self.sources, self.data = self._featured(parts[0])
        except features.Uncuttable as error:
            if wanted is True:
                raise InputError(
                    f"model.cache_features must be auto or false, got true: {error}"
                ) from error
            if self.frozen:
                self.notes.append(f"features of frozen layers are not kept: {error}")
            return
        self.module = parts[1]
        numbers = math.prod(self.data.input_shape)
        self.notes.append(f"features of frozen layers are kept: {numbers:,} numbers a sample")

    def _featured(self, part: fx.GraphModule) -> tuple[dict[str, batches.Source], Dataset]:
        """Features of all splits, on the device."""
        kept = [(k, v) for k, v in self.spec.static if k.startswith(_FOR_FEATURES)]
        stamps = data.stamp(self.config.data), _stamp(self.config.model)
        key = (tuple(kept), str(self.device), part.code, *stamps)  # dropout moves the cut
        precision = partial(device.autocast, self.config.training.precision, self.device)
        return features.computed(part, key, self.sources, self.data, self.device, precision)

    def _grouped(self) -> list[Group]:
        """The groups of parameters; one, where all learn alike."""
        names = list(self.params())
        kinds = [self._kind(name) for name in names]
        edges = [n for n, kind in enumerate(kinds) if n == 0 or kind != kinds[n - 1]]
        slices = [slice(*pair) for pair in zip(edges, [*edges[1:], len(kinds)], strict=True)]
        return [Group(part, *kinds[part.start], self.rule.among(part)) for part in slices]

    @cached_property
    def sizes(self) -> list[int]:
        """How many numbers each trained parameter has."""
        return [parameter.numel() for parameter in self.params().values()]

    def _kind(self, name: str) -> tuple[bool, bool]:
        """Whether a parameter learns at the backbone's rate, and whether it begins late."""
        slower = self.spec.uses("backbone_lr") and name in self.backbone
        return slower, self.spec.uses("unfreeze") and name in self.held

    @cached_property
    def backbone(self) -> set[str]:
        """Names of the parameters of all layers but the last."""
        return pretrained.in_backbone(self.whole)

    def _check_memory(self, module: nn.Module, activations: int = 0) -> None:
        """Raise NoMemory if one trial needs more than there is; `activations` are the numbers that
        a step keeps of a batch."""
        never = set() if self.spec.uses("unfreeze") else self.held
        sizes = {n: p.numel() for n, p in module.named_parameters()}
        count = sum(sizes.values())
        fixed = sum(size for name, size in sizes.items() if name in never)
        inputs = self.batch_size * math.prod(self.data.input_shape)
        # The template, the trial, its best state, gradients, a temporary copy, and moments.
        held = 5 + len(self.rule.moments) + self.spec.uses("ema")
        need = 4 * (held * (count - fixed) + fixed + activations + inputs)
        free = batches.free_memory(self.device)
        if self.device.type == "cuda":  # what others use may come free
            free = torch.cuda.get_device_properties(self.device).total_memory
        self.fits = max(1, int(0.9 * free / need))
        if need > free:
            raise NoMemory(
                f"model {self.config.model.name} of {count:,} parameters at batch.size="
                f"{self.config.batch.size} needs about {need / 2**30:,.1f} GiB to train with "
                f"{self.config.optimizer.name}, {free / 2**30:,.1f} GiB are free on {self.device}"
            )

    def _try_module(self) -> int:
        """Run the template once on zero samples, in training mode.

        Returns:
            Numbers that a step keeps of a batch, at least: the outputs of layers with parameters.
        """
        samples = min(self.config.batch.size, 2)
        sample = torch.zeros(samples, *self.data.input_shape)
        wanted = (samples, self.data.outputs)
        kept = 0

        def count(_layer: nn.Module, _inputs: Any, output: Any) -> None:
            nonlocal kept
            kept += output.numel() if isinstance(output, Tensor) else 0

        hooks = [
            layer.register_forward_hook(count)
            for layer in self.module.modules()
            if next(layer.parameters(recurse=False), None) is not None
        ]
        self.module.train()
        try:
            with torch.no_grad(), contained():
                outputs = self.module(sample)
        except Exception as error:
            raise InputError(
                f"model {self.config.model.name} does not run on samples of shape "
                f"{tuple(self.data.input_shape)}: {one_line(error)}"
            ) from error
        finally:
            for hook in hooks:
                hook.remove()
        shape = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
        if shape != wanted:
            raise InputError(
                f"the model must return outputs of shape (B, {wanted[1]}) for "
                f"{self.data.name}, got {shape} for B = {samples}"
            )
        if self.frozen >= {name for name, _ in self.module.named_parameters()}:
            raise InputError("the model must have at least one parameter to train, got none")
        self.activations = kept // samples  # numbers that layers make of a sample, about
        return self.activations * self.config.batch.size

    def _check_log_probabilities(self) -> None:
        """Raise InputError if the outputs for zeros are no log-probabilities."""
        with torch.no_grad(), contained():
            total = self.module.eval()(torch.zeros(2, *self.data.input_shape)).exp().sum(-1)
        if not torch.allclose(total, torch.ones(2), atol=1e-3):
            raise InputError(
                "loss=nll needs log-probabilities, whose exponentials add up to 1, got outputs of "
                f"model {self.config.model.name} that add up to {float(total[0]):.4g}: end it with "
                "torch.nn.LogSoftmax(-1), or take loss=cross_entropy for logits"
            )

    def check(self, spec: TrialSpec) -> None:
        """Find what is wrong with the dynamic part of a spec.

        Raises:
            InputError: the schedule does not fit the run's steps or metrics, init its activation,
                or an augmentation the pictures.
        """
        mistakes = []
        if self.data.is_image:
            side, given = min(self.data.input_shape[1:]), spec.config.regularization
            mistakes += [
                f"regularization.{key} must be {rule} {side}, the shorter side of the pictures of "
                f"{self.data.name}, got {value}"
                for key, rule, value, most in (
                    ("cutout", "<=", given.cutout, side),
                    ("crop_padding", "<", given.crop_padding, side - 1),
                )
                if value > most
            ]
            channels = self.data.input_shape[0]
            mistakes += [
                f"regularization.{key} needs pictures of 3 channels, those of {self.data.name} "
                f"have {channels}"
                for key in _COLORS_ONLY
                if getattr(given, key) and channels != 3
            ]
        if isinstance(spec.config.schedule, Plateau):
            mistakes += self._unmeasured("schedule.metric", spec.config.schedule.metric)
        activation = getattr(spec.config.model, "activation", None)
        if self.rule.alone:
            with noted(mistakes):
                own.check(spec.config, self.module)
        try:
            initialization.check(spec.config.init, activation)
        except InputError as error:
            mistakes += error.mistakes
        if self.total_steps(spec):  # 0 when the batch is larger than the split
            try:
                self.schedule(spec)
            except InputError as error:
                mistakes += error.mistakes
        if mistakes:
            raise InputError(mistakes)

    # --- what a trial brings into a slot ------------------------------------------------------

    def total_steps(self, spec: TrialSpec) -> int:
        """Budget of a trial in steps; an epoch is N // B steps, the rest waits for the next."""
        training = spec.config.training
        if training.max_steps is not None:
            return training.max_steps
        assert training.max_epochs is not None
        return training.max_epochs * self.steps_per_epoch

    def schedule(self, spec: TrialSpec) -> schedule.LrSchedule:
        """The learning-rate schedule of a trial."""
        steps, epoch = self.total_steps(spec), self.steps_per_epoch
        return schedule.build(spec.config.schedule, steps, self.task.direction_of, epoch)

    def stopper(self, spec: TrialSpec) -> early_stopping.Stopper:
        """The early-stopping rule of a trial."""
        return early_stopping.build(spec.config.early_stopping, self.objective, self.direction)

    def initial(self, spec: TrialSpec) -> dict[str, Tensor]:
        """Initial parameters and buffers of a trial, drawn from its seed on the CPU."""
        activation = getattr(spec.config.model, "activation", None)
        init, seed, kept = spec.config.init, spec.config.training.seed, self.constant or set()
        module = self.whole
        for note in self.notes:
            log.info("%s", note)
        self.notes.clear()
        if self.constructs(spec):  # what the constructor draws follows the seed
            module, _ = self._constructed(seed)
        values = initialization.draw(module, init, activation, seed, kept)
        return dict(module.named_buffers()) | values

    def constructs(self, spec: TrialSpec) -> bool:
        """Whether a trial's initial state needs the model's constructor."""
        return self._draws_itself or "keep" in spec.config.init.schemes

    @cached_property
    def _draws_itself(self) -> bool:
        """Whether the model's constructor draws what no scheme does."""
        if self.constant is None:
            return False
        drawn = initialization.drawn(self.whole, self.constant)
        return bool(self.whole.state_dict().keys() - self.constant - {*drawn})

    @property
    def init_summary(self) -> str:
        """What `init` draws of a model that brings weights, and what stays as constructed."""
        drawn = initialization.drawn(self.whole, self.constant or ())
        kept = [name for name, _ in self.whole.named_parameters() if name not in drawn]
        source = "loaded" if getattr(self.config.model, "weights", None) else "constructed"
        return f"init draws {_listed(drawn)}; kept as {source}: {_listed(kept)}"

    def numbers(self, spec: TrialSpec) -> Numbers:
        """The hyperparameters and stream keys of a trial."""
        config, seed = spec.config, spec.config.training.seed
        given = {name: getattr(config.regularization, name) for name in _STRENGTHS}
        given |= {name: getattr(config.loss, name) for name in self.task.numbers}
        strengths = {name: math.inf if v is None else float(v) for name, v in given.items()}
        hyper = self.rule.hyper(config.optimizer)
        hyper["weight_decay"] = config.regularization.weight_decay
        if spec.uses("backbone_lr"):
            hyper["backbone_lr_factor"] = getattr(config.optimizer, "backbone_lr_factor", 1.0)
        if spec.uses("unfreeze"):
            hyper["unfreeze_at"] = strengths["unfreeze_at"] = float(
                config.training.unfreeze_at or 0
            )
        if spec.uses("ema"):
            hyper["ema_decay"] = config.training.ema_decay
        keys = {
            "dropout": streams.derive(seed, streams.DROPOUT),
            "augment": streams.derive(seed, streams.AUGMENT),
            "mixup": streams.derive(seed, streams.MIXUP),
        }
        table = beta_table(config.regularization.mixup) if spec.uses("mixup") else None
        alone = partial(own.OwnOptimizer, config) if self.rule.alone else None
        return Numbers(hyper, strengths, keys, table, alone)

    def order_key(self, spec: TrialSpec) -> int:
        """The key of the batch order: `data.order_seed`, or the trial's seed."""
        fixed = spec.config.data.order_seed
        return streams.derive(spec.config.training.seed if fixed is None else fixed, streams.ORDER)

    # --- shapes ---------------------------------------------------------------------------------

    def params(self) -> dict[str, Tensor]:
        """The template's trained parameters, by name; those of a group follow each other, the
        backbone's first."""
        kept, frozen = dict(self.module.named_parameters()), self.frozen
        names = [name for name in kept if name not in frozen]
        return {name: kept[name] for name in sorted(names, key=self._kind, reverse=True)}

    def whole_params(self) -> list[str]:
        """Names of the whole model's trained parameters."""
        frozen = self.frozen
        return [name for name, _ in self.whole.named_parameters() if name not in frozen]

    def buffers(self) -> dict[str, Tensor]:
        """A trial's other tensors: batch norms' statistics, frozen parameters that the trial's seed
        drew, and a custom module's saved buffers."""
        trained, state, shared = self.params(), self.module.state_dict(), self.shared
        names = dict(self.module.named_parameters()) | dict(self.module.named_buffers())
        return {n: t for n, t in names.items() if n in state and n not in trained | shared.keys()}

    @cached_property
    def shared(self) -> dict[str, Tensor]:
        """What all trials have in common and none changes: frozen parameters that do not depend on
        a seed, and the statistics of their batch norms."""
        fixed = self.frozen
        for name, norm in layers.batch_norms(self.whole):
            if norm.frozen:
                fixed |= {f"{name}.{kind}".lstrip(".") for kind in ("running_mean", "running_var")}
        kept = fixed & (self.constant or set())
        state = self.whole.state_dict()
        return {name: state[name] for name in state if name in kept}

    @cached_property
    def shared_on_cpu(self) -> dict[str, Tensor]:
        """`shared`, for a trial's best state."""
        return {name: tensor.detach().to("cpu", copy=True) for name, tensor in self.shared.items()}

    @cached_property
    def fingerprint(self) -> str:
        """Of what a trial does not save, but reads from files: the data and frozen weights."""
        found = hashlib.sha256()
        for name, tensor in self.shared_on_cpu.items():
            found.update(name.encode())
            found.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
        return self.data.fingerprint + (found.hexdigest()[:16] if self.shared else "")

    @cached_property
    def inputs(self) -> dict[str, Any]:
        """The model's inputs and outputs: a sample is (x - shift) / scale, pictures in [0, 1]."""
        affine = self.seen.affine
        return {
            "input_shape": list(self.seen.input_shape),
            "outputs": self.data.outputs,
            "classes": list(self.data.classes),
            "task": self.data.task,
            "columns": self.data.columns,
            "batch_norms": [
                name for name, norm in layers.batch_norms(self.whole) if norm.kind is not None
            ],
            "shift": None if affine is None else affine.shift,
            "scale": None if affine is None else affine.scale,
        }

    @cached_property
    def num_parameters(self) -> int:
        """Number of trained scalars of one trial."""
        return sum(parameter.numel() for parameter in self.params().values())

    @property
    def stacking_loses(self) -> bool:
        """Whether a stack is known to be slower than its trials: grouped convolutions on a CPU."""
        convolves = any(isinstance(layer, _CONVOLUTIONS) for layer in self.module.modules())
        return convolves and self.device.type == "cpu"

    @cached_property
    def convolves(self) -> bool:
        """Whether the model seems to have convolutions of pictures, by its weights' shapes."""
        return any(parameter.dim() == 4 for parameter in self.module.parameters())

    def plan(self, width: int) -> Plan | None:
        """How convolutions of a stack run: as was measured at this width or the next wider one."""
        known = [wide for wide in self.plans if wide >= width > 1]
        return self.plans[min(known)] if known else None

    def stack(self, width: int) -> Stack:
        """An empty stack of `width` slots."""
        shapes, moments = (self.params(), self.buffers()), self.rule.moments
        averages = self.spec.uses("ema")
        return Stack(*shapes, moments, self._layouts(), width, self.device, averages)

    def _layouts(self) -> dict[str, tuple[int, ...]] | None:
        """The gradient of a linear layer's weight (S, out, in) comes out of a batched matrix
        product as (S, in, out)."""
        if self.rule.shaped:
            return None
        named = self.module.named_modules()
        linear = [name for name, layer in named if isinstance(layer, nn.Linear)]
        return {f"{name}.weight".lstrip("."): (0, 2, 1) for name in linear}


def _stamp(model: Any) -> Any:
    """What tells whether the file of weights is still the one that was read."""
    return pretrained.stamp(model.weights) if isinstance(model, Model) and model.weights else None


def _said_of(model: TorchvisionModel, asked: Any) -> str:
    """What weights of torchvision ask of the pictures."""
    size = getattr(asked, "image_size", None)
    mean, std = ([round(number, 3) for number in pair] for pair in (asked.mean, asked.std))
    return f"model.weights={model.weights}: pictures of side {size}, mean {mean}, std {std}"


def _listed(names: list[str]) -> str:
    """Names in one line, the first ones of many."""
    if not names:
        return "nothing"
    more = f" and {len(names) - 6} more" if len(names) > 6 else ""
    return ", ".join(names[:6]) + more
