"""What a person sees of a run, and how it is interrupted.

A run shows a progress bar with ETA, or plain lines, and a table at the end, all on stdout. A sweep
shares its console and its handling of signals.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from multiprocessing import resource_tracker
from pathlib import Path
from types import FrameType
from typing import Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column, Table

from sweepstack.config import commands
from sweepstack.config.errors import EXIT_INTERRUPTED, EXIT_TERMINATED
from sweepstack.training.spec import Monitor, TrialSpec

log = logging.getLogger(__name__)

MAX_COLUMNS = 4
"""More measures than that are printed below each other."""
PLAIN_LINES = 10
"""About how many evaluations of a run are printed where nobody watches."""


@contextlib.contextmanager
def on_signal(
    first: Callable[[int], object], second: Callable[[int], object] = os._exit
) -> Iterator[None]:
    """Call `first` with the exit code at Ctrl-C or SIGTERM, `second` when either comes again."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    codes = {signal.SIGINT: EXIT_INTERRUPTED, signal.SIGTERM: EXIT_TERMINATED}
    before = {number: signal.getsignal(number) for number in codes}
    calls = [second, first]

    def handle(number: int, frame: FrameType | None) -> None:
        call = calls.pop() if len(calls) > 1 else second  # popped before it is called: it may raise
        call(codes[signal.Signals(number)])

    for number in codes:
        signal.signal(number, handle)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def preempted(ask: Callable[[int], object]) -> Iterator[None]:
    """Call `ask` with the exit code at the signal by which submitit learns that its job is about to
    end. What submitit does then, such as to requeue the job, it does at the end of the block."""
    number = getattr(signal, f"SIG{os.environ.get('SUBMITIT_PREEMPT_SIGNAL', 'USR2')}", None)
    is_main = threading.current_thread() is threading.main_thread()
    requeue = signal.getsignal(number) if number is not None and is_main else None
    if number is None or not callable(requeue):
        yield
        return
    came: list[tuple[Any, ...]] = []

    def handle(*signalled: Any) -> None:
        came.append(signalled)
        ask(EXIT_TERMINATED)

    signal.signal(number, handle)
    try:
        yield
    finally:
        signal.signal(number, requeue)
    if came:
        with contextlib.suppress(RuntimeError):  # it is not requeued: the sweep starts another
            requeue(*came[0])


class MainThread:
    """Calls that another thread leaves to the main one, as handlers of signals are set there."""

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]]] = queue.SimpleQueue()

    def call(self, work: Callable[[], Any]) -> Any:
        """What `work` returns or raises, once the main thread has called it."""
        future: Future[Any] = Future()
        self._calls.put((work, future))
        return future.result()

    def serve(self) -> Any:
        """Do what waits, in the main thread, and return what it returned; None if it raised."""
        with contextlib.suppress(queue.Empty):
            work, future = self._calls.get_nowait()
            try:
                future.set_result(work())
            except BaseException as error:
                future.set_exception(error)
            else:
                return future.result()
        return None


