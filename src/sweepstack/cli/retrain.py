"""`sweepstack-study best STUDY --retrain`: the winner trained with fresh seeds, and what was luck.

It is a sweep over seeds with a study of its own, STUDY-retrain-HASH; the hash is of the winner's
config, the overrides and the number of seeds, so that the same command resumes it and any other
makes another. The winner's config is an experiment in outputs/winners, made of what the study keeps
as `rerun` does: nothing of it is trusted.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd

from sweepstack.config import errors
from sweepstack.config.errors import InputError
from sweepstack.reporting import comparison
from sweepstack.runs.progress import say
from sweepstack.runs.rerun.restore import refuse_others, restore
from sweepstack.study.view import StudyView, open_study, outputs
from sweepstack.sweep.sweep import sweep
from sweepstack.sweep.worker.trainer import TrainingApp

WINNERS = Path("outputs/winners")
SEEDS, MAX_SEEDS = 5, 1000
"""How many fresh seeds are trained unless `seeds=N` says so, and at most."""
_SAFE = (("training", "checkpoint_every"), ("training", "width"), ("data", "download"))
"""Keys that `restore` sets for its own purposes; a sweep has its own."""


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
        folder: as for `comparison.winner`.

    Returns:
        The exit code, 0.

    Raises:
        InputError: there is no winner, another program trained it, or an override is wrong.
        EnvironmentFault, NothingCompleted, Stopped: as for any sweep.
    """
    number = comparison.best_number(view)
    refuse_others(view, "best --retrain trains only what sweepstack trained", number)
    restored = restore(view, view.trials[number], words, trust)
    comparison.winner(view, folder)
    plain: dict[str, Any] = asdict(restored.config)
    for group, key in _SAFE:
        plain[group].pop(key, None)
    plain.pop("logger", None)
    text = comparison.experiment(plain, view, number)
    asked = hashlib.sha256("\n".join([text, str(seeds), *words]).encode()).hexdigest()[:8]
    name = f"{view.name[:150]}-retrain-{asked}"
    root = outputs(view.where).absolute().parent
    if root != Path.cwd():
        say(f"working in {root}, where the study has its files")
    with contextlib.chdir(root):
        _sweep(view, name, text, seeds, words)
        fresh = open_study(name, view.where)
        for line in comparison.luck(view, list(fresh.good[fresh.objective]), words):
            say(line)
    return 0


def _sweep(view: StudyView, name: str, text: str, seeds: int, words: Sequence[str]) -> None:
    """Train the experiment `text` with fresh seeds, as the study `name`."""
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
