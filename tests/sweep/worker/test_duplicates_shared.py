"""Trials of equal effect among several workers, and where one of them has died."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
from duplicates_support import Script, check_all, told, worker
from fault_support import Row, rows, running, until
from sqlalchemy import event

from sweepstack.study.attributes import WORKER
from sweepstack.study.book import bulk, processes
from sweepstack.sweep.worker import Asked, duplicates

LIMIT_S = 60  # for a hung thread only


class Meanwhile:
    """Another worker that works while the first one has a trial in hand."""

    def __init__(self, folder: Path):
        self.folder, self.app = folder, Script(1)
        self.thread = threading.Thread(target=self._work)
        self.errors: list[BaseException] = []

    def _work(self) -> None:
        try:
            worker(self.folder, self.app).work()
        except BaseException as error:
            self.errors.append(error)

    def start(self) -> None:
        """Start it, and wait until it has nothing to do but to wait."""
        self.thread.start()
        until(lambda: len(self._complete()) == 4 or self.errors, "the other has done its work")
        until(lambda: len(running(self.folder)) == 2 or self.errors, "it holds a trial aside")

    def _complete(self) -> list[Row]:
        return [row for row in rows(self.folder) if row.state == "COMPLETE"]

    def join(self) -> None:
        self.thread.join(LIMIT_S)
        assert not self.thread.is_alive()
        assert not self.errors


def test_a_duplicate_waits_for_the_other_worker_to_the_end(tmp_path):
    other = Meanwhile(tmp_path)
    app = Script(1, lambda value: other.start() if value == 0 else None)
    worker(tmp_path, app).work()
    other.join()

    assert (app.trained, other.app.trained) == ([0], [2, 4])
    check_all(tmp_path)


def test_a_duplicate_is_trained_when_the_other_worker_s_trial_fails(tmp_path):
    other = Meanwhile(tmp_path)

    def fail(value: int) -> str:
        other.start()
        return "failed"

    app = Script(1, fail)
    worker(tmp_path, app).work()
    other.join()

    assert (app.trained, other.app.trained) == ([0], [2, 4, 1])
    assert told(tmp_path)[0] == ("FAIL", None)
    assert told(tmp_path)[1] == ("COMPLETE", None)


def begun_by_the_dead(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a worker begin the trial of value 0 and be killed."""
    dead = worker(folder, Script(1))
    with monkeypatch.context() as patch:
        host_and_pid, _, start = processes.this_process().rpartition(":")
        patch.setattr(processes, "this_process", lambda: f"{host_and_pid}:{int(start) - 1}")
        (trial,) = dead.book.claim()
    assert processes.is_gone(str(trial.user_attrs[WORKER]))
    dead.plan.space.suggest(trial)
    dead.book.begin([trial])
    assert dead.duplicates is not None
    assert dead.duplicates.admitted([Asked(trial, ["a=0"])])


def test_a_duplicate_whose_worker_died_is_trained_by_another(tmp_path, monkeypatch):
    begun_by_the_dead(tmp_path, monkeypatch)

    app = Script(1)
    worker(tmp_path, app).work()

    assert sorted(value // 2 for value in app.trained) == [0, 1, 2]
    check_all(tmp_path)


def test_who_has_deferred_as_many_as_may_be_sees_itself_that_a_worker_died(tmp_path, monkeypatch):
    monkeypatch.setattr(duplicates, "MAX_DEFERRED", 1)
    begun_by_the_dead(tmp_path, monkeypatch)

    app = Script(1)
    live = worker(tmp_path, app)
    live.deadline = time.time() + LIMIT_S  # else it would wait for ever
    live.work()

    assert sorted(value // 2 for value in app.trained) == [0, 1, 2]
    check_all(tmp_path)


def test_workers_see_what_others_have_begun_since_their_start(tmp_path):
    crew = [worker(tmp_path, Script()) for _ in range(3)]
    admitted = []
    for each, value in zip(crew, (0, 1, 2), strict=True):
        (trial,) = each.book.claim()
        assert each.duplicates is not None
        admitted.append(each.duplicates.admitted([Asked(trial, [f"a={value}"])]))

    assert [bool(trained) for trained in admitted] == [True, False, True]


def test_many_trials_are_looked_up_together(tmp_path):
    several = worker(tmp_path, Script())
    assert several.duplicates is not None
    batch = []
    for value in range(6):
        (trial,) = several.book.claim()
        batch.append(Asked(trial, [f"a={value}"]))

    assert [asked.number for asked in several.duplicates.admitted(batch)] == [0, 2, 4]
    effects = [row.attributes.get("sweepstack.effect") for row in rows(tmp_path)]
    assert effects == ["pair 0", None, "pair 1", None, "pair 2", None]
    other = worker(tmp_path, Script())
    assert other.duplicates is not None
    assert other.duplicates.admitted(batch[1::2]) == []


def test_the_register_holds_the_study_while_it_reads_what_others_wrote(tmp_path, monkeypatch):
    """Or it would pass over what is written and not committed, where a database lets it."""
    several = worker(tmp_path, Script())
    done: list[str] = []
    hold = bulk.hold
    monkeypatch.setattr(bulk, "hold", lambda *given: (done.append("hold"), hold(*given)))
    engine = several.book.storage.engine  # type: ignore[attr-defined]
    event.listen(engine, "before_cursor_execute", lambda *given: done.append(given[2]))
    several.book.take_effects([])

    reads = [place for place, what in enumerate(done) if "trial_user_attributes" in what]
    assert reads
    assert "hold" in done[: reads[0]]