@contextlib.contextmanager
def every(seconds: float, call: Callable[[], object], name: str) -> Iterator[None]:
    """Call `call` in a thread of that name every so many seconds; what it raises is dropped."""
    over = threading.Event()

    def repeat() -> None:
        while not over.wait(seconds):
            with contextlib.suppress(Exception):
                call()

    thread = threading.Thread(target=repeat, name=name, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


class Watch(Monitor):
    """Shows one run: a bar on a terminal, about ten lines elsewhere. A context manager."""

    def __init__(self, console: Console | None = None):
        self.console = console or _Patient()
        self._exit_code: int | None = None
        self._total, self._last_line = 1, -1.0
        self._bar = Progress(
            MofNCompleteColumn(table_column=Column(no_wrap=True)),
            BarColumn(bar_width=20),
            TextColumn("ETA", table_column=Column(no_wrap=True)),
            TimeRemainingColumn(table_column=Column(no_wrap=True)),
            TextColumn("{task.fields[latest]}", table_column=Column(no_wrap=True, ratio=1)),
            console=self.console,
            disable=not self.console.is_terminal,
            expand=True,
        )
        self._task = self._bar.add_task("train", total=None, latest="")

    def __enter__(self) -> Watch:
        self._bar.start()
        return self

    def __exit__(self, *raised: object) -> None:
        self._bar.stop()

    def started(
        self, spec: TrialSpec, step: int, total_steps: int, history: Sequence[Mapping[str, float]]
    ) -> None:
        """Say what begins; set the bar's length."""
        config = spec.config
        parts = (config.model, config.data, config.optimizer)
        what = "{} on {}, {}".format(*map(_named, parts))
        self._print(f"training {what}, {total_steps} steps, seed {config.training.seed}")
        self._total, self._last_line = total_steps, -1.0
        self._bar.update(self._task, total=total_steps, completed=step)
        if step:
            self._print(f"resumed at step {step} of {total_steps}")

    def stepped(self, steps: int, specs: Sequence[TrialSpec]) -> None:
        """Move the bar."""
        self._bar.advance(self._task, steps)

    def report(self, spec: TrialSpec, row: Mapping[str, float]) -> None:
        """Show the metrics of an evaluation."""
        names = [name for name in row if name.startswith(("train_", "val_"))]
        # The last one first: it is the one that a narrow terminal has room for.
        latest = "  ".join(f"{name} {row[name]:.4f}" for name in reversed(names))
        self._bar.update(self._task, latest=latest)
        metrics = "  ".join(f"{name} {row[name]:.4f}" for name in names)
        line = f"step {row['step']}/{self._total}  epoch {row['epoch']:.1f}  {metrics}"
        log.info("%s", line)
        done = row["step"] / self._total
        due = self._last_line < 0 or done >= 1 or done - self._last_line >= 1 / PLAIN_LINES
        if not self.console.is_terminal and due:
            self._last_line = done
            self._print(line)

    def interrupt(self, exit_code: int) -> None:
        """Let the run checkpoint and stop; signal handlers call it."""
        self._exit_code = exit_code

    def interrupted(self) -> int | None:
        """The exit code of a signal."""
        return self._exit_code

    def _print(self, line: str) -> None:
        say(line, self.console)


def _named(part: Any) -> str:
    """An option's name; of custom, torchvision and hub the class or function behind it."""
    behind = {"custom": "target", "torchvision": "arch", "hub": "entry"}
    return str(getattr(part, behind.get(part.name, "name")))


def show_result(summary: Mapping[str, Any], folder: Path) -> None:
    """Print the table of validation and test metrics of the best state, and where all lies.

    Args:
        summary: what metrics.json holds.
        folder: the run's folder, as a person would type it.
    """
    console = _Patient()
    measures = [name[4:] for name in summary if name.startswith("val_")]
    splits = {"validation": "val", "test": "test"}
    table = Table("best state", box=None, pad_edge=False)
    rows = []
    for title, split in splits.items():
        values = [summary.get(f"{split}_{measure}") for measure in measures]
        if any(value is not None for value in values):
            rows.append([title, *("" if v is None else f"{v:.4f}" for v in values)])
    names = measures
    if len(measures) > MAX_COLUMNS:  # stands better than it lies
        names = [row[0] for row in rows]
        rows = [list(row) for row in zip(measures, *(row[1:] for row in rows), strict=True)]
    for name in names:
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(*row)
    console.print(table)
    if "seeds" in summary:
        each = ", ".join(f"{value:.4f}" for value in summary["values"])
        say(
            f"means over {summary['seeds']} seeds; {summary['objective']}: "
            f"{each} (standard deviation {summary['std']:.4f})",
            console,
        )
    if summary["stopped"]:
        say(f"stopped early: {summary['stopped']}", console)
    where = "the first seed's best" if "seeds" in summary else "best"
    say(
        f"{where} {summary['objective']} at step {summary['best_step']} of {summary['steps']}, "
        f"{summary['num_parameters']:,} parameters, {summary['seconds']:.1f} s on "
        f"{summary['device']}",
        console,
    )
    say(f"results: {folder}", console)


def console() -> Console:
    """Stdout, whose reader may go away: a display must not end a run."""
    return _Patient()


def shown(folder: Path) -> Path:
    """The folder as a person would type it."""
    here = Path.cwd()
    return folder.relative_to(here) if folder.is_relative_to(here) else folder


def say(text: str, to: Console | None = None) -> None:
    """Print a line as it is, however long; on stdout by default."""
    (to or console()).print(text, highlight=False, markup=False, soft_wrap=True)


class _Patient(Console):
    """A console whose reader may go away: a display must not end a run."""

    def print(self, *objects: Any, **settings: Any) -> None:
        try:
            super().print(*objects, **settings)
        except OSError:
            self.on_broken_pipe()

    def on_broken_pipe(self) -> None:
        self.quiet = True
        commands.close_stdout()


@contextlib.contextmanager
def without_interrupts() -> Iterator[None]:
    """Block Ctrl-C; a process that starts now does not get it before it wants to."""
    resource_tracker.ensure_running()  # else `Process.start` starts it, and unblocks Ctrl-C then
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Numbered:
    """A stream whose lines begin with the number of the worker that writes them."""

    def __init__(self, stream: TextIO, place: int):
        self._stream, self._prefix, self._left = stream, f"worker {place}: ", ""

    def write(self, text: str) -> int:
        """Write whole lines; the last one waits for its end."""
        *lines, self._left = (self._left + text).split("\n")
        self._stream.write("".join(f"{self._prefix}{line}\n" for line in lines))
        return len(text)

    def flush(self) -> None:
        """Write what waits as a line."""
        if self._left:
            self.write("\n")
        self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
