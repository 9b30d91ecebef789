"""Counter-based random streams: every draw is a pure function of (trial seed, stream, counter).

A draw is the same in any slot, at any width, on any device and after a resume. The generator is
SplitMix64 (Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014):
output `i` of the stream with seed `key` is mix(key + (i + 1)·γ).

A trial's streams are `derive(seed, stream)` with one of the numbers below. Keys are 64-bit
integers, held as Python ints in [-2^63, 2^63) or as int64 tensors.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

INIT, ORDER, DROPOUT, AUGMENT, MIXUP = range(5)

_GAMMA = 0x9E3779B97F4A7C15
_M1 = 0xBF58476D1CE4E5B9
_M2 = 0x94D049BB133111EB
_MASK = 2**64 - 1
_SORTED = 2**22  # numbers that are sorted at once: 32 MiB


def _signed(value: int) -> int:
    value &= _MASK
    return value - 2**64 if value >= 2**63 else value


def derive(key: int, *path: int) -> int:
    """Follow `path` from `key`: each entry `i` >= 0 takes output `i` of the stream so far."""
    for index in path:
        z = (key + (index + 1) * _GAMMA) & _MASK
        z = ((z ^ (z >> 30)) * _M1) & _MASK
        z = ((z ^ (z >> 27)) * _M2) & _MASK
        key = _signed(z ^ (z >> 31))
    return key


def split(keys: Tensor, index: Tensor | int) -> Tensor:
    """`derive` on tensors: int64 `keys` and `index` broadcast; returns int64 of that shape."""
    if isinstance(index, int):
        return _mix(keys + _signed((index + 1) * _GAMMA))
    return _mix(keys + (index + 1) * _signed(_GAMMA))


def _mix(z: Tensor) -> Tensor:
    # >> is arithmetic on int64; the masks make it logical.
    z = (z ^ ((z >> 30) & (2**34 - 1))) * _signed(_M1)
    z = (z ^ ((z >> 27) & (2**37 - 1))) * _signed(_M2)
    return z ^ ((z >> 31) & (2**33 - 1))


def counters(n: int, device: torch.device | str) -> Tensor:
    """The (n,) int64 counters 0..n-1 in the form that `uniform` takes."""
    return (torch.arange(n, device=device) + 1) * _signed(_GAMMA)


def uniform(keys: Tensor, n: int | Tensor) -> Tensor:
    """Draw `n` numbers in [0, 1) with 24 random bits for each key.

    Args:
        keys: int64 tensor of any shape (...).
        n: how many, or `counters(n, device)` made before.

    Returns:
        float32 tensor (..., n).
    """
    steps = n if isinstance(n, Tensor) else counters(n, keys.device)
    bits = _mix(keys.unsqueeze(-1) + steps)
    return ((bits >> 40) & (2**24 - 1)).to(torch.float32) * 2.0**-24


def permutation(key: int, n: int, device: torch.device | str = "cpu") -> Tensor:
    """A random permutation of 0..n-1, the same on every device; (n,) int64.

    It sorts n 64-bit keys, which are distinct up to a chance of n²/2^65, so that no tie can be
    broken differently by another device's sort.
    """
    return permutations([key], n, device)[0]


def permutations(keys: Sequence[int], n: int, device: torch.device | str = "cpu") -> list[Tensor]:
    """`permutation` of each key, sorted together."""
    steps, found = counters(n, device), list[Tensor]()
    if steps.device.type == "cpu":  # numpy's argsort is twice as fast on int64
        return [torch.from_numpy(_mix(key + steps).numpy().argsort()) for key in keys]
    for some in torch.split(torch.tensor(keys), max(1, _SORTED // max(1, n))):
        found += _mix(some.to(device).unsqueeze(1) + steps).argsort().unbind(0)
    return found
