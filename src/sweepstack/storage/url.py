"""What the URL of a storage says: its kind, its file, its driver; and who knows its password.

Passwords are taken out of URLs before these are kept, printed or handed on: only the environment
of this process and of those that it starts has them (`VARIABLE`).
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
from pathlib import Path
from urllib.parse import quote, quote_plus

import sqlalchemy
from sqlalchemy.engine import URL

from sweepstack.config.errors import EnvironmentFault, InputError, masked, nearest, one_line

OUTPUTS = "outputs/studies.db"
DEFAULT = f"sqlite:///{OUTPUTS}"
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


def take_password(url: str) -> str:
    """`url` without its passwords, which from now on only the environment of this process and of
    those that it starts knows (`VARIABLE`).

    Raises:
        InputError: it cannot be told which part of it is the password.
    """
    bare, known = without_password(url), os.environ.get(VARIABLE, "").split()
    if bare != url and url not in known:
        os.environ[VARIABLE] = " ".join([url, *known])
    return bare


def without_password(url: str) -> str:
    """`url` without its passwords; see `take_password`."""
    if scheme(url) in WITHOUT_TABLES:
        return url
    try:
        parsed = sqlalchemy.make_url(url)
    except (sqlalchemy.exc.ArgumentError, ValueError):
        if masked(url) != url:
            parse(url)  # which says what is wrong with it
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


def with_password(url: str) -> str:
    """`url` with the password that the environment knows for it; a SQLite file has none."""
    bare = without_password(url)
    if scheme(url).startswith("sqlite"):
        return bare
    if url != bare:
        return url
    known = os.environ.get(VARIABLE, "").split()
    return next((whole for whole in known if without_password(whole) == bare), url)


def with_driver(url: str) -> str:
    """`url` with a driver that is installed, where it names none: SQLAlchemy's own choice differs
    between its versions."""
    dialect, separator, rest = url.partition("://")
    known = DRIVERS.get(dialect, {})
    found = [name for name, module in known.items() if importlib.util.find_spec(module)]
    return f"{dialect}+{[*found, *known][0]}{separator}{rest}" if known else url


def scheme(url: str) -> str:
    """What stands before `://`."""
    return url.partition("://")[0]


def parse(url: str) -> URL:
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
        raise EnvironmentFault(explain(error, parsed)) from None
    return parsed


def file_of(url: URL) -> Path | None:
    """Return the file of a SQLite URL; None for a server and for SQLite in memory."""
    if url.get_backend_name() != "sqlite" or url.database in (None, "", ":memory:"):
        return None
    return Path(str(url.database))


def path_of(url: str) -> Path | None:
    """The file of a journal's URL; None of any other."""
    if scheme(url) != "journal":
        return None
    name = url.removeprefix("journal://").removeprefix("/")
    if not name:
        raise InputError(f"storage must name a file, such as journal:///studies.journal, got {url}")
    return Path(name)


def is_new(url: str) -> bool:
    """Whether the file of a storage does not exist yet; False of a server.

    Raises:
        InputError: `url` is not a storage's URL.
    """
    path = path_of(url) if scheme(url) in WITHOUT_TABLES else file_of(parse(url))
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
    file = file_of(parsed)
    return None if file is None else f"sqlite:///{file.absolute()}"


def explain(error: BaseException, url: URL) -> str:
    """Return the one line that a person needs about `error`, without the password."""
    whole = url.render_as_string(hide_password=False)
    name = f"storage {masked(whole)}"
    if isinstance(error, ModuleNotFoundError) and error.name:
        dialect, module = url.get_backend_name(), error.name
        ours = module in list(DRIVERS.get(dialect, {}).values())[:1]
        install = f"sweepstack[{dialect}]" if ours else module
        return f"{name} needs the package {module}, which is not installed: pip install '{install}'"
    said = reason(getattr(error, "orig", None) or error, whole)
    if "file is not a database" in said:
        return f"{name} is not a database: the file holds something else, name another one"
    return f"{name} cannot be opened: {said or type(error).__name__}"


def reason(error: BaseException, url: str) -> str:
    """What a driver says, in one line; the URL's passwords are masked however it quotes them."""
    text, url = str(error), with_password(url)
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
