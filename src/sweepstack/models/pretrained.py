"""Transfer learning: models of others, weights from a file or a run, and what of a model is frozen.

The *head* of a model is its last linear layer or convolution in the order in which layers are
registered, the *backbone* everything before it. In every classification model of torchvision the
head gives the classes.

Files are read by `torch.load(weights_only=True)` or as safetensors: tensors alone, never code.
What a study or a checkpoint says is not trusted to name them (`rerun`, `load`).
"""

from __future__ import annotations

import ast
import io
import os
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.error import URLError

import torch
from torch import Tensor, nn

from sweepstack.config import schema
from sweepstack.config.errors import EnvironmentFault, InputError, nearest, one_line
from sweepstack.models import layers

_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
MAX_NAMED = 3
"""Tensors that an error names."""


# --- models of others -----------------------------------------------------------------------------


def build(model: schema.TorchvisionModel, input_shape: Sequence[int], outputs: int) -> nn.Module:
    """A model of torchvision without weights, with `outputs` outputs.

    Its first convolution has the data's channels; a vision transformer has the data's size.
    GoogLeNet and Inception come without their auxiliary classifiers.

    Raises:
        InputError: an unknown `arch`, or samples that are no pictures.
    """
    from torchvision import models

    if len(input_shape) != 3:
        raise InputError(
            f"model=torchvision needs pictures, got samples of shape {tuple(input_shape)}"
        )
    known = models.list_models(module=models)
    if model.arch not in known:
        near = nearest(model.arch, known)
        raise InputError(
            f"model.arch must be a classification model of torchvision.models, "
            f"got '{one_line(model.arch, 80)}'{near}"
        )
    given: dict[str, Any] = {"num_classes": outputs}
    if model.arch.startswith("vit_"):
        given["image_size"] = input_shape[1]
    if model.arch in ("googlenet", "inception_v3"):
        given |= {"aux_logits": False, "init_weights": False}
    try:
        module = models.get_model(model.arch, weights=None, **given)
    except (AssertionError, ValueError, RuntimeError) as error:  # pictures that fit no patches
        raise InputError(f"model.arch={model.arch} cannot be built: {one_line(error)}") from error
    if input_shape[0] != 3:
        _see_channels(module, input_shape[0])
    return layers.adapt(module)


def hub_entry(
    model: schema.HubModel, trusted: Sequence[str], arguments: Mapping[str, Any], outputs: int
) -> nn.Module:
    """Call an entry of a repository; the head is replaced unless it has `outputs` outputs.

    Raises:
        InputError: `trusted` does not name the repository, or it has no such entry.
        EnvironmentFault: a repository on GitHub cannot be fetched.
        Exception: whatever the entry raises.
    """
    folder = Path(model.repo).expanduser()
    source = "local" if folder.is_dir() else "github"
    if model.repo not in trusted:
        raise InputError(
            f"model.repo '{one_line(model.repo, 80)}' must be named in trust, for its code is run: "
            f"'trust=[{one_line(model.repo, 80)}]' if you trust it"
        )
    if source == "local" and not (folder / "hubconf.py").is_file():
        raise EnvironmentFault(f"model.repo={model.repo} has no hubconf.py")
    if source == "github" and (model.repo.count("/") != 1 or model.repo[0] in "./~"):
        raise EnvironmentFault(
            f"model.repo must be a folder or owner/name, there is no folder {model.repo}"
        )
    hub: Any = torch.hub
    place = str(folder) if source == "local" else model.repo
    try:
        module = hub.load(
            *(place, model.entry), source=source, trust_repo=True, verbose=False, **arguments
        )
    except (URLError, RuntimeError) as error:
        if isinstance(error, URLError) or "internet connection" in str(error):
            raise EnvironmentFault(
                f"model.repo={model.repo} cannot be fetched: {one_line(error)}"
            ) from error
        if "Cannot find callable" not in str(error):
            raise
        near = nearest(model.entry, _entries(folder)) if source == "local" else ""
        raise InputError(
            f"model.entry must be a function of hubconf.py in {model.repo}, "
            f"got '{one_line(model.entry, 80)}'{near}"
        ) from error
    if isinstance(module, nn.Module) and any(isinstance(m, _LAYERS) for m in module.modules()):
        _give_outputs(module, outputs)
    found: nn.Module = module
    return found


def _entries(folder: Path) -> list[str]:
    """Names of the functions in a folder's hubconf.py."""
    tree = ast.parse((folder / "hubconf.py").read_bytes())
    return [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]


def _see_channels(module: nn.Module, channels: int) -> None:
    """Give the first convolution that many input channels."""
    name, first = next((n, m) for n, m in module.named_modules() if isinstance(m, nn.Conv2d))
    module.set_submodule(name, _like(first, channels, first.out_channels))


def _give_outputs(module: nn.Module, outputs: int) -> None:
    """Replace a head that has not so many outputs."""
    name = head(module)
    last: Any = module.get_submodule(name)
    if isinstance(last, nn.Linear):
        if last.out_features != outputs:
            new: nn.Module = nn.Linear(last.in_features, outputs, last.bias is not None)
            module.set_submodule(name, new)
    elif last.out_channels != outputs:
        module.set_submodule(name, _like(last, last.in_channels, outputs))


