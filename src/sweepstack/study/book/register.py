"""The workers of a study: what each may use of its host, and the register in which all stand.

A worker has an entry in the study's user attributes (`attributes.WORKERS`), under the name of its
process. Workers of one host share its cores, and take its GPUs by the entries of the others, the
one with the fewest workers first. What a scheduler has assigned (Slurm's and Ray's jobs see their
own GPUs and cores only) stays.
"""

from __future__ import annotations

import contextlib
import glob
import logging
import os
import re
import signal
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import optuna

from sweepstack.study import storage
from sweepstack.study.attributes import WORKERS
from sweepstack.study.book import processes
from sweepstack.study.book.public import held

log = logging.getLogger(__name__)

SILENT_S = 60.0
"""A worker of another host that has said nothing for so long is presumed dead."""


@dataclass
class Entry:
    """A worker in the register: times in seconds since 1970; `crew` is the sweep that started it,
    `job` what its scheduler calls it."""

    process: str
    began: float
    seen: float
    crew: str = ""
    gpu: str | None = None
    job: str | None = None
    trials: int = 0
    ended: float | None = None

    @property
    def host(self) -> str:
        """The host's name."""
        return self.process.partition("/")[0].partition(":")[0]

    @property
    def name(self) -> str:
        """What it is called on its host: the job or the process."""
        return str(self.job or self.process.rsplit(":", 2)[1])

    @property
    def per_minute(self) -> float:
        """Trials that ended, by its last sign of life."""
        return 60 * self.trials / max(1.0, self.seen - self.began)

    @property
    def described(self) -> str:
        """Where it is, and how to end it."""
        if self.job is not None:
            return f"{self.job} on {self.host} (scancel {self.job.removeprefix('slurm ')})"
        pid = self.process.rsplit(":", 2)[1]
        return f"worker {pid} on {self.host} (kill {pid})"

    @property
    def is_alive(self) -> bool:
        """Whether it works, as far as one can know from here."""
        if self.ended is not None or processes.is_gone(self.process):
            return False
        return processes.is_here(self.process) or time.time() - self.seen < SILENT_S


def workers(study: optuna.Study) -> list[Entry]:
    """All workers that the study has had, first to last; not what another version wrote."""
    found = []
    for key, value in study.user_attrs.items():
        if key.startswith(f"{WORKERS}."):
            with contextlib.suppress(TypeError, ValueError):
                entry = Entry(**value)
                _, pid, _ = entry.process.rsplit(":", 2)
                entry.began, entry.seen = float(entry.began), float(entry.seen)
                entry.trials = int(entry.trials)
                if min(entry.began, entry.seen) >= 0 and max(entry.began, entry.seen) < 1e11:
                    found.append((entry.began, entry.seen, int(pid), entry))
    return [entry for *_, entry in sorted(found, key=lambda each: each[:3])]


def job(environ: Mapping[str, str] = os.environ) -> str | None:
    """The job of a scheduler that this process is, such as "slurm 17_2"."""
    if "SLURM_JOB_ID" not in environ:
        return None
    array, task = environ.get("SLURM_ARRAY_JOB_ID"), environ.get("SLURM_ARRAY_TASK_ID")
    return f"slurm {array}_{task}" if array and task else f"slurm {environ['SLURM_JOB_ID']}"


def end(entry: Entry) -> None:
    """End a worker that does not end itself, where one can from here."""
    with contextlib.suppress(OSError, subprocess.SubprocessError, ValueError):
        if entry.job is not None:
            command = ["scancel", entry.job.removeprefix("slurm ")]
            subprocess.run(command, capture_output=True, timeout=20)
        elif entry.is_alive and processes.is_here(entry.process):
            pid = int(entry.process.rsplit(":", 2)[1])
            if pid != os.getpid():
                os.kill(pid, signal.SIGKILL)


class Membership:
    """A worker's entry in the register, as long as it works: a context manager."""

    def __init__(self, study: optuna.Study, entry: Entry):
        self.study, self.entry = study, entry
        self.write()

    @classmethod
    def here(cls, study: optuna.Study, crew: str, gpu: str | None = None) -> Membership:
        """Enter this process."""
        now = time.time()
        return cls(study, Entry(processes.this_process(), now, now, crew, gpu, job()))

    def write(self, **changes: Any) -> None:
        """Write the entry, with a sign of life."""
        for key, value in {"seen": time.time(), **changes}.items():
            setattr(self.entry, key, value)
        self.study.set_user_attr(f"{WORKERS}.{self.entry.process}", asdict(self.entry))

    def __enter__(self) -> None:
        pass

    def __exit__(self, *raised: object) -> None:
        with storage.ignored():  # where it is gone, others see the end by the silence
            self.write(ended=time.time())


