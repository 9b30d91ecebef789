"""A trained model back from a run's folder, ready to predict: `sweepstack.load(folder)`."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from sweepstack import models
from sweepstack.config import commands, errors
from sweepstack.config import reading as config
from sweepstack.config.errors import EnvironmentFault, InputError, TrainingFailed, nearest, one_line
from sweepstack.data import arrays, table
from sweepstack.data.dataset import decode, pixels
from sweepstack.models import layers
from sweepstack.training import checkpoint

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
        task: multiclass, binary, multilabel or regression.
        columns: how a row of a table becomes a sample, as `data.table.Columns.plain` has it; None
            for other data.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, model: nn.Module, inputs: dict[str, Any]):
        super().__init__()
        self.model, self.classes = model, tuple(inputs["classes"])
        self.input_shape = tuple(inputs["input_shape"])
        binary = "binary" if inputs["outputs"] == 1 else "multiclass"
        self.task = str(inputs.get("task", binary if self.classes else "regression"))
        self.columns: Mapping[str, Any] | None = inputs.get("columns")
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

    def probabilities(self, x: Tensor | np.ndarray[Any, Any] | Image.Image) -> Tensor:
        """As `forward`, but of classes their probabilities (B, C), in the order of `classes`."""
        outputs: Tensor = self(x)
        if self.task == "multiclass":
            return outputs.softmax(-1)
        if self.task == "binary":
            p = outputs.sigmoid()
            return torch.cat([1 - p, p], -1)
        return outputs.sigmoid() if self.task == "multilabel" else outputs

    def sample(
        self, x: Tensor | np.ndarray[Any, Any] | Image.Image, n: int = 50
    ) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation (over n - 1) of n `probabilities` with dropout on.

        Source: Y. Gal and Z. Ghahramani, "Dropout as a Bayesian Approximation", ICML 2016.

        Args:
            x: as for `forward`.
            n: predictions; each draws its masks from torch's generator.

        Raises:
            InputError: the model has no dropout, or n < 2.
        """
        if n < 2:
            raise InputError(f"n must be >= 2 for a standard deviation, got {n}")
        if not (dropouts := self.dropouts):
            raise InputError("the model has no dropout layers with p > 0: it always says the same")
        modes = [layer.training for layer in dropouts]
        try:
            for layer in dropouts:
                layer.train()
            with torch.no_grad():
                drawn = torch.stack([self.probabilities(x) for _ in range(n)])
        finally:
            for layer, mode in zip(dropouts, modes, strict=True):
                layer.train(mode)
        return drawn.mean(0), drawn.std(0)

    @property
    def dropouts(self) -> list[nn.Module]:
        """The dropout layers with p > 0."""
        kinds = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
        return [layer for layer in self.modules() if isinstance(layer, kinds) and layer.p > 0]

    def _raw(self, x: Any) -> Tensor:
        picture, shape = len(self.input_shape) == 3, self.input_shape
        try:
            if isinstance(x, Image.Image):
                x = pixels(x, shape[0] if picture else 1).unsqueeze(0)
            if isinstance(x, np.ndarray):  # which may be flipped, or of another byte order
                x = torch.from_numpy(np.array(x, x.dtype.newbyteorder("="), order="C"))
            given = x
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
        given = given.to(self.shift)
        if whole and given.numel() and not 0 <= given.min() <= given.max() <= 255:
            low, high = int(given.min()), int(given.max())
            raise InputError(f"whole numbers of a picture must be in 0..255, got {low}..{high}")
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
    layers.restore(module, read.regularization.dropout)
    missing = {name for name, _ in module.named_parameters()} - state.keys()
    if missing:
        raise InputError(f"it lacks parameters of the model: {', '.join(sorted(missing))}")
    found = Predictor(module, inputs)
    _check(found, inputs["outputs"])
    return found


def _check(model: Predictor, outputs: int) -> None:
    """Refuse what would fail only when something is predicted."""
    wrong: list[object] = [name for name in model.classes if not isinstance(name, str)]
    count = {"multiclass": outputs, "binary": 2}.get(model.task, len(model.classes))
    wrong += [model.classes] if len(model.classes) != count else []
    for tensor in (model.shift, model.scale):
        if np.broadcast_shapes(tensor.shape, model.input_shape) != (model.input_shape or (1,)):
            wrong.append(tuple(tensor.shape))
    if model.columns is not None:
        columns = table.Columns.of_plain(model.columns).inputs
        wrong += [columns] if (columns,) != model.input_shape else []
    if wrong:
        raise ValueError(f"its inputs do not fit each other: {one_line(wrong[0], 80)}")


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


