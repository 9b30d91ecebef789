"""`sweepstack-study dashboard`: optuna-dashboard on the right storage, with what `decorate` adds.

Whoever reaches the dashboard can delete studies: it listens on this machine alone unless another
host is named, which takes a token, and answers only who calls it by a name that it knows
(`dashboard_guard.py`). It reads through connections that hold up no sweep.
"""

from __future__ import annotations

import errno
import ipaddress
import json
import re
import secrets
import socket
from collections.abc import Iterator, Mapping, Sequence
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

import optuna
from optuna.artifacts import FileSystemArtifactStore
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial
from rich.console import Console

from sweepstack.config.errors import EnvironmentFault, InputError, SweepstackError, printable
from sweepstack.reporting.dashboard import dashboard_rows, decorate
from sweepstack.reporting.dashboard.guard import ADDRESS, Guard, name_of
from sweepstack.runs import progress
from sweepstack.study import storage
from sweepstack.study.library import OpenStudy

ARTIFACTS = "dashboard:artifacts:"
"""How the keys of a trial's artifacts begin in the attributes of its study."""
TRIED = 20
"""Ports after the one in use that are tried before any free one is named."""


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
        InputError: `where` is not a database URL, a name in `allowed` is none, the token is no
            token, or `host` is not this machine alone and neither `token` nor `is_open` is given.
        EnvironmentFault: the storage cannot be read, or nobody can listen there.
    """
    for name in allowed:
        if not name_of(name):
            raise InputError(f"--allow-host must be a name or an address, got '{name}'")
    if token and not re.fullmatch(r"[!-~]{8,}", token):
        raise InputError(
            "--token must have at least 8 letters, digits or signs without spaces; "
            "--token alone draws one"
        )
    alone = _is_loopback(host)
    if not alone and token is None and not is_open:
        raise InputError(
            f"--host {host} may be reached from other machines: add --token (one is drawn), "
            "--token TOKEN, or --no-token to let everyone in"
        )
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    console = progress.console()
    url, opened = storage.look(where)
    with _listening(host, port) as server:
        try:
            if not alone:
                rule = "has no login" if token is None else "is not encrypted"
                _say(
                    console,
                    f"warning: {host} may be reached from other machines, and the dashboard "
                    f"{rule}: whoever gets in can delete studies",
                )
            with storage.named(url):
                _decorate_all(opened, url, console)
            shown = "" if token is None else "?token=TOKEN"
            if token == "":
                token = secrets.token_urlsafe(24)
                shown = f"?token={token}"
            server.set_app(Guard(_app(opened, url), [host, *allowed], server.server_port, token))
            name = f"[{host}]" if ":" in host else host
            _say(console, f"dashboard: http://{name}:{server.server_port}/{shown} (Ctrl-C ends it)")
            server.serve_forever()
        except KeyboardInterrupt:
            pass
    return 0


def _decorate_all(opened: BaseStorage, url: str, console: Console) -> None:
    """Decorate every study of sweepstack; one that cannot be is shown as it is."""
    for name in [study.study_name for study in opened.get_all_studies()]:
        study = OpenStudy(optuna.load_study(study_name=name, storage=opened), url)
        try:
            if decorate.decorate(study, most_notes=None):
                _say(console, f"prepared {name}: notes, files of the best trials, report")
        except SweepstackError as error:
            _say(console, f"{name} is shown without notes: {error}")


def _app(opened: BaseStorage, url: str) -> Any:
    """optuna-dashboard as a WSGI application."""
    from optuna_dashboard import wsgi

    _read_once()
    folder = decorate.artifacts(url)
    return wsgi(opened, artifact_store=FileSystemArtifactStore(folder))


def _say(console: Console, line: str) -> None:
    console.print(printable(line), highlight=False, markup=False, soft_wrap=True)


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
    for candidate in [*range(port + 1, min(port + 1 + TRIED, 65536)), 0]:
        with socket.socket(family) as trial:
            try:
                trial.bind((host, candidate))
            except OSError:
                continue
            return int(trial.getsockname()[1])
    return 0


def _read_once() -> None:
    """Let the dashboard find a trial's note and artifacts by their keys.

    It goes through all attributes of a study for each of its trials, twice: a request takes minutes
    where 10,000 trials have notes. Where its functions are called otherwise nothing is changed.
    """
    from optuna_dashboard import _note, _serializer

    if hasattr(_note, "get_note_from_system_attrs"):
        _note.get_note_from_system_attrs = note_of
    if hasattr(_serializer, "list_trial_artifacts"):
        _serializer.list_trial_artifacts = _Artifacts()


def note_of(attributes: Mapping[str, Any], trial_id: int | None) -> dict[str, Any]:
    """The note of a trial, or of the study, as optuna-dashboard reads it."""
    from optuna_dashboard import _note

    version = attributes.get(_note.note_ver_key(trial_id))
    if version is None:
        return {"version": 0, "body": ""}
    parts = dashboard_rows.chunks(attributes, _note.note_str_key_prefix(trial_id))
    return {"version": int(version), "body": "".join(parts)}


class _Artifacts:
    """The artifacts of trials, as optuna-dashboard reads them; a study's are sorted once."""

    def __init__(self) -> None:
        self._of: tuple[Any, dict[str, list[Any]]] = ({}, {})

    def __call__(
        self, study: dict[str, Any], trial: dict[str, Any], frozen: FrozenTrial
    ) -> list[Any]:
        known, sorted_ones = self._of
        if known is not study:
            sorted_ones = {}
            for key, text in study.items():
                if key.startswith(ARTIFACTS):
                    trial_id = key.removeprefix(ARTIFACTS).partition(":")[0]
                    sorted_ones.setdefault(trial_id, []).append(json.loads(text))
            self._of = (study, sorted_ones)
        found = [*sorted_ones.get(str(frozen._trial_id), []), *_own(trial)]
        return [meta for meta in found if meta is not None]


def _own(trial: Mapping[str, Any]) -> Iterator[Any]:
    return (json.loads(text) for key, text in trial.items() if key.startswith("artifacts:"))
