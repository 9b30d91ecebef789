"""A trained model back from a run's folder, ready to predict: `sweepstack.load(folder)`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from sweepstack import models
from sweepstack.config import commands
from sweepstack.config import reading as config
from sweepstack.config.errors import EnvironmentFault, InputError, one_line
from sweepstack.data.pictures import pixels
from sweepstack.engine import checkpoint
from sweepstack.models import layers

MAX_NAMED = 8
"""Trials with a model that an error names."""


class Predictor(nn.Module):
    """A model with the normalization that it was trained with, in eval mode.

    Its dropout layers are torch's own: `.train()` on them, and each call draws a mask from torch's
    generator with the p of the training (Monte Carlo dropout).

    Attributes:
        model: the trained module.
        classes: names by class number, empty for regression.
        input_shape: a sample's axes: (channels, height, width), or (D,).
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, model: nn.Module, inputs: dict[str, Any]):
        super().__init__()
        self.model, self.classes = model, tuple(inputs["classes"])
        self.input_shape = tuple(inputs["input_shape"])
        shape = [1] * (len(self.input_shape) or 1)
        shift, scale = inputs["shift"], inputs["scale"]
        self.register_buffer("shift", torch.zeros(shape) if shift is None else shift)
        self.register_buffer("scale", torch.ones(shape) if scale is None else scale)
        self.eval()

    def forward(self, x: Tensor | np.ndarray[Any, Any] | Image.Image) -> Tensor:
        """From raw samples to outputs (B, C).

        Args:
            x: a tensor or NumPy array (B, *input_shape); pictures are floats in [0, 1], or whole
                numbers 0..255, which are divided by 255. Or one PIL image, as a batch of one.

        Raises:
            InputError: anything else, or another shape.
        """
        outputs: Tensor = self.model((self._raw(x) - self.shift) / self.scale)
        return outputs

    def _raw(self, x: Any) -> Tensor:
        picture, shape = len(self.input_shape) == 3, self.input_shape
        try:
            if isinstance(x, Image.Image):
                x = pixels(x, shape[0] if picture else 1).unsqueeze(0)
            given = torch.as_tensor(x) if isinstance(x, np.ndarray) else x
        except (TypeError, ValueError) as error:
            raise InputError(f"the model cannot read its input: {one_line(error)}") from None
        if not isinstance(given, Tensor) or given.is_complex():
            kind = type(x).__name__ if not isinstance(given, Tensor) else str(given.dtype)
            raise InputError(
                "the model takes a tensor or NumPy array of real numbers, or a PIL image, "
                f"got {kind}"
            )
        if given.shape[1:] != shape or not given.dim():
            axes = ", ".join(map(str, ("B", *shape)))
            raise InputError(
                f"the model takes samples (B, *shape) = ({axes}), got {tuple(given.shape)}"
            )
        whole = picture and not given.is_floating_point() and given.dtype != torch.bool
        if whole and given.numel() and not 0 <= int(given.min()) <= int(given.max()) <= 255:
            low, high = int(given.min()), int(given.max())
            raise InputError(f"whole numbers of a picture must be in 0..255, got {low}..{high}")
        given = given.to(self.shift)
        return given / 255 if whole else given


def load(folder: str | Path, trust: Sequence[str] = ()) -> Predictor:
    """Load best.pt of a run.

    Args:
        folder: the run's folder.
        trust: packages whose modules may be built; what the file says is ignored.

    Raises:
        EnvironmentFault: there is no best.pt, or it is damaged.
        InputError: the model names a module outside of `trust.table` and `trust`.
    """
    path = Path(folder) / "best.pt"
    if not path.is_file():
        raise EnvironmentFault(f"there is no best.pt in {folder}: {_why_none(Path(folder))}")
    saved = checkpoint.load(path)
    try:
        return _predictor(saved, trust)
    except InputError as error:
        raise InputError([f"{path}: {line}" for line in error.mistakes]) from None
    except Exception as error:  # whatever stands in the file
        reason = f"{type(error).__name__}: {one_line(error)}"
        raise EnvironmentFault(f"{path} is not what sweepstack writes: {reason}") from error


def _predictor(saved: Any, trust: Sequence[str]) -> Predictor:
    given, inputs, state = saved["config"], saved["inputs"], saved["model"]
    read = config.read_plain({**given, "trust": list(trust)})
    module = models.build(read, inputs["input_shape"], inputs["outputs"])
    module.load_state_dict(state, strict=False)
    layers.restore_dropout(module, read.regularization.dropout)
    missing = {name for name, _ in module.named_parameters()} - state.keys()
    if missing:
        raise InputError(f"it lacks parameters of the model: {', '.join(sorted(missing))}")
    return Predictor(module, inputs)


def _why_none(folder: Path) -> str:
    """Why a folder has no model, and what to do."""
    try:
        found = json.loads((folder / "metrics.json").read_text("utf-8"))
        state, study, where = found["state"], str(found["study"]), str(found["storage"])
    except (OSError, ValueError, KeyError, TypeError):  # a run of its own
        return "only a finished run has one"
    number = folder.absolute().name
    if state != "complete":
        return f"trial {number} did not complete"
    trained = {path.parent.name for path in folder.absolute().parent.glob("*/best.pt")}
    kept = ", ".join(sorted(filter(str.isdecimal, trained), key=int)[:MAX_NAMED]) or "none"
    if str(found.get("equals")) in trained:
        return f"trial {number} is a duplicate of trial {found['equals']}, which has it"
    return (
        f"only the best trials keep their model (hydra.sweeper.keep_models), here {kept}; "
        f"train it again: {commands.study('rerun', study, number, where=where)}"
    )
