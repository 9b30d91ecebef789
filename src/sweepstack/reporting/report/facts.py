"""What a study is: objective, trials by state, when, command, versions."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from sweepstack.config import commands
from sweepstack.config.errors import one_line
from sweepstack.reporting.report.markup import label, number, prose, text
from sweepstack.study.attributes import PREFIX
from sweepstack.study.frame import STATES
from sweepstack.study.library import OpenStudy
from sweepstack.study.tables import best

ENVIRONMENT = f"{PREFIX}environment."
MOST_NAMED = 5
"""Devices and environments that are listed."""


@dataclass(frozen=True)
class Tile:
    """One of the few numbers that are shown large: `value` over `says`, both HTML."""

    value: str
    says: str


def judged(df: pd.DataFrame) -> pd.DataFrame:
    """The frame with "infeasible" as the state of complete trials that break a constraint."""
    if "feasible" not in df:
        return df
    broken = (df["state"] == "complete") & ~df["feasible"]
    return df.assign(state=df["state"].astype(object).where(~broken, "infeasible"))


def counts(df: pd.DataFrame) -> str:
    """For example "3 complete, 2 failed"."""
    found = df["state"].value_counts()
    states = [*STATES.values(), "infeasible"]
    return ", ".join(f"{found[state]:,} {state}" for state in states if state in found)


def lead(df: pd.DataFrame) -> str:
    """One line: the objective and its direction, trials by state, when. HTML."""
    goals = df.attrs["objectives"]
    what = ", ".join(f"{text(name)} ({text(direction)})" for name, direction in goals.items())
    trials = f"{len(df):,} trial{'' if len(df) == 1 else 's'}: {counts(df)}" if len(df) else ""
    return " · ".join(filter(None, [what, trials or "no trials yet", _when(df)]))


def trouble(df: pd.DataFrame) -> str:
    """A sentence where no trial has completed, else empty. HTML."""
    if df.empty:
        return "This study has no trials yet."
    if (df["state"] == "complete").any():
        return ""
    line = f"No trial has completed: {counts(df)}."
    errors: Any = df.loc[df["state"] == "failed", "error"].dropna() if "error" in df else []
    if len(errors):
        reason = one_line(errors.astype(str).mode().iloc[0])
        line += f" Failed most often with: {text(reason)}"
    return line


def tiles(df: pd.DataFrame) -> list[Tile]:
    """The numbers that are looked for first."""
    found = []
    goals = df.attrs["objectives"]
    if len(goals) == 1:
        [value] = goals
        for _, row in best(df, 1).iterrows():
            says = f"best {text(value)}, trial {row['number']}"
            found.append(Tile(number(row[value]), says))
            tested = row.get("test_accuracy")
            if isinstance(tested, float) and not math.isnan(tested):
                found.append(Tile(number(tested), "its test_accuracy"))
    if len(df):
        ended = int((~df["state"].isin(("running", "waiting"))).sum())
        found.append(Tile(f"{ended:,}", f"finished of {len(df):,} trials"))
    for column, says in (("gpu_seconds", "of GPUs"), ("seconds", "of training")):
        total = pd.to_numeric(df[column], errors="coerce").sum() if column in df else 0
        if 0 < total < math.inf:
            found.append(Tile(_span(total), f"{says}, all trials"))
            break
    begin, end = _bounds(df)
    if begin is not None and end is not None:
        span = (end - begin).total_seconds()
        if span > 0:
            found.append(Tile(_span(span), "from first start to last end"))
    return found


def listed(opened: OpenStudy, df: pd.DataFrame) -> list[tuple[str, str]]:
    """Further facts as pairs of a name and HTML; what is not known is left out."""
    asked = opened.asked
    command = command_of(asked)
    found = [("Command", f"<code>{prose(command)}</code>" if command else "")]
    for name in ("sampler", "pruner"):
        entry = asked.get(name)
        if isinstance(entry, Mapping) and entry.get("name"):
            seed = entry.get("seed")
            more = f", seed {label(seed)}" if seed is not None else ""
            found.append((name.capitalize(), text(entry["name"]) + more))
    swept = [f"<code>{text(key)}</code>" for key in df.attrs["keys"] if df[key].nunique() > 1]
    found.append(("Swept", ", ".join(swept)))
    if "device" in df:
        devices = df["device"].dropna().astype(str).unique().tolist()
        found.append(("Device", "; ".join(map(text, devices[:MOST_NAMED]))))
    environments = [
        _environment(value)
        for key, value in opened.user_attrs.items()
        if key.startswith(ENVIRONMENT)
    ]
    known = list(dict.fromkeys(filter(None, environments)))
    found.append(("Versions", "<br>".join(known[:MOST_NAMED])))
    return [(name, content) for name, content in found if content]


def command_of(asked: Mapping[str, Any]) -> str:
    """The command by which a sweep was asked for, for a shell; empty where it is not known."""
    arguments, application = asked.get("arguments"), asked.get("application")
    if not isinstance(arguments, list) or not isinstance(application, Mapping):
        return ""
    name = str(application.get("name") or "sweepstack")
    program = [name] if name == "sweepstack" else ["python", f"{name}.py"]
    told = asked.get("hydra")
    words = [*arguments, *(told if isinstance(told, list) else [])]
    return commands.shell(*program, "-m", *words)


def _environment(found: Any) -> str:
    """Versions, commit and platform of one environment, HTML."""
    if not isinstance(found, Mapping):
        return ""
    versions, git = found.get("versions"), found.get("git")
    parts = []
    if isinstance(versions, Mapping):
        parts += [f"{text(name)} {text(version)}" for name, version in versions.items()]
    if isinstance(git, Mapping) and git.get("commit"):
        changed = " with changes" if git.get("dirty") is True else ""
        parts.append(f"commit {text(str(git['commit'])[:12])}{changed}")
    if found.get("platform"):
        parts.append(text(found["platform"]))
    return ", ".join(parts)


def _bounds(df: pd.DataFrame) -> tuple[pd.Timestamp | None, pd.Timestamp | None]:
    """When the first trial began and the last one ended."""
    starts = df["started"].dropna()
    if starts.empty:
        return None, None
    ends = (df["started"] + pd.to_timedelta(df["duration_s"], unit="s")).dropna()
    return starts.min(), None if ends.empty else ends.max()


def _when(df: pd.DataFrame) -> str:
    begin, end = _bounds(df)
    if begin is None:
        return ""
    if end is None:
        return f"{begin:%Y-%m-%d %H:%M}"
    first, last = f"{begin:%Y-%m-%d %H:%M}", f"{end:%Y-%m-%d %H:%M}"
    if first == last:
        return first
    return f"{first} to {last[11:] if first[:10] == last[:10] else last}"


def _span(seconds: float) -> str:
    """Seconds for people: "0.9 s", "3 min 12 s", "5 h 7 min", "2 d 3 h"."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    for size, small, names in ((3600, 60, "min s"), (86400, 3600, "h min"), (None, 86400, "d h")):
        if size is None or seconds < size:
            first, rest = divmod(seconds, small)
            step = {60: 1, 3600: 60, 86400: 3600}[small]
            big, little = names.split()
            return f"{int(first)} {big} {int(rest // step)} {little}"
    raise AssertionError
