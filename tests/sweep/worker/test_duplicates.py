"""Trials of equal effect, with workers whose runner says when which trial ends and how."""

from __future__ import annotations

import pytest
from duplicates_support import Script, check_all, told, worker
from fault_support import Row, rows, running
from optuna.trial import TrialState
from sqlalchemy import event
from sqlalchemy.exc import OperationalError

from sweepstack.config.errors import EXIT_INTERRUPTED
from sweepstack.engine.train import Interrupted
from sweepstack.study.book import Ending
from sweepstack.sweep.worker import Asked, duplicates
from sweepstack.sweep.worker import worker as worker_module


@pytest.mark.parametrize("width", [1, 2, 3, 10])
def test_one_of_each_pair_is_trained_whatever_the_width(tmp_path, width):
    app = Script(width)
    worker(tmp_path, app).work()

    assert app.trained == [0, 2, 4]
    check_all(tmp_path)


def test_a_deferred_trial_runs_until_its_original_has_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(worker_module, "AHEAD_S", 0.0)
    seen: list[list[Row]] = []
    app = Script(3, lambda value: seen.append(running(tmp_path)))
    worker(tmp_path, app).work()

    at_first = [row.number for row in seen[0]]
    assert at_first == [0, 1, 2, 3, 4]  # three are trained, two wait; 5 was not asked for
    check_all(tmp_path)


def test_trials_that_take_no_time_are_claimed_and_written_together(tmp_path, monkeypatch):
    monkeypatch.setattr(worker_module, "AHEAD_S", 60.0)
    app, sizes, written = Script(3), [], []
    at_work = worker(tmp_path, app, "range(0,60)")
    claim, write = at_work.book.claim, at_work.book.write
    at_work.book.claim = lambda most, **k: sizes.append(len(c := claim(most, **k))) or c
    at_work.book.write = lambda reports, ends: written.append(len(ends)) or write(reports, ends)
    at_work.work()

    check_all(tmp_path, 60)
    assert app.trained == list(range(0, 60, 2))
    assert sum(sizes) == sum(written) == 60
    assert len(sizes) <= 12, sizes  # about twice as many each time, not 60
    assert len([n for n in written if n]) <= 12


def test_a_pruned_trial_prunes_its_duplicate_with_the_same_reports(tmp_path):
    app = Script(2, lambda value: "pruned" if value == 2 else None)
    worker(tmp_path, app).work()

    assert app.trained == [0, 2, 4]
    assert told(tmp_path)[2] == ("PRUNED", None)
    assert told(tmp_path)[3] == ("PRUNED", 2)
    one, other = rows(tmp_path)[2:4]
    assert one.reports == other.reports
    assert one.values == other.values


@pytest.mark.parametrize("width", [1, 3, 10])
def test_where_a_trial_fails_its_duplicate_is_trained(tmp_path, width):
    app = Script(width, lambda value: "failed" if value in (0, 4, 5) else None)
    worker(tmp_path, app).work()

    assert sorted(app.trained) == [0, 1, 2, 4, 5]
    states = {value: found[0] for value, found in told(tmp_path).items()}
    assert states == dict(enumerate(["FAIL", *["COMPLETE"] * 3, "FAIL", "FAIL"]))
    assert told(tmp_path)[1] == ("COMPLETE", None)


def test_with_train_all_are_trained(tmp_path):
    app = Script(2)
    worker(tmp_path, app, duplicates="train").work()

    assert sorted(app.trained) == [0, 1, 2, 3, 4, 5]
    assert all("equals" not in row.attributes for row in rows(tmp_path))


def test_duplicates_of_trials_from_before_are_not_trained(tmp_path):
    first, second = Script(1), Script(1)
    worker(tmp_path, first, sampler="grid", n_trials=3).work()
    worker(tmp_path, second).work()

    assert (first.trained, second.trained) == ([0, 2], [4])
    check_all(tmp_path)


