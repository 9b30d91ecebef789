"""`sweepstack-study export`: a frame as a CSV or Parquet file."""

from __future__ import annotations

import io
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pandas as pd

from sweepstack.config import files
from sweepstack.config.errors import EnvironmentFault, InputError, nearest

WRITERS: dict[str, Callable[[pd.DataFrame, io.BytesIO], object]] = {
    ".csv": lambda df, file: df.to_csv(file, index=False),
    ".parquet": lambda df, file: _plain(df).to_parquet(file, index=False),
}


def check(path: Path) -> None:
    """Check before anything is read that a file can be written.

    Raises:
        InputError: its name ends with something else than .csv or .parquet.
        EnvironmentFault: Parquet needs pyarrow, or there is no such folder.
    """
    kind = path.suffix.lower()
    if kind not in WRITERS:
        allowed = " or ".join(WRITERS)
        raise InputError(f"--output must end with {allowed}, got '{path}'{nearest(kind, WRITERS)}")
    if kind == ".parquet" and find_spec("pyarrow") is None:
        raise EnvironmentFault(
            "writing .parquet needs the package pyarrow (pip install 'sweepstack[parquet]'); "
            ".csv needs nothing"
        )
    if not path.absolute().parent.is_dir():
        raise EnvironmentFault(f"cannot write {path}: there is no folder {path.parent}")


def write(df: pd.DataFrame, path: Path) -> None:
    """Write a frame, whole or not at all.

    Raises:
        EnvironmentFault: the file cannot be written.
    """
    content = io.BytesIO()
    WRITERS[path.suffix.lower()](df, content)
    files.write_bytes(path, content.getvalue())


def _plain(df: pd.DataFrame) -> pd.DataFrame:
    """The frame with mixed columns as text: Parquet has one type per column."""
    mixed = [name for name in df if df[name].dtype == object]
    plain = df.assign(**{name: df[name].map(_text) for name in mixed})
    plain.attrs = {}
    return plain


def _text(value: object) -> object:
    return value if value is None or value != value else str(value)
