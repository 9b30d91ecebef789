"""What a person sees of a sweep while it runs: done, pruned, failed, best so far and ETA.

A bar on a terminal, a line now and then elsewhere. Fed from the study, whoever runs the trials.
"""

from __future__ import annotations

import logging
import time
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Column

from sweepstack.runs.progress import console as default_console
from sweepstack.study.storage import ignored
from sweepstack.sweep.book.book import Book

_LOGGER = logging.getLogger("sweepstack")
REFRESH_S = 0.5
PLAIN_LINES = 10
"""About how many lines a sweep prints where nobody watches."""


class Scoreboard:
    """Shows one sweep. A context manager.

    Args:
        book: the study's records.
        direction: "maximize" or "minimize" of a single objective, else None.
        objective: its name.
        console: where to; stdout by default.
    """

    def __init__(
        self,
        book: Book,
        direction: str | None,
        objective: str,
        console: Console | None = None,
    ):
        self.book = book
        self.direction, self.objective = direction, objective
        self.console = console or default_console()
        self.before = book.counts()
        self._began, self._last, self._last_line = time.monotonic(), 0.0, 0.0
        self._bar = Progress(
            TextColumn("{task.fields[done]}", table_column=Column(no_wrap=True)),
            BarColumn(bar_width=20),
            TextColumn("{task.fields[rest]}", table_column=Column(no_wrap=True, ratio=1)),
            console=self.console,
            disable=not self.console.is_terminal,
            expand=True,
        )
        self._above = _Above(self.console)
        self._task = self._bar.add_task("sweep", total=book.total, done="", rest="")

    def __enter__(self) -> Scoreboard:
        self._bar.start()
        if self.console.is_terminal:
            _LOGGER.addHandler(self._above)
            _LOGGER.propagate = False
        self.refresh(always=True)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with ignored():  # or it would hide what is raised already
            self.refresh(always=True)
        _LOGGER.removeHandler(self._above)
        _LOGGER.propagate = True
        self._bar.stop()

    def refresh(self, status: str = "", *, always: bool = False) -> dict[str, int] | None:
        """Look at the study and show it, at most every `REFRESH_S` seconds; the counts, if so.

        `status` says what the running trials are at.
        """
        now = time.monotonic()
        if not always and now - self._last < REFRESH_S:
            return None
        self._last = now
        counts = self.book.counts()
        finished = _finished(counts)
        total = self.book.total
        of = "" if total is None else f"/{total}"
        states = ", ".join(
            f"{counts[state]} {state}" for state in ("pruned", "failed") if counts[state]
        )
        best = self.book.best(self.direction) if self.direction else None
        shown = [states] if states else []
        shown += [f"best {self.objective} {best:.4g}"] if best is not None else []
        eta = self._eta(finished, now)
        shown += [f"ETA {eta}"] if eta else []
        line = "  ".join(shown)
        rest = f"{line}  {status}"
        self._bar.update(self._task, completed=finished, done=f"{finished}{of} trials", rest=rest)
        if not self.console.is_terminal and self._due(finished, now):
            self.console.print(f"{finished}{of} trials  {line}", highlight=False, soft_wrap=True)
        return counts

    def _due(self, finished: int, now: float) -> bool:
        """Whether a line is due: at each tenth of the way, and not more often than every second."""
        new = finished - _finished(self.before)
        total = self.book.total
        steps = max(1, ((total or 100) - _finished(self.before)) // PLAIN_LINES)
        place = new // steps if finished != total else PLAIN_LINES + 1
        if place <= self._last_line and new:
            return False
        if not new:
            return False
        self._last_line = place
        return True

    def _eta(self, finished: int, now: float) -> str:
        """Hours, minutes and seconds until the total at the pace so far."""
        new, total = finished - _finished(self.before), self.book.total
        if not new or total is None or finished >= total:
            return ""
        seconds = round((now - self._began) / new * (total - finished))
        minutes, seconds = divmod(seconds, 60)
        hours, minutes = divmod(minutes, 60)
        return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


class _Above(logging.Handler):
    """Prints warnings above the bar: written past it, they would end up in its line."""

    def __init__(self, console: Console):
        super().__init__(logging.WARNING)
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        line = f"sweepstack: {record.getMessage()}"
        self._console.print(line, highlight=False, markup=False, soft_wrap=True)


def _finished(counts: dict[str, Any]) -> int:
    return int(counts["done"] + counts["pruned"] + counts["failed"])