# --- files ---------------------------------------------------------------------------------------

BATCH = 256
"""Samples that are predicted at once."""


def read(model: Predictor, path: Path) -> tuple[list[str], Iterator[Tensor]]:
    """Samples from a picture, a folder of pictures, or a file of arrays or of a table.

    Returns:
        A name for each sample, a file's or a row's number, and batches of raw samples.

    Raises:
        InputError: the file is of another kind, or its samples do not fit the model.
        EnvironmentFault: there is no such file, it is damaged, or the folder has no pictures.
    """
    kinds = Image.registered_extensions()
    if not path.exists():
        raise EnvironmentFault(f"'{path}' does not exist")
    if path.is_dir() or path.suffix.lower() in kinds:
        found = sorted(path.rglob("*")) if path.is_dir() else [path]
        found = [
            place
            for place in found
            if place.suffix.lower() in kinds
            and place.is_file()
            and not any(part.startswith(".") for part in place.relative_to(path).parts)
        ]
        if not found:
            raise EnvironmentFault(f"{path} holds no pictures")
        if len(model.input_shape) != 3:
            raise InputError(f"the model takes samples of shape {model.input_shape}, no pictures")
        names = [str(p.relative_to(path)) if path.is_dir() else str(p) for p in found]
        return names, _decoded(found, model.input_shape)
    if path.suffix.lower() in (".csv", ".parquet"):
        if model.columns is None:
            raise InputError(f"{path} is a table, and the model was trained on {model.input_shape}")
        columns = table.Columns.of_plain(model.columns)
        x = columns.encode(table.read(path, columns.texts), str(path))
    else:
        x = _fitted(arrays.samples(arrays.read(path)[0], f"x of {path}"), model.input_shape)
    batches = (x[start : start + BATCH] for start in range(0, len(x), BATCH))
    return [str(row) for row in range(len(x))], batches


