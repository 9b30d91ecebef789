"""A user's own module, model=custom: found under the trust rule, built, checked, made stackable.

A module that trains beside others must take everything that is per trial as a parameter: it keeps
no state between steps (batch norm apart) and draws random numbers by its dropout layers alone. Both
are checked here by running it.
"""

from __future__ import annotations

import inspect
import json
import logging
import sys
import threading
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout, suppress
from functools import partial
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.func import functional_call

from sweepstack.config import schema, trust
from sweepstack.config.errors import (
    InputError,
    ModuleExit,
    SweepstackError,
    contained,
    nearest,
    reason,
)
from sweepstack.models.layers import adapt, aliases

log = logging.getLogger(__name__)


def build(
    model: schema.Custom, trusted: Sequence[str], input_shape: Sequence[int], outputs: int
) -> nn.Module:
    """Build `model.target` with its arguments, and `input_shape` and `outputs` if it has them.

    The caller seeds torch's generator, from which the constructor draws.

    Args:
        trusted: packages that the user trusts besides `trust.table`.
        input_shape: shape of a sample.
        outputs: C; that the module returns (B, C) is checked by the caller.

    Raises:
        InputError: a target that is not allowed, not found or no module; wrong arguments; a
            module that does not run on a batch, or that cannot train beside other trials.
    """
    given: dict[str, Any] = json.loads(model.arguments)
    make = _maker(model.target, trusted, given)
    offered = {"input_shape": tuple(input_shape), "outputs": outputs}
    arguments = arguments_of(make, model.target, given, offered)
    return checked(f"model._target_ '{model.target}'", lambda: make(**arguments), input_shape)


def checked(name: str, make: Callable[[], Any], input_shape: Sequence[int]) -> nn.Module:
    """Build a module, make it stackable, and check that it can train beside others.

    Args:
        name: what messages call it.
        make: constructs it.
        input_shape: shape of a sample.

    Raises:
        InputError: see `build`.
    """
    try:
        with contained():
            module = make()
    except SweepstackError:
        raise
    except Exception as error:
        raise InputError(f"{name} cannot be built: {reason(error)}") from error
    if not isinstance(module, nn.Module):
        kind = type(module).__name__
        raise InputError(f"{name} must give a torch.nn.Module, got {kind}")
    sample = torch.zeros(2, *input_shape)
    evaluated = _run(name, module.eval(), sample.clone())  # lazy layers get their shapes here
    if not isinstance(evaluated, Tensor):
        kind = type(evaluated).__name__
        raise InputError(f"{name} must return one tensor in evaluation, got {kind}")
    module = adapt(module)
    _check_independence(name, module.train(), sample)
    return module


def _maker(target: str, trusted: Sequence[str], given: Mapping[str, Any]) -> Callable[..., Any]:
    try:
        with contained():
            found: Callable[..., Any] = trust.locate(target, trusted, given)
    except ModuleExit as error:  # of a module that ends the process when it is imported
        raise InputError(f"model._target_ '{target}' cannot be imported: {error}") from error
    if inspect.isclass(found):
        makes = issubclass(found, nn.Module)
    else:
        # torch and torchvision have functions that run files: only those annotated as a module.
        makes = not trust.within(found.__module__, ("torch", "torchvision")) or _says_module(found)
    if not makes:
        raise InputError(
            "model._target_ must name a torch.nn.Module or a function that returns one, "
            f"got '{target}'"
        )
    return found


def _says_module(function: Callable[..., Any]) -> bool:
    try:
        returned = typing.get_type_hints(function).get("return")
    except Exception:  # an annotation may be any expression
        return False
    return inspect.isclass(returned) and issubclass(returned, nn.Module)


