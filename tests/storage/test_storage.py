"""Databases open so that workers take turns, and what is wrong with one is said in one line."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import sqlite3
import threading
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy
from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage
from sqlalchemy.engine.default import DefaultDialect
from sqlalchemy.pool import QueuePool

from sweepstack import storage
from sweepstack.config.errors import EnvironmentFault, InputError, masked, one_line
from sweepstack.storage import server


class Server(DefaultDialect):
    """A database server whose driver answers as a test says; `fakeserver://` in URLs."""

    name = "fakeserver"
    driver = "fake"
    supports_statement_cache = True
    answer: Any = None

    @classmethod
    def import_dbapi(cls) -> Any:
        return types.SimpleNamespace(
            paramstyle="qmark", Error=Exception, connect=lambda **_: Server.answer()
        )


sqlalchemy.dialects.registry.register("fakeserver", __name__, "Server")


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/new/folder/studies.db"


def refusal(url: str) -> str:
    with pytest.raises(EnvironmentFault) as caught:
        storage.connect(url)
    message = str(caught.value)
    assert "\n" not in message
    assert caught.value.exit_code == 3
    return message


def test_a_new_file_is_made_with_its_folder_and_keeps_what_is_written(url: str) -> None:
    optuna.create_study(storage=storage.connect(url), study_name="kept")
    assert optuna.get_all_study_names(storage.connect(url)) == ["kept"]
    assert {path.name.partition("-")[0] for path in Path(url[10:]).parent.iterdir()} == {
        "studies.db"
    }


def test_a_new_file_is_made_where_there_are_no_hard_links(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise PermissionError("Operation not permitted")

    monkeypatch.setattr(storage.os, "link", refuse)
    optuna.create_study(storage=storage.connect(url), study_name="kept")
    assert optuna.get_all_study_names(storage.connect(url)) == ["kept"]


def test_every_connection_has_the_settings(url: str) -> None:
    engine = storage.connect(url).engine
    with engine.connect() as one, engine.connect() as other:
        assert one.connection.dbapi_connection is not other.connection.dbapi_connection
        for connection in (one, other):
            raw = connection.connection.dbapi_connection
            assert raw is not None
            settings = [
                raw.execute(f"PRAGMA {name}").fetchone()[0]
                for name in ("journal_mode", "synchronous", "busy_timeout")
            ]
            assert settings == ["wal", 1, 60_000]


def test_a_file_that_plain_optuna_made_gets_the_settings_too(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/plain.db"
    RDBStorage(url).engine.dispose()
    with storage.connect(url).engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"


def test_what_only_reads_so_far_already_keeps_other_writers_out(url: str) -> None:
    engine = storage.connect(url).engine
    other = sqlite3.connect(url[10:], timeout=0, isolation_level=None)
    with engine.begin() as connection:
        connection.exec_driver_sql("SELECT count(*) FROM trials").scalar()
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            other.execute("BEGIN IMMEDIATE")
    other.execute("BEGIN IMMEDIATE")
    other.close()


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://ann:s3cret@db:5432/x", "postgresql://ann:***@db:5432/x"),
        ("mysql+pymysql://db/x?user=ann&passwd=s3cret", "mysql+pymysql://db/x?user=ann&passwd=***"),
        ("sqlite:///outputs/studies.db", "sqlite:///outputs/studies.db"),
        ("postgresql://ann:s3cret@db:port/x", "postgresql://ann:***@db:port/x"),
        ("postgresql://ann@a.org:s3cret@[::1]:5/x", "postgresql://ann@a.org:***@[::1]:5/x"),
        (
            "postgresql://u:12/s3c@ret@h/x?sslpassword=s3cret",
            "postgresql://u:***@h/x?sslpassword=***",
        ),
        (
            "postgresql://u:s3 c'ret@h/x?password=s3 c&ret&a=1",
            "postgresql://u:***@h/x?password=***&a=1",
        ),
        ("postgresql://u:s3cret#h/x", "postgresql://u:***"),
        ("postgresql:/u:s3cret@h", "postgresql:/u:***@h"),
        ("ann:s3cret@db/x", "ann:***@db/x"),
        ("redis://:s3cret@h", "redis://:***@h"),
        ("mssql+pyodbc:///?odbc_connect=PWD%3Ds3cret", "mssql+pyodbc:///?odbc_connect=***"),
        ("postgresql://db:5432/x", "postgresql://db:5432/x"),
        ("sqlite:///C:/my studies.db", "sqlite:///C:/my studies.db"),
        ("http://[::1]:8080/x", "http://[::1]:8080/x"),
    ],
)
def test_passwords_are_not_shown(url: str, shown: str) -> None:
    assert masked(url) == shown


def test_no_message_shows_the_password_of_a_url_that_it_quotes() -> None:
    word = "hydra.sweeper.storage=postgresql://u:s3 cret@h:port/x?password=s3 cret"
    hidden = "'hydra.sweeper.storage=postgresql://u:***@h:port/x?password=***' cannot be read"
    assert str(InputError([f"'{word}' cannot be read"])) == hidden
    assert InputError(f"'{word}' cannot be read").mistakes == [hidden]
    assert str(EnvironmentFault(f"'{word}' cannot be read")) == hidden
    assert one_line("failed: host=x password=s3cret") == "failed: host=x password=***"
    for harmless in ("got 'num_tokens=3', see a@b", "http://127.0.0.1:8080/ (ann@db)"):
        assert str(InputError(harmless)) == harmless


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("studies.db", "got studies.db"),
        ("", "got "),
        ("postgres://ann:s3cret@db/x", "got postgres://...; did you mean 'postgresql'?"),
        ("postgresql://ann:s3cret@db:port/x", "got postgresql://..."),
        ("postgresl://ann:s3cret@db/x", "got postgresl://...; did you mean 'postgresql'?"),
        ("ann:s3cret@db/x", "got ann:***@db/x"),
    ],
)
def test_what_is_no_database_url_is_refused(url: str, shown: str) -> None:
    with pytest.raises(InputError) as caught:
        storage.connect(url)
    assert (
        str(caught.value)
        == "storage must be a database URL such as sqlite:///outputs/studies.db, " + shown
    )


@pytest.mark.parametrize("open_it", [storage.connect, storage.look])
@pytest.mark.parametrize("scheme", ["postgresql", "postgresql+asyncpg", "mysql", "oracle", "mssql"])
def test_a_driver_that_is_not_there_is_one_line(scheme: str, open_it: Any) -> None:
    with pytest.raises(EnvironmentFault) as caught:
        open_it(f"{scheme}://ann:s3cret@127.0.0.1:9/x?password=s3cret")
    message = str(caught.value)
    assert message.startswith(f"storage {scheme}://ann:***@127.0.0.1:9/x?password=*** ")
    assert "s3cret" not in message
    assert "\n" not in message
    assert caught.value.__cause__ is None  # a traceback would print it


@pytest.fixture
def silent_server() -> Iterator[None]:
    over = threading.Event()
    Server.answer = over.wait
    yield
    over.set()


@pytest.mark.usefixtures("silent_server")
def test_a_server_that_does_not_answer_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "TIMEOUT_S", 0.05)
    message = refusal("fakeserver://ann:s3cret@db/x")
    assert message == "storage fakeserver://ann:***@db/x cannot be opened: no answer within 0.05 s"


def test_a_server_that_refuses_is_quoted_without_the_password() -> None:
    def refuse() -> None:
        raise ConnectionRefusedError("cannot reach db\nas ann with s3cret")

    Server.answer = refuse
    message = refusal("fakeserver://ann:s3cret@db/x")
    assert message == (
        "storage fakeserver://ann:***@db/x cannot be opened: cannot reach db as ann with ***"
    )


def test_what_a_driver_quotes_of_a_url_is_masked() -> None:
    def refuse() -> None:
        raise ConnectionRefusedError("bad p%40ss in user=ann pw p@ss, sslpassword 0ther")

    Server.answer = refuse
    message = refusal("fakeserver://ann:p%40ss@db/x?sslpassword=0ther")
    assert "p@ss" not in message
    assert "p%40ss" not in message
    assert "0ther" not in message
    with pytest.raises(EnvironmentFault) as caught, storage.named("x://ann:p%40ss@db/x"):
        raise sqlalchemy.exc.SQLAlchemyError("cannot reach x://ann:p%40ss@db/x by p@ss")
    assert "p@ss" not in str(caught.value)
    assert "p%40ss" not in str(caught.value)


class Held:
    """A lock on a file that ends once who waits for it has been told to go on waiting."""

    def __init__(self, path: Path, kind: str, monkeypatch: pytest.MonkeyPatch):
        self.holder = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self.holder.execute(f"BEGIN {kind}")
        self.waits, self.told = 0, []
        monkeypatch.setattr(storage.time, "sleep", self.sleep)
        monkeypatch.setattr(storage.log, "warning", lambda *words: self.told.append(words))
        monkeypatch.setattr(storage, "BUSY_TIMEOUT_MS", 1)
        monkeypatch.setattr(storage, "READ_TIMEOUT_S", 0.001)
        monkeypatch.setattr(storage, "TELL_S", 0.0)

    def sleep(self, _: float) -> None:
        self.waits += 1
        if self.waits == 3:
            self.holder.close()


@pytest.mark.parametrize("journal", ["delete", "wal"])
@pytest.mark.parametrize("open_it", [storage.connect, storage.look])
def test_opening_a_file_waits_as_long_as_another_process_holds_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, journal: str, open_it: Any
) -> None:
    path = tmp_path / "studies.db"
    RDBStorage(f"sqlite:///{path}").engine.dispose()
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA journal_mode = {journal}")
    held = Held(path, "EXCLUSIVE", monkeypatch)
    monkeypatch.setattr(storage, "TIMEOUT_S", 0.0)  # is for servers
    open_it(f"sqlite:///{path}")
    reads_beside_writers = journal == "wal" and open_it is storage.look
    assert held.waits == (0 if reads_beside_writers else 3)
    assert len(held.told) == (0 if reads_beside_writers else 1)


def test_a_transaction_waits_as_long_as_another_process_holds_the_file(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "BUSY_TIMEOUT_MS", 1)
    study = optuna.create_study(storage=storage.connect(url), study_name="kept")
    held = Held(Path(url[10:]), "IMMEDIATE", monkeypatch)
    study.set_user_attr("a", 1)
    assert held.waits == 3
    assert study.user_attrs == {"a": 1}


def test_another_file_is_no_database(tmp_path: Path) -> None:
    notes = tmp_path / "notes.txt"
    notes.write_text("lr 0.1 was too high\n" * 100)
    assert "notes.txt is not a database" in refusal(f"sqlite:///{notes}")
    assert notes.read_text() == "lr 0.1 was too high\n" * 100


def test_an_empty_file_becomes_a_database(tmp_path: Path) -> None:
    (tmp_path / "empty.db").touch()
    assert optuna.get_all_study_names(storage.connect(f"sqlite:///{tmp_path}/empty.db")) == []


@pytest.mark.parametrize("journal", ["delete", "wal", "wal of a killed process"])
@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("UPDATE alembic_version SET version_num = 'v3.0.0.a'", "an older Optuna (schema v3.0.0.a"),
        (
            "UPDATE alembic_version SET version_num = 'v99.0.0.a'",
            "a newer Optuna (schema v99.0.0.a",
        ),
        (
            "DROP TABLE alembic_version; UPDATE version_info SET schema_version = 11",
            "an older Optuna (schema v0.9.0.a",
        ),
    ],
)
def test_a_schema_of_another_optuna_is_left_as_it_was(
    tmp_path: Path, journal: str, change: str, said: str
) -> None:
    made = tmp_path / "made.db"
    RDBStorage(f"sqlite:///{made}").engine.dispose()
    connection = sqlite3.connect(made)
    connection.executescript(f"PRAGMA journal_mode = {journal.split()[0]}; {change}")
    connection.execute("DROP TABLE trial_heartbeats")  # Optuna would create it again
    connection.commit()
    if "killed" not in journal:
        connection.close()
    path = tmp_path / "other.db"
    for suffix in ("", "-wal"):
        if (made.parent / f"made.db{suffix}").exists():
            shutil.copy(f"{made}{suffix}", f"{path}{suffix}")
    connection.close()
    before = path.read_bytes()
    assert said in refusal(f"sqlite:///{path}")
    assert path.read_bytes() == before


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    message = refusal(f"sqlite:///{tmp_path}/file/studies.db")
    assert f"no file can be made in {tmp_path}/file" in message


@pytest.mark.parametrize("what", ["folder", "file"])
def test_what_may_not_be_written_is_refused(tmp_path: Path, what: str) -> None:
    folder = tmp_path / "shared"
    folder.mkdir()
    file = folder / "studies.db"
    if what == "file":
        RDBStorage(f"sqlite:///{file}").engine.dispose()
        file.chmod(0o444)
    folder.chmod(0o555)
    if os.access(folder, os.W_OK):
        pytest.skip("root may write everywhere")
    try:
        assert f"storage sqlite:///{file} cannot be opened: " in refusal(f"sqlite:///{file}")
    finally:
        folder.chmod(0o755)


def test_studies_are_found_in_a_folder_above_as_git_finds_its_repository(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "outputs" / "studies.db"
    optuna.create_study(storage=storage.connect(f"sqlite:///{file}"), study_name="kept")
    below = tmp_path / "a" / "b"
    below.mkdir(parents=True)
    monkeypatch.chdir(below)
    found = storage.above(storage.DEFAULT)
    assert found == storage.above(storage.DEFAULT) == f"sqlite:///{file}"
    assert capsys.readouterr().err == f"studies are read from {file}, in a folder above\n"
    assert storage.above("sqlite:///x.db") == "sqlite:///x.db"
    with pytest.raises(EnvironmentFault, match=rf"those in {file} are changed in its folder alone"):
        storage.look(storage.DEFAULT)  # as what deletes does
    monkeypatch.setattr(os, "getuid", lambda: -1)  # the file is somebody else's
    assert storage.above(storage.DEFAULT) == storage.DEFAULT
    monkeypatch.chdir(tmp_path)
    assert storage.above(storage.DEFAULT) == storage.DEFAULT


def test_where_there_are_no_studies_the_whole_path_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(EnvironmentFault) as caught:
        storage.look(storage.DEFAULT)
    assert str(caught.value) == (
        f"there are no studies: {tmp_path}/outputs/studies.db does not exist, nor in a folder "
        "above; a sweep makes it, or --storage (in Python storage=) names another"
    )


def test_a_worker_keeps_one_connection_of_a_server(monkeypatch):
    """PostgreSQL allows a hundred, if nobody changes it."""
    options: list[dict[str, Any]] = []

    def made(url: str, given: dict[str, Any], *more: Any, **named: Any) -> Any:
        options.append(given)
        return types.SimpleNamespace(engine=sqlalchemy.create_engine("sqlite://"))

    monkeypatch.setattr(storage, "RDBStorage", made)
    storage._optunas("mysql+pymysql://db/studies", None, True)
    engine = sqlalchemy.create_engine("sqlite://", poolclass=QueuePool, **options[0])
    for connection in [engine.connect(), engine.connect()]:
        connection.close()
    assert engine.pool.checkedin() == 1


def test_a_new_file_is_what_optuna_makes(tmp_path):
    storage.connect(f"sqlite:///{tmp_path}/ours.db")
    RDBStorage(f"sqlite:///{tmp_path}/optunas.db")
    found = []
    for name in ("ours.db", "optunas.db"):
        with contextlib.closing(sqlite3.connect(tmp_path / name)) as connection:
            tables = "SELECT type, name, tbl_name, sql FROM sqlite_master ORDER BY type, name"
            queries = (tables, "SELECT * FROM version_info", "SELECT * FROM alembic_version")
            found.append([connection.execute(query).fetchall() for query in queries])
    assert found[0] == found[1]
    assert all(found[0])


def test_optuna_makes_and_checks_its_tables_once_in_a_process(tmp_path, monkeypatch):
    """It takes a tenth of a second each time."""
    calls: list[tuple[Any, ...]] = []

    def noted(*given: Any, **named: Any) -> RDBStorage:
        calls.append((given[0], given[2] if len(given) > 2 else None, named))
        return RDBStorage(*given, **named)

    storage._fresh.cache_clear()
    monkeypatch.setattr(storage, "RDBStorage", noted)
    url = f"sqlite:///{tmp_path}/studies.db"
    for opened in (storage.connect(url), storage.connect(url), storage.look(url)[1]):
        assert optuna.get_all_study_names(opened) == []
    assert [where for where, *_ in calls].count("sqlite://") == 1
    assert [rest for where, *rest in calls if where == url] == 3 * [
        [True, {"skip_table_creation": True}]
    ]


def test_the_part_of_a_line_that_a_killed_writer_left_spoils_no_journal(tmp_path):
    """Without the cut the next entry would be appended to it: lost, though it was acknowledged, and
    the file could never be read again."""
    url, file = f"journal:///{tmp_path}/s.journal", tmp_path / "s.journal"
    study = optuna.create_study(study_name="s", storage=storage.connect(url))
    for part in (b"{", b'{"op_code":2,"worker_id":"' + 9000 * b"x"):
        with file.open("ab") as journal:
            journal.write(part)
        fresh = optuna.load_study(study_name="s", storage=storage.connect(url))
        fresh.set_user_attr("first", len(part))
        study.set_user_attr("second", len(part))
        assert study.user_attrs == fresh.user_attrs == {"first": len(part), "second": len(part)}
    assert file.read_bytes().count(b"\n") == 5


def test_a_journal_with_a_broken_line_names_it_and_another_file_stays_as_it_is(tmp_path):
    url, file = f"journal:///{tmp_path}/s.journal", tmp_path / "s.journal"
    study = optuna.create_study(study_name="s", storage=storage.connect(url))
    entry = file.read_bytes()
    file.write_bytes(entry + b'{"op_code":2{"op_code":3}\n' + entry)
    refused = r"line 2 of .*s\.journal is broken"
    with pytest.raises(EnvironmentFault, match=refused):
        storage.connect(url)
    with pytest.raises(EnvironmentFault, match=refused), storage.named(url):
        study.user_attrs  # noqa: B018
    for text in (b"notes", b"{notes\n\n"):
        file.write_bytes(text)
        with pytest.raises(EnvironmentFault, match="neither a database nor a journal"):
            storage.connect(url)
        assert file.read_bytes() == text


def test_a_server_that_neither_answers_nor_fails_is_cut_off(monkeypatch):
    ours, theirs = socket.socketpair()
    dialect = types.SimpleNamespace(driver="psycopg", do_execute=lambda cursor: ours.recv(1))
    for name in ("executemany", "execute_no_params", "commit", "rollback", "ping"):
        setattr(dialect, f"do_{name}", None)
    engine: Any = types.SimpleNamespace(dialect=dialect, dispose=lambda: None)
    monkeypatch.setattr(server.event, "listens_for", lambda *_: lambda listener: None)
    server._limit_statements(engine, -1.0)
    with ours, theirs:
        assert dialect.do_execute(types.SimpleNamespace(connection=ours)) == b""
    assert not server._due


def test_a_grpc_server_that_does_not_answer_may_answer_later():
    silent = server._limited(threading.Event().wait, 0.01)
    with pytest.raises(StorageInternalError, match="no answer within") as raised:
        silent()
    assert storage.is_transient(raised.value)
    assert server._limited(len, 1.0)("four") == 4


def test_what_is_said_to_a_driver_about_silence():
    for driver in ("psycopg", "psycopg2"):
        assert server._limits(driver, 60.0)["tcp_user_timeout"] == 60_000
    assert server._limits("pymysql", 60.0)["read_timeout"] == 60
    assert server._limits("oracledb", 60.0) == {}
