"""Where studies live: one database, opened so that many workers can write to it at once.

SQLite needs help for that. Every connection uses write-ahead logging (WAL) with
`synchronous=NORMAL` and begins each transaction with `BEGIN IMMEDIATE`: reading a row and then
changing it is one step that no other process can enter, so no waiting trial is handed out twice.
Whoever opens a file or begins a transaction waits as long as another process holds the file: a lock
ends with its process. These settings hang on the engine and are lost when a storage is pickled; a
worker in another process connects by URL.

Everything that can be wrong with a URL is found before Optuna touches the database, which creates
missing tables in whatever it opens.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import random
import sqlite3
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, quote_plus, urlsplit

import optuna
import sqlalchemy
from optuna.exceptions import ExperimentalWarning, StorageInternalError
from optuna.storages import BaseStorage, GrpcStorageProxy, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock
from sqlalchemy import event
from sqlalchemy.engine import URL, Connection, Engine
from sqlalchemy.pool import ConnectionPoolEntry, NullPool

from sweepstack.config.errors import (
    EnvironmentFault,
    InputError,
    SweepstackError,
    masked,
    nearest,
    one_line,
)

log = logging.getLogger(__name__)
Result = TypeVar("Result")

OUTPUTS = "outputs/studies.db"
DEFAULT = f"sqlite:///{OUTPUTS}"
_said: set[Path] = set()
"""Files in folders above that a person was told of."""
BUSY_TIMEOUT_MS = 60_000
READ_TIMEOUT_S = 1.0
"""How long SQLite itself waits for a lock, writing and reading, before it is asked again."""
TELL_S = 10.0
"""After so long a person is told what is waited for."""
DRIVERS = {
    "postgresql": {"psycopg": "psycopg", "psycopg2": "psycopg2"},
    "mysql": {"pymysql": "pymysql", "mysqldb": "MySQLdb"},
}
"""By dialect: drivers and their modules, that of our extra (`sweepstack[postgresql]`) first."""
VARIABLE = "SWEEPSTACK_STORAGE"
"""Environment variable with whole URLs, of storages that are named without their password. Worker
processes inherit it."""
DIALECTS = ("sqlite", "postgresql", "mysql", "mariadb", "oracle", "mssql")
WITHOUT_TABLES = ("journal", "grpc")
"""Schemes of the storages that are no databases."""
GRPC_PORT = 13000
"""Optuna's."""
_FIRST_SCHEMAS = "SELECT schema_version FROM version_info"
FAILURES = (sqlalchemy.exc.SQLAlchemyError, StorageInternalError)
"""What a database that fails on the way raises, and what Optuna makes of it."""


class FileJournal(JournalStorage):
    """Optuna's storage in a journal file, as `journal:///path`.

    A process that is killed while it writes leaves the lock file behind, for others to wait for.
    """

    def __init__(self, path: Path):
        self.path = path
        lock = JournalFileSymlinkLock(str(path), grace_period=10)
        super().__init__(_JournalFile(str(path), lock))


class _JournalFile(JournalFileBackend):
    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        try:
            super().append_logs(logs)
        except OSError as error:
            raise StorageInternalError(error.strerror or str(error)) from error


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
    if _scheme(url) in WITHOUT_TABLES:
        return _without_tables(url, timeout_s)
    url = _with_password(url)
    parsed = _parse(url)
    path = _file_of(parsed)

    def attempt() -> RDBStorage:
        if path is not None and not path.exists():
            _create(path)
        else:
            _check(path, url, timeout_s)
        opened = _optunas(url, path)
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
        if path.is_file() and not _is_sqlite(path):
            return where, _journal(path)
        where = f"sqlite:///{where}"
    if _scheme(where) in WITHOUT_TABLES:
        journal = path_of(where)
        if journal is not None and not journal.is_file():
            raise EnvironmentFault(_missing(journal))
        return where, _without_tables(where, timeout_s)
    where = take_password(where)
    url = _with_password(where)
    parsed = _parse(url)
    file = _file_of(parsed)
    if file is not None and not file.exists():
        raise EnvironmentFault(_missing(file))

    def attempt() -> RDBStorage:
        _check(file, url, timeout_s, needed=True)
        return _optunas(url, file)

    with _explained(parsed):
        return where, _patiently(attempt, file)


def above(where: str) -> str:
    """Where studies are read from: `where`, or for the default the nearest folder above the working
    one that has outputs/studies.db, as git finds its repository; a line on stderr says so, once.

    Sweeps and whatever else writes do not ask: they work in the working folder. Files of another
    user are passed over.
    """
    if where != DEFAULT or Path(OUTPUTS).exists() or (file := _file_above()) is None:
        return where
    if file not in _said:
        _said.add(file)
        print(f"studies are read from {file}, in a folder above", file=sys.stderr)
    return f"sqlite:///{file}"


