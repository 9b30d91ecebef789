"""Which trials end early: reads `hydra.sweeper.pruner`.

median, percentile and asha are ours and judge a trial against all trials that have reported at its
rung, running ones too; one file each, what they share is in `rungs.py`. The others are Optuna's:
hyperband and wilcoxon compare in the order of asking or with finished trials only, patient and
threshold look at one trial.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import optuna.pruners as theirs
from optuna.pruners import BasePruner

from sweepstack.config.errors import InputError
from sweepstack.sweep import settings
from sweepstack.sweep.pruners import asha, percentile
from sweepstack.sweep.pruners.asha import AshaPruner
from sweepstack.sweep.pruners.percentile import MedianPruner, PercentilePruner
from sweepstack.sweep.pruners.rungs import RungPruner

__all__ = ["NAMES", "AshaPruner", "MedianPruner", "PercentilePruner", "RungPruner", "build"]

_WHERE = "hydra.sweeper.pruner"


@dataclass(frozen=True)
class _Kind:
    """How one pruner is made, what may be set, and what must be."""

    make: Callable[..., BasePruner]
    rules: settings.Rules
    required: tuple[str, ...] = ()


_KINDS: Mapping[str, _Kind] = {
    "none": _Kind(theirs.NopPruner, {}),
    "median": _Kind(MedianPruner, percentile.MEDIAN_RULES),
    "percentile": _Kind(PercentilePruner, percentile.PERCENTILE_RULES, ("percentile",)),
    "asha": _Kind(AshaPruner, asha.RULES),
    "hyperband": _Kind(
        theirs.HyperbandPruner,
        {
            "min_resource": (int, {"ge": 1}),
            "max_resource": (int | Literal["auto"], {"ge": 1}),
            "reduction_factor": (int, {"ge": 2}),
            "bootstrap_count": (int, {"ge": 0}),
        },
    ),
    "patient": _Kind(
        theirs.PatientPruner,
        {"patience": (int, {"ge": 0}), "min_delta": (float, {"ge": 0})},
        ("patience",),
    ),
    "threshold": _Kind(
        theirs.ThresholdPruner,
        {
            "lower": (float | None, {}),
            "upper": (float | None, {}),
            "n_warmup_steps": (int, {"ge": 0}),
            "interval_steps": (int, {"ge": 1}),
        },
    ),
    "wilcoxon": _Kind(
        theirs.WilcoxonPruner,
        {"p_threshold": (float, {"ge": 0, "le": 1}), "n_startup_steps": (int, {"ge": 0})},
    ),
}
NAMES = tuple(_KINDS)
CLASSES = {
    "NopPruner": "none",
    "MedianPruner": "median",
    "PercentilePruner": "percentile",
    "AshaPruner": "asha",
    "SuccessiveHalvingPruner": "asha",
    "HyperbandPruner": "hyperband",
    "PatientPruner": "patient",
    "ThresholdPruner": "threshold",
    "WilcoxonPruner": "wilcoxon",
}
"""Class -> name, for configs that name a class."""


def build(name: str, given: Mapping[str, Any], direction: str | Sequence[str]) -> BasePruner:
    """The pruner `name` with the settings `given`; the rest are the defaults of its class.

    Args:
        name: one of `NAMES`.
        given: its settings. `wrapped` of patient is null, a name, or a mapping with `name` and the
            settings of the pruner that decides once patience has run out. It is asked at those
            evaluations alone, so one that judges at rungs (asha, or a long interval) seldom acts.
        direction: of the study, one word; with a list of several only `none` is allowed.

    Raises:
        InputError: one line for each mistake.
    """
    settings.choice(_WHERE, name, NAMES)
    if name != "none" and not isinstance(direction, str) and len(direction) > 1:
        raise InputError(
            f"{_WHERE} must be none with {len(direction)} objectives, got '{name}': "
            "pruning compares trials by one objective"
        )
    return _build(_WHERE, name, given)


def _build(where: str, name: str, given: Mapping[str, Any]) -> BasePruner:
    kind, given = _KINDS[name], dict(given)
    if name == "patient":
        wrapped = _wrapped(f"{where}.wrapped", given.pop("wrapped", None))
        values = settings.read(where, kind.rules, given, kind.required)
        return settings.construct(where, kind.make, {"wrapped_pruner": wrapped, **values})
    values = settings.read(where, kind.rules, given, kind.required)
    if name == "hyperband":
        _check_brackets(where, values)
    return settings.construct(where, kind.make, values)


def _wrapped(where: str, given: object) -> BasePruner | None:
    if given is None:
        return None
    rest = dict(given) if isinstance(given, Mapping) else {"name": given}
    name = rest.pop("name", None)
    known = [known for known in NAMES if known not in ("none", "patient")]
    return _build(where, settings.choice(where, name, known), rest)


def _check_brackets(where: str, values: Mapping[str, Any]) -> None:
    # Optuna divides by zero at the first report when no bracket fits.
    lowest, highest = values.get("min_resource", 1), values.get("max_resource", "auto")
    if highest != "auto" and highest < lowest:
        raise InputError(f"{where}: max_resource must be >= {lowest}, min_resource, got {highest}")
