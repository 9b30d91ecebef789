"""Commands in processes of their own that did not have to load their modules.

A new interpreter takes seconds to import torch and Optuna. These are forks of a small server that
has imported them once, and otherwise what `python WORDS` starts: a folder, an environment, two
files, a session and an exit code of its own. What a first import does is seen by the tests that
start a real interpreter (`sweepstack(..., cold=True)`, `test_wheel.py`, `test_workers.py`).

The local workers of such a command are forks of the server too, in its process group, where the
environment has no `COLD_WORKERS`.
"""

from __future__ import annotations

import contextlib
import multiprocessing.process
import os
import runpy
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from multiprocessing import forkserver, reduction
from pathlib import Path
from typing import Any

from hydra.core.plugins import Plugins

PATIENCE_S = 300  # for a hung process only

# There is one for all of a test process, whatever its context: its preload is this one.
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["warm_preload"])


COMMANDS = {
    "sweepstack": ["-m", "sweepstack"],
    "sweepstack-study": ["-m", "sweepstack.cli.study"],
}
"""What `python` is given for our commands, whose scripts may lie elsewhere."""

GONE, CLOSED = "gone", "closed"
"""Outputs that cannot be written: a pipe without a reader (`| head`), and none at all (`>&-`)."""


def start(
    words: list[str], folder: Path, out: Path | str, err: Path, env: Mapping[str, str]
) -> Any:
    """`python WORDS` in a folder: the script or `-m module` and its arguments.

    Args:
        out: a file, a device, a named pipe that is being read, GONE or CLOSED.

    Returns:
        A process of multiprocessing; it leads a process group, as one that a shell started.
    """
    ensure_server()
    for file in (out, err):
        if isinstance(file, Path) and (file.is_file() or not file.exists()):
            file.write_bytes(b"")
    process = SERVER.Process(target=_run, args=(words, folder, out, err, dict(env)))
    process.start()
    return process


def run(
    words: list[str], folder: Path, env: Mapping[str, str] = os.environ
) -> subprocess.CompletedProcess[str]:
    """Wait for `python WORDS`; return what it printed and its exit code."""
    with tempfile.TemporaryDirectory() as place:
        out, err = Path(place, "out"), Path(place, "err")
        process = start(words, folder, out, err, env)
        process.join(PATIENCE_S)
        if process.exitcode is None:
            process.kill()
            raise subprocess.TimeoutExpired(words, PATIENCE_S)
        return subprocess.CompletedProcess(
            words, process.exitcode, out.read_text("utf-8"), err.read_text("utf-8")
        )


def ensure_server() -> None:
    """Start the server where it finds `warm_preload`: it does not take over our sys.path."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(
        [str(Path(__file__).parent), *filter(None, [before])]
    )
    try:
        forkserver.ensure_running()
    finally:
        del os.environ["PYTHONPATH"]
        if before is not None:
            os.environ["PYTHONPATH"] = before


def _open(out: Path | str) -> int:
    if isinstance(out, Path):
        return os.open(out, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    reading, writing = os.pipe()
    os.close(reading)
    return writing


def _run(words: list[str], folder: Path, out: Path | str, err: Path, env: dict[str, str]) -> None:
    assert "warm_preload" in sys.modules  # the server says nothing of a module that is not there
    os.setpgrp()
    os.chdir(folder)
    multiprocessing.process.ORIGINAL_DIR = str(folder)  # where workers look for the script
    os.environ.clear()
    os.environ.update(env)
    for number, file in ((1, out), (2, err)):
        os.dup2(_open(file), number)
    if out == CLOSED:
        os.close(1)
        sys.stdout = None  # type: ignore[assignment]  # as an interpreter finds it
    if "COLD_WORKERS" not in env:
        multiprocessing.get_context = context_of  # type: ignore[assignment]
        forkserver._forkserver.ensure_running = lambda: None  # ours is, and is to fork them
    # An interpreter reads PYTHONPATH at its start.
    sys.path[:0] = [place for place in env.get("PYTHONPATH", "").split(os.pathsep) if place]
    if Path(folder, "hydra_plugins").is_dir():  # the server has found the others
        sys.path.insert(0, str(folder))
        Plugins.instance()._initialize()
    if words[0] == "-m":
        sys.argv[:] = words[1:]
        sys.path.insert(0, str(folder))
        sys.modules.pop(words[1], None)  # a new interpreter has not imported it
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv[:] = words
        sys.path.insert(0, str(Path(folder, words[0]).parent))
        runpy.run_path(words[0], run_name="__main__")


_PLAIN = multiprocessing.get_context


def context_of(method: str | None = None) -> Any:
    """`multiprocessing.get_context`; local workers are forks where it is this one."""
    return _Workers if method == "spawn" else _PLAIN(method)


class _Output:
    """A file descriptor that the process that is given it has too."""

    def __init__(self, number: int):
        self.number = number

    def __reduce__(self) -> Any:
        return _taken, (reduction.DupFd(self.number),)


def _taken(given: Any) -> int:
    return int(given.detach())


class _Worker(SERVER.Process):  # type: ignore[name-defined,misc]
    """A process that has what a child of the one that starts it would have."""

    def start(self) -> None:
        """Fork the server; the arguments are what is inherited."""
        if "warm_preload" not in sys.modules:  # the sweep is run by pytest's own process
            ensure_server()
        self.inherited = dict(os.environ), os.getpgrp(), [_Output(1), _Output(2)]
        super().start()
        del self.inherited

    def run(self) -> None:
        """Inherit, and call the target."""
        environment, group, outputs = self.inherited
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
        parent = multiprocessing.process.parent_process()
        with contextlib.suppress(OSError):  # pytest's own is of another session
            os.setpgid(0, group)
        if not parent.is_alive():  # it was killed meanwhile
            os._exit(1)
        os.environ.clear()
        os.environ.update(environment)
        for number, output in zip((1, 2), outputs, strict=True):
            os.dup2(output, number)
        os.getppid = lambda: parent.pid if parent.is_alive() else 1
        super().run()


class _Workers:
    """The context of local workers, in place of the one that starts interpreters."""

    Pipe = SERVER.Pipe
    Process = _Worker
