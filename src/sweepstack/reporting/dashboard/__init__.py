"""`sweepstack-study dashboard`: optuna-dashboard on the right storage, with what `decorate` adds.

Whoever reaches the dashboard can delete studies: it listens on this machine alone unless another
host is named, which takes a token, and a guard before optuna-dashboard's public WSGI application
answers only requests it trusts. A page of a foreign name that resolves to this machine (DNS
rebinding) names itself in `Host`; a page that posts here from elsewhere names itself in `Origin`.
Both get 403. With a token, `?token=` gives a browser a cookie, and programs send `Authorization:
Bearer TOKEN`.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import hmac
import html
import ipaddress
import re
import secrets
import socket
import warnings
from collections.abc import ItemsView, Iterable, Mapping, Sequence
from http.cookies import CookieError, SimpleCookie
from pathlib import Path
from socketserver import ThreadingMixIn
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer
from wsgiref.util import setup_testing_defaults

import optuna
from optuna.storages import BaseStorage, InMemoryStorage

from sweepstack import storage
from sweepstack.config.errors import EnvironmentFault, InputError, SweepstackError, printable
from sweepstack.reporting.dashboard import decorate
from sweepstack.runs import progress
from sweepstack.study.view import StudyView

LOCAL = ("localhost", "127.0.0.1", "[::1]")
READS = ("GET", "HEAD", "OPTIONS")
ADDRESS = "sweepstack.address"
"""Key of a request's environment: the address of this machine that it came to."""
MAX_TRIED = 20
"""Ports after the one in use that are tried before any free one is named."""
_HOST = re.compile(r"(\[[^\]]*\]|[^:\[\]]*)(:\d{1,5})?")
_OF_TRIAL = re.compile(r"dashboard:(?:artifacts:)?(\d+):")
_VERSION = re.compile(r"dashboard:(\d+):note_ver")


def serve(
    where: str = storage.DEFAULT,
    host: str = "127.0.0.1",
    port: int = 8080,
    *,
    allowed: Sequence[str] = (),
    token: str | None = None,
    is_open: bool = False,
) -> int:
    """Show the studies of a storage in a browser until Ctrl-C.

    Args:
        where: as for `storage.look`.
        host: the address to listen on.
        port: 0 takes any that is free.
        allowed: names besides `host` and this machine's own by which it may be called.
        token: what a browser or program must know; "" draws one; None asks for none.
        is_open: other machines may reach it without a token.

    Returns:
        The exit code, 0.

    Raises:
        InputError: `where` is no database URL, a name in `allowed` or the token is malformed, or
            `host` is not this machine alone and neither `token` nor `is_open` is given.
        EnvironmentFault: the storage cannot be read, or the port is not available.
    """
    for name in allowed:
        if not name_of(name):
            raise InputError(f"--allow-host must be a name or an address, got '{name}'")
    if token and not re.fullmatch(r"[!-~]{8,}", token):
        raise InputError(
            "--token must have at least 8 letters, digits or signs without spaces; "
            "--token alone draws one"
        )
    local = _is_loopback(host)
    if not local and token is None and not is_open:
        raise InputError(
            f"--host {host} may be reached from other machines: add --token (one is drawn), "
            "--token TOKEN, or --no-token to let everyone in"
        )
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    url, opened = storage.look(where)
    with _listening(host, port) as server, contextlib.suppress(KeyboardInterrupt):
        if not local:
            risk = "has no login" if token is None else "is not encrypted"
            _say(
                f"warning: {host} may be reached from other machines, and the dashboard {risk}: "
                "whoever gets in can delete studies",
            )
        with storage.named(url):
            _decorate_all(opened, url)
        shown = "" if token is None else "?token=TOKEN"
        if token == "":
            token = secrets.token_urlsafe(24)
            shown = f"?token={token}"
        app = _app(opened, decorate.artifacts(url))
        server.set_app(Guard(app, [host, *allowed], server.server_port, token))
        name = f"[{host}]" if ":" in host else host
        _say(f"dashboard: http://{name}:{server.server_port}/{shown} (Ctrl-C ends it)")
        server.serve_forever()
    return 0


def _decorate_all(opened: BaseStorage, url: str) -> None:
    """Decorate every study of sweepstack; one that cannot be is shown as it is."""
    for name in optuna.get_all_study_names(opened):
        study = optuna.load_study(study_name=name, storage=opened)
        try:
            if decorate.decorate(StudyView(study, url, opened), max_notes=None):
                _say(f"prepared {name}: notes, files of the best trials, report")
        except SweepstackError as error:
            _say(f"{name} is shown without notes: {error}")


def _say(line: str) -> None:
    progress.say(printable(line))


def _app(opened: BaseStorage, folder: Path) -> Any:
    """optuna-dashboard as a WSGI application."""
    from optuna.artifacts import FileSystemArtifactStore  # with all clouds' clients: not for sweeps
    from optuna_dashboard import wsgi

    if reads_by_trial():
        by_trial(opened)
    else:
        _say("this optuna-dashboard is slow where thousands of trials have notes")
    return wrapped(wsgi(opened, artifact_store=FileSystemArtifactStore(folder)))