def _like(layer: Any, inputs: int, outputs: int) -> nn.Module:
    """A convolution with other channels."""
    keys = ("kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")
    given = {key: getattr(layer, key) for key in keys}
    new: nn.Module = type(layer)(inputs, outputs, **given, bias=layer.bias is not None)
    return new


# --- the parts of a model -------------------------------------------------------------------------


def head(module: nn.Module) -> str:
    """The name of the head; '' where the model is one layer, or has none."""
    named = [name for name, layer in module.named_modules() if isinstance(layer, _LAYERS)]
    return named[-1] if named else ""


def in_backbone(module: nn.Module) -> set[str]:
    """Names of all parameters but the head's."""
    last = head(module)
    own = {f"{last}.{leaf}".lstrip(".") for leaf in ("weight", "bias")}
    return {name for name, _ in module.named_parameters()} - own


def frozen(module: nn.Module, patterns: Sequence[str]) -> set[str]:
    """Names of the parameters that `model.freeze` means: a name of a parameter or layer, a glob
    such as `features.*`, or `backbone`.

    Raises:
        InputError: a pattern that names no parameter.
    """
    names = [name for name, _ in module.named_parameters()]
    found, mistakes = set[str](), []
    for pattern in patterns:
        if pattern == "backbone":
            found |= in_backbone(module)
            continue
        named = {n for n in names if fnmatchcase(n, pattern) or n.startswith(f"{pattern}.")}
        if not named:
            near = nearest(pattern, ["backbone", *names, *(n for n, _ in module.named_modules())])
            mistakes.append(
                f"model.freeze must name parameters or layers of the model, "
                f"got '{one_line(pattern, 80)}'{near}"
            )
        found |= named
    if mistakes:
        raise InputError(mistakes)
    return found


def hold_norms(module: nn.Module, names: set[str]) -> None:
    """Batch norms whose parameters are all in `names` run in eval mode for good; their statistics
    stay, also after `training.unfreeze_at`, as Keras' guide to fine-tuning asks."""
    for name, norm in layers.batch_norms(module):
        own = {f"{name}.{leaf}".lstrip(".") for leaf, _ in norm.named_parameters()}
        norm.frozen = norm.frozen or (bool(own) and own <= names)


# --- weights --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Weights:
    """Tensors by name; `classes` are those of the run that trained them, None for a file."""

    tensors: Mapping[str, Tensor]
    classes: tuple[str, ...] | None = None


def load(module: nn.Module, model: schema.Model, classes: Sequence[str]) -> set[str]:
    """Put `model.weights` into a model.

    The head is taken over from a run on the same classes; otherwise it stays as it is. The first
    convolution's weights for color are summed for gray pictures, which is the same as feeding the
    gray picture three times.

    Returns:
        The names of parameters and buffers that were loaded.

    Raises:
        InputError: the tensors do not fit the model.
        EnvironmentFault: see `read`.
    """
    assert model.weights is not None
    weights = read(model.weights, getattr(model, "arch", None))
    last, own = f"{head(module)}.".lstrip("."), module.state_dict()
    given = {n: t for n, t in weights.tensors.items() if not n.endswith("num_batches_tracked")}
    for prefix in ("module.", "_orig_mod.", "model."):  # of DataParallel, torch.compile, Lightning
        if not own.keys() & given.keys():
            given = {name.removeprefix(prefix): tensor for name, tensor in given.items()}
    of_head = {n for n in own if n.startswith(last) and n[len(last) :] in ("weight", "bias")}
    same = weights.classes is not None and weights.classes == tuple(classes)
    same = same and all(n in given and given[n].shape == own[n].shape for n in of_head)
    wanted = own.keys() - (set() if same else of_head)
    misfits = []
    for name in [n for n in own if n in wanted]:
        tensor = given.get(name)
        if tensor is not None and tensor.dim() == 4 and own[name].dim() == 4:
            gray = own[name].shape[1] == 1 and tensor.shape[1] == 3
            given[name] = tensor = tensor.sum(1, keepdim=True) if gray else tensor
        if tensor is None:
            misfits.append(f"it lacks '{name}'")
        elif tensor.shape != own[name].shape:
            there, here = tuple(tensor.shape), tuple(own[name].shape)
            misfits.append(f"'{name}' is {there} there, {here} here")
        elif tensor.is_complex() or (tensor.to(own[name]).isfinite() < own[name].isfinite()).any():
            misfits.append(f"'{name}' must be real and finite")
    aux = ("aux", "AuxLogits.")  # of GoogLeNet and Inception
    misfits += [
        f"'{n}' is no tensor of the model" for n in given if n not in own and not n.startswith(aux)
    ]
    if misfits:
        more = f" and {len(misfits) - MAX_NAMED} more" if len(misfits) > MAX_NAMED else ""
        raise InputError(
            f"model.weights={model.weights} does not fit model {model.name}: "
            f"{'; '.join(misfits[:MAX_NAMED])}{more}"
        )
    with torch.no_grad():
        for name in wanted:
            own[name].copy_(given[name])
    return set(wanted)


