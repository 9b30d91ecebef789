"""`sweepstack-study list`, `show` and `export`: the studies of a storage, a line each; one study's
progress, best trials, pivot and what the doctor finds; its frame as a file."""

from __future__ import annotations

import io
import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
from optuna.storages import BaseStorage
from optuna.trial import TrialState
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from sweepstack import storage
from sweepstack.analysis import doctor, terminal
from sweepstack.analysis.terminal import line as print_line
from sweepstack.config import commands, errors
from sweepstack.config.errors import EnvironmentFault, InputError, nearest, one_line, printable
from sweepstack.runs import progress, register
from sweepstack.study.attributes import is_retried
from sweepstack.study.frame import STATES
from sweepstack.study.read import best_trials
from sweepstack.study.view import StudyView, open_study

QUIET_S = 30.0
"""Seconds without a sign of life after which a sweep that did not reach its total is over."""
MAX_WIDTH = 10_000
"""Characters of a line of the list that another program reads."""
RUNNING = 8
"""How many running trials are shown."""
STYLES = {"problem": "bold red", "hint": "yellow", "fact": "dim"}

# --- list ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Line:
    """What the list says of a study.

    Attributes:
        name: the study's.
        counts: trials by state; those that another replaced are left out.
        best: "val_accuracy 0.9815 (trial 7)"; of several objectives how many share the front.
        last: when a trial last began or ended, local time.
    """

    name: str
    counts: dict[str, int]
    best: str
    last: datetime | None

    @property
    def when(self) -> str:
        """`last` for people."""
        return f"{self.last:%Y-%m-%d %H:%M}" if self.last else "never"

    @classmethod
    def of(cls, view: StudyView) -> Line:
        """Read a study."""
        trials = [trial for trial in view.trials if not is_retried(trial)]
        states = [STATES[trial.state] for trial in trials]
        counts = {state: states.count(state) for state in STATES.values() if state in states}
        times = [at for t in trials for at in (t.datetime_start, t.datetime_complete) if at]
        found, best = best_trials(view.study, trials), ""
        if found and not view.has_one_objective:
            best = f"{', '.join(view.objectives)}: {len(found)} on the front"
        elif found:
            value = terminal.number(found[0].values[0])
            best = f"{view.objective} {value} (trial {found[0].number})"
        return cls(view.name, counts, best, max(times, default=None))


def show_list(opened: BaseStorage, console: Console, *, as_json: bool = False) -> None:
    """Print the studies of a storage, the one that was active last first; for programs as JSON:
    name, counts of trials by state, best, last."""
    names = optuna.get_all_study_names(opened)
    loaded = [optuna.load_study(study_name=name, storage=opened) for name in names]
    lines = [Line.of(StudyView(study, "", opened)) for study in loaded]
    lines.sort(key=lambda line: line.last or datetime.min, reverse=True)
    if as_json:
        print(json.dumps([asdict(line) for line in lines], indent=1, default=str))
        return
    if not lines:
        console.print("there are no studies yet")
        return
    states = [state for state in STATES.values() if any(state in line.counts for line in lines)]
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("study", no_wrap=True)
    for state in states:
        table.add_column(state, justify="right")
    table.add_column("best", no_wrap=True)
    table.add_column("last active", no_wrap=True)
    for line in lines:
        counts = [str(line.counts.get(state, "")) for state in states]
        table.add_row(Text(printable(line.name)), *counts, Text(printable(line.best)), line.when)
    width = console.measure(table, options=console.options.update_width(MAX_WIDTH)).maximum
    if not console.is_terminal:  # another program reads it: a line of a study stays a line
        console.width = max(console.width, width)
    elif width > console.width:  # no name is broken, and none is cut off
        for line in lines:
            facts = [f"{n} {state}" for state, n in line.counts.items()] + [line.best, line.when]
            print_line(console, line.name, "bold")
            for words in terminal.packed(list(filter(None, facts)), console.width - terminal.GAP):
                print_line(console, f"{' ' * terminal.GAP}{words}")
        return
    console.print(table)


# --- show ----------------------------------------------------------------------------------------


