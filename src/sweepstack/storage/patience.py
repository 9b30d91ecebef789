"""Storages that fail on the way: which failures may be over soon, how long they are waited for, and
the one line that is said of the others."""

from __future__ import annotations

import contextlib
import errno
import logging
import random
import sqlite3
import sys
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import TypeVar

import sqlalchemy
from optuna.exceptions import StorageInternalError

from sweepstack.config.errors import EnvironmentFault, masked
from sweepstack.storage import url as storage_url

log = logging.getLogger(__name__)
Result = TypeVar("Result")
_IDLE = "25P03"  # PostgreSQL ended a transaction because its worker was away
FAILURES = (sqlalchemy.exc.SQLAlchemyError, StorageInternalError)
"""What a database that fails on the way raises, and what Optuna makes of it."""
AWAY_S = 15.0
"""A storage that takes longer to answer was away, for others too."""
_PASSING = {errno.EAGAIN, errno.ENOLCK, errno.ESTALE, errno.ETIMEDOUT}
"""Failures of a journal's file that may be over soon: a file server is away."""
_PASSING_CODES = {"UNAVAILABLE", "UNKNOWN", "CANCELLED", "DEADLINE_EXCEEDED", "INTERNAL"}
"""The same of a gRPC server; UNKNOWN is also what it says when its own database fails."""
_latest: ContextVar[float] = ContextVar("latest", default=float("inf"))
"""When this thread tries nothing again any more."""
_back, _warned, retries = -float("inf"), -float("inf"), 0
"""When a storage that was away had answered, when a person was told last, how often was retried."""


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
