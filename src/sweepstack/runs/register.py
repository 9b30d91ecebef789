"""The workers of a study: what each may use of its host, and the register in which all stand.

A worker has an entry in the study's user attributes (`attributes.WORKERS`), under the name of its
process. Workers of one host share its cores, and take its GPUs by the entries of the others, the
one with the fewest workers first. What a scheduler has assigned (Slurm's and Ray's jobs see their
own GPUs and cores only) stays.
"""

from __future__ import annotations

import contextlib
import ctypes
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

from sweepstack import storage
from sweepstack.config.errors import (
    EXIT_ENVIRONMENT,
    EXIT_INTERRUPTED,
    EXIT_TERMINATED,
    EnvironmentFault,
)
from sweepstack.study.attributes import WORKERS
from sweepstack.study.book import processes
from sweepstack.study.book.public import held

log = logging.getLogger(__name__)

GPUS = "CUDA_VISIBLE_DEVICES"
NVML = "PYTORCH_NVML_BASED_CUDA_CHECK"
SILENT_S = 60.0
"""A worker of another host that has said nothing for so long is presumed dead."""


@dataclass
class Entry:
    """A worker in the register: times in seconds since 1970; `crew` is the sweep that started it,
    `job` what its scheduler calls it, `code` the exit code of what ended it early."""

    process: str
    began: float
    seen: float
    crew: str = ""
    gpu: str | None = None
    job: str | None = None
    trials: int = 0
    ended: float | None = None
    code: int | None = None

    @property
    def host(self) -> str:
        """The host's name."""
        return self.process.partition("/")[0].partition(":")[0]

    @property
    def pid(self) -> int:
        """The process's number on its host."""
        return int(self.process.rsplit(":", 2)[1])

    @property
    def name(self) -> str:
        """What a person calls it."""
        return self.job or f"worker {self.pid} on {self.host}"

    @property
    def per_minute(self) -> float:
        """Trials that ended, by its last sign of life."""
        return 60 * self.trials / max(1.0, self.seen - self.began)

    @property
    def described(self) -> str:
        """Where it is, and how to end it."""
        if self.job is not None and self.job != job():
            return f"{self.job} on {self.host} ({ending([self.job])})"
        return f"worker {self.pid} on {self.host} (kill {self.pid})"

    @property
    def is_unfinished(self) -> bool:
        """Whether, once it works no more, others may be needed: it died, or a signal ended it."""
        return self.ended is None or self.code in (1, EXIT_INTERRUPTED, EXIT_TERMINATED)

    @property
    def found_no_place(self) -> bool:
        """Whether it ended without a trial, as `hydra.sweeper.workers_per_gpu` left it no GPU."""
        return self.code == EXIT_ENVIRONMENT and not self.trials

    @property
    def is_alive(self) -> bool:
        """Whether it works, as far as one can know from here."""
        if self.ended is not None or processes.is_gone(self.process):
            return False
        return processes.is_here(self.process) or time.time() - self.seen < SILENT_S


def no_place(workers_per_gpu: int | None, where: str = "this host") -> EnvironmentFault:
    """The error of workers of which none finds a place on a GPU."""
    return EnvironmentFault(
        f"no GPU of {where} has a place: others of the study's workers have "
        f"hydra.sweeper.workers_per_gpu={workers_per_gpu} on each"
    )


def workers(study: optuna.Study, known: Mapping[str, Any] | None = None) -> list[Entry]:
    """All workers that the study has had, first to last; not what another version wrote. `known`
    are those of its attributes that were read for it."""
    found = []
    for key, value in (study.user_attrs if known is None else known).items():
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
    """The job of a scheduler that this process is: "slurm 17_2", or "local 4711" of submitit's
    own on this machine."""
    if environ.get("SUBMITIT_EXECUTOR") == "local":
        return f"local {environ['SUBMITIT_LOCAL_JOB_ID']}"
    if "SLURM_JOB_ID" not in environ:
        return None
    array, task = environ.get("SLURM_ARRAY_JOB_ID"), environ.get("SLURM_ARRAY_TASK_ID")
    return f"slurm {array}_{task}" if array and task else f"slurm {environ['SLURM_JOB_ID']}"


def queued(jobs: Iterable[str]) -> set[str] | None:
    """Those of the jobs that wait or work; None where that is unknown for now."""
    jobs = set(jobs)
    found = {name for name in jobs if (pid := _number("local", name)) and processes.is_running(pid)}
    if any(name.startswith("slurm ") for name in jobs):
        listed = _said("squeue", "-h", "-r", f"--user={os.getuid()}", "--format=%i")
        if listed is None:
            return None
        found |= {f"slurm {number}" for number in listed.split()} & jobs
    return found


def cancel(jobs: Iterable[str], *, only: str | None = None) -> None:
    """End jobs, as their scheduler does: SIGTERM, and after a while SIGKILL.

    Args:
        jobs: their names.
        only: "waiting" leaves out those that work; "ask" sends those SIGTERM and nothing more.
    """
    names = sorted(jobs)
    slurm = [name.removeprefix("slurm ") for name in names if name.startswith("slurm ")]
    if slurm:
        options = {"waiting": ["--state=PENDING"], "ask": ["--signal=TERM"]}
        _said("scancel", *options.get(only or "", []), *slurm)
    if only != "waiting":
        for pid in filter(None, (_number("local", name) for name in names)):
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGTERM)  # submitit passes it on


