"""Where studies live: one database, opened so that many workers can write to it at once.

SQLite needs help for that. Every connection uses write-ahead logging (WAL) with
`synchronous=NORMAL` and begins each transaction with `BEGIN IMMEDIATE`: reading a row and then
changing it is one step that no other process can enter, so no waiting trial is handed out twice.
Whoever opens a file or begins a transaction waits as long as another process holds the file: a lock
ends with its process. These settings hang on the engine and are lost when a storage is pickled; a
worker in another process connects by URL.

Everything that can be wrong with a URL (`url.py`) is found before Optuna touches the
database, which creates missing tables in whatever it opens.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import sqlite3
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import optuna
import sqlalchemy
from optuna.exceptions import ExperimentalWarning
from optuna.storages import BaseStorage, GrpcStorageProxy, RDBStorage
from sqlalchemy import event
from sqlalchemy.engine import URL, Connection, Engine
from sqlalchemy.pool import ConnectionPoolEntry, NullPool

from sweepstack.config.errors import EnvironmentFault, InputError, SweepstackError, masked
from sweepstack.storage import url as storage_url
from sweepstack.storage.journal import FileJournal, head, open_journal
from sweepstack.storage.patience import (
    FAILURES,
    Result,
    Tried,
    again,
    ignored,
    is_failure,
    is_transient,
    named,
    was_away,
)
from sweepstack.storage.server import quick_transaction, single, use_server, wait_for_server, within

__all__ = [
    "DEFAULT",
    "FAILURES",
    "Tried",
    "above",
    "again",
    "close",
    "connect",
    "file_of",
    "ignored",
    "is_failure",
    "is_transient",
    "look",
    "named",
    "names",
    "quick_transaction",
    "single",
    "wait_for_server",
    "was_away",
]

log = logging.getLogger(__name__)

DEFAULT = storage_url.DEFAULT
_said: set[Path] = set()
"""Files in folders above that a person was told of."""
BUSY_TIMEOUT_MS = 60_000
READ_TIMEOUT_S = 1.0
"""How long SQLite itself waits for a lock, writing and reading, before it is asked again."""
TELL_S = 10.0
"""After so long a person is told what is waited for."""
GRPC_PORT = 13000
"""Optuna's."""
_FIRST_SCHEMAS = "SELECT schema_version FROM version_info"
_VERSION = "SELECT version_num FROM alembic_version"


def connect(url: str = DEFAULT, *, timeout_s: float = 10.0, patience_s: float = 0.0) -> BaseStorage:
    """Open the storage at `url` to write: a database (SQLAlchemy's form), `journal:///path` or
    `grpc://host:port`; a missing file is made. A database's server that refuses is asked again for
    `patience_s` seconds.

    Heartbeats need no setting here: `book.Book` records and judges them itself, since Optuna's own
    are tied to `Study.optimize`.

    Raises:
        InputError: `url` is not a storage's URL.
        EnvironmentFault: the server gave no answer within `timeout_s` seconds, its driver is not
            installed, the file is not a database, cannot be written, or has the schema of another
            Optuna (then it is left as it was).
    """
    if storage_url.scheme(url) in storage_url.WITHOUT_TABLES:
        return _without_tables(url, timeout_s)
    url = storage_url.with_password(url)
    parsed = storage_url.parse(url)
    path = storage_url.file_of(parsed)

    def attempt() -> RDBStorage:
        if path is not None and not path.exists():
            _create(path)
        # Without hard links there is no file yet: Optuna makes it.
        is_known = (path is None or path.exists()) and _check(path, url, timeout_s)
        opened = _optunas(url, path, is_known)
        if path is not None:
            _let_writers_take_turns(opened.engine)
            with opened.engine.begin() as connection:
                # A file that cannot be written fails here, and not at the first result.
                connection.exec_driver_sql("UPDATE version_info SET schema_version = 0 WHERE 0")
        return opened

    with _explained(parsed):
        return again(lambda tried: _patiently(attempt, path), patience_s)


def look(where: str = DEFAULT, *, timeout_s: float = 10.0) -> tuple[str, BaseStorage]:
    """Open studies read-only: creates nothing, never blocks writers.

    Args:
        where: a URL as for `connect`, or the path of a SQLite file or of a journal file.
        timeout_s: seconds to wait for a server.

    Returns:
        Its name (the URL without its password, or a journal's path) and the storage.

    Raises:
        InputError: `where` is not a storage's URL.
        EnvironmentFault: there is no such file, it holds no studies, or as for `connect`.
    """
    if "://" not in where:
        path = Path(where)
        if path.is_file() and head(path, 16) not in (b"SQLite format 3\0", b""):
            return where, open_journal(path)
        where = f"sqlite:///{where}"
    if storage_url.scheme(where) in storage_url.WITHOUT_TABLES:
        journal = storage_url.path_of(where)
        if journal is not None and not journal.is_file():
            raise EnvironmentFault(_missing(journal))
        return where, _without_tables(where, timeout_s)
    where = storage_url.take_password(where)
    url = storage_url.with_password(where)
    parsed = storage_url.parse(url)
    file = storage_url.file_of(parsed)
    if file is not None and not file.exists():
        raise EnvironmentFault(_missing(file))

    def attempt() -> RDBStorage:
        return _optunas(url, file, _check(file, url, timeout_s, needed=True))

    with _explained(parsed):
        return where, _patiently(attempt, file)


