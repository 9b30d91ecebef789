"""What a person is told of a rerun: what has changed around it, the table, rerun.json."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial
from rich.table import Table
from rich.text import Text

from sweepstack.config.schema import RunConfig
from sweepstack.reporting.rerun.compare import OTHER_DEVICE, Comparison, Difference, shown
from sweepstack.reporting.rerun.restore import said
from sweepstack.runs import folder as run_folder
from sweepstack.runs.folder import environment
from sweepstack.study.attributes import ENVIRONMENT
from sweepstack.study.library import OpenStudy


def kind_of(name: str) -> str:
    """cpu or cuda, by a device's name as `device.describe` writes it."""
    return "cpu" if re.search(r"\(\d+ threads\)$", name) else "cuda"


def changes(opened: OpenStudy, trial: FrozenTrial, where: str, kind: str) -> list[str]:
    """A line for each thing, besides the config, that is not as it was."""
    key = trial.user_attrs.get(ENVIRONMENT)
    then = opened.user_attrs.get(f"{ENVIRONMENT}.{key}") if isinstance(key, str) else None
    lines = []
    if isinstance(then, Mapping):
        now = environment()
        lines = _changed_versions(then, now)
        lines += _changed("platform", then.get("platform"), now["platform"])
        lines += _changed("git commit", _commit(then.get("git")), _commit(now["git"]))
    else:
        lines.append("the study does not say with which versions it was trained")
    before = trial.user_attrs.get("device")
    lines += _changed("device", before, where) if before else []
    if isinstance(before, str) and before and kind_of(before) != kind:
        lines.append(f"another kind of device: the tolerance is {OTHER_DEVICE} times as wide")
    return lines


def _changed_versions(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    old, new = then.get("versions"), now["versions"]
    old = old if isinstance(old, Mapping) else {}
    names = [*new, *(name for name in old if name not in new)]
    return [
        line
        for name in names[:50]
        for line in _changed(said(name, 40), old.get(name, "none"), new.get(name, "none"))
    ]


def _changed(what: str, then: object, now: object) -> list[str]:
    return [] if then == now else [f"changed: {what} {said(then, 100)} then, {said(now, 100)} now"]


def _commit(git: object) -> str:
    if not isinstance(git, Mapping):
        return "none"
    return f"{said(git.get('commit'), 12)}{' (changed files)' if git.get('dirty') else ''}"


def data_read(found: RunConfig) -> list[str]:
    """Which files of this machine are read."""
    root = getattr(found.data, "root", None)
    return [] if root is None else [f"data are read from {said(Path(root).absolute())}"]


def show(say: Any, comparison: Comparison) -> None:
    """Print the table: every number at the end, and of each metric the worst evaluation."""
    table = Table(box=None, pad_edge=False)
    for title in ("metric", "recorded", "now", "difference", "allowed"):
        table.add_column(title, justify="left" if title == "metric" else "right")
    for row in _worst(comparison.differences):
        style = "" if row.share <= 1 else "bold"
        numbers = (_number(row.recorded), _number(row.now), shown(row.amount), shown(row.allowed))
        table.add_row(*(Text(text, style=style) for text in (str(row.key), *numbers)))
    say.print(table)


def _worst(differences: Sequence[Difference]) -> list[Difference]:
    worst: dict[object, Difference] = {}
    for found in differences:
        name = (found.key.name, found.key.step is None, found.key.seed)
        if found.key.step is not None:
            name = (found.key.name, False, None)
        if name not in worst or found.share > worst[name].share:
            worst[name] = found
    return list(worst.values())


def _number(value: float) -> str:
    whole = math.isfinite(value) and value == int(value) and abs(value) < 1e15
    return str(int(value)) if whole else f"{value:.7g}"


def write_verdict(place: Path, opened: OpenStudy, number: int, comparison: Comparison) -> None:
    """Write rerun.json: the verdict and every number, then and now."""
    run_folder.write_json(
        place / "rerun.json",
        {
            "study": opened.name,
            "trial": number,
            "agrees": comparison.agrees,
            "verdict": comparison.verdict,
            "numbers": [
                {
                    "metric": found.key.name,
                    "step": found.key.step,
                    "seed": found.key.seed,
                    "recorded": _plain(found.recorded),
                    "now": _plain(found.now),
                    "allowed": _plain(found.allowed),
                }
                for found in comparison.differences
            ],
        },
    )


def _plain(value: float) -> float | None:
    return value if math.isfinite(value) else None