def ending(jobs: Iterable[str]) -> str:
    """The command that ends jobs of one scheduler."""
    kinds, numbers = zip(*(name.split(" ", 1) for name in jobs), strict=True)
    return " ".join(["scancel" if "slurm" in kinds else "kill", *numbers])


def _number(kind: str, name: str) -> int | None:
    number = name.removeprefix(f"{kind} ")
    return int(number) if number != name and number.isdecimal() else None


def _said(*command: str) -> str | None:
    """What a scheduler's command prints; None where it fails. A terminal's Ctrl-C is not for it."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        return subprocess.run(
            command, capture_output=True, text=True, timeout=20, check=True, start_new_session=True
        ).stdout
    return None


def end(entry: Entry) -> None:
    """End a worker that does not end itself, where one can from here."""
    if entry.job is not None and entry.job.startswith("slurm ") and entry.job != job():
        cancel([entry.job])
    elif processes.is_here(entry.process) and entry.is_alive and entry.pid != os.getpid():
        with contextlib.suppress(OSError):
            os.kill(entry.pid, signal.SIGKILL)


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
        self.study.set_user_attr(*self.changed(**changes))

    def changed(self, **changes: Any) -> tuple[str, dict[str, Any]]:
        """Name and value of the entry, with a sign of life, to be written."""
        for key, value in {"seen": time.time(), **changes}.items():
            setattr(self.entry, key, value)
        return f"{WORKERS}.{self.entry.process}", asdict(self.entry)

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if error is not None:
            self.entry.code = getattr(error, "exit_code", 1)
        with storage.ignored():  # where it is gone, others see the end by the silence
            self.write(ended=time.time())


def join(
    study: optuna.Study, crew: str, n_jobs: int, limit: int | None, *, chooses: bool = True
) -> Membership | None:
    """Enter a worker, a process of its own, with its share of the cores and its GPU; None where
    `limit` leaves none for it, which its entry says. A process that has used a GPU stays with its
    first one.

    Args:
        study: where it works.
        crew: the sweep that started it.
        n_jobs: workers of that sweep.
        limit: most workers on one GPU.
        chooses: whether it is to take a GPU at all.
    """
    gpus = gpus_here() if chooses else []
    gpus = gpus[:1] if _has_used_gpus() else gpus
    here = processes.this_process()
    with held(Path(tempfile.gettempdir()) / f".sweepstack-{os.getuid()}.lock"):
        others = [e for e in workers(study) if e.is_alive and processes.is_here(e.process)]
        others = [e for e in others if e.process != here]
        gpu = None
        if gpus:
            most = None if len(gpus) == 1 and is_assigned() else limit
            loads = Counter(e.gpu for e in others)
            gpu = least_loaded([key for _, key in gpus], loads, most)
            if gpu is None:
                log.warning(
                    "no GPU of this host has a place (hydra.sweeper.workers_per_gpu=%s): this "
                    "worker ends",
                    limit,
                )
                full = Membership.here(study, crew)
                full.write(ended=time.time(), code=EXIT_ENVIRONMENT)
                return None
            os.environ[GPUS] = next(word for word, key in gpus if key == gpu)
        entered = Membership.here(study, crew, gpu)
    _use_threads(1 if is_assigned() else max(n_jobs, 1 + len(others)))
    return entered


def least_loaded(gpus: Sequence[str], loads: Mapping[Any, int], limit: int | None) -> str | None:
    """The first of the GPUs that have the fewest workers; None where all have `limit`."""
    best = min(gpus, key=lambda gpu: loads.get(gpu, 0))
    return None if limit is not None and loads.get(best, 0) >= limit else best


def chooses_gpus(fixed: Sequence[str]) -> bool:
    """Whether workers take a GPU each, as these overrides name no device."""
    devices = [w.partition("=")[2] for w in fixed if w.startswith("training.device=")]
    device = devices[-1] if devices else "auto"
    return not (device == "cpu" or device.startswith("cuda:"))


def gpus_here() -> list[tuple[str, str]]:
    """The GPUs of this process, as `visible_gpus` has them."""
    given = os.environ.get(GPUS)
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
    is_known = hasattr(os, "sched_getaffinity")  # not by macOS
    own = len(os.sched_getaffinity(0)) if is_known else os.cpu_count() or 1
    return max(1, min([own, *_limits(environ, root)]))


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


def _has_used_gpus() -> bool:
    """Whether CUDA no longer heeds what CUDA_VISIBLE_DEVICES is set to: its driver was started, if
    only by a script that asked `torch.cuda.is_available()`."""
    try:
        driver = ctypes.CDLL("libcuda.so.1", mode=os.RTLD_NOLOAD)
    except OSError:  # nobody has loaded it
        return False
    return bool(driver.cuDeviceGetCount(ctypes.byref(ctypes.c_int())) == 0)


def is_assigned() -> bool:
    """Whether a scheduler gave this process cores and GPUs of its own."""
    return "SLURM_JOB_ID" in os.environ or "RAY_JOB_ID" in os.environ


def _use_threads(count: int) -> None:
    """Use this worker's share of the cores, one of `count`; what a person has set stays."""
    if "OMP_NUM_THREADS" not in os.environ:
        import torch

        torch.set_num_threads(min(torch.get_num_threads(), max(1, cores() // count)))
