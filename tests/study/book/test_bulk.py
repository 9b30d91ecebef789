"""What a book writes is, row for row, what Optuna's public functions write."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy
from book_support import KINDS, one
from optuna.samplers import RandomSampler, TPESampler
from optuna.trial import TrialState

from sweepstack import storage
from sweepstack.study.attributes import POINT, WORKER
from sweepstack.study.book import (
    Ending,
    Report,
    canonical,
    tables,
)
from sweepstack.study.book.book import Book
from sweepstack.sweep.studies import open_study

TABLES = (
    "trials",
    "trial_params",
    "trial_values",
    "trial_intermediate_values",
    "trial_user_attributes",
    "trial_system_attributes",
)
REPORTS = {1: 0.5, 2: math.nan, 3: math.inf, 4: 0.25}
ATTRIBUTES = {"val_loss": 0.1, "device": "cpu", "values": [1.0, 2.0], "nothing": None}


def ours(
    url: str, kind: str = "bulk", sampler: optuna.samplers.BaseSampler | None = None, **options: Any
) -> Book:
    opened = storage.connect(url)
    study = open_study(opened, "study", ["maximize"], {})
    study.sampler = sampler or RandomSampler(seed=1)
    return KINDS[kind](study, opened, 100, **options)  # type: ignore[arg-type]


def rows(url: str) -> dict[str, list[tuple[Any, ...]]]:
    """All rows but the times, and but what only a book of ours writes."""
    found = {}
    with sqlalchemy.create_engine(url).connect() as connection:
        for table in TABLES:
            names = [column["name"] for column in sqlalchemy.inspect(connection).get_columns(table)]
            kept = [n for n in names if not n.startswith("datetime") and not n.endswith("_id")]
            kept += ["trial_id"]
            query = f"SELECT {', '.join(kept)} FROM {table} ORDER BY {', '.join(kept)}"
            lines = [tuple(row) for row in connection.execute(sqlalchemy.text(query))]
            found[table] = [line for line in lines if WORKER not in line]
    return found


def beats(url: str) -> list[Any]:
    with sqlalchemy.create_engine(url).connect() as connection:
        return list(connection.execute(sqlalchemy.text("SELECT * FROM trial_heartbeats")))


def suggest(trial: optuna.Trial) -> None:
    trial.suggest_float("lr", 1e-4, 1.0, log=True)
    trial.suggest_int("layers", 1, 3)
    trial.suggest_categorical("init", ["he", None, True, 1.5])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("state", [TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL])
def test_the_rows_are_those_of_the_public_functions(
    tmp_path: Path, state: TrialState, kind: str
) -> None:
    mine, theirs = (f"sqlite:///{tmp_path}/{name}.db" for name in ("mine", "theirs"))
    values = [0.75] if state == TrialState.COMPLETE else None

    book = ours(mine, kind)
    live = one(book)
    assert live is not None
    suggest(live)
    book.begin([live])
    reports = [Report(live, step, value) for step, value in REPORTS.items()]
    book.write(reports, [Ending(live, state, values, ATTRIBUTES, {"num_parameters": -5.0})])

    study = optuna.create_study(
        storage=theirs, study_name="study", direction="maximize", sampler=RandomSampler(seed=1)
    )
    trial = study.ask()
    suggest(trial)
    for step, value in REPORTS.items():
        trial.report(value, step)
    for key, item in ATTRIBUTES.items():
        trial.set_user_attr(key, item)
    trial.set_constraint("num_parameters", -5.0)
    study.tell(trial, values, state=state)

    assert rows(mine) == rows(theirs)
    (kept,) = book.study.trials
    assert kept.params == study.trials[0].params
    assert kept.constraints == study.trials[0].constraints == {"num_parameters": -5.0}
    assert kept.datetime_start is not None
    assert kept.datetime_complete is not None
    assert abs((kept.datetime_start - study.trials[0].datetime_start).total_seconds()) < 3600


def test_the_rows_of_many_trials_at_once_are_those_of_the_public_functions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TZ", "Asia/Tokyo")  # Optuna keeps its times in UTC
    time.tzset()
    mine, theirs = (f"sqlite:///{tmp_path}/{name}.db" for name in ("mine", "theirs"))
    points = [{"layers": layers, "init": init} for layers in (1, 2) for init in ("he", None)]
    ends = [TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL, TrialState.COMPLETE]
    values = [0.5, None, None, math.inf]

    book = ours(mine, points=points)
    book.study.enqueue_trial(
        points[0], {POINT: canonical(points[0])}
    )  # as a trial that was put back
    trials = book.claim(64)
    for live in trials:
        suggest(live)
    book.begin(trials)
    book.write(
        [Report(live, step, value) for live in trials[1:] for step, value in REPORTS.items()],
        [
            Ending(live, state, value and [value], ATTRIBUTES, {"num_parameters": -5.0})
            for live, state, value in zip(trials, ends, values, strict=True)
        ],
    )

    study = optuna.create_study(
        storage=theirs, study_name="study", direction="maximize", sampler=RandomSampler(seed=1)
    )
    for place, point in enumerate(points):
        study.enqueue_trial(point, {POINT: canonical(point)})
        trial = study.ask()
        suggest(trial)
        for step, value in REPORTS.items() if place else ():
            trial.report(value, step)
        for key, item in ATTRIBUTES.items():
            trial.set_user_attr(key, item)
        trial.set_constraint("num_parameters", -5.0)
        study.tell(trial, values[place], state=ends[place])

    assert rows(mine) == rows(theirs)
    assert len(beats(mine)) == 4
    for row, public in zip(book.study.trials, study.trials, strict=True):
        assert row.params == public.params
        for moment in ("datetime_start", "datetime_complete"):
            apart = getattr(row, moment) - getattr(public, moment)
            assert abs(apart.total_seconds()) < 600
    monkeypatch.undo()
    time.tzset()


@pytest.mark.parametrize("kind", KINDS)
def test_of_a_batch_with_a_trial_presumed_dead_the_others_are_written(url: str, kind: str) -> None:
    book = ours(url, kind)
    trials = book.claim(3)
    book.release(trials[1])
    endings = [Ending(live, TrialState.COMPLETE, [1.0], {"x": 1}, {}) for live in trials]
    reports = [Report(live, 1, 0.5) for live in trials]
    assert book.write(reports, endings) == [1]
    first, lost, last, _ = book.study.trials
    assert [t.values for t in (first, lost, last)] == [[1.0], None, [1.0]]
    assert [t.intermediate_values for t in (first, lost, last)] == [{1: 0.5}, {}, {1: 0.5}]
    assert lost.state == TrialState.FAIL


def test_what_could_not_be_written_can_be_written_later(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    book = ours(url)
    trials = book.claim(2)
    endings = [Ending(live, TrialState.COMPLETE, [1.0], {}, {}) for live in trials]
    reports = [Report(live, 1, 0.5) for live in trials]

    def full(*_: object) -> None:
        raise OSError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr("sweepstack.study.book.tables.add_attributes", full)
        with pytest.raises(OSError, match="disk is full"):
            book.write(reports, endings)
    assert {t.state for t in book.study.trials} == {TrialState.RUNNING}
    assert book.write(reports, endings) == []
    assert [t.intermediate_values for t in book.study.trials] == [{1: 0.5}, {1: 0.5}]


def test_a_live_trial_has_all_that_optunas_has(url: str) -> None:
    book = ours(url)
    live = one(book)
    assert live is not None
    theirs = optuna.Trial(book.study, live._trial_id)
    assert set(vars(theirs)) == set(vars(live)) - {"_unwritten"}
    assert live._cached_frozen_trial == theirs._cached_frozen_trial
    assert live.number == theirs.number
    assert live.user_attrs == theirs.user_attrs


def test_parameters_are_unwritten_until_the_book_writes_them(url: str) -> None:
    book = ours(url)
    live = one(book)
    assert live is not None
    suggest(live)
    assert book.study.trials[0].params == {}
    book.begin([live])
    assert book.study.trials[0].params == live.params
    book.begin([live])  # once


@pytest.mark.parametrize("kind", KINDS)
def test_a_sampler_learns_from_what_the_book_writes(url: str, kind: str) -> None:
    """TPE through a book draws what it draws through Optuna alone."""

    def objective(lr: float) -> float:
        return -((math.log10(lr) + 2) ** 2)

    book = ours(url, kind, TPESampler(seed=3, n_startup_trials=5))
    drawn = []
    for _ in range(15):
        live = one(book)
        assert live is not None
        drawn.append(live.suggest_float("lr", 1e-4, 1.0, log=True))
        book.begin([live])
        book.write(endings=[Ending(live, TrialState.COMPLETE, [objective(drawn[-1])], {}, {})])
    study = optuna.create_study(
        direction="maximize", sampler=TPESampler(seed=3, n_startup_trials=5)
    )
    study.optimize(lambda trial: objective(trial.suggest_float("lr", 1e-4, 1.0, log=True)), 15)
    assert drawn == [trial.params["lr"] for trial in study.trials]


def test_a_trial_that_was_presumed_dead_is_not_ended(url: str) -> None:
    book = ours(url)
    live = one(book)
    assert live is not None
    book.release(live)
    ending = Ending(live, TrialState.COMPLETE, [1.0], {"x": 1}, {})
    assert book.write(endings=[ending]) == [live.number]
    assert book.study.trials[0].state == TrialState.FAIL
    assert "x" not in book.study.trials[0].user_attrs


def test_a_step_is_reported_once(url: str) -> None:
    book = ours(url)
    live = one(book)
    assert live is not None
    book.write([Report(live, 1, 0.5)])
    book.write([Report(live, 1, 0.7), Report(live, 2, 0.9)])
    assert book.study.trials[0].intermediate_values == {1: 0.5, 2: 0.9}


@pytest.mark.parametrize("kind", KINDS)
def test_best_and_steps_are_of_finished_trials_of_this_study(url: str, kind: str) -> None:
    book = ours(url, kind)
    assert book.best("maximize") is None
    assert book.steps() == 0
    for value, state in ((0.5, TrialState.COMPLETE), (0.9, TrialState.COMPLETE)):
        live = one(book)
        assert live is not None
        book.write(endings=[Ending(live, state, [value], {"steps": 100}, {})])
    live = one(book)
    assert live is not None
    book.write([Report(live, 1, 5.0)])
    book.write(endings=[Ending(live, TrialState.PRUNED, None, {"steps": 10}, {})])
    assert (book.best("maximize"), book.best("minimize")) == (0.9, 0.5)
    assert book.steps() == 210


@pytest.mark.parametrize("name", ["value_to_stored_repr", "__table__"])
def test_a_table_without_what_is_used_of_it_is_seen_at_the_start(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    assert tables.missing() == []
    monkeypatch.delattr(tables.models.TrialValueModel, name)
    assert "TrialValueModel" in tables.missing()[0]
