"""Books of both implementations."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import book_support
import pytest
from book_support import KINDS

from sweepstack.study.book.book import Book


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/studies.db"


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def open_book(url: str, kind: str) -> Callable[..., Book]:
    """`open_book(total)` of either implementation."""
    return partial(book_support.open_book, url, kind=kind)
