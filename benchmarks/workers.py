"""How many workers a database carries: real workers whose trials only wait.

    uv run python benchmarks/workers.py --workers 10 100
    uv run python benchmarks/workers.py postgresql://me@db/studies --workers 1000 --trial-s 10
    uv run python benchmarks/workers.py postgresql://me@db/studies --workers 100 --width 64

Each worker is a thread with the worker's own loop (`sweepstack.sweep.worker`), its book, register
entry and heartbeats, under the name of a host of its own. Nothing is trained: a trial, or a stack
of `--width` of them, waits `--trial-s` seconds in all (each by up to a half more or less), reports
`--reports` times and ends. The threads are spread over `--processes` processes. What the machine's
cores then do is bookkeeping alone, and of all workers: on a cluster each worker brings its own.

Printed for each number of workers: trials per second and the share of the time that workers spent
training; of claims, reports (with ends) and signs of life how many a second, the median and the
99th percentile of their duration; how long a claim waits for the study and how long it holds it;
statements per trial (each is a round trip to a server); CPU time of the workers and of the server,
where it runs on this machine, per trial; and what limits. A study is made for each row and deleted.
"""

from __future__ import annotations

import argparse
import os
import resource
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import wraps
from importlib import import_module
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from random import Random
from typing import Any

import optuna
import sqlalchemy
from optuna.storages import RDBStorage

from sweepstack import storage
from sweepstack.runs import register
from sweepstack.study.book import processes
from sweepstack.study.book.bulk import BulkBook
from sweepstack.study.book.public import PublicBook
from sweepstack.sweep import plan as plans
from sweepstack.sweep import studies
from sweepstack.sweep.worker import Asked, Outcome, Stop
from sweepstack.sweep.worker.worker import Worker

NAME = "benchmark-workers"
SPACE = ["a=interval(0,1)", "b=choice(1,2,3)"]
Times = dict[str, list[float]]
_thread = threading.local()
_ready: Any = None
_begins: Any = None
"""When the measurement begins, in seconds since 1970."""


@dataclass(frozen=True)
class Load:
    """What is run."""

    url: str
    workers: int
    width: int
    trial_s: float
    reports: int
    seconds: float
    total: int


class MadeUp:
    """Trials that wait, and the app whose they are; `waited` is for how long, of all."""

    equal = None

    def __init__(self, load: Load, seed: int, counts: Times):
        self.load, self.random, self.counts = load, Random(seed), counts

    def runner(self, plan: Any, folder: Path, worker: Any) -> MadeUp:
        """What a worker runs its trials with."""
        self.worker = worker
        return self

    def close(self) -> None:
        """Nothing is open."""

    def run(self, asked: Iterator[Asked]) -> Iterator[Outcome]:
        """Wait for trials."""
        load, decisions = self.load, self.worker.decisions
        while True:
            self.worker.room = load.width
            if not (stack := list(islice(asked, load.width))):
                return
            each_s = load.trial_s * self.random.uniform(0.5, 1.5) / (load.reports + 1)
            for step in range(load.reports + 1):
                time.sleep(each_s)
                self.counts["trained"].append(each_s)
                if step < load.reports:
                    for trial in stack:
                        decisions.report(trial, step, 1.0)
                    decisions.flush()
            now = time.time()
            for trial in stack:
                self.counts["ended"].append(now)
                yield Outcome(trial, "complete", (1.0,), {"loss": 1.0})


def timed(owner: Any, name: str, times: Times, within: Callable[[], bool]) -> None:
    """Keep how long each call of a method takes."""
    method: Callable[..., Any] = getattr(owner, name)

    @wraps(method)
    def measured(*given: Any, **named: Any) -> Any:
        began = time.perf_counter()
        try:
            return method(*given, **named)
        finally:
            if within():
                times[name].append(time.perf_counter() - began)

    setattr(owner, name, measured)


