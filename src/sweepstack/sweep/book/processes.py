"""Names for processes that tell whether one is still there.

A name is "host:pid:start time". The start time tells a process from a later one that was given the
same pid. The host carries the number of its pid namespace, because containers of one machine may
share its name and each count their own pids.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path


def this_process() -> str:
    """Return the name of the process that asks, such as `"node7/4026531836:4711:88213"`."""
    return f"{_host()}:{os.getpid()}:{_start_time(os.getpid())}"


def is_gone(name: str) -> bool:
    """Return whether the process called `name` is surely gone; False where one cannot know.

    That is for processes of other hosts, and where there is no /proc (macOS, Windows).
    """
    host, pid, start_time = name.rsplit(":", 2)
    return host == _host() and start_time != "" and _start_time(int(pid)) != start_time


def _host() -> str:
    try:
        return f"{socket.gethostname()}/{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return socket.gethostname()


def _start_time(pid: int) -> str:
    """Return when `pid` started, in clock ticks since boot; empty when it is dead or unknown."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return ""
    # The second field is the program's name in brackets, which may itself hold spaces and brackets.
    state, *fields = stat.rpartition(")")[2].split()
    return "" if state in "ZX" else fields[18]
