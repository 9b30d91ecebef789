"""How much memory a device has left."""

from __future__ import annotations

import os

import torch

_GROUPS = (
    (
        "/sys/fs/cgroup/memory.max",
        "/sys/fs/cgroup/memory.current",
        "inactive_file",
    ),
    (
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
        "/sys/fs/cgroup/memory/memory.usage_in_bytes",
        "total_inactive_file",
    ),
)
"""Files of control groups, version 2 and 1: the limit, what is taken, and what of it is cache."""


def free_memory(device: torch.device) -> int | None:
    """Bytes that are free on `device`, on a CPU within the limit of the control group; None where
    the system does not say."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    found = _read_numbers("/proc/meminfo", "MemAvailable", 1024)
    if found is None:
        names = getattr(os, "sysconf_names", {})
        if "SC_PHYS_PAGES" not in names:
            return None
        found = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for limit, used, reclaimable in _GROUPS:
        most, now = _read_numbers(limit), _read_numbers(used)
        if most is not None and now is not None:
            folder = os.path.dirname(limit)
            cached = _read_numbers(f"{folder}/memory.stat", reclaimable) or 0
            found = min(found, max(0, most - now + cached))
    return found


def _read_numbers(path: str, name: str | None = None, unit: int = 1) -> int | None:
    """The number in a file of the kernel, or on its line `name`; None where there is none."""
    try:
        with open(path, encoding="ascii") as file:
            lines = [line.replace(":", " ").split() for line in file]
        word = next(line[-1 if name is None else 1] for line in lines if name in (None, line[0]))
        return int(word) * unit
    except (OSError, ValueError, StopIteration, IndexError):
        return None
