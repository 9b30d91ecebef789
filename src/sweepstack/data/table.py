"""`data=table`: rows of a .csv or .parquet file, each a sample.

A column of numbers is one input, normalized as `data.normalization` says. A missing number is
filled with the mean of the training rows; if some are missing there, a further input is 1 in such
rows. A column of strings is one input per value that the training rows have (one-hot), which is 1
where the row has it: a missing or unknown value is all zeros. These inputs, all 0 or 1, are not
normalized. Targets may not be missing.

Notation: N rows, D inputs: first the columns of numbers, then all others.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from sweepstack.config import schema
from sweepstack.config.errors import EnvironmentFault, InputError, nearest, noted, one_line
from sweepstack.data.arrays import fingerprint, places
from sweepstack.data.dataset import Affine, Dataset, TensorSplit
from sweepstack.data.splits import deal, normalize
from sweepstack.data.targets import Array, Targets, check_fine, checked, warn_unscaled

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)

MAX_VALUES = 100
"""Different strings of a column that become inputs."""
_DATE = re.compile(
    r"\s*((\d{4}[./-]\d{1,2}[./-]\d{1,2}|\d{1,2}[./-]\d{1,2}[./-](\d{4}|\d{2})"
    r"|\d{1,2}[ -][A-Za-z]{3,9}[ -]\d{2,4}|[A-Za-z]{3,9} \d{1,2},? \d{4})(?!\d).*"
    r"|\d{4}-\d\d|\d{1,2}:\d\d(:\d\d.*)?)"
)
_NUMBER = re.compile(
    r"[-+]?[$€£]?\s?(\d+([.,]\d+)?|\d{1,3}([.,' ]\d{3})+([.,]\d+)?)\s?[%$€£]?", re.ASCII
)
"""Numbers that pandas takes for strings: 1,5 and 1,000 and 3%."""
_KINDS = (".csv", ".parquet")
_NO_TEXTS = (bytes, list, tuple, dict, np.ndarray)


def load(config: schema.Table) -> Dataset:
    """Load the table; samples (D,).

    Raises:
        EnvironmentFault: a file is missing or damaged, or pyarrow is.
        InputError: a column is missing, or holds what cannot be learnt from.
    """
    paths = places(config)
    frames = {split: read(path) for split, path in paths.items()}
    y = {split: _targets(frames[split], config, path) for split, path in paths.items()}
    names = config.target if len(config.target) > 1 else ()
    rule = Targets.of(y["train"], config.task, f"target of {paths['train']}", names)
    targets = {s: rule.tensor(y[s], f"target of {paths[s]}") for s in y}
    dealt = deal(config, len(frames["train"]), frames)
    rows = {split: frames["train"].iloc[index.numpy()] for split, index in dealt.items()}
    columns = Columns.fit(rows["train"], config, str(paths["train"]))
    for split, path in paths.items():
        if split != "train":  # written by others perhaps: its columns' types may differ
            frames[split] = read(path, columns.texts)
    rows = {s: rows.get(s, frames.get(s)) for s in ("train", "val", "test")}
    targets |= {split: targets["train"][index] for split, index in dealt.items()}
    raw = {
        split: (columns.encode(frame, str(paths.get(split, paths["train"]))), targets[split])
        for split, frame in rows.items()
        if frame is not None
    }
    _log_missing(frames, columns)
    if rule.task == "regression":
        warn_unscaled(raw["train"][1])
    return _dataset(config, rule, columns, raw)


def _dataset(
    config: schema.Table,
    rule: Targets,
    columns: Columns,
    raw: Mapping[str, tuple[Tensor, Tensor]],
) -> Dataset:
    """Normalize the columns of numbers and leave the others as they are."""
    count = len(columns.numbers)
    affine, splits = None, [TensorSplit(x, y) for x, y in raw.values()]
    whole = splits
    if count:
        affine, scaled = normalize(config, *(TensorSplit(x[:, :count], y) for x, y in raw.values()))
        others = [split.x[:, count:] for split in splits]
        splits = [
            TensorSplit(torch.cat([s.x, rest], 1), s.y)
            for s, rest in zip(scaled, others, strict=True)
        ]
    if affine is not None:
        rest = splits[0].shape[0] - count
        affine = Affine(
            torch.cat([affine.shift, torch.zeros(rest)]),
            torch.cat([affine.scale, torch.ones(rest)]),
        )
    test = splits[2] if len(splits) == 3 else None
    return Dataset(
        config.name,
        *(splits[0], splits[1], test),
        *(rule.task, rule.classes, affine),
        columns=columns.plain(config.target),
        fingerprint=fingerprint(whole),
    )


def read(path: Path, texts: Sequence[str] = ()) -> pd.DataFrame:
    """Read a table.

    Args:
        path: .csv with a header line, or .parquet.
        texts: columns that hold strings, whatever they look like.

    Raises:
        InputError: another kind of file, it has no rows, or its header does not name them.
        EnvironmentFault: it cannot be read.
    """
    kind = path.suffix.lower()
    if kind not in _KINDS:
        raise InputError(f"a table must end in {' or '.join(_KINDS)}, got '{path.name}'")
    if kind == ".parquet" and find_spec("pyarrow") is None:
        raise EnvironmentFault(
            f"{path} needs the package pyarrow: pip install 'sweepstack[parquet]'"
        )
    import pandas as pd

    try:
        with path.open("rb") as file:  # pandas would take a name for a URL
            if kind == ".parquet":
                frame = pd.read_parquet(file)
            else:
                line = file.readline()
                if b"," not in line and (mark := re.search(rb"[;\t|]", line)):
                    raise InputError(
                        f"{path} must have commas between its columns, got {mark[0].decode()!r}: "
                        "save it with commas, and numbers with decimal points"
                    )
                csv = partial(pd.read_csv, file, skipinitialspace=True)
                file.seek(0)  # two lines: of longer rows pandas would drop the first column
                header = csv(header=None, nrows=2, dtype=str).iloc[0].dropna()
                file.seek(0)
                frame = csv(dtype=dict.fromkeys(texts, str), low_memory=False)
    except InputError:
        raise
    except pd.errors.ParserError as error:
        detail = one_line(error).rpartition("error: ")[2]
        raise InputError(
            f"{path} must have a name for each column, and closed quotes: {detail}"
        ) from None
    except pd.errors.EmptyDataError:
        raise InputError(f"{path} must have a header and rows, it is empty") from None
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise InputError(f"{path} must be saved as UTF-8, it holds the byte {byte:#x}") from None
    except Exception as error:  # whatever a reader raises on a damaged file
        raise EnvironmentFault(f"{path} cannot be read ({one_line(error)})") from error
    frame.columns = frame.columns.map(str)
    if frame.empty:
        raise InputError(f"{path} must have rows below its header, it has none")
    if kind == ".csv" and header.duplicated().any():  # pandas would call it NAME.1
        twice = one_line(header[header.duplicated()].iloc[0], 80)
        raise InputError(f"{path} must have different names of columns, '{twice}' is there twice")
    return frame


def _targets(frame: pd.DataFrame, config: schema.Table, path: Path) -> Array:
    """The target columns, (N,) or (N, K)."""
    if len(set(config.target)) < len(config.target):
        raise InputError(f"data.target must name each column once, got {_listed(config.target)}")
    unknown = [name for name in config.target if name not in frame]
    if unknown:
        raise InputError(
            f"data.target must be a column of {path} ({_listed(frame.columns)}), "
            f"got '{unknown[0]}'{nearest(unknown[0], frame.columns)}"
        )
    chosen = frame[list(config.target)]
    missing = int(chosen.isna().any(axis=1).sum())
    if missing:
        raise InputError(
            f"target {', '.join(config.target)} of {path} must be given in each row, "
            f"{missing:,} of {len(frame):,} rows have none (NA, None and null count as none): "
            "remove them"
        )
    numbers = all(_is_number(chosen[name]) for name in chosen)
    for name in () if numbers else config.target:
        if not _is_number(chosen[name]):
            _texts(chosen[name], f"target '{name}' of {path}")
    y = chosen.astype(float) if numbers and any(t.kind == "O" for t in chosen.dtypes) else chosen
    y = y.to_numpy() if numbers else y.astype(str).to_numpy().astype(str)
    return checked(y, len(frame), str(path))


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return ", ".join(map(str, names[:8])) + more


def _is_number(column: pd.Series[Any]) -> bool:
    from pandas.api.types import infer_dtype, is_bool_dtype, is_numeric_dtype

    if column.dtype == object:  # truth values of which some are missing
        return infer_dtype(column, skipna=True) in ("boolean", "decimal")
    return bool(is_numeric_dtype(column.dtype) or is_bool_dtype(column.dtype))


@dataclass(frozen=True)
class Columns:
    """How a row becomes a sample.

    Attributes:
        numbers: columns of numbers -> what a missing one is filled with.
        flags: those of them that have an input that says which numbers were missing.
        values: columns of strings -> the values that have an input.
    """

    numbers: Mapping[str, float]
    flags: Sequence[str]
    values: Mapping[str, Sequence[str]]

    @classmethod
    def fit(cls, rows: pd.DataFrame, config: schema.Table, where: str) -> Columns:
        """Learn the columns from the training rows.

        Raises:
            InputError: every column that cannot be an input, a line for each.
        """
        mistakes = [
            f"data.exclude must name columns of {where} ({_listed(rows.columns)}), got '{name}'"
            f"{nearest(name, rows.columns)}"
            for name in config.exclude
            if name not in rows
        ]
        numbers: dict[str, float] = {}
        values: dict[str, list[str]] = {}
        for name in rows.columns:
            if name in config.target or name in config.exclude:
                continue
            with noted(mistakes):
                column = rows[name]
                if re.fullmatch(r"Unnamed: \d+", name):
                    raise InputError(
                        f"column '{name}' of {where} must have a name, its header has none: name "
                        "it, or if it only counts the rows name it in data.exclude"
                    )
                if _is_number(column):
                    known = column.astype(float).dropna()
                    check_fine(known.to_numpy(float)[:, None], f"column '{name}' of {where}")
                    numbers[name] = float(known.mean()) if len(known) else 0.0
                else:
                    values[name] = _values(column, f"column '{name}' of {where}")
        if not (numbers or any(values.values()) or mistakes):
            mistakes.append(f"{where} must have columns besides data.target and data.exclude")
        if mistakes:
            raise InputError(mistakes)
        flags = [name for name in numbers if rows[name].isna().any()]
        return cls(numbers, flags, values)

    @property
    def texts(self) -> list[str]:
        """Columns of strings."""
        return list(self.values)

    def encode(self, frame: pd.DataFrame, where: str) -> Tensor:
        """Rows as raw samples, float32 (N, D).

        Raises:
            InputError: a column is missing or holds no numbers where the training rows did.
        """
        names = [*self.numbers, *self.values]
        missing = [name for name in names if name not in frame]
        if missing:
            near = nearest(missing[0], [name for name in frame.columns if name not in names])
            raise InputError(f"{where} must have column {_listed(missing)}{near}")
        wrong = [name for name in self.numbers if not _is_number(frame[name])]
        wrong = [name for name in wrong if frame[name].notna().any()]
        if wrong:
            raise InputError(
                f"column {_listed(wrong)} of {where} must hold numbers, as in training"
            )
        plain = {
            n: frame[n].astype(float).to_numpy(np.float64, na_value=np.nan) for n in self.numbers
        }
        with np.errstate(over="ignore"):
            infinite = [n for n, v in plain.items() if np.isinf(v.astype(np.float32)).any()]
        if infinite:
            raise InputError(f"column {_listed(infinite)} of {where} must hold finite numbers")
        parts = [np.where(np.isnan(v), self.numbers[n], v) for n, v in plain.items()]
        parts += [np.isnan(plain[name]) for name in self.flags]
        for name, values in self.values.items():
            column = frame[name].astype(str).where(frame[name].notna(), None).to_numpy()
            parts += [column == value for value in values]
        return torch.from_numpy(np.stack(parts, axis=1).astype(np.float32))

    def plain(self, target: Sequence[str]) -> dict[str, Any]:
        """As plain values, for best.pt; `target` are the target columns."""
        values = {name: list(known) for name, known in self.values.items()}
        numbers = dict(self.numbers)
        kept = {"numbers": numbers, "flags": list(self.flags), "values": values}
        return {**kept, "target": list(target)}

    @classmethod
    def of_plain(cls, given: Mapping[str, Any]) -> Columns:
        """Back from `plain`; whatever is raised, it is something else."""
        numbers = {str(name): float(mean) for name, mean in given["numbers"].items()}
        values = {str(name): list(map(str, known)) for name, known in given["values"].items()}
        return cls(numbers, [name for name in given["flags"] if numbers[name] is not None], values)

    @property
    def inputs(self) -> int:
        """D."""
        return len(self.numbers) + len(self.flags) + sum(map(len, self.values.values()))


def _values(column: pd.Series[Any], what: str) -> list[str]:
    """The values of a column of strings, sorted; none where all are missing."""
    out = "or name it in data.exclude"
    known = sorted(_texts(column, what, f", {out}").unique())
    if len(known) > MAX_VALUES:
        raise InputError(
            f"{what} holds strings with {len(known):,} different values, at most {MAX_VALUES} can "
            f"be inputs: join some of them, {out}"
        )
    return known


def _texts(column: pd.Series[Any], what: str, out: str = "") -> pd.Series[Any]:
    """The strings of a column, without those missing; refused if most are dates or numbers."""
    import pandas as pd

    present = column.dropna()
    strange = {type(value).__name__ for value in present if isinstance(value, _NO_TEXTS)}
    if strange:
        kinds = ", ".join(sorted(strange))
        raise InputError(f"{what} must hold numbers or strings, got {kinds}: correct it{out}")
    texts = present.astype(str)
    dates = texts.map(lambda text: _DATE.fullmatch(text) is not None).astype(bool)
    if column.dtype.kind in "mM" or dates.mean() > 0.5:
        shown = one_line(texts[dates].iloc[0] if dates.any() else texts.iloc[0], 20)
        raise InputError(f"{what} holds dates, such as {shown}: make numbers of them{out}")
    number = pd.to_numeric(texts, errors="coerce").notna()
    number |= texts.map(lambda text: _NUMBER.fullmatch(text.strip()) is not None).astype(bool)
    if number.sum() < len(texts) / 2 or texts.nunique() < 3:
        return texts
    says = f"numbers as strings, or larger ones than fit, such as '{one_line(texts.iloc[0], 20)}'"
    if not number.all():
        strange_ones = texts[~number]
        says = f"{len(strange_ones):,} values that are not numbers, such as '"
        says += f"{one_line(strange_ones.iloc[0], 20)}'"
    raise InputError(f"{what} holds {says}: correct them{out}")


def _log_missing(frames: Mapping[str, pd.DataFrame], columns: Columns) -> None:
    """Say how many values are missing, a line for all files."""
    names = [*columns.numbers, *columns.values]
    counts = {n: sum(int(frame[n].isna().sum()) for frame in frames.values()) for n in names}
    found = {name: count for name, count in counts.items() if count}
    if found:
        each = _listed([f"{name} {count:,}" for name, count in found.items()])
        log.warning(
            "data=table: %s values are missing (%s): numbers become the training mean, with an "
            "input that says so; strings get no input",
            *(f"{sum(found.values()):,}", each),
        )
