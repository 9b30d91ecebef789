"""A model cut in two: what frozen layers give, which is computed once per sample, and the rest.

`torch.fx` writes a model down as a graph of calls. A call is *live* if it may give another result
for the same sample at another step: its layer has trained parameters or random numbers, or one of
its inputs is live. All others are the *fixed* part. The model can be cut where exactly one tensor
leads from the fixed part to the live one.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import torch
from torch import fx, nn

from sweepstack.config.errors import one_line
from sweepstack.data import batches
from sweepstack.data.dataset import Dataset, TensorSplit
from sweepstack.models import layers
from sweepstack.models.layers import BatchNorm, Dropout

AT_ONCE = 64
"""Samples whose features are computed at once."""
Computed = tuple[dict[str, batches.Source], Dataset]
_kept: dict[Any, Computed] = {}
"""What the frozen part of a model gives for a dataset; the last two are kept, so that programs of
other batch sizes or optimizers need not compute it again."""


class Uncuttable(Exception):
    """A model cannot be cut; says why."""


def cut(module: nn.Module, trained: Collection[str]) -> tuple[fx.GraphModule, nn.Module]:
    """Cut a model into its fixed part, x (B, *shape) to features (B, *), and the rest, features to
    (B, C). Both share the model's tensors, under the names that they have there.

    Args:
        module: in training mode.
        trained: names of the parameters that are trained.

    Raises:
        Uncuttable: the graph cannot be written down, or has no such place.
    """
    live = {
        name for name, layer in module.named_modules() if name and _is_live(name, layer, trained)
    }
    if not live:
        raise Uncuttable("the model is one layer")
    try:
        graph = _Tracer(live).trace(module)
    except Exception as error:  # of a user's module, anything
        raise Uncuttable(one_line(error)) from error
    moving = _live_nodes(graph, live, trained)
    between = {
        given
        for node in moving
        for given in node.all_input_nodes
        if given not in moving and given.op != "get_attr"
    }
    if len(between) != 1:
        raise Uncuttable(f"{len(between)} tensors lead from frozen layers to the others")
    (border,) = between
    if border.op == "placeholder":
        raise Uncuttable("the first layer is trained or random")
    fixed, rest = fx.Graph(), fx.Graph()
    copies: dict[Any, Any] = {}
    needed = {border}
    for node in reversed(graph.nodes):
        if node in needed:
            needed |= set(node.all_input_nodes)
    for node in graph.nodes:
        if node in needed:
            copies[node] = fixed.node_copy(node, lambda n: copies[n])
    fixed.output(copies[border])
    copies = {border: rest.placeholder("features")}
    for node in graph.nodes:
        if node in moving or (node.op == "get_attr" and moving & node.users.keys()):
            copies[node] = rest.node_copy(node, lambda n: copies[n])
    return fx.GraphModule(module, fixed), layers.counting(fx.GraphModule(module, rest))


def parts(
    module: nn.Module, trained: Collection[str], loaded: Collection[str], sample: torch.Tensor
) -> tuple[fx.GraphModule, nn.Module]:
    """`cut`, with the parts compared with the whole on `sample` (B, *shape).

    Args:
        module: the whole model.
        trained: names of the parameters that are trained.
        loaded: names of the parameters that are the same for every trial.

    Raises:
        Uncuttable: see `cut`; or frozen weights are not `loaded`, or the parts give other numbers.
    """
    found = cut(module.train(), trained)
    if not {name for name, _ in found[0].named_parameters()} <= set(loaded):
        raise Uncuttable("frozen layers are drawn from each trial's seed")
    if not agree(module, found, sample):
        raise Uncuttable("its parts give other numbers than the whole")
    return found


def computed(
    part: fx.GraphModule,
    key: Any,
    sources: Mapping[str, batches.Source],
    of: Dataset,
    place: torch.device,
    precision: Callable[[], AbstractContextManager[Any]],
) -> Computed:
    """The features of all splits, on `place`, and the dataset of them.

    Args:
        part: the fixed part of the model.
        key: what they depend on; those of equal keys are computed once.
        sources: the splits.
        of: the dataset that they belong to.
        precision: gives the context in which the part runs.

    Raises:
        Uncuttable: they do not fit into memory.
    """
    if key not in _kept:
        free = batches.free_memory(place)
        splits: dict[str, Any] = {}
        for name, source in sources.items():
            found = []
            with torch.no_grad(), precision():
                for x, y in source.chunks(AT_ONCE):
                    found.append((part.eval()(x).float(), y))
                    size = found[0][0].nbytes * len(of.train) / len(found[0][1])
                    if 4 * size > free:
                        raise Uncuttable("they do not fit into memory")
            splits[name] = TensorSplit(*map(torch.cat, zip(*found, strict=True)))
        if len(_kept) > 1:
            del _kept[next(iter(_kept))]
        resident = {name: batches.DeviceSource(split, place) for name, split in splits.items()}
        _kept[key] = {**resident}, replace(of, **splits)
    return _kept[key]


def agree(module: nn.Module, parts: tuple[nn.Module, nn.Module], sample: torch.Tensor) -> bool:
    """Whether a model and its two parts give the same for a sample, in eval mode."""
    for part in (module, *parts):
        part.eval()
    with torch.no_grad():
        whole, cut_up = module(sample), parts[1](parts[0](sample))
    return torch.allclose(whole, cut_up, rtol=1e-4, atol=1e-5)


def _is_live(name: str, layer: nn.Module, trained: Collection[str]) -> bool:
    if any(parameter.startswith(f"{name}.") for parameter in trained):
        return True
    return any(
        (isinstance(inner, Dropout) and not (inner.fixed and float(inner.p) == 0))
        or (isinstance(inner, BatchNorm) and not inner.frozen)
        for inner in layer.modules()
    )


def _live_nodes(graph: fx.Graph, live: set[str], trained: Collection[str]) -> set[fx.Node]:
    found: set[fx.Node] = set()
    for node in graph.nodes:
        own = node.op == "call_module" and node.target in live
        own = own or (node.op == "get_attr" and node.target in trained)
        if own or node.op == "output" or any(given in found for given in node.all_input_nodes):
            found.add(node)
    return found


class _Tracer(fx.Tracer):
    """Goes into the live layers only; the others are calls as they are."""

    def __init__(self, live: set[str]):
        super().__init__()
        self._live = live

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        """See the class."""
        own = isinstance(module, Dropout | BatchNorm) or not any(module.children())
        return own or name not in self._live
