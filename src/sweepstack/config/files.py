"""Files that survive a crash: written beside, synced, renamed."""

from __future__ import annotations

import os
from pathlib import Path

from sweepstack.config.errors import EnvironmentFault

LAYERS = "layers.csv"
"""What each layer does, in a trial's folder: written by `engine.diagnostics`."""


def write_bytes(path: Path, content: bytes, *, durable: bool = True) -> None:
    """Write a file so that after a crash it is there whole or not at all.

    Not `durable` spares the two syncs where a database keeps the same numbers: the file is then
    whole after the process was killed, and may be empty after the machine was.

    Raises:
        EnvironmentFault: the disk is full or the folder cannot be written.
    """
    folder, name = os.path.split(path)  # not by pathlib: a sweep writes five files a trial
    beside = os.path.join(folder, f".{name}.{os.getpid()}.tmp")
    try:
        with open(beside, "wb") as file:
            file.write(content)
            file.flush()
            if durable:
                os.fsync(file.fileno())
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
