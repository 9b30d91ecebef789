"""`sweepstack-study merge`: one study of the finished trials of several that ask the same."""

from __future__ import annotations

import copy as copies
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.trial import FrozenTrial, TrialState

from sweepstack import storage
from sweepstack.analysis.doctor.finding import count
from sweepstack.cli.draft import PASSING, Draft, asked_as, refuse_taken
from sweepstack.cli.housekeeping import (
    all_here,
    conclude,
    put_artifacts,
    records,
    refuse_while_running,
    summary,
)
from sweepstack.config.check import differences
from sweepstack.config.errors import InputError
from sweepstack.study.attributes import (
    ARTIFACTS,
    CONTINUES,
    EQUALS,
    FOLDER,
    IDENTITY,
    RETRY_OF,
    SWEEP,
    is_retried,
)
from sweepstack.study.book import canonical
from sweepstack.study.view import StudyView, open_study
from sweepstack.sweep.plan import check_name
from sweepstack.sweep.sweep import STUDIES

_NUMBERS = (EQUALS, RETRY_OF, CONTINUES)
"""Attributes of a trial that name another trial of the study."""
_RANKS = {TrialState.COMPLETE: 0, TrialState.PRUNED: 1, TrialState.FAIL: 2}
"""Of equal trials of several studies the first of these states is kept."""


def merge(names: Sequence[str], new: str, where: str = storage.DEFAULT) -> int:
    """Make one study of the finished trials of several that ask the same question.

    Of equal trials (all swept keys, seeds among them) of several studies of sweepstack one is kept,
    a complete one if there is any. Trials get new numbers, those of the first study first.

    Raises:
        InputError: fewer than two studies, they differ in more than the values of the space, or
            there is a study of the new name.
        EnvironmentFault: a living worker runs trials of one, or files cannot be copied.
    """
    check_name("--name", new)
    if len(set(names)) < 2 or len(set(names)) < len(names):
        raise InputError(f"merge needs two or more different studies, got {', '.join(names)}")
    views = [open_study(name, where) for name in names]
    for view in views:
        with storage.named(view.where), records(view) as book:
            refuse_taken(new, book.storage)
            refuse_while_running(book.alive(), view.name)
    space = _space_of(views)
    places = [place for view in views if (place := all_here(view)) is not None]
    trials, found, said = _joined(views)
    _unite(trials)
    first = views[0]
    user = {key: value for view in reversed(views) for key, value in view.user_attrs.items()}
    user = {key: value for key, value in user.items() if not key.startswith(PASSING)}
    for key in (FOLDER, ARTIFACTS):
        user.pop(key, None)
    if first.identity:
        user[IDENTITY] = {**first.identity, "space": space}
    if first.asked:
        user |= asked_as(first, new)
        same = space == first.identity.get("space")
        # Where spaces differ no one command asks for the study.
        user[SWEEP] = {**user[SWEEP], "n_trials": len(trials)} | (
            {} if same else {"arguments": None}
        )
    assert first.storage is not None
    known = first.storage.get_study_system_attrs(first.storage.get_study_id_from_name(first.name))
    system = {k: v for k, v in known.items() if k.startswith("study:")}  # names of metrics
    root = next((v.folder.parent for v in views if v.folder is not None), STUDIES.absolute())
    with storage.named(first.where), records(first) as book:
        Draft(new, first, user, system, trials, found).make(book.storage, root)
    view = open_study(new, where)
    put_artifacts(view, next(iter(places), None))
    parts = ", ".join(f"{len(v.trials)} of {v.name}" for v in views)
    return conclude(view, f"merged {parts} into {new}{summary(view)}{said}", False)


def _space_of(views: Sequence[StudyView]) -> dict[str, Any]:
    """The space of all studies together.

    Raises:
        InputError: the studies differ in more than the values that they tried.
    """
    first, space = views[0], dict(views[0].identity.get("space") or {})
    for other in views[1:]:
        wrong = list(differences(_question(first), _question(other)))
        if first.objectives != other.objectives:
            goals = [f"{n} ({d})" for v in (first, other) for n, d in v.objectives.items()]
            wrong = [f"objectives: {' and '.join(goals)}"]
        elif bool(first.identity) != bool(other.identity):
            wrong = ["only one of them was made by a sweep of sweepstack"]
        there = other.identity.get("space") or {}
        for key in dict.fromkeys([*space, *there]):
            if key not in space or key not in there:
                wrong.append(f"{key} is swept in one of them only")
            elif (entry := _united(space[key], there[key])) is None:
                wrong.append(f"{key} has values of another kind")
            else:
                space[key] = entry
        if wrong:
            more = f"; and {len(wrong) - 3} more" if len(wrong) > 3 else ""
            said = "; ".join(line.replace(" in the study, now ", " and ") for line in wrong[:3])
            raise InputError(
                f"merge needs studies of the same question, {first.name} and {other.name} differ: "
                f"{said}{more}"
            )
    return space


