"""Starting the workers of a sweep and watching over them.

One worker runs in this process; several are local processes of their own, each with its share of
the cores and a GPU; any other Hydra launcher carries them as its jobs. Called by `sweep.py`.
"""

from __future__ import annotations

import contextlib
import glob
import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import optuna

from iolaus.errors import (
    EXIT_INTERRUPTED,
    EXIT_TERMINATED,
    EnvironmentFault,
    InputError,
    IolausError,
)
from iolaus.sweep import by_name as by_name  # registers how an application is pickled
from iolaus.sweep.plan import Plan
from iolaus.sweep.scoreboard import Scoreboard
from iolaus.sweep.trial import Stop
from iolaus.sweep.worker import App, Worker, open_shared, signals, too_many_failed

log = logging.getLogger(__name__)

PATIENCE_S = 25.0
"""Seconds that workers get to checkpoint their trials after Ctrl-C."""
MOST_EARLY_DEATHS = 3
EARLY_S = 5.0

Launch = Callable[[Callable[[Any], int | None], int], int | None]
"""Another launcher: runs a function as that many Hydra jobs; returns the first exit code of a
signal that they return."""


@dataclass(frozen=True)
class Crew:
    """What every worker of a sweep is given; it can be pickled."""

    plan: Plan
    app: App
    folder: Path
    before: Mapping[str, int]
    deadline: float

    def worker(self, study: optuna.Study, stop: Stop, notify: Callable[[], Any]) -> Worker:
        """A worker in this process."""
        return Worker(
            self.plan,
            self.app,
            study,
            self.folder,
            stop,
            before=dict(self.before),
            deadline=self.deadline,
            notify=notify,
        )

    def __call__(self, job: Any = None) -> int | None:
        """Work in a process of some launcher's, until nothing is left to do.

        Returns:
            The exit code of the signal that asked to stop, if one did.
        """
        stop = Stop()
        with signals(stop):
            self.worker(open_shared(self.plan), stop, lambda: None).work()
        return stop.code


def launch(
    crew: Crew, study: optuna.Study, board: Scoreboard, other: Launch | None = None
) -> int | None:
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
            crew.worker(study, stop, board.refresh).work()
        return stop.code
    return _Processes(crew, board, stop).run()


@contextlib.contextmanager
def _watched(board: Scoreboard) -> Iterator[None]:
    """Keep the board fresh from a thread while this one waits."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(1.0):
            board.refresh()

    thread = threading.Thread(target=watch, name="iolaus-board", daemon=True)
    with board:
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()


@dataclass
class _Processes:
    """Local workers, each a process of its own."""

    crew: Crew
    board: Scoreboard
    stop: Stop
    children: dict[int, tuple[BaseProcess, float]] = field(default_factory=dict)
    early_deaths: int = 0

    def run(self) -> int | None:
        """Start the workers, and others in place of those that die, until all are through."""
        with signals(self.stop, repeated=self._give_up), self.board:
            for place in range(self.crew.plan.n_jobs):
                self._start(place)
            try:
                while self.children and self.stop.code is None:
                    self.stop.wait(0.2)
                    self._look()
                    counts = self.board.refresh()
                    if counts and too_many_failed(self.crew.plan, dict(self.crew.before), counts):
                        break
            finally:
                self._end()
        return self.stop.code

    def _start(self, place: int) -> None:
        context = multiprocessing.get_context("spawn")
        child = context.Process(
            target=_child, args=(self.crew, os.getpid()), name=f"iolaus-worker-{place}"
        )
        with _environment(_share(place, self.crew.plan)):
            child.start()
        self.children[place] = (child, time.monotonic())

    def _look(self) -> None:
        """See who has ended, and start others for those that died."""
        for place, (child, began) in list(self.children.items()):
            if child.is_alive():
                continue
            child.join()
            del self.children[place]
            if child.exitcode in (InputError.exit_code, EnvironmentFault.exit_code):
                raise _WorkerFailed(child.exitcode)
            if child.exitcode == 0 or self.stop.code is not None:
                continue
            self.early_deaths += time.monotonic() - began < EARLY_S
            log.warning("worker %d died (exit code %s); another goes on", place, child.exitcode)
            if self.early_deaths <= MOST_EARLY_DEATHS * self.crew.plan.n_jobs:
                self._start(place)

    def _end(self) -> None:
        """Ask the workers to put back their trials, and end those that do not."""
        for child, _ in self.children.values():
            if child.is_alive() and child.pid is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child.pid, signal.SIGTERM)
        latest = time.monotonic() + PATIENCE_S
        for child, _ in self.children.values():
            child.join(max(0.0, latest - time.monotonic()))
            if child.is_alive():
                child.kill()
                child.join()

    def _give_up(self, code: int) -> None:
        for child, _ in self.children.values():
            child.kill()
        os._exit(code)


class _WorkerFailed(IolausError):
    """A worker has said on stderr what is wrong."""

    def __init__(self, exit_code: int):
        super().__init__("a worker could not go on, see above")
        self.exit_code = exit_code


def _share(place: int, plan: Plan) -> dict[str, str]:
    """Environment of a worker: its threads, and its GPU of the visible ones."""
    threads = max(1, (os.cpu_count() or 1) // plan.n_jobs)
    share = {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    chosen = any(word.startswith("training.device=cuda:") for word in plan.space.fixed)
    gpus = _visible_gpus()
    if gpus and not chosen:
        share["CUDA_VISIBLE_DEVICES"] = gpus[place % len(gpus)]
    return share


def _visible_gpus() -> list[str]:
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        return [gpu for gpu in given.split(",") if gpu]
    return [str(number) for number in range(len(glob.glob("/dev/nvidia[0-9]*")))]


@contextlib.contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Set variables for a process that starts now; what is set by a person stays."""
    before = dict(os.environ)
    for key, value in values.items():
        if key == "CUDA_VISIBLE_DEVICES":
            os.environ[key] = value
        else:
            os.environ.setdefault(key, value)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _child(crew: Crew, parent: int) -> None:
    """Main function of a local worker."""
    stop = Stop()
    # Ctrl-C reaches the whole group; the parent passes it on as SIGTERM, once.
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def asked(number: int, frame: Any) -> None:
        stop.ask(EXIT_INTERRUPTED)
        if stop.interrupts:
            raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, asked)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        stop.ask(EXIT_TERMINATED)

    threading.Thread(target=watch, name="iolaus-parent", daemon=True).start()
    try:
        crew.worker(open_shared(crew.plan), stop, lambda: None).work()
    except IolausError as error:
        print(f"iolaus: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
