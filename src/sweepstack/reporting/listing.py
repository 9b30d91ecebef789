"""`sweepstack-study list`: the studies of a storage, a line each."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

import optuna
from optuna.storages import BaseStorage
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sweepstack.config.errors import printable
from sweepstack.reporting.terminal import number
from sweepstack.study.frame import STATES, is_retried
from sweepstack.study.keys import objectives
from sweepstack.study.ranking import best_trials
from sweepstack.study.read import trials_of

ORDER = ("complete", "pruned", "failed", "running", "waiting")


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


def lines(storage: BaseStorage) -> list[Line]:
    """Read all studies, the one that was last at work first."""
    names = [study.study_name for study in storage.get_all_studies()]
    found = [_line(optuna.load_study(study_name=name, storage=storage)) for name in names]
    return sorted(found, key=lambda line: line.last or datetime.min, reverse=True)


def _line(study: optuna.Study) -> Line:
    trials = [trial for trial in trials_of(study) if not is_retried(trial)]
    states = [STATES[trial.state] for trial in trials]
    counts = {state: states.count(state) for state in ORDER if state in states}
    times = [time for t in trials for time in (t.datetime_start, t.datetime_complete) if time]
    goals = objectives(study)
    found, best = best_trials(study, trials), ""
    if found and len(goals) > 1:
        best = f"{', '.join(goals)}: {len(found)} on the front"
    elif found:
        best = f"{next(iter(goals))} {number(found[0].values[0])} (trial {found[0].number})"
    return Line(str(study.study_name), counts, best, max(times, default=None))


def show(storage: BaseStorage, console: Console) -> None:
    """Print the studies of a storage."""
    found = lines(storage)
    if not found:
        console.print("there are no studies yet")
        return
    states = [state for state in ORDER if any(state in line.counts for line in found)]
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("study", overflow="fold")
    for state in states:
        table.add_column(state, justify="right")
    table.add_column("best", overflow="fold")
    table.add_column("last at work", no_wrap=True)
    for line in found:
        when = f"{line.last:%Y-%m-%d %H:%M}" if line.last else "never"
        counts = [str(line.counts.get(state, "")) for state in states]
        table.add_row(Text(printable(line.name)), *counts, Text(printable(line.best)), when)
    console.print(table)
