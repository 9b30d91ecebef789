"""The command that acts on findings, one line to copy into a shell.

It is made of the arguments that the study keeps of its sweep, which are text from a database:
every argument is quoted for a shell and without control characters. Overrides of Hydra itself
(`hydra.sweeper.n_trials=60 hydra/sweeper/pruner=asha`) are not among the arguments; they are put
together again from what else the study keeps.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import optuna

from sweepstack.analysis.doctor import overrides
from sweepstack.analysis.doctor.finding import Finding
from sweepstack.analysis.doctor.settings import SEEDS
from sweepstack.config.commands import shell
from sweepstack.study.view import StudyView

ACTED_ON = (
    *("diverged", "edge", "improving", "saturated", "overfitting", "noisy", "pruning"),
    "idle-parameter",
)
"""Kinds whose commands are put together, the most important first."""
TOP = 5
"""Configurations that are run again with more seeds."""
NUMBERS = {"num_parameters", "steps", "seconds", "samples_per_s"}
"""Objectives that no config names, so that the sweeper was told of them."""
_PARAMS = "hydra.sweeper.params="


def next_command(view: StudyView, findings: Sequence[Finding]) -> str | None:
    """One line for a shell that acts on the findings, the most important first: problems, seed
    noise that is unknown or hides which is the best, then other hints. None where there is nothing
    to do, or where it is not known how the study was made.

    Other values, more steps or seeds are another question, to which the sweeper gives a study of
    its own: an unnamed one finds a name from its arguments, a named one gets NAME_2.
    """
    application, arguments = view.asked.get("application"), view.asked.get("arguments")
    if not isinstance(application, Mapping) or application.get("name") != "sweepstack":
        return None
    if not isinstance(arguments, list) or not all(isinstance(a, str) for a in arguments):
        return None
    if view.frame.empty or len(view.finished) < len(view.frame):
        return None  # it is at work
    known = [finding for finding in findings if finding.command]
    chosen = [f for kind in ACTED_ON for f in known if f.kind == kind and f.level != "fact"]
    curves = _changes([finding for finding in known if finding.kind == "curves"])
    problems = {finding.kind for finding in findings if finding.level == "problem"}
    is_urgent = any(finding.kind in problems for finding in chosen)
    if not is_urgent and any(finding.kind == "seed-noise" for finding in known):
        # Before more trials of one seed each, of which the best may only be the luckiest.
        command = _more_seeds(view, arguments, curves)
        if command or not chosen:
            return command
    return _again(view, arguments, curves | _changes(chosen)) if chosen else None


def _changes(findings: Sequence[Finding]) -> dict[str, str]:
    """The overrides of findings by their keys; the first that sets a key decides it."""
    changes: dict[str, str] = {}
    for finding in findings:
        for override in shlex.split(finding.command or ""):
            changes.setdefault(_path(override), override)
    return changes


def _again(view: StudyView, arguments: list[str], changes: Mapping[str, str]) -> str | None:
    """The same sweep with some keys changed."""
    cased = [override for override in changes.values() if override.startswith(_PARAMS)]
    plain = {path: override for path, override in changes.items() if override not in cased}
    merged = _merged(view, arguments, plain, set(changes))
    if merged is None:
        return None
    merged += _settings(view)
    if cased:  # as one
        inner = ", ".join(override.removeprefix(_PARAMS)[1:-1] for override in cased)
        merged.append(f"{_PARAMS}{{{inner}}}")
    return shell("sweepstack", "-m", *_place(view), *merged, *_name(view, bool(plain)))


def _more_seeds(view: StudyView, arguments: list[str], changes: Mapping[str, str]) -> str | None:
    """The best configurations alone, each with several seeds, in a study of their own."""
    best = view.configurations.head(TOP)
    points = [overrides.of_point(view, row) for row in best.to_dict("records")]
    if len(points) < 2 or None in points:
        return None
    changes = {**changes, "training.seeds": f"training.seeds={SEEDS}"}
    # A seed that was swept is the first of those that now make one trial.
    changes |= {key: f"{key}=0" for key in view.seeds}
    merged = _merged(view, arguments, changes, set(changes))
    if merged is None:
        return None
    merged += [
        *_objectives(view),
        "hydra/sweeper/sampler=random",
        "hydra/sweeper/pruner=none",
        f"hydra.sweeper.enqueue=[{','.join(map(str, points))}]",
        f"hydra.sweeper.n_trials={len(points)}",
    ]
    return shell("sweepstack", "-m", *_place(view), *merged, *_name(view, False))


def _merged(
    view: StudyView, arguments: list[str], changes: Mapping[str, str], known: set[str]
) -> list[str] | None:
    """The arguments with those replaced that `changes` set, and the others behind them.

    Swept keys that neither an argument nor `known` declares (they were in
    `hydra.sweeper.params={...}`) are declared; None where one has conditions, which no override
    can say. A file of sweeps or another primary config may declare any key.
    """
    every = list(arguments)
    if not _sweeps(view) and not _place(view):
        known = {_path(argument) for argument in arguments} | known
        for parameter in (p for key in view.keys.values() for p in key.parameters):
            if parameter.key not in known:
                override = overrides.declared(parameter)
                if override is None:
                    return None
                every.append(override)
    merged, left = [], dict(changes)
    for argument in every:
        path = _path(argument)
        if path not in changes:
            merged.append(argument)
        elif path in left:
            plus = argument[: len(argument) - len(argument.lstrip("+"))]
            merged.append(plus + left.pop(path))
    return [*merged, *left.values()]


def _settings(view: StudyView) -> list[str]:
    """Sampler, pruner and total, as far as they are not what every sweep has."""
    asked, found = view.asked, _objectives(view)
    grid = asked.get("grid") is not False
    for group, default in (("sampler", "tpe"), ("pruner", "none")):
        node = asked.get(group)
        if not isinstance(node, Mapping) or not isinstance(node.get("name"), str):
            continue
        if node["name"] != default or (_sweeps(view) and not grid):
            found.append(f"hydra/sweeper/{group}={node['name']}")
        for key, value in node.items():
            is_default = key == "name" or value is None or (key, value) == ("seed", 0)
            if not is_default and re.fullmatch(r"\w+", str(key)):
                found.append(f"hydra.sweeper.{group}.{key}={_value(value)}")
    total = asked.get("n_trials")
    if not grid and isinstance(total, int):
        found.append(f"hydra.sweeper.n_trials={total}")
    return found


def _objectives(view: StudyView) -> list[str]:
    """Objectives that the config does not name by itself."""
    if view.has_one_objective and view.objective not in NUMBERS:
        return []
    return [
        f"hydra.sweeper.objectives=[{','.join(view.objectives)}]",
        f"hydra.sweeper.directions=[{','.join(view.objectives.values())}]",
    ]


def _place(view: StudyView) -> list[str]:
    """Where the application's own configs are, if not those of sweepstack alone."""
    folder, name = (view.asked["application"].get(key) for key in ("config_dir", "config_name"))
    found = ["--config-dir", folder] if isinstance(folder, str) else []
    return found if name in (None, "config") else [*found, "--config-name", str(name)]


def _sweeps(view: StudyView) -> list[str]:
    """The files of sweeps that the arguments name."""
    arguments = (argument.lstrip("+") for argument in view.asked["arguments"])
    return [a.partition("=")[2] for a in arguments if a.startswith("sweeps=")]


def _name(view: StudyView, arguments_differ: bool) -> list[str]:
    """A free name, unless the sweeper finds one from arguments that differ.

    An unnamed study is called after its arguments: its name ends with a hash or is its sweep's.
    """
    is_named = not re.search("-[0-9a-f]{8}$", view.name) and view.name not in _sweeps(view)
    if arguments_differ and not is_named:
        return []
    base = re.sub(r"[^\w.=,-]+", "-", re.sub(r"_\d+$", "", view.name))[:190] or "study"
    taken = set(optuna.get_all_study_names(view.storage)) if view.storage else {view.name}
    number = 2
    while f"{base}_{number}" in taken:
        number += 1
    return [f"hydra.sweeper.study_name={overrides.quoted(f'{base}_{number}')}"]


def _path(override: str) -> str:
    if override.startswith(_PARAMS):
        return override.partition(":")[0]
    return override.partition("=")[0].lstrip("+~")


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return overrides.quoted(value) if isinstance(value, str) else str(value)
