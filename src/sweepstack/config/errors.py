"""Errors that people read: one line, the rule, the value, what is allowed, the nearest match.

Everything that a user can cause derives from `SweepstackError` and carries the exit code that the
command line ends with. Passwords in URLs are masked before a message exists, whoever wrote it.
Imports nothing of sweepstack; files that survive a crash are written here too (`write_bytes`).
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

_ESCAPES = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"  # colours, cursor
    r"|\x1b[]PX^_][^\x07\x1b]*(?:\x07|\x1b\\)"  # titles, links
    r"|\x1b[ -/]*[0-~]"
)
LAYERS = "layers.csv"
"""What each layer does, in a trial's folder: written by `engine.diagnostics`."""
EXIT_TRAINING = 1
EXIT_INPUT = 2
EXIT_ENVIRONMENT = 3
EXIT_NOTHING = 4
EXIT_DIFFERENT = 5
EXIT_INTERRUPTED = 130
EXIT_TERMINATED = 143

_END = r"""['",;:)]*(?:\s|$)"""
_SECRETS = (
    # scheme://user:PASSWORD@host; unquoted it may hold any letter, '@' and spaces too.
    (re.compile(r"(://[^\s:]*:)\S*@"), r"\1***@"),
    (re.compile(r"(://[^\s:@/]*:)(?!\*\*\*@|\d+(?:[/?\s,;)]|$)).*@"), r"\1***@"),
    # scheme://host:PORT where the port is no number, so that it may be a password.
    (
        re.compile(rf"(://[^\s:@/\[]+(?:@[^\s:@/\[]+)?:)(?!\*\*\*|\d+(?:\W|$))\S+?(?={_END})"),
        r"\1***",
    ),
    # ?password=..., and password=... of the parameters that drivers quote.
    (
        re.compile(
            r"((?:[?&;][^=&\s]*(?:passw|pwd|secret|token|api_?key|odbc_connect)|"
            rf"\b\w*(?:password|passwd|pwd))[^=&\s]*=)\S*?(?=&[\w.]+=|{_END})",
            re.IGNORECASE,
        ),
        r"\1***",
    ),
)
_QUOTED = re.compile(r"""(['"])([\w.+~/@-]*=?\w[\w+.-]*://[^\n]*?)\1(?=[\s,;:)]|$)""")


def without_passwords(text: str) -> str:
    """Return `text` with the passwords of all URLs in it shown as `***`, also of URLs that cannot
    be parsed; rather more is masked than too little."""
    if "=" not in text and "@" not in text and "://" not in text:
        return text
    text = _QUOTED.sub(lambda found: found[1] + masked(found[2]) + found[1], text)
    for pattern, shown in _SECRETS:
        text = pattern.sub(shown, text)
    return text


def masked(url: str) -> str:
    """Return what is meant as a URL, whole, with its passwords shown as `***`."""
    bare = re.sub(r"\s", "\0", url)
    if "://" not in bare:
        bare = re.sub(r"^(\w[\w+.-]*:/)?([^:@]*:).*@", r"\1\2***@", bare)
    return without_passwords(bare).replace("\0", " ")


class SweepstackError(Exception):
    """Base of all errors with a message for people, of printable characters; `exit_code` is the
    process's exit status."""

    exit_code = EXIT_TRAINING

    def __init__(self, message: object = ""):
        super().__init__(shown_to_people(message))


class InputError(SweepstackError):
    """One or several mistakes in what the user asked for; `mistakes` holds one line each."""

    exit_code = EXIT_INPUT

    def __init__(self, mistakes: str | Sequence[str]):
        mistakes = [mistakes] if isinstance(mistakes, str) else mistakes
        self.mistakes = [shown_to_people(mistake) for mistake in mistakes]
        super().__init__("\n".join(self.mistakes))


class NoMemory(InputError):
    """A model needs more memory than there is, by a sum made before anything is allocated."""


class EnvironmentFault(SweepstackError):
    """The machine lacks a dataset, a device, space on the disk, a readable checkpoint."""

    exit_code = EXIT_ENVIRONMENT


class TrainingFailed(SweepstackError):
    """The run itself failed, for example by a loss that became NaN."""

    exit_code = EXIT_TRAINING


class NothingCompleted(SweepstackError):
    """A sweep in which no trial completed."""

    exit_code = EXIT_NOTHING


class Stopped(SweepstackError):
    """A signal asked to stop; `exit_code` is that of the signal."""

    def __init__(self, message: str, exit_code: int):
        super().__init__(message)
        self.exit_code = exit_code


class ModuleExit(Exception):
    """A user's module raised SystemExit or the like, which would end the process."""


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


@contextmanager
def noted(mistakes: list[str]) -> Iterator[None]:
    """Add the lines of an InputError to `mistakes` and go on after the block."""
    try:
        yield
    except InputError as error:
        mistakes.extend(error.mistakes)


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


def printable(text: object, instead: str = "?") -> str:
    """`text` without escape sequences of terminals, other control characters as `instead`."""
    plain = str(text)
    if not plain.isprintable():
        plain = _ESCAPES.sub("", plain)
        plain = "".join(c if c.isprintable() else instead for c in plain)
    return plain


def shown_to_people(text: object) -> str:
    """As `printable`, without passwords, the ends of lines kept."""
    return "\n".join(map(printable, without_passwords(str(text)).split("\n")))


def one_line(text: object, limit: int = 300) -> str:
    """Fold `text`, printable and without passwords, to one line of at most `limit` characters."""
    folded = printable(" ".join(without_passwords(str(text)).split()), "")
    return folded if len(folded) <= limit else folded[: limit - 1] + "…"


# --- files that are there whole or an error -------------------------------------------------------


def write_bytes(
    path: Path, content: bytes, *, durable: bool = True, in_place: bool = False
) -> None:
    """Write a file so that after a crash it is there whole or not at all.

    Not `durable` spares the two syncs where a database keeps the same numbers: the file is then
    whole after the process was killed, and may be empty after the machine was. `in_place` also
    spares the second name, for a new file that counts only once another stands beside it.

    Raises:
        EnvironmentFault: the disk is full or the folder cannot be written.
    """
    folder, name = os.path.split(path)  # not by pathlib: a sweep writes five files a trial
    beside = path if in_place else os.path.join(folder, f".{name}.{os.getpid()}.tmp")
    try:
        handle = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        try:
            while content:
                content = content[os.write(handle, content) :]
            if durable:
                os.fsync(handle)
        finally:
            os.close(handle)
        if not in_place:
            os.replace(beside, path)
        if durable:
            _sync_folder(path.parent)
    except OSError as error:
        Path(beside).unlink(missing_ok=True)
        raise EnvironmentFault(f"cannot write {path}: {error.strerror or error}") from error


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
