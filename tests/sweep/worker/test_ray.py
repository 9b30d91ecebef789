"""Ray carries the workers: made-up, and the real one where it is installed."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import sweep_support
from omegaconf import OmegaConf

from hydra_plugins.sweepstack_sweeper import _impl
from sweepstack.config import composition
from sweepstack.config.errors import EnvironmentFault
from sweepstack.runs import register
from sweepstack.sweep.worker.jobs import Jobs

SECRET = "s3Cr3t"
PATIENCE_S = 300  # for a hung process only


class Ray:
    """Handles SIGTERM once it runs, as Ray's core does."""

    def __init__(self, error: Exception | None = None) -> None:
        self.given: dict[str, Any] = {}
        self.error, self.runs = error, False

    def is_initialized(self) -> bool:
        return self.runs

    def init(self, **given: Any) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if self.error is not None:
            raise self.error
        self.given, self.runs = given, True

    def shutdown(self) -> None:
        self.runs = False


def start(monkeypatch, ray: Ray, init: dict[str, Any], remote: dict[str, Any]) -> None:
    monkeypatch.setitem(sys.modules, "ray", ray)
    config = OmegaConf.create({"hydra": {"launcher": {"ray": {"init": init, "remote": remote}}}})
    crew: Any = SimpleNamespace(misses_gpus=lambda: True)
    before = signal.signal(signal.SIGTERM, print)
    try:
        _impl._start_ray(config, crew)
    finally:
        handler = signal.signal(signal.SIGTERM, before)
        assert handler is print  # and not Ray's, which aborts the process


@pytest.mark.parametrize(
    ("init", "given"),
    [
        ({"address": None, "num_cpus": 2}, {"object_store_memory": 78643200}),
        ({"address": "auto"}, {}),  # a cluster refuses it
        ({"address": None, "object_store_memory": 10**8}, {"object_store_memory": 10**8}),
    ],
)
def test_ray_is_started_and_leaves_signals_to_the_sweep(monkeypatch, init, given):
    ray = Ray()
    start(monkeypatch, ray, init, {"num_gpus": 1})
    assert ray.given == init | given


def test_what_ray_refuses_is_a_line(monkeypatch):
    with pytest.raises(EnvironmentFault, match=r"ray.init=\{'address': 'nowhere'\}: no cluster"):
        start(monkeypatch, Ray(ConnectionError("no cluster")), {"address": "nowhere"}, {})


@pytest.mark.parametrize(("remote", "lines"), [({}, 1), ({"num_gpus": 0.5}, 0)])
def test_workers_without_a_gpu_are_noticed(monkeypatch, caplog, remote, lines):
    with caplog.at_level(logging.WARNING, "sweepstack"):
        start(monkeypatch, Ray(), {"address": None}, remote)
    assert len(caplog.messages) == lines
    assert all("hydra.launcher.ray.remote.num_gpus" in line for line in caplog.messages)


def test_leaving_ends_a_local_ray_and_names_the_workers(monkeypatch, capsys):
    ray = Ray()
    ray.runs = True
    codes: list[int] = []
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.setattr(os, "_exit", codes.append)
    entry = register.Entry("other/1:4711:1", time.time(), time.time())
    jobs: Any = Jobs(*[SimpleNamespace()] * 3, members=[entry])

    jobs._leave(130)

    assert (codes, ray.runs) == ([130], False)
    assert capsys.readouterr().err.splitlines() == [
        "sweepstack: may still run: worker 4711 on other (kill 4711)",
        "sweepstack: interrupted; run the same command again to resume",
    ]