def _file_above() -> Path | None:
    for folder in Path.cwd().parents:
        file = folder / OUTPUTS
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
    if str(file) == OUTPUTS:
        if other := _file_above():
            return f"{line}; those in {other} are changed in its folder alone"
        line += ", nor in a folder above"
    return f"{line}; a sweep makes it, or --storage (in Python storage=) names another"


def take_password(url: str) -> str:
    """`url` without its passwords, which from now on only the environment of this process and of
    those that it starts knows (`VARIABLE`).

    Raises:
        InputError: it cannot be told which part of it is the password.
    """
    bare, known = _without_password(url), os.environ.get(VARIABLE, "").split()
    if bare != url and url not in known:
        os.environ[VARIABLE] = " ".join([url, *known])
    return bare


def _without_password(url: str) -> str:
    if _scheme(url) in WITHOUT_TABLES:
        return url
    try:
        parsed = sqlalchemy.make_url(url)
    except (sqlalchemy.exc.ArgumentError, ValueError):
        if masked(url) != url:
            _parse(url)  # which says what is wrong with it
        return url
    if "@" in (parsed.host or ""):
        raise InputError(
            f"storage must have '@' in a password written as %40 (':' as %3A), got {masked(url)}"
        )
    secret = [key for key, value in parsed.query.items() if _is_secret(key, value)]
    if parsed.password is None and not secret:
        return url
    place = (parsed.username, None, parsed.host, parsed.port, parsed.database, parsed.query)
    bare = URL.create(parsed.drivername, *place).difference_update_query(secret)
    return bare.render_as_string(hide_password=False)


def _is_secret(key: str, value: str | tuple[str, ...]) -> bool:
    given = (value,) if isinstance(value, str) else value
    return any("***" in masked(f"x://?{key}={word}") for word in given)


def _with_password(url: str) -> str:
    """`url` with the password that the environment knows for it; a SQLite file has none."""
    bare = _without_password(url)
    if _scheme(url).startswith("sqlite"):
        return bare
    if url != bare:
        return url
    known = os.environ.get(VARIABLE, "").split()
    return next((whole for whole in known if _without_password(whole) == bare), url)


def _with_driver(url: str) -> str:
    """`url` with a driver that is installed, where it names none: SQLAlchemy's own choice differs
    between its versions."""
    dialect, separator, rest = url.partition("://")
    known = DRIVERS.get(dialect, {})
    found = [name for name, module in known.items() if importlib.util.find_spec(module)]
    return f"{dialect}+{[*found, *known][0]}{separator}{rest}" if known else url


def _check(file: Path | None, url: str, timeout_s: float, *, needed: bool = False) -> None:
    """`_check_schema`, of a server within `timeout_s` seconds."""
    if file is not None:
        _check_schema(_reading_engine(file), url, needed=needed)
        return
    engine = sqlalchemy.create_engine(_with_driver(url), poolclass=NullPool)
    _within(timeout_s, lambda: _check_schema(engine, url, needed=needed))


def _optunas(url: str, file: Path | None) -> RDBStorage:
    # Connections die when a server restarts. A server has few: 100 are PostgreSQL's default. So a
    # worker keeps one, and opens another only while its heartbeat meets a transaction.
    options: dict[str, Any] = {"pool_pre_ping": True}
    if not url.startswith("sqlite"):
        options |= {"pool_size": 1, "max_overflow": 14}
    if file is not None:
        options = {"connect_args": {"timeout": BUSY_TIMEOUT_MS / 1000}}
    # Optuna fills {SCHEMA_VERSION} into URLs; braces in a password are not for it.
    return RDBStorage(_with_driver(url).replace("{", "{{").replace("}", "}}"), options)


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
        raise EnvironmentFault(_explain(error, parsed)) from None


