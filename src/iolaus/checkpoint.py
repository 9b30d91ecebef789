"""Files that survive a crash: written beside, synced, renamed, with a SHA-256 next to them.

`NAME.pt.sha256` has the format of sha256sum, so `sha256sum -c` checks it too. The checksum is
written before the file takes its name; a file without a fitting checksum is not trusted. Loads
with `weights_only=True`: a checkpoint is data, never code. Used by `train.py` (checkpoints of a
trial) and `run_folder.py` (best.pt).
"""

from __future__ import annotations

import hashlib
import io
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from iolaus.errors import EnvironmentFault, one_line

log = logging.getLogger(__name__)

KEPT = 2
"""Checkpoints kept of a trial."""


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file so that after a crash it is there whole or not at all.

    Raises:
        EnvironmentFault: the disk is full or the folder cannot be written.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(beside, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
        _sync_folder(path.parent)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise EnvironmentFault(f"cannot write {path}: {error.strerror or error}") from error


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def save(path: Path, value: Any) -> None:
    """Save tensors and plain values under `path`, with a checksum file beside it.

    Raises:
        EnvironmentFault: the disk is full or the folder cannot be written.
    """
    buffer = io.BytesIO()
    torch.save(value, buffer)
    content = buffer.getvalue()
    digest = hashlib.sha256(content).hexdigest()
    write_bytes(_checksum(path), f"{digest}  {path.name}\n".encode())
    write_bytes(path, content)


def load(path: Path) -> Any:
    """Load what `save` wrote, after comparing its checksum.

    Raises:
        EnvironmentFault: the file is missing, damaged, or not plain data.
    """
    try:
        content, wanted = path.read_bytes(), _checksum(path).read_text("utf-8").split()[:1]
    except (OSError, UnicodeDecodeError) as error:
        raise EnvironmentFault(f"cannot read {path}: {one_line(error)}") from error
    if wanted != [hashlib.sha256(content).hexdigest()]:
        raise EnvironmentFault(f"{path} is damaged: its SHA-256 is not that of {path.name}.sha256")
    try:
        return torch.load(io.BytesIO(content), weights_only=True, map_location="cpu")
    except Exception as error:
        raise EnvironmentFault(f"{path} is not a checkpoint: {one_line(error)}") from error


def _checksum(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")


def save_trial(folder: Path, step: int, state: Mapping[str, Any]) -> None:
    """Write a trial's checkpoint of `step` and remove all but the last two."""
    folder.mkdir(parents=True, exist_ok=True)
    save(folder / f"step_{step:010d}.pt", dict(state))
    for old in _found(folder)[KEPT:]:
        old.unlink(missing_ok=True)
        _checksum(old).unlink(missing_ok=True)


def load_trial(folder: Path, config_hash: str) -> dict[str, Any] | None:
    """The newest whole checkpoint in `folder`, or None; a damaged one is passed over.

    Raises:
        EnvironmentFault: the checkpoint belongs to another config.
    """
    for path in _found(folder):
        try:
            state = load(path)
        except EnvironmentFault as error:
            log.warning("%s; the checkpoint before it is used", error)
            continue
        if state.get("config_hash") != config_hash:
            raise EnvironmentFault(f"{path} belongs to a run with another config")
        return dict(state)
    return None


def clear_trial(folder: Path) -> None:
    """Remove a finished trial's checkpoints."""
    for path in _found(folder):
        path.unlink(missing_ok=True)
        _checksum(path).unlink(missing_ok=True)
    for left in folder.glob(".*.tmp") if folder.is_dir() else ():
        left.unlink(missing_ok=True)
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def _found(folder: Path) -> list[Path]:
    return sorted(folder.glob("step_*.pt"), reverse=True) if folder.is_dir() else []
