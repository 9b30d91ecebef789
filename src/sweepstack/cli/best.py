"""`sweepstack-study best STUDY`: what won, and with `--retrain` what of its value was luck.

`--retrain` trains the winner with fresh seeds: a sweep over seeds with a study of its own,
STUDY-retrain-HASH; the hash is of the winner's config, the overrides and the number of seeds, so
that the same command resumes it and any other makes another. The winner's config is an experiment
in outputs/winners, made of what the study keeps as `rerun` does: nothing of it is trusted.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from rich.console import Console

from sweepstack.analysis.terminal import number
from sweepstack.config import commands, errors
from sweepstack.config.errors import InputError, one_line
from sweepstack.reporting import comparison
from sweepstack.runs import progress
from sweepstack.study.view import StudyView, open_study, outputs

WINNER = Path("experiment/winner.yaml")
"""Where `--config-dir` finds a winner."""
WINNERS = Path("outputs/winners")
SEEDS, MAX_SEEDS = 5, 1000
"""How many fresh seeds are trained unless `seeds=N` says so, and at most."""
_SAFE = (("training", "checkpoint_every"), ("training", "width"), ("data", "download"))
"""Keys that `restore` sets for its own purposes; a sweep has its own."""


def winner(view: StudyView, folder: Path | None, console: Console | None = None) -> int:
    """Say which configuration is the best, with the numbers and the model of its best trial, and
    write it as an experiment that `sweepstack --config-dir FOLDER +experiment=winner` runs.

    Raises:
        InputError: several objectives, no complete trial, a study of another program, or a folder
            that has a winner.
    """
    chosen = best_number(view)
    text, trusted = ("", []) if folder is None else _written(view, chosen, folder)
    console = console or progress.console()
    progress.say(comparison.summary(view), console)
    best = view.configurations.iloc[0]
    for key in view.settings:
        if best[key] == best[key]:
            progress.say(f"  {key}={one_line(best[key])}", console)
    progress.say(_numbers(view, chosen), console)
    model = None if view.folder is None else view.folder / str(chosen) / "best.pt"
    if model is not None and model.is_file():
        progress.say(f"model: {progress.shown(model)}", console)
    if folder is None:
        return 0
    place = folder / WINNER
    place.parent.mkdir(parents=True, exist_ok=True)
    errors.write_bytes(place, text.encode())
    progress.say(f"config: {progress.shown(place)}", console)
    words = [f"trust=[{','.join(trusted)}]"] if trusted else []
    command = commands.shell("sweepstack", "--config-dir", folder, "+experiment=winner", *words)
    progress.say(f"next: {command}", console)
    return 0


def _numbers(view: StudyView, chosen: int) -> str:
    """The metrics of a trial, the objective first."""
    (row,) = view.frame[view.frame["number"] == chosen].to_dict("records")
    names = [name for name in row if str(name).startswith(("val_", "test_"))]
    found = {name: row[name] for name in dict.fromkeys([view.objective, *names])}
    texts = [f"{n} {number(x)}" for n, x in found.items() if isinstance(x, float) and x == x]
    return f"trial {chosen}: {', '.join(texts)}"


def _written(view: StudyView, chosen: int, folder: Path) -> tuple[str, list[str]]:
    """The winner's file, and the packages that it needs trust for; see `winner`."""
    if (folder / WINNER).exists():
        raise InputError(f"{progress.shown(folder / WINNER)} exists: name another folder")
    from sweepstack.runs.rerun.restore import kept_config, refuse_others

    kept = kept_config(view, view.trials[chosen])
    if kept is None:
        refuse_others(view, "best -o writes only configs of sweepstack", chosen)
        raise InputError(
            f"trial {chosen} of study {view.name} has no config.yaml here that can be read"
        )
    # Packages are trusted by what the user types, and loggers are the sweep's.
    trusted, _ = kept.pop("trust"), kept.pop("logger")
    return experiment(kept, view, chosen), list(trusted)