def test_a_duplicate_of_the_past_is_found_without_a_query(tmp_path):
    worker(tmp_path, Script(1), values="0,2,4").work()
    later = worker(tmp_path, Script(1), values="0,2,4,1,3,5")
    assert later.duplicates is not None
    queries: list[str] = []
    engine = later.book.storage.engine  # type: ignore[attr-defined]
    event.listen(engine, "before_cursor_execute", lambda *given: queries.append(given[2]))
    (trial,) = later.book.claim()
    queries.clear()

    assert not later.duplicates.admitted([Asked(trial, ["a=1"])])
    assert queries == []


def test_what_is_deferred_is_requeued_when_a_signal_stops_the_sweep(tmp_path):
    def interrupt(value: int) -> None:
        raise Interrupted(EXIT_INTERRUPTED, 1)

    stopped = Script(2, interrupt)
    worker(tmp_path, stopped).work()

    assert [row.state for row in rows(tmp_path) if row.number < 3] == ["FAIL"] * 3
    assert not running(tmp_path)
    app = Script(2)
    worker(tmp_path, app).work()
    assert sorted(value // 2 for value in app.trained) == [0, 1, 2]
    check_all(tmp_path)


def test_no_more_than_so_many_are_deferred(tmp_path, monkeypatch):
    monkeypatch.setattr(duplicates, "MAX_DEFERRED", 1)
    most: list[int] = []
    app = Script(3, lambda value: most.append(len(running(tmp_path))))
    worker(tmp_path, app).work()

    assert max(most) == 2  # one is trained and one waits: then no other is asked for
    check_all(tmp_path)


def test_a_duplicate_waits_on_where_the_storage_is_away_as_its_original_fails(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(duplicates, "LOOK_S", 0.0)
    other = worker(tmp_path, Script(1), sampler="grid").book
    (original,) = other.claim()
    assert original.suggest_categorical("a", range(6)) == 0
    other.begin([original])
    other.take_effects([(original, "pair 0")])
    failed, is_away = Ending(original, TrialState.FAIL, None, {"error": "so it was"}, {}), []

    def fail(value: int) -> None:
        if value == 2:
            other.write(endings=[failed])
            is_away.append(True)

    app = Script(2, fail)
    made = worker(tmp_path, app, sampler="grid")
    take = made.book.take_effects

    def answer(wanted):
        if wanted and is_away:
            is_away.clear()
            raise OperationalError("x", {}, Exception("gone"), connection_invalidated=True)
        return take(wanted)

    monkeypatch.setattr(made.book, "take_effects", answer)
    made.work()
    assert app.trained == [2, 4, 1]
    assert told(tmp_path)[1] == ("COMPLETE", None)


CALLS = ["claim", "begin", "take_effects", "steps", "counts", "owners", "trial", "recover"]


@pytest.mark.parametrize("name", CALLS)
def test_a_storage_that_is_away_ends_no_worker_that_trains(tmp_path, monkeypatch, name):
    """It answers once nothing trains; trials wait until then, whatever was asked."""
    worker(tmp_path, Script(1), sampler="grid", n_trials=1).work()
    app = Script(2, lambda value: "failed" if name == "counts" and value == 2 else None)
    budget = {"max_steps_total": 100} if name == "steps" else {}
    made, away = worker(tmp_path, app, sampler="grid", **budget), []
    asked = getattr(made.book, name)

    def answer(*given, **named):
        if made._begun - {outcome.asked.number for outcome in made._ended}:
            away.append(name)
            raise OperationalError("x", {}, Exception("gone"), connection_invalidated=True)
        return asked(*given, **named)

    monkeypatch.setattr(made.book, name, answer)
    monkeypatch.setattr(duplicates, "MAX_DEFERRED", 1 if name == "recover" else 1024)
    monkeypatch.setattr(duplicates, "REMEMBERED", 0 if name == "trial" else 1000)
    made.work()

    assert away
    if name != "counts":
        check_all(tmp_path)
