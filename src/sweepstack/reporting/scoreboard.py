"""How far a sweep is, shown while it runs: a table on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from optuna.trial import TrialState
from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Column, Table

from sweepstack import storage
from sweepstack.runs import progress
from sweepstack.study.book.book import Book

_LOGGER = logging.getLogger("sweepstack")

REFRESH_S = 0.5
PACE_S, MIN_PACE_S = 20.0, 1.0
"""Seconds over which the pace of training is taken, at most and at least."""
PLAIN_LINES, PLAIN_S = 10, 10.0
"""About how many lines a sweep prints without a terminal, and after how many seconds one more."""
MAX_SHOWN = 5
"""Trials in training that are shown."""
CURVE, BARS = 24, "▁▂▃▄▅▆▇█"


def count_finished(counts: Mapping[str, int]) -> int:
    """How many trials of a study will not run again."""
    return counts["done"] + counts["pruned"] + counts["failed"]


@dataclass
class Live:
    """How far a trial in training is: its step of so many, and the objective at its evaluations."""

    number: int
    step: int
    total: int
    values: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Status:
    """How far the trials of one worker are.

    Attributes:
        trials: those in training.
        steps_per_s, samples_per_s: of all of them together, lately; 0 at first.
        per_trial: steps that a trial takes, the mean of those that ended or are planned.
        memory: bytes of the GPU that are allocated; None without one.
    """

    trials: Sequence[Live] = ()
    steps_per_s: float = 0.0
    samples_per_s: float = 0.0
    per_trial: float = 0.0
    memory: int | None = None

    def __str__(self) -> str:
        """In one line."""
        if not self.trials:
            return ""
        first, parts = self.trials[0], [f"{len(self.trials)} in training"]
        planned = sum(trial.total for trial in self.trials)
        if len(self.trials) == 1:
            parts = [f"trial {first.number} step {first.step}" + f"/{planned}" * bool(planned)]
        elif planned:
            share = sum(trial.step for trial in self.trials) / planned
            parts.append(f"{100 * share:.0f} % done")
        if self.steps_per_s:
            parts.append(f"{self.steps_per_s:,.0f} steps/s")
        return ", ".join(parts)

    def seconds_left(self, waiting: int) -> float | None:
        """Until these trials, and so many others, have taken their steps; None if unknown."""
        if not self.steps_per_s:
            return None
        own = sum(trial.total - trial.step for trial in self.trials)
        return (own + waiting * self.per_trial) / self.steps_per_s


class Pace:
    """How fast trials are trained: steps of all trials in the last seconds."""

    def __init__(self) -> None:
        self._blocks = deque[tuple[float, int, int]]()  # when each ended, its steps and samples
        self._ended, self._steps = 0, 0

    def add(self, steps: int, batch_size: int) -> None:
        """So many steps were taken, of all trials together."""
        now = time.monotonic()
        self._blocks.append((now, steps, steps * batch_size))
        while len(self._blocks) > 2 and now - self._blocks[1][0] > PACE_S:
            self._blocks.popleft()

    def ended(self, trial: Live) -> None:
        """A trial is over."""
        self._ended, self._steps = self._ended + 1, self._steps + trial.step

    def status(self, trials: Sequence[Live], memory: int | None) -> Status:
        """What to say of these trials."""
        blocks = list(self._blocks)
        seconds = blocks[-1][0] - blocks[0][0]  # the first block has no known beginning
        if seconds < MIN_PACE_S:
            return Status(trials, memory=memory)
        steps, samples = (sum(block[at] for block in blocks[1:]) / seconds for at in (1, 2))
        counted = self._ended + len(trials)
        mean = (self._steps + sum(trial.total for trial in trials)) / max(counted, 1)
        return Status(trials, steps, samples, mean, memory)


class Scoreboard:
    """Shows one sweep: done, pruned, failed, best so far, ETA, and the trials in training. A
    context manager.

    On a terminal a bar and a table of the best trials in training. Elsewhere lines: ten, and more
    where ten are rarer than every `PLAIN_S` seconds. Reads the study, whoever runs the trials.

    Args:
        book: the study's records.
        direction: "maximize" or "minimize" of a single objective, else None.
        objective: its name.
        console: where to; stdout by default.

    Attributes:
        reads: whether to read running trials from the study, as other processes train them.
    """

    def __init__(
        self, book: Book, direction: str | None, objective: str, console: Console | None = None
    ):
        self.book = book
        self.direction, self.objective = direction, objective
        self.console = console or progress.console()
        self.before, self.reads = count_finished(book.counts()), False
        self._status = Status()
        self._began = self._printed = time.monotonic()
        self._last, self._last_line = 0.0, 0
        self._bar = _Bar(
            TextColumn("{task.fields[done]}", table_column=Column(no_wrap=True)),
            BarColumn(bar_width=20),
            TextColumn("{task.fields[rest]}", table_column=Column(no_wrap=True, ratio=1)),
            console=self.console,
            disable=not self.console.is_terminal,
            expand=True,
            transient=False,
        )
        self._warnings = _Warnings(self.console)
        self._task = self._bar.add_task("sweep", total=book.total, done="", rest="")

    def __enter__(self) -> Scoreboard:
        self._bar.start()
        if self.console.is_terminal:
            _LOGGER.addHandler(self._warnings)
            _LOGGER.propagate = False
        self.refresh(always=True)
        return self

    def __exit__(self, *raised: object) -> None:
        self.reads = False
        with storage.ignored():  # or it would hide what is raised already
            self.refresh(Status(), always=True)
        _LOGGER.removeHandler(self._warnings)
        _LOGGER.propagate = True
        self._bar.stop()

    def refresh(
        self, status: Status | None = None, *, always: bool = False
    ) -> dict[str, int] | None:
        """Read the study and show it, at most every `REFRESH_S` seconds; the counts, if so.

        `status` says how far the running trials are; None leaves what was said last.
        """
        now = time.monotonic()
        self._status = status or self._status
        if not always and now - self._last < REFRESH_S:
            return None
        self._last = now
        counts = None
        with storage.Tried():  # nothing is shown while it does not answer
            counts = self._show(now)
        return counts

    def _show(self, now: float) -> dict[str, int]:
        counts, total = self.book.counts(), self.book.total
        if self.reads:
            self._status = self._read()
        ended = count_finished(counts)
        done = f"{ended}{'' if total is None else f'/{total}'} trials"
        others = [f"{counts[state]} {state}" for state in ("pruned", "failed") if counts[state]]
        is_due = not self.console.is_terminal and self._is_due(ended, now)
        is_seen = is_due or self.console.is_terminal  # the best costs a look at all trials
        best = self.book.best(self.direction) if self.direction and is_seen else None
        facts = [
            ", ".join(others),
            "" if best is None else f"best {self.objective} {_number(best)}",
        ]
        line = "  ".join(filter(None, [*facts, self._eta(ended, now)]))
        said = f"{line}  {self._status}".strip()
        self._bar.update(self._task, completed=ended, done=done, rest=said)
        self._bar.below = _table(self._status, self.objective, self.direction)
        if is_due:
            self._printed = now
            text = f"{done}  {line}" if ended == total else f"{done}  {said}"
            self.console.print(text, highlight=False, soft_wrap=True)
        return counts

    def _read(self) -> Status:
        """The running trials as the study has them."""
        running = (TrialState.RUNNING,)
        trials = self.book.storage.get_all_trials(self.book.study_id, False, running)
        found = []
        for trial in trials:
            reports = [value for _, value in sorted(trial.intermediate_values.items())]
            found.append(Live(trial.number, max(trial.intermediate_values, default=0), 0, reports))
        return Status(found)

    def _is_due(self, ended: int, now: float) -> bool:
        """Whether a line is due: at each tenth of the way, at the end, and where trials train for
        long, every `PLAIN_S` seconds, or a twentieth of the time so far."""
        new, total = ended - self.before, self.book.total
        tenth = max(1, ((total or 100) - self.before) // PLAIN_LINES)
        place = new // tenth if ended != total else PLAIN_LINES + 1
        if new and place > self._last_line:
            self._last_line = place
            return True
        quiet = now - self._printed
        return bool(self._status.trials) and quiet >= max(PLAIN_S, (now - self._began) / 20)

    def _eta(self, ended: int, now: float) -> str:
        """Hours, minutes and seconds until the total: by the steps that are left, where they are
        known, else at the pace of trials so far."""
        new, total = ended - self.before, self.book.total
        if total is None or ended >= total:
            return ""
        left = self._status.seconds_left(total - ended - len(self._status.trials))
        if left is None and not new:
            return ""
        if left is None:
            left = (now - self._began) / new * (total - ended)
        minutes, seconds = divmod(round(left), 60)
        hours, minutes = divmod(minutes, 60)
        return f"ETA {hours}:{minutes:02}:{seconds:02}" if hours else f"ETA {minutes}:{seconds:02}"


class _Bar(Progress):
    """A progress bar with something below it."""

    below: RenderableType | None = None

    def get_renderables(self) -> Iterable[RenderableType]:
        """The bar, and what is below."""
        yield from super().get_renderables()
        if self.below is not None:
            yield self.below


def _table(status: Status, objective: str, direction: str | None) -> Table | None:
    """The best trials in training, each with its curve, and the mean of all."""
    if not status.trials:
        return None
    sign = -1 if direction == "minimize" else 1

    def rank(trial: Live) -> float:
        """The largest is the best; what has no value, or none any more (NaN), is the last."""
        value = sign * trial.values[-1] if trial.values and direction else math.nan
        return -math.inf if math.isnan(value) else value

    trials = sorted(status.trials, key=rank, reverse=True)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for name in ("trial", "step", objective if direction else ""):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    scale = [value for trial in trials[:MAX_SHOWN] for value in trial.values[-CURVE:]]
    for trial in trials[:MAX_SHOWN]:
        value = _number(trial.values[-1]) if trial.values and direction else ""
        table.add_row(str(trial.number), _steps(trial), value, _curve(trial.values, scale))
    if len(status.trials) > MAX_SHOWN:
        last = [trial.values[-1] for trial in trials if rank(trial) > -math.inf]
        mean = _number(math.fsum(last) / len(last)) if last else ""
        table.add_row(f"mean of {len(status.trials)}", "", mean, "", style="dim")
    if status.samples_per_s:
        memory = "" if status.memory is None else f", {status.memory / 2**30:.1f} GiB on the GPU"
        table.caption = f"{status.samples_per_s:,.0f} samples/s{memory}"
        table.caption_justify = "left"
    return table


def _number(value: float) -> str:
    """With as many decimals as in the table at the end, so that a column lines up."""
    return f"{value:.4f}" if value == 0 or 1e-3 <= abs(value) < 1e5 else f"{value:.4g}"


def _steps(trial: Live) -> str:
    return f"{trial.step:,}/{trial.total:,}" if trial.total else f"{trial.step:,}"


def _curve(values: Sequence[float], scale: Sequence[float]) -> str:
    """The last evaluations as bars."""
    shown = [value for value in values[-CURVE:] if math.isfinite(value)]
    known = [value for value in scale if math.isfinite(value)]
    if len(shown) < 2:
        return ""
    low, span = min(known), max(known) - min(known) or 1.0
    return "".join(BARS[round((value - low) / span * (len(BARS) - 1))] for value in shown)


class _Warnings(logging.Handler):
    """Prints warnings above the bar: written past it, they would end up in its line."""

    def __init__(self, console: Console):
        super().__init__(logging.WARNING)
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        line = f"sweepstack: {record.getMessage()}"
        self._console.print(line, highlight=False, markup=False, soft_wrap=True)
