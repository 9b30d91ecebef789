"""Starting the workers of a sweep, watching over them, and showing how far they are.

One worker runs in this process; several are local processes of their own, each with its share of
the cores and a GPU; any other Hydra launcher carries them as its jobs.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import connection, resource_tracker
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, TextIO

import optuna

from sweepstack.config.errors import (
    EXIT_INTERRUPTED,
    EXIT_TERMINATED,
    EnvironmentFault,
    InputError,
    SweepstackError,
    one_line,
)
from sweepstack.reporting.scoreboard import Scoreboard, count_finished
from sweepstack.runs import progress
from sweepstack.study import storage
from sweepstack.study.book import processes, register
from sweepstack.study.book.book import Book
from sweepstack.study.book.register import Entry
from sweepstack.sweep.plan import Plan
from sweepstack.sweep.studies import open_book
from sweepstack.sweep.worker import Stop
from sweepstack.sweep.worker.worker import App, Worker, too_many_failed

log = logging.getLogger(__name__)
_LOGGER = logging.getLogger("sweepstack")

PATIENCE_S = 25.0
"""Seconds that workers get to checkpoint their trials after Ctrl-C."""
CANCEL_S = 10.0
"""Seconds that a launcher gets to notice that its jobs have ended."""
MAX_FALSE_STARTS = 3
"""Workers in a row that may die before they begin a trial. Those that die later are limited by the
trial's restarts and by max_failure_rate."""

Launch = Callable[[Callable[[Any], int | None], int], int | None]
"""Another launcher: runs a function as that many Hydra jobs; returns the first exit code of a
signal that they return."""


@dataclass(frozen=True)
class Crew:
    """What every worker of a sweep is given; it can be pickled.

    Attributes:
        name: tells the sweep from others of the study.
        stops: how the workers were asked to stop before it began (`Book.stops`).
    """

    plan: Plan
    app: App
    folder: Path
    deadline: float
    name: str = field(default_factory=lambda: uuid.uuid4().hex[:8])
    stops: Any = None

    def worker(self, book: Book, stop: Stop, **given: Any) -> Worker:
        """A worker in this process."""
        deadline, crew = self.deadline, (self.name, self.stops)
        return Worker(
            *(self.plan, self.app, book, self.folder, stop), deadline=deadline, crew=crew, **given
        )

    def __call__(self, job: Any = None) -> int | None:
        """Work as a launcher's job; return the exit code of the signal that ended it, if any."""
        stop = Stop()
        with progress.on_signal(stop.ask):
            self.join(stop)
        return stop.code

    def join(self, stop: Stop, **calls: Callable[..., object]) -> None:
        """Work on the study, which exists, in a process of its own."""
        book = _open_shared(self)
        member = register.join(
            *(book.study, self.name, self.plan.n_jobs, self.plan.workers_per_gpu),
            chooses=_chooses_gpus(self.plan),
        )
        if member is not None:
            with member:
                self.worker(book, stop, member=member, **calls).work()


def launch(crew: Crew, board: Scoreboard, other: Launch | None = None) -> int | None:
    """Run the sweep; return the exit code of the signal that ended it, if one did.

    Raises:
        EnvironmentFault: the storage or the disk is gone.
    """
    board.reads = other is not None or crew.plan.n_jobs > 1
    if other is not None:
        return _Jobs(crew, board, other).run()
    stop = Stop()
    if crew.plan.n_jobs == 1:
        member = register.Membership.here(board.book.study, crew.name)
        with progress.on_signal(stop.ask), board, member:
            crew.worker(board.book, stop, member=member, notify=board.refresh).work()
        return stop.code
    return _Processes(crew, board, stop).run()


class JobsFailed(EnvironmentFault):
    """Jobs of a launcher ended without a word from their workers."""


