"""Where and how numbers are computed: device, precision, determinism, memory."""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from functools import cache
from typing import Any

import torch

from sweepstack.config import schema
from sweepstack.config.errors import EnvironmentFault, InputError, NoMemory

_NO_MEMORY = (
    "CUDA out of memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "DefaultCPUAllocator: can't allocate memory",
)
"""Messages of errors that are not `torch.OutOfMemoryError`."""


def resolve(training: schema.Training) -> torch.device:
    """The device that `training.device` names; `auto` is CUDA when there is one.

    Raises:
        InputError: the name is none of auto, cpu, cuda, cuda:N, or the precision does not fit.
        EnvironmentFault: the named CUDA device does not exist.
    """
    name = training.device
    if name == "auto":
        name = "cuda" if _count() else "cpu"
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise InputError(f"training.device must be auto, cpu, cuda or cuda:N, got '{name}'")
    if name.startswith("cuda"):
        wanted = int(name.partition(":")[2] or 0)
        if wanted >= (count := _count()):
            raise EnvironmentFault(
                f"training.device={name} needs {wanted + 1} CUDA device(s), this machine has "
                f"{count}; training.device=cpu works everywhere"
            )
        name = f"cuda:{wanted}"
    elif training.precision == "tf32":
        raise InputError("training.precision=tf32 needs a CUDA device, training.device is cpu")
    return torch.device(name)


def _count() -> int:
    """The number of CUDA devices.

    Of several, a worker takes one by CUDA_VISIBLE_DEVICES once its trials have been checked. CUDA
    reads that when it is first asked anything, so it is not asked before: NVML counts.
    """
    count = torch.cuda.device_count()
    return count if count > 1 or (count and torch.cuda.is_available()) else 0


def describe(device: torch.device) -> str:
    """A name for people: the GPU's, or the processor's with the number of threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    count = torch.get_num_threads()
    return f"{_processor()} ({count} thread{'s' * (count > 1)})"


@cache
def _processor() -> str:
    """The processor's name. Linux takes a while to write its file where there are many cores."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            found = re.search(r"model name\s*:\s*(.+)", file.read())
    except OSError:
        return "CPU"
    return found.group(1).strip() if found else "CPU"


def _current(name: str) -> Any:
    """The context in which the device of that name is the current one, where there is one."""
    number = name.removeprefix("cuda:")
    there = number.isdecimal() and int(number) < _count()
    return torch.cuda.device(int(number)) if there else nullcontext()


@contextmanager
def settings(training: schema.Training) -> Iterator[None]:
    """Set determinism, matrix precision and a device that has a number (Triton's kernels run on the
    current one) for a while, and put back what was there.

    What is deterministic has one thread on a CPU: some sums are divided among threads, and a worker
    has as many as its host has left for it.
    """
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.backends.cudnn.benchmark,
        torch.get_float32_matmul_precision(),
        torch.backends.cudnn.allow_tf32,
        torch.get_num_threads(),
    )
    tf32 = training.precision == "tf32"
    there = _current(training.device)
    try:
        if training.deterministic:  # asked only then: the call imports torch's compiler, seconds
            # cuBLAS reads this when its first handle is made (torch.use_deterministic_algorithms).
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.use_deterministic_algorithms(True)
            torch.backends.cudnn.benchmark = False
            torch.set_num_threads(1)
        torch.set_float32_matmul_precision("high" if tf32 else "highest")
        torch.backends.cudnn.allow_tf32 = tf32
        with there:
            yield
    finally:
        if training.deterministic:
            torch.use_deterministic_algorithms(before[0], warn_only=before[1])
            torch.set_num_threads(before[5])
        torch.backends.cudnn.benchmark = before[2]
        torch.set_float32_matmul_precision(before[3])
        torch.backends.cudnn.allow_tf32 = before[4]


def autocast(precision: str, device: torch.device) -> Any:
    """The context of a forward pass: bf16 autocast, or nothing."""
    if precision == "bf16":
        return torch.autocast(device.type, torch.bfloat16)
    return nullcontext()


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the device, or the machine, has no memory left."""
    text = str(error)
    return isinstance(error, torch.OutOfMemoryError | MemoryError | NoMemory) or any(
        words in text for words in _NO_MEMORY
    )


@cache
def keep_memory() -> None:
    """Let this process keep the memory that tensors leave: glibc gives blocks of more than 32 MiB
    back to the system at once, and a wide stack takes them anew, page by page, in every step. A
    setting of the whole process."""
    with suppress(OSError, AttributeError):  # another C library
        libc = ctypes.CDLL(None)
        libc.mallopt(-3, 2**30)  # M_MMAP_THRESHOLD
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD
