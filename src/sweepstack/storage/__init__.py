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
import errno
import importlib.util
import logging
import os
import random
import socket
import sqlite3
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import optuna
import sqlalchemy
from optuna.exceptions import ExperimentalWarning, StorageInternalError
from optuna.storages import BaseStorage, GrpcStorageProxy, RDBStorage
from sqlalchemy import event
from sqlalchemy.engine import URL, Connection, Engine
from sqlalchemy.pool import ConnectionPoolEntry, NullPool

from sweepstack.config.errors import (
    EnvironmentFault,
    InputError,
    SweepstackError,
    masked,
)
from sweepstack.storage import url as storage_url
from sweepstack.storage.journal import FileJournal, head, open_journal

log = logging.getLogger(__name__)
Result = TypeVar("Result")

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
CONNECT_S = 10
"""Seconds that a server has to accept a connection."""
MIN_LIMIT_S = 10.0
"""Seconds that it has to answer at least; else half of `hydra.sweeper.storage_timeout_s`."""
_CUTS_OFF = "sweepstack-limits"
_IDLE = "25P03"  # PostgreSQL ended a transaction because its worker was away
_LIBPQ = ("psycopg", "psycopg2")
_due: dict[int, tuple[float, Any]] = {}
"""When which thread has waited too long for an answer, and on which connection."""
_FIRST_SCHEMAS = "SELECT schema_version FROM version_info"
_VERSION = "SELECT version_num FROM alembic_version"
FAILURES = (sqlalchemy.exc.SQLAlchemyError, StorageInternalError)
"""What a database that fails on the way raises, and what Optuna makes of it."""
AWAY_S = 15.0
"""A storage that takes longer to answer was away, for others too."""
_PASSING = {errno.EAGAIN, errno.ENOLCK, errno.ESTALE, errno.ETIMEDOUT}
"""Failures of a journal's file that may be over soon: a file server is away."""
_PASSING_CODES = {"UNAVAILABLE", "UNKNOWN", "CANCELLED", "DEADLINE_EXCEEDED", "INTERNAL"}
"""The same of a gRPC server; UNKNOWN is also what it says when its own database fails."""
IDLE_S = 1.0
"""A connection to a server that was not used for longer is tried before it is used."""
_latest: ContextVar[float] = ContextVar("latest", default=float("inf"))
"""When this thread tries nothing again any more."""
_back, _warned, retries = -float("inf"), -float("inf"), 0
"""When a storage that was away had answered, when a person was told last, how often was retried."""


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
    return _within(timeout_s, lambda: _check_schema(engine, url, needed=needed))


def _optunas(url: str, file: Path | None, is_known: bool = False) -> RDBStorage:
    """Optuna's storage, which makes and checks the tables unless it `is_known` what they are."""
    # A server has few connections: 100 are PostgreSQL's default. So a worker keeps one, and opens
    # another only while its heartbeat meets a transaction. `_use_server` pings.
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
                _use_server(opened.engine)
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


def is_failure(error: BaseException) -> bool:
    """Whether an exception is a storage's that fails on the way."""
    grpc = sys.modules.get("grpc")  # loaded where it is needed
    return isinstance(error, FAILURES) or (grpc is not None and isinstance(error, grpc.RpcError))


def is_transient(error: BaseException) -> bool:
    """Whether a storage failed in a way that may be over soon: its server restarts, or gave a
    transaction up for another. A SQLite file that cannot be written does not heal."""
    cause = error.__cause__ if isinstance(error, StorageInternalError) else error
    grpc = sys.modules.get("grpc")
    if grpc is not None and isinstance(cause, grpc.RpcError):
        return cause.code().name in _PASSING_CODES
    if isinstance(cause, OSError):
        return cause.errno in _PASSING
    if isinstance(cause, sqlalchemy.exc.PendingRollbackError):
        return True  # Optuna went on in the session of what failed
    if not isinstance(cause, sqlalchemy.exc.DBAPIError) or cause.connection_invalidated:
        return isinstance(cause, sqlalchemy.exc.DBAPIError)
    if _IDLE in (getattr(cause.orig, "sqlstate", ""), getattr(cause.orig, "pgcode", "")):
        return True
    kinds = (sqlalchemy.exc.OperationalError, sqlalchemy.exc.InterfaceError)
    return isinstance(cause, kinds) and not isinstance(cause.orig, sqlite3.Error)


