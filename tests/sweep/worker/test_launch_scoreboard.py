"""What is shown of a sweep while it runs."""

from __future__ import annotations

import logging
import re
from io import StringIO
from typing import Any

import pytest
from rich.console import Console

from sweepstack.sweep.worker import launch
from sweepstack.sweep.worker.launch import Scoreboard


class Study:
    """Stands for a book whose numbers a test sets."""

    def __init__(self, total: int | None, done: int = 0):
        self.total, self.value = total, None
        self.now = {"done": done, "pruned": 0, "failed": 0, "running": 0, "waiting": 0}

    def counts(self) -> dict[str, int]:
        return dict(self.now)

    def best(self, direction: str) -> float | None:
        assert direction == "maximize"
        return self.value


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """One number: the seconds that have passed."""
    now = [1000.0]
    monkeypatch.setattr(launch.time, "monotonic", lambda: now[0])
    return now


def board(study: Any, direction: str | None = "maximize", **console: Any) -> Scoreboard:
    stdout = Console(file=StringIO(), width=100, **console)
    return Scoreboard(study, direction, "val_accuracy", stdout)


def text(shown: Scoreboard) -> str:
    return str(shown.console.file.getvalue())  # type: ignore[attr-defined]


def test_a_line_says_done_pruned_failed_best_and_eta(clock: list[float]) -> None:
    study = Study(total=20)
    with board(study) as shown:
        clock[0] += 10
        study.now |= {"done": 2, "pruned": 2, "failed": 1}
        study.value = 0.91234
        shown.refresh()
        assert text(shown).splitlines() == [
            "5/20 trials  2 pruned, 1 failed  best val_accuracy 0.9123  ETA 0:30"
        ]


def test_about_ten_lines_however_many_trials(clock: list[float]) -> None:
    study = Study(total=1000)
    with board(study) as shown:
        for _ in range(1000):
            clock[0] += 1
            study.now["done"] += 1
            shown.refresh()
    lines = text(shown).splitlines()
    assert 9 <= len(lines) <= 12
    assert lines[-1].startswith("1000/1000 trials")


def test_trials_of_an_earlier_start_do_not_count_for_the_pace(clock: list[float]) -> None:
    study = Study(total=100, done=80)
    with board(study) as shown:
        clock[0] += 60
        study.now["done"] = 90
        shown.refresh()
        assert "ETA 1:00" in text(shown)
        clock[0] += 3600 * 3
        study.now["done"] = 92
        shown.refresh()
        assert "ETA 2:00:40" in text(shown)


def test_it_looks_at_the_study_twice_a_second_at_most(clock: list[float]) -> None:
    with board(Study(total=10)) as shown:
        assert shown.refresh() is None
        clock[0] += 0.6
        assert shown.refresh() is not None


def test_a_budget_other_than_trials_and_several_objectives(clock: list[float]) -> None:
    study = Study(total=None)
    with board(study, direction=None) as shown:
        clock[0] += 10
        study.now["done"] = 30
        shown.refresh()
    assert text(shown).splitlines()[0] == "30 trials  "


def test_a_terminal_has_a_bar_with_what_the_running_trial_is_at(clock: list[float]) -> None:
    study = Study(total=20)
    with board(study, force_terminal=True) as shown:
        clock[0] += 10
        study.now["done"] = 5
        logging.getLogger("sweepstack.sweep.worker").warning("trial %d failed", 3)
        shown.refresh("trial 5 step 10/300")
        shown._bar.refresh()  # what ten times a second does
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text(shown))
    assert "5/20 trials" in plain
    assert "trial 5 step 10/300" in plain
    assert "sweepstack: trial 3 failed\n" in re.sub(" +\n", "\n", plain)
    assert logging.getLogger("sweepstack").propagate
