"""Fixtures of the tests of `sweepstack-study rerun`: sweeps in this process, trials run again."""

from __future__ import annotations

from rerun_support import again, stacked
from sweep.conftest import main

__all__ = ["again", "main", "stacked"]
