"""Commands as benchmarks measure them: wall time, peak memory, and what the study's rows say.

Imported by the other scripts. Imports neither torch nor sweepstack: a child's peak memory, as Linux
counts it, starts at that of the process that started it.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ENDS = """
SELECT 86400.0 * (julianday(datetime_complete) - began)
FROM trials, (SELECT MIN(julianday(datetime_start)) AS began FROM trials)
WHERE state = 'COMPLETE' ORDER BY datetime_complete
"""
SECONDS = """
SELECT SUM(CAST(value_json AS REAL)) FROM trial_user_attributes JOIN trials USING (trial_id)
WHERE key = 'seconds' AND state = 'COMPLETE'
"""
BEST = "SELECT MAX(value) FROM trial_values"


@dataclass
class Measure:
    """Seconds per trial: of training, from the first trial's start on, of the whole command.

    `training` counts only what the engine itself did, `steady` begins when a tenth of the trials
    have ended, so that what only the first ones cost is left out. None is what is not known.
    """

    training: float | None = None
    after_start: float | None = None
    steady: float | None = None
    whole: float | None = None
    peak_mib: float | None = None
    best: float | None = None


def run(
    command: Sequence[str], folder: Path, variables: Mapping[str, str] | None = None
) -> tuple[str, float, float]:
    """Run a command; returns its output, wall seconds and peak memory in MiB.

    The peak is that of the largest process among the command and the children it waited for.
    """
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    environment |= variables or {}
    with (folder / "stdout").open("w+b") as out, (folder / "stderr").open("w+b") as err:
        began = time.perf_counter()
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=out, stderr=err)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        for stream in (out, err):
            stream.seek(0)
        text = out.read().decode(errors="replace")
        if process.returncode:
            tail = err.read().decode(errors="replace")[-2000:]
            sys.exit(f"{' '.join(command)} ended with {process.returncode}: {tail}")
    peak = usage.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    return text, seconds, peak


def sweep(
    command: Sequence[str],
    trials: int,
    database: str = "outputs/studies.db",
    variables: Mapping[str, str] | None = None,
) -> Measure:
    """Run a sweep in a new folder and study, and read what its trials took.

    Says how many trials are not complete (some of a grid diverge); exits when more than 1% are.
    """
    with tempfile.TemporaryDirectory() as name:
        _, seconds, peak = run(command, Path(name), variables)
        with closing(sqlite3.connect(Path(name) / database)) as connection:
            ends = [end for (end,) in connection.execute(ENDS)]
            training, best = (connection.execute(q).fetchone()[0] for q in (SECONDS, BEST))
    if len(ends) != trials:
        line = f"{' '.join(command)}: {len(ends)} of {trials} trials are complete"
        if len(ends) < 0.99 * trials:
            sys.exit(line)
        print(line, file=sys.stderr)
    tenth = ends[trials // 10]
    later = sum(end > tenth for end in ends)
    return Measure(
        training=None if training is None else training / trials,
        after_start=ends[-1] / trials,
        steady=(ends[-1] - tenth) / later if later else None,
        whole=seconds / trials,
        peak_mib=peak,
        best=best,
    )


def answer(command: Sequence[str], variables: Mapping[str, str] | None = None) -> Any:
    """Run a program that prints one line of JSON."""
    with tempfile.TemporaryDirectory() as name:
        text, _, _ = run(command, Path(name), variables)
    return json.loads(text.splitlines()[-1])


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def hardware() -> str:
    """The CPU's name, its cores, how busy the machine was in the last minute, and the GPU."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        lines = info.read_text().splitlines()
        name = next((x.partition(":")[2].strip() for x in lines if "model name" in x), name)
    gpus: list[str] = []
    if shutil.which("nvidia-smi"):
        command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
        gpus = subprocess.run(command, capture_output=True, text=True).stdout.splitlines()[:1]
    return ", ".join([name, f"{cores()} cores", f"load {os.getloadavg()[0]:.1f}", *gpus])
