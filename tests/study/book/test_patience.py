"""A database server that restarts: what fails is tried again, and nothing is written twice."""

from __future__ import annotations

import contextlib
import errno
import itertools
import random
import sqlite3
import threading
from collections import Counter
from functools import partial
from typing import Any
from unittest import mock

import optuna
import pytest
import sqlalchemy
from book_support import falls_silent
from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage, RDBStorage
from optuna.trial import TrialState

from sweepstack import storage
from sweepstack.storage import patience, server
from sweepstack.study.attributes import EFFECT, LOST
from sweepstack.study.book import Ending, Report, bulk, public, tables
from sweepstack.study.book.bulk import BulkBook
from sweepstack.study.book.public import PublicBook

LOST_CONNECTION = sqlalchemy.exc.OperationalError(
    "COMMIT", {}, Exception("terminating connection"), connection_invalidated=True
)


class Faults:
    """Breaks one transaction in so many, before it is committed or just after."""

    def __init__(self, opened: Any, seed: int, share: float):
        self.chance, self.share, self.on, self.seen = random.Random(seed), share, True, Counter()
        engine = opened.engine
        plain = engine.dialect.do_commit

        def commit(connection: Any) -> None:
            kind = self._kind()
            if kind != "before":
                plain(connection)
            self.seen[kind] += 1
            if kind:
                raise LOST_CONNECTION

        engine.dialect.do_commit = commit

    @classmethod
    def of_journal(cls, opened: Any, seed: int, share: float) -> Faults:
        """Breaks one entry in so many before it is written."""
        faults = cls(mock.Mock(), seed, share)
        faults.chance.choice = lambda kinds: "before"  # type: ignore[method-assign]
        opened._backend.append_logs = faults.around(opened._backend.append_logs)
        return faults

    @classmethod
    def of_server(cls, opened: Any, seed: int, share: float) -> Faults:
        """Breaks one call in so many, before it is done or just after."""
        faults = cls(mock.Mock(), seed, share)
        for name in BaseStorage.__abstractmethods__:
            setattr(opened, name, faults.around(getattr(opened, name)))
        return faults

    def around(self, plain: Any) -> Any:
        def call(*given: Any, **named: Any) -> Any:
            kind = self._kind()
            found = None if kind == "before" else plain(*given, **named)
            self.seen[kind] += 1
            if kind:
                raise StorageInternalError("stale") from OSError(errno.ESTALE, "stale")
            return found

        return call

    def _kind(self) -> str:
        if not self.on or self.chance.random() > self.share:
            return ""
        return self.chance.choice(["before", "after"])


@pytest.fixture(autouse=True)
def never_away(monkeypatch):
    monkeypatch.setattr(patience, "_back", -float("inf"))


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(patience.time, "sleep", lambda seconds: None)


def opened_book(tmp_path, total=30, *, kind="bulk", faults=None, **options):
    urls = {"bulk": f"sqlite:///{tmp_path}/s.db", "journal": f"journal:///{tmp_path}/s.journal"}
    opened = storage.connect(urls[kind]) if kind in urls else optuna.storages.InMemoryStorage()
    study = optuna.create_study(
        study_name="s", storage=opened, sampler=optuna.samplers.RandomSampler(0)
    )
    broken = faults and kind != "bulk" and faults(opened)
    storage.wait_for_server(opened, 60.0)
    book = (BulkBook if kind == "bulk" else PublicBook)(study, opened, total, **options)
    book.patience_s = 60.0
    broken = broken or (faults and faults(opened))
    return broken or opened, study, book


