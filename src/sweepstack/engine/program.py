"""Everything that a config's static fields determine: device, data, module template, task, update
rule. Everything that can be wrong before training is found here, all mistakes together."""

from __future__ import annotations

import logging
import math
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from sweepstack import data, models
from sweepstack.config.errors import InputError, NoMemory, contained, nearest, one_line
from sweepstack.config.schema import Custom, Plateau
from sweepstack.data import batches, streams
from sweepstack.data.dataset import Dataset
from sweepstack.engine import device
from sweepstack.engine.spec import TrialSpec
from sweepstack.engine.stack import Numbers, Stack
from sweepstack.models import layers
from sweepstack.training import early_stopping, metrics, schedule
from sweepstack.training import init as initialization
from sweepstack.training import loss as losses
from sweepstack.training import optimizer as optim
from sweepstack.training.regularization import beta_table

log = logging.getLogger(__name__)

_PICTURES_ONLY = {
    "cutout": "cutout",
    "crop": "crop_padding",
    "flip": "horizontal_flip",
    "rotation": "rotation",
    "translation": "translation",
}
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_STRENGTHS = (
    *("dropout", "l1", "label_smoothing", "clip_norm", "clip_value", "crop_padding"),
    *("horizontal_flip", "rotation", "translation", "cutout"),
)


@lru_cache(maxsize=2)
def _sources(config: Any, place: str) -> dict[str, batches.Source]:
    """The splits of a dataset as sources of batches; kept, so that a sweep loads them once."""
    dataset, target = data.load(config), torch.device(place)
    splits = {"train": dataset.train, "val": dataset.val, "test": dataset.test}
    return {
        name: batches.source(split, target, config.placement, config.workers)
        for name, split in splits.items()
        if split is not None
    }


