"""The workers of a sweep as jobs of any other Hydra launcher: what they are given, and how they are
launched, watched, replaced and ended."""

from __future__ import annotations

import logging
import math
import os
import signal
import sys
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import optuna

from sweepstack import storage
from sweepstack.config.errors import EXIT_INTERRUPTED, EnvironmentFault, SweepstackError
from sweepstack.reporting.scoreboard import Scoreboard, count_finished
from sweepstack.runs import progress, register
from sweepstack.runs.register import Entry, Membership
from sweepstack.storage.artifacts import Store
from sweepstack.storage.uploads import Uploads
from sweepstack.study.book import processes
from sweepstack.study.book.book import Book
from sweepstack.study.read import trials_of
from sweepstack.sweep.plan import Plan
from sweepstack.sweep.studies import open_book
from sweepstack.sweep.worker import Stop
from sweepstack.sweep.worker.trial_folder import over
from sweepstack.sweep.worker.worker import App, Worker, too_many_failed

log = logging.getLogger(__name__)

PATIENCE_S = 25.0
"""Seconds that workers get to checkpoint their trials after Ctrl-C."""
CANCEL_S = 10.0
"""Seconds that jobs get to end once they are cancelled."""
LOOK_S, QUEUE_S = 0.5, 5.0
"""Seconds between two looks at the study, and at a scheduler's queue, while jobs work."""
MIN_WORK_S = 60.0
"""A job that was asked to end after so long has worked, whether or not a trial ended."""
WAIT_S = 20.0
"""Seconds after which a person is told that jobs have not begun."""
RAY_S = 2.0
"""Seconds that a local Ray gets to end its own processes."""


@dataclass(frozen=True)
class Crew:
    """What every worker of a sweep is given; it can be pickled.

    Attributes:
        name: tells the sweep from others of the study.
        stops: how the workers were asked to stop before it began (`Book.stops`).
        store: where trials put their files for all machines.
    """

    plan: Plan
    app: App
    folder: Path
    deadline: float
    name: str = field(default_factory=lambda: uuid.uuid4().hex[:8])
    stops: Any = None
    store: Store | None = None

    def worker(self, book: Book, stop: Stop, **given: Any) -> Worker:
        """A worker in this process."""
        deadline, crew = self.deadline, (self.name, self.stops)
        if self.store is not None:
            given["uploads"] = Uploads(
                self.store,
                self.folder,
                lambda: over(trials_of(book.study, book.storage)),
                lambda: stop.code is not None,
            )
        return Worker(
            *(self.plan, self.app, book, self.folder, stop), deadline=deadline, crew=crew, **given
        )

    def __call__(self, job: Any = None) -> int | tuple[str, int] | None:
        """Work as a launcher's job; return the exit code of the signal that ended it, if any, or
        the message and the exit code of an error. A launcher that runs its jobs where it is called
        runs them in the main thread: what is swept may set handlers of signals."""
        thread = threading.current_thread()
        if isinstance(thread, Launched):
            found: int | tuple[str, int] | None = thread.main.call(partial(self, job))
            return found
        stop = Stop()
        try:
            with progress.on_signal(stop.ask, stop.ask), progress.preempted(stop.ask):
                self.join(stop)
        except SweepstackError as error:
            return str(error), error.exit_code
        return stop.code

    def misses_gpus(self) -> bool:
        """Whether there are GPUs here, which workers that see none would miss."""
        return register.chooses_gpus(self.plan.space.fixed) and bool(register.gpus_here())

    def join(self, stop: Stop, **calls: Callable[..., object]) -> None:
        """Work on the study, which exists, in a process of its own."""
        book = _open_shared(self)
        member = self.enter(book, stays=register.is_assigned())
        if member is not None:
            with member:
                self.worker(book, stop, member=member, **calls).work()
                member.entry.code = stop.code

    def enter(self, book: Book, *, stays: bool) -> Membership | None:
        """Enter this process in the study's register, with its share of the host.

        Args:
            book: the study's.
            stays: whether another application keeps all GPUs that it sees, as it may use several.
        """
        is_ours = self.app.origin["name"] == "sweepstack"
        return register.join(
            *(book.study, self.name, self.plan.n_jobs, self.plan.workers_per_gpu),
            chooses=register.chooses_gpus(self.plan.space.fixed) and (is_ours or not stays),
        )


