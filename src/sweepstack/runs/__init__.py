"""What a run leaves behind, and how it is read back."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from sweepstack.training.spec import TrialResult

if TYPE_CHECKING:
    import pandas as pd


@dataclass(repr=False)
class RunResult(TrialResult):
    """A trial's result with frames in place of rows: `history` has a row for each evaluation (step,
    epoch, lr and metrics), `layers` one for each layer too, with training.diagnostics."""

    history: pd.DataFrame = None
    layers: pd.DataFrame = None


def framed(result: TrialResult) -> RunResult:
    """A result with frames."""
    import pandas as pd

    values = {item.name: getattr(result, item.name) for item in fields(result)}
    values |= {name: pd.DataFrame(values[name]) for name in ("history", "layers")}
    return RunResult(**values)