def _is_sqlite(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(16) in (b"SQLite format 3\0", b"")
    except OSError as error:
        raise EnvironmentFault(f"cannot read {path}: {error.strerror or error}") from error


def file_of(storage: BaseStorage) -> Path | None:
    """The file that a storage opened by `connect` is; None of a server, and of SQLite in memory."""
    if isinstance(storage, FileJournal):
        return storage.path
    return _file_of(storage.engine.url) if isinstance(storage, RDBStorage) else None


def is_new(url: str) -> bool:
    """Whether the file of a storage does not exist yet; False of a server.

    Raises:
        InputError: `url` is not a storage's URL.
    """
    path = path_of(url) if _scheme(url) in WITHOUT_TABLES else _file_of(_parse(url))
    return path is not None and not path.exists()


def absolute(url: str | None) -> str | None:
    """A URL that means the same in another working folder; None of SQLite in memory, which
    processes could not share."""
    if url is None:
        return None
    if (path := path_of(url)) is not None:
        return f"journal:///{path.absolute()}"
    try:
        parsed = sqlalchemy.make_url(url)
    except (sqlalchemy.exc.ArgumentError, ValueError):
        return url  # `connect` says what is wrong
    if parsed.get_backend_name() != "sqlite":
        return url
    file = _file_of(parsed)
    return None if file is None else f"sqlite:///{file.absolute()}"


def _scheme(url: str) -> str:
    return url.partition("://")[0]


def path_of(url: str) -> Path | None:
    """The file of a journal's URL; None of any other."""
    if _scheme(url) != "journal":
        return None
    name = url.removeprefix("journal://").removeprefix("/")
    if not name:
        raise InputError(f"storage must name a file, such as journal:///studies.journal, got {url}")
    return Path(name)


def _without_tables(url: str, timeout_s: float) -> BaseStorage:
    """The storage of a URL that is none of a database."""
    path = path_of(url)
    if path is not None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise EnvironmentFault(f"cannot make {path.parent}: {error.strerror}") from error
        return _journal(path)
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


def is_failure(error: BaseException) -> bool:
    """Whether an exception is a storage's that fails on the way."""
    grpc = sys.modules.get("grpc")  # loaded where it is needed
    return isinstance(error, FAILURES) or (grpc is not None and isinstance(error, grpc.RpcError))


def is_transient(error: BaseException) -> bool:
    """Whether a database failed in a way that may be over soon: its server restarts, or gave a
    transaction up for another. A SQLite file that cannot be written does not heal."""
    cause = error.__cause__ if isinstance(error, StorageInternalError) else error
    if not isinstance(cause, sqlalchemy.exc.DBAPIError) or cause.connection_invalidated:
        return isinstance(cause, sqlalchemy.exc.DBAPIError)
    kinds = (sqlalchemy.exc.OperationalError, sqlalchemy.exc.InterfaceError)
    return isinstance(cause, kinds) and not isinstance(cause.orig, sqlite3.Error)


def again(call: Callable[[int], Result], patience_s: float) -> Result:
    """Return what `call` does, given the number of tries before; after a transient failure it is
    called again, for at most so many seconds, with growing pauses that differ between workers."""
    tried, latest = 0, time.monotonic() + patience_s
    while True:
        try:
            return call(tried)
        except FAILURES as error:
            if not is_transient(error) or time.monotonic() > latest:
                raise
            if not tried:
                log.warning("the database does not answer, trying for %g s", patience_s)
        time.sleep(min(5.0, 0.1 * 2**tried) * random.uniform(0.5, 1.5))
        tried += 1


def wait_for_server(opened: BaseStorage, patience_s: float) -> None:
    """Try each new connection to a database's server again for so many seconds: whatever begins
    while it restarts waits, what Optuna itself reads too. Once that was in vain nothing waits
    until it answers."""
    if not isinstance(opened, RDBStorage) or opened.engine.dialect.name == "sqlite":
        return
    left_s = patience_s

    @event.listens_for(opened.engine, "do_connect")
    def connect(dialect: Any, _: ConnectionPoolEntry, given: Any, named: Any) -> Any:
        def attempt(tried: int) -> Any:
            try:
                return dialect.connect(*given, **named)
            except dialect.loaded_dbapi.Error as error:
                raise sqlalchemy.exc.OperationalError("connect", None, error) from None

        nonlocal left_s
        try:
            found = again(attempt, left_s)
        except sqlalchemy.exc.OperationalError:
            left_s = 0.0
            raise
        left_s = patience_s
        return found


def close(opened: BaseStorage) -> None:
    """Give back the connections of a storage."""
    if isinstance(opened, RDBStorage):
        opened.engine.dispose()
    elif isinstance(opened, GrpcStorageProxy):
        opened.close()


@contextlib.contextmanager
def ignored() -> Iterator[None]:
    """Go on where the storage fails: the next write says it."""
    try:
        yield
    except Exception as error:
        if not is_failure(error):
            raise


def _journal(path: Path) -> FileJournal:
    try:
        return FileJournal(path)
    except OSError as error:
        raise EnvironmentFault(f"cannot open {path}: {error.strerror or error}") from error
    except Exception as error:  # whatever else a file may hold
        raise EnvironmentFault(f"{path} is neither a database nor a journal of Optuna's") from error


@contextlib.contextmanager
def named(url: str) -> Iterator[None]:
    """Turn what a database says when it fails on the way into one line.

    Raises:
        EnvironmentFault: it did.
    """
    try:
        yield
    except Exception as error:
        if not is_failure(error):
            raise
        cause = error if isinstance(error, sqlalchemy.exc.SQLAlchemyError) else error.__cause__
        reason = _reason(getattr(cause, "orig", None) or cause or error, url)
        raise EnvironmentFault(
            f"storage {masked(url)} failed: {reason}; run the same command again to resume"
        ) from None


def _parse(url: str) -> URL:
    """Return the parts of `url`, or raise an InputError that shows what one looks like."""
    try:
        parsed = sqlalchemy.make_url(url)
        parsed.get_dialect()
    except (sqlalchemy.exc.ArgumentError, ValueError):
        scheme, separator, _ = url.partition("://")  # the rest may hold a password
        shown = f"{scheme}://..." if separator else one_line(masked(url), 80)
        dialect = scheme.partition("+")[0]
        near = nearest(dialect, DIALECTS) if separator and dialect not in DIALECTS else ""
        raise InputError(
            f"storage must be a database URL such as {DEFAULT}, got {shown}{near}"
        ) from None
    except ImportError as error:
        raise EnvironmentFault(_explain(error, parsed)) from None
    return parsed


def _file_of(url: URL) -> Path | None:
    """Return the file of a SQLite URL; None for a server and for SQLite in memory."""
    if url.get_backend_name() != "sqlite" or url.database in (None, "", ":memory:"):
        return None
    return Path(str(url.database))


def _reading_engine(path: Path) -> Engine:
    """Return an engine that cannot change the file at `path`, not even its header."""
    location = f"{path.absolute().as_uri()}?mode=ro"
    return sqlalchemy.create_engine(
        "sqlite://",
        creator=lambda: sqlite3.connect(location, uri=True, timeout=READ_TIMEOUT_S),
        poolclass=NullPool,
    )


def _within(timeout_s: float, call: Callable[[], None]) -> None:
    """Run `call` for at most `timeout_s` seconds and raise what it raises, else TimeoutError.

    In a thread, because what a driver calls its timeout, and whether it has one, differs.
    """
    raised: list[BaseException] = []

    def run() -> None:
        try:
            call()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run, name="sweepstack-storage", daemon=True)
    thread.start()
    thread.join(timeout_s)
    if thread.is_alive():
        raise TimeoutError(f"no answer within {timeout_s:g} s")
    if raised:
        raise raised[0]


