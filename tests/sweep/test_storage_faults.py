"""A database that fails while trials train ends the sweep; it fails no trial."""

from __future__ import annotations

import sqlite3

import pytest
from optuna.storages import RDBStorage
from sqlalchemy.exc import OperationalError
from sweep_support import QUICK, states, study

from sweepstack.storage import patience
from sweepstack.study.attributes import CONTINUES, LOST
from sweepstack.study.book.bulk import BulkBook

pytestmark = pytest.mark.slow


def locked(*arguments):
    raise OperationalError("UPDATE", {}, sqlite3.OperationalError("database is locked"))


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize(
    "words",
    [
        ["training.width=1"],
        ["training.width=3"],
        ["training.width=3", "hydra/sweeper/pruner=median"],
    ],
)
def test_results_that_cannot_be_written_put_trials_back(main, tmp_path, monkeypatch, words, times):
    write, calls = BulkBook.write, []

    def failing(self, reports=(), endings=()):
        found = list(reports)
        if found:
            calls.append(found)
            if len(calls) <= times:
                locked()
        return write(self, found, endings)

    sweep = ("-m", *QUICK, "optimizer.lr=0.005,0.01,0.015", *words)
    monkeypatch.setattr(BulkBook, "write", failing)
    ended = main(*sweep)

    assert ended.code == 3
    [line] = ended.lines
    assert line.endswith("failed: database is locked; run the same command again to resume")
    trials = study(tmp_path).trials
    assert {"RUNNING", "COMPLETE"}.isdisjoint(states(tmp_path))
    requeued = [t for t in trials if t.state.name == "FAIL"]
    assert requeued
    assert all(t.user_attrs[LOST].startswith("requeued") for t in requeued)
    waiting = [t for t in trials if t.state.name == "WAITING"]
    assert [t.user_attrs[CONTINUES] for t in waiting] == [t.number for t in requeued]

    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    assert main(*sweep).code == 0
    assert states(tmp_path).count("COMPLETE") == 3


def test_a_claim_that_fails_puts_back_what_is_in_hand(main, tmp_path, monkeypatch):
    claim, calls = BulkBook.claim, []

    def failing(self, *arguments, **given):
        calls.append(arguments)
        return locked() if len(calls) == 2 else claim(self, *arguments, **given)

    monkeypatch.setattr(BulkBook, "claim", failing)
    words = ["optimizer.lr=interval(0.001,0.02)", "hydra.sweeper.n_trials=8", "training.width=2"]
    ended = main("-m", *QUICK, *words)

    assert ended.code == 3
    assert "RUNNING" not in states(tmp_path)


def test_a_database_that_fails_within_optuna_is_named_too(main, tmp_path, monkeypatch):
    """Optuna wraps what the database raises in an exception of its own."""

    def failing(*given):
        raise OperationalError("INSERT", {}, sqlite3.OperationalError("disk I/O error"))

    monkeypatch.setattr(RDBStorage, "_set_trial_attr_without_commit", failing)
    words = ["optimizer.lr=interval(0.001,0.02)", "hydra.sweeper.max_steps_total=40"]
    ended = main("-m", *QUICK, *words, "training.width=2")

    assert ended.code == 3
    [line] = ended.lines
    assert line.endswith("failed: disk I/O error; run the same command again to resume")
    assert "RUNNING" not in states(tmp_path)


@pytest.mark.parametrize("words", [[], ["hydra/sweeper/pruner=median"]])
def test_training_goes_on_while_a_server_is_away(main, tmp_path, monkeypatch, words):
    """It answers only who waits for it, as a worker does that has no trial in training."""
    write, calls = BulkBook.write, []

    def away(self, reports=(), endings=()):
        found = list(reports)
        if found or endings:
            calls.append(patience._latest.get() != float("inf"))
            if calls[-1]:
                raise OperationalError("x", {}, Exception("gone"), connection_invalidated=True)
        return write(self, found, endings)

    monkeypatch.setattr(BulkBook, "write", away)
    ended = main("-m", *QUICK, "optimizer.lr=0.005,0.01,0.015", "training.width=3", *words)

    assert ended.code == 0
    assert any(calls)
    assert calls.count(False) == 1
    trials = study(tmp_path).trials
    assert [trial.state.name for trial in trials] == ["COMPLETE"] * 3
    assert len({tuple(trial.intermediate_values) for trial in trials}) == 1
    assert len(trials[0].intermediate_values) > 1
