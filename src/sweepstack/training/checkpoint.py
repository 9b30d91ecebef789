"""Tensors in files that survive a crash, with a SHA-256 next to them.

`NAME.pt.sha256` has the format of sha256sum, so `sha256sum -c` checks it too. The checksum is
written before the file takes its name; a file without a fitting checksum is not trusted. Loads
with `weights_only=True`: a checkpoint is data, never code.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from sweepstack.config import errors
from sweepstack.config.errors import EnvironmentFault, InputError, one_line

log = logging.getLogger(__name__)

KEPT = 2  # checkpoints of a trial
_KEYS = {"config_hash", "slot", "tensors"}


def save(path: Path, value: Any) -> None:
    """Save tensors and plain values under `path`, with a checksum file beside it.

    Raises:
        EnvironmentFault: the disk is full or the folder cannot be written.
    """
    buffer = io.BytesIO()
    torch.save(value, buffer)
    content = buffer.getvalue()
    digest = hashlib.sha256(content).hexdigest()
    errors.write_bytes(_checksum(path), f"{digest}  {path.name}\n".encode())
    errors.write_bytes(path, content)


def save_state(path: Path, state: Mapping[str, Any], batch_norms: Sequence[str], step: int) -> None:
    """Save tensors as `module.load_state_dict(torch.load(path))` takes them.

    Args:
        batch_norms: names of layers that in torch also count their batches, here `step`.

    Raises:
        EnvironmentFault: the disk is full or the folder cannot be written.
    """
    counts = {f"{name}.num_batches_tracked": torch.tensor(step) for name in batch_norms}
    buffer = io.BytesIO()
    torch.save({**state, **counts}, buffer)
    errors.write_bytes(path, buffer.getvalue(), durable=False)


def load(path: Path) -> Any:
    """Load what `save` wrote, after comparing its checksum.

    Raises:
        EnvironmentFault: the file is missing, damaged, or not plain data.
    """
    content = _whole(path)
    try:
        return torch.load(io.BytesIO(content), weights_only=True, map_location="cpu")
    except Exception as error:
        raise EnvironmentFault(f"{path} is not a checkpoint: {one_line(error)}") from error


def _whole(path: Path) -> bytes:
    """The content of a file that fits its checksum."""
    try:
        content, wanted = path.read_bytes(), _checksum(path).read_text("utf-8").split()[:1]
    except (OSError, UnicodeDecodeError) as error:
        raise EnvironmentFault(f"cannot read {path}: {one_line(error)}") from error
    if wanted != [hashlib.sha256(content).hexdigest()]:
        raise EnvironmentFault(f"{path} is damaged: its SHA-256 is not that of {path.name}.sha256")
    return content


def _checksum(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")


def save_trial(folder: Path, step: int, state: Mapping[str, Any]) -> None:
    """Write a trial's checkpoint of `step` and remove all but the last two.

    Raises:
        EnvironmentFault: the disk is full or the folder cannot be written.
    """
    with _written(folder):
        folder.mkdir(parents=True, exist_ok=True)
    save(folder / f"step_{step:010d}.pt", dict(state))
    with _written(folder):
        for old in _found(folder)[KEPT:]:
            old.unlink(missing_ok=True)
            _checksum(old).unlink(missing_ok=True)


def load_trial(folder: Path, config_hash: str) -> dict[str, Any] | None:
    """The newest whole checkpoint in `folder`, or None.

    A damaged one is renamed to NAME.damaged with a warning, and the one before it is used.

    Raises:
        InputError: the checkpoint belongs to another config, or its data changed.
    """
    found = _found(folder)
    for number, path in enumerate(found, 1):
        try:
            state = load(path)
            if not isinstance(state, dict) or not state.keys() >= _KEYS:
                raise EnvironmentFault(f"{path} is not a checkpoint of a trial")
        except EnvironmentFault as error:
            rest = "using the checkpoint before it" if number < len(found) else "none is left"
            log.warning("%s; %s", error, rest)
            _rename(path)
            continue
        if state["config_hash"] != config_hash:
            raise InputError(
                f"{path} belongs to a run with another config or other data or weights"
            )
        return state
    return None


def steps(folder: Path) -> int:
    """The step of the newest whole checkpoint in `folder`, by its name; 0 where there is none."""
    for path in _found(folder):
        with contextlib.suppress(EnvironmentFault, ValueError):
            _whole(path)
            return int(path.stem.removeprefix("step_"))
    return 0


def mark_damaged(folder: Path, why: str) -> None:
    """Log why a trial cannot resume and starts again; rename its checkpoints to NAME.damaged."""
    log.warning("cannot resume from %s: %s; starting the trial again", folder, why)
    with contextlib.suppress(OSError):  # a folder that cannot be read
        for path in _found(folder):
            _rename(path)


def _rename(path: Path) -> None:
    # On a disk that cannot be written nothing is renamed; the next checkpoint says so.
    with contextlib.suppress(OSError):
        path.rename(path.with_name(path.name + ".damaged"))


def clear_trial(folder: Path) -> None:
    """Remove a finished trial's checkpoints.

    Raises:
        EnvironmentFault: the folder cannot be written.
    """
    with _written(folder):
        for path in _found(folder):
            path.unlink(missing_ok=True)
            _checksum(path).unlink(missing_ok=True)
        # A process that is killed leaves a checksum, which comes first, without its checkpoint.
        patterns = (".*.tmp", "step_*.damaged", "step_*.pt.sha256")
        for left in [path for pattern in patterns for path in folder.glob(pattern)]:
            left.unlink(missing_ok=True)
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


@contextlib.contextmanager
def _written(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise EnvironmentFault(f"cannot write {folder}: {error.strerror or error}") from error


def _found(folder: Path) -> list[Path]:
    return sorted(folder.glob("step_*.pt"), reverse=True) if folder.is_dir() else []