def _open_shared(crew: Crew) -> Book:
    """The records of the crew's study, which exists, for a worker in another process."""
    plan = crew.plan
    assert plan.storage is not None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    opened = storage.connect(plan.storage, patience_s=plan.storage_timeout_s)
    storage.wait_for_server(opened, plan.storage_timeout_s)
    study = optuna.load_study(study_name=plan.study, storage=opened)
    return open_book(plan, study, opened, partial(crew.app.checkpointed, crew.folder))


@dataclass(frozen=True)
class Launch:
    """Another launcher.

    Attributes:
        run: runs a crew as that many Hydra jobs until they have ended; returns the first exit code
            of a signal that they return. Called in threads.
        jobs: the jobs that it has submitted, as `Entry.job` names them; none where it has no names.
        logs: where the jobs' output lies.
        begin: called before, in the main thread.
    """

    run: Callable[[Crew, int], int | None]
    jobs: Callable[[], list[str]] = list
    logs: Path | None = None
    begin: Callable[[Crew], object] = lambda crew: None


def found_no_place(crew: Crew, book: Book) -> bool:
    """Whether none of a sweep's workers found a place, and the study is not complete."""
    mine = [entry for entry in register.workers(book.study) if entry.crew == crew.name]
    if not mine or not all(entry.found_no_place for entry in mine):
        return False
    return book.total is None or book.counts()["remaining"] > 0


class JobsFailed(EnvironmentFault):
    """Jobs of a launcher ended without a word from their workers."""


class Launched(threading.Thread):
    """A launch of so many workers, which lasts as long as they work, and how it ended."""

    def __init__(self, launch: Launch, crew: Crew, count: int):
        super().__init__(name="sweepstack-launch", daemon=True)
        self.count, self._call = count, partial(launch.run, crew, count)
        self._jobs, self.before = launch.jobs, len(launch.jobs())
        self.due = self.before + count  # jobs that there are once it has submitted its own
        self.code: int | None = None
        self.error: Exception | None = None
        self.refused = False  # it has submitted none
        self.main = progress.MainThread()

    def run(self) -> None:
        """Launch, and note how it ended."""
        if hasattr(signal, "pthread_sigmask"):  # a terminal's Ctrl-C is not for what it starts
            signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
        try:
            self.code = self._call()
        except Exception as error:
            self.error, self.refused = error, len(self._jobs()) == self.before