def words(folder: Path, session: str) -> list[str]:
    ray = {"init.num_cpus": 4, "init.num_gpus": 2, "remote.num_gpus": 0.5}
    ray |= {"init.include_dashboard": "false", "init._temp_dir": session}
    url = f"sqlite:///{folder}/outputs/studies.db?password={SECRET}"
    return [
        *("-m", "hydra/launcher=ray", *(f"+hydra.launcher.ray.{k}={v}" for k, v in ray.items())),
        *(*sweep_support.without("training.max_steps"), "training.width=1"),
        *("training.max_steps=2000", "training.device=auto", "training.seed=range(0,24)"),
        *("hydra.sweeper.n_jobs=3", "hydra.sweeper.report=false", f"hydra.sweeper.storage={url}"),
    ]


def members(folder: Path) -> list[register.Entry]:
    if not (folder / "outputs" / "studies.db").exists():
        return []
    try:
        return register.workers(sweep_support.study(folder))
    except KeyError:  # the study is not there yet
        return []


def lives(word: str) -> bool:
    """Whether a process has a word in its command line."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found.append(word.encode() in file.read_bytes())
        except OSError:  # it ended
            continue
    return any(found)


@pytest.mark.slow
def test_ray_s_workers_share_fractions_of_gpus_and_one_that_is_killed_is_replaced(tmp_path):
    """Three workers on two made-up GPUs: each trial once, no password, nothing left."""
    pytest.importorskip("ray", reason="Ray is not installed (the extra `ray`)")
    pytest.importorskip("hydra_plugins.hydra_ray_launcher")
    with tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as session:
        command = [sys.executable, "-m", "sweepstack", *words(tmp_path, session)]
        environ = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
        environ.pop("CUDA_VISIBLE_DEVICES", None)
        with (tmp_path / "log").open("w") as log:
            process = subprocess.Popen(
                command, cwd=tmp_path, env=environ, stdout=log, stderr=subprocess.STDOUT
            )
        try:
            latest = time.monotonic() + PATIENCE_S
            while len(members(tmp_path)) < 3 and process.poll() is None:
                assert time.monotonic() < latest
                time.sleep(0.3)
            if "Ray cannot be started" in (tmp_path / "log").read_text():
                pytest.skip("Ray does not start here within the time that it gives itself")
            assert process.poll() is None, (tmp_path / "log").read_text()
            victim = next(entry for entry in members(tmp_path) if entry.is_alive)
            os.kill(victim.pid, signal.SIGKILL)
            assert process.wait(PATIENCE_S) == 0, (tmp_path / "log").read_text()
        finally:
            process.kill()
            process.wait()
        files = [*Path(session).rglob("*"), *tmp_path.rglob("*")]
        shown = [str(f) for f in files if f.is_file() and SECRET.encode() in f.read_bytes()]
        latest = time.monotonic() + PATIENCE_S  # its agents see within seconds that it has ended
        while lives(session) and time.monotonic() < latest:
            time.sleep(0.1)
        assert not lives(session)

    assert shown == []
    study = sweep_support.study(tmp_path)
    done = Counter(t.params["training.seed"] for t in study.trials if t.state.name == "COMPLETE")
    assert done == Counter(range(24))
    assert {t.state.name for t in study.trials} <= {"COMPLETE", "FAIL"}
    gpus = Counter(entry.gpu for entry in members(tmp_path))
    assert set(gpus) <= {"0", "1"}
    assert len({entry.process for entry in members(tmp_path)}) >= 3


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("hydra/launcher=rq", "hydra-rq-launcher 1.2 does not work with Python 3.11 or newer"),
        ("hydra/launcher=ray", "pip install 'sweepstack[ray]'"),
        ("hydra.launcher.ray.init.a=1", "is written '+hydra.launcher.ray.init.a=1'"),
    ],
)
def test_what_is_wrong_with_a_launcher_is_a_line(monkeypatch, override, line):
    monkeypatch.setattr(composition, "_options", lambda key, _: ["basic"] * ("/" in key))
    known = {"hydra": {"launcher": {"ray": {"init": {}}}}}
    error = composition._explain(override, ValueError(), OmegaConf.create(known), None)
    assert error.endswith(line), error
