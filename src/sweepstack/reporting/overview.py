"""`sweepstack-study show`: how far a study is, its best trials, the pivot of what was swept, and
what
the doctor finds."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime, timedelta

import pandas as pd
from optuna.trial import FrozenTrial, TrialState
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from sweepstack.config.errors import printable
from sweepstack.reporting import doctor, terminal
from sweepstack.runs import progress
from sweepstack.study import storage
from sweepstack.study.frame import STATES
from sweepstack.study.keys import objectives
from sweepstack.study.library import OpenStudy, open_study
from sweepstack.study.read import trials_of

QUIET_S = 30.0
"""Seconds without a sign of life after which a sweep that did not reach its total is over."""
RUNNING = 8
"""How many running trials are shown."""
STYLES = {"problem": "bold red", "hint": "yellow", "fact": "dim"}


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
        name, where: as for `library.open_study`.
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
    opened = open_study(name, where)
    if every_s is not None:
        began = now()
        with Live(
            console=console, auto_refresh=False, vertical_overflow="crop", transient=True
        ) as live:
            while True:
                with storage.named(opened.where):
                    if is_over(opened, began, now()):
                        break
                    if console.is_terminal:
                        live.update(_drawn(opened, console, now()), refresh=True)
                sleep(every_s)
                opened = OpenStudy(opened.study, opened.where)  # read anew
    with storage.named(opened.where):
        _print(opened, console)
        _print_findings(opened, console)
    return 0


def is_over(opened: OpenStudy, began: datetime, now: datetime) -> bool:
    """Whether a sweep has nothing more to say.

    It has while a trial runs or waits. After that it is over at once if it has just its total of
    trials; else, since there is a moment between two trials, and before the first, once nothing
    has happened for `QUIET_S` seconds: since the last trial began or ended, or where there is
    none, since `began`.
    """
    frame = opened.frame
    if set(frame["state"]) & {"running", "waiting"}:
        return False
    if len(frame) and len(frame) == opened.asked.get("n_trials"):
        return True
    if frame["started"].notna().any():
        ended = frame["started"] + pd.to_timedelta(frame["duration_s"].fillna(0.0), unit="s")
        began = max(frame["started"].max(), ended.max()).to_pydatetime()
    return now - began > timedelta(seconds=QUIET_S)


def _drawn(opened: OpenStudy, console: Console, now: datetime) -> Group:
    with console.capture() as capture:
        _print_progress(opened, console, now)
        _print(opened, console)
    return Group(Text.from_ansi(capture.get()))


def _print_progress(opened: OpenStudy, console: Console, now: datetime) -> None:
    """How far it is, and the last evaluation of what runs."""
    frame, total = opened.frame, opened.asked.get("n_trials")
    counts = frame["state"].value_counts()
    finished = sum(int(counts.get(state, 0)) for state in ("complete", "pruned", "failed"))
    parts = [
        f"{finished:,} of {total:,} trials" if isinstance(total, int) else f"{finished:,} trials"
    ]
    parts += [f"{counts[state]:,} {state}" for state in STATES.values() if state in counts]
    if frame["started"].notna().any():
        elapsed = max(int((now - frame["started"].min().to_pydatetime()).total_seconds()), 0)
        parts.append(f"{timedelta(seconds=elapsed)} since the first began")
    _line(console, ", ".join(parts), "bold")
    running = [trial for trial in trials_of(opened.study) if trial.state == TrialState.RUNNING]
    goal = next(iter(objectives(opened.study)))
    for trial in running[:RUNNING]:
        _line(console, f"trial {trial.number}: {_latest(trial, goal)}")
    if len(running) > RUNNING:
        _line(console, f"and {len(running) - RUNNING:,} more")


def _latest(trial: FrozenTrial, goal: str) -> str:
    if not trial.intermediate_values:
        return "not evaluated yet"
    step = max(trial.intermediate_values)
    return f"step {step:,}, {goal} {terminal.number(trial.intermediate_values[step])}"


def _print(opened: OpenStudy, console: Console) -> None:
    if opened.frame.empty:
        _line(console, f"{opened.name}: no trial yet")
    else:
        terminal.show(opened.study, console, opened.frame)


def _print_findings(opened: OpenStudy, console: Console) -> None:
    """What the doctor finds; where no trial is complete, the line above has said all."""
    if not (opened.frame["state"] == "complete").any():
        return
    found = doctor.examine(opened)
    if found:
        _line(console, "")
    for finding in found:
        style = STYLES[finding.level]
        _line(console, f"{finding.level}: {finding.text}", style)
        if finding.command:
            _line(console, f"    {finding.command}", style)
    command = doctor.next_command(opened, found)
    if command:
        _line(console, f"next: {command}")


def _line(console: Console, text: str, style: str = "") -> None:
    console.print(Text(printable(text), style=style), soft_wrap=True)