@dataclass
class Jobs:
    """Workers that another launcher carries, each launch in a thread."""

    crew: Crew
    board: Scoreboard
    other: Launch
    code: int | None = None
    launches: list[Launched] = field(default_factory=list)
    replaced: set[str] = field(default_factory=set)
    members: list[Entry] = field(default_factory=list)
    barren: int = 0  # launches in a row without a trial that ended
    finished: int = 0
    queued: set[str] | None = None  # of the jobs `known`, those that wait or work, as of `looked`
    known: list[str] = field(default_factory=list)
    looked: float = -math.inf
    told_at: float = math.inf  # when it is said that jobs wait

    def run(self) -> int | None:
        """Let the launcher run the workers, and others in place of those that die, until the study
        is complete: its verdict counts, not that of a job."""
        look = progress.every(1.0, self.board.refresh, "sweepstack-board")
        with progress.on_signal(partial(setattr, self, "code"), self._leave), self.board, look:
            try:
                self.other.begin(self.crew)
                self._start(self.crew.plan.n_jobs)
                code = self._watch()
                if code is None and found_no_place(self.crew, self.board.book):
                    raise register.no_place(self.crew.plan.workers_per_gpu, "the workers' hosts")
                return code
            finally:
                register.cancel(self._queue(0) or ())

    def _start(self, count: int) -> None:
        self.told_at = time.monotonic() + WAIT_S
        self.finished = count_finished(self.board.book.counts())
        self.launches.append(Launched(self.other, self.crew, count))
        self.launches[-1].start()

    def _watch(self) -> int | None:
        while True:
            self._pause()
            counts = self.board.book.counts()
            stopped = self.board.book.stops(self.crew.name) != self.crew.stops
            is_complete = self.board.book.total is not None and not counts["remaining"]
            if self.code is not None or stopped or is_complete:
                return self._wind_up(EXIT_INTERRUPTED if stopped else None)
            if self._have_returned():
                return None
            is_idle = self._is_idle()  # before a look at who died
            died = self._died()
            self._tell()
            if died and not self._is_over(counts) and self._is_worth_another(died, counts):
                others = "others" if len(died) > 1 else "another"
                log.warning("%s ended early; starting %s", ", ".join(died), others)
                self.replaced |= died.keys()
                self._start(len(died))
            elif is_idle:
                return self._ended(died, counts)

    def _ended(self, died: Mapping[str, Entry | None], counts: Mapping[str, int]) -> int | None:
        """What becomes of a sweep whose workers have all ended before the study was complete."""
        errors = [launched.error for launched in self.launches if launched.error is not None]
        if fatal := [error for error in errors if not isinstance(error, JobsFailed)]:
            raise fatal[-1]
        refused = [launched.error for launched in self.launches if launched.refused]
        if not (died or refused) or self._is_over(counts):
            return None
        if errors:
            raise errors[-1]
        raise JobsFailed(
            f"{', '.join(died)} ended early{self._where}; run the same command again to resume"
        )

    def _is_worth_another(
        self, died: Mapping[str, Entry | None], counts: Mapping[str, int]
    ) -> bool:
        """Whether another worker would not end as these did."""
        if any(not isinstance(launched.error, JobsFailed | None) for launched in self.launches):
            return False
        here = processes.this_process()
        if not self.members or any(entry.process == here for entry in self.members):
            return False
        worked = any(e is not None and e.seen - e.began > MIN_WORK_S for e in died.values())
        has_progress = worked or count_finished(counts) > self.finished
        self.barren = 0 if has_progress else self.barren + 1
        return self.barren <= self.crew.plan.max_restarts

    def _wind_up(self, code: int | None) -> int | None:
        """Let the workers end, as a person asked or the study is complete, and end the jobs of
        those that do not. Returns the exit code, None of a complete study."""
        died = self._died(0)
        if (code := self.code or code) is None and died:
            log.warning(
                "the study is complete, though %s ended early%s", ", ".join(died), self._where
            )
        if self.code is not None:
            progress.say("stopping: workers checkpoint their trials; Ctrl-C again leaves at once")
            self.board.book.stop(self.crew.name)
        asked: list[str] | None = None
        for patience_s in (PATIENCE_S, CANCEL_S):
            latest = time.monotonic() + patience_s
            while time.monotonic() < latest:
                if self._is_idle(1.0) or (code is None and not self._is_launching()):
                    return code
                if asked != self.known:  # more may have been submitted meanwhile
                    asked = self.known
                    register.cancel(asked, only="waiting")
                    if self.code is not None:  # wakes what looks at the study rarely
                        register.cancel(asked, only="ask")
                self._pause()
            register.cancel(self._queue(0) or ())
            for entry in self._members():
                if entry.is_alive:
                    register.end(entry)
        if code is not None:
            self._leave(code)
        return code

    def _tell(self) -> None:
        """Say, once for each launch, which jobs wait, and that one was refused."""
        for launched in (one for one in self.launches[1:] if one.refused and one.due):
            launched.due = 0
            log.warning("no other could be started: %s", launched.error)
        if time.monotonic() < self.told_at:
            return
        self.told_at = math.inf
        begun = {entry.job for entry in self.members}
        if waiting := sorted((self.queued or set()) - begun):
            numbers = ",".join(job.split()[-1] for job in waiting)
            look = f"squeue --jobs={numbers}" if "slurm" in waiting[0] else f"ps {numbers}"
            progress.say(f"jobs that wait: {len(waiting)} ({look}); Ctrl-C ends them")
        elif not self.known and (missing := self._missing):
            progress.say(f"workers that have not begun: {missing}{self._where}; Ctrl-C ends them")

    @property
    def _missing(self) -> int:
        return sum(launched.count for launched in self.launches) - len(self.members)

    @property
    def _where(self) -> str:
        logs = self.other.logs
        return "" if logs is None else f" (output: {progress.shown(logs)})"

    def _pause(self) -> None:
        for launched in self.launches:
            code = launched.main.serve()
            self.code = code if isinstance(code, int) else self.code
        alive = [launched for launched in self.launches if launched.is_alive()]
        return alive[0].join(LOOK_S) if alive else time.sleep(LOOK_S)

    def _is_launching(self) -> bool:
        return any(launched.is_alive() for launched in self.launches)

    def _have_returned(self) -> bool:
        """Whether all workers ended because nothing was left for them."""
        ends = [launched.code is None and launched.error is None for launched in self.launches]
        return all(ends) and not self._is_launching()

    def _is_over(self, counts: Mapping[str, int]) -> bool:
        """Whether no trial begins any more."""
        return time.time() >= self.crew.deadline or too_many_failed(self.crew.plan, counts)

    def _members(self) -> list[Entry]:
        known = register.workers(self.board.book.study)
        self.members = [entry for entry in known if entry.crew == self.crew.name]
        return self.members

    def _queue(self, within_s: float | None = None) -> set[str] | None:
        """The jobs that wait or work, as of so many seconds ago; None where it is unknown."""
        jobs, within_s = self.other.jobs(), QUEUE_S if within_s is None else within_s
        if jobs != self.known or time.monotonic() - self.looked > within_s:
            self.known, self.queued = jobs, register.queued(jobs)
            self.looked = time.monotonic()
        return self.queued

    def _is_idle(self, within_s: float | None = None) -> bool:
        """Whether nobody works, and no job waits."""
        queued = self._queue(within_s)
        if self.known:
            submitting = any(len(self.known) < one.due for one in self.launches if one.is_alive())
            return queued == set() and not submitting
        return not self._is_launching() and not any(entry.is_alive for entry in self._members())

    def _died(self, within_s: float | None = None) -> dict[str, Entry | None]:
        """The workers that ended early and were not replaced, by name; None of one that had not
        begun."""
        queued, members = self._queue(within_s), self._members()  # in this order
        found: dict[str, Entry | None] = {}
        if self.known and queued is not None:
            last: dict[str, Entry | None] = {e.job: e for e in members if e.job is not None}
            found = {job: last.get(job) for job in self.known if job not in queued}
        elif not self.known:
            found = {entry.name: entry for entry in members if not entry.is_alive}
            if not self._is_launching():
                found |= {f"worker #{n} before it began": None for n in range(self._missing)}
        early = {name: e for name, e in found.items() if e is None or e.is_unfinished}
        return {name: e for name, e in early.items() if name not in self.replaced}

    def _leave(self, code: int) -> None:
        """Leave at once, and say what may still run; in a signal's handler the study is as it was
        last seen."""
        jobs = sorted(self.known if self.queued is None else self.queued)
        alive = [entry.described for entry in self.members if entry.is_alive]
        if jobs:
            lines = [f"may still run: {', '.join(jobs)}; end with: {register.ending(jobs)}"]
        else:
            lines = [f"may still run: {entry}" for entry in alive]
            lines += [] if alive else ["jobs that have not begun end as soon as they do"]
        for line in [*lines, "interrupted; run the same command again to resume"]:
            print(f"sweepstack: {line}", file=sys.stderr, flush=True)
        if "ray" in sys.modules:  # else agents of a local Ray run on for minutes
            ending = threading.Thread(target=sys.modules["ray"].shutdown, daemon=True)
            ending.start()
            ending.join(RAY_S)
        os._exit(code)