def above(where: str) -> str:
    """Where studies are read from: `where`, or for the default the nearest folder above the working
    one that has outputs/studies.db, as git finds its repository; a line on stderr says so, once.

    Sweeps and whatever else writes do not ask: they work in the working folder. Files of another
    user are passed over.
    """
    if where != DEFAULT or Path(storage_url.OUTPUTS).exists() or (file := _file_above()) is None:
        return where
    if file not in _said:
        _said.add(file)
        print(f"studies are read from {file}, in a folder above", file=sys.stderr)
    return f"sqlite:///{file}"


def _file_above() -> Path | None:
    for folder in Path.cwd().parents:
        file = folder / storage_url.OUTPUTS
        with contextlib.suppress(OSError):
            if file.is_file() and file.stat().st_uid == os.getuid():
                return file
    return None


def names(where: str) -> list[str]:
    """The studies in a storage, looked for as `above`; none where it cannot be read."""
    try:
        return optuna.get_all_study_names(look(above(where))[1])
    except SweepstackError:
        return []


def _missing(file: Path) -> str:
    """What is said where a file of studies is to be read and there is none."""
    line = f"there are no studies: {masked(str(file.absolute()))} does not exist"
    if str(file) == storage_url.OUTPUTS:
        if other := _file_above():
            return f"{line}; those in {other} are changed in its folder alone"
        line += ", nor in a folder above"
    return f"{line}; a sweep makes it, or --storage (in Python storage=) names another"


def _check(file: Path | None, url: str, timeout_s: float, *, needed: bool = False) -> bool:
    """`_check_schema`, of a server within `timeout_s` seconds."""
    if file is not None:
        return _check_schema(_reading_engine(file), url, needed=needed)
    engine = sqlalchemy.create_engine(storage_url.with_driver(url), poolclass=NullPool)
    return within(timeout_s, lambda: _check_schema(engine, url, needed=needed))


def _optunas(url: str, file: Path | None, is_known: bool = False) -> RDBStorage:
    """Optuna's storage, which makes and checks the tables unless it `is_known` what they are."""
    # A server has few connections: 100 are PostgreSQL's default. So a worker keeps one, and opens
    # another only while its heartbeat meets a transaction. `use_server` pings.
    options: dict[str, Any] = {}
    if not url.startswith("sqlite"):
        options = {"pool_size": 1, "max_overflow": 14, "pool_pre_ping": False}
    if file is not None:
        options = {"connect_args": {"timeout": BUSY_TIMEOUT_MS / 1000}}
    # Optuna fills {SCHEMA_VERSION} into URLs; braces in a password are not for it.
    escaped = storage_url.with_driver(url).replace("{", "{{").replace("}", "}}")
    for left in range(4, -1, -1):
        try:
            opened = RDBStorage(escaped, options, is_known, skip_table_creation=is_known)
            if "pool_pre_ping" in options:
                use_server(opened.engine)
            return opened
        except (sqlalchemy.exc.ProgrammingError, sqlalchemy.exc.IntegrityError):
            if file is not None or not left:
                raise
            time.sleep(0.25)  # another start makes the tables of an empty database
    raise AssertionError


def _patiently(call: Callable[[], Result], file: Path | None) -> Result:
    """Return what `call` does, which is called again as long as another process holds the file."""
    tell_at = time.monotonic() + TELL_S
    while True:
        try:
            return call()
        except (sqlite3.OperationalError, sqlalchemy.exc.OperationalError) as error:
            code = getattr(getattr(error, "orig", error), "sqlite_errorcode", 0)
            if code & 0xFF != sqlite3.SQLITE_BUSY:
                raise
        if time.monotonic() > tell_at:
            log.warning("waiting for another process that holds %s", file or "the database")
            tell_at = float("inf")
        time.sleep(0.05)


@contextlib.contextmanager
def _explained(parsed: URL) -> Iterator[None]:
    """Turn what is wrong with a database into one line; what a driver says may quote a password,
    so it is no cause that a traceback would show."""
    try:
        yield
    except SweepstackError:
        raise
    except Exception as error:  # each driver has exceptions of its own
        raise EnvironmentFault(storage_url.explain(error, parsed)) from None


def file_of(storage: BaseStorage) -> Path | None:
    """The file that a storage opened by `connect` is; None of a server, and of SQLite in memory."""
    if isinstance(storage, FileJournal):
        return storage.path
    return storage_url.file_of(storage.engine.url) if isinstance(storage, RDBStorage) else None


