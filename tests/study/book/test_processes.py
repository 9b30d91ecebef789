"""A process that is gone is told from one that lives, or that cannot be seen from here."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sweepstack.study.book import processes

needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="there is no /proc")


def test_this_process_lives() -> None:
    assert not processes.is_gone(processes.this_process())


@needs_proc
def test_a_process_is_gone_once_it_is_dead_even_before_its_parent_looked() -> None:
    code = (
        "from sweepstack.study.book import processes as p\n"
        "print(p.this_process(), flush=True); input()"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    name = child.stdout.readline().strip()
    assert not processes.is_gone(name)
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # dead, and not yet cleared away
    assert processes.is_gone(name)
    child.communicate()
    assert processes.is_gone(name)


@needs_proc
def test_a_later_process_with_the_same_pid_is_another_one() -> None:
    host_and_pid, _, start_time = processes.this_process().rpartition(":")
    assert processes.is_gone(f"{host_and_pid}:{int(start_time) + 1}")


def test_processes_of_other_hosts_are_not_judged() -> None:
    _, pid, _ = processes.this_process().rsplit(":", 2)
    assert not processes.is_gone(f"elsewhere/4026531836:{pid}:1")


def test_another_machine_of_the_same_name_is_another_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clone's processes would be gone, and all that they run be taken from them."""
    name = processes.this_process()
    monkeypatch.setattr(processes, "_boot", lambda: "0badcafe")
    assert not processes.is_here(name)
    assert not processes.is_gone(name)


def test_what_is_no_name_of_a_process_is_not_judged() -> None:
    for name in ("", "word", "a:b", f"{processes.this_process()}:x:y", "localhost:x:1"):
        assert not processes.is_gone(name)
