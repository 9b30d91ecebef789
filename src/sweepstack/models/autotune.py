"""Which way a stack's convolutions, max pools and batch norms run: a plan, chosen by measurement.

`Chooser` measures which of the ways of `convolution` is the fastest for each layer, compares
losses, gradients and batch norms' statistics with vmap's, and keeps vmap's own way where nothing
gains enough (`WORTH`). That is so on the CPUs that were tried, where it is therefore not measured
(`MEASURED_ON`). A plan may also run max pools and batch norms by `kernels`. In a second stage, if
what is left of the sweep is worth it, the blocks of the kernel are measured where it is about the
fastest: each of `implicit_gemm.candidates` in turn, compared with vmap's numbers as well.

`Rules` is a torch.overrides.TorchFunctionMode: it sees every call of torch.conv2d, torch.max_pool2d
and layers.batch_norm, whoever wrote the module. Which operations run depends on shapes alone, so
that steps can be recorded and captured. It also casts what vmap hides from autocast (`HIDDEN`).

Notation: as in `convolution`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial, reduce
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor
from torch.func import vmap
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from sweepstack.config.errors import one_line
from sweepstack.models import layers
from sweepstack.models.convolution import (
    KNOWN,
    WAYS,
    Geometry,
    Gradients,
    backward,
    forward,
    pair,
    plain,
    require_kernels,
    to_format,
)

log = logging.getLogger(__name__)

Ways = tuple[str, str, str]
"""How the forward pass, the input gradient and the weight gradient run."""
GROUPED: Ways = ("grouped", "grouped", "grouped")

VERSION = 2
"""Of the ways: plans of another version are measured anew."""
MEASURED_ON = ("cuda",)
"""On a CPU (AMD EPYC with AVX2, one thread, torch 2.15, 28x28 pictures, least of 7 alternating
timings at widths 2 and 4) the best plan took 0.95 to 1.0 of vmap's time for the convnet, 1.06 to
1.08 for the resnet: oneDNN's grouped convolutions are about as fast as plain ones."""
HIDDEN = frozenset(
    (
        *(torch.conv1d, torch.conv2d, torch.conv3d, F.scaled_dot_product_attention),
        *(torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d),
        *(F.linear, F.multi_head_attention_forward, torch.prelu, Tensor.prelu, torch.linalg.vecdot),
        *(torch.addmm, torch.baddbmm, torch.addbmm, Tensor.addmm, Tensor.baddbmm, Tensor.addbmm),
    )
)
"""What autocast runs in bf16 but vmap takes apart before autocast sees it: on a CPU all of it, on a
GPU the bias, so that the result was float32 (torch 2.11 and 2.15). Other products are not taken
apart (matmul, einsum, bmm), or autocast leaves them in float32 (bilinear)."""
WORTH = 0.9  # a plan is used if a step takes at most this share of vmap's time
HOPELESS = 1.5  # a way whose first run takes this many times the least is not timed again, and
# where it is the kernel, its blocks are not measured
TIMINGS = 3
MATTERS = 0.05  # of the time of all passes: blocks of one that takes less are not measured
SHARE = 0.05  # measuring blocks takes at most this share of what is left of a sweep ...
MIN_S, MAX_S = 1.0, 30.0  # ... at least a second, or it is not begun; a kernel compiles in 0.3 to 1
MAX_WINDOW = 64  # numbers of a pool's window for which there is a kernel
TOLERANCE = {"fp32": 1e-3, "tf32": 5e-2, "bf16": 5e-2}
"""‖difference‖ / ‖vmap's‖ of losses, gradients and batch norms' statistics, by precision."""
SMALL = 1e-2
"""What is less than this share of the largest of its kind counts as that large: a gradient that is
nothing but rounding, as of a bias before a batch norm, differs by all of it."""


@dataclass(frozen=True)
class Layer:
    """A convolution that a step runs: shapes of x and weight, and whether x has a gradient."""

    x: tuple[int, ...]
    weight: tuple[int, ...]
    dtype: torch.dtype
    geometry: Geometry
    inputs: bool = False

    @property
    def key(self) -> str:
        """What the ways are kept by; any number of slots and samples."""
        g = self.geometry
        numbers = (*self.x[2:], *self.weight[1:], *g.stride, *g.padding, *g.dilation, g.groups)
        return f"{' '.join(map(str, numbers))} {self.dtype}"


