"""`iolaus-study dashboard`, started as a user would, and driven in a real browser."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import pytest
from browser_support import browser, screenshots  # noqa: F401

from iolaus.analysis.cli import parser, run
from iolaus.errors import EnvironmentFault, InputError

SWEEP = (
    *("-m", "init=he,xavier", "model.activation=relu,tanh", "data=digits", "training.device=cpu"),
    *("model.hidden=[8]", "training.max_steps=20", "training.eval_every=10"),
    "hydra.sweeper.study_name=tiny",
)
DEADLINE_S = 120


def started(folder, *arguments: str) -> tuple[subprocess.Popen, str, list[str]]:
    """The dashboard once it listens, its URL and what it said."""
    process = subprocess.Popen(
        [sys.executable, "-m", "iolaus.analysis.cli", "dashboard", "--port", "0", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONUNBUFFERED": "1", "COLUMNS": "100"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    said = []
    for line in process.stdout:
        said.append(line.rstrip())
        found = re.match(r"dashboard: (http://\S+)/ ", line)
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
            with urllib.request.urlopen(f"{url}/api/studies", timeout=DEADLINE_S) as answer:
                assert answer.status == 200
                return
        except OSError:
            assert time.monotonic() < end
            time.sleep(0.1)


@pytest.fixture
def tiny(iolaus, tmp_path):
    ended = iolaus(*SWEEP)
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
        page.wait_for_selector("text=iolaus-study rerun tiny 0")
        page.wait_for_selector("text=init=he")
        page.wait_for_selector("text=history.csv")
        assert not page.get_by_text("[//]").count()  # what marks a note is not shown
        page.screenshot(path=screenshots / "dashboard-trial.png")
        assert not errors
        assert not [one for one in asked if not one.startswith((url, "data:", "blob:"))]
    finally:
        code, rest = ended(process)
    assert code in (0, 130)
    assert "Traceback" not in rest


def test_a_storage_that_is_not_there_is_one_line(tmp_path):
    with pytest.raises(EnvironmentFault, match=r"does not exist; a sweep makes it"):
        run(["dashboard", "--storage", f"sqlite:///{tmp_path}/none.db"])
    assert not list(tmp_path.iterdir())


def empty_storage(folder) -> str:
    from iolaus import storage

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
    with pytest.raises(EnvironmentFault, match=r"cannot listen on port 0 of 203\.0\.113\.1"):
        run(
            ["dashboard", "--storage", empty_storage(tmp_path), "--host", "203.0.113.1", "--port=0"]
        )


@pytest.mark.parametrize("port", ["-1", "65536", "x", "8e3"])
def test_a_port_that_is_none_is_refused(port):
    with pytest.raises(InputError, match="port"):
        parser().parse_args(["dashboard", f"--port={port}"])


def test_other_hosts_than_this_machine_are_warned_of_and_ctrl_c_ends_it(tmp_path):
    url = empty_storage(tmp_path)
    process, _, said = started(tmp_path, "--storage", url, "--host", "0.0.0.0")
    code, rest = ended(process)
    assert code in (0, 130)
    assert "no login" in said[0]
    assert "Traceback" not in rest
    process, _, said = started(tmp_path, "--storage", url)
    ended(process)
    assert len(said) == 1
