"""Who may ask the dashboard: a browser that any web page can send somewhere is not trusted blindly.

A page of a foreign name that resolves to this machine (DNS rebinding) names itself in `Host`; a
page that posts here from elsewhere names itself in `Origin`. Both get 403. Where a token is asked
for, `?token=` gives a browser a cookie, and programs send `Authorization: Bearer TOKEN`.
"""

from __future__ import annotations

import hashlib
import hmac
import html
import ipaddress
import re
from collections.abc import Iterable
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode

LOCAL = ("localhost", "127.0.0.1", "[::1]")
READS = ("GET", "HEAD", "OPTIONS")
ADDRESS = "sweepstack.address"
"""Key of a request's environment: the address of this machine that it came to."""
_HOST = re.compile(r"(\[[^\]]*\]|[^:\[\]]*)(:\d{1,5})?")


class Guard:
    """A WSGI application that passes on to another what may be asked.

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
