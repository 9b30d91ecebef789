"""`sweepstack-study dashboard`, started as a user would, and driven in a real browser."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest
from browser_support import browser, screenshots  # noqa: F401
from fault_support import until

from sweepstack.cli.study import parser, run
from sweepstack.config.errors import EnvironmentFault, InputError
from sweepstack.reporting.dashboard import ADDRESS, Guard, wrapped

SWEEP = (
    *("-m", "init=he,xavier", "model.activation=relu,tanh", "data=digits", "training.device=cpu"),
    *("model.hidden=[8]", "training.max_steps=20", "training.eval_every=10"),
    "hydra.sweeper.study_name=tiny",
)
DEADLINE_S = 120


def started(folder, *arguments: str) -> tuple[subprocess.Popen, str, list[str]]:
    """The dashboard once it listens, its URL and what it said."""
    process = subprocess.Popen(
        [sys.executable, "-m", "sweepstack.cli.study", "dashboard", "--port", "0", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONUNBUFFERED": "1", "COLUMNS": "100"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    said = []
    for line in process.stdout:
        said.append(line.rstrip())
        found = re.match(r"dashboard: (http://[^/\s]+)/", line)
        if found:
            answers(found[1])
            return process, found[1], said
    raise AssertionError(f"the dashboard ended with {process.wait()}: {said}")


def ended(process: subprocess.Popen) -> tuple[int, str]:
    """The exit code after Ctrl-C, and what was said after the URL."""
    process.send_signal(signal.SIGINT)
    rest, _ = process.communicate(timeout=DEADLINE_S)
    return process.returncode, rest


def answers(url: str) -> None:
    """Wait until the server answers."""
    end = time.monotonic() + DEADLINE_S
    while True:
        try:
            assert status(f"{url}/api/studies") in (200, 401)
            return
        except OSError:
            assert time.monotonic() < end
            time.sleep(0.1)


@pytest.fixture
def tiny(sweepstack, tmp_path):
    ended = sweepstack(*SWEEP)
    assert ended.returncode == 0, ended.stderr
    return tmp_path


@pytest.mark.slow
def test_a_study_in_the_browser(tiny, browser, screenshots):  # noqa: F811
    process, url, said = started(tiny)
    try:
        assert said[0].startswith("prepared tiny: ")
        page = browser.new_page(viewport={"width": 1280, "height": 2000})
        asked, errors = [], []
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(f"{url}/dashboard")
        page.get_by_text("tiny").first.click()
        page.wait_for_url("**/studies/1")
        page.wait_for_selector("[id='user-defined-plot:heatmap'] .heatmaplayer image")
        assert page.get_by_text("val_accuracy, mean ± std and n").count()
        page.wait_for_selector("text=report.html")
        page.screenshot(path=screenshots / "dashboard-study.png")
        page.goto(f"{url}/dashboard/studies/1/trials?numbers=0")
        page.wait_for_selector("text=sweepstack-study rerun tiny 0")
        page.wait_for_selector("text=init=he")
        page.wait_for_selector("text=history.csv")
        assert not page.get_by_text("[//]").count()  # what marks a note is not shown
        for width in (1280, 400):
            page.set_viewport_size({"width": width, "height": 2000})
            fits = f"document.scrollingElement.scrollWidth <= {width}"
            until(lambda fits=fits: page.evaluate(fits), "the page fits")
        page.screenshot(path=screenshots / "dashboard-trial.png")
        assert not errors
        assert not [one for one in asked if not one.startswith((url, "data:", "blob:"))]
    finally:
        code, rest = ended(process)
    assert code in (0, 130)
    assert "Traceback" not in rest


def test_pages_let_long_lines_break_and_other_answers_stay_as_they_are():
    def app(environ, start_response):
        body = b"<head></head><p>" + b"x" * 50
        assert "HTTP_IF_NONE_MATCH" not in environ or environ["PATH_INFO"] == "/api/studies"
        start_response(
            "200 OK", [("Content-Type", "text/html"), ("Content-Length", str(len(body)))]
        )
        return [body]

    def got(path):
        said = []
        environ = {"PATH_INFO": path, "HTTP_IF_NONE_MATCH": "abc"}
        body = b"".join(wrapped(app)(environ, lambda *given: said.append(given)))
        return body, dict(said[0][1])["Content-Length"]

    page, size = got("/dashboard/studies/1")
    assert b"overflow-wrap: anywhere" in page.partition(b"</head>")[0]
    assert size == str(len(page))
    assert got("/api/studies")[0] == b"<head></head><p>" + b"x" * 50


def test_a_storage_that_is_not_there_is_one_line(tmp_path):
    with pytest.raises(EnvironmentFault, match=r"does not exist.*; a sweep makes it"):
        run(["dashboard", "--storage", f"sqlite:///{tmp_path}/none.db"])
    assert not list(tmp_path.iterdir())


def empty_storage(folder) -> str:
    from sweepstack import storage

    url = f"sqlite:///{folder}/studies.db"
    storage.connect(url).engine.dispose()
    return url


def test_a_port_in_use_is_one_line_that_names_a_free_one(tmp_path):
    url = empty_storage(tmp_path)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(
            EnvironmentFault, match=rf"port {port} .* in use; --port (\d+)"
        ) as fault:
            run(["dashboard", "--storage", url, "--port", str(port)])
    free = int(re.search(r"--port (\d+)", str(fault.value))[1])
    with socket.socket() as trial:
        trial.bind(("127.0.0.1", free))
    assert "\n" not in str(fault.value)


def test_a_host_that_is_not_this_machine_is_one_line(tmp_path):
    words = ["--host", "203.0.113.1", "--port=0", "--no-token"]
    with pytest.raises(EnvironmentFault, match=r"cannot listen on port 0 of 203\.0\.113\.1"):
        run(["dashboard", "--storage", empty_storage(tmp_path), *words])


@pytest.mark.parametrize("port", ["-1", "65536", "x", "8e3"])
def test_a_port_that_is_none_is_refused(port):
    with pytest.raises(InputError, match="port"):
        parser().parse_args(["dashboard", f"--port={port}"])


def test_other_hosts_than_this_machine_are_warned_of_and_ctrl_c_ends_it(tmp_path):
    url = empty_storage(tmp_path)
    process, _, said = started(tmp_path, "--storage", url, "--host", "0.0.0.0", "--no-token")
    code, rest = ended(process)
    assert code in (0, 130)
    assert "no login" in said[0]
    assert "Traceback" not in rest
    process, _, said = started(tmp_path, "--storage", url)
    ended(process)
    assert len(said) == 1


class Served:
    """The dashboard's guard before an application that notes what reaches it."""

    def __init__(self, *allowed: str, token: str | None = None):
        self.reached: list[str] = []
        self.guard = Guard(self._app, ["127.0.0.1", *allowed], 8080, token)

    def _app(self, environ, start_response):
        self.reached.append(environ["REQUEST_METHOD"])
        start_response("200 OK", [])
        return [b"studies"]

    def ask(self, method="GET", path="/api/studies", query="", address="127.0.0.1", **headers):
        """Status, headers and body; header names as WSGI writes them, without HTTP_."""
        found = []
        environ = {
            "REQUEST_METHOD": method,
            "PATH_INFO": path,
            "QUERY_STRING": query,
            ADDRESS: address,
            **{f"HTTP_{name}": value for name, value in headers.items()},
        }
        body = self.guard(environ, lambda status, given: found.extend([status, dict(given)]))
        return int(found[0].split()[0]), found[1], b"".join(body).decode()


METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "ODD")


@pytest.mark.parametrize(
    "host",
    [
        *("evil.example:8124", "evil.example", "127.0.0.1.evil.example:8080", "", "0.0.0.0:8080"),
        *("localhost:8080,evil.example", "localhost@evil.example", "evil.example:8080:8080"),
        *("[::1].evil.example", "[::2]", "[]", "192.168.7.7"),
    ],
)
def test_another_host_is_refused_whatever_the_method(host):
    served = Served()
    for method in METHODS:
        assert served.ask(method, HOST=host)[0] == 403
    assert served.ask()[0] == 403  # no Host at all
    assert served.reached == []


def test_the_dashboard_answers_to_the_names_that_it_has():
    served = Served("Box.example", "[fd00::1]", "proxy:8443")
    for host in ("localhost:8080", "LOCALHOST", "127.0.0.1:9999", "[::1]:8080", "[0:0::1]:80"):
        assert served.ask(HOST=host)[0] == 200
    for host in ("box.example:8080", "[fd00:0::1]:8080", "proxy"):
        assert served.ask(HOST=host)[0] == 200
    assert served.ask(HOST="10.0.0.5:8080", address="10.0.0.5")[0] == 200
    assert "--allow-host other" in served.ask(HOST="other:1")[2]


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "ODD"])
def test_a_page_of_another_origin_cannot_write(method):
    served = Served()
    host = {"HOST": "localhost:8080"}
    for origin in ("http://evil.example", "null", "http://localhost:3000", "http://localhost", ""):
        assert served.ask(method, ORIGIN=origin, **host)[0] == 403
    assert served.ask(method, SEC_FETCH_SITE="cross-site", **host)[0] == 403
    assert served.reached == []
    assert served.ask(method, ORIGIN="http://localhost:8080", **host)[0] == 200
    assert served.ask(method, SEC_FETCH_SITE="same-origin", **host)[0] == 200
    assert served.ask(method, **host)[0] == 200  # a program