KEPT = 16
_programs: dict[Any, Program] = {}  # by static part, the one last asked for at the end


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
        self.device = device.resolve(config.training)
        self.data: Dataset = data.load(config.data)
        self.task, mistakes = losses.build(config, self.data, self.device)
        self.batch_size = config.batch.size
        self.steps_per_epoch = len(self.data.train) // self.batch_size
        self.eval_every = config.training.eval_every or max(self.steps_per_epoch, 1)
        automatic = config.objective == "auto"
        self.objective = self.task.default_objective if automatic else config.objective
        self.direction = self.task.direction_of(self.objective)
        self.fits: int | None = None  # about how many trials fit into memory, where known
        self.rule = optim.RULES[config.optimizer.name](decays=spec.uses("weight_decay"))
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
        self.module.to(self.device)
        self.dropouts = layers.dropouts(self.module)
        self.batch_norms = layers.batch_norms(self.module)
        self.sources = _sources(config.data, str(self.device))
        resident = isinstance(self.sources["train"], batches.DeviceSource)
        self.order_device = self.device if resident else torch.device("cpu")

    @classmethod
    def of(cls, spec: TrialSpec) -> Program:
        """The program of a spec's static part; those last asked for are kept."""
        program = _programs.pop(spec.static, None) or cls(spec)
        _programs[spec.static] = program
        if len(_programs) > KEPT:
            del _programs[next(iter(_programs))]
        return program

    # --- checks -----------------------------------------------------------------------------

    def _mistakes(self) -> list[str]:
        config, samples = self.config, len(self.data.train)
        mistakes = []
        if self.batch_size > samples:
            mistakes.append(
                f"batch.size must be <= the {samples} training samples of {config.data.name}, "
                f"got {self.batch_size}"
            )
        named = {"objective": self.objective}
        if isinstance(config.schedule, Plateau):
            named["schedule.metric"] = config.schedule.metric
        for key, metric in named.items():
            if metric not in self.task.objectives:
                mistakes.append(
                    f"{key} must be one of {', '.join(self.task.objectives)} for "
                    f"{self.task.name} on {config.data.name}, got '{metric}'"
                    f"{metrics.remedy(metric, self.task.name)}"
                    f"{nearest(metric, self.task.objectives)}"
                )
        if not self.data.is_image:
            mistakes += [
                f"regularization.{key} needs pictures, {config.data.name} has none"
                for feature, key in _PICTURES_ONLY.items()
                if self.spec.uses(feature)
            ]
        return mistakes

    def _build(self) -> None:
        config = self.config
        custom = isinstance(config.model, Custom)
        shapes = self.data.input_shape, self.data.outputs
        if not custom:  # before anything is allocated
            with torch.device("meta"):
                self._check_memory(models.build(config, *shapes))
        self.module = models.build(config, *shapes)
        if custom:
            self._check_memory(self.module)
            self._try_module()
        else:
            self._check_memory(self.module, self._try_module())
        if self.task.loss == "nll":
            self._check_log_probabilities()
        self.constant: set[str] | None = None  # of a custom module: what does not depend on a seed
        if custom:
            again = models.build(config, *shapes, seed=1)
            self.constant = initialization.constant(self.module, again)

    def _check_memory(self, module: nn.Module, activations: int = 0) -> None:
        """Raise NoMemory if one trial needs more than there is; `activations` are the numbers that
        a step keeps of a batch."""
        count = sum(parameter.numel() for parameter in module.parameters())
        inputs = self.batch_size * math.prod(self.data.input_shape)
        # The template, the trial, its best state, gradients, a temporary copy, and moments.
        need = 4 * ((5 + len(self.rule.moments)) * count + activations + inputs)
        free = batches.free_memory(self.device)
        if self.device.type == "cuda":  # what others use may come free
            free = torch.cuda.get_device_properties(self.device).total_memory
        self.fits = None if free is None else max(1, int(0.9 * free / need))
        if free is not None and need > free:
            raise NoMemory(
                f"model {self.config.model.name} of {count:,} parameters at "
                f"batch.size={self.batch_size} needs about {need / 2**30:,.1f} GiB to train with "
                f"{self.config.optimizer.name}, {free / 2**30:,.1f} GiB are free on {self.device}"
            )

    def _try_module(self) -> int:
        """Run the template once on zero samples, in training mode.

        Returns:
            Numbers that a step keeps of a batch, at least: the outputs of layers with parameters.
        """
        samples = min(self.batch_size, 2)
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
        if not any(parameter.requires_grad for parameter in self.module.parameters()):
            raise InputError("the model must have at least one parameter to train, got none")
        return kept * self.batch_size // samples

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
            InputError: the schedule does not fit the run's steps, init its activation, or an
                augmentation the pictures.
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
        activation = getattr(spec.config.model, "activation", None)
        try:
            initialization.gain_of(spec.config.init, activation)
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
        return schedule.build(spec.config.schedule, self.total_steps(spec), self.task.direction_of)

    def stopper(self, spec: TrialSpec) -> early_stopping.Stopper:
        """The early-stopping rule of a trial."""
        return early_stopping.build(spec.config.early_stopping, self.objective, self.direction)

    def initial(self, spec: TrialSpec) -> dict[str, Tensor]:
        """Initial parameters and buffers of a trial, drawn from its seed on the CPU."""
        activation = getattr(spec.config.model, "activation", None)
        init, seed, kept = spec.config.init, spec.config.training.seed, self.constant or set()
        module, drawn = self.module, initialization.drawn(self.module, kept)
        if self.constant is not None:
            log.info("%s", self.init_summary)
        own_draws = self.constant is not None and module.state_dict().keys() - kept - {*drawn}
        if own_draws or init.scheme == "keep":  # what the constructor draws follows the seed
            config = self.config
            module = models.build(config, self.data.input_shape, self.data.outputs, seed)
        values = initialization.draw(module, init, activation, seed, kept)
        return dict(module.named_buffers()) | values

    @property
    def init_summary(self) -> str:
        """What `init` draws of a custom module and what stays as it was constructed."""
        drawn = initialization.drawn(self.module, self.constant or ())
        kept = [name for name, _ in self.module.named_parameters() if name not in drawn]
        return f"init draws {_listed(drawn)}; kept as constructed: {_listed(kept)}"

    def numbers(self, spec: TrialSpec) -> Numbers:
        """The hyperparameters and stream keys of a trial."""
        config, seed = spec.config, spec.config.training.seed
        given = {name: getattr(config.regularization, name) for name in _STRENGTHS}
        given |= {name: getattr(config.loss, name) for name in self.task.numbers}
        strengths = {name: math.inf if v is None else float(v) for name, v in given.items()}
        hyper = self.rule.hyper(config.optimizer)
        hyper["weight_decay"] = config.regularization.weight_decay
        keys = {
            "dropout": streams.derive(seed, streams.DROPOUT),
            "augment": streams.derive(seed, streams.AUGMENT),
            "mixup": streams.derive(seed, streams.MIXUP),
        }
        table = beta_table(config.regularization.mixup) if spec.uses("mixup") else None
        return Numbers(hyper, strengths, keys, table)

    def order_key(self, spec: TrialSpec) -> int:
        """The key of the batch order: `data.order_seed`, or the trial's seed."""
        fixed = spec.config.data.order_seed
        return streams.derive(spec.config.training.seed if fixed is None else fixed, streams.ORDER)

    # --- shapes ---------------------------------------------------------------------------------

    def params(self) -> dict[str, Tensor]:
        """The template's trained parameters, by name."""
        named = self.module.named_parameters()
        return {name: parameter for name, parameter in named if parameter.requires_grad}

    def buffers(self) -> dict[str, Tensor]:
        """A trial's other tensors: batch norms' statistics, and a custom module's frozen parameters
        and saved buffers."""
        trained, state = self.params(), self.module.state_dict()
        names = dict(self.module.named_parameters()) | dict(self.module.named_buffers())
        return {n: t for n, t in names.items() if n in state and n not in trained}

    @property
    def inputs(self) -> dict[str, Any]:
        """The model's inputs and outputs: a sample is (x - shift) / scale, pictures in [0, 1]."""
        affine = self.data.affine
        return {
            "input_shape": list(self.data.input_shape),
            "outputs": self.data.outputs,
            "classes": list(self.data.classes),
            "shift": None if affine is None else affine.shift,
            "scale": None if affine is None else affine.scale,
        }

    @property
    def num_parameters(self) -> int:
        """Number of trained scalars of one trial."""
        return sum(parameter.numel() for parameter in self.params().values())

    @property
    def stacking_loses(self) -> bool:
        """Whether a stack is known to be slower than its trials: grouped convolutions on a CPU."""
        convolves = any(isinstance(layer, _CONVOLUTIONS) for layer in self.module.modules())
        return convolves and self.device.type == "cpu"

    def stack(self, width: int) -> Stack:
        """An empty stack of `width` slots."""
        shapes, moments = (self.params(), self.buffers()), self.rule.moments
        return Stack(*shapes, moments, self._layouts(), width, self.device)

    def _layouts(self) -> dict[str, tuple[int, ...]]:
        """The gradient of a linear layer's weight (S, out, in) comes out of a batched matrix
        product as (S, in, out)."""
        named = self.module.named_modules()
        linear = [name for name, layer in named if isinstance(layer, nn.Linear)]
        return {f"{name}.weight".lstrip("."): (0, 2, 1) for name in linear}


def _listed(names: list[str]) -> str:
    """Names in one line, the first ones of many."""
    if not names:
        return "nothing"
    more = f" and {len(names) - 6} more" if len(names) > 6 else ""
    return ", ".join(names[:6]) + more
