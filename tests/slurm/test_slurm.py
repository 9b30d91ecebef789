"""Workers as jobs of a real Slurm: some die, one is preempted, a person presses Ctrl-C."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fault_support import APP, Sweep, running, states, until
from sweep_support import study

from sweepstack.runs import register
from sweepstack.runs.register import Entry

pytestmark = pytest.mark.slow
SECRET = "s3Cr3t"
SLURM = [*APP, "-m", "hydra/launcher=submitit_slurm", "hydra.sweeper.study_name=s"]
SLURM += ["hydra.sweeper.report=false", "hydra.launcher.cpus_per_task=1"]


@pytest.fixture(scope="module")
def conf(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The configuration of a cluster of two nodes on this machine."""
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    path = f"{os.environ['PATH']}:/usr/sbin"
    if missing := [c for c in ("munged", "slurmctld", "slurmd") if not shutil.which(c, path=path)]:
        pytest.skip(f"{missing[0]} is missing: apt-get install munge slurmctld slurmd slurm-client")
    folder = tmp_path_factory.mktemp("slurm")
    start = [str(Path(__file__).with_name("start.sh")), str(folder)]
    subprocess.run(start, check=True, stdout=subprocess.DEVNULL)
    yield folder / "slurm.conf"
    subprocess.run([str(folder / "stop")], check=True)


@pytest.fixture(autouse=True)
def queue(conf: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], str]:
    """The numbers of the jobs that wait or work."""
    monkeypatch.setenv("SLURM_CONF", str(conf))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return lambda: subprocess.check_output(["squeue", "-h", "-r", "--format=%i"], text=True)


def working(sweep: Sweep, count: int, *but: str) -> dict[str, Entry]:
    """Waits for so many workers with a trial, other than some processes; returns them by job."""

    def look() -> dict[str, Entry]:
        pids = {row.worker for row in running(sweep.folder)}
        entries = register.workers(study(sweep.folder)) if pids else []
        found = [e for e in entries if e.is_alive and e.pid in pids and e.process not in but]
        return {str(e.job): e for e in found} if len(found) == count else {}

    return sweep.until(look, f"{count} workers")  # type: ignore[no-any-return]


def test_a_sweep_survives_the_ends_of_its_jobs(tmp_path: Path, queue: Callable[[], str]) -> None:
    command = [*SLURM, "x=range(0,12)", "trouble.hold=true", "hydra.sweeper.n_jobs=3"]
    sweep = Sweep(command, tmp_path)
    first = working(sweep, 3)
    ran_file = tmp_path / "ran.txt"  # a trial that runs in the study may not have begun yet
    sweep.until(lambda: ran_file.exists() and len(ran_file.read_text().split()) == 3, "three tasks")
    killed, cancelled, requeued = sorted(first)
    number = killed.removeprefix("slurm ").partition("_")[0]
    assert sorted(first) == [f"slurm {number}_{n}" for n in range(3)]

    os.kill(first[killed].pid, signal.SIGKILL)
    subprocess.run(["scancel", cancelled.removeprefix("slurm ")], check=True)
    subprocess.run(["scancel", "--signal=USR2", requeued.removeprefix("slurm ")], check=True)
    second = working(sweep, 3, *(entry.process for entry in first.values()))
    (tmp_path / "go").touch()

    sweep.succeeds()
    assert states(tmp_path) == {"COMPLETE": 12}
    assert set(second) & set(first) == {requeued}
    for job in first:
        said = [line for line in sweep.out.splitlines() if "ended early; starting" in line]
        assert (job in " ".join(said)) == (job != requeued)
    ran = Counter(ran_file.read_text().split())
    assert set(ran) == {str(x) for x in range(12)}
    assert sum(ran.values()) == 15
    logs = sweep.out.partition("output of the workers: ")[2].splitlines()[0]
    assert list((tmp_path / logs).glob(f"{number}_0/*_log.err"))
    until(lambda: not queue(), "the end of all jobs")


def test_ctrl_c_ends_the_jobs_that_work_and_those_that_wait(
    tmp_path: Path, queue: Callable[[], str]
) -> None:
    url = f"sqlite:///{tmp_path}/outputs/studies.db?password={SECRET}"
    command = [*SLURM, "hydra.launcher.array_parallelism=2", "hydra.launcher.gpus_per_node=1"]
    command += ["+hydra.launcher.additional_parameters.nodelist=n1", "x=range(0,12)"]
    command += ["trouble.hold=true", "hydra.sweeper.n_jobs=3", f"hydra.sweeper.storage='{url}'"]
    sweep = Sweep(command, tmp_path)
    at_work = working(sweep, 2)
    seen = [Path(f"/proc/{entry.pid}/environ").read_bytes() for entry in at_work.values()]
    assert sorted(b"\0CUDA_VISIBLE_DEVICES=1\0" in each for each in seen) == [False, True]
    assert {entry.gpu for entry in at_work.values()} == {None}  # what Slurm assigned stays
    assert len(queue().split()) == 3
    sweep.send(signal.SIGINT)

    assert sweep.ends() == 130
    assert queue() == ""
    assert "run the same command again to resume" in sweep.err
    assert states(tmp_path) == {"WAITING": 2}
    kept = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any(path.suffix == ".pkl" for path in kept)
    assert not [path for path in kept if SECRET.encode() in path.read_bytes()]
