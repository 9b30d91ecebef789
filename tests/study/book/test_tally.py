"""The running count equals a count of everything, whatever happens in whatever order."""

from __future__ import annotations

from unittest import mock

import optuna
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.trial import TrialState

from sweepstack import storage
from sweepstack.study.attributes import AGAIN, RETRIED, RETRY_OF
from sweepstack.study.book import Ending, bulk, tables
from sweepstack.study.book.bulk import BulkBook

FINAL = [TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 6), st.booleans()), max_size=25), st.sampled_from([0, 2]))
def test_the_tally_is_the_count(steps: list[tuple[int, bool]], behind: int) -> None:
    with mock.patch.multiple(bulk, MAX_BEHIND=behind, AT_ONCE=1):
        check(steps)


def check(steps: list[tuple[int, bool]]) -> None:
    opened = storage.connect("sqlite://")
    study = optuna.create_study(storage=opened)
    other = optuna.create_study(storage=opened)
    book, replaced = BulkBook(study, opened, None), set[int]()
    for action, look in steps:
        running = [t for t in study.trials if t.state == TrialState.RUNNING]
        if action == 0:
            study.enqueue_trial({"x": 1.0})
        elif action in (1, 2):
            study.ask()
            other.ask()
        elif action == 6:  # the failed points of a grid wait again
            for trial in study.trials:
                if trial.state == TrialState.FAIL and trial.number not in replaced:
                    replaced.add(trial.number)
                    mark = [(trial._trial_id, {RETRIED: True})]
                    with book._held() as page:
                        tables.add_attributes(page, tables.USER, mark)
                    study.enqueue_trial({"x": 1.0}, user_attrs={RETRY_OF: trial.number})
            study.set_user_attr(AGAIN, len(replaced))
        elif running:
            chosen = running[-1] if action == 3 else running[0]
            state = FINAL[action - 3]
            if state == TrialState.FAIL and look:
                replaced.add(chosen.number)
                study._storage.set_trial_user_attr(chosen._trial_id, RETRIED, True)
            study.tell(chosen.number, 1.0 if state == TrialState.COMPLETE else None, state=state)
        if not look:
            continue
        with book._read() as page:
            found = book._tally(page)
            at_work = book._records(page, TrialState.RUNNING)
        trials = study.get_trials(deepcopy=False)
        counted = [t for t in trials if t.number not in replaced]
        assert found.size == len(trials)
        for state in TrialState:
            assert found.states[state] == sum(t.state == state for t in counted)
        running = [t.number for t in trials if t.state == TrialState.RUNNING]
        assert [record.number for record in at_work] == running
        waiting = [t._trial_id for t in trials if t.state == TrialState.WAITING]
        assert found.waiting == waiting


def test_what_has_settled_counts_anew_once_a_sweep_tries_it_again(tmp_path, monkeypatch):
    monkeypatch.setattr(bulk, "AT_ONCE", 1)
    opened = storage.connect(f"sqlite:///{tmp_path}/s.db")
    study = optuna.create_study(storage=opened)
    book, sweep = (BulkBook(study, opened, 9, points=[{"x": n} for n in range(9)]) for _ in "ab")
    endings = [Ending(t, TrialState.FAIL, None, {}, {}) for t in book.claim(9)]
    book.write([], endings)
    assert [book.counts()["failed"] for _ in range(2)] == [9, 9]
    assert book._floor > 0

    assert sweep.retry_failed() == 9

    assert (book.counts()["failed"], book.counts()["waiting"]) == (0, 9)
