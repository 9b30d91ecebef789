"""A trained model back from a run's folder, ready to predict: `iolaus.load(folder)`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from iolaus import checkpoint, commands, config, models
from iolaus.errors import EnvironmentFault, InputError, one_line

MAX_NAMED = 8
"""Trials with a model that are named where one has none."""


class Predictor(nn.Module):
    """A model with the normalization that it was trained with, in eval mode.

    Attributes:
        model: the trained module.
        classes: names by class number, empty for regression.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, model: nn.Module, classes: Sequence[str], shift: Tensor, scale: Tensor):
        super().__init__()
        self.model, self.classes = model, tuple(classes)
        self.register_buffer("shift", shift)
        self.register_buffer("scale", scale)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        """From raw samples x (B, *input_shape), pictures in [0, 1], to outputs (B, C)."""
        outputs: Tensor = self.model((x - self.shift) / self.scale)
        return outputs


def load(folder: str | Path, trust: Sequence[str] = ()) -> Predictor:
    """Load best.pt of a run.

    Args:
        folder: the run's folder.
        trust: packages whose modules may be built; what the file says of it is not believed.

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
        raise EnvironmentFault(f"{path} is not what iolaus writes: {reason}") from error


def _predictor(saved: Any, trust: Sequence[str]) -> Predictor:
    given, inputs, state = saved["config"], saved["inputs"], saved["model"]
    read = config.read_plain({**given, "trust": list(trust)})
    module = models.build(read, inputs["input_shape"], inputs["outputs"])
    module.load_state_dict(state, strict=False)
    missing = {name for name, _ in module.named_parameters()} - state.keys()
    if missing:
        raise InputError(f"it lacks parameters of the model: {', '.join(sorted(missing))}")
    shape = [1] * (len(inputs["input_shape"]) or 1)
    shift, scale = inputs["shift"], inputs["scale"]
    shift = torch.zeros(shape) if shift is None else shift
    scale = torch.ones(shape) if scale is None else scale
    return Predictor(module, inputs["classes"], shift, scale)


def _why_none(folder: Path) -> str:
    """Why a folder has no model, and what to do."""
    try:
        found = json.loads((folder / "metrics.json").read_text("utf-8"))
        state, study, where = found["state"], str(found["study"]), str(found["storage"])
    except (OSError, ValueError, KeyError, TypeError):  # a run of its own
        return "only a run that has ended has one"
    number = folder.absolute().name
    if state != "complete":
        return f"trial {number} did not complete"
    trained = {path.parent.name for path in folder.absolute().parent.glob("*/best.pt")}
    kept = ", ".join(sorted(filter(str.isdecimal, trained), key=int)[:MAX_NAMED]) or "none"
    if str(found.get("equals")) in trained:
        return f"trial {number} has the effect of trial {found['equals']}, which has it"
    return (
        f"only the models of the best trials are kept (hydra.sweeper.keep_models), here {kept}; "
        f"train it again: {commands.study('rerun', study, number, where=where)}"
    )