def watched(times: Times, within: Callable[[], bool]) -> None:
    """Keep how long the study is waited for and held."""
    for owner in (BulkBook, PublicBook):
        for name in ("claim", "begin", "write", "beat", "stops", "recover"):
            timed(owner, name, times, within)
        hold: Any = owner._held

        @contextmanager
        def held(book: Any, hold: Any = hold) -> Iterator[Any]:
            began = time.perf_counter()
            with hold(book) as page:
                entered = time.perf_counter()
                yield page
            if within():
                times["wait"].append(entered - began)
                times["hold"].append(time.perf_counter() - entered)

        owner._held = held  # type: ignore[method-assign, assignment]


def work(load: Load, first: int, count: int) -> tuple[Times, float]:
    """Run some of the workers in this process; how long what took, and its CPU time."""
    times: Times = defaultdict(list)
    watched(times, lambda: 0 <= time.time() - _begins.value < load.seconds)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    processes.this_process = lambda: _thread.name

    class Wide(RDBStorage):  # workers that are processes have a pool each
        def __init__(self, url: str, options: Any = None, *given: Any, **named: Any):
            more = {"pool_size": 2 * count, "pool_timeout": 600} if options else {}
            super().__init__(url, {**(options or {}), **more}, *given, **named)

    vars(storage)["RDBStorage"] = Wide
    import_module("sweepstack.engine.train")  # as a worker does when it begins
    opened, plan = storage.connect(load.url), planned(load)
    workers = [made(load, opened, plan, number, times) for number in range(first, first + count)]
    _ready.wait()
    _ready.wait()  # now it is known when it begins
    if isinstance(opened, RDBStorage):
        sqlalchemy.event.listen(
            opened.engine,
            "before_cursor_execute",
            lambda *_: times["statement"].append(0.0) if time.time() >= _begins.value else None,
        )
    threads = [threading.Thread(target=each) for each in workers]
    for thread in threads:
        thread.start()
    time.sleep(max(0.0, _begins.value - time.time()))
    began = cpu_s()
    time.sleep(max(0.0, _begins.value + load.seconds - time.time()))
    spent = cpu_s() - began
    for thread in threads:
        thread.join()
    return dict(times), spent


def made(
    load: Load, opened: Any, plan: plans.Plan, number: int, times: Times
) -> Callable[[], None]:
    """A worker, to be run in a thread."""
    _thread.name = name = f"node{number}/1:{number + 1}:1"
    study = optuna.load_study(study_name=NAME, storage=opened)
    book = studies.open_book(plan, study, opened, lambda number: 0)
    member = register.Membership.here(study, "")
    app: Any = MadeUp(load, number, times)
    crew = ("", book.stops())
    worker = Worker(plan, app, book, Path("none"), Stop(), member=member, crew=crew)
    tick = worker._tick

    def named() -> None:  # in a thread of its own
        _thread.name = name
        tick()

    def run() -> None:
        _thread.name = name
        worker.deadline = _begins.value + load.seconds
        # They begin one after the other over the time of a trial.
        time.sleep(max(0.0, _begins.value - load.trial_s * Random(number).random() - time.time()))
        try:
            worker.work()
        except Exception as error:
            times["failed"].append(0.0)
            print(f"worker {number}: {error}", file=sys.stderr)

    worker._tick = named  # type: ignore[method-assign]
    return run


def shared(ready: Any, begins: Any) -> None:
    """Let a process know when all are ready, and when it begins."""
    global _ready, _begins
    _ready, _begins = ready, begins


def deleted(opened: Any) -> None:
    """Delete the study of an earlier row."""
    study = optuna.load_study(study_name=NAME, storage=opened)
    with studies.book_of(opened)(study, opened, None).deletion():
        pass