@dataclass(frozen=True)
class Plan:
    """How the convolutions of a program's stacks run: with channels `last` in memory or first, and
    the ways of each layer by its key; whether max pools and batch norms run by `kernels`."""

    last: bool
    ways: Mapping[str, Ways]
    kernels: bool = False

    @classmethod
    def read(cls, record: Any) -> Plan | None:
        """A plan that was kept, None for vmap's own way or a damaged record."""
        try:
            ways = {str(key): (str(f), str(d), str(w)) for key, (f, d, w) in record["ways"].items()}
            last, kernels = bool(record["last"]), bool(record["kernels"])
            if record["version"] != VERSION:
                return None
        except (TypeError, KeyError, ValueError, AttributeError):
            return None
        known = all(KNOWN.fullmatch(way) for each in ways.values() for way in each)
        return cls(last, ways, kernels) if known and ways else None


def record(plan: Plan | None, *, tuned: bool = False) -> dict[str, Any]:
    """A plan as it is kept in a file; without ways where there is none. `tuned`: by `tuned`."""
    ways = {} if plan is None else {key: list(each) for key, each in plan.ways.items()}
    last, kernels = (False, False) if plan is None else (plan.last, plan.kernels)
    more = {"tuned": True} if tuned else {}
    return {"version": VERSION, "last": last, "ways": ways, "kernels": kernels, **more}


# --- where calls are seen -------------------------------------------------------------------------


@dataclass(frozen=True)
class Given:
    """What `Rules` hands on: a plan, and where layers are listed."""

    plan: Plan | None
    seen: dict[str, Layer] | None

    def __bool__(self) -> bool:
        return self.plan is not None or self.seen is not None


class Rules(TorchFunctionMode):
    """A context in which a stack's convolutions, max pools and batch norms run by `plan`, vmap's
    way without one. It lists the layers that it sees in `seen`, if given."""

    def __init__(self, plan: Plan | None, seen: dict[str, Layer] | None = None):
        super().__init__()
        self.given = Given(plan, seen)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        named = kwargs or {}
        if func in HIDDEN:
            args = tuple(_cast(each) for each in args)
            named = {name: _cast(each) for name, each in named.items()}
        if func is torch.conv2d and self.given:
            return self._convolve(*args, **named)
        if func in (torch.max_pool2d, F.max_pool2d):
            return _pooled(self.given.plan, *args, **named)
        if func is layers.batch_norm and self.given.plan is not None:
            return _normalized(self.given.plan, *args, **named)
        return func(*args, **named)

    def _convolve(
        self, input: Tensor, weight: Tensor, bias: Tensor | None = None, *more: Any, **named: Any
    ) -> Any:
        geometry = Geometry.of(*more, **named)
        if geometry is None or input.dim() != 4:
            return torch.conv2d(input, weight, bias, *more, **named)
        return _Convolution.apply(input, weight, bias, geometry, self.given)


