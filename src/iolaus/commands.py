"""Commands that are printed for people to copy: quoted for a shell, without control characters."""

from __future__ import annotations

import shlex
from pathlib import Path

from iolaus.errors import masked, printable


def shell(*words: object) -> str:
    """Words as one line of a shell."""
    return shlex.join(printable(word, " ") for word in words)


def study(verb: str, *words: object, where: str) -> str:
    """`iolaus-study VERB WORDS`, with the storage if it is not the default one of this folder.

    Args:
        where: a database URL, whose passwords are not shown, or the path of a file.
    """
    from iolaus import storage  # and with it optuna

    place = masked(where) if "://" in where else where
    here = f"sqlite:///{Path.cwd()}/"
    if place.startswith(here):
        place = f"sqlite:///{place.removeprefix(here)}"
    return shell(
        *("iolaus-study", verb, *words),
        *([] if place == storage.DEFAULT else ["--storage", place]),
    )
