"""What is written into a page: text made safe, numbers for people, data packed.

Called by the other modules of this package.
"""

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

from iolaus.analysis.terminal import number as number

LONGEST = 400
"""Letters of a text that are shown."""


def clean(value: object) -> str:
    """One line of printable text, cut after `LONGEST` letters; not yet safe in HTML."""
    line = " ".join(str(value).split())
    line = "".join(letter if letter.isprintable() else "?" for letter in line)
    return line if len(line) <= LONGEST else f"{line[:LONGEST]}…"


def text(value: object) -> str:
    """Any value as text that is safe in HTML, in an element or in a quoted attribute."""
    return html.escape(clean(value), quote=True)


def whole(value: object) -> str:
    """As `text`, never cut: for commands that are to be copied."""
    line = "".join(letter if letter.isprintable() else "?" for letter in str(value))
    return html.escape(line, quote=True)


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
    head: Sequence[str], rows: Iterable[Sequence[str]], caption: str, *, corner: str = ""
) -> str:
    """A table in a box of its own that scrolls where it is too wide.

    Args:
        head: titles of the columns, HTML.
        rows: the first cell names the row; cells are HTML, those that begin with "<td" as they are.
        caption: HTML.
        corner: class of the table.
    """
    titles = "".join(f'<th scope="col">{title}</th>' for title in head)
    body = "".join(
        f'<tr><th scope="row">{first}</th>{"".join(map(_cell, rest))}</tr>' for first, *rest in rows
    )
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="table">'
        f'<table class="{corner}"><caption>{caption}</caption>'
        f"<thead><tr>{titles}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _cell(content: str) -> str:
    return content if content.startswith("<td") else f"<td>{content}</td>"


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