class _Convolution(torch.autograd.Function):
    """torch.conv2d of one trial, and of a stack where x and weight have five axes."""

    @staticmethod
    def forward(
        x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, given: Given
    ) -> Tensor:
        """y; vmap's own way for a layer that the plan does not know."""
        if x.dim() == 4:
            return plain(x, weight, bias, geometry)
        layer = Layer(tuple(x.shape), tuple(weight.shape), x.dtype, geometry)
        if given.seen is not None:
            given.seen[layer.key] = layer
        ways, last = _asked(given.plan, layer)
        return forward(ways[0], to_format(x, last), weight, bias, geometry, last)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Keep what the gradients need."""
        x, weight, _, ctx.geometry, given = inputs
        ctx.plan, ctx.seen = given.plan, given.seen
        ctx.save_for_backward(x, weight)

    @staticmethod
    def backward(ctx: Any, gy: Tensor) -> Any:
        """Gradients of x, weight and bias."""
        x, weight = ctx.saved_tensors
        wanted, one = ctx.needs_input_grad, gy.dim() == 4
        if one:
            x, weight, gy = x.unsqueeze(0), weight.unsqueeze(0), gy.unsqueeze(0)
        layer = Layer(tuple(x.shape), tuple(weight.shape), x.dtype, ctx.geometry)
        if ctx.seen is not None and not one and wanted[0]:
            ctx.seen[layer.key] = replace(layer, inputs=True)
        (_, *ways), last = _asked(None if one else ctx.plan, layer)
        given = to_format(gy, last), to_format(x, last), weight, ctx.geometry, last
        found = backward(ways, *given, wanted=wanted[:3])
        if one:
            return (*(None if each is None else each.squeeze(0) for each in found), None, None)
        return (*found, None, None)

    @staticmethod
    def vmap(
        info: Any,
        in_dims: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        geometry: Geometry,
        given: Given,
    ) -> tuple[Tensor, int]:
        """The stack's. Where slots share x or the weights, vmap's own way is one convolution."""
        dims = in_dims[:3]
        if x.dim() != 5 or weight.dim() != 5 or (bias is not None and dims[2] is None):
            y = vmap(plain, (*dims, None))(x, weight, bias, geometry)
            return (to_format(y, given.plan.last) if given.plan and y.dim() == 5 else y), 0
        x, weight = x.movedim(dims[0], 0), weight.movedim(dims[1], 0)
        bias = None if bias is None else bias.movedim(dims[2], 0)
        found: Tensor = _Convolution.apply(x, weight, bias, geometry, given)
        return found, 0


def _asked(plan: Plan | None, layer: Layer) -> tuple[Ways, bool]:
    """The ways of a layer, and whether channels lie last."""
    return (GROUPED, False) if plan is None else (plan.ways.get(layer.key, GROUPED), plan.last)


def _cast(value: Any) -> Any:
    """As autocast does, where it is on."""
    if not (isinstance(value, Tensor) and value.is_floating_point()):
        return value
    place = value.device.type
    if value.dtype == torch.float64 or not torch.is_autocast_enabled(place):
        return value
    return value.to(torch.get_autocast_dtype(place))


# --- max pools and batch norms --------------------------------------------------------------------


def _pooled(
    plan: Plan | None,
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    """F.max_pool2d. Without gradients on a CPU, pools that do not overlap are the maximum of views,
    which is several times faster and gives the same numbers: a maximum does not round. A plan may
    have kernels for them."""
    kernel = pair(kernel_size)
    simple = pair(stride or kernel) == kernel and pair(padding) == (0, 0)
    simple = simple and pair(dilation) == (1, 1) and not (ceil_mode or return_indices)
    if simple and plan is not None and plan.kernels and kernel[0] * kernel[1] <= MAX_WINDOW:
        require_kernels(input)
        from sweepstack.models.kernels.max_pool import Pool

        return Pool.apply(input, kernel)[0]
    if torch.is_grad_enabled() or input.device.type != "cpu" or not simple:
        more: Any = kernel_size, stride, padding, dilation, ceil_mode, return_indices
        return F.max_pool2d(input, *more)
    (kh, kw), (height, width) = kernel, input.shape[-2:]
    h, w = height - height % kh, width - width % kw
    views = [input[..., i:h:kh, j:w:kw] for i in range(kh) for j in range(kw)]
    return reduce(torch.maximum, views)


def _normalized(
    plan: Plan,
    x: Tensor,
    mean: Tensor,
    var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    training: bool,
    *constants: float,
) -> Tensor:
    """layers.batch_norm."""
    alike = mean.dtype == torch.float32 and (weight is None) == (bias is None)
    if not (plan.kernels and training and alike):
        # vmap cannot be asked about other layouts (torch 2.11 and 2.15).
        given = x.contiguous() if plan.last else x
        return layers.batch_norm(given, mean, var, weight, bias, training, *constants)
    momentum, eps = constants
    require_kernels(x)
    from sweepstack.models.kernels.batch_norm import Norm

    y, means, variances = Norm.apply(x, weight, bias, eps, mean)
    count = x.numel() // x.shape[1]
    mean.mul_(1 - momentum).add_(means * momentum)
    var.mul_(1 - momentum).add_(variances * (momentum * count / (count - 1)))
    found: Tensor = y
    return found


# --- which way ------------------------------------------------------------------------------------


@dataclass
class Chooser:
    """Finds the plan of a program's stacks.

    Args:
        step: runs one step of the stack in the context that it is given, and returns losses,
            gradients, and statistics of batch norms, changing nothing.
        place: the device.
        tolerance: see `TOLERANCE`.
    """

    step: Callable[[Rules], list[list[Tensor]]]
    place: torch.device
    tolerance: float
    seen: dict[str, Layer] = field(default_factory=dict)
    times: dict[tuple[str, int], dict[str, float]] = field(default_factory=dict)
    """Seconds of each way of a layer, by its key, and a pass, by its number."""

    def chosen(self, kept: Plan | None = None) -> Plan | None:
        """The fastest plan whose numbers agree with vmap's, or None: vmap's own way. A plan that
        was `kept` is not timed again, but has to agree here as well.

        Raises:
            ArithmeticError: a gradient is not finite, which says nothing about the ways.
        """
        slow = self._slow()
        if not self.seen:
            return None
        if kept is not None and self._agrees(kept, slow):
            return kept
        plans: list[Plan | None] = [None]
        for last in (False, True):
            ways = {key: self._fastest(each, last) for key, each in self.seen.items()}
            tried = [Plan(last, ways)]
            if not last and self._has_kernels():
                tried.insert(0, Plan(last, ways, kernels=True))
            plans += [plan for plan in tried if self._agrees(plan, slow)]
            if all(set(each) == {"implicit"} for each in ways.values()):
                break  # the kernels lay pictures out themselves
        times = [self._step(plan) for plan in plans]
        best = min(range(len(plans)), key=times.__getitem__)
        log.debug("convolutions: seconds of a step %s, plans %s", times, plans)
        return plans[best] if times[best] <= WORTH * times[0] else None

    def tuned(self, plan: Plan | None, steps: float) -> tuple[Plan | None, bool]:
        """A chosen plan with the fastest blocks of the kernel, where that gains in the whole step.
        False: it was not measured, there are no kernels or too few `steps`.

        Raises:
            ArithmeticError: as `chosen`.
        """
        if not self._has_kernels() or (plan is not None and plan.last):
            return plan, False
        slow, took = self._slow(), self._step(plan)
        seconds = min(MAX_S, SHARE * steps * took)
        if seconds < MIN_S or not self.seen:
            return plan, False
        ways = self._with_blocks(plan, time.monotonic() + seconds)
        found = Plan(False, ways, plan is None or plan.kernels)
        if found != plan and self._agrees(found, slow):
            seconds = self._step(found)
            log.debug("convolutions: %.2g s of a step with %s, before %.2g", seconds, found, took)
            if seconds < took * (WORTH if plan is None else 1):
                return found, True
        return plan, True

    def _slow(self) -> list[list[Tensor]]:
        """What a step comes to by vmap's own way."""
        slow = [[each.clone() for each in kind] for kind in self.step(Rules(None, self.seen))]
        if self.seen and not all(bool(each.isfinite().all()) for kind in slow for each in kind):
            raise ArithmeticError("the first trial's gradients are not finite")
        return slow

    def _step(self, plan: Plan | None) -> float:
        """Seconds; not of plans in turns: a captured step keeps as much memory as it needs."""
        run = _ready(partial(self.step, Rules(plan)), self.place)
        return min(_seconds(run, self.place) for _ in range(TIMINGS))

    def _agrees(self, plan: Plan, slow: Sequence[Sequence[Tensor]]) -> bool:
        try:
            self._compare(self.step(Rules(plan)), slow)
        except Exception as error:  # of a kernel, too
            log.info("a way to run the stack's convolutions is not used: %s", one_line(error))
            return False
        return True

    def _compare(self, found: Sequence[Sequence[Tensor]], slow: Sequence[Sequence[Tensor]]) -> None:
        off = difference(found, slow, self.tolerance)
        if off is not None:
            raise ArithmeticError(f"it differs from vmap's by {off:.1g}")

    def _passes(self, layer: Layer, last: bool) -> dict[int, Callable[..., Gradients]]:
        """What runs a pass of a layer in a way, with pictures that lie so already: the forward
        pass, the input gradient if there is one, and the weight gradient, which may take what
        `inputs`, the way of the other, has laid out."""
        given: dict[str, Any] = {"dtype": layer.dtype, "device": self.place}
        x = to_format(torch.rand(layer.x, **given), last)
        weight, more = torch.rand(layer.weight, **given), (layer.geometry, last)
        gy = torch.rand_like(forward("grouped", x, weight, None, *more))

        def weights(way: str, inputs: str = "") -> Gradients:
            wanted = bool(inputs), True, True
            return backward((inputs or way, way), gy, x, weight, *more, wanted=wanted)

        passes: dict[int, Callable[..., Gradients]] = {
            0: lambda way: (forward(way, x, weight, None, *more), None, None),
            1: lambda way: backward((way, way), gy, x, weight, *more, wanted=(True, False, False)),
            2: weights,
        }
        return passes if layer.inputs else {0: passes[0], 2: passes[2]}

    def _fastest(self, layer: Layer, last: bool) -> Ways:
        """Of one layer."""
        best = []
        for number, run in self._passes(layer, last).items():
            times = self.times[layer.key, number] = {}
            self._time(run, WAYS, times)
            best.append(min(times, key=times.__getitem__) if times else WAYS[0])
        log.debug("convolutions: %s, fastest %s", layer.key, best)
        return best[0], best[-2 if layer.inputs else -1], best[-1]

    def _with_blocks(self, plan: Plan | None, until: float) -> dict[str, Ways]:
        """The ways of a plan with the fastest blocks, the longest passes first, measured before a
        time of time.monotonic."""
        known = {} if plan is None else plan.ways
        ways = {key: [*known.get(key, GROUPED)] for key in self.seen}
        found: list[tuple[float, str, int]] = []
        for key, layer in self.seen.items():
            for number, run in self._passes(layer, False).items():
                times: dict[str, float] = {}
                self._time(run, dict.fromkeys((ways[key][number], "implicit")), times)
                found.append((min(times.values(), default=0.0), key, number))
        whole = sum(seconds for seconds, _, _ in found)
        for seconds, key, number in sorted(found, reverse=True):
            if seconds > MATTERS * whole and time.monotonic() < until:
                layer = self.seen[key]
                ways[key][number] = self._fastest_blocks(layer, number, ways[key], until)
        return {key: (each[0], each[1], each[2]) for key, each in ways.items()}

    def _fastest_blocks(self, layer: Layer, number: int, ways: Sequence[str], until: float) -> str:
        from sweepstack.models.kernels.implicit_gemm import candidates

        run = self._passes(layer, False)[number]
        if number == 2 and layer.inputs:
            run = partial(run, inputs=ways[1])
        times = self.times[layer.key, number] = {}
        self._time(run, dict.fromkeys((ways[number], "implicit")), times)
        if "implicit" in times:
            slow = _kinds(run("grouped"))
            each = candidates(layer.weight, number, layer.geometry.stride)[1:]
            names = (" ".join(("implicit", *map(str, blocks))) for blocks in each)
            self._time(run, takewhile(lambda _: time.monotonic() < until, names), times, slow)
        return min(times, key=times.__getitem__, default=ways[number])

    def _time(
        self,
        run: Callable[[str], Gradients],
        ways: Iterable[str],
        times: dict[str, float],
        slow: Sequence[Sequence[Tensor]] | None = None,
    ) -> None:
        """Seconds of each way that runs, and is not `HOPELESS`, into `times`; if `slow` is given,
        of those that come to its numbers."""
        for way in ways:
            try:
                if slow is not None:
                    self._compare(_kinds(run(way)), slow)
                ready = _ready(partial(run, way), self.place)
                first = _seconds(ready, self.place)
                if not times or first < HOPELESS * min(times.values()):
                    times[way] = min(_seconds(ready, self.place) for _ in range(TIMINGS))
            except Exception as error:  # no such kernel, or no memory for it
                if slow is not None:
                    log.info("blocks of a convolution, %s, are not used: %s", way, one_line(error))
        each = ", ".join(f"{way}: {1e6 * seconds:.0f}" for way, seconds in times.items())
        log.debug("convolutions: microseconds of a pass, %s", each)

    def _has_kernels(self) -> bool:
        try:
            require_kernels(torch.empty(0, device=self.place))
        except NotImplementedError:
            return False
        return True