def show(
    name: str,
    where: str = storage.DEFAULT,
    every_s: float | None = None,
    *,
    sleep: Callable[[float], object] = time.sleep,
    now: Callable[[], datetime] = datetime.now,
) -> int:
    """Print what is known of a study.

    Args:
        name, where: as for `view.open_study`.
        every_s: seconds after which it is printed anew, until the sweep is over (`is_over`); None
            prints it once.
        sleep, now: the clock, for tests.

    Returns:
        The exit code, 0.

    Raises:
        InputError: there is no such study.
        EnvironmentFault: the storage cannot be read.
    """
    console = progress.console()
    view = open_study(name, where)
    if every_s is not None:
        began = now()
        with Live(
            console=console, auto_refresh=False, vertical_overflow="crop", transient=True
        ) as live:
            while True:
                with storage.named(view.where):
                    if is_over(view, began, now()):
                        break
                    if console.is_terminal:
                        # Not `console`, which adds the live page to all that is printed.
                        page = Console(
                            file=io.StringIO(),
                            width=console.width,
                            force_terminal=True,
                            color_system=console.color_system,  # type: ignore[arg-type]
                        )
                        with page.capture() as capture:
                            _print_progress(view, page, now())
                            _print_workers(view, page, RUNNING)
                            _print_tables(view, page)
                        live.update(Text.from_ansi(capture.get()), refresh=True)
                sleep(every_s)
                view = view.anew()
    with storage.named(view.where):
        _print_tables(view, console)
        _print_running(view, console)
        _print_findings(view, console)
    return 0


def show_json(name: str, where: str = storage.DEFAULT) -> int:
    """Print what is known of a study for programs, as JSON; return the exit code 0.

    Raises as `show`.
    """
    view = open_study(name, where)
    with storage.named(view.where):
        best = view.configurations.head(10)
        means = -best[".score"] if view.minimized else best[".score"]
        rows = [
            {
                "mean": mean,
                "std": row[".std"],
                "n": row[".runs"],
                "trials": row[".numbers"],
                "values": {key: row[key] for key in view.settings},
            }
            for mean, (_, row) in zip(means, best.iterrows(), strict=True)
        ]
        findings = doctor.examine(view) if len(view.good) else []
        found = {
            "study": view.name,
            "objectives": view.objectives,
            "trials": view.counts,
            "running": _running(view),
            "best": rows,
            "findings": [asdict(finding) for finding in findings],
            "next": doctor.next_command(view, findings),
        }
    print(json.dumps(_without_nan(found), indent=1))
    return 0


