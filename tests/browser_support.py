"""Fixtures for pages that are opened in a real browser: Debian's chromium, driven by playwright.

Where one of the two is missing the tests are skipped and say so. Screenshots stay with pytest's
temporary files, or go to the folder that SWEEPSTACK_SCREENSHOTS names. Imported by the tests of the
report and of the dashboard:

    from browser_support import browser, eventually, screenshots
"""

from __future__ import annotations

import functools
import importlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ARGUMENTS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
PATIENCE_MS = 60_000  # for a hung page only


def chromium_path() -> str | None:
    """Where chromium is, None where there is none."""
    return shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A headless chromium; `browser.new_context(...)` opens a fresh profile."""
    api = pytest.importorskip("playwright.sync_api", reason="the package playwright is missing")
    path = chromium_path()
    if path is None:
        pytest.skip("there is no chromium (apt-get install chromium)")
    api.expect.set_options(timeout=PATIENCE_MS)
    with api.sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=path, args=list(ARGUMENTS))
        for name in ("new_context", "new_page"):
            setattr(launched, name, _patient(getattr(launched, name)))
        yield launched
        launched.close()


def _patient(make: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(make)
    def made(**given: Any) -> Any:
        opened = make(**given)
        opened.set_default_timeout(PATIENCE_MS)
        return opened

    return made


def eventually(locator: Any) -> Any:
    """`eventually(tab.locator("p")).to_have_count(2)` waits until it is so.

    Playwright's `wait_for_function` would ask from within the page, whose security policy forbids
    that: it raises unless its first look finds what it waits for.
    """
    return importlib.import_module("playwright.sync_api").expect(locator)


@pytest.fixture
def screenshots(tmp_path: Path) -> Path:
    """The folder for screenshots."""
    folder = Path(os.environ.get("SWEEPSTACK_SCREENSHOTS", tmp_path))
    folder.mkdir(parents=True, exist_ok=True)
    return folder