def best_number(view: StudyView) -> int:
    """The best trial of the best configuration; InputError where there is none."""
    if not view.has_one_objective:
        raise InputError(f"best needs a study with one objective, got {', '.join(view.objectives)}")
    if view.good.empty:
        raise InputError(f"study {view.name} has no complete trial")
    return view.winner


def experiment(kept: Mapping[str, Any], view: StudyView, number: int) -> str:
    """The whole config of a trial as a file that is composed on top of the defaults."""
    from sweepstack.config import schema
    from sweepstack.runs.rerun.restore import as_typed

    groups = {
        group: str(node["name"])
        for group, node in kept.items()
        if group in schema.OPTIONS and isinstance(node, dict) and "name" in node
    }
    config = as_typed(dict(kept))
    defaults = [{f"override /{group}": name} for group, name in groups.items()]
    head = f"# @package _global_\n# Trial {number} of study {one_line(view.name)}.\n"
    return head + yaml.safe_dump({"defaults": defaults, **config}, sort_keys=False)


def luck(view: StudyView, fresh: Sequence[float], changes: Sequence[str]) -> Iterator[str]:
    """What was luck in the winner's value, as text.

    A mean of m seeds lies within t(0.975, n - 1) · s · √(1/m + 1/n) of the mean of n fresh seeds
    (the prediction interval of a normal distribution), s their sample standard deviation; two means
    of m and k seeds differ by no more than t · s · √(1/m + 1/k).

    Args:
        view: the sweep's study.
        fresh: the objective of the winner with fresh seeds (n,).
        changes: overrides of that training; empty where only the seeds differ.
    """
    values, sign = np.asarray(fresh, dtype="float64"), -1 if view.minimized else 1
    found, best = comparison.statistics(values, sign), view.configurations.iloc[0]
    before = sign * float(best[".score"])
    text = f"fresh seeds: {view.objective} {number(found.mean)}"
    if found.n < 2:
        yield f"{text}, n={found.n}; in the sweep it had {number(before)}; luck needs two seeds"
        return
    from scipy.stats import t

    std = float(values.std(ddof=1))
    unit = float(t.ppf(0.975, found.n - 1)) * std
    yield (
        f"{text} ± {number(std, found.mean)}, n={found.n}, 95 % interval of the mean "
        f"{number(found.low)} to {number(found.high)}"
    )
    gain, spread = sign * (before - found.mean), unit * math.sqrt(1 / best[".runs"] + 1 / found.n)
    ahead, seeds = number(gain, found.mean), f"(± {number(spread, found.mean)})"
    sweep = f"in the sweep it had {number(before)} (n={best['.runs']})"
    if changes:
        yield f"{sweep}: the difference is that of {', '.join(changes)} and of luck together"
    elif gain <= 0:
        yield f"{sweep}: that was no luck, fresh seeds are as good"
    elif gain <= spread:
        yield f"{sweep}, {ahead} better: luck, as much as seeds differ {seeds}"
    else:
        yield (
            f"{sweep}, {ahead} better, more than seeds differ {seeds}: the luckiest of "
            f"{len(view.configurations)} configurations"
        )
    if len(view.configurations) > 1:
        second = view.configurations.iloc[1]
        gap = float(best[".score"] - second[".score"])
        noise = unit * math.sqrt(1 / best[".runs"] + 1 / second[".runs"])
        said = "it could be as good" if gap <= noise else "that is more than luck"
        yield (
            f"second best in the sweep: trial {second['.numbers'][0]}, {number(gap, found.mean)} "
            f"behind, seeds differ by ± {number(noise, found.mean)}: {said}"
        )


