"""What the dashboard says of a trial and of a study: notes, in Markdown.

A note is rendered in a browser, and names, overrides and errors come from the study: all such text
stands in code blocks, whose fences are longer than any in it. A note ends with a line that is not
shown and holds the hash of what is above it, by which one that a person has changed is told from
one that may be written anew.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from sweepstack.config import commands
from sweepstack.config.errors import one_line, shown_to_people
from sweepstack.reporting.report.facts import command_of
from sweepstack.reporting.terminal import number
from sweepstack.study.attributes import EQUALS, LOST, OVERRIDES
from sweepstack.study.frame import STATES
from sweepstack.study.library import OpenStudy

METRICS = (
    *("train_loss", "train_accuracy", "val_loss", "val_accuracy", "val_mse", "val_mae"),
    *("test_loss", "test_accuracy", "test_mse", "test_mae", "std", "seeds", "best_step", "steps"),
    *("seconds", "num_parameters", "stopped", "device"),
)
"""Attributes of a trial that its note shows, in this order."""
LONGEST = 4000
"""Letters of a code block; what is longer is cut."""

_SIGNATURE = re.compile(r"\n\n\[//\]: # \(sweepstack ([0-9a-f]{16})\)\n\Z")


def of_trial(opened: OpenStudy, goals: Sequence[str], trial: FrozenTrial, *, rerun: bool) -> str:
    """A finished trial's note: how it ended, its numbers, what Hydra was told, how to run it again.

    Args:
        opened: its study.
        goals: names of the objectives.
        trial: in any state.
        rerun: whether `sweepstack-study rerun` knows the application.
    """
    parts = [f"### Trial {trial.number}: {STATES[trial.state]}"]
    known = trial.user_attrs
    error = known.get("error") or known.get(LOST)
    if error:
        parts += ["Why it ended:", fenced(one_line(error, LONGEST))]
    original = known.get(EQUALS)
    if isinstance(original, int):
        parts.append(f"Not trained again: it has the effect of trial {original}, and its numbers.")
    numbers = _numbers(goals, trial)
    if numbers:
        parts.append(_table(numbers))
    words = known.get(OVERRIDES)
    if isinstance(words, list) and words:
        parts += ["What Hydra was told:", fenced("\n".join(map(str, words)))]
        if rerun:
            command = commands.study("rerun", opened.name, trial.number, where=opened.where)
            parts += ["Trained again alone, and compared:", fenced(command)]
    elif trial.params:
        parts += ["Its parameters:", _table(trial.params.items())]
    return signed("\n\n".join(parts))


def of_study(opened: OpenStudy) -> str:
    """A study's note: the command that asked for it, and those that tell more."""
    asked, name = opened.asked, opened.name
    command = command_of(asked)
    parts = ["### How it was asked", fenced(command)] if command else []
    settings = [(kind, _named(asked.get(kind))) for kind in ("sampler", "pruner")]
    settings += [("trials", asked.get("n_trials"))]
    known = [(kind, value) for kind, value in settings if value is not None]
    parts += [_table(known)] if known else []
    report = commands.study("report", name, where=opened.where)
    table = commands.study("export", name, "-o", "trials.csv", where=opened.where)
    parts += ["### More of it", "All plots and tables as one file, and one row per trial:"]
    parts.append(fenced(f"{report}\n{table}"))
    return signed("\n\n".join(parts))


def is_rerun_known(opened: OpenStudy) -> bool:
    """Whether the study's trials are runs of sweepstack, not of another application."""
    application = opened.asked.get("application")
    return isinstance(application, dict) and application.get("name") == "sweepstack"


def fenced(text: str) -> str:
    """`text` as a code block that nothing in it can end."""
    text = shown_to_people(text)
    text = text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{text}\n{fence}"


def signed(text: str) -> str:
    """`text` with the line by which `is_signed` knows it."""
    return f"{text}\n\n[//]: # (sweepstack {_hash(text)})\n"


def is_signed(note: str) -> bool:
    """Whether a note is sweepstack's, and as it was written."""
    found = _SIGNATURE.search(note)
    return found is not None and found[1] == _hash(note[: found.start()])


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()[:16]


def _numbers(goals: Sequence[str], trial: FrozenTrial) -> list[tuple[str, Any]]:
    """The objectives of a complete trial, then its other metrics."""
    values = trial.values if trial.state == TrialState.COMPLETE and trial.values else []
    found = dict(zip(goals, values, strict=False))
    known = {name: trial.user_attrs[name] for name in METRICS if name in trial.user_attrs}
    return list({**found, **{k: v for k, v in known.items() if k not in found}}.items())


def _table(rows: Iterable[tuple[str, Any]]) -> str:
    pairs = [(name, _shown(value)) for name, value in rows]
    width = max((len(name) for name, _ in pairs), default=0)
    return fenced("\n".join(f"{name:<{width}}  {value}" for name, value in pairs))


def _shown(value: Any) -> str:
    return number(value) if isinstance(value, float) else str(value)


def _named(settings: Any) -> str | None:
    """For example "tpe, seed 0" of a sampler's or pruner's settings."""
    if not isinstance(settings, dict) or "name" not in settings:
        return None
    others = [f"{key} {value}" for key, value in settings.items() if key != "name"]
    return ", ".join([str(settings["name"]), *others])
