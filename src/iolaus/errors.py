"""Errors that people read: one line, the rule, the value, what is allowed, the nearest match.

Everything that a user can cause derives from `IolausError` and carries the exit code that the
command line ends with. Imports nothing of iolaus.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

EXIT_TRAINING = 1
EXIT_INPUT = 2
EXIT_ENVIRONMENT = 3
EXIT_NOTHING = 4
EXIT_DIFFERENT = 5
EXIT_INTERRUPTED = 130
EXIT_TERMINATED = 143


class IolausError(Exception):
    """Base of all errors with a message for people; `exit_code` is the process's exit status."""

    exit_code = EXIT_TRAINING


class InputError(IolausError):
    """One or several mistakes in what the user asked for; `mistakes` holds one line each."""

    exit_code = EXIT_INPUT

    def __init__(self, mistakes: str | Sequence[str]):
        self.mistakes = [mistakes] if isinstance(mistakes, str) else list(mistakes)
        super().__init__("\n".join(self.mistakes))


class NoMemory(InputError):
    """A model needs more memory than there is, by a sum made before anything is allocated."""


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


class ModuleExit(Exception):
    """A user's module raised what would end the process, such as SystemExit."""


@contextmanager
def contained() -> Iterator[None]:
    """Run a user's code, which may end its own trial but not the process.

    Raises:
        ModuleExit: in place of SystemExit and of what else is no Exception; Ctrl-C stays.
    """
    try:
        yield
    except (Exception, KeyboardInterrupt):
        raise
    except BaseException as error:
        raise ModuleExit(f"{type(error).__name__}: {error}") from error


def reason(error: BaseException) -> str:
    """An error of a user's code in one line, with its type."""
    said = str(error) if isinstance(error, ModuleExit) else f"{type(error).__name__}: {error}"
    return one_line(said)


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


def one_line(text: object, limit: int = 300) -> str:
    """Fold `text` to one line of at most `limit` characters."""
    folded = " ".join(str(text).split())
    return folded if len(folded) <= limit else folded[: limit - 1] + "…"
