"""What a worker may use of its host, by made-up environments, and the register of workers."""

from __future__ import annotations

import os
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
import sweep_support
import torch
from sweep_support import QUICK

from sweepstack.runs import register
from sweepstack.runs.register import Entry, Membership
from sweepstack.study.book import processes
from sweepstack.sweep.worker.jobs import Crew
from sweepstack.sweep.worker.worker import Worker

SMI = """\
GPU 0: NVIDIA A100-SXM4-40GB (UUID: GPU-aa)
GPU 1: NVIDIA A100-SXM4-40GB (UUID: GPU-bb)
"""
MIG = """\
GPU 0: NVIDIA A100-SXM4-40GB (UUID: GPU-aa)
  MIG 3g.20gb     Device  0: (UUID: MIG-1)
  MIG 3g.20gb     Device  1: (UUID: MIG-2)
GPU 1: NVIDIA A100-SXM4-40GB (UUID: GPU-bb)
"""


@pytest.mark.parametrize(
    ("given", "listed", "count", "found"),
    [
        ("0, 1", "", 4, [("0", "0"), ("1", "1")]),
        ("1,0", SMI, 2, [("1", "GPU-bb"), ("0", "GPU-aa")]),
        ("GPU-bb", SMI, 2, [("GPU-bb", "GPU-bb")]),
        ("MIG-2, MIG-GPU-aa/1/0", MIG, 2, [("MIG-2",) * 2, ("MIG-GPU-aa/1/0",) * 2]),
        ("0,-1,1", SMI, 2, [("0", "GPU-aa")]),
        ("0,1,", SMI, 2, [("0", "GPU-aa"), ("1", "GPU-bb")]),
        (None, SMI, 2, [("GPU-aa",) * 2, ("GPU-bb",) * 2]),
        (None, MIG, 2, [("MIG-1",) * 2, ("MIG-2",) * 2, ("GPU-bb",) * 2]),
        (None, "", 2, [("0", "0"), ("1", "1")]),
        (None, "", 0, []),
    ],
)
def test_the_gpus_that_a_process_may_use(given, listed, count, found):
    assert register.visible_gpus(given, listed, count) == found


@pytest.mark.parametrize(
    ("loads", "limit", "gpu"),
    [
        ({}, None, "a"),
        ({"a": 1}, None, "b"),
        ({"a": 1, "b": 1}, None, "a"),
        ({"a": 2, "b": 1, "elsewhere": 0}, 2, "b"),
        ({"a": 2, "b": 2}, 2, None),
    ],
)
def test_the_least_loaded_gpu_comes_first(loads, limit, gpu):
    assert register.least_loaded(["a", "b"], loads, limit) == gpu


def group(root: Path, lines: str, **files: str) -> Path:
    (root / "proc" / "self").mkdir(parents=True)
    (root / "proc" / "self" / "cgroup").write_text(lines)
    for name, text in files.items():
        file = root / "sys" / "fs" / "cgroup" / name.replace("__", "/").replace("_DOT_", ".")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return root


V1 = "5:cpu,cpuacct:/job\n3:memory:/job\n"
QUOTA = {"cpu,cpuacct__job__cpu_DOT_cfs_quota_us": "250000"}
PERIOD = {"cpu,cpuacct__job__cpu_DOT_cfs_period_us": "100000"}


@pytest.mark.parametrize(
    ("environ", "lines", "files", "cores"),
    [
        ({}, "0::/\n", {}, 16),
        ({}, "0::/\n", {"cpu_DOT_max": "max 100000"}, 16),
        ({}, "0::/\n", {"cpu_DOT_max": "400000 100000"}, 4),
        ({}, "0::/pod/job\n", {"pod__cpu_DOT_max": "350000 100000"}, 3),
        ({}, "0::/\n", {"cpu_DOT_max": "50000 100000"}, 1),
        ({}, V1, {**QUOTA, **PERIOD}, 2),
        ({}, V1, {"cpu,cpuacct__job__cpu_DOT_cfs_quota_us": "-1", **PERIOD}, 16),
        ({"SLURM_CPUS_PER_TASK": "4"}, "0::/\n", {}, 16),
        ({"SLURM_CPUS_PER_TASK": "4", "SLURM_JOB_ID": "7"}, "0::/\n", {}, 4),
    ],
)
def test_the_cores_that_a_process_may_use(monkeypatch, tmp_path, environ, lines, files, cores):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)))

    assert register.cores(environ, group(tmp_path, lines, **files)) == cores


