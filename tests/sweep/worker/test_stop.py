"""Workers are asked to stop through their study, and the study's verdict counts."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
from sweep_support import QUICK, states

from sweepstack.cli import study as cli
from sweepstack.config.errors import EnvironmentFault
from sweepstack.study import storage
from sweepstack.study.book.public import PublicBook
from sweepstack.study.book.register import Entry, Membership
from sweepstack.sweep import studies
from sweepstack.sweep.worker import launch, worker

SWEPT = "optimizer.lr=0.1,0.2,0.3,0.4"


@pytest.fixture(params=["bulk", "public"])
def books(request, monkeypatch):
    if request.param == "public":
        monkeypatch.setattr(studies, "bulk_problem", lambda: "tables that are used")


def test_stop_ends_the_workers_of_a_study_and_the_same_command_resumes(
    main, books, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(worker, "HEED_S", 0.0)
    url, noted = f"sqlite:///{tmp_path}/outputs/studies.db", worker.Worker.record
    said: list[str] = []

    def record(self: Any, outcome: Any) -> None:
        noted(self, outcome)
        if not said:
            capsys.readouterr()
            assert cli.run(["workers", "s", "--storage", url]) == 0
            assert cli.run(["stop", "s", "--storage", url]) == 0
            said.append(capsys.readouterr().out)

    monkeypatch.setattr(worker.Worker, "record", record)
    words = ("-m", *QUICK, SWEPT, "training.width=1")
    stopped = main(*words)

    assert stopped.code == 130
    assert "run the same command again to resume" in stopped.err
    assert "asked 1 worker of study s to stop" in said[0]
    assert "per minute" in said[0]
    assert states(tmp_path).count("COMPLETE") < 4
    assert "RUNNING" not in states(tmp_path)
    assert main(*words).code == 0
    assert states(tmp_path).count("COMPLETE") == 4
    assert cli.run(["workers", "s", "--storage", url]) == 0
    assert "nobody works on study s" in capsys.readouterr().out


@pytest.mark.parametrize("public", [False, True])
def test_a_stop_of_one_sweep_is_not_heeded_by_others(tmp_path, public):
    opened = storage.connect(f"sqlite:///{tmp_path}/s.db")
    kind = PublicBook if public else studies.book_of(opened)
    book = kind(optuna.create_study(storage=opened, study_name="s"), opened, 9)
    before = book.stops()
    assert book.stops("mine") == before

    book.stop("mine")
    assert book.stops("mine") != before
    assert book.stops("other") == before
    book.stop()
    assert book.stops("other") != before
    assert book.stops("later") == book.stops()  # one that begins now goes on


class Board(launch.Scoreboard):
    """Shows nothing of a study whose counts a test sets."""

    def __init__(self, total: int):
        self.done = 0
        self.opened = optuna.create_study()
        self.book: Any = SimpleNamespace(
            study=self.opened,
            total=total,
            counts=lambda: (
                {"done": self.done, "pruned": 0, "failed": 0, "running": 0}
                | {"waiting": 0, "remaining": total - self.done}
            ),
            stops=lambda crew="": None,
        )

    def __enter__(self) -> Board:
        return self

    def __exit__(self, *raised: object) -> None:
        pass

    def refresh(self, *given: object, **named: object) -> None:
        pass


def jobs(*launches: Any, restarts: int = 3) -> tuple[launch._Jobs, Board, list[int]]:
    """What is launched: for each launch the trials that are done by its end, how it ends, and
    whether a worker began."""
    board, asked, left = Board(10), [], list(launches)
    plan = SimpleNamespace(n_jobs=3, max_restarts=restarts)

    def other(crew: Any, count: int) -> int | None:
        asked.append(count)
        board.done, end, began = left.pop(0)
        if began:
            entry = Entry(f"other/1:{len(asked)}:1", len(asked), 0, crew.name)
            with Membership(board.opened, entry):  # has ended by the end of the launch
                pass
        if isinstance(end, Exception):
            raise end
        return end

    crew: Any = SimpleNamespace(plan=plan, name="mine", stops=None)
    return launch._Jobs(crew, board, other), board, asked


DIED = launch.JobsFailed("OSError: killed")


def test_a_complete_study_with_a_dead_worker_is_a_success_and_a_line(caplog):
    run, _, asked = jobs((10, DIED, True))
    with caplog.at_level(logging.WARNING, "sweepstack"):
        assert run.run() is None
    assert asked == [3]
    assert caplog.messages == ["the study is complete, though OSError: killed"]


def test_dead_workers_are_replaced_as_long_as_trials_end(caplog):
    run, _, asked = jobs((2, DIED, True), (5, 143, True), (9, DIED, True), (10, None, True))
    assert run.run() is None
    assert asked == [3, 3, 3, 3]


def test_workers_that_die_without_a_trial_are_replaced_so_often():
    run, _, asked = jobs(*[(2, DIED, True)] * 4, restarts=2)
    with pytest.raises(EnvironmentFault, match="killed"):
        run.run()
    assert asked == [3, 3, 3, 3]  # the first of them made progress


@pytest.mark.parametrize(
    ("error", "began"), [(DIED, False), (EnvironmentFault("no such data"), True)]
)
def test_what_would_end_another_too_is_raised(error, began):
    run, _, asked = jobs((2, error, began))
    with pytest.raises(EnvironmentFault, match=str(error)):
        run.run()
    assert asked == [3]


def test_nothing_is_launched_once_a_person_has_stopped_it(monkeypatch):
    run, board, asked = jobs((2, DIED, True), (10, None, True))

    def wait(error: object) -> dict[str, int]:
        run.code = 130  # Ctrl-C, between two launches
        return board.book.counts()  # type: ignore[no-any-return]

    monkeypatch.setattr(run, "_wait", wait)
    assert run.run() == 130
    assert asked == [3]
