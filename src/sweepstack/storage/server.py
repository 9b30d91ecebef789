"""A storage that is a server: its answers are waited for within limits, its connections are tried
before they are used, and round trips are saved where a driver can."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import sqlalchemy
from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage, GrpcStorageProxy, RDBStorage
from sqlalchemy import event
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.pool import ConnectionPoolEntry

from sweepstack.storage.patience import Result, again

CONNECT_S = 10
"""Seconds that a server has to accept a connection."""
MIN_LIMIT_S = 10.0
"""Seconds that it has to answer at least; else half of `hydra.sweeper.storage_timeout_s`."""
_CUTS_OFF = "sweepstack-limits"
_LIBPQ = ("psycopg", "psycopg2")
_due: dict[int, tuple[float, Any]] = {}
"""When which thread has waited too long for an answer, and on which connection."""
IDLE_S = 1.0
"""A connection to a server that was not used for longer is tried before it is used."""


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
        return within(limit_s, lambda: method(*given, **named))

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


def within(timeout_s: float, call: Callable[[], Result]) -> Result:
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


def use_server(engine: Engine) -> None:
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
