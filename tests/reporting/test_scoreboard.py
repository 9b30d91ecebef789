"""What is shown of a sweep while it runs."""

from __future__ import annotations

import logging
import re
from io import StringIO
from typing import Any

import optuna
import pytest
from rich.console import Console

from sweepstack.reporting import scoreboard as launch
from sweepstack.reporting.scoreboard import Live, Scoreboard, Status


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
        shown.refresh(Status([Live(5, 10, 300)]))
        shown._bar.refresh()  # what ten times a second does
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text(shown))
    assert "5/20 trials" in plain
    assert "trial 5 step 10/300" in plain
    assert "sweepstack: trial 3 failed\n" in re.sub(" +\n", "\n", plain)
    assert logging.getLogger("sweepstack").propagate


def plain(shown: Scoreboard) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text(shown))


STACK = Status(
    [
        *(Live(n, 40, 100, [0.1, 0.2, 0.1 * n]) for n in range(8)),
        Live(8, 40, 100, []),
    ],
    steps_per_s=30.0,
    samples_per_s=1920.0,
    per_trial=100.0,
    memory=3 * 2**29,
)


def test_a_terminal_has_a_table_of_the_best_trials_in_training(clock: list[float]) -> None:
    with board(Study(total=20), force_terminal=True) as shown:
        clock[0] += 10
        shown.refresh(STACK)
        shown._bar.refresh()
        said = plain(shown)
    rows = [line.split() for line in said.splitlines() if re.search("[▁▂▃▄▅▆▇█]", line)]
    assert [row[:3] for row in rows[-5:]] == [
        [str(n), "40/100", f"{0.1 * n:.4f}"] for n in (7, 6, 5, 4, 3)
    ]
    assert rows[-5][3] == "▁▂█"
    assert re.search(r"mean of 9 +0\.3500", said)
    assert "1,920 samples/s, 1.5 GiB on the GPU" in said
    assert "9 in training, 40 % done, 30 steps/s" in said
    assert "ETA 0:55" in said  # 9 times 60 steps, and 11 trials of 100


@pytest.mark.parametrize(("direction", "best"), [("maximize", "4"), ("minimize", "1")])
def test_trials_whose_value_is_nan_are_last_and_no_part_of_the_mean(direction: str, best: str):
    nan = float("nan")
    values = [nan, 0.1, nan, 0.2, 0.8, 0.4, 0.5, nan]
    status = Status([Live(n, 1, 2, [0.3, value]) for n, value in enumerate(values)])
    table = launch._table(status, "val_accuracy", direction)
    assert table is not None
    numbers, _, shown, _ = (list(column.cells) for column in table.columns)
    assert numbers[0] == best
    assert shown[-1] == "0.4000"
    assert "nan" not in shown


def test_trials_with_several_objectives_have_no_order():
    table = launch._table(Status([Live(0, 1, 2, [0.1, 0.2])]), "a, b", None)
    assert table is not None
    assert list(table.columns[0].cells) == ["0"]


def test_the_smallest_are_the_best_where_the_objective_is_minimized() -> None:
    study = Study(total=20)
    study.best = lambda direction: None  # type: ignore[method-assign]
    with board(study, "minimize", force_terminal=True) as shown:
        shown.refresh(STACK, always=True)
        shown._bar.refresh()
        rows = [line.split() for line in plain(shown).splitlines() if "40/100" in line]
    assert rows[-5][0] == "0"


def test_without_a_terminal_a_long_stack_has_a_line_every_ten_seconds_and_later_fewer(
    clock: list[float],
) -> None:
    with board(Study(total=9)) as shown:
        for _ in range(1200):
            clock[0] += 0.5
            shown.refresh(STACK)
    lines = text(shown).splitlines()
    assert 20 <= len(lines) <= 45
    assert "9 in training, 40 % done" in lines[0]


def test_trials_of_other_processes_are_read_from_the_study(clock: list[float]) -> None:
    study = optuna.create_study(direction="maximize")
    for values in ((0.1, 0.3), (0.2, 0.4), ()):
        trial = study.ask()
        for step, value in enumerate(values, 1):
            trial.report(value, 10 * step)
    book = Study(total=9)
    book.storage, book.study_id = study._storage, study._study_id  # type: ignore[attr-defined]
    with board(book, force_terminal=True) as shown:
        shown.reads = True
        shown.refresh(always=True)
        shown._bar.refresh()
        said = plain(shown)
    assert "3 in training" in said
    rows = [line.split() for line in said.splitlines() if re.search("[▁▂▃▄▅▆▇█]", line)]
    assert [row[:3] for row in rows[-2:]] == [["1", "20", "0.4000"], ["0", "20", "0.3000"]]
