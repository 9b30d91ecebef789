"""A trial that kills its worker takes no trial with it that only was beside it."""

from __future__ import annotations

import pytest
from book_support import finish, open_book, run_all, suggest
from duplicates_support import Script, told, value_of, worker
from fault_support import rows

from sweepstack.study.attributes import RETRIES
from sweepstack.study.book import processes


class Killed(BaseException):
    """Stands for a signal that no process hears."""


class Deadly(Script):
    """Trial 2 kills its worker, and with it what is held beside."""

    def before(self, held) -> None:
        self.together.append({value_of(asked) for asked in held})
        if 2 in self.together[-1]:
            raise Killed

    def run(self, asked):
        self.together = getattr(self, "together", [])
        held = []
        for new in self._filled(asked, held):
            yield from super().run(iter([new]))

    def _filled(self, asked, held):
        while True:
            while len(held) < self.width and (new := next(asked, None)) is not None:
                held.append(new)
            if not held:
                return
            self.before(held)
            yield held.pop(0)


def test_neighbours_of_a_trial_that_kills_its_worker_complete(tmp_path, monkeypatch):
    here = processes.this_process()
    host_and_pid, _, start = here.rpartition(":")
    monkeypatch.setattr(processes, "is_gone", lambda name: name != processes.this_process())
    apps = []
    for life in range(20):
        name = f"{host_and_pid}:{int(start) + life}"
        monkeypatch.setattr(processes, "this_process", lambda name=name: name)
        apps.append(Deadly(3))
        made = worker(tmp_path, apps[-1], duplicates="train")
        made._requeue = lambda trials: None  # who is killed requeues nothing
        try:
            made.work()
            break
        except Killed:
            continue

    states = {value: state for value, (state, _) in told(tmp_path).items()}
    assert states == {0: "COMPLETE", 1: "COMPLETE", 2: "FAIL"} | dict.fromkeys(
        (3, 4, 5), "COMPLETE"
    )
    last = [app.together[-1] for app in apps if app.together and 2 in app.together[-1]]
    assert len(last) == 4  # three restarts
    assert last[-1] == {2}


def test_trials_that_raise_before_they_begin_are_not_tried_without_end(tmp_path, monkeypatch):
    """Each of several workers would be replaced by one that raises again."""

    class Unreadable:
        def effect_of(self, asked):
            raise KeyError("a mistake of ours")

    with pytest.raises(KeyError, match="a mistake of ours"):
        worker(tmp_path, Script(equal=Unreadable())).work()
    assert [row.state for row in rows(tmp_path)] == ["RUNNING"]  # counted once it is found lost


def test_suspects_run_behind_new_trials_in_ever_smaller_company(tmp_path, monkeypatch):
    book = open_book(f"sqlite:///{tmp_path}/studies.db", total=8)

    def lose() -> list[int]:
        trials = book.claim(16)
        for trial in trials:
            suggest(book, trial)
        with monkeypatch.context() as patch:
            patch.setattr(processes, "is_gone", lambda worker: True)
            assert book.recover() == len(trials)
        return [trial.user_attrs.get(RETRIES, 0) for trial in trials]

    for trial in book.claim(2):
        finish(book, trial)
    assert lose() == [0] * 6
    assert lose() == [1] * 6
    beside = book.claim(32)
    assert [trial.user_attrs[RETRIES] for trial in beside] == [2, 2]
    assert not book.claim(16, alone=False)  # none of them beside others
    for trial in beside:
        finish(book, trial)
    assert lose() == [2]
    assert [trial.user_attrs[RETRIES] for trial in book.claim(16)] == [2]
    assert len(run_all(book)) == 3
    counts = book.counts()
    assert (counts["done"], counts["running"], counts["remaining"]) == (7, 1, 1)
