"""Fixtures of all tests: a trial's spec, and the command itself."""

from __future__ import annotations

import gc
import math
import os
import signal
import subprocess
import sys

# A process per core: more threads would only wait. Stacks are in one part then; what is about parts
# asks for two threads.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.pop("UV_RUN_RECURSION_DEPTH", None)  # below `uv run`, printed commands say so

import pytest
import torch
import warm
import yaml_once
from hypothesis import settings
from support import make_spec, without_report

# What a shell starts in the background ignores Ctrl-C, and so would all that tests start.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Triton's kernels run in its interpreter where there is no GPU; it asks once, when it is imported.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

yaml_once.remember()
pytest_plugins = ["engine_support", "main_support", "rerun_support"]

# The same examples every time: a change, not chance, makes a test fail.
settings.register_profile("steady", derandomize=True, deadline=None)
settings.load_profile("steady")


def pytest_collection_modifyitems(items):
    """The slow ones first, whole pages of docs/ before all: begun last, one of them would keep a
    single core at work."""

    def rank(item):
        pages = item.name.startswith("test_what_a_page_shows_runs")
        return 0 if pages else 1 if item.get_closest_marker("slow") else 2

    items.sort(key=rank)


def pytest_collection_finish():
    """What is loaded by now stays: garbage collections need not look at it again and again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _storages_answer(monkeypatch):
    """A slow moment of this machine in one test is no sign for the next."""
    if "sweepstack.storage.patience" in sys.modules:
        monkeypatch.setattr("sweepstack.storage.patience._back", -math.inf)


@pytest.fixture
def spec():
    return make_spec


@pytest.fixture
def sweepstack(tmp_path):
    """Run the command line in an empty folder: `sweepstack("optimizer.lr=-1")`.

    `cold=True` starts a new interpreter, as a shell does.
    """

    def run(*arguments: str, cwd=tmp_path, env=(), cold: bool = False):
        words = ["-m", "sweepstack", *without_report(arguments)]
        environment = {**os.environ, "COLUMNS": "100", **dict(env)}
        if not cold:
            return warm.run(words, cwd, environment)
        return subprocess.run(
            [sys.executable, *words],
            cwd=cwd,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
        )

    return run
