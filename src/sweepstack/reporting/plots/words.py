"""Texts of a study as plots show them."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from sweepstack.config.errors import printable
from sweepstack.reporting.terminal import number

MOST_LETTERS = 24
NOT_SET = "not set"


def label(value: Any, letters: int = MOST_LETTERS) -> str:
    """A text of the study, short and as plain text: plotly would read tags and entities in it."""
    if isinstance(value, bool | np.bool_):
        return str(value).lower()
    if isinstance(value, str):
        text = printable(value)
        if len(text) > letters:  # what tells names apart is often at their end
            text = f"{text[: letters // 2]}…{text[-((letters - 1) // 2) :]}"
        # A brace would be a variable in a hover text.
        return html.escape(text, quote=False).replace("{", "&#123;")
    if value is None or math.isnan(value):
        return NOT_SET
    if math.isfinite(value) and value == round(value) and abs(value) < 1e7:
        return str(int(value))
    return f"{value:.4g}"


def word(name: str) -> str:
    """A name of the study within a sentence: harmless in HTML whether the page escapes it or
    not."""
    return re.sub("[<>&\"']", "?", printable(name[:60]))


def key_title(key: str, letters: int = 20) -> dict[str, Any]:
    """The title of a key's axis; a long name has a second line for its last part."""
    group, dot, name = key.rpartition(".")
    if len(key) <= letters or not dot:
        return {"text": label(key, 28)}
    return {"text": f"{label(f'{group}.', 22)}<br>{label(name)}"}


def pair_title(pair: tuple[str, str], keys: Sequence[str]) -> str:
    """The words of a menu for a pair of keys: their last parts where these tell them apart."""
    ends = [key.rpartition(".")[2] for key in keys]
    short = [key.rpartition(".")[2] for key in pair]
    return " × ".join(
        label(end if ends.count(end) == 1 else key, 20)
        for key, end in zip(pair, short, strict=True)
    )


def amount(value: float) -> str:
    """A metric for people, as in the tables."""
    return number(value) if math.isfinite(value) else str(value)
