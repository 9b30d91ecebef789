"""Sweeps without Optuna's tables: renamed ones, a journal file, a gRPC server."""

from __future__ import annotations

import sys
import threading
import types
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import optuna
import pytest
from book_support import end, falls_silent, finish, one, open_book, run_all, suggest
from optuna.trial import TrialState
from server_support import free_port
from sweep_support import QUICK

from sweepstack import storage
from sweepstack.cli.study import run
from sweepstack.config.errors import EnvironmentFault, InputError
from sweepstack.study import book
from sweepstack.study.attributes import BEGUN, CONTINUES, HEARTBEAT, LOST, RETRIED, WORKER
from sweepstack.study.book import processes
from sweepstack.study.book.public import PublicBook, held
from sweepstack.sweep import studies

RUNNING = TrialState.RUNNING

BULK, TABLES = "sweepstack.study.book.bulk", "sweepstack.study.book.tables"


@pytest.fixture
def renamed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An Optuna whose table of trials has another name."""
    import optuna.storages._rdb as rdb
    import optuna.storages._rdb.models as models

    other = types.ModuleType(models.__name__)
    vars(other).update({k: v for k, v in vars(models).items() if k != "TrialModel"})
    monkeypatch.setattr(rdb, "models", other)
    monkeypatch.delitem(sys.modules, BULK, raising=False)
    monkeypatch.delitem(sys.modules, TABLES, raising=False)
    monkeypatch.delattr(book, "bulk", raising=False)
    monkeypatch.delattr(book, "tables", raising=False)
    studies.bulk_problem.cache_clear()
    yield
    monkeypatch.undo()  # before other tests ask
    studies.bulk_problem.cache_clear()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """The URL of a gRPC server of Optuna's in a thread, which has a database."""
    pytest.importorskip("grpc", reason="grpcio is not installed")
    port = free_port()
    kept = storage.connect(f"sqlite:///{tmp_path}/server.db")
    pool = ThreadPoolExecutor(4)

    def serve() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            optuna.storages.run_grpc_proxy_server(kept, port=port, thread_pool=pool)

    threading.Thread(target=serve, daemon=True).start()
    yield f"grpc://localhost:{port}"
    pool.shutdown(wait=False)


def states(url: str, name: str) -> list[str]:
    study = optuna.load_study(study_name=name, storage=storage.connect(url))
    return [t.state.name for t in study.trials if RETRIED not in t.user_attrs]