FAULTS = {"bulk": Faults, "journal": Faults.of_journal, "server": Faults.of_server}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", FAULTS)
def test_every_trial_is_recorded_once_whatever_breaks(tmp_path, quick, monkeypatch, seed, kind):
    monkeypatch.setattr(public, "_HANDED", set())  # other tests have studies of this name
    faults, study, book = opened_book(
        tmp_path, kind=kind, faults=partial(FAULTS[kind], seed=seed, share=0.3)
    )
    told: dict[int, float] = {}
    while trials := book.claim(4):
        for trial in trials:
            trial.suggest_float("x", 0, 1)
        book.begin(trials)
        book.take_effects([(trial, str(trial.number)) for trial in trials])
        book.write(Report(trial, 1, 0.5) for trial in trials)
        book.beat(trials)
        endings = [
            Ending(t, TrialState.COMPLETE, [t.params["x"]], {"note": t.number}, {"c": -1.0})
            for t in trials
        ]
        assert book.write([Report(t, 2, 0.25) for t in trials], endings) == []
        told |= {trial.number: trial.params["x"] for trial in trials}
    faults.on = False

    assert faults.seen["before"] > 3
    assert faults.seen["after"] > 3 or kind == "journal"
    kept = [t for t in study.get_trials() if LOST not in t.user_attrs]
    assert {t.number: t.value for t in kept} == told
    assert len(told) == 30
    for trial in kept:
        assert trial.state == TrialState.COMPLETE
        assert trial.intermediate_values == {1: 0.5, 2: 0.25}
        assert trial.user_attrs["note"] == trial.number
        assert trial.user_attrs[EFFECT] == str(trial.number)
    assert book.counts()["running"] == book.counts()["waiting"] == 0


