"""Optuna's journal file as a storage, such that a killed writer does no harm.

`FileJournal` removes the part of a line that a killed writer left, and says which line is broken.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

from optuna.exceptions import StorageInternalError
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock

from sweepstack.config.errors import EnvironmentFault, one_line


class FileJournal(JournalStorage):
    """Optuna's storage in a journal file, as `journal:///path`.

    A process that is killed while it writes leaves the lock file behind, for others to wait for,
    and maybe a part of a line: whoever writes next removes it (`_JournalLock`).
    """

    def __init__(self, path: Path):
        self.path = path
        super().__init__(_JournalFile(path))


class _JournalFile(JournalFileBackend):
    def __init__(self, path: Path):
        self._path = path
        super().__init__(str(path), _JournalLock(path))

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        with self._explained():
            super().append_logs(logs)

    def read_logs(self, log_number_from: int) -> Generator[dict[str, Any], None, None]:
        with self._explained():
            yield from super().read_logs(log_number_from)

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StorageInternalError(error.strerror or str(error)) from error
        except ValueError:
            number = _broken_line(self._path)
            raise StorageInternalError(
                f"line {number} of {self._path} is broken, as a killed writer may leave it: stop "
                "the study's workers and remove that line"
                if number
                else f"{self._path} is neither a database nor a journal of Optuna's"
            ) from None


class _JournalLock(JournalFileSymlinkLock):
    """Once it is held, the part of a line that a killed writer left at the end is removed: what is
    appended to it would be lost, and nobody could read the journal any more."""

    def __init__(self, path: Path):
        super().__init__(str(path), grace_period=10)
        self._path = path

    def acquire(self) -> bool:
        held = super().acquire()
        try:
            _remove_part(self._path)
        except BaseException:
            self.release()
            raise
        return held


def _remove_part(path: Path) -> None:
    """Cut off what follows the last whole line of a journal, if it is the beginning of an entry."""
    with path.open("r+b") as file:
        end = place = file.seek(0, os.SEEK_END)
        tail = b""
        while place and b"\n" not in tail:
            place = file.seek(max(0, place - 4096))
            tail = file.read()
        part = tail[tail.rfind(b"\n") + 1 :]
        if part.startswith(b"{"):
            file.truncate(end - len(part))


def _broken_line(path: Path) -> int | None:
    """Number of the first line of a journal that cannot be read; None where it is no journal."""
    with contextlib.suppress(OSError), path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                json.loads(line)
            except ValueError:
                return number if number > 1 else None
    return None


def open_journal(path: Path) -> FileJournal:
    """The storage in a file.

    Raises:
        EnvironmentFault: it cannot be read, or holds something else.
    """
    try:
        if path.exists() and head(path, 1) not in (b"{", b""):  # else a text would be taken for one
            raise ValueError("not a journal")
        return FileJournal(path)
    except OSError as error:
        raise EnvironmentFault(f"cannot open {path}: {error.strerror or error}") from error
    except StorageInternalError as error:
        raise EnvironmentFault(one_line(error, 400)) from error
    except Exception as error:  # whatever else a file may hold
        raise EnvironmentFault(f"{path} is neither a database nor a journal of Optuna's") from error


def head(path: Path, size: int) -> bytes:
    """The first bytes of a file.

    Raises:
        EnvironmentFault: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return file.read(size)
    except OSError as error:
        raise EnvironmentFault(f"cannot read {path}: {error.strerror or error}") from error
