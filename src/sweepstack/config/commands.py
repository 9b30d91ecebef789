"""How the commands `sweepstack` and `sweepstack-study` start and end, and how a command is printed
for people to copy."""

from __future__ import annotations

import atexit
import contextlib
import gc
import os
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from sweepstack.config.errors import (
    EXIT_INTERRUPTED,
    EnvironmentFault,
    InputError,
    SweepstackError,
    masked,
    one_line,
    printable,
)

_MAX_LINE = 1500
"""Characters of a printed mistake; of a longer one the middle is left out."""


@contextlib.contextmanager
def running(program: str) -> Iterator[None]:
    """Run a command: its errors become lines and an exit code; a closed pipe ends it quietly.

    Raises:
        SystemExit: the command failed or was interrupted.
    """
    _open_streams()
    atexit.register(_pass_over_garbage)
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except SweepstackError as error:
        complain(program, error)
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)
    except BrokenPipeError:  # `| head`
        close_stdout()
        sys.exit(0)
    except OSError as error:
        close_stdout()
        said = f"{error.filename or 'stdout'}: {error.strerror or error}"
        complain(program, EnvironmentFault(said))


def _pass_over_garbage() -> None:
    """Look for no garbage among all that Python drops when it ends, which takes up to a second; but
    packages made with nanobind would complain of leaks."""
    if not {"onnx", "triton", "jaxlib"} & sys.modules.keys():
        gc.freeze()


def complain(program: str, error: SweepstackError) -> NoReturn:
    """Print what is wrong, a line each, and exit with the error's code."""
    lines = error.mistakes if isinstance(error, InputError) else str(error).split("\n")
    for line in lines:
        print(f"{program}: {_printable(line)}", file=sys.stderr)
    sys.exit(error.exit_code)


def close_stdout() -> None:
    """Drop what could not be printed so far, and all that is printed from now on."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _printable(text: str) -> str:
    """`text` as one line whose control characters are written out: a terminal obeys none."""
    line = one_line(text, max(len(text), 1))
    if len(line) > _MAX_LINE:
        line = f"{line[: _MAX_LINE // 2]} ... {line[-_MAX_LINE // 2 :]}"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)


def _open_streams() -> None:
    """Open the streams that the shell closed (`>&-`), or a file would get their numbers."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, "w" if number else "r", encoding="utf-8"))


def shell(*words: object) -> str:
    """Words as one line of a shell; a command of ours below `uv run`, where that started this
    process: the environment is not on PATH then."""
    ours = {"sweepstack", "sweepstack-study"}.intersection(map(str, words[:1]))
    uv = ("uv", "run") if ours and "UV_RUN_RECURSION_DEPTH" in os.environ else ()
    return shlex.join(printable(word, " ") for word in (*uv, *words))


def study(verb: str, *words: object, where: str) -> str:
    """`sweepstack-study VERB WORDS`, with the storage if it is not the default one of this folder.

    Args:
        where: a database URL, whose passwords are not shown, or the path of a file.
    """
    from sweepstack import STORAGE

    place = masked(where) if "://" in where else where
    here = f"sqlite:///{Path.cwd()}/"
    if place.startswith(here):
        place = f"sqlite:///{place.removeprefix(here)}"
    return shell(
        *("sweepstack-study", verb, *words),
        *([] if place == STORAGE else ["--storage", place]),
    )


@contextlib.contextmanager
def without_collecting() -> Iterator[None]:
    """Look for no garbage while much is made that stays: that takes a quarter of the time."""
    before = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if before:
            gc.enable()


def imported() -> None:
    """Collect garbage from now on, where `__main__` has stopped it for its imports, but never look
    for it among what is there already."""
    if not gc.isenabled() and "sweepstack.cli.app" in sys.modules:
        gc.freeze()
        gc.enable()
