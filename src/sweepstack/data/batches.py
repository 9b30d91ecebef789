"""Sources of batches: from a split to tensors on the device of the training loop.

`DeviceSource` keeps a whole split on the device; `StreamSource` has worker processes gather, or
decode, a few batches ahead. Both give bit-equal batches in exactly the order that is asked for.

Notation: S trials in the stack, B samples of a batch, M samples of a chunk, shape = a sample's
axes.
"""

from __future__ import annotations

import os
import signal
import weakref
from collections.abc import Iterable, Iterator
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from sweepstack.config.errors import EnvironmentFault, one_line
from sweepstack.data.dataset import Split, TensorSplit

Pair = tuple[Tensor, Tensor]

_LIMITS = {
    "/sys/fs/cgroup": ("memory.max", "memory.current", "inactive_file"),
    "/sys/fs/cgroup/memory": (
        *("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ),
}
"""Of control groups, version 2 and 1: files of the limit and of the usage, the name of cache."""


class Source(Protocol):
    """Batches of one split, on the device."""

    def batches(self, indices: Tensor) -> Iterator[Pair]:
        """For each of the T indices (S, B) of int64 (T, S, B), on any device: x (S, B, *shape)
        float32 and y (S, B), or (S, B, K); likewise (B, *shape) and (B,) of (T, B)."""

    def chunks(self, size: int) -> Iterator[Pair]:
        """The split in order: x (M, *shape) and y (M,) with M = `size`, the last one shorter."""


def source(split: Split, device: torch.device, placement: str, workers: int) -> Source:
    """Bring a split to `device` as `data.placement` says.

    Args:
        placement: `device` keeps the split there, `stream` does not; `auto` keeps it when it needs
            at most a quarter of the memory that is free there.
        workers: processes of a streamed split; 0 gathers in this one.

    Raises:
        EnvironmentFault: `placement=device` and the split is larger than the free memory, or a
            picture cannot be read.
    """
    if placement == "stream":
        return StreamSource(split, device, workers)
    if isinstance(split, TensorSplit) and device.type == "cpu":
        return DeviceSource(split, device)  # it is there already
    free = free_memory(device)
    if placement == "auto" and 4 * split.nbytes > free:
        return StreamSource(split, device, workers)
    if split.nbytes > free:
        raise EnvironmentFault(
            f"data.placement=device needs {split.nbytes / 2**30:.1f} GiB on {device}, "
            f"{free / 2**30:.1f} GiB are free: data.placement=stream needs little"
        )
    return DeviceSource(split.tensor(), device)


class DeviceSource:
    """A split that lives on the device."""

    def __init__(self, split: TensorSplit, device: torch.device):
        self.split = TensorSplit(split.x.to(device), split.y.to(device))
        self.device = device

    def batches(self, indices: Tensor) -> Iterator[Pair]:
        indices, x = indices.to(self.device, non_blocking=True), self.split.x.flatten(1)
        # index_select copies whole rows, 2-3 times faster than x[row]
        y = self.split.y.index_select(0, indices.flatten())
        targets = y.view(*indices.shape, *y.shape[1:]).unbind(0)
        shape = (*indices.shape[1:], *self.split.shape)
        for row, y in zip(indices.flatten(1).unbind(0), targets, strict=True):
            yield x.index_select(0, row).view(shape), y

    def chunks(self, size: int) -> Iterator[Pair]:
        x, y = self.split.x, self.split.y
        return zip(torch.split(x, size), torch.split(y, size), strict=True)


class StreamSource:
    """A split that stays where it is; batches are gathered ahead and copied to the device.

    The worker processes start with the first batch and end with the source. Starting an iteration
    ends the one before.
    """

    def __init__(self, split: Split, device: torch.device, workers: int):
        self.split, self.device, self.workers = split, device, workers
        self._order = _Order()
        self._pool: list[DataLoader[Any]] = []  # the loader, once there is one
        # Keeps the loader until the source is gone: collected together with it, in an error's
        # reference cycle, it would wait 5 s for each worker.
        weakref.finalize(self, self._pool.clear)

    def _loader(self) -> DataLoader[Any]:
        if not self._pool:
            loader = DataLoader(
                _Gathered(self.split),
                batch_size=None,  # an item of the sampler is a whole batch
                sampler=self._order,
                num_workers=self.workers,
                persistent_workers=self.workers > 0,
                pin_memory=self.device.type == "cuda",
                # A loader seeds its workers with a draw, which torch's generator must not make.
                generator=torch.Generator(),
                worker_init_fn=_take_no_signals if self.workers else None,
            )
            self._pool.append(loader)
        return self._pool[0]

    def batches(self, indices: Iterable[Tensor]) -> Iterator[Pair]:
        """See `Source.batches`; `indices` is read a few batches ahead of what is returned, and may
        give batches of unequal sizes.

        Raises:
            EnvironmentFault: a picture cannot be read, or a worker process died.
        """
        turn = self._order.start(indices)
        loaded = iter(self._loader())
        while (item := self._next(loaded)) is not None:
            if isinstance(item, EnvironmentFault):
                del loaded
                self._pool.clear()  # ends the workers; another iteration starts new ones
                raise item
            x, y = item
            yield x.to(self.device, non_blocking=True), y.to(self.device, non_blocking=True)
            if turn != self._order.turn:
                raise RuntimeError("a newer iteration of this source has ended this one")

    @staticmethod
    def _next(loaded: Iterator[Any]) -> Pair | EnvironmentFault | None:
        """The next batch, its error, or None at the end."""
        try:
            item: Pair | EnvironmentFault | None = next(loaded, None)
        except RuntimeError as error:
            if "DataLoader worker (pid" not in str(error):
                raise
            return EnvironmentFault(
                f"a data worker died ({one_line(error)}): "
                "data.workers=0 and data.placement=device do without"
            )
        return item

    def chunks(self, size: int) -> Iterator[Pair]:
        return self.batches(torch.split(torch.arange(len(self.split)), size))


def _take_no_signals(worker: int) -> None:
    """In a worker process: the parent handles Ctrl-C, and may end this process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


class _Order(Sampler[Any]):
    """Gives the loader the current iteration's indices, as arrays, which are cheap to send."""

    def __init__(self) -> None:
        self.turn = 0
        self.indices: Iterable[Tensor] = ()

    def start(self, indices: Iterable[Tensor]) -> int:
        self.turn, self.indices = self.turn + 1, indices
        return self.turn

    def __iter__(self) -> Iterator[Any]:
        for index in self.indices:
            yield index.cpu().numpy()


class _Gathered(Dataset[Any]):
    """A split as a map from index arrays to batches; runs in the worker processes."""

    def __init__(self, split: Split):
        self.split = split

    def __getitem__(self, index: np.ndarray[Any, Any]) -> Pair | EnvironmentFault:
        try:
            x, y = self.split.gather(torch.from_numpy(index.reshape(-1)))
        except EnvironmentFault as fault:
            return fault  # a raised one would arrive with its traceback as the message
        return x.view(*index.shape, *self.split.shape), y.view(*index.shape, *y.shape[1:])


def free_memory(device: torch.device) -> int:
    """Bytes that are free on `device`, on a CPU within the limit of the control group; all of its
    memory where the system does not say."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    found = _read_number("/proc/meminfo", "MemAvailable", 1024)
    if found is None:  # macOS
        found = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for folder, (limit, used, cache) in _LIMITS.items():
        most, now = _read_number(f"{folder}/{limit}"), _read_number(f"{folder}/{used}")
        if most is not None and now is not None:
            cached = _read_number(f"{folder}/memory.stat", cache) or 0
            found = min(found, max(0, most - now + cached))
    return found


def _read_number(path: str, name: str | None = None, unit: int = 1) -> int | None:
    """The number in a file of the kernel, or on its line `name`; None where there is none."""
    try:
        with open(path, encoding="ascii") as file:
            lines = [line.replace(":", " ").split() for line in file]
        word = next(line[-1 if name is None else 1] for line in lines if name in (None, line[0]))
        return int(word) * unit
    except (OSError, ValueError, StopIteration, IndexError):
        return None