def _kinds(found: Gradients) -> list[list[Tensor]]:
    """What `difference` takes."""
    return [[each] for each in found if each is not None]


def difference(
    found: Sequence[Sequence[Tensor]], slow: Sequence[Sequence[Tensor]], tolerance: float
) -> float | None:
    """How far the first tensor is off that differs by more than `tolerance` of its norm; None: all
    agree. Each kind of tensors has a size of its own, see `SMALL`."""
    for mine, theirs in zip(found, slow, strict=True):
        sizes = [each.float().norm() for each in theirs]
        least = SMALL * max(map(float, sizes), default=0.0)
        for one, other, size in zip(mine, theirs, sizes, strict=True):
            off = (one - other).float().norm()
            if not bool(off <= tolerance * size.clamp(min=least)):
                return float(off / size)
    return None


def _ready(run: Callable[[], Any], place: torch.device) -> Callable[[], Any]:
    """What repeats a run; on a GPU as a CUDA graph, without the time of its launches."""
    if place.type != "cuda":
        return run
    run()  # compiles, chooses libraries' kernels; fails here rather than in the capture
    torch.cuda.synchronize(place)
    graph, here = torch.cuda.CUDAGraph(), torch.cuda.current_stream(place)
    try:
        with torch.cuda.device(place), torch.cuda.graph(graph, capture_error_mode="thread_local"):
            run()
    except RuntimeError as error:
        log.debug("timed without a CUDA graph: %s", one_line(error))
        return run
    finally:
        torch.cuda.set_stream(here)  # torch 2.11 stays on the other where a capture raises
    graph.replay()
    return graph.replay


def _seconds(run: Callable[[], Any], place: torch.device) -> float:
    """Of one run; of this thread alone on one core, where other work does not count."""
    if place.type == "cuda":
        torch.cuda.synchronize(place)
    alone = place.type == "cpu" and torch.get_num_threads() == 1
    clock = time.thread_time if alone else time.perf_counter
    began = clock()
    run()
    if place.type == "cuda":
        torch.cuda.synchronize(place)
    return clock() - began