def _without_tables(url: str, timeout_s: float) -> BaseStorage:
    """The storage of a URL that is none of a database."""
    path = storage_url.path_of(url)
    if path is not None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise EnvironmentFault(f"cannot make {path.parent}: {error.strerror}") from error
        return open_journal(path)
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port or GRPC_PORT
    except ValueError:
        host, port = None, 0
    if not host:
        raise InputError(f"storage must be like grpc://host:{GRPC_PORT}, got {masked(url)}")
    if importlib.util.find_spec("grpc") is None:
        raise EnvironmentFault(f"storage {url} needs the package grpcio, which is not installed")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        proxy = GrpcStorageProxy(host=host, port=port)
    try:
        proxy.wait_server_ready(timeout_s)
    except ConnectionError:
        proxy.close()
        raise EnvironmentFault(
            f"storage {url} cannot be opened: no answer within {timeout_s:g} s"
        ) from None
    return proxy


def close(opened: BaseStorage) -> None:
    """Give back the connections of a storage."""
    if isinstance(opened, RDBStorage):
        opened.engine.dispose()
    elif isinstance(opened, GrpcStorageProxy):
        opened.close()


def _reading_engine(path: Path) -> Engine:
    """Return an engine that cannot change the file at `path`, not even its header."""
    location = f"{path.absolute().as_uri()}?mode=ro"
    return sqlalchemy.create_engine(
        "sqlite://",
        creator=lambda: sqlite3.connect(location, uri=True, timeout=READ_TIMEOUT_S),
        poolclass=NullPool,
    )


def _check_schema(engine: Engine, url: str, *, needed: bool = False) -> bool:
    """Whether the tables in a database are this Optuna's; False where they are not all there yet.

    Raises:
        EnvironmentFault: they are another's, or there are none and they are `needed`.
    """
    with engine.connect() as connection:
        inspector = sqlalchemy.inspect(connection)
        if not inspector.has_table("version_info"):
            if needed:
                raise EnvironmentFault(f"storage {masked(url)} holds no studies of Optuna's")
            return False
        found = None
        if inspector.has_table("alembic_version"):
            found = connection.scalar(sqlalchemy.text(_VERSION))
        # Optuna numbered its first schemas itself; without a row its tables are being made.
        numbered = connection.scalar(sqlalchemy.text(_FIRST_SCHEMAS))
    if found is not None and found == _fresh()[1]:
        return True
    with _example() as example, example.engine.connect() as memory:
        newest, *upgradable = example.get_all_versions()
        ours = memory.scalar(sqlalchemy.text(_FIRST_SCHEMAS))
    if found is None:
        found = newest if numbered in (None, ours) else upgradable[-1]
    if found == newest:
        return False
    age, remedy = "a newer", "update optuna"
    if found in upgradable:
        age, remedy = "an older", "upgrade it with `optuna storage upgrade --storage URL`"
    raise EnvironmentFault(
        f"storage {masked(url)} was written by {age} Optuna "
        f"(schema {found}, Optuna {optuna.__version__} needs {newest}); "
        f"{remedy} or name another storage"
    )


@contextlib.contextmanager
def _example() -> Iterator[RDBStorage]:
    """Open a database in memory as the installed Optuna makes it."""
    example = RDBStorage("sqlite://", skip_compatibility_check=True)
    try:
        yield example
    finally:
        example.engine.dispose()


@cache
def _fresh() -> tuple[str, str]:
    """The SQL of the tables that the installed Optuna makes, and their version: found once, as it
    takes Optuna a tenth of a second."""
    with _example() as example, example.engine.connect() as memory:
        raw = memory.connection.driver_connection
        assert isinstance(raw, sqlite3.Connection)
        return "\n".join(raw.iterdump()), str(memory.scalar(sqlalchemy.text(_VERSION)))


def _create(path: Path) -> None:
    """Make an empty study file that appears at `path` whole or not at all.

    Workers that start together then never meet a file with half of its tables.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        workshop = tempfile.TemporaryDirectory(dir=path.parent, prefix=".new-")
    except OSError as error:
        raise OSError(f"no file can be made in {path.parent}: {error.strerror}") from error
    with workshop as folder:
        fresh = Path(folder) / "studies.db"
        with contextlib.closing(sqlite3.connect(fresh)) as connection:
            connection.executescript(_fresh()[0])
            connection.execute("PRAGMA journal_mode = WAL")
        # Fails where another process was first, and where there are no hard links; either way
        # `RDBStorage` finds or makes the tables.
        with contextlib.suppress(OSError):
            os.link(fresh, path)


def _let_writers_take_turns(engine: Engine) -> None:
    """Give every later connection of a SQLite `engine` the settings that the module names."""

    @event.listens_for(engine, "connect")
    def configure(connection: sqlite3.Connection, _: ConnectionPoolEntry) -> None:
        connection.isolation_level = None  # or sqlite3 would begin transactions, too late
        connection.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
        connection.execute("PRAGMA synchronous = NORMAL")
        # Leaving another mode needs the file for oneself; the next connection tries again.
        with contextlib.suppress(sqlite3.OperationalError):
            connection.execute("PRAGMA journal_mode = WAL")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        file = Path(str(engine.url.database))
        _patiently(lambda: connection.exec_driver_sql("BEGIN IMMEDIATE"), file)

    engine.dispose()  # connections made before have none of this
