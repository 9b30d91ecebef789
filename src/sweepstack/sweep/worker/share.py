"""What a local worker gets of this machine: its threads, and a GPU."""

from __future__ import annotations

import contextlib
import glob
import os
from collections.abc import Iterator

from sweepstack.sweep.plan import Plan


@contextlib.contextmanager
def environment(place: int, plan: Plan) -> Iterator[None]:
    """Set a worker's share for a process that starts now; what is set by a person stays."""
    before = dict(os.environ)
    for key, value in _of(place, plan).items():
        if key == "CUDA_VISIBLE_DEVICES":
            os.environ[key] = value
        else:
            os.environ.setdefault(key, value)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _of(place: int, plan: Plan) -> dict[str, str]:
    """Environment of a worker: its threads, and its GPU of the visible ones."""
    threads = max(1, (os.cpu_count() or 1) // plan.n_jobs)
    share = {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    chosen = any(word.startswith("training.device=cuda:") for word in plan.space.fixed)
    gpus = _visible_gpus()
    if gpus and not chosen:
        share["CUDA_VISIBLE_DEVICES"] = gpus[place % len(gpus)]
    return share


def _visible_gpus() -> list[str]:
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        return [gpu for gpu in given.split(",") if gpu]
    return [str(number) for number in range(len(glob.glob("/dev/nvidia[0-9]*")))]
