"""Sweeps as processes that are watched through their database, and ended in all kinds of ways.

They train on the CPU, for which their lengths are made, and whose numbers they are compared with.
"""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import warm

APP = [str(Path(__file__).with_name("fault_app.py"))]
SWEEPSTACK = ["-m", "sweepstack"]
HELD = [str(Path(__file__).with_name("held_app.py"))]
PATIENCE_S = 120  # for a hung process only


@dataclass(frozen=True)
class Row:
    """A trial as the database holds it."""

    number: int
    state: str
    values: tuple[float, ...]
    params: tuple[tuple[str, float], ...]
    attributes: dict[str, Any]
    reports: tuple[tuple[int, float], ...]

    @property
    def is_retried(self) -> bool:
        return "sweepstack.retried" in self.attributes

    @property
    def worker(self) -> int:
        """The process that runs it."""
        return int(self.attributes["sweepstack.worker"].rsplit(":", 2)[1])


def rows(folder: Path) -> list[Row]:
    """All trials of the database in `folder`, which has one study; none while there is no file."""
    file = folder / "outputs" / "studies.db"
    if not file.exists():
        return []
    with closing(sqlite3.connect(f"{file.as_uri()}?mode=ro", uri=True, timeout=60)) as db:
        db.execute("BEGIN")  # one moment for all that follows

        def of(query: str) -> dict[int, list[Any]]:
            found: dict[int, list[Any]] = {}
            for trial, *rest in db.execute(query):
                found.setdefault(trial, []).append(tuple(rest))
            return found

        values = of("SELECT trial_id, value FROM trial_values ORDER BY objective")
        params = of("SELECT trial_id, param_name, param_value FROM trial_params ORDER BY 2")
        attributes = of("SELECT trial_id, key, value_json FROM trial_user_attributes")
        reports = of(
            "SELECT trial_id, step, intermediate_value FROM trial_intermediate_values ORDER BY step"
        )
        return [
            Row(
                number,
                state,
                tuple(value for (value,) in values.get(trial, ())),
                tuple(params.get(trial, ())),
                {key: json.loads(text) for key, text in attributes.get(trial, ())},
                tuple(reports.get(trial, ())),
            )
            for trial, number, state in db.execute(
                "SELECT trial_id, number, state FROM trials ORDER BY number"
            )
        ]


def states(folder: Path) -> Counter[str]:
    """How many trials are in each state, without those that others replace."""
    return Counter(row.state for row in rows(folder) if not row.is_retried)


def running(folder: Path, *, reports: int = 0) -> list[Row]:
    """Trials at work that have reported so often."""
    return [r for r in rows(folder) if r.state == "RUNNING" and len(r.reports) >= reports]


def until(condition: Callable[[], Any], what: str) -> Any:
    """Wait for a condition; return what it gives."""
    end = time.monotonic() + PATIENCE_S
    while not (found := condition()):
        assert time.monotonic() < end, f"waited in vain: {what}"
        time.sleep(0.01)
    return found


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def has_started(sweep: Sweep, library: str) -> bool:
    """Whether a process that the sweep started is loading its modules, and has this one."""
    for place in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((place / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == sweep.process.pid and library in (place / "maps").read_text():
                return True
        except OSError:  # it has ended
            continue
    return False


class Sweep:
    """A command in a folder, in a process group of its own, as a shell starts it."""

    def __init__(
        self,
        command: list[str],
        folder: Path,
        name: str = "",
        hold: Mapping[str, int] | None = None,
        **environment: str,
    ):
        self.folder = folder
        if hold is not None:  # see held_app.py
            environment["HOLD"] = json.dumps(hold)
        self._out, self._err = folder / f"{name}out.txt", folder / f"{name}err.txt"
        known = {**os.environ, "COLUMNS": "100", "CUDA_VISIBLE_DEVICES": "", **environment}
        self.process = warm.start(command, folder, self._out, self._err, known)

    @property
    def out(self) -> str:
        return self._out.read_text()

    @property
    def err(self) -> str:
        return self._err.read_text()

    def send(self, number: int) -> None:
        """A signal to all of the group, as a terminal sends it."""
        os.killpg(self.process.pid, number)

    def until(self, condition: Callable[[], Any], what: str) -> Any:
        """Wait for a condition while the process lives."""

        def look() -> Any:
            found = condition()
            assert found or self.process.exitcode is None, f"ended before {what}: {self.err}"
            return found

        return until(look, what)

    def caught(self, condition: Callable[[], Any], what: str) -> Any:
        """Wait for a condition, and stop the group (SIGSTOP) while it holds."""

        def look() -> Any:
            if not condition():
                return None
            self.send(signal.SIGSTOP)
            if not (found := condition()):  # it went on between the look and the signal
                self.send(signal.SIGCONT)
            return found

        return self.until(look, what)

    def catch(self, number: int, condition: Callable[[], Any], what: str) -> Any:
        """Send a signal to all of the group at a moment when the condition holds."""
        found = self.caught(condition, what)
        self.send(number)
        if number != signal.SIGKILL:  # which ends stopped processes too: no group may be left
            self.send(signal.SIGCONT)
        return found

    def ends(self) -> int:
        """Wait for its end; return its exit code."""
        self.process.join(PATIENCE_S)
        if self.process.exitcode is None:
            self.send(signal.SIGKILL)
            raise TimeoutError(f"the sweep goes on and on: {self.err}")
        return int(self.process.exitcode)

    def succeeds(self) -> None:
        assert self.ends() == 0, self.err
        assert "Traceback" not in self.err


def finish(arguments: list[str], folder: Path) -> None:
    """Run `sweepstack ARGUMENTS` to its end, which must be a good one."""
    Sweep([*SWEEPSTACK, *arguments], folder).succeeds()