def _question(view: StudyView) -> dict[str, Any]:
    """What a study asks besides its space; of a swept group, whose settings are those of one
    option, only what the command sets."""
    found = {k: v for k, v in view.identity.items() if k not in ("space", "grid", "config")}
    config = dict(view.identity.get("config") or {})
    space = (view.identity.get("space") or {}).values()
    groups = {e["key"] for e in space if isinstance(config.get(e["key"]), Mapping)}
    paths = {word: word.lstrip("+").partition("=")[0] for word in view.asked.get("arguments") or ()}
    given = sorted(
        word for word, path in paths.items() if path.partition(".")[0] in groups - {path}
    )
    config = {key: node for key, node in config.items() if key not in groups}
    return {**found, "config": config, "arguments": given}


def _united(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any] | None:
    """What is declared of a parameter in either of two studies; None where they do not fit."""
    values = ("choices", "texts", "low", "high")
    if {k: v for k, v in one.items() if k not in values} != {
        k: v for k, v in other.items() if k not in values
    }:
        return None
    found = dict(one)
    if one.get("kind") == "choice":
        pairs = [pair for e in (one, other) for pair in zip(e["choices"], e["texts"], strict=True)]
        known = {json.dumps(choice): (choice, text) for choice, text in reversed(pairs)}
        ordered = [known[key] for key in dict.fromkeys(json.dumps(choice) for choice, _ in pairs)]
        found["choices"], found["texts"] = [c for c, _ in ordered], [t for _, t in ordered]
    else:
        found["low"] = min(one["low"], other["low"])
        found["high"] = max(one["high"], other["high"])
    return found


def _joined(views: Sequence[StudyView]) -> tuple[list[FrozenTrial], list[tuple[Path, str]], str]:
    """The trials of a merged study, their folders, and what was left out, for people."""
    ended = [[t for t in v.trials if t.state.is_finished() and not is_retried(t)] for v in views]
    unfinished = sum(not t.state.is_finished() for view in views for t in view.trials)
    knows_seeds = all(_is_ours(view) for view in views)
    owner: dict[str, tuple[int, int]] = {}  # of equal trials: rank of their state, place of study
    for place, trials in enumerate(ended):
        for trial in trials:
            mark = canonical(trial.params)
            owner[mark] = min(owner.get(mark, (9, 0)), (_RANKS[trial.state], place))
    kept: list[tuple[int, FrozenTrial]] = []
    numbers: list[dict[int, int]] = [{} for _ in views]
    of_mark: dict[str, int] = {}
    for place, trials in enumerate(ended):
        for trial in trials:
            if not knows_seeds or owner[canonical(trial.params)][1] == place:
                of_mark.setdefault(canonical(trial.params), len(kept))
                numbers[place][trial.number] = len(kept)
                kept.append((place, trial))
    for place, trials in enumerate(ended):
        for trial in trials:
            numbers[place].setdefault(trial.number, of_mark[canonical(trial.params)])
    found = [_renumbered(trial, numbers[place]) for place, trial in kept]
    folders = [
        (folder / str(trial.number), str(numbers[place][trial.number]))
        for place, trial in kept
        if (folder := views[place].folder) is not None and (folder / str(trial.number)).is_dir()
    ]
    equal = sum(map(len, ended)) - len(kept)
    kinds = {"equal trial": equal, "unfinished trial": unfinished}
    left = [count(n, kind) for kind, n in kinds.items() if n]
    return found, folders, f"; left out: {', '.join(left)}" if left else ""


def _is_ours(view: StudyView) -> bool:
    application = view.asked.get("application")
    return isinstance(application, Mapping) and application.get("name") == "sweepstack"


def _renumbered(trial: FrozenTrial, numbers: Mapping[int, int]) -> FrozenTrial:
    """A copy that names other trials by their new numbers."""
    new, known = copies.copy(trial), dict(trial.user_attrs)
    for key in _NUMBERS:
        if key in known and (number := numbers.get(known.pop(key))) is not None:
            known[key] = number
    new.user_attrs = known
    new.distributions = dict(trial.distributions)
    return new


def _unite(trials: Sequence[FrozenTrial]) -> None:
    """Give a parameter the same choices in all trials, as Optuna wants them.

    Raises:
        InputError: a parameter is of several kinds.
    """
    every: dict[str, list[BaseDistribution]] = {}
    for trial in trials:
        for name, distribution in trial.distributions.items():
            every.setdefault(name, []).append(distribution)
    for name, found in every.items():
        logs = {(type(d), getattr(d, "log", None)) for d in found}
        if len(logs) > 1:
            raise InputError(f"merge needs studies of the same question, {name} differs in kind")
        if isinstance(found[0], CategoricalDistribution):
            listed = [c for d in found if isinstance(d, CategoricalDistribution) for c in d.choices]
            united = CategoricalDistribution(tuple(dict.fromkeys(listed)))
            for trial in trials:
                if name in trial.distributions:
                    trial.distributions[name] = united