def _fitted(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Pictures with the channel's axis, resized to what the model takes as for training."""
    if len(shape) == 3 and shape[0] == 1 and x.dim() == 3:
        x = x.unsqueeze(1)
    if len(shape) == 3 and x.dim() == 4 and x.shape[1] == shape[0] and x.shape[1:] != shape:
        x = F.interpolate(x, shape[1:], mode="bilinear", align_corners=False, antialias=True)
    return x


def _decoded(files: Sequence[Path], shape: tuple[int, ...]) -> Iterator[Tensor]:
    for start in range(0, len(files), BATCH):
        chosen = files[start : start + BATCH]
        yield torch.stack([decode(str(file), shape) for file in chosen]).float() / 255


def predict(model: Predictor, path: Path, samples: int | None = None) -> list[list[str]]:
    """Predict each sample that `read` finds.

    Args:
        model: from `load`.
        path: a file or folder.
        samples: predictions with dropout on, whose mean and deviation are told; 0 for one without
            dropout; None for 50 where the model has dropout.

    Returns:
        The header, and a row for each sample: its file or row, then its class, the probability and
        the deviation of that; of several labels or numbers each with its deviation.

    Raises:
        InputError, EnvironmentFault: as `read` and `Predictor.sample`.
    """
    if samples is None:
        samples = 50 if model.dropouts else 0
    names, batches = read(model, path)
    means, spreads = [], []
    with torch.no_grad():
        for x in batches:
            mean, spread = model.sample(x, samples) if samples else (model.probabilities(x), None)
            means.append(mean)
            spreads.append(torch.full_like(mean, torch.nan) if spread is None else spread)
    mean, spread = torch.cat(means), torch.cat(spreads)
    first = "row" if names[:1] == ["0"] else "file"
    rows = [[name, *_told(model, *pair)] for name, *pair in zip(names, mean, spread, strict=True)]
    return [[first, *_header(model, mean.shape[1])], *rows]


def _header(model: Predictor, outputs: int) -> list[str]:
    if model.task in ("multiclass", "binary"):
        return ["class", "probability", "std"]
    names: Sequence[str] = model.classes
    if not names:
        targets = (model.columns or {}).get("target", ())
        numbered = ["prediction"] if outputs == 1 else [f"prediction_{i}" for i in range(outputs)]
        names = list(targets) if len(targets) == outputs > 1 else numbered
    return [word for name in names for word in (name, "std" if outputs == 1 else f"{name}_std")]


def _told(model: Predictor, mean: Tensor, spread: Tensor) -> list[str]:
    pairs = [(f"{m:.6g}", "" if s != s else f"{s:.6g}") for m, s in zip(mean, spread, strict=True)]
    if model.task in ("multiclass", "binary"):
        best = int(mean.argmax())
        return [model.classes[best], *pairs[best]]
    return [word for pair in pairs for word in pair]


# --- other formats -------------------------------------------------------------------------------


class _Plain(nn.Module):
    """From raw float samples to outputs, without checks."""

    def __init__(self, model: Predictor):
        super().__init__()
        self.model, self.shift, self.scale = model.model, model.shift, model.scale

    def forward(self, x: Tensor) -> Tensor:
        """Raw samples (B, *input_shape) to outputs (B, C)."""
        outputs: Tensor = self.model((x - self.shift) / self.scale)
        return outputs


EXPORTS = {".pt": (), ".safetensors": ("safetensors",), ".pt2": (), ".onnx": ("onnx", "onnxscript")}
"""The packages that each format needs."""


def check_export(path: Path) -> None:
    """Check before anything is read that a model can be exported to a file.

    Raises:
        InputError: its name ends with something else than a key of `EXPORTS`.
        EnvironmentFault: a package or the folder is missing.
    """
    kind = path.suffix.lower()
    if path.with_name(f"{path.name}.sha256").exists():  # best.pt
        raise InputError(f"--output must not be a model that sweepstack wrote, got '{path}'")
    if kind not in EXPORTS:
        allowed = ", ".join(EXPORTS)
        raise InputError(f"--output must end with {allowed}, got '{path}'{nearest(kind, EXPORTS)}")
    missing = [package for package in EXPORTS[kind] if find_spec(package) is None]
    if missing:
        raise EnvironmentFault(
            f"writing {kind} needs {' and '.join(missing)}: pip install 'sweepstack[export]'"
        )
    if not path.absolute().parent.is_dir():
        raise EnvironmentFault(f"cannot write {path}: there is no folder {path.parent}")


def export(model: Predictor, path: Path) -> None:
    """Write a model for other programs: .pt and .safetensors hold the module's state dict; .pt2
    (`torch.export`) and .onnx a program from raw float samples (B, *input_shape), normalized
    inside, to outputs (B, C), for any B.

    Raises:
        InputError, EnvironmentFault: as `check_export`, or the file cannot be written.
        TrainingFailed: torch's exporter cannot take the module.
    """
    check_export(path)
    kind, buffer = path.suffix.lower(), io.BytesIO()
    state = {name: tensor.contiguous() for name, tensor in model.model.state_dict().items()}
    if kind == ".pt":
        torch.save(state, buffer)
    elif kind == ".safetensors":
        from safetensors.torch import save

        buffer.write(save(state, {"classes": json.dumps(model.classes)}))
    else:
        try:
            _traced(model, kind, buffer)
        except Exception as error:  # whatever a user's module makes of the exporter
            raise TrainingFailed(f"torch cannot export the model: {one_line(error)}") from error
    errors.write_bytes(path, buffer.getvalue())


def _traced(model: Predictor, kind: str, buffer: io.BytesIO) -> None:
    # Sizes 0 and 1 are special to the exporter.
    sample, batch = torch.zeros(2, *model.input_shape), {0: torch.export.Dim("batch")}
    plain = _Plain(model).eval()
    if kind == ".pt2":
        torch.export.save(torch.export.export(plain, (sample,), dynamic_shapes=(batch,)), buffer)
        return
    program = torch.onnx.export(
        *(plain, (sample,)),
        dynamo=True,
        verbose=False,
        dynamic_shapes=(batch,),
        input_names=["x"],
        output_names=["outputs"],
    )
    assert program is not None
    buffer.write(program.model_proto.SerializeToString())