def again(call: Callable[[int], Result], patience_s: float) -> Result:
    """Return what `call` does, given the number of tries before; after a transient failure it is
    called again, for at most so many seconds, with growing pauses that differ between workers."""
    global _back, _warned, retries
    tried, begun = 0, time.monotonic()
    latest = min(begun + patience_s, _latest.get())
    try:
        while True:
            try:
                return call(tried)
            except Exception as error:
                now, passes = time.monotonic(), is_transient(error)
                retries += passes
                if passes and patience_s and now > _warned + 60:
                    _warned = now
                    log.warning("the database does not answer, trying for %g s", patience_s)
                if not passes or now >= latest:
                    raise
            time.sleep(min(5.0, 0.1 * 2 ** min(tried, 9)) * random.uniform(0.5, 1.5))
            tried += 1
    finally:
        if (now := time.monotonic()) > begun + AWAY_S:
            _back = now


def was_away(seconds: float) -> bool:
    """Whether in the last `seconds` this process had to wait for a storage. Then nobody's silence
    says anything: whoever could not write a heartbeat waited too."""
    return time.monotonic() < _back + seconds


class Tried:
    """Try what a block asks of a storage for no more than `seconds`, and leave the block where it
    does not answer; with None as usual, and raise what it says."""

    def __init__(self, seconds: float | None = 0.0):
        self._seconds = seconds

    def __enter__(self) -> None:
        latest = float("inf") if self._seconds is None else time.monotonic() + self._seconds
        self._before = _latest.set(min(latest, _latest.get()))

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        _latest.reset(self._before)
        return self._seconds is not None and error is not None and is_transient(error)


def wait_for_server(opened: BaseStorage, patience_s: float) -> None:
    """Try whatever Optuna asks of a storage again for so many seconds, and each new connection to a
    database's server; one that neither answers nor fails is given up after half of them. Once that
    was in vain no connection waits until it answers. All of it may be done twice, but for new
    trials (`public.py` looks for those that nobody knows of)."""
    if getattr(opened.get_trial, "__name__", "") == "patient":  # by this
        return
    limit_s = max(MIN_LIMIT_S, patience_s / 2)
    if isinstance(opened, RDBStorage):
        if opened.engine.dialect.name == "sqlite":
            return
        _connect_patiently(opened, patience_s, limit_s)
        _limit_statements(opened.engine, limit_s)
    if isinstance(opened, GrpcStorageProxy):
        vars(opened)["set_trial_param"] = _knowing(opened, opened.set_trial_param)
    for name in BaseStorage.__abstractmethods__:
        method = getattr(opened, name)
        if isinstance(opened, GrpcStorageProxy):
            method = _limited(method, limit_s)
        setattr(opened, name, _patient(method, patience_s))


def _knowing(opened: BaseStorage, set_param: Callable[..., None]) -> Callable[..., None]:
    """Optuna's gRPC server takes no parameter of a trial that it does not know, as after a restart,
    until it has read the trial's study."""

    def knowing(*given: Any) -> None:
        try:
            set_param(*given)
        except KeyError:
            for study in opened.get_all_studies():
                opened.get_all_trials(opened.get_study_id_from_name(study.study_name))
            set_param(*given)

    return knowing


def _patient(method: Callable[..., Result], patience_s: float) -> Callable[..., Result]:
    def patient(*given: Any, **named: Any) -> Result:
        return again(lambda tried: method(*given, **named), patience_s)

    return patient