def test_a_slurm_job_has_its_name():
    assert register.job({}) is None
    assert register.job({"SLURM_JOB_ID": "9"}) == "slurm 9"
    array = {"SLURM_JOB_ID": "9", "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "2"}
    assert register.job(array) == "slurm 7_2"
    entry = Entry("node3/1:7:8", 0, 0, job="slurm 7_2")
    assert entry.described == "slurm 7_2 on node3 (scancel 7_2)"


def test_an_entry_lives_as_long_as_its_worker_gives_signs():
    study = optuna.create_study()
    now, other = time.time(), "elsewhere/4026531836:1:2"
    with Membership.here(study, "crew"):
        [mine] = register.workers(study)
        assert mine.is_alive
        assert (mine.process, mine.crew) == (processes.this_process(), "crew")
    [mine] = register.workers(study)
    assert not mine.is_alive
    assert Entry(other, now - 500, now - 30).is_alive
    assert not Entry(other, now - 500, now - 90).is_alive
    assert not Entry(f"{processes.this_process()}9", now, now).is_alive  # a later process's pid


def test_what_another_version_wrote_is_passed_over():
    study = optuna.create_study()
    for number, value in enumerate([None, "x", {"process": "a"}, {"new": 1}]):
        study.set_user_attr(f"{register.WORKERS}.{number}", value)
    study.set_user_attr(f"{register.WORKERS}.4", {"process": "no name", "began": 0, "seen": 0})
    study.set_user_attr(f"{register.WORKERS}.5", {"process": "a:1:2", "began": "x", "seen": 0})
    assert register.workers(study) == []


def test_a_worker_leaves_their_share_to_those_that_joined():
    study, now = optuna.create_study(), time.time()
    book = SimpleNamespace(workers=1, attributes=lambda prefix: study.user_attrs)
    fields: Any = {
        "study": study,
        "plan": SimpleNamespace(n_jobs=1),
        "_count_at": 0.0,
        "_heed_s": 1,
    }
    worker: Any = SimpleNamespace(_member=object(), book=book, **fields)
    for host in ("one", "two", "three"):
        Membership(study, Entry(f"{host}/1:7:8", now, now))
    Membership(study, Entry("four/1:7:8", now, now, ended=now))
    Worker._count_workers(worker)
    assert worker.book.workers == 3


class _Done:
    stdout = SMI


@pytest.fixture
def two_gpus(monkeypatch):
    """Two GPUs to choose from, whatever this process has used; trials are trained on the CPU."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0, 1")
    monkeypatch.setattr(register.subprocess, "run", lambda *_, **__: _Done())
    monkeypatch.setattr(register, "_has_used_gpus", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)


def test_workers_of_a_host_share_its_gpus(monkeypatch, two_gpus):
    study = optuna.create_study()
    now, here = time.time(), processes.this_process().rsplit(":", 2)[0]
    monkeypatch.setattr(processes, "is_gone", lambda name: name.endswith(":gone"))
    for process, gpu in ((f"{here}:1:x", "GPU-aa"), (f"{here}:2:gone", "GPU-bb")):
        Membership(study, Entry(process, now, now, gpu=gpu))

    joined = register.join(study, "c", 1, limit=1)

    assert joined is not None
    assert (joined.entry.gpu, os.environ["CUDA_VISIBLE_DEVICES"]) == ("GPU-bb", "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert register.join(study, "c", 1, limit=1) is None
    placeless = register.workers(study)[-1]
    assert placeless.found_no_place
    assert not placeless.is_alive
    assert not placeless.is_unfinished
    monkeypatch.setenv("SLURM_JOB_ID", "5")  # what a scheduler assigns is taken
    assert register.join(study, "c", 1, limit=1) is not None
    fixed = register.join(study, "c", 1, limit=1, chooses=False)
    assert fixed is not None
    assert fixed.entry.gpu is None


WORDS = ("-m", *sweep_support.without("training.device"), "optimizer.lr=0.1,0.2")


def test_a_lone_worker_takes_its_share_of_the_host_and_puts_it_back(
    main, tmp_path, monkeypatch, two_gpus
):
    search = (*WORDS[:-1], "optimizer.lr=interval(0.1,0.2)")
    assert main(*search, "hydra.sweeper.n_trials=1").code == 0
    study, now = sweep_support.study(tmp_path), time.time()
    here = processes.this_process().rsplit(":", 2)[0]
    monkeypatch.setattr(processes, "is_gone", lambda name: False)
    Membership(study, Entry(f"{here}:1:x", now, now, gpu="GPU-aa"))
    monkeypatch.setattr(register, "cores", lambda: 4)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    threads, seen = torch.get_num_threads(), []
    noted = Worker.record

    def record(self: Any, outcome: Any) -> None:
        seen.append((os.environ["CUDA_VISIBLE_DEVICES"], torch.get_num_threads()))
        noted(self, outcome)

    monkeypatch.setattr(Worker, "record", record)
    torch.set_num_threads(3)
    try:
        assert main(*search, "hydra.sweeper.n_trials=2").code == 0
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(threads)

    assert seen == [("1", 2)]  # beside the other: the second GPU, half of the cores
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "0, 1"
    by_process = {entry.process: entry.gpu for entry in register.workers(study)}
    assert by_process == {f"{here}:1:x": "GPU-aa", processes.this_process(): "GPU-bb"}


def test_a_lone_worker_without_a_place_is_an_error(main, tmp_path, monkeypatch, two_gpus):
    monkeypatch.setattr(register, "least_loaded", lambda *_: None)

    ended = main(*WORDS, "hydra.sweeper.workers_per_gpu=1")

    assert ended.code == 3
    assert "hydra.sweeper.workers_per_gpu=1 on each" in ended.lines[-1]
    assert optuna.get_all_study_names(f"sqlite:///{tmp_path}/outputs/studies.db") == []


@pytest.mark.parametrize(("code", "used"), [(0, True), (3, False), (None, False)])
def test_a_gpu_is_used_once_its_driver_was_started(monkeypatch, code, used):
    """cuDeviceGetCount returns CUDA_ERROR_NOT_INITIALIZED, 3, before that."""

    def loaded(name, mode):
        if code is None:
            raise OSError(name)
        return SimpleNamespace(cuDeviceGetCount=lambda count: code)

    monkeypatch.setattr(register.ctypes, "CDLL", loaded)
    assert register._has_used_gpus() is used


def test_a_process_that_has_used_a_gpu_stays_with_it(monkeypatch, two_gpus):
    study = optuna.create_study()
    now, here = time.time(), processes.this_process().rsplit(":", 2)[0]
    monkeypatch.setattr(processes, "is_gone", lambda name: False)
    Membership(study, Entry(f"{here}:1:x", now, now, gpu="GPU-aa"))
    monkeypatch.setattr(register, "_has_used_gpus", lambda: True)

    joined = register.join(study, "c", 1, limit=None)

    assert joined is not None
    assert joined.entry.gpu == "GPU-aa"


@pytest.mark.parametrize(
    ("name", "environ", "fixed", "gpu"),
    [
        ("sweepstack", {}, ["training.device=cpu", "training.device=auto"], "GPU-aa"),
        ("sweepstack", {}, ["training.device=auto", "training.device=cuda:1"], None),
        ("sweepstack", {"RAY_JOB_ID": "ffff"}, [], "GPU-aa"),
        ("app.py", {}, [], "GPU-aa"),
        ("app.py", {"SLURM_JOB_ID": "5"}, [], None),  # which may train on all that it was given
    ],
)
def test_whose_gpus_are_narrowed_to_one(monkeypatch, two_gpus, name, environ, fixed, gpu):
    for key, value in environ.items():
        monkeypatch.setenv(key, value)
    plan = SimpleNamespace(
        n_jobs=2, workers_per_gpu=None, space=SimpleNamespace(fixed=fixed), storage="x"
    )
    crew: Any = Crew(plan, SimpleNamespace(origin={"name": name}), Path(), 0.0)
    book: Any = SimpleNamespace(study=optuna.create_study())

    joined = crew.enter(book, stays=register.is_assigned())

    assert joined.entry.gpu == gpu
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ("0, 1" if gpu is None else "0")


def test_more_local_workers_than_the_gpus_may_have_are_refused(main, tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    words = [word for word in QUICK if not word.startswith("training.device=")]

    ended = main(
        *("-m", *words, "optimizer.lr=0.1,0.2", "hydra.sweeper.n_jobs=5"),
        "hydra.sweeper.workers_per_gpu=2",
    )

    assert (ended.code, list(tmp_path.iterdir())) == (2, [])
    assert ended.lines == [
        "sweepstack: hydra.sweeper.n_jobs must be <= 4 (2 visible GPUs, "
        "hydra.sweeper.workers_per_gpu=2), got 5"
    ]


def test_the_register_knows_how_many_trials_a_worker_ended(main, tmp_path):
    assert main("-m", *QUICK, "optimizer.lr=0.1,0.2").code == 0
    [entry] = register.workers(sweep_support.study(tmp_path))
    assert (entry.trials, entry.is_alive) == (2, False)