def cpu_s() -> float:
    """CPU seconds of this process."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def planned(load: Load) -> plans.Plan:
    """The sweep."""
    node = {"storage": load.url, "study_name": NAME, "sampler": "random", "n_trials": load.total}
    plan = plans.read(node, SPACE, "app")
    return replace(plan, objectives=("loss",), directions=("minimize",))


def server_cpu_s(*names: str) -> float:
    """CPU seconds of all PostgreSQL and MySQL processes of this machine, or of those of a name; 0
    where there are none."""
    ticks, names = 0, names or ("postgres", "mysqld", "mariadbd")
    for place in Path("/proc").glob("[0-9]*"):
        with suppress(OSError, IndexError):
            if (place / "comm").read_text().strip() in names:
                fields = (place / "stat").read_text().rpartition(")")[2].split()
                ticks += sum(map(int, fields[11:15]))  # with those of children that have ended
    return ticks / os.sysconf("SC_CLK_TCK")


def measure(load: Load, count: int) -> None:
    """Run one number of workers and print what it showed."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    opened = storage.connect(load.url)
    with suppress(KeyError):
        deleted(opened)
    studies.open_study(opened, NAME, ["minimize"], {"space": "benchmark"})
    parts = [(load.workers * i // count, load.workers * (i + 1) // count) for i in range(count)]
    context = get_context("spawn")
    ready, begins = context.Barrier(count + 1), context.Value("d", float("inf"))
    with ProcessPoolExecutor(count, context, shared, (ready, begins)) as pool:
        tasks = [pool.submit(work, load, a, b - a) for a, b in parts]
        ready.wait()
        begins.value = time.time() + 1 + load.trial_s
        ready.wait()
        time.sleep(max(0.0, begins.value - time.time()))
        before = server_cpu_s()
        time.sleep(load.seconds)
        server = server_cpu_s() - before
        found = [task.result() for task in tasks]
    study = optuna.load_study(study_name=NAME, storage=opened)
    counts = studies.book_of(opened)(study, opened, None).counts()
    deleted(opened)
    spent = sum(cpu for _, cpu in found)
    say(load, [times for times, _ in found], begins.value, spent, server, counts)


def say(
    load: Load,
    parts: list[Times],
    begins: float,
    client: float,
    server: float,
    counts: dict[str, int],
) -> None:
    """Print a row."""
    times: Times = defaultdict(list)
    for part in parts:
        for name, values in part.items():
            times[name] += values
    ended = sum(0 <= at - begins < load.seconds for at in times["ended"])
    rate, offered = ended / load.seconds, load.workers * load.width / load.trial_s
    complete = counts["done"]
    exact = complete == len(times["ended"]) and not counts["running"]
    totals = "exact" if exact else f"NOT exact: {len(times['ended'])} ended, {complete} complete"
    print(
        f"{load.workers} workers x {load.width}, trials of {load.trial_s:g} s: {rate:.1f} trials/s "
        f"of {offered:.1f} ({rate / max(offered, 1e-9):.0%}); "
        f"{totals}" + (f"; {len(times['failed'])} workers failed" if times["failed"] else "")
    )
    for name in ("claim", "begin", "write", "beat", "stops", "recover", "wait", "hold"):
        if values := sorted(times[name]):
            p50, p99 = (1e3 * values[int(p * (len(values) - 1))] for p in (0.5, 0.99))
            a_second = len(values) / load.seconds
            print(f"  {name:8} {a_second:8.1f}/s  p50 {p50:8.1f} ms  p99 {p99:8.1f} ms")
    each = 1 / max(ended, 1)
    cores, busy = os.cpu_count() or 1, (client + server) / load.seconds
    holds = sum(times["hold"]) / load.seconds
    print(
        f"  per trial: {len(times['statement']) * each:.1f} statements, "
        f"{1e3 * client * each:.2f} ms CPU of workers, {1e3 * server * each:.2f} ms of the server"
    )
    print(f"  {busy:.2f} of {cores} cores busy; the study is held {holds:.0%} of the time")


def main() -> None:
    """Read the command line and measure."""
    parser = argparse.ArgumentParser(description="How many workers a database carries.")
    parser.add_argument("url", nargs="?", help="a storage's URL; a SQLite file if left out")
    parser.add_argument("--workers", type=int, nargs="+", default=[10, 100, 1000])
    parser.add_argument("--width", type=int, default=1, help="trials of a stack")
    parser.add_argument("--trial-s", type=float, default=1.0)
    parser.add_argument("--reports", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        url = given.url or f"sqlite:///{folder}/studies.db"
        for workers in given.workers:
            pace = (given.trial_s, given.reports, given.seconds)
            load = Load(url, workers, given.width, *pace, total=10**7)
            measure(load, min(given.processes, workers))


if __name__ == "__main__":
    main()