def join(
    study: optuna.Study, crew: str, n_jobs: int, limit: int | None, *, chooses: bool = True
) -> Membership | None:
    """Enter a worker, a process of its own, with its share of the cores and its GPU; None where
    `limit` leaves none for it. Called before the process has used a GPU.

    Args:
        study: where it works.
        crew: the sweep that started it.
        n_jobs: workers of that sweep.
        limit: most workers on one GPU.
        chooses: whether it is to take a GPU at all.
    """
    gpus = gpus_here() if chooses else []
    here = processes.this_process()
    with held(Path(tempfile.gettempdir()) / f".sweepstack-{os.getuid()}.lock"):
        others = [e for e in workers(study) if e.is_alive and processes.is_here(e.process)]
        others = [e for e in others if e.process != here]
        gpu = None
        if gpus:
            most = None if len(gpus) == 1 and _is_assigned() else limit
            loads = Counter(e.gpu for e in others)
            gpu = least_loaded([key for _, key in gpus], loads, most)
            if gpu is None:
                log.warning(
                    "no GPU of this host has a place (hydra.sweeper.workers_per_gpu=%s): this "
                    "worker ends",
                    limit,
                )
                return None
            os.environ["CUDA_VISIBLE_DEVICES"] = next(word for word, key in gpus if key == gpu)
        entered = Membership.here(study, crew, gpu)
    _use_threads(1 if _is_assigned() else max(n_jobs, 1 + len(others)))
    return entered


def least_loaded(gpus: Sequence[str], loads: Mapping[Any, int], limit: int | None) -> str | None:
    """The first of the GPUs that have the fewest workers; None where all have `limit`."""
    best = min(gpus, key=lambda gpu: loads.get(gpu, 0))
    return None if limit is not None and loads.get(best, 0) >= limit else best


def gpus_here() -> list[tuple[str, str]]:
    """The GPUs of this process, as `visible_gpus` has them."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    devices = sorted(glob.glob("/dev/nvidia[0-9]*"))
    if given == "" or (given is None and not devices):
        return []
    listed = ""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        command = ["nvidia-smi", "-L"]
        listed = subprocess.run(command, capture_output=True, text=True, timeout=20).stdout
    return visible_gpus(given, listed, len(devices))


def visible_gpus(given: str | None, listed: str, count: int) -> list[tuple[str, str]]:
    """The GPUs that a process may use: how CUDA is told of each, and what tells it from others.

    Args:
        given: CUDA_VISIBLE_DEVICES: numbers, or names such as GPU-8b2e or MIG-41ac. CUDA reads it
            up to the first -1.
        listed: what `nvidia-smi -L` prints; a GPU that is divided (MIG) stands for its parts.
        count: how many there are where that is empty.
    """
    whole: list[str] = []
    parts: dict[str, list[str]] = {}
    for line in listed.splitlines():
        found = re.search(r"\(UUID: ([\w/-]+)\)", line)
        if found and line.startswith("GPU "):
            whole.append(found[1])
        elif found and whole:
            parts.setdefault(whole[-1], []).append(found[1])
    if given is None:
        names = [name for gpu in whole for name in parts.get(gpu, [gpu])]
        return [(name, name) for name in names or map(str, range(count))]
    found_gpus = []
    for word in map(str.strip, given.split(",")):
        if word.startswith("-") or not word:
            break
        is_number = word.isdecimal() and int(word) < len(whole)
        found_gpus.append((word, whole[int(word)] if is_number else word))
    return found_gpus


def cores(environ: Mapping[str, str] = os.environ, root: Path = Path("/")) -> int:
    """Cores that this process may use: its affinity, what Slurm gave the task, and the quotas of
    its control groups (version 1 or 2) below `root`."""
    with contextlib.suppress(AttributeError):  # macOS, Windows
        return max(1, min([len(os.sched_getaffinity(0)), *_limits(environ, root)]))
    return max(1, min([os.cpu_count() or 1, *_limits(environ, root)]))


def _limits(environ: Mapping[str, str], root: Path) -> Iterable[int]:
    given = environ.get("SLURM_CPUS_PER_TASK", "")
    if "SLURM_JOB_ID" in environ and given.isdecimal():
        yield int(given)
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        base = root / "sys/fs/cgroup" / controllers
        place = base / path.lstrip("/")
        for folder in [place, *place.parents]:
            if folder == base.parent:
                break
            yield from _quota(folder)


def _quota(folder: Path) -> Iterable[int]:
    """Whole cores that a control group allows."""
    with contextlib.suppress(OSError, ValueError):
        quota, period = (folder / "cpu.max").read_text().split()  # "max 100000" is no number
        yield int(quota) // int(period)
    with contextlib.suppress(OSError, ValueError):
        quota_us = int((folder / "cpu.cfs_quota_us").read_text())  # -1: no limit
        if quota_us > 0:
            yield quota_us // int((folder / "cpu.cfs_period_us").read_text())


def _is_assigned() -> bool:
    """Whether a scheduler gave this process cores and GPUs of its own."""
    return "SLURM_JOB_ID" in os.environ or "RAY_JOB_ID" in os.environ


def _use_threads(count: int) -> None:
    """Use this worker's share of the cores, one of `count`; what a person has set stays."""
    if "OMP_NUM_THREADS" not in os.environ:
        import torch

        torch.set_num_threads(max(1, cores() // count))