def test_a_sweep_runs_and_goes_on_with_renamed_tables(main, renamed, monkeypatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(studies.log, "warning", lambda text, *given: said.append(text % given))
    words = ("hydra.sweeper.study_name=s", "optimizer.lr=interval(0.001,0.02)")
    for total in (3, 5):
        ended = main("-m", *QUICK, *words, f"hydra.sweeper.n_trials={total}")
        assert ended.code == 0, ended.err
    assert len(said) == 1
    assert "TrialModel" in said[0]
    assert states(storage.DEFAULT, "s") == ["COMPLETE"] * 5


def test_a_sweep_runs_in_a_journal_and_goes_on(main, tmp_path, capsys) -> None:
    url = "journal:///outputs/s.journal"
    words = ("hydra.sweeper.study_name=s", f"hydra.sweeper.storage={url}", "optimizer.lr=0.01,0.02")
    assert main("-m", *QUICK, *words, "init=he,xavier").code == 0
    again = main("-m", *QUICK, *words, "init=he,xavier")
    assert again.code == 0
    assert "4 of them done before" in again.out
    assert states(url, "s") == ["COMPLETE"] * 4
    assert run(["list", "--storage", url]) == 0
    assert "\ns  " in capsys.readouterr().out
    assert run(["show", "s", "--storage", url]) == 0


def test_a_sweep_runs_over_grpc(main, server) -> None:
    words = ("hydra.sweeper.study_name=s", f"hydra.sweeper.storage={server}")
    ended = main("-m", *QUICK, *words, "optimizer.lr=0.01,0.02,0.03")
    assert ended.code == 0, ended.err
    assert states(server, "s") == ["COMPLETE"] * 3
    assert run(["list", "--storage", server]) == 0


def test_a_server_that_does_not_answer_and_a_journal_that_is_not_there_are_one_line(
    tmp_path, monkeypatch
):
    pytest.importorskip("grpc", reason="grpcio is not installed")
    monkeypatch.setattr(storage, "TIMEOUT_S", 0.1)
    with pytest.raises(EnvironmentFault, match=r"grpc://me:\*\*\*@localhost:1 .* within 0\.1 s"):
        storage.connect("grpc://me:secret@localhost:1")
    with pytest.raises(EnvironmentFault, match=r"does not exist.*; a sweep makes it"):
        storage.look(f"journal:///{tmp_path}/none.journal")
    with pytest.raises(InputError, match=r"journal:///studies\.journal"):
        storage.connect("journal://")


def journal(folder: Path) -> str:
    return f"journal:///{folder}/studies.journal"


def test_what_is_lost_in_a_journal_is_run_again(tmp_path: Path) -> None:
    book = open_book(journal(tmp_path), 2, 2, kind="public")
    lost = one(book)
    suggest(book, lost)
    falls_silent(book, lost)
    other = open_book(journal(tmp_path), 2, 2, kind="public")
    assert other.recover() == 1
    assert sorted(run_all(other)) == [0.0, 1.0]
    assert end(book, lost) == [0]
    assert other.counts()["done"] == 2


@pytest.mark.parametrize("at", range(6))
def test_a_requeue_that_is_killed_anywhere_is_finished_by_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    """The writes of `_replace` one after the other, with a kill before each."""
    url = f"sqlite:///{tmp_path}/studies.db"
    book = open_book(url, 1, kind="public")
    trial = one(book)
    x = suggest(book, trial)
    falls_silent(book, trial)
    calls = []

    def killed(name: str) -> None:
        original = getattr(book.storage, name)

        def call(*given: Any, **named: Any) -> Any:
            calls.append(name)
            if len(calls) > at:
                raise KeyboardInterrupt
            return original(*given, **named)

        monkeypatch.setattr(book.storage, name, call)

    for name in ("create_new_trial", "set_trial_user_attr", "set_trial_state_values"):
        killed(name)
    try:
        book.recover()
    except KeyboardInterrupt:
        assert len(calls) == at + 1
    other = open_book(url, 1, kind="public")
    trial = one(other)
    assert suggest(other, trial) == x
    finish(other, trial)
    assert other.counts()["done"] == 1
    assert other.counts()["remaining"] == other.counts()["running"] == 0


def test_a_trial_whose_worker_is_killed_as_it_begins_is_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = journal(tmp_path)
    book = open_book(url, 1, kind="public")
    book.enqueue([{"x": 7.0}])
    begin = book.storage.set_trial_state_values

    def killed(*given: Any) -> None:
        begin(*given)
        raise KeyboardInterrupt

    monkeypatch.setattr(book.storage, "set_trial_state_values", killed)
    with pytest.raises(KeyboardInterrupt):
        book.claim()
    monkeypatch.setattr(processes, "is_gone", lambda worker: True)
    other = open_book(url, 1, kind="public")
    assert other.recover() == 1
    assert run_all(other) == [7.0]


def test_a_new_trial_whose_worker_is_killed_on_another_host_is_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    book = open_book(journal(tmp_path), 1, kind="public")
    add = book.storage.create_new_trial

    def killed(*given: Any) -> None:
        add(*given)
        raise KeyboardInterrupt

    monkeypatch.setattr(processes, "this_process", lambda: "elsewhere/1:7:7")
    monkeypatch.setattr(book.storage, "create_new_trial", killed)
    with pytest.raises(KeyboardInterrupt):
        book.claim()
    monkeypatch.undo()
    (heartbeat,) = (key for key in book.study.user_attrs if key.startswith(HEARTBEAT))
    book.study.set_user_attr(heartbeat, 1.0)
    assert open_book(journal(tmp_path), 1, kind="public").recover() == 1


def test_a_lock_that_cannot_be_had_is_a_failure_of_the_storage(tmp_path: Path) -> None:
    lock = tmp_path / "none" / ".s.lock"
    with (
        pytest.raises(EnvironmentFault, match="cannot lock"),
        storage.named("journal:///s"),
        held(lock),
    ):
        pass


class Racing(PublicBook):
    """A book of a server, where another does something between a look and the writes."""

    meanwhile: Any = None

    def _begin_new(self, *given: Any) -> list[int]:
        self._race()
        return super()._begin_new(*given)

    def _write_effects(self, *given: Any) -> None:
        self._race()
        super()._write_effects(*given)

    def _race(self) -> None:
        act, self.meanwhile = self.meanwhile, None
        if act is not None:
            act()


def test_a_trial_that_lost_the_race_for_an_effect_takes_it_once_the_first_has_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"sqlite:///{tmp_path}/studies.db"
    monkeypatch.setattr("sweepstack.study.book.public.lock_file", lambda storage: None)
    other = open_book(url, 2, kind="public")
    made = open_book(url, 2, kind="public")
    book = Racing(made.study, made.storage, 2)
    first, second = one(other), one(book)
    assert first is not None
    assert second is not None
    book.meanwhile = lambda: other.take_effects([(first, "effect")])
    (owner,) = book.take_effects([(second, "effect")])
    assert owner is not None
    assert owner.number == first.number
    end(other, first, state=TrialState.FAIL)
    assert book.take_effects([(second, "effect")]) == [None]


@pytest.mark.parametrize("points", [None, 3])
def test_without_a_lock_the_lowest_number_keeps_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, points: int | None
) -> None:
    url = f"sqlite:///{tmp_path}/studies.db"
    monkeypatch.setattr("sweepstack.study.book.public.lock_file", lambda storage: None)
    other = open_book(url, 3, points, kind="public")
    made = open_book(url, 3, points, kind="public")
    grid = None if points is None else [{"x": float(x)} for x in range(points)]
    book = Racing(made.study, made.storage, 3, points=grid)
    book.meanwhile = lambda: finish(other, one(other))
    ran = [trial.number for trial in book.claim(3)]
    assert len(ran) == 2
    assert not other.claim(3)
    for number in ran:
        book.study.tell(number, 0.0)
    assert other.counts() == {
        **dict.fromkeys(("pruned", "failed", "running", "waiting", "remaining"), 0),
        "done": 3,
    }
    withdrawn = [t for t in made.study.trials if LOST in t.user_attrs]
    assert {t.state for t in withdrawn} == {TrialState.FAIL}
    assert all(RETRIED in t.user_attrs for t in withdrawn)