@dataclass
class _Jobs:
    """Workers that another launcher carries."""

    crew: Crew
    board: Scoreboard
    other: Launch
    code: int | None = None
    alive: list[Entry] = field(default_factory=list)
    over: threading.Event = field(default_factory=threading.Event)

    def run(self) -> int | None:
        """Let the launcher run the workers, and others in place of those that die, until the study
        is complete: its verdict counts, not that of a job."""
        book, barren, jobs = self.board.book, 0, self.crew.plan.n_jobs
        look = progress.every(1.0, self.board.refresh, "sweepstack-board")
        with progress.on_signal(self._ask, self._leave), self.board, look:
            while True:
                before, known = count_finished(book.counts()), len(self._members())
                code, error = self._launch(jobs)
                if self.code is not None or self._is_stopped():
                    return self.code or EXIT_INTERRUPTED
                if code is None and error is None:
                    return None
                counts = self._wait(error)
                if (asked := self._asked()) is not None:  # while it waited
                    self.over.set()
                    return asked
                if self._is_complete(counts):
                    how = "a worker died" if error is None else one_line(error, 200)
                    log.warning("the study is complete, though %s", how)
                    return None
                began = self._members()[known:]
                barren = barren + 1 if count_finished(counts) == before else 0
                is_ours = any(entry.process == processes.this_process() for entry in began)
                if not began or is_ours or barren > self.crew.plan.max_restarts:
                    if error is not None:
                        raise error
                    return code
                if error is not None and not isinstance(error, JobsFailed):
                    raise error
                jobs = max(1, self.crew.plan.n_jobs - len(self.alive))
                log.warning("a worker died; starting %d in its place", jobs)

    def _launch(self, jobs: int) -> tuple[int | None, SweepstackError | None]:
        try:
            return self.other(self.crew, jobs), None
        except SweepstackError as error:
            return None, error
        finally:
            if self.code is not None:
                self.over.set()

    def _wait(self, error: SweepstackError | None) -> dict[str, int]:
        """Wait while others work, where what one died of would end a new one too."""
        while True:
            counts, self.alive = self.board.book.counts(), self._living()
            hopeless = isinstance(error, JobsFailed) or not self.alive
            if hopeless or self._is_complete(counts):
                return counts
            time.sleep(0.5)

    def _is_complete(self, counts: dict[str, int]) -> bool:
        return self.board.book.total is not None and not counts["remaining"]

    def _is_stopped(self) -> bool:
        return bool(self.board.book.stops(self.crew.name) != self.crew.stops)

    def _members(self) -> list[Entry]:
        return [e for e in register.workers(self.board.book.study) if e.crew == self.crew.name]

    def _living(self) -> list[Entry]:
        return [entry for entry in self._members() if entry.is_alive]

    def _asked(self) -> int | None:
        return self.code  # a signal sets it meanwhile

    def _ask(self, code: int) -> None:
        self.code = code
        threading.Thread(target=self._stop, name="sweepstack-stop", daemon=True).start()

    def _stop(self) -> None:
        """Ask the workers to stop through the study, and end the jobs of those that do not; not in
        a signal's handler, which may have interrupted who holds the study."""
        progress.say("stopping: the workers checkpoint their trials; Ctrl-C again leaves at once")
        with storage.ignored():
            self.board.book.stop(self.crew.name)
            latest = time.monotonic() + PATIENCE_S
            while time.monotonic() < latest and not self.over.wait(0.5):
                self.alive = self._living()
                if not self.alive and self._members():
                    break
            for entry in self.alive:
                register.end(entry)
        if not self.over.wait(CANCEL_S):
            self._leave(self.code or EXIT_INTERRUPTED)

    def _leave(self, code: int) -> None:
        lines = [f"may still run: {entry.described}" for entry in self.alive if entry.is_alive]
        if not self.alive:
            lines.append("jobs that have not begun end as soon as they do")
        for line in [*lines, "interrupted; run the same command again to resume"]:
            print(f"sweepstack: {line}", file=sys.stderr, flush=True)
        os._exit(code)


@dataclass
class _Child:
    """A local worker and the messages that it sends (see `_child`)."""

    process: BaseProcess
    messages: connection.Connection

    def ended(self) -> tuple[bool, SweepstackError | None]:
        """Whether it began a trial, and the error that it ended with."""
        began, error = False, None
        with contextlib.suppress(EOFError, OSError):  # it was killed while it sent one
            while self.messages.poll():
                message = self.messages.recv()
                began, error = True, message and _WorkerFailed(*message)
        self.messages.close()
        return began, error


@dataclass
class _Processes:
    """Local workers, each a process of its own."""

    crew: Crew
    board: Scoreboard
    stop: Stop
    children: dict[int, _Child] = field(default_factory=dict)
    false_starts: int = 0

    def run(self) -> int | None:
        """Start the workers, and others in place of those that die, until all have ended."""
        with progress.on_signal(self.stop.ask, self._give_up), self.board:
            try:
                for place in range(self.crew.plan.n_jobs):
                    self._start(place)
                while self.children and self.stop.code is None:
                    connection.wait([c.process.sentinel for c in self.children.values()], 0.2)
                    self._look()
                    counts = self.board.refresh()
                    if counts and too_many_failed(self.crew.plan, counts):
                        break
            finally:
                self._end()
        return self.stop.code

    def _start(self, place: int) -> None:
        if self.stop.code is not None:
            return
        context = multiprocessing.get_context("spawn")
        messages, theirs = context.Pipe()
        process = context.Process(
            target=_child, args=(place, os.getpid(), theirs), name=f"sweepstack-worker-{place}"
        )
        with theirs, _share(self.crew.plan), _without_interrupts():
            process.start()
            self.children[place] = _Child(process, messages)
        # As an argument, one that is larger than a pipe would be waited for where the process dies
        # before it reads it.
        with contextlib.suppress(OSError):
            messages.send(self.crew)

    def _look(self) -> None:
        """See who has ended, and start others for those that died."""
        for place, child in list(self.children.items()):
            if child.process.is_alive():
                continue
            child.process.join()
            del self.children[place]
            began, error = child.ended()
            if error is not None:
                raise error
            if child.process.exitcode == 0:
                continue
            if child.process.exitcode == EXIT_INTERRUPTED:  # asked to, through the study
                self.stop.code = self.stop.code or EXIT_INTERRUPTED
                continue
            self.false_starts = 0 if began else self.false_starts + 1
            how = f"worker {place} died (exit code {child.process.exitcode})"
            if self.false_starts <= MAX_FALSE_STARTS:
                log.warning("%s; starting another", how)
                self._start(place)
            elif not self.children:
                raise EnvironmentFault(f"{how} before it began a trial, like those before it")

    def _end(self) -> None:
        """Ask the workers to requeue their trials, and end those that do not."""
        processes = [child.process for child in self.children.values()]
        for process in processes:
            if process.is_alive() and process.pid is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process.pid, signal.SIGTERM)
        latest = time.monotonic() + PATIENCE_S
        for process in processes:
            process.join(max(0.0, latest - time.monotonic()))
        stuck = [process for process in processes if process.is_alive()]
        for process in stuck:
            process.kill()
            process.join()
        if stuck:
            self.board.book.recover()  # requeues what they could not

    def _give_up(self, code: int) -> None:
        for child in self.children.values():
            child.process.kill()
        os._exit(code)


