"""Which trials end early: reads `hydra.sweeper.pruner`.

median, percentile and asha are ours and judge a trial against all trials that have reported at its
rung, running ones too (`rungs.py`). The others are Optuna's: hyperband and wilcoxon compare in the
order of asking or with finished trials only, patient and threshold look at one trial.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import optuna.pruners as optunas
from optuna.pruners import BasePruner

from sweepstack.config import check
from sweepstack.config.errors import InputError
from sweepstack.config.sweeper import PRUNERS
from sweepstack.sweep.pruners.rungs import AshaPruner, MedianPruner, PercentilePruner, RungPruner
from sweepstack.sweep.samplers import construct

__all__ = ["CLASSES", "AshaPruner", "MedianPruner", "PercentilePruner", "RungPruner", "build"]

_WHERE = "hydra.sweeper.pruner"
_MAKE: Mapping[str, Callable[..., BasePruner]] = {
    "none": optunas.NopPruner,
    "median": MedianPruner,
    "percentile": PercentilePruner,
    "asha": AshaPruner,
    "hyperband": optunas.HyperbandPruner,
    "patient": optunas.PatientPruner,
    "threshold": optunas.ThresholdPruner,
    "wilcoxon": optunas.WilcoxonPruner,
}
CLASSES = {
    **{make.__name__: name for name, make in _MAKE.items()},
    "SuccessiveHalvingPruner": "asha",
}
"""Class -> name, for configs that name a class."""


def build(name: str, given: Mapping[str, Any], direction: str | Sequence[str]) -> BasePruner:
    """The pruner `name` with the settings `given`; the rest are the defaults of its class.

    Args:
        name: one of `PRUNERS`.
        given: its settings. `wrapped` of patient is null, a name, or a mapping with `name` and
            settings; it is asked only once patience has run out, so one that judges at rungs (asha,
            or a long interval) seldom acts.
        direction: of the study; with a list of several only `none` is allowed.

    Raises:
        InputError: one line for each mistake.
    """
    check.option(_WHERE, name, PRUNERS)
    if name != "none" and not isinstance(direction, str) and len(direction) > 1:
        raise InputError(
            f"{_WHERE} must be none with {len(direction)} objectives, got '{name}': "
            "pruning compares trials by one objective"
        )
    return _build(_WHERE, name, given)


def _build(where: str, name: str, given: Mapping[str, Any]) -> BasePruner:
    wrapped = _wrapped(f"{where}.wrapped", given.get("wrapped")) if name == "patient" else None
    values = check.settings(where, PRUNERS[name], given)
    if name == "patient":
        values["wrapped_pruner"] = wrapped
        values.pop("wrapped", None)
    if name == "hyperband":
        _check_brackets(where, values)
    return construct(where, _MAKE[name], values)


def _wrapped(where: str, given: object) -> BasePruner | None:
    if given is None:
        return None
    rest = dict(given) if isinstance(given, Mapping) else {"name": given}
    name = rest.pop("name", None)
    known = [known for known in PRUNERS if known not in ("none", "patient")]
    return _build(where, check.option(where, name, known), rest)


def _check_brackets(where: str, values: Mapping[str, Any]) -> None:
    # Optuna divides by zero at the first report when no bracket fits.
    lowest, highest = values.get("min_resource", 1), values.get("max_resource", "auto")
    if highest != "auto" and highest < lowest:
        raise InputError(f"{where}: max_resource must be >= {lowest}, min_resource, got {highest}")