def test_workers_are_told_apart_by_their_heartbeats(tmp_path: Path, monkeypatch: Any) -> None:
    book = open_book(journal(tmp_path), 2, kind="public")
    mine = one(book)
    with monkeypatch.context() as patch:
        patch.setattr(processes, "this_process", lambda: "elsewhere/1:7:7")
        theirs = one(open_book(journal(tmp_path), 2, kind="public"))
    assert theirs is not None
    assert book.trial(theirs.number).user_attrs[WORKER] == "elsewhere/1:7:7"
    falls_silent(book, theirs)
    assert book.recover() == 1
    assert mine is not None
    assert book.trial(mine.number).state == TrialState.RUNNING


def test_who_dies_between_a_trial_s_state_and_its_own_name_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over a server a waiting trial is begun before anyone knows by whom."""
    url = f"sqlite:///{tmp_path}/studies.db"
    monkeypatch.setattr("sweepstack.study.book.public.lock_file", lambda storage: None)
    book, other = (open_book(url, 2, kind="public") for _ in range(2))
    book.study.ask()  # a person's, who may take days
    book.enqueue([{"x": 7.0}])

    def killed(number: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(book, "_name_worker", killed)
    with pytest.raises(KeyboardInterrupt):
        book.claim()
    assert other.others_at_work()
    assert other.recover() == 0
    other.grace_s = -1.0
    assert other.recover() == 1
    assert suggest(other, one(other)) == 7.0
    assert [t.state.name for t in other.study.trials] == ["RUNNING", "FAIL", "RUNNING"]


class Server(PublicBook):
    """A book whose server tells all who begin a trial that they did, as Optuna's over SQLite may,
    and lets others act before that and after a worker said that it did."""

    def __init__(self, url: str, name: str, patch: pytest.MonkeyPatch):
        made = open_book(url, 1, kind="public")
        super().__init__(made.study, made.storage, 1)
        self.name, self.acts, self.patch = name, dict[str, Any](), patch

    def _claim(self, *given: Any) -> list[int]:
        with self.patch.context() as patch:
            patch.setattr(processes, "this_process", lambda: self.name)
            patch.setattr(self.storage, "set_trial_state_values", self.begin_any)
            patch.setattr(self.storage, "set_trial_system_attr", self.say)
            return super()._claim(*given)

    def act(self, place: str) -> None:
        self.acts.pop(place, lambda: None)()

    def begin_any(self, trial: int, state: TrialState, values: Any = None) -> bool:
        if state == TrialState.RUNNING:
            self.act("before")
        type(self.storage).set_trial_state_values(self.storage, trial, state, values)
        return True

    def say(self, trial: int, key: str, value: Any) -> None:
        type(self.storage).set_trial_system_attr(self.storage, trial, key, value)
        self.act("after")


@pytest.mark.parametrize("place", ["before", "after"])
def test_of_two_that_a_server_lets_begin_a_trial_one_has_it_or_it_waits_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    url = f"sqlite:///{tmp_path}/studies.db"
    monkeypatch.setattr("sweepstack.study.book.public.lock_file", lambda storage: None)
    monkeypatch.setattr("sweepstack.study.book.public._DOUBT_S", -1.0)
    book, other = (Server(url, f"host/1:{n}:{n}", monkeypatch) for n in (1, 2))
    book.enqueue([{"x": 7.0}])
    ran: list[int] = []
    row, said = book._row(0), f"{BEGUN}.{other.name}"
    book.acts = {
        "before": lambda: ran.extend(other._claim(1, None, True, 0)),
        "after": lambda: other.storage.set_trial_system_attr(row, said, True),  # and looks later
    }
    book.acts = {place: book.acts[place]}
    ran += [trial.number for trial in book.claim() + other.claim()]
    assert not book.acts
    (number,) = ran
    assert number == 0 or book.trial(number).user_attrs[CONTINUES] == 0
    assert book.counts()["running"] == 1
    assert len([t for t in book.study.trials if RETRIED not in t.user_attrs]) == 1


def test_a_result_that_was_written_as_its_trial_was_replaced_counts() -> None:
    """Of a server nobody holds: its worker, which was only held up, ends a trial between two
    writes of the one who replaces it."""
    opened = optuna.storages.InMemoryStorage()
    study = optuna.create_study(study_name="s", storage=opened)
    book = PublicBook(study, opened, 2)
    (trial,) = book.claim()
    write = opened.set_trial_state_values

    def first(number: int, state: TrialState, values: Any = None) -> bool:
        if state == TrialState.FAIL and number == trial._trial_id:
            write(number, TrialState.COMPLETE, [0.5])
        return write(number, state, values)

    opened.set_trial_state_values = first  # type: ignore[method-assign]
    with book._held() as page:
        book._requeue(page, [(record, "silent") for record in book._records(page, RUNNING)], 1)
    assert book.counts()["done"] == 1
    assert [each.number for each in book.claim(5)] == [2]
    assert (book.counts()["remaining"], book.counts()["waiting"]) == (1, 0)
    assert book.numbers_with(RETRIED) == [1]
    assert study.trials[trial.number].value == 0.5