def _limited(method: Callable[..., Result], limit_s: float) -> Callable[..., Result]:
    def limited(*given: Any, **named: Any) -> Result:
        return _within(limit_s, lambda: method(*given, **named))

    return limited


def _limits(driver: str, limit_s: float) -> dict[str, Any]:
    """Arguments of a driver's connections by which a server, or a way to it, that is silent is
    noticed; those in the URL come before them."""
    if driver in _LIBPQ:
        alive = {"keepalives_idle": 30, "keepalives_interval": 10, "keepalives_count": 3}
        return {"connect_timeout": CONNECT_S, "tcp_user_timeout": int(1000 * limit_s), **alive}
    if driver in ("pymysql", "mysqldb"):
        silent = dict.fromkeys(("read_timeout", "write_timeout"), int(limit_s))
        return {"connect_timeout": CONNECT_S, **silent}
    return {}


def _limit_statements(engine: Engine, limit_s: float) -> None:
    """Let no statement of PostgreSQL's drivers take longer: the server ends it, and a transaction
    whose worker is away, which would hold the study; where the server itself hangs, its connection
    is cut off. MySQL's drivers do that themselves."""
    dialect: Any = engine.dialect
    if dialect.driver not in _LIBPQ:
        return

    @event.listens_for(engine, "connect")
    def connected(connection: Any, _: ConnectionPoolEntry) -> None:
        names = ("statement_timeout", "idle_in_transaction_session_timeout")
        ms = int(1000 * limit_s)
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT " + ", ".join(f"set_config('{n}', '{ms}', false)" for n in names)
            )
        connection.commit()

    def timed(name: str) -> None:
        method = getattr(dialect, name)

        def call(target: Any, *given: Any, **named: Any) -> Any:
            connection = target.connection if "execute" in name else target  # of a cursor
            me = threading.get_ident()
            _due[me] = (time.monotonic() + limit_s + 1.0, connection)
            try:
                return method(target, *given, **named)
            finally:
                _due.pop(me, None)

        setattr(dialect, name, call)

    names = ("execute", "executemany", "execute_no_params", "commit", "rollback", "ping", "leave")
    for name in names:
        if hasattr(dialect, f"do_{name}"):  # only psycopg has a pipeline to leave
            timed(f"do_{name}")
    engine.dispose()  # connections made before have no limit
    if all(thread.name != _CUTS_OFF for thread in threading.enumerate()):
        threading.Thread(target=_cut_off, name=_CUTS_OFF, daemon=True).start()


def _cut_off() -> None:
    """Cut off the connections on which a server is silent for too long: whoever waits sees that."""
    while not threading.Event().wait(1.0):
        for me, (latest, connection) in list(_due.items()):
            if time.monotonic() > latest and _due.pop(me, None) is not None:
                with (
                    contextlib.suppress(Exception),
                    socket.socket(fileno=os.dup(connection.fileno())) as silent,
                ):
                    silent.shutdown(socket.SHUT_RDWR)


def _connect_patiently(opened: RDBStorage, patience_s: float, limit_s: float) -> None:
    left_s = patience_s

    @event.listens_for(opened.engine, "do_connect")
    def connect(dialect: Any, _: ConnectionPoolEntry, given: Any, named: Any) -> Any:
        named = _limits(dialect.driver, limit_s) | named

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
        reason = storage_url.reason(getattr(cause, "orig", None) or cause or error, url)
        raise EnvironmentFault(
            f"storage {masked(url)} failed: {reason}; run the same command again to resume"
        ) from None


def _reading_engine(path: Path) -> Engine:
    """Return an engine that cannot change the file at `path`, not even its header."""
    location = f"{path.absolute().as_uri()}?mode=ro"
    return sqlalchemy.create_engine(
        "sqlite://",
        creator=lambda: sqlite3.connect(location, uri=True, timeout=READ_TIMEOUT_S),
        poolclass=NullPool,
    )


