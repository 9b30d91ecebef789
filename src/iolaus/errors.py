"""Errors that people read: one line, the rule, the value, what is allowed, the nearest match.

Everything that a user can cause derives from `IolausError` and carries the exit code that the
command line ends with. Imports nothing of iolaus.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence

_ESCAPES = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"  # colours, cursor
    r"|\x1b[]PX^_][^\x07\x1b]*(?:\x07|\x1b\\)"  # titles, links
    r"|\x1b[ -/]*[0-~]"
)
EXIT_TRAINING = 1
EXIT_INPUT = 2
EXIT_ENVIRONMENT = 3
EXIT_NOTHING = 4
EXIT_DIFFERENT = 5
EXIT_INTERRUPTED = 130
EXIT_TERMINATED = 143


class IolausError(Exception):
    """Base of all errors with a message for people, of printable characters; `exit_code` is the
    process's exit status."""

    exit_code = EXIT_TRAINING

    def __init__(self, message: object = ""):
        super().__init__(printable_lines(message))


class InputError(IolausError):
    """One or several mistakes in what the user asked for; `mistakes` holds one line each."""

    exit_code = EXIT_INPUT

    def __init__(self, mistakes: str | Sequence[str]):
        mistakes = [mistakes] if isinstance(mistakes, str) else mistakes
        self.mistakes = [printable_lines(mistake) for mistake in mistakes]
        super().__init__("\n".join(self.mistakes))


class EnvironmentFault(IolausError):
    """What the machine lacks: a dataset, a device, space on the disk, a readable checkpoint."""

    exit_code = EXIT_ENVIRONMENT


class TrainingFailed(IolausError):
    """The run itself went wrong, for example a loss that became NaN."""

    exit_code = EXIT_TRAINING


class NothingCompleted(IolausError):
    """A sweep in which no trial came to its end."""

    exit_code = EXIT_NOTHING


class Stopped(IolausError):
    """A signal asked to stop; `exit_code` is that of the signal."""

    def __init__(self, message: str, exit_code: int):
        super().__init__(message)
        self.exit_code = exit_code


def nearest(word: str, known: Iterable[str]) -> str:
    """Return `"; did you mean 'x'?"` for the closest of `known`, or an empty string."""
    names = list(known)
    lowered = [name.lower() for name in names]
    matches = difflib.get_close_matches(word.lower(), lowered, n=1, cutoff=0.5)
    if not matches:
        return ""
    alike = [name for name in names if name.lower() == matches[0]]
    closest = max(alike, key=lambda name: difflib.SequenceMatcher(None, word, name).ratio())
    return f"; did you mean '{closest}'?"


def printable(text: object, instead: str = "?") -> str:
    """`text` without escape sequences of terminals, other control characters as `instead`."""
    plain = str(text)
    if not plain.isprintable():
        plain = _ESCAPES.sub("", plain)
        plain = "".join(c if c.isprintable() else instead for c in plain)
    return plain


def printable_lines(text: object) -> str:
    """As `printable`, the ends of lines kept."""
    return "\n".join(map(printable, str(text).split("\n")))


def one_line(text: object, limit: int = 300) -> str:
    """Fold `text` to one line of at most `limit` characters, without control characters."""
    folded = printable(" ".join(str(text).split()), "")
    return folded if len(folded) <= limit else folded[: limit - 1] + "…"
