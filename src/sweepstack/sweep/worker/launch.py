"""Starting the workers of a sweep and watching over them.

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
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, TextIO

import optuna

from sweepstack.config.errors import EXIT_TERMINATED, EnvironmentFault, SweepstackError
from sweepstack.study import storage
from sweepstack.sweep.book.book import Book
from sweepstack.sweep.book.studies import open_book
from sweepstack.sweep.plan import Plan
from sweepstack.sweep.worker import by_name as by_name  # registers how an application is pickled
from sweepstack.sweep.worker import (
    share,
)
from sweepstack.sweep.worker.scoreboard import Scoreboard
from sweepstack.sweep.worker.signals import deaf, interrupt, signals
from sweepstack.sweep.worker.trial import Stop
from sweepstack.sweep.worker.worker import App, Worker, too_many_failed

log = logging.getLogger(__name__)

PATIENCE_S = 25.0
"""Seconds that workers get to checkpoint their trials after Ctrl-C."""
MOST_FALSE_STARTS = 3
"""Workers in a row that may die before they begin a trial. Those that die with one begun need no
limit here: the trial's restarts and max_failure_rate are theirs."""

Launch = Callable[[Callable[[Any], int | None], int], int | None]
"""Another launcher: runs a function as that many Hydra jobs; returns the first exit code of a
signal that they return."""


@dataclass(frozen=True)
class Crew:
    """What every worker of a sweep is given; it can be pickled."""

    plan: Plan
    app: App
    folder: Path
    deadline: float

    def worker(
        self,
        book: Book,
        stop: Stop,
        notify: Callable[[str], object],
        began: Callable[[], object] = lambda: None,
    ) -> Worker:
        """A worker in this process."""
        return Worker(
            self.plan,
            self.app,
            book,
            self.folder,
            stop,
            deadline=self.deadline,
            notify=notify,
            began=began,
        )

    def __call__(self, job: Any = None) -> int | None:
        """Work in a process of some launcher's, until nothing is left to do.

        Returns:
            The exit code of the signal that asked to stop, if one did.
        """
        stop = Stop()
        with signals(stop):
            self.worker(_open_shared(self), stop, _silent).work()
        return stop.code


def launch(crew: Crew, board: Scoreboard, other: Launch | None = None) -> int | None:
    """Run the sweep; return the exit code of the signal that ended it, if one did.

    Raises:
        EnvironmentFault: the storage or the disk is gone.
    """
    if other is not None:
        with _watched(board):
            return other(crew, crew.plan.n_jobs)
    stop = Stop()
    if crew.plan.n_jobs == 1:
        with signals(stop), board:
            crew.worker(board.book, stop, board.refresh).work()
        return stop.code
    return _Processes(crew, board, stop).run()


@contextlib.contextmanager
def _watched(board: Scoreboard) -> Iterator[None]:
    """Keep the board fresh from a thread while this one waits."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(1.0):
            with storage.ignored():  # the workers will say it
                board.refresh()

    thread = threading.Thread(target=watch, name="sweepstack-board", daemon=True)
    with board:
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()


@dataclass
class _Child:
    """A local worker; `told` is what it says of itself (see `_child`)."""

    process: BaseProcess
    told: connection.Connection

    def last_words(self) -> tuple[bool, SweepstackError | None]:
        """Whether it began a trial, and the error that it ended with."""
        began, error = False, None
        with contextlib.suppress(EOFError, OSError):  # or it was killed while it spoke
            while self.told.poll():
                word = self.told.recv()
                began, error = True, word and _WorkerFailed(*word)
        self.told.close()
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
        """Start the workers, and others in place of those that die, until all are through."""
        with signals(self.stop, repeated=self._give_up), self.board:
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
        told, telling = context.Pipe(duplex=False)
        process = context.Process(
            target=_child,
            args=(self.crew, place, os.getpid(), telling),
            name=f"sweepstack-worker-{place}",
        )
        with telling, share.environment(place, self.crew.plan), deaf():
            process.start()
            self.children[place] = _Child(process, told)

    def _look(self) -> None:
        """See who has ended, and start others for those that died."""
        for place, child in list(self.children.items()):
            if child.process.is_alive():
                continue
            child.process.join()
            del self.children[place]
            began, error = child.last_words()
            if error is not None:
                raise error
            if child.process.exitcode == 0:
                continue
            self.false_starts = 0 if began else self.false_starts + 1
            how = f"worker {place} died (exit code {child.process.exitcode})"
            if self.false_starts <= MOST_FALSE_STARTS:
                log.warning("%s; another goes on", how)
                self._start(place)
            elif not self.children:
                raise EnvironmentFault(f"{how} before it began a trial, as the ones before it")

    def _end(self) -> None:
        """Ask the workers to put back their trials, and end those that do not."""
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
            self.board.book.recover()  # puts back what they could not

    def _give_up(self, code: int) -> None:
        for child in self.children.values():
            child.process.kill()
        os._exit(code)


def _open_shared(crew: Crew) -> Book:
    """The records of the crew's study, which exists, for a worker in another process."""
    plan = crew.plan
    assert plan.storage is not None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    opened = storage.connect(plan.storage)
    study = optuna.load_study(study_name=plan.study, storage=opened)
    return open_book(plan, study, opened, partial(crew.app.checkpointed, crew.folder))


def _silent(status: str) -> None:
    """The board of the parent reads the study itself."""


class _WorkerFailed(SweepstackError):
    """What a worker says that it could not go on for, with its exit code."""

    def __init__(self, message: str, exit_code: int):
        super().__init__(message)
        self.exit_code = exit_code


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


def _child(crew: Crew, place: int, parent: int, telling: connection.Connection) -> None:
    """Main function of a local worker.

    Sends None once it begins a trial, and (message, exit code) of what stopped it.
    """
    for name in ("stdout", "stderr"):
        setattr(sys, name, _Numbered(getattr(sys, name), place))
    stop = Stop()
    # Ctrl-C reaches the whole group; the parent passes it on as SIGTERM, once.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])

    def asked(number: int, frame: Any) -> None:
        stop.ask(EXIT_TERMINATED)
        interrupt(stop)

    signal.signal(signal.SIGTERM, asked)
    threading.Thread(target=_outlive, args=(parent,), name="sweepstack-parent", daemon=True).start()

    if sys.stderr.isatty():  # the parent's bar stands there
        logging.getLogger("sweepstack").setLevel(logging.ERROR)

    def say(word: tuple[str, int] | None) -> None:
        with contextlib.suppress(OSError):  # the parent is gone
            telling.send(word)

    try:
        crew.worker(_open_shared(crew), stop, _silent, lambda: say(None)).work()
    except SweepstackError as error:
        say((str(error), error.exit_code))
        raise SystemExit(error.exit_code) from None
    if stop.code is not None:  # the parent replaces it, if it was not the parent that asked
        raise SystemExit(stop.code)


def _outlive(parent: int) -> None:
    """Once the parent is gone do with this worker what it would have done."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(PATIENCE_S)
    os._exit(EXIT_TERMINATED)
