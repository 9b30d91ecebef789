"""What the tests of whole sweeps share: a question that takes milliseconds, and its study."""

from __future__ import annotations

import json
from pathlib import Path

import optuna

from sweepstack import storage

QUICK = (
    *("data=quadratic", "optimizer=sgd", "model.hidden=[4]", "training.device=cpu"),
    *("training.max_steps=8", "training.eval_every=4", "hydra.sweeper.study_name=s"),
)


def without(key: str) -> list[str]:
    """QUICK without what it says of a key."""
    return [word for word in QUICK if not word.startswith(f"{key}=")]


def study(folder: Path, name: str = "s") -> optuna.Study:
    url = f"sqlite:///{folder}/outputs/studies.db"
    return optuna.load_study(study_name=name, storage=storage.connect(url))


def states(folder: Path) -> list[str]:
    return [trial.state.name for trial in study(folder).trials]


def params(folder: Path, name: str = "optimizer.lr") -> list[object]:
    return [trial.params.get(name) for trial in study(folder).trials]


def trial_folder(folder: Path, number: int) -> Path:
    return folder / "outputs" / "studies" / "s" / str(number)


def metrics(folder: Path, number: int) -> dict[str, object]:
    return json.loads((trial_folder(folder, number) / "metrics.json").read_text())
