"""What is written into a page: text made safe, numbers for people, data packed."""

from __future__ import annotations

import base64
import gzip
import hashlib
import html
import math
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any

import numpy as np

from sweepstack.config.errors import printable
from sweepstack.reporting.terminal import number as number

LONGEST = 400
"""Letters of a text that are shown."""


def clean(value: object) -> str:
    """One line of printable text, cut after `LONGEST` letters; not yet safe in HTML."""
    line = printable(" ".join(str(value).split()))
    return line if len(line) <= LONGEST else f"{line[:LONGEST]}…"


def text(value: object) -> str:
    """Any value as text that is safe in HTML, in an element or in a quoted attribute."""
    return html.escape(clean(value), quote=True)


def prose(value: str) -> str:
    """As `text`, never cut and with the spaces that it has: sentences, and commands to copy."""
    return html.escape(printable(value.replace("\n", " ")), quote=True)


def label(value: Any) -> str:
    """The value of a key, short, safe in HTML: numbers as %g, "–" where there is none."""
    if isinstance(value, bool | np.bool_):
        return str(bool(value)).lower()
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if isinstance(value, int | float | np.number):
        size = float(value)
        return str(int(size)) if size.is_integer() and abs(size) < 1e7 else f"{size:.5g}"
    return text(value)


def table(
    head: Sequence[str], rows: Iterable[Sequence[str]], caption: str, *, kind: str = ""
) -> str:
    """A table in a box of its own that scrolls where it is too wide.

    Args:
        head: titles of the columns, HTML; those that begin with "<th" are used as they are.
        rows: HTML, the first names the row; those that begin with "<td" are used as they are.
        caption: text that is safe in HTML.
        kind: class of the table.
    """
    titles = "".join(_cell(title, 'th scope="col"') for title in head)
    body = "".join(
        f'<tr><th scope="row">{first}</th>{"".join(_cell(cell, "td") for cell in rest)}</tr>'
        for first, *rest in rows
    )
    return (
        f'<p class="note">{caption}</p>'
        f'<div class="scroll" tabindex="0" role="region" aria-label="{caption}">'
        f'<table class="{kind}" aria-label="{caption}">'
        f"<thead><tr>{titles}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _cell(content: str, tag: str) -> str:
    return content if content.startswith(f"<{tag[:2]}") else f"<{tag}>{content}</{tag[:2]}>"


def packed(name: str, content: str) -> str:
    """Text as an element of data, which no browser runs: gzip, then base64."""
    data = base64.b64encode(_zipped(content)).decode("ascii")
    return f'<script type="application/octet-stream" id="{name}">{data}</script>'


def _zipped(content: str) -> bytes:
    return gzip.compress(content.encode("utf-8", "backslashreplace"), 9, mtime=0)


def fingerprint(content: str) -> str:
    """How a content security policy names a script."""
    digest = hashlib.sha256(content.encode("utf-8")).digest()
    return f"'sha256-{base64.b64encode(digest).decode('ascii')}'"


@cache
def plotly_js() -> tuple[str, str]:
    """Plotly's own script, packed, and its fingerprint."""
    from plotly.offline import get_plotlyjs

    source = get_plotlyjs()
    return packed("plotly", source), fingerprint(source)
