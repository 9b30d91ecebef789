"""Starting the workers of a sweep, watching over them, and showing how far they are.

One worker runs in this process; several are local processes of their own, each with its share of
the cores and a GPU; any other Hydra launcher carries them as its jobs (`jobs.py`).
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
from collections.abc import Iterator
from dataclasses import dataclass, field
from multiprocessing import connection
from multiprocessing.process import BaseProcess

from sweepstack.config.errors import (
    EXIT_INTERRUPTED,
    EXIT_TERMINATED,
    EnvironmentFault,
    InputError,
    SweepstackError,
)
from sweepstack.reporting.scoreboard import Scoreboard
from sweepstack.runs import progress, register
from sweepstack.study.book import processes
from sweepstack.sweep.plan import Plan
from sweepstack.sweep.worker import Stop
from sweepstack.sweep.worker.jobs import PATIENCE_S, Crew, Jobs, Launch, found_no_place
from sweepstack.sweep.worker.worker import too_many_failed

log = logging.getLogger(__name__)
_LOGGER = logging.getLogger("sweepstack")

MAX_FALSE_STARTS = 3
"""Workers in a row that may die before they begin a trial. Those that die later are limited by the
trial's restarts and by max_failure_rate."""


def launch(
    crew: Crew, board: Scoreboard, other: Launch | None = None, *, joins: bool = False
) -> int | None:
    """Run the sweep; return the exit code of the signal that ended it, if one did. One that `joins`
    another's study leaves its share of this host to the workers that are there.

    Raises:
        EnvironmentFault: the storage or the disk is gone.
    """
    board.reads = joins or other is not None or crew.plan.n_jobs > 1
    if other is not None:
        return Jobs(crew, board, other).run()
    stop = Stop()
    # This process may have used a GPU to check the configs: it is too late to choose another.
    takes_gpu = joins and register.chooses_gpus(crew.plan.space.fixed) and register.gpus_here()
    if crew.plan.n_jobs == 1 and not takes_gpu:
        with _put_back(), progress.on_signal(stop.ask), board:
            if (member := crew.enter(board.book, stays=True)) is None:
                raise register.no_place(crew.plan.workers_per_gpu)
            with member:
                crew.worker(board.book, stop, member=member, notify=board.refresh).work()
        return stop.code
    return _Processes(crew, board, stop).run()


class WorkerFailed(SweepstackError):
    """The error that ended a worker, with its exit code."""

    def __init__(self, message: str, exit_code: int):
        super().__init__(message)
        self.exit_code = exit_code


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
                began, error = True, message and WorkerFailed(*message)
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
                if self.stop.code is None and found_no_place(self.crew, self.board.book):
                    raise register.no_place(self.crew.plan.workers_per_gpu)
            finally:
                self._end()
        return self.stop.code

    def _start(self, place: int) -> None:
        if self.stop.code is not None:
            return
        others = [e for e in register.workers(self.board.book.study) if e.crew != self.crew.name]
        others = [e for e in others if e.is_alive and processes.is_here(e.process)]
        context = multiprocessing.get_context("spawn")
        messages, theirs = context.Pipe()
        process = context.Process(
            target=_child, args=(place, os.getpid(), theirs), name=f"sweepstack-worker-{place}"
        )
        with theirs, _share(self.crew.plan.n_jobs + len(others)), progress.without_interrupts():
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


@contextlib.contextmanager
def _put_back() -> Iterator[None]:
    """Put back what a worker in this process sets for its share of the host."""
    import torch

    gpus, threads = os.environ.get(register.GPUS), torch.get_num_threads()
    try:
        yield
    finally:
        os.environ.pop(register.GPUS, None)
        if gpus is not None:
            os.environ[register.GPUS] = gpus
        if threads != torch.get_num_threads():
            torch.set_num_threads(threads)


def check(plan: Plan) -> None:
    """Refuse more local workers than the GPUs may have.

    Raises:
        InputError: `n_jobs` is more.
    """
    if not plan.workers_per_gpu or not register.chooses_gpus(plan.space.fixed):
        return
    gpus = len(register.gpus_here())
    if gpus and plan.n_jobs > gpus * plan.workers_per_gpu:
        raise InputError(
            f"hydra.sweeper.n_jobs must be <= {gpus * plan.workers_per_gpu} "
            f"({gpus} visible GPUs, hydra.sweeper.workers_per_gpu={plan.workers_per_gpu}), got "
            f"{plan.n_jobs}"
        )


@contextlib.contextmanager
def _share(count: int) -> Iterator[None]:
    """Give a process that starts now its share of the cores, one of `count`; what is set by a
    person stays. A script that it imports may ask `torch.cuda.is_available()`: by NVML, so that
    CUDA heeds the GPU that the worker takes afterwards."""
    threads = str(max(1, register.cores() // count))
    given = {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, register.NVML: "1"}
    given = {name: value for name, value in given.items() if name not in os.environ}
    os.environ.update(given)
    try:
        yield
    finally:
        for name in given:
            del os.environ[name]


def _child(place: int, parent: int, messages: connection.Connection) -> None:
    """Main function of a local worker.

    Is sent its crew. Sends None once it begins a trial, and (message, exit code) of what stopped
    it.
    """
    for name in ("stdout", "stderr"):
        setattr(sys, name, progress.Numbered(getattr(sys, name), place))
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