def test_patience_ends_and_what_does_not_heal_is_said_at_once(monkeypatch):
    now, calls = [1e9], []
    monkeypatch.setattr(patience.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(patience.time, "sleep", lambda s: now.__setitem__(0, now[0] + s))

    def fails(error: Exception) -> Any:
        def call(tried: int) -> None:
            calls.append(tried)
            raise error

        return call

    with pytest.raises(sqlalchemy.exc.OperationalError):
        storage.again(fails(LOST_CONNECTION), 60.0)
    assert 60 <= now[0] - 1e9 <= 70
    assert 10 <= len(calls) <= 30
    calls.clear()
    full = sqlalchemy.exc.OperationalError("x", {}, sqlite3.OperationalError("disk full"))
    broken = sqlalchemy.exc.IntegrityError("x", {}, Exception("UNIQUE"))
    for error in (full, broken, optuna.exceptions.StorageInternalError("no file")):
        with pytest.raises(type(error)):
            storage.again(fails(error), 60.0)
    assert calls == [0, 0, 0]


def test_two_threads_count_a_trial_once(tmp_path, monkeypatch):
    """A display counts beside the worker, and the heartbeat's thread forgets what was counted."""
    _, study, book = opened_book(tmp_path)
    for _ in range(3):
        study.tell(study.ask(), 1.0)
    engine = sqlalchemy.create_engine(f"sqlite:///{tmp_path}/s.db")  # a server lets both read
    both, plain = threading.Barrier(2), book._numbers

    def meanwhile(page: Any, which: Any) -> Any:
        found = plain(page, which)
        with contextlib.suppress(threading.BrokenBarrierError):
            both.wait(0.2)  # rows are read and not counted yet
        return found

    def count() -> None:
        with engine.connect() as page:
            book._tally(page)

    monkeypatch.setattr(book, "_numbers", meanwhile)
    monkeypatch.setattr(bulk, "AT_ONCE", 1)
    threads = [threading.Thread(target=count) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert book.counts()["done"] == 3


def test_effects_are_read_again_where_a_try_broke(tmp_path, quick, monkeypatch):
    _, _, book = opened_book(tmp_path)
    other = BulkBook(book.study, book.storage, 30)
    ((first,), (second,)) = other.claim(1), book.claim(1)
    book.take_effects([])
    other.take_effects([(first, "same")])
    plain, broken = bulk.rows_of, [LOST_CONNECTION]

    def rows(page: Any, query: Any, ids: Any) -> Any:
        if broken and ids == [first._trial_id]:
            raise broken.pop()
        return plain(page, query, ids)

    monkeypatch.setattr(bulk, "rows_of", rows)
    (owner,) = book.take_effects([(second, "same")])
    assert owner is not None
    assert (owner.number, broken) == (first.number, [])


def test_a_connection_to_a_server_that_restarts_is_tried_again(quick, monkeypatch):
    class Refused(Exception):
        pass

    answers = [Refused("refused"), Refused("starting up"), "a connection"]

    class Dialect(sqlalchemy.engine.default.DefaultDialect):
        name, driver = "server", "server"
        loaded_dbapi = type("Driver", (), {"Error": Refused})

        def connect(self, *given: Any, **named: Any) -> Any:
            answer = answers.pop(0)
            if isinstance(answer, Exception):
                raise answer
            return answer

    opened = mock.Mock(spec=RDBStorage)
    opened.engine = sqlalchemy.create_engine("sqlite://")
    opened.engine.dialect = dialect = Dialect()
    listening: list[Any] = []
    monkeypatch.setattr(server.event, "listens_for", lambda *_: listening.append)
    storage.wait_for_server(opened, 60.0)

    (connect,) = listening
    assert (connect(dialect, None, (), {}), answers) == ("a connection", [])
    answers[:] = [Refused("refused")]
    clock = itertools.count(0.0, 61.0)
    monkeypatch.setattr(patience.time, "monotonic", clock.__next__)
    with pytest.raises(sqlalchemy.exc.OperationalError, match="refused"):
        connect(dialect, None, (), {})
    answers[:] = [Refused("refused"), "not asked for"]
    with pytest.raises(sqlalchemy.exc.OperationalError, match="refused"):
        connect(dialect, None, (), {})  # it was waited for already


def test_what_was_given_up_is_written_once_with_what_comes_later(tmp_path):
    """A try is given up after its commit, as training goes on; later it is written again."""
    opened, study, book = opened_book(tmp_path)
    first, second = book.claim(2)
    faults = Faults(opened, 0, share=1.0)
    faults.chance.choice = lambda kinds: "after"  # type: ignore[method-assign]
    end = Ending(first, TrialState.COMPLETE, [1.0], {"note": 7}, {})
    reports = [Report(first, 1, 0.5), Report(second, 1, 0.25)]
    with storage.Tried():
        book.write(reports, [end])
        pytest.fail("it was acknowledged")
    assert faults.seen == {"after": 1}

    faults.on = False
    assert book.write([*reports, Report(second, 2, 0.125)], [end]) == []
    ended, running = study.get_trials()
    assert (ended.value, ended.user_attrs["note"]) == (1.0, 7)
    assert (ended.intermediate_values, running.intermediate_values) == (
        {1: 0.5},
        {1: 0.25, 2: 0.125},
    )


def test_what_a_claim_that_was_given_up_has_taken_waits_again(tmp_path):
    opened, _, book = opened_book(tmp_path, total=2, points=[{"x": 0.0}, {"x": 1.0}])
    faults = Faults(opened, 0, share=1.0)
    faults.chance.choice = lambda kinds: "after"  # type: ignore[method-assign]
    with storage.Tried():
        book.claim(2)
        pytest.fail("it was handed out")
    faults.on = False
    assert [trial.number for trial in book.claim(2)] == [2, 3]
    assert book.counts()["running"] == 2


@pytest.mark.parametrize("kind", ["server", "journal"])
def test_what_was_claimed_as_a_storage_went_away_waits_again(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(public, "_HANDED", set())  # other tests have studies of this name
    _, _, book = opened_book(tmp_path, kind=kind, total=2)
    made = optuna.Trial

    def fails(study: optuna.Study, row: int) -> optuna.Trial:
        if row == book._row(1):
            raise StorageInternalError("stale") from OSError(errno.ESTALE, "stale")
        return made(study, row)

    with monkeypatch.context() as at_first, storage.Tried():
        at_first.setattr(optuna, "Trial", fails)
        book.claim(2)
        pytest.fail("they were handed out")
    assert book.recover() == 2
    assert [trial.number for trial in book.claim(2)] == [2, 3]
    assert book.counts()["running"] == 2


@pytest.mark.parametrize("kind", ["bulk", "server"])
def test_silence_says_nothing_after_a_storage_was_away(tmp_path, monkeypatch, kind):
    _, _, book = opened_book(tmp_path, kind=kind)
    (trial,) = book.claim()
    book.beat([trial])
    falls_silent(book, trial)
    clock = [1e9]
    monkeypatch.setattr(patience.time, "monotonic", lambda: clock[0])

    def wait(seconds: float) -> None:
        clock[0] += seconds

    monkeypatch.setattr(patience.time, "sleep", wait)
    answers = [LOST_CONNECTION] * 12
    storage.again(lambda tried: answers and (_ for _ in ()).throw(answers.pop()), 120.0)
    assert clock[0] > 1e9 + patience.AWAY_S
    assert book.recover() == 0
    clock[0] += book.grace_s - 1
    assert book.recover() == 0
    clock[0] += 2
    assert book.recover() == 1


def test_after_a_restart_silence_counts_from_it(tmp_path, monkeypatch):
    _, _, book = opened_book(tmp_path)
    (trial,) = book.claim()
    falls_silent(book, trial)
    monkeypatch.setattr(tables, "_up_s", lambda page: 119.0)
    assert book.recover() == 0
    monkeypatch.setattr(tables, "_up_s", lambda page: 121.0)
    assert book.recover() == 1


def test_which_failures_of_servers_and_files_may_be_over_soon():
    grpc = pytest.importorskip("grpc")

    class Failure(grpc.RpcError):
        def __init__(self, code: Any):
            self.code = lambda: code

    codes = {code.name for code in grpc.StatusCode if storage.is_transient(Failure(code))}
    assert codes == {"UNAVAILABLE", "UNKNOWN", "CANCELLED", "DEADLINE_EXCEEDED", "INTERNAL"}
    assert storage.is_transient(OSError(errno.ESTALE, "stale"))
    assert storage.is_transient(sqlalchemy.exc.PendingRollbackError("after MariaDB was lost"))
    assert not storage.is_transient(OSError(errno.ENOSPC, "full"))


def test_what_was_undone_is_not_counted(tmp_path):
    """A transaction that is given up may have counted what it had changed itself."""
    opened, _, book = opened_book(tmp_path, total=1)
    (trial,) = book.claim()
    falls_silent(book, trial)
    faults = Faults(opened, 0, share=1.0)
    faults.chance.choice = lambda kinds: "before"  # type: ignore[method-assign]
    plain = opened.engine.dialect.do_commit
    commits = iter([True, False])  # the look for silent workers, and what requeues theirs

    def commit(connection: Any) -> None:
        faults.on = not next(commits)
        plain(connection)

    opened.engine.dialect.do_commit = commit
    with storage.Tried():
        book.recover()
        pytest.fail("it was done")
    opened.engine.dialect.do_commit = plain
    faults.on = False
    assert book.counts()["running"] == 1


def test_a_statement_that_its_limit_cut_off_is_tried_until_all_patience_is_over(monkeypatch):
    """Of half the patience each: hundreds of workers that start at once wait for each other."""
    errors = pytest.importorskip("psycopg.errors", reason="psycopg is not installed")
    clock, tries = [0.0], []
    monkeypatch.setattr(storage.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(storage.time, "sleep", lambda seconds: None)

    def cut_off(tried: int) -> str:
        tries.append(tried)
        if tried == 2:
            return "an answer"
        clock[0] += 59.0
        raise sqlalchemy.exc.OperationalError("SELECT", None, errors.QueryCanceled("timeout"))

    assert storage.again(cut_off, 120.0) == "an answer"
    assert tries == [0, 1, 2]
    clock[0], tries[:] = 0.0, []
    with pytest.raises(sqlalchemy.exc.OperationalError):
        storage.again(cut_off, 118.0)
    assert tries == [0, 1]