def _check_schema(engine: Engine, url: str, *, needed: bool = False) -> None:
    """Raise an EnvironmentFault where the tables in a database are not this Optuna's, or where
    there are none and they are `needed`."""
    with engine.connect() as connection:
        inspector = sqlalchemy.inspect(connection)
        if not inspector.has_table("version_info"):
            if needed:
                raise EnvironmentFault(f"storage {masked(url)} holds no studies of Optuna's")
            return
        found = None
        if inspector.has_table("alembic_version"):
            found = connection.scalar(sqlalchemy.text("SELECT version_num FROM alembic_version"))
        # Optuna numbered its first schemas itself; without a row its tables are being made.
        numbered = connection.scalar(sqlalchemy.text(_FIRST_SCHEMAS))
    with _example() as example, example.engine.connect() as memory:
        newest, *upgradable = example.get_all_versions()
        ours = memory.scalar(sqlalchemy.text(_FIRST_SCHEMAS))
    if found is None:
        found = newest if numbered in (None, ours) else upgradable[-1]
    if found == newest:
        return
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
    example = RDBStorage("sqlite://")
    try:
        yield example
    finally:
        example.engine.dispose()


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
        with _example() as example, example.engine.connect() as memory:
            memory.exec_driver_sql("VACUUM INTO ?", (str(fresh),))
        with contextlib.closing(sqlite3.connect(fresh)) as connection:
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


def _explain(error: BaseException, url: URL) -> str:
    """Return the one line that a person needs about `error`, without the password."""
    whole = url.render_as_string(hide_password=False)
    name = f"storage {masked(whole)}"
    if isinstance(error, ModuleNotFoundError) and error.name:
        dialect, module = url.get_backend_name(), error.name
        ours = module in list(DRIVERS.get(dialect, {}).values())[:1]
        install = f"sweepstack[{dialect}]" if ours else module
        return f"{name} needs the package {module}, which is not installed: pip install '{install}'"
    reason = _reason(getattr(error, "orig", None) or error, whole)
    if "file is not a database" in reason:
        return f"{name} is not a database: the file holds something else, name another one"
    return f"{name} cannot be opened: {reason or type(error).__name__}"


def _reason(error: BaseException, url: str) -> str:
    """What a driver says, in one line; the URL's passwords are masked however it quotes them."""
    text, url = str(error), _with_password(url)
    with contextlib.suppress(sqlalchemy.exc.ArgumentError, ValueError):  # a journal's path
        parsed = sqlalchemy.make_url(url)
        secrets = [str(parsed.password or "")]
        for key, value in parsed.query.items():
            given = (value,) if isinstance(value, str) else value
            secrets += [word for word in given if _is_secret(key, word)]
        for secret in filter(None, secrets):
            for written in {secret, quote(secret), quote(secret, safe=""), quote_plus(secret)}:
                text = text.replace(written, "***")
    return one_line(text)
