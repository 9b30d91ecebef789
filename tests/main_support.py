"""A fixture that runs the command line in this process: a sweep without the seconds of a start."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import warm
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.singleton import Singleton
from support import without_report

from sweepstack.cli import app


@dataclass
class Ended:
    """What `main` left: its exit code and what it printed."""

    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        """stderr, line by line."""
        return self.err.splitlines()


@pytest.fixture
def main(tmp_path, monkeypatch, capsys):
    """`main("-m", "init=he,xavier")` in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("SWEEPSTACK_STORAGE", "")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(multiprocessing, "get_context", warm.context_of)
    hydra_state = Singleton.get_state()
    handlers, level = list(logging.root.handlers), logging.root.level
    interrupt = signal.getsignal(signal.SIGINT)
    cwd = Path.cwd()

    def run(*arguments: str) -> Ended:
        monkeypatch.setattr(sys, "argv", ["sweepstack", *without_report(arguments)])
        GlobalHydra.instance().clear()
        HydraConfig.instance().cfg = None
        capsys.readouterr()
        try:
            app.main()
            code = 0
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        finally:
            os.chdir(cwd)
            signal.signal(signal.SIGINT, interrupt)
        printed = capsys.readouterr()
        return Ended(code, printed.out, printed.err)

    yield run
    Singleton.set_state(hydra_state)
    for handler in [h for h in logging.root.handlers if h not in handlers]:
        logging.root.removeHandler(handler)
    logging.root.handlers[:] = handlers
    logging.root.setLevel(level)