def read(weights: str, arch: str | None) -> Weights:
    """The tensors that `model.weights` means; those last read are kept.

    Args:
        weights: a name of torchvision's weights of `arch`, a file, or the folder of a run.

    Raises:
        InputError: no such weights.
        EnvironmentFault: the file is missing or damaged, or a download failed.
    """
    named = named_weights(weights, arch)
    if named is not None:
        return _downloaded(named)
    path = Path(weights).expanduser()
    path = path / "best.pt" if path.is_dir() else path
    if not path.is_file():
        runs = sorted(path.parent.glob("*/best.pt"))[:MAX_NAMED] if path.name == "best.pt" else []
        hint = f"; did you mean {runs[0].parent}?" if runs else ""
        if arch is not None:
            hint = hint or nearest(weights, _names(arch))
        elif weights == "DEFAULT":
            hint = "; only model=torchvision has DEFAULT"
        raise EnvironmentFault(f"model.weights={weights}: there is no file {path}{hint}")
    return _read(path, stamp(str(path)))


def stamp(weights: str) -> object:
    """What changes when a file of weights does."""
    path = Path(weights).expanduser()
    path = path / "best.pt" if path.is_dir() else path
    try:
        found = os.stat(path)
    except OSError:  # a name
        return weights
    return found.st_mtime_ns, found.st_size


@lru_cache(maxsize=1)
def _read(path: Path, _stamp: object) -> Weights:
    if path.suffix == ".safetensors":
        return Weights(_safetensors(path))
    try:
        found = torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:  # whatever stands in the file
        raise EnvironmentFault(
            f"model.weights={path} is no file of tensors (torch.load with weights_only=True): "
            f"{one_line(error, 160)}"
        ) from error
    classes = None
    if isinstance(found, dict) and isinstance(found.get("inputs"), dict):  # best.pt
        classes = tuple(map(str, found["inputs"].get("classes", ())))
    for key in ("state_dict", "model_state_dict", "model"):  # as training scripts nest it
        if isinstance(found, dict) and isinstance(found.get(key), Mapping):
            found = found[key]
    if not isinstance(found, Mapping) or not all(isinstance(t, Tensor) for t in found.values()):
        raise EnvironmentFault(f"model.weights={path} must hold tensors by name, a state_dict")
    return Weights({str(name): tensor for name, tensor in found.items()}, classes)


def _safetensors(path: Path) -> dict[str, Tensor]:
    try:
        from safetensors.torch import load_file
    except ImportError:
        raise EnvironmentFault(
            f"model.weights={path} needs safetensors: pip install 'sweepstack[safetensors]'"
        ) from None
    try:
        return dict(load_file(path))
    except Exception as error:
        raise EnvironmentFault(
            f"model.weights={path} is no safetensors file: {one_line(error)}"
        ) from error


def named_weights(weights: str | None, arch: str | None) -> Any:
    """torchvision's weights of that name, or None."""
    if weights is None or arch is None or "/" in weights or "." in weights:
        return None
    from torchvision import models

    if arch not in models.list_models(module=models):
        return None
    found: Any = models.get_model_weights(arch)
    return found.__members__.get(weights) or (found.DEFAULT if weights == "DEFAULT" else None)


def _names(arch: str) -> list[str]:
    from torchvision import models

    found: Any = models.get_model_weights(arch)
    return ["DEFAULT", *found.__members__]


@lru_cache(maxsize=1)
def _downloaded(named: Any) -> Weights:
    try:
        with redirect_stderr(io.StringIO()):  # torch writes there what it fetches
            return Weights(dict(named.get_state_dict(progress=False, check_hash=True)))
    except (OSError, RuntimeError) as error:  # URLError is an OSError; RuntimeError: a wrong hash
        raise EnvironmentFault(
            f"the weights {named} cannot be downloaded ({one_line(error, 120)}): fetch "
            f"{named.url} where there is a network, and give the file as model.weights=FILE"
        ) from error


def as_weights_ask(model: object, data: schema.Data, channels: int) -> schema.Data:
    """The data config with the size and normalization that torchvision's named weights were trained
    with. A given `data.image_size` stays; gray pictures take the mean over the channels; any other
    model takes the data as they are."""
    if not isinstance(model, schema.TorchvisionModel):
        return data
    named = named_weights(model.weights, model.arch)
    if named is None:
        return data
    asked = named.transforms()
    mean, std = tuple(asked.mean), tuple(asked.std)
    if channels != len(mean):
        mean, std = (sum(mean) / len(mean),), (sum(std) / len(std),)
    if isinstance(data, schema.Pictures) and data.image_size is None:
        data = replace(data, image_size=int(asked.crop_size[0]))
    return replace(data, normalization="fixed", mean=mean, std=std)
