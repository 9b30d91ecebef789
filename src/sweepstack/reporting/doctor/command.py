"""The command that acts on findings, one line to copy into a shell.

It is made of the arguments that the study keeps of its sweep, which are text from a database:
every word is quoted for a shell and without control characters. What Hydra itself was told
(`hydra.sweeper.n_trials=60 hydra/sweeper/pruner=asha`) is not among the arguments; it is put
together again from what else the study keeps.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from sweepstack.config.commands import shell
from sweepstack.reporting.doctor import overrides
from sweepstack.reporting.doctor.evidence import Evidence
from sweepstack.reporting.doctor.finding import Finding
from sweepstack.study.library import OpenStudy

ACTED_ON = (
    "diverged",
    "edge",
    "improving",
    "saturated",
    "overfitting",
    "noisy",
    "pruning",
    "idle-parameter",
)
"""Kinds whose commands are put together, the most important first."""
TOP = 5
"""Configurations that are run again with more seeds."""
SEEDS = 5
NUMBERS = {"num_parameters", "steps", "seconds", "samples_per_s"}
"""Objectives that no config names, so that the sweeper was told of them."""
_PARAMS = "hydra.sweeper.params="


def propose(opened: OpenStudy, findings: Sequence[Finding]) -> str | None:
    """See `doctor.next_command`."""
    evidence, asked = Evidence(opened), opened.asked
    application = asked.get("application")
    arguments = asked.get("arguments")
    if not isinstance(application, Mapping) or application.get("name") != "sweepstack":
        return None
    if not isinstance(arguments, list) or not all(isinstance(a, str) for a in arguments):
        return None
    states = set(evidence.frame["state"])
    if states & {"running", "waiting"} or not states:
        return None  # it is at work
    known = [finding for finding in findings if finding.command]
    chosen = [f for kind in ACTED_ON for f in known if f.kind == kind and f.level != "fact"]
    curves = _words([finding for finding in known if finding.kind == "curves"])
    problems = {finding.kind for finding in findings if finding.level == "problem"}
    is_urgent = any(finding.kind in problems for finding in chosen)
    if not is_urgent and any(finding.kind == "seed-noise" for finding in known):
        # Before more trials of one seed each, of which the best may only be the luckiest.
        command = _more_seeds(evidence, arguments, curves)
        if command or not chosen:
            return command
    return _again(evidence, arguments, curves | _words(chosen)) if chosen else None


def _words(findings: Sequence[Finding]) -> dict[str, str]:
    """The overrides of findings by their keys; the first that sets a key decides it."""
    changes: dict[str, str] = {}
    for finding in findings:
        for word in shlex.split(finding.command or ""):
            changes.setdefault(_path(word), word)
    return changes


def _again(evidence: Evidence, arguments: list[str], changes: Mapping[str, str]) -> str | None:
    """The same sweep with some keys changed."""
    missing = _undeclared(evidence, arguments, changes)
    if missing is None:
        return None
    cased = [word for word in changes.values() if word.startswith(_PARAMS)]
    plain = {path: word for path, word in changes.items() if word not in cased}
    words = _merged([*arguments, *missing], plain)
    continuous = evidence.opened.asked.get("grid") is False
    words += [*_settings(evidence, grid=not continuous), *_one(cased)]
    return shell("sweepstack", "-m", *_place(evidence), *words, *_name(evidence, bool(plain)))


def _more_seeds(evidence: Evidence, arguments: list[str], changes: Mapping[str, str]) -> str | None:
    """The best configurations alone, each with several seeds, in a study of their own."""
    best = evidence.configurations.head(TOP)
    points = [overrides.of_point(evidence, row) for row in best.to_dict("records")]
    if len(points) < 2 or None in points:
        return None
    changes = {**changes, "training.seeds": f"training.seeds={SEEDS}"}
    for key in evidence.seeds:
        # A seed that was swept is the first of those that now make one trial.
        changes[key] = f"{key}=0"
    missing = _undeclared(evidence, arguments, changes)
    if missing is None:
        return None
    words = _merged([*arguments, *missing], changes)
    words += _objectives(evidence)
    words += [
        "hydra/sweeper/sampler=random",
        "hydra/sweeper/pruner=none",
        f"hydra.sweeper.enqueue=[{','.join(map(str, points))}]",
        f"hydra.sweeper.n_trials={len(points)}",
    ]
    return shell("sweepstack", "-m", *_place(evidence), *words, *_name(evidence, False))


def _undeclared(
    evidence: Evidence, arguments: list[str], changes: Mapping[str, str]
) -> list[str] | None:
    """Swept keys that no argument declares: `hydra.sweeper.params={...}` is not among these.

    None where a key has conditions, which no override can say. A file of sweeps or another primary
    config may declare any key.
    """
    if any(a.lstrip("+").startswith("sweeps=") for a in arguments) or _place(evidence):
        return []
    known = {_path(argument) for argument in arguments} | set(changes)
    missing = [case for case in evidence.every_case if case.entry["key"] not in known]
    words = [overrides.declared(case) for case in missing]
    return None if None in words else [word for word in words if word]


def _merged(arguments: list[str], changes: Mapping[str, str]) -> list[str]:
    """The arguments with those replaced that `changes` set, and the others behind them."""
    words, left = [], dict(changes)
    for argument in arguments:
        path = _path(argument)
        if path in changes:
            word = left.pop(path, None)
            if word is not None:
                words.append(argument[: len(argument) - len(argument.lstrip("+"))] + word)
        else:
            words.append(argument)
    return [*words, *left.values()]


def _settings(evidence: Evidence, grid: bool) -> list[str]:
    """Sampler, pruner and total, as far as they are not what every sweep has."""
    asked, words = evidence.opened.asked, _objectives(evidence)
    from_file = any(a.lstrip("+").startswith("sweeps=") for a in asked["arguments"])
    for group, default in (("sampler", "tpe"), ("pruner", "none")):
        node = asked.get(group)
        if not isinstance(node, Mapping) or not isinstance(node.get("name"), str):
            continue
        if node["name"] != default or (from_file and not grid):
            words.append(f"hydra/sweeper/{group}={node['name']}")
        for key, value in node.items():
            is_default = key == "name" or value is None or (key, value) == ("seed", 0)
            if not is_default and re.fullmatch(r"\w+", str(key)):
                words.append(f"hydra.sweeper.{group}.{key}={_value(value)}")
    total = asked.get("n_trials")
    if not grid and isinstance(total, int):
        words.append(f"hydra.sweeper.n_trials={total}")
    return words


def _objectives(evidence: Evidence) -> list[str]:
    """Objectives that the config does not name by itself."""
    goals: dict[str, str] = evidence.frame.attrs.get("objectives", {})
    if len(goals) < 2 and not set(goals) & NUMBERS:
        return []
    return [
        f"hydra.sweeper.objectives=[{','.join(goals)}]",
        f"hydra.sweeper.directions=[{','.join(goals.values())}]",
    ]


def _place(evidence: Evidence) -> list[str]:
    """Where the application's own configs are, if not those of sweepstack alone."""
    application = evidence.opened.asked["application"]
    words = []
    if isinstance(application.get("config_dir"), str):
        words += ["--config-dir", application["config_dir"]]
    if application.get("config_name") not in (None, "config"):
        words += ["--config-name", str(application["config_name"])]
    return words