def test_a_token_is_asked_for_and_becomes_a_cookie():
    served = Served(token="right-token")
    host = {"HOST": "localhost:8080"}
    refused = [
        {},
        {"query": "token=wrong-token"},
        {"query": "token="},
        {"AUTHORIZATION": "Bearer wrong-token"},
        {"AUTHORIZATION": "Basic right-token"},
        {"COOKIE": "sweepstack_token_8080=right-token"},
        {"COOKIE": "sweepstack_token_8080="},
        {"COOKIE": "sweepstack_token_8080=\xe9"},
        {"COOKIE": "\x00[;=,"},
    ]
    for asked in refused:
        assert served.ask(**asked, **host)[0] == 401
    assert served.reached == []
    assert served.ask(AUTHORIZATION="Bearer right-token", **host)[0] == 200
    assert served.ask(HOST="evil.example", AUTHORIZATION="Bearer right-token")[0] == 403

    code, headers, page = served.ask(
        path='/dashboard/"><b>', query="token=right-token&a=1&b=2", **host
    )
    assert code == 200
    cookie = headers["Set-Cookie"]
    assert cookie.endswith("; HttpOnly; SameSite=Strict")
    assert "right-token" not in cookie + page
    assert "url=/dashboard/%22%3E%3Cb%3E?a=1&amp;b=2" in page
    assert (
        "url=/evil.example"
        in served.ask(path="//evil.example", query="token=right-token", **host)[2]
    )
    assert served.ask(COOKIE=f"x=1; {cookie.partition(';')[0]}", **host)[0] == 200


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.7.7", "box.example", ""])
def test_a_host_that_others_reach_takes_a_token_or_no_token(host, tmp_path):
    with pytest.raises(InputError, match="--token TOKEN, or --no-token"):
        run(["dashboard", "--storage", f"sqlite:///{tmp_path}/none.db", "--host", host])


@pytest.mark.parametrize(
    "words", [["--token=short"], ["--token=with a space"], ["--token", "--no-token"]]
)
def test_a_token_that_is_none_is_refused(words):
    with pytest.raises(InputError, match="token") as caught:
        run(["dashboard", *words])
    assert "short" not in str(caught.value)


def test_a_name_that_is_none_is_refused():
    with pytest.raises(InputError, match="--allow-host must be"):
        run(["dashboard", "--allow-host", "http://box/"])


def test_the_running_dashboard_is_guarded(tmp_path):
    words = ("--storage", empty_storage(tmp_path), "--token", "right-token")
    process, url, said = started(tmp_path, *words)
    try:
        assert "right-token" not in "".join(said)
        login = {"Authorization": "Bearer right-token"}
        assert status(f"{url}/api/studies") == 401
        assert status(f"{url}/api/studies", login) == 200
        assert status(f"{url}/api/studies", {**login, "Host": "evil.example:8124"}) == 403
        assert status(f"{url}/api/studies/1", {**login, "Origin": "http://x"}, "DELETE") == 403
    finally:
        ended(process)


def status(url: str, headers=(), method: str = "GET") -> int:
    asked = urllib.request.Request(url, headers=dict(headers), method=method)
    try:
        with urllib.request.urlopen(asked, timeout=DEADLINE_S) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code