def _without_nan(node: Any) -> Any:
    """What JSON has: plain numbers, null in place of NaN."""
    if isinstance(node, dict):
        return {str(key): _without_nan(value) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return [_without_nan(value) for value in node]
    node = node.item() if hasattr(node, "item") else node
    return None if node != node or node in (math.inf, -math.inf) else node


def is_over(view: StudyView, began: datetime, now: datetime) -> bool:
    """Whether a sweep has nothing more to say.

    It has while a trial runs or waits. After that it is over at once if it has just its total of
    trials; else, since there is a moment between two trials, and before the first, once nothing
    has happened for `QUIET_S` seconds: since the last trial began or ended, or where there is
    none, since `began`.
    """
    frame = view.frame
    if len(view.finished) < len(frame):
        return False
    if len(frame) and len(frame) == view.asked.get("n_trials"):
        return True
    if frame["started"].notna().any():
        ended = frame["started"] + pd.to_timedelta(frame["duration_s"].fillna(0.0), unit="s")
        began = max(frame["started"].max(), ended.max()).to_pydatetime()
    return now - began > timedelta(seconds=QUIET_S)


def _print_progress(view: StudyView, console: Console, now: datetime) -> None:
    """How far it is, and the last evaluation of what runs."""
    total, counts = view.asked.get("n_trials"), view.frame["state"].value_counts()
    of = f"{len(view.finished):,}" + (f" of {total:,}" if isinstance(total, int) else "")
    parts = [f"{of} trials"]
    parts += [f"{counts[state]:,} {state}" for state in STATES.values() if state in counts]
    if view.frame["started"].notna().any():
        elapsed = max(int((now - view.frame["started"].min().to_pydatetime()).total_seconds()), 0)
        parts.append(f"{timedelta(seconds=elapsed)} since the first began")
    print_line(console, ", ".join(parts), "bold")
    _print_running(view, console)


def show_workers(view: StudyView) -> int:
    """Print who works on a study; return the exit code 0."""
    console = progress.console()
    with storage.named(view.where):
        if _print_workers(view, console):
            return 0
        total, before = view.asked.get("n_trials"), len(register.workers(view.study))
        text = f"nobody works on study {view.name}"
        print_line(console, f"{text}; {before} did before" if before else text)
        if isinstance(total, int) and len(view.finished) < total:
            command = commands.study("work", view.name, where=view.where)
            print_line(console, f"{total - len(view.finished):,} trials to go; join it: {command}")
    return 0


def _print_workers(view: StudyView, console: Console, most: int | None = None) -> int:
    """A table of the workers that are alive, `most` of them; how many there are."""
    alive = [entry for entry in register.workers(view.study) if entry.is_alive]
    if not alive:
        return 0
    table = Table("worker", "host", "GPU", "since", box=None, pad_edge=False)
    for title in ("trials", "per minute", "seen"):
        table.add_column(title, justify="right")
    for entry in alive[:most]:
        is_today = time.localtime(entry.began)[:3] == time.localtime()[:3]
        since = time.strftime("%H:%M" if is_today else "%Y-%m-%d", time.localtime(entry.began))
        seen = max(0.0, time.time() - entry.seen)
        gpu = one_line(entry.gpu, 16) if entry.gpu else "-"
        who, host, gpu_shown = (
            Text(one_line(text, 40)) for text in (entry.job or entry.pid, entry.host, gpu)
        )
        numbers = (str(entry.trials), f"{entry.per_minute:.1f}", f"{seen:.0f} s ago")
        table.add_row(who, host, gpu_shown, since, *numbers)
    console.print(table)
    if most is not None and len(alive) > most:
        print_line(console, f"and {len(alive) - most:,} more workers")
    return len(alive)


def _print_running(view: StudyView, console: Console) -> None:
    """The last evaluation of the trials that run, the best first."""
    running = _running(view)
    total = view.config("training.max_steps")
    of = f" of {total:,}" if isinstance(total, int) else ""
    for row in running[:RUNNING]:
        text = "running, not evaluated yet"
        if row["step"] is not None:
            value = terminal.number(row[view.objective])
            text = f"running, step {row['step']:,}{of}, {view.objective} {value}"
        print_line(console, f"trial {row['trial']}: {text}")
    if len(running) > RUNNING:
        reports = [row[view.objective] for row in running if row["step"] is not None]
        values = [value for value in reports if not math.isnan(value)]
        mean = f", mean of all {terminal.number(sum(values) / len(values))}" if values else ""
        print_line(console, f"and {len(running) - RUNNING:,} more that run{mean}")


def _running(view: StudyView) -> list[dict[str, Any]]:
    """trial, step and objective of the last evaluation of each running trial, the best first; None
    where there was none yet."""
    found = []
    for trial in view.trials:
        if trial.state == TrialState.RUNNING:
            step = max(trial.intermediate_values, default=None)
            value = None if step is None else trial.intermediate_values[step]
            found.append({"trial": trial.number, "step": step, view.objective: value})
    sign = 1 if view.minimized else -1

    def rank(row: dict[str, Any]) -> float:
        value = row[view.objective]
        return math.inf if value is None or math.isnan(value) else sign * value

    return sorted(found, key=rank)


def _print_tables(view: StudyView, console: Console) -> None:
    if view.frame.empty:
        print_line(console, f"{view.name}: no trial yet")
    else:
        terminal.show(view, console)


def _print_findings(view: StudyView, console: Console) -> None:
    """What the doctor finds; where no trial is complete, the line above has said all."""
    if not (view.frame["state"] == "complete").any():
        return
    findings = doctor.examine(view)
    if findings:
        print_line(console, "")
    for finding in findings:
        style = STYLES[finding.level]
        print_line(console, f"{finding.level}: {finding.text}", style)
        if finding.command:
            print_line(console, f"    {finding.command}", style)
    command = doctor.next_command(view, findings)
    if command:
        print_line(console, f"next: {command}")


# --- export --------------------------------------------------------------------------------------

WRITERS: dict[str, Callable[[pd.DataFrame, io.BytesIO], object]] = {
    ".csv": lambda df, file: df.to_csv(file, index=False),
    ".parquet": lambda df, file: _plain(df).to_parquet(file, index=False),
}


def check_output(path: Path) -> None:
    """Check before anything is read that a frame can be written to a file.

    Raises:
        InputError: its name ends with something else than .csv or .parquet.
        EnvironmentFault: Parquet needs pyarrow, or there is no such folder.
    """
    kind = path.suffix.lower()
    if kind not in WRITERS:
        allowed = " or ".join(WRITERS)
        raise InputError(f"--output must end with {allowed}, got '{path}'{nearest(kind, WRITERS)}")
    if kind == ".parquet" and find_spec("pyarrow") is None:
        raise EnvironmentFault(
            "writing .parquet needs the package pyarrow (pip install 'sweepstack[parquet]'); "
            ".csv needs nothing"
        )
    if not path.absolute().parent.is_dir():
        raise EnvironmentFault(f"cannot write {path}: there is no folder {path.parent}")


def write(df: pd.DataFrame, path: Path) -> None:
    """Write a frame, whole or not at all; EnvironmentFault where the file cannot be written."""
    content = io.BytesIO()
    WRITERS[path.suffix.lower()](df, content)
    errors.write_bytes(path, content.getvalue())


def _plain(df: pd.DataFrame) -> pd.DataFrame:
    """The frame with mixed columns as text: Parquet has one type per column."""
    mixed = [name for name in df if df[name].dtype == object]
    texts = {name: df[name].map(str, na_action="ignore") for name in mixed}
    plain = df.assign(**texts)
    plain.attrs = {}
    return plain