def _name(evidence: Evidence, arguments_differ: bool) -> list[str]:
    """A free name, unless the sweeper finds one from arguments that differ.

    An unnamed study is called after its arguments, so its name has a "=" or is that of its sweep.
    """
    name, asked = evidence.opened.name, evidence.opened.asked
    sweeps = [
        a.partition("=")[2] for a in asked["arguments"] if a.lstrip("+").startswith("sweeps=")
    ]
    is_named = "=" not in name and name not in sweeps
    if arguments_differ and not is_named:
        return []
    base = re.sub(r"[^\w.=,-]+", "-", re.sub(r"_\d+$", "", name))[:190] or "study"
    storage = evidence.opened.study._storage
    taken = {study.study_name for study in storage.get_all_studies()}
    number = 2
    while f"{base}_{number}" in taken:
        number += 1
    return [f"hydra.sweeper.study_name={overrides.quoted(f'{base}_{number}')}"]


def _one(cased: list[str]) -> list[str]:
    """Several `hydra.sweeper.params={...}` as one."""
    if len(cased) < 2:
        return cased
    return [f"{_PARAMS}{{{', '.join(word[len(_PARAMS) + 1 : -1] for word in cased)}}}"]


def _path(word: str) -> str:
    if word.startswith(_PARAMS):
        return word.partition(":")[0]
    return word.partition("=")[0].lstrip("+~")


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return overrides.quoted(value) if isinstance(value, str) else str(value)