def _within(timeout_s: float, call: Callable[[], Result]) -> Result:
    """Run `call` for at most `timeout_s` seconds; return and raise what it does, or say so.

    In a thread, because what a driver calls its timeout, and whether it has one, differs.
    """
    returned: list[Result] = []
    raised: list[BaseException] = []

    def run() -> None:
        try:
            returned.append(call())
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run, name="sweepstack-storage", daemon=True)
    thread.start()
    thread.join(timeout_s)
    if thread.is_alive():
        late = OSError(errno.ETIMEDOUT, "no answer")
        raise StorageInternalError(f"no answer within {timeout_s:g} s") from late
    if raised:
        raise raised[0]
    return returned[0]


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


def single(engine: Engine) -> Engine:
    """The same with a transaction for each statement, where that saves two round trips."""
    if engine.dialect.name != "postgresql":
        return engine
    return engine.execution_options(isolation_level="AUTOCOMMIT")


@contextlib.contextmanager
def quick_transaction(engine: Engine) -> Iterator[Connection]:
    """A transaction that others wait for. Where the driver can (psycopg), what gives no rows is
    sent with the next query or the commit: the server is waited for half as often, for some CPU."""
    with engine.connect() as page:
        transaction, done = page.begin(), False
        try:
            with _pipeline(page):
                yield page
                transaction.commit()
                done = True
        except BaseException:  # the pipeline is left: in an aborted one a rollback fails too
            if not done:
                transaction.rollback()
            raise


@contextlib.contextmanager
def _pipeline(page: Connection) -> Iterator[None]:
    driver: Any = page.connection.driver_connection
    dialect: Any = page.dialect
    dbapi, known, stack = dialect.loaded_dbapi, page.info, contextlib.ExitStack()
    if dialect.driver != "psycopg" or not dbapi.Pipeline.is_supported():
        yield
        return
    try:
        known["pipeline"] = stack.enter_context(driver.pipeline())
        try:
            yield
        except BaseException:
            with contextlib.suppress(dbapi.Error):
                dialect.do_leave(driver, stack.close)
            raise
        dialect.do_leave(driver, stack.close)
    except dbapi.Error as error:  # outside of all statements
        gone = driver.closed or driver.broken
        if gone:  # else the pool would print a traceback, as it cannot be reset
            page.invalidate(error)
        raise sqlalchemy.exc.OperationalError(
            "pipeline", None, error, connection_invalidated=gone
        ) from error
    finally:
        known.pop("pipeline", None)


def _use_server(engine: Engine) -> None:
    """Fetch the rows of queries in a pipeline, and try connections before they are used after a
    pause: they die when a server restarts."""
    dialect: Any = engine.dialect
    execute, changes = dialect.do_execute, ("INSERT", "UPDATE", "DELETE")

    def fetch(cursor: Any, statement: str, given: Any, context: Any = None) -> None:
        execute(cursor, statement, given, context)
        pipeline = context and context.root_connection.info.get("pipeline")
        if pipeline and (not statement.startswith(changes) or " RETURNING " in statement):
            pipeline.sync()

    # Methods of the dialect, as `_limit_statements` limits them.
    dialect.do_execute, dialect.do_leave = fetch, lambda _, leave: leave()

    @event.listens_for(engine, "checkin")
    def used(_: Any, entry: ConnectionPoolEntry) -> None:
        entry.info["used"] = time.monotonic()

    @event.listens_for(engine, "checkout")
    def check(connection: Any, entry: ConnectionPoolEntry, _: Any) -> None:
        if time.monotonic() > entry.info.get("used", float("inf")) + IDLE_S:
            dbapi: Any = engine.dialect.loaded_dbapi
            try:
                engine.dialect.do_ping(connection)
            except dbapi.Error:
                raise sqlalchemy.exc.DisconnectionError from None


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
