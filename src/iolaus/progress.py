"""What a person sees of a run: a progress bar with ETA, or plain lines, and a table at the end.

Called by `app.py`. Everything goes to stdout; errors go to stderr elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from iolaus.monitor import Monitor
from iolaus.spec import TrialResult, TrialSpec

PLAIN_LINES = 10
"""About how many evaluations of a run are printed where nobody watches."""


class Watch(Monitor):
    """Shows one run: a bar on a terminal, about ten lines elsewhere. A context manager."""

    def __init__(self, console: Console | None = None):
        self.console = console or Console()
        self.stop_code: int | None = None
        self._total, self._last_line = 1, -1.0
        self._bar = Progress(
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[latest]}"),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self._task = self._bar.add_task("train", total=None, latest="")

    def __enter__(self) -> Watch:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def started(self, spec: TrialSpec, step: int, total_steps: int) -> None:
        """Set the bar's length; say so when a run goes on from a checkpoint."""
        self._total = total_steps
        self._bar.update(self._task, total=total_steps, completed=step)
        if step:
            self._print(f"resumed at step {step} of {total_steps}")

    def stepped(self, steps: int) -> None:
        """Move the bar."""
        self._bar.advance(self._task, steps)

    def report(self, spec: TrialSpec, row: Mapping[str, float]) -> None:
        """Show the metrics of an evaluation."""
        names = [name for name in row if name.startswith(("train_", "val_"))]
        latest = "  ".join(f"{name} {row[name]:.4f}" for name in names)
        self._bar.update(self._task, latest=latest)
        done = row["step"] / self._total
        due = self._last_line < 0 or done >= 1 or done - self._last_line >= 1 / PLAIN_LINES
        if not self.console.is_terminal and due:
            self._last_line = done
            self._print(f"step {row['step']:.0f}/{self._total}  epoch {row['epoch']:.1f}  {latest}")

    def interrupted(self) -> int | None:
        """The exit code that a signal handler left in `stop_code`."""
        return self.stop_code

    def _print(self, line: str) -> None:
        self.console.print(line, highlight=False, soft_wrap=True)


def show_result(result: TrialResult, folder: Path, console: Console | None = None) -> None:
    """Print the table of validation and test metrics and where everything lies."""
    console = console or Console()
    measures = [name[4:] for name in result.metrics if name.startswith("val_")]
    splits = {"validation": "val", "test": "test"}
    table = Table(box=None, pad_edge=False)
    table.add_column("")
    for measure in measures:
        table.add_column(measure, justify="right")
    for title, split in splits.items():
        values = [result.metrics.get(f"{split}_{measure}") for measure in measures]
        if any(value is not None for value in values):
            table.add_row(title, *("" if v is None else f"{v:.4f}" for v in values))
    console.print(table)
    console.print(
        f"best at step {result.best_step} of {result.steps}, {result.num_parameters:,} parameters, "
        f"{result.seconds:.1f} s on {result.device}",
        highlight=False,
        soft_wrap=True,
    )
    console.print(f"all of it is in {folder}", highlight=False, soft_wrap=True)
