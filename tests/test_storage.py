"""Databases open so that workers take turns, and what is wrong with one is said in one line."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import threading
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy
from optuna.storages import RDBStorage
from sqlalchemy.engine.default import DefaultDialect

from iolaus import storage
from iolaus.errors import EnvironmentFault, InputError


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


def refusal(url: str, **options: Any) -> str:
    with pytest.raises(EnvironmentFault) as caught:
        storage.connect(url, **options)
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
        ("mysql+pymysql://db/x?user=ann&passwd=s3cret", "mysql+pymysql://db/x?passwd=***&user=ann"),
        ("sqlite:///outputs/studies.db", "sqlite:///outputs/studies.db"),
        ("s3cret", "***"),
        ("postgresql://ann:s3cret@db:port/x", "***"),
    ],
)
def test_passwords_are_not_shown(url: str, shown: str) -> None:
    assert storage.masked(url) == shown


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("studies.db", "got studies.db"),
        ("", "got "),
        ("postgres://ann:s3cret@db/x", "got postgres://..."),
        ("postgresql://ann:s3cret@db:port/x", "got postgresql://..."),
    ],
)
def test_what_is_no_database_url_is_refused(url: str, shown: str) -> None:
    with pytest.raises(InputError) as caught:
        storage.connect(url)
    assert (
        str(caught.value)
        == "storage must be a database URL such as sqlite:///outputs/studies.db, " + shown
    )


def test_a_missing_driver_is_named_by_its_package() -> None:
    with contextlib.suppress(ImportError):
        import MySQLdb  # noqa: F401

        pytest.skip("mysqlclient is installed here")
    message = refusal("mysql://ann:s3cret@db/x")
    assert (
        message
        == "storage mysql://ann:***@db/x needs the package mysqlclient, which is not installed"
    )


@pytest.fixture
def silent_server() -> Iterator[None]:
    over = threading.Event()
    Server.answer = over.wait
    yield
    over.set()


@pytest.mark.usefixtures("silent_server")
def test_a_server_that_does_not_answer_is_given_up() -> None:
    message = refusal("fakeserver://ann:s3cret@db/x", timeout_s=0.05)
    assert message == "storage fakeserver://ann:***@db/x cannot be opened: no answer within 0.05 s"


def test_a_server_that_refuses_is_quoted_without_the_password() -> None:
    def refuse() -> None:
        raise ConnectionRefusedError("cannot reach db\nas ann with s3cret")

    Server.answer = refuse
    message = refusal("fakeserver://ann:s3cret@db/x")
    assert message == (
        "storage fakeserver://ann:***@db/x cannot be opened: cannot reach db as ann with ***"
    )


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
