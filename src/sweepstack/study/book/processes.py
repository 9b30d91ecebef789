"""Which processes are alive: their names, their heartbeats, and machines that were asleep.

The name of a process is "host:pid:start time". The start time tells a process from a later one that
was given the same pid. The host carries the number of its pid namespace, because containers of one
machine may share its name and each count their own pids, and the machine's boot, because two
machines may have one name (clones, "localhost").
"""

from __future__ import annotations

import math
import os
import socket
import time
from functools import cache
from pathlib import Path

BEAT_S = 15.0
"""Seconds between two heartbeats, well within the grace that a book gives a silent worker."""
LEAP_S = 30.0
"""A machine was asleep if its clock leaps by so much beside the monotonic one, which stands still
during sleep."""


def this_process() -> str:
    """Return the name of the process that asks, like `"node7/4026531836-845f2df8:4711:88213"`."""
    return f"{_host()}:{os.getpid()}:{_start_time(os.getpid())}"


def is_gone(name: str) -> bool:
    """Return whether the process called `name` is surely gone; False where one cannot know.

    That is for processes of other hosts, and where there is no /proc (macOS, Windows).
    """
    if not is_here(name):
        return False
    _, pid, start_time = name.rsplit(":", 2)
    return start_time != "" and pid.isdecimal() and _start_time(int(pid)) != start_time


def is_running(pid: int) -> bool:
    """Return whether a process of this host runs; a zombie does not."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return _start_time(pid) != "" or not Path("/proc/self/stat").exists()


def is_here(name: str) -> bool:
    """Return whether a process is or was one of this host."""
    return name.count(":") > 1 and name.rsplit(":", 2)[0] == _host()


def _host() -> str:
    try:
        space = os.stat("/proc/self/ns/pid").st_ino
        return f"{socket.gethostname()}/{space}-{_boot()}"
    except OSError:
        return socket.gethostname()


@cache
def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text()[:8]


def _start_time(pid: int) -> str:
    """Return when `pid` started, in clock ticks since boot; empty when it is dead or unknown."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return ""
    # The second field is the program's name in brackets, which may itself hold spaces and brackets.
    state, *fields = stat.rpartition(")")[2].split()
    return "" if state in "ZX" else fields[18]


class Sleep:
    """Notices that this machine was asleep, by its clocks.

    A laptop that slept for an hour finds every running trial silent for an hour, its own and those
    of its other processes, until each has sent a heartbeat again.
    """

    def __init__(self) -> None:
        self._ahead_s, self._woke = _ahead_s(), -math.inf

    def ended_within(self, seconds: float) -> bool:
        """Whether it woke in the last `seconds`, counted from the look that found it awake."""
        ahead_s, now = _ahead_s(), time.monotonic()
        if ahead_s - self._ahead_s > LEAP_S:
            self._woke = now
        self._ahead_s = ahead_s
        return now - self._woke < seconds


def _ahead_s() -> float:
    return time.time() - time.monotonic()
