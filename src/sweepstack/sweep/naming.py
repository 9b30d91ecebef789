"""The name of a study that the user gave no name: the same command finds its study again."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Sequence

from sweepstack.config.check import shown
from sweepstack.config.errors import InputError

LONGEST = 80
"""Bytes."""
PLACES = frozenset(
    {
        *("data.root", "data.download", "data.workers", "data.placement", "trust"),
        *("training.device", "training.checkpoint_every", "training.width"),
        *("logger", "logger.name"),
    }
)
"""Keys that say where and how a trial is run, not what it is: they make no other study."""


def automatic(prefix: str, arguments: Sequence[str]) -> str:
    """A name made of what was asked for, so that the same command goes on with its study."""
    parts = [prefix]
    for argument in arguments:
        key, _, value = argument.lstrip("+").partition("=")
        if key == "sweeps":
            parts[0] = value
        elif key not in PLACES:
            parts.append(f"{key}={value}")
    if len(parts) > 1 and parts[0] == "sweepstack":
        parts = parts[1:]
    name = re.sub(r"[^\w.=,-]+", "-", "_".join(parts)).strip("-")
    encoded = name.encode(errors="replace")
    if len(encoded) <= LONGEST:
        return name
    begin = encoded[: LONGEST - 9].decode(errors="ignore")
    return f"{begin}-{hashlib.sha256(' '.join(parts).encode(errors='replace')).hexdigest()[:8]}"


def check(where: str, name: str) -> None:
    """Refuse a name that a folder cannot have.

    Raises:
        InputError: it cannot.
    """
    odd = any(unicodedata.category(letter) in ("Cc", "Cs") for letter in name)
    if not name.strip() or name in (".", "..") or "/" in name or odd or len(name.encode()) > 200:
        raise InputError(
            f"{where} must be a name that a folder can have (no '/', at most 200 bytes), "
            f"got {shown(name)}"
        )