def wrapped(app: Any) -> Any:
    """A WSGI application with `WRAP` in its pages: a note or value of one long line would else make
    the page of a trial thousands of pixels wide."""

    def answer(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        if not environ.get("PATH_INFO", "").startswith("/dashboard"):
            found: Iterable[bytes] = app(environ, start_response)
            return found
        # A part of the page, or none since it is unchanged, could not be changed here.
        for name in ("HTTP_RANGE", "HTTP_IF_MODIFIED_SINCE", "HTTP_IF_NONE_MATCH"):
            environ.pop(name, None)
        said: list[Any] = []
        parts = app(environ, lambda *given: said.append(given))
        body = b"".join(parts)
        if hasattr(parts, "close"):
            parts.close()
        changed = body.replace(b"</head>", WRAP + b"</head>", 1)
        status, headers, *rest = said[-1]
        size = len(changed) - len(body)
        start_response(
            status,
            [
                (name, str(int(value) + size) if name.lower() == "content-length" else value)
                for name, value in headers
            ],
            *rest,
        )
        return [changed]

    return answer


WRAP = b"""<style>
pre, pre code, p, h4, td, li { white-space: pre-wrap !important; overflow-wrap: anywhere; }
.MuiBox-root { min-width: 0; }
.MuiBox-root:has(> .MuiList-root) { flex-shrink: 0; min-width: min(10rem, 24vw); }
.MuiBox-root:has(> .MuiList-root) p { white-space: normal !important; overflow-wrap: normal; }
</style>"""
"""Lets text of a study break anywhere in the pages of optuna-dashboard."""


class ByTrial(dict[str, Any]):
    """System attributes of a study, of which `items()` are its own and those of one trial.

    optuna-dashboard goes through all of them for each trial, twice, to find the trial's note and
    artifacts: with 10,000 notes a request takes minutes. It looks for the version of the note
    first, which says whose attributes are wanted next.
    """

    def __init__(self, attributes: Mapping[str, Any]):
        super().__init__(attributes)
        self._trial: str | None = None
        self._by_trial: dict[str | None, dict[str, Any]] = {}
        for key, value in attributes.items():
            owner = _OF_TRIAL.match(key)
            self._by_trial.setdefault(owner[1] if owner else None, {})[key] = value

    def __contains__(self, key: object) -> bool:
        if (version := _VERSION.fullmatch(str(key))) is not None:
            self._trial = version[1]
        return super().__contains__(key)

    def items(self) -> ItemsView[str, Any]:  # type: ignore[override]
        """The study's attributes and those of the last trial whose note was looked for."""
        return (self._by_trial.get(None, {}) | self._by_trial.get(self._trial, {})).items()


def by_trial(opened: BaseStorage) -> None:
    """Let a storage that only the dashboard reads give the attributes of studies as `ByTrial`."""
    read = opened.get_all_studies

    def get_all_studies() -> list[Any]:
        studies = read()
        for study in studies:
            study.system_attrs = ByTrial(study.system_attrs)
        return studies

    opened.get_all_studies = get_all_studies  # type: ignore[method-assign]


def reads_by_trial() -> bool:
    """Whether the installed optuna-dashboard answers the same with `ByTrial` as without."""
    from optuna_dashboard import save_note, wsgi

    memory = InMemoryStorage()
    study = optuna.create_study(storage=memory)
    save_note(study, "of the study")
    for artifact in range(3):
        trial = study.ask()
        save_note(trial, str(artifact) * 3000)
        study_id = memory.get_study_id_from_name(study.study_name)
        trial_id = memory.get_trial_id_from_study_id_trial_number(study_id, trial.number)
        meta = f'{{"artifact_id": "{artifact}"}}'
        memory.set_study_system_attr(study_id, f"dashboard:artifacts:{trial_id}:a", meta)
    answers = []
    for change in (lambda _: None, by_trial):
        change(memory)
        environ: dict[str, Any] = {"PATH_INFO": f"/api/studies/{study_id}"}
        setup_testing_defaults(environ)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            answers.append(b"".join(wsgi(memory)(environ, lambda *_: None)))
    return answers[0] == answers[1] and answers[0].count(b"artifact_id") >= 3


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class _Server(ThreadingMixIn, WSGIServer):
    """A thread per request; those under way do not hold up the end."""

    daemon_threads = True

    def server_bind(self) -> None:
        """Listen, without asking a name server what this machine is called."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]
        self.setup_environ()


class _Server6(_Server):
    address_family = socket.AF_INET6


class _Silent(WSGIRequestHandler):
    """Does not print every request."""

    def get_environ(self) -> dict[str, Any]:
        """With the address that the request came to."""
        return super().get_environ() | {ADDRESS: str(self.connection.getsockname()[0])}

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""


def _listening(host: str, port: int) -> _Server:
    """A server that listens and answers nothing yet.

    Raises:
        EnvironmentFault: the port is in use, not allowed, or the host is not this machine.
    """
    kind = _Server6 if ":" in host else _Server
    try:
        return kind((host, port), _Silent)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise EnvironmentFault(
                f"port {port} of {host} is in use; --port {_free(host, port)} is free"
            ) from error
        reason = error.strerror or error
        raise EnvironmentFault(f"cannot listen on port {port} of {host}: {reason}") from error


def _free(host: str, port: int) -> int:
    """A free port, one of the next if there is any."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for candidate in [*range(port + 1, min(port + 1 + MAX_TRIED, 65536)), 0]:
        with socket.socket(family) as trial:
            try:
                trial.bind((host, candidate))
            except OSError:
                continue
            return int(trial.getsockname()[1])
    return 0


class Guard:
    """A WSGI application that passes trusted requests on to another.

    Args:
        app: the other.
        hosts: names, besides this machine's, by which the dashboard may be called.
        port: where it listens; cookies are of a host, whatever its port.
        token: what everyone must know; None: nothing.
    """

    def __init__(self, app: Any, hosts: Iterable[str], port: int, token: str | None):
        self._app = app
        self._hosts = {*LOCAL, *map(name_of, hosts)}
        self._cookie = f"sweepstack_token_{port}"
        self._digest = None if token is None else _digest(token)

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        """Answer a request."""
        host = environ.get("HTTP_HOST", "")
        name = name_of(host)
        # A numeric address is no name that somebody else could let point here.
        if name == "" or name not in {*self._hosts, name_of(environ.get(ADDRESS, ""))}:
            said = f"--allow-host {name} allows it" if name else "a request must name one"
            return _answer(environ, start_response, "403 Forbidden", f"unknown host: {said}")
        if environ["REQUEST_METHOD"] not in READS and _is_foreign(environ, host):
            return _answer(environ, start_response, "403 Forbidden", "a page of another origin")
        if self._digest is not None and not self._is_known(environ):
            query = parse_qsl(environ.get("QUERY_STRING", ""), keep_blank_values=True)
            if any(key == "token" and self._is_right(value) for key, value in query):
                return self._let_in(environ, start_response, query)
            line = "open /?token=TOKEN, or send the header Authorization: Bearer TOKEN"
            asked = ("WWW-Authenticate", "Bearer")
            return _answer(environ, start_response, "401 Unauthorized", line, asked)
        found: Iterable[bytes] = self._app(environ, start_response)
        return found

    def _is_right(self, token: str) -> bool:
        return hmac.compare_digest(_digest(token), self._digest or "")

    def _is_known(self, environ: dict[str, Any]) -> bool:
        kind, _, token = environ.get("HTTP_AUTHORIZATION", "").partition(" ")
        if kind.lower() == "bearer" and self._is_right(token.strip()):
            return True
        try:
            cookie = SimpleCookie(environ.get("HTTP_COOKIE", "")).get(self._cookie)
        except CookieError:
            return False
        value = "" if cookie is None else cookie.value
        return hmac.compare_digest(value.encode(), (self._digest or "").encode())

    def _let_in(
        self, environ: dict[str, Any], start_response: Any, query: list[tuple[str, str]]
    ) -> Iterable[bytes]:
        """Give the cookie and go on without the token in the address. A redirect would not do: a
        strict cookie is not sent by what another page or program began."""
        path = "/" + quote(environ.get("PATH_INFO", "").encode("latin-1").lstrip(b"/"))
        rest = urlencode([(key, value) for key, value in query if key != "token"])
        target = html.escape(f"{path}?{rest}" if rest else path)
        page = f'<meta http-equiv="refresh" content="0;url={target}">'
        cookie = f"{self._cookie}={self._digest}; Path=/; HttpOnly; SameSite=Strict"
        headers = (("Set-Cookie", cookie), ("Referrer-Policy", "no-referrer"))
        return _answer(environ, start_response, "200 OK", page, *headers, kind="text/html")


def name_of(host: str) -> str:
    """The name or address in `Host` or after --host, such as "[::1]"; "" if it is none."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        found = _HOST.fullmatch(host)
        if found is None or not found[1].startswith("["):
            return found[1].lower() if found else ""
        return name_of(found[1][1:-1]) if found[1] != "[]" and ":" in found[1] else ""
    return f"[{address}]" if address.version == 6 else str(address)


def _is_foreign(environ: dict[str, Any], host: str) -> bool:
    """Whether a page of another origin sends it, port included; programs name no origin."""
    if environ.get("HTTP_SEC_FETCH_SITE", "none") not in ("none", "same-origin"):
        return True
    origin = environ.get("HTTP_ORIGIN")
    return origin is not None and origin.partition("://")[2].lower() != host.lower()


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()


def _answer(
    environ: dict[str, Any],
    start_response: Any,
    status: str,
    text: str,
    *headers: tuple[str, str],
    kind: str = "text/plain",
) -> Iterable[bytes]:
    body = f"{text}\n".encode()
    start_response(
        status,
        [
            ("Content-Type", f"{kind}; charset=utf-8"),
            ("Content-Length", str(len(body))),
            ("Cache-Control", "no-store"),
            ("X-Content-Type-Options", "nosniff"),
            *headers,
        ],
    )
    return [] if environ["REQUEST_METHOD"] == "HEAD" else [body]
