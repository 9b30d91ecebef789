"""Sweeps over a database server whose workers are killed, while it restarts and stops.

With `SWEEPSTACK_FULL=1` at full size (four minutes for PostgreSQL), and with other moments for
each `SWEEPSTACK_SEED`:

    SWEEPSTACK_FULL=1 pytest -n 0 -s tests/sweep/test_database_server.py
"""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import pytest
from fault_support import Sweep, is_alive
from optuna.trial import TrialState
from server_support import MariaDB, PostgreSQL, Server

from sweepstack.study import storage
from sweepstack.study.attributes import POINT, RETRIED

APP = str(Path(__file__).parents[1] / "database_app.py")
FULL = bool(os.environ.get("SWEEPSTACK_FULL"))
SEED = int(os.environ.get("SWEEPSTACK_SEED", "0"))


@dataclass(frozen=True)
class Size:
    """Of a sweep and its misfortunes: seconds between kills, and that the server is stopped."""

    workers: int
    points: int
    pause_s: float
    kills: int
    between_s: float
    stop_s: float


SMALL = Size(workers=2, points=120, pause_s=0.01, kills=1, between_s=0.5, stop_s=2.0)
WHOLE = Size(workers=4, points=1000, pause_s=0.06, kills=20, between_s=4.0, stop_s=30.0)


def begin(folder: Path, url: str, size: Size, *words: str) -> Sweep:
    points = f"x=range(0,{size.points})"
    return Sweep(
        [
            *(APP, "-m", points, "hydra.sweeper.study_name=s", f"hydra.sweeper.storage={url}"),
            *(f"hydra.sweeper.n_jobs={size.workers}", f"pause={size.pause_s}", *words),
        ],
        folder,
    )


def trials_of(url: str) -> list[Any]:
    opened = storage.look(url)[1]
    try:
        return optuna.load_study(study_name="s", storage=opened).get_trials(deepcopy=False)
    finally:
        storage.close(opened)


def workers(sweep: Sweep) -> list[int]:
    """The living local workers of a sweep."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((place / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == sweep.process.pid and b"spawn_main" in (place / "cmdline").read_bytes():
                found.append(int(place.name))
        except OSError:
            continue
    return sorted(filter(is_alive, found))


def lines(file: Path) -> list[Any]:
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def is_exact(folder: Path, url: str, points: int) -> dict[str, int]:
    """Every point ended once, and all that was acknowledged is there; counts what there is."""
    trials = trials_of(url)
    states = Counter(trial.state.name for trial in trials)
    assert states.keys() <= {"COMPLETE", "FAIL"}
    assert all(t.user_attrs.get(RETRIED) for t in trials if t.state == TrialState.FAIL)
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    assert sorted(json.loads(t.user_attrs[POINT])["x"] for t in complete) == list(range(points))
    for trial in complete:
        assert trial.value == trial.params["x"]
        reports = {step: trial.value + step / 8 for step in range(1, 6)}
        assert trial.intermediate_values == reports
    acknowledged = lines(folder / "acknowledged.txt")
    by_number = {trial.number: trial for trial in trials}
    for number, what, *rest in acknowledged:
        if isinstance(what, str):
            assert (by_number[number].state.name, by_number[number].value) == (what, *rest)
        else:
            assert by_number[number].intermediate_values[what] == rest[0], number
    twice = Counter((number, what) for number, what, *_ in acknowledged)
    assert set(twice.values()) == {1}
    return {**states, "acknowledged": len(acknowledged)}


def misfortunes(sweep: Sweep, server: Server, size: Size) -> dict[str, Any]:
    """Kill workers at random moments; a third of the way restart the server, and later stop it."""
    chance = random.Random(SEED)
    file = sweep.folder / "acknowledged.txt"
    sweep.until(lambda: file.exists() and len(workers(sweep)) == size.workers, "all work")
    events = ["kill"] * size.kills
    events.insert(size.kills // 3 if FULL else 0, "restart")
    events.insert(2 * size.kills // 3 + 1, "stop")
    told: Counter[str] = Counter()
    trained = 0
    for event in events:
        time.sleep(chance.uniform(0.2, 1.8) * size.between_s)
        assert sweep.process.exitcode is None, f"it ended before all of {events}: {sweep.err}"
        if event == "kill":
            victims = sweep.until(lambda: workers(sweep), "a worker lives")
            os.kill(chance.choice(victims), signal.SIGKILL)
        elif event == "restart":
            server.restart()
        else:
            server.stop()
            begun = time.time()
            time.sleep(size.stop_s)
            trained = sum(at > begun for at, *_ in lines(sweep.folder / "trained.txt"))
            server.start()
        told[event] += 1
    return {**told, "steps trained while it was stopped": trained}


def per_trial(folder: Path, url: str) -> float:
    """CPU seconds for a trial of one worker without pauses, its five reports written one by one."""
    size = Size(1, 200, 0.0, 0, 0.0, 0.0)
    folder.mkdir()
    sweep = begin(folder, url, size)
    begun = time.monotonic()
    sweep.succeeds()
    found = lines(folder / "trained.txt")
    is_exact(folder, url, size.points)
    assert time.monotonic() > begun
    return (found[-1][0] - found[5][0]) / (len(found) / 5 - 1)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [PostgreSQL, MariaDB])
def test_a_server_restarts_and_workers_are_killed(kind, tmp_path):
    size = WHOLE if FULL and kind is PostgreSQL else SMALL
    with kind() as server:
        begun = time.monotonic()
        sweep = begin(tmp_path, server.url, size)
        try:
            had = misfortunes(sweep, server, size)
            sweep.process.join(1800)  # for a hung process only
            sweep.succeeds()
        finally:
            if sweep.process.exitcode is None:
                sweep.send(signal.SIGKILL)
        found = is_exact(tmp_path, server.url, size.points)
        print(f"\n{kind.__name__}, seed {SEED}, {time.monotonic() - begun:.0f} s: {had}, {found}")
        print(sweep.err)


if __name__ == "__main__":
    raise SystemExit(pytest.main(["-n", "0", "-s", __file__]))