def retrain(
    view: StudyView,
    seeds: int,
    words: Sequence[str],
    trust: Sequence[str] = (),
    folder: Path | None = None,
) -> int:
    """Say what won, train it with fresh seeds, and say what was luck in its value.

    Args:
        view: a study of sweepstack with one objective.
        seeds: how many.
        words: overrides on top of the winner's config.
        trust: packages that the config may name besides the closed table.
        folder: as for `winner`.

    Returns:
        The exit code, 0.

    Raises:
        InputError: there is no winner, another program trained it, or an override is wrong.
        EnvironmentFault, NothingCompleted, Stopped: as for any sweep.
    """
    from sweepstack.runs.rerun.restore import refuse_others, restore

    chosen = best_number(view)
    refuse_others(view, "best --retrain trains only what sweepstack trained", chosen)
    restored = restore(view, view.trials[chosen], words, trust)
    winner(view, folder)
    plain: dict[str, Any] = asdict(restored.config)
    for group, key in _SAFE:
        plain[group].pop(key, None)
    plain.pop("logger", None)
    text = experiment(plain, view, chosen)
    asked = hashlib.sha256("\n".join([text, str(seeds), *words]).encode()).hexdigest()[:8]
    name = f"{view.name[:150]}-retrain-{asked}"
    root = outputs(view.where).absolute().parent
    if root != Path.cwd():
        progress.say(f"working in {root}, where the study has its files")
    with contextlib.chdir(root):
        _sweep(view, name, text, seeds, words)
        fresh = open_study(name, view.where)
        for line in luck(view, list(fresh.good[fresh.objective]), words):
            progress.say(line)
    return 0


def _sweep(view: StudyView, name: str, text: str, seeds: int, words: Sequence[str]) -> None:
    """Train the experiment `text` with fresh seeds, as the study `name`."""
    from sweepstack.sweep.sweep import sweep
    from sweepstack.sweep.worker.training_app import TrainingApp

    place = WINNERS / name.replace("/", "-")
    file = place / "experiment" / "winner.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    errors.write_bytes(file, text.encode())
    url = view.where if "://" in view.where else f"journal:///{view.where}"
    node = {
        "study_name": name,
        "storage": url,
        "objectives": [view.objective],
        "directions": [view.direction],
        "keep_models": "all",
    }
    first = _first_seed(view)
    over = f"training.seed=range({first},{first + seeds})"
    sweep(node, ["+experiment=winner", over, "training.seeds=1", *words], TrainingApp(str(place)))


def read(given: Sequence[str]) -> tuple[int, list[str]]:
    """What follows `--retrain`: the number of seeds, and overrides.

    Raises:
        InputError: it is no number from 1 to `MAX_SEEDS`, or seeds are chosen otherwise.
    """
    seeds, words, mistakes = SEEDS, [], []
    for word in given:
        key, is_set, value = word.partition("=")
        path = key.lstrip("+~")
        if key == "seeds":
            if value.isdecimal() and 1 <= int(value) <= MAX_SEEDS:
                seeds = int(value)
            else:
                mistakes.append(f"seeds must be 1 to {MAX_SEEDS}, got {value or 'nothing'}")
        elif not is_set:
            mistakes.append(f"--retrain takes seeds=N and KEY=VALUE, got {word}")
        elif path in ("training.seed", "training.seeds"):
            mistakes.append(f"--retrain chooses fresh seeds itself: seeds=N, got {word}")
        elif path.partition(".")[0].partition("/")[0] == "hydra":
            mistakes.append(f"--retrain takes no settings of Hydra, got {word}")
        else:
            words.append(word)
    if mistakes:
        raise InputError(mistakes)
    paths = {word.partition("=")[0] for word in words}
    if "training.max_epochs" in paths and "training.max_steps" not in paths:
        words.append("training.max_steps=null")  # which would win
    return seeds, words


def _first_seed(view: StudyView) -> int:
    """A seed above all that the study has used."""
    fixed, several = view.config("training.seed"), view.config("training.seeds")
    used = [fixed] if isinstance(fixed, int) else [0]
    if "training.seed" in view.frame:
        tried = pd.to_numeric(view.frame["training.seed"], errors="coerce").dropna()
        used += [int(seed) for seed in tried]
    return max(used) + (several if isinstance(several, int) else 1)