def arguments_of(
    make: Callable[..., Any],
    target: str,
    given: Mapping[str, Any],
    offered: Mapping[str, Any],
    group: str = "model",
) -> dict[str, Any]:
    """What to call `make` with: the `given` arguments, and those `offered` that it has.

    Raises:
        InputError: it lacks a given one.
    """
    parameters = inspect.signature(make).parameters.values()
    named = [p.name for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if not any(p.kind is p.VAR_KEYWORD for p in parameters):
        unknown = [name for name in given if name not in named]
        if unknown:
            raise InputError(
                [f"unknown key '{group}.{n}' of '{target}'{nearest(n, named)}" for n in unknown]
            )
    return {name: value for name, value in offered.items() if name in named} | dict(given)


def _run(name: str, module: nn.Module, sample: Tensor) -> Any:
    mode = "training" if module.training else "evaluation"
    try:
        with torch.no_grad(), contained():
            return module(sample)
    except Exception as error:
        raise InputError(
            f"{name} does not run in {mode} on a batch of shape "
            f"{tuple(sample.shape)}: {reason(error)}"
        ) from error


def _check_independence(name: str, module: nn.Module, sample: Tensor) -> None:
    """Run two training batches in turns, one of them not all zeros, whose mean may count, and two
    in evaluation; compare outputs, parameters, buffers and random state. A module that changes its
    input gets a copy: in evaluation it is the data themselves."""
    wrong = [n for n, p in module.named_parameters() if p.dtype != torch.float32]
    if wrong:
        raise InputError(
            f"{name} must have float32 parameters, '{wrong[0]}' is not; "
            "training.precision=bf16 computes in bf16"
        )
    before = {key: (tensor, tensor.detach().clone()) for key, tensor in _tensors(module)}
    random = torch.get_rng_state()
    ramp = torch.linspace(0, 1, sample.numel()).view_as(sample)
    given = [sample, ramp, sample, ramp, 200 * ramp - 100]
    copies = [each.clone() for each in given]
    outputs: list[Any] = []
    for each, copy in zip(given, copies, strict=True):
        outputs.append(None)
        with nullcontext() if each is sample else suppress(InputError):  # data say what it takes
            outputs[-1] = _run(name, module, copy)
    module.eval()
    for copy in copies[1::3]:
        with suppress(InputError):
            _run(name, module, copy)
    output, mistakes, changed = outputs[0], [], _changed(name, module.train(), before)
    if not all(map(torch.equal, given, copies)):
        module.register_forward_pre_hook(_copied)
    undrawn = isinstance(output, Tensor) and torch.equal(random, torch.get_rng_state())
    if undrawn and output.isnan().any():
        mistakes.append(
            f"{name} returns NaN for a batch of zeros: it must give finite "
            "numbers where training begins"
        )
    elif undrawn and not changed and not all(map(_alike, outputs[:2], outputs[2:4])):
        mistakes.append(
            f"{name} gives another output for the same batch: a trial could "
            "neither be resumed nor trained beside others; it may keep no state while it runs"
        )
    if not isinstance(output, Tensor):
        kind = type(output).__name__
        mistakes.append(f"{name} must return one tensor in training, got {kind}")
    if not torch.equal(random, torch.get_rng_state()):
        mistakes.append(
            f"{name} draws random numbers that are not the trial's own; "
            "use torch.nn.Dropout layers instead of functions such as F.dropout"
        )
    mistakes += changed or ([] if mistakes else _not_its_own(name, module, given[:2]))
    if mistakes:
        raise InputError(mistakes)


def _not_its_own(name: str, module: nn.Module, samples: Sequence[Tensor]) -> list[str]:
    """Whether a module that is handed other parameters, as in a step each trial's, computes what it
    does where they are its own."""
    own, kept = dict(module.named_parameters()), [tensor for _, tensor in _tensors(module)]
    before = [tensor.detach().clone() for tensor in kept]
    flipped = (p.detach().flatten().flip(0).view_as(p) for p in own.values())
    others = [1.02 * p + 2**-8 * (p == 0) for p in flipped]
    for sample in samples:
        copies = (
            each.clone().requires_grad_(p.requires_grad)
            for each, p in zip(others, own.values(), strict=True)
        )
        given = dict(zip(own, copies, strict=True))
        tied = {key: given[of] for key, of in aliases(module).items() if of in given}
        handed = partial(functional_call, module, given | tied, tie_weights=False)
        try:
            found = _gradients(name, handed, given.values(), sample)
            _put(kept, [*others, *before[len(own) :]])
            expected = _gradients(name, module, own.values(), sample)
        except InputError:
            if sample is samples[0]:  # of others data say what it takes
                raise
            continue
        finally:
            _put(kept, before)
        if any(map(_differ, found, expected)):
            return [
                f"{name} uses parameters otherwise than by their names in it, which are each "
                "trial's: it may not keep them in a list, dict or closure, hook their gradients, "
                "or use torch.utils.checkpoint"
            ]
    return []


def _put(tensors: Iterable[Tensor], numbers: Sequence[Tensor]) -> None:
    with torch.no_grad():
        for tensor, content in zip(tensors, numbers, strict=True):
            tensor.copy_(content)


def _gradients(
    name: str, forward: Callable[..., Any], parameters: Iterable[Tensor], sample: Tensor
) -> list[Tensor]:
    """The outputs of a batch, and the gradients of a weighted sum of them."""
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    given = sample.clone()
    try:
        with torch.enable_grad(), contained():
            outputs = forward(given if isinstance(forward, nn.Module) else (given,))
            if trained and outputs.requires_grad:
                (outputs * torch.linspace(1, 2, outputs.numel()).view_as(outputs)).sum().backward()
    except Exception as error:
        shape = tuple(sample.shape)
        said = f"{name} does not train on a batch of shape {shape}: {reason(error)}"
        raise InputError(said) from error
    if trained and not outputs.requires_grad:
        raise InputError(f"{name} gives outputs that depend on no trained parameter")
    grads = [torch.zeros_like(p) if p.grad is None else p.grad.to_dense() for p in trained]
    for parameter in trained:
        parameter.grad = None
    return [outputs.detach(), *grads]


def _differ(one: Tensor, other: Tensor) -> bool:
    """By more than rounding."""
    both = one.isfinite().all() and other.isfinite().all()
    return bool(both and (one - other).norm() > 1e-3 * max(one.norm(), other.norm()))


def _changed(
    name: str, module: nn.Module, before: Mapping[str, tuple[Tensor, Tensor]]
) -> list[str]:
    wrong = []
    for key, tensor in _tensors(module):
        kept, content = before.get(key, (None, tensor))
        if tensor is not kept or not torch.equal(tensor.nan_to_num(), content.nan_to_num()):
            wrong.append(
                f"{name} changes '{key}' while it runs, which trials would "
                "share; only BatchNorm layers may keep state between steps"
            )
    return wrong


def _alike(one: Any, other: Any) -> bool:
    if not isinstance(one, Tensor) or not isinstance(other, Tensor):
        return type(one) is type(other)
    return one.shape == other.shape and torch.equal(one.nan_to_num(), other.nan_to_num())


def _copied(_module: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(each.clone() if isinstance(each, Tensor) else each for each in given)


def _tensors(module: nn.Module) -> list[tuple[str, Tensor]]:
    return [*module.named_parameters(), *module.named_buffers()]


# --- side effects of a module's `forward`, which replayed steps do not have -----------------------

_PLAIN = (bool, int, float, str)
_reported: WeakSet[nn.Module] = WeakSet()


@contextmanager
def side_effects(module: nn.Module) -> Iterator[list[str]]:
    """Around a step of a module; lists its side effects: it prints, or changes attributes."""
    seen: list[str] = []
    before = _attributes(module)
    output = _Output(sys.stdout)
    with redirect_stdout(output):
        yield seen
    if output.used:
        seen.append("prints")
    after = _attributes(module)
    changed = sorted(name for name in after if after[name] != before.get(name))
    seen += [f"changes {name}" for name in changed]


def warn_of_side_effects(module: nn.Module, seen: list[str]) -> None:
    """Log once for each module what its replayed steps do not do."""
    if seen and module not in _reported:
        _reported.add(module)
        log.warning(
            "the model's forward %s: this happens in the first steps only, then they are replayed "
            "without running Python",
            ", ".join(seen),
        )


def _attributes(module: nn.Module) -> dict[str, Any]:
    """Plain attributes by name, and the lengths and plain items of containers."""
    found: dict[str, Any] = {}
    for path, layer in module.named_modules():
        for name, value in vars(layer).items():
            if name.startswith("_") or name == "training":
                continue
            if isinstance(value, list | dict | set):
                items = value.values() if isinstance(value, dict) else value
                value = str([len(value), *(item for item in items if isinstance(item, _PLAIN))])
            if isinstance(value, _PLAIN):
                found[f"{path}.{name}".lstrip(".")] = value
    return found


class _Output:
    """A stream that knows whether this thread writes to it."""

    def __init__(self, stream: Any):
        self._stream, self._thread, self.used = stream, threading.get_ident(), False

    def write(self, text: str) -> Any:
        self.used = self.used or threading.get_ident() == self._thread
        return self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