def _chooses_gpus(plan: Plan) -> bool:
    """Whether workers take a GPU each, as no device is named."""
    fixed = [w.partition("=")[2] for w in plan.space.fixed if w.startswith("training.device=")]
    return not any(device == "cpu" or device.startswith("cuda:") for device in fixed)


def check(plan: Plan) -> None:
    """Refuse more local workers than the GPUs may have.

    Raises:
        InputError: `n_jobs` is more.
    """
    if not plan.workers_per_gpu or not _chooses_gpus(plan):
        return
    gpus = len(register.gpus_here())
    if gpus and plan.n_jobs > gpus * plan.workers_per_gpu:
        raise InputError(
            f"hydra.sweeper.n_jobs must be <= {gpus * plan.workers_per_gpu} "
            f"({gpus} visible GPUs, hydra.sweeper.workers_per_gpu={plan.workers_per_gpu}), got "
            f"{plan.n_jobs}"
        )


@contextlib.contextmanager
def _share(plan: Plan) -> Iterator[None]:
    """Give a process that starts now its share of the cores; what is set by a person stays."""
    before = dict(os.environ)
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(name, str(max(1, register.cores() // plan.n_jobs)))
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _open_shared(crew: Crew) -> Book:
    """The records of the crew's study, which exists, for a worker in another process."""
    plan = crew.plan
    assert plan.storage is not None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    opened = storage.connect(plan.storage, patience_s=plan.storage_timeout_s)
    storage.wait_for_server(opened, plan.storage_timeout_s)
    study = optuna.load_study(study_name=plan.study, storage=opened)
    return open_book(plan, study, opened, partial(crew.app.checkpointed, crew.folder))


class _WorkerFailed(SweepstackError):
    """The error that ended a worker, with its exit code."""

    def __init__(self, message: str, exit_code: int):
        super().__init__(message)
        self.exit_code = exit_code


@contextlib.contextmanager
def _without_interrupts() -> Iterator[None]:
    """Block Ctrl-C; a process that starts now does not get it before it wants to."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # else `Process.start` starts it, and unblocks Ctrl-C then
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _Numbered:
    """A stream whose lines begin with the number of the worker that writes them."""

    def __init__(self, stream: TextIO, place: int):
        self._stream, self._prefix, self._left = stream, f"worker {place}: ", ""

    def write(self, text: str) -> int:
        *lines, self._left = (self._left + text).split("\n")
        self._stream.write("".join(f"{self._prefix}{line}\n" for line in lines))
        return len(text)

    def flush(self) -> None:
        if self._left:
            self.write("\n")
        self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _child(place: int, parent: int, messages: connection.Connection) -> None:
    """Main function of a local worker.

    Is sent its crew. Sends None once it begins a trial, and (message, exit code) of what stopped
    it.
    """
    for name in ("stdout", "stderr"):
        setattr(sys, name, _Numbered(getattr(sys, name), place))
    stop = Stop()
    # Ctrl-C reaches the whole group; the parent passes it on as SIGTERM, once.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
    signal.signal(signal.SIGTERM, lambda number, frame: stop.ask(EXIT_TERMINATED))
    threading.Thread(target=_outlive, args=(parent,), name="sweepstack-parent", daemon=True).start()

    if sys.stderr.isatty():  # the parent's bar stands there
        _LOGGER.setLevel(logging.ERROR)

    def send(message: tuple[str, int] | None) -> None:
        with contextlib.suppress(OSError):  # the parent is gone
            messages.send(message)

    try:
        crew: Crew = messages.recv()
        crew.join(stop, began=lambda: send(None))
    except SweepstackError as error:
        send((str(error), error.exit_code))
        raise SystemExit(error.exit_code) from None
    if stop.code is not None:  # the parent replaces it, if it was not the parent that asked
        raise SystemExit(stop.code)


def _outlive(parent: int) -> None:
    """Once the parent is gone, end this worker as the parent would have."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(PATIENCE_S)
    os._exit(EXIT_TERMINATED)
