"""Sweeps over a database server whose workers are killed, while it restarts and stops.

With `SWEEPSTACK_FULL=1` at full size (four minutes for PostgreSQL), and with other moments for
each `SWEEPSTACK_SEED`:

    SWEEPSTACK_FULL=1 pytest -n 0 -s tests/sweep/test_database_server.py
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import random
import signal
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy
from book_support import open_book
from fault_support import Sweep, is_alive, until
from optuna.trial import TrialState
from server_support import MariaDB, PostgreSQL, Proxy, Server

from sweepstack import storage
from sweepstack.storage import server as storage_server
from sweepstack.study.attributes import LOST, POINT, RETRIED
from sweepstack.study.book import Ending, Report
from sweepstack.study.book.bulk import BulkBook

APP = str(Path(__file__).parents[1] / "database_app.py")
FULL = bool(os.environ.get("SWEEPSTACK_FULL"))
SEED = int(os.environ.get("SWEEPSTACK_SEED", "0"))


@dataclass(frozen=True)
class Size:
    """Of a sweep and its misfortunes: how many kills, and seconds that the server is stopped."""

    workers: int
    points: int
    pause_s: float
    kills: int
    stop_s: float


SMALL = Size(workers=2, points=60, pause_s=0.01, kills=1, stop_s=2.0)
WHOLE = Size(workers=4, points=1000, pause_s=0.01, kills=20, stop_s=30.0)


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
            command = (place / "cmdline").read_bytes()
            if parent == sweep.process.pid and b"resource_tracker" not in command:
                found.append(int(place.name))
        except OSError:
            continue
    return sorted(filter(is_alive, found))


def lines(file: Path) -> list[Any]:
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def is_exact(folder: Path, url: str, points: int) -> dict[str, int]:
    """Every point ended once, and all that was acknowledged is there; counts what there is. Who
    reports for a trial that was presumed dead learns that at its end."""
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
    reported = {trial.number: trial.intermediate_values for trial in trials}
    for _, number, what, *rest in acknowledged:
        if isinstance(what, str):
            assert (by_number[number].state.name, by_number[number].value) == (what, *rest)
        elif LOST not in by_number[number].user_attrs or what in reported[number]:
            assert reported[number][what] == rest[0], number
    counted = Counter((number, what) for _, number, what, *_ in acknowledged)
    twice = {key for key, count in counted.items() if count > 1}
    assert not [line for line in acknowledged if (line[1], line[2]) in twice]
    return {**states, "acknowledged": len(acknowledged)}


def misfortunes(sweep: Sweep, server: Server, size: Size) -> dict[str, Any]:
    """Kill workers at random moments, spread over what there is to acknowledge; a third of the way
    restart the server, and later stop it."""
    chance = random.Random(SEED)
    file = sweep.folder / "acknowledged.txt"

    def at_work() -> list[int]:
        """Workers that have written something."""
        return sorted({pid for pid, *_ in lines(file)} & set(workers(sweep)))

    sweep.until(lambda: len(at_work()) == size.workers, "all work")
    events = ["kill"] * size.kills
    events.insert(size.kills // 3 if FULL else 0, "restart")
    events.insert(2 * size.kills // 3 + 1, "stop")
    told: Counter[str] = Counter()
    trained = 0
    acknowledged = len(lines(file))
    step = 0.8 * (6 * size.points - acknowledged) / len(events)  # five reports and the end
    for place, event in enumerate(events):
        due = acknowledged + step * (place + chance.random())
        sweep.until(lambda due=due: len(lines(file)) >= due, f"it is time for the next {event}")
        if event == "kill":
            victims = sweep.until(at_work, "a worker works")
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


def per_trial(urls: dict[str, str], trials: int = 100, rounds: int = 3) -> dict[str, float]:
    """Milliseconds of this process's CPU for a trial with five reports, claimed and written one by
    one; storages take turns."""
    spent: Counter[str] = Counter()
    for place in range(rounds):
        for name, url in urls.items():
            book = open_book(url + (f"-{place}" if name == "SQLite" else ""), None)
            book.patience_s = 120.0
            begun = time.process_time()
            for _ in range(trials):
                (trial,) = book.claim()
                trial.suggest_float("x", 0.0, 1.0)
                book.begin([trial])
                for step in range(5):
                    book.write([Report(trial, step, 0.5)])
                book.write(endings=[Ending(trial, TrialState.COMPLETE, [0.5], {}, {})])
            spent[name] += time.process_time() - begun
            storage.close(book.storage)
    return {name: round(1000 * seconds / trials / rounds, 2) for name, seconds in spent.items()}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "start"), [(PostgreSQL, "fork"), (MariaDB, "fork"), (Proxy, "spawn")]
)
def test_a_server_restarts_and_workers_are_killed(kind, start, tmp_path, monkeypatch):
    monkeypatch.setenv("SWEEPSTACK_TEST_WORKERS", start)
    monkeypatch.setenv("COLD_WORKERS", "")  # each a child of the sweep
    size = WHOLE if FULL and kind is PostgreSQL else SMALL
    monkeypatch.setenv("DATABASE_APP_WORKERS", str(size.workers))
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
        if FULL:
            urls = {"SQLite": f"sqlite:///{tmp_path}/s.db", kind.__name__: server.url}
            print(f"\nms of CPU for a trial: {per_trial(urls)}")
        print(f"\n{kind.__name__}, seed {SEED}, {time.monotonic() - begun:.0f} s: {had}, {found}")
        print(
            sweep.err, Counter(t.user_attrs.get("sweepstack.lost") for t in trials_of(server.url))
        )


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_starts_that_meet_at_an_empty_database_make_its_tables_once():
    with PostgreSQL() as server:
        url = server.url
        met = threading.Barrier(4)

        def start(place: int) -> str:
            met.wait()
            opened = storage.connect(url)
            study = optuna.create_study(study_name=f"s{place}", storage=opened)
            storage.close(opened)
            return study.study_name

        with ThreadPoolExecutor(4) as starts:
            assert sorted(starts.map(start, range(4))) == ["s0", "s1", "s2", "s3"]
        gc.collect()  # connections of the tries that failed, which Optuna does not close


@pytest.mark.slow
def test_a_server_that_hangs_and_a_worker_that_holds_the_study_are_waited_for_so_long(monkeypatch):
    """Both for ever, without a limit: neither says that anything is wrong."""
    monkeypatch.setattr(storage_server, "MIN_LIMIT_S", 0.5)
    monkeypatch.setattr(storage_server, "CONNECT_S", 2)
    with PostgreSQL() as server:
        book = open_book(server.url, 10)
        storage.wait_for_server(book.storage, 1.0)
        book.patience_s = 30.0
        main = int((server.folder / "data" / "postmaster.pid").read_text().split()[0])
        children = Path(f"/proc/{main}/task/{main}/children").read_text().split()
        everyone = [main, *map(int, children)]
        for pid in everyone:
            with contextlib.suppress(ProcessLookupError):  # one that had just ended
                os.kill(pid, signal.SIGSTOP)
        try:
            with storage.Tried():
                book.counts()
                pytest.fail("it answered")
        finally:
            for pid in everyone:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)
        assert book.counts()["remaining"] == 10
        other = open_book(server.url, 10)
        storage.wait_for_server(other.storage, 1.0)
        other.patience_s = 30.0
        held: Any = book
        with pytest.raises(sqlalchemy.exc.DBAPIError) as ended, held._held() as page:  # noqa: PT012
            assert len(other.claim()) == 1
            page.scalar(sqlalchemy.text("SELECT 1"))
        assert storage.is_transient(ended.value)
        assert book.counts()["running"] == 1
        for each in (book, other):
            storage.close(each.storage)


@pytest.mark.slow
def test_a_claim_waits_four_times_for_the_server_and_undoes_all_where_its_end_fails(monkeypatch):
    psycopg = pytest.importorskip("psycopg")
    waits, plain = [], psycopg.Pipeline.sync
    with PostgreSQL() as server:
        book = open_book(server.url, 10)
        assert len(book.claim()) == 1
        monkeypatch.setattr(psycopg.Pipeline, "sync", lambda self: waits.append(1) or plain(self))
        assert len(book.claim()) == 1
        assert len(waits) == 3  # and the commit
        hand_out = BulkBook._hand_out

        def twice(self: Any, *given: Any) -> None:
            hand_out(self, *given)
            hand_out(self, *given)

        with monkeypatch.context() as patch:
            patch.setattr(BulkBook, "_hand_out", twice)
            with pytest.raises(sqlalchemy.exc.IntegrityError):
                book.claim()
        assert len(book.claim()) == 1
        assert book.counts()["running"] == book.study.trials[-1].number + 1 == 3
        storage.close(book.storage)


@pytest.mark.slow
def test_a_connection_that_is_lost_as_a_claim_ends_prints_no_traceback(monkeypatch, caplog):
    with PostgreSQL() as server:
        book = open_book(server.url, 10)
        dialect: Any = book.storage.engine.dialect  # type: ignore[attr-defined]
        plain = dialect.do_commit

        def commit(connection: Any) -> None:
            plain(connection)
            pid = connection.driver_connection.info.backend_pid
            os.kill(pid, signal.SIGTERM)
            until(lambda: not is_alive(pid), "the end of the connection")

        with monkeypatch.context() as patch:
            patch.setattr(dialect, "do_commit", commit)
            with pytest.raises(sqlalchemy.exc.OperationalError) as lost:
                book.claim()
        assert storage.is_transient(lost.value)
        assert "Traceback" not in caplog.text
        assert len(book.claim()) == 1
        assert book.counts()["running"] == 1
        storage.close(book.storage)


if __name__ == "__main__":
    raise SystemExit(pytest.main(["-n", "0", "-s", __file__]))
