"""Studies and plots for the tests of the report."""

from __future__ import annotations

import base64
import gzip
import json
import re
from datetime import datetime, timedelta
from types import SimpleNamespace
from typing import Any

import optuna
import plotly.graph_objects as go
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState, create_trial

from sweepstack.study.view import StudyView

GRID = {
    "init": ("he", "xavier"),
    "model.activation": ("relu", "tanh"),
    "model.hidden": ("[100]", "[50,50]"),
    "batch.size": (64, 128),
    "optimizer": ("adam", "sgd"),
    "optimizer.lr": (0.1, 0.01),
    "optimizer.momentum": (0.0, 0.9),
    "optimizer.nesterov": (False, True),
}
HOSTILE = (
    "</script><img src=x onerror=window.hacked=1><!--\u2028\"'><script>window.hacked=1</script>"
)
BEGIN = datetime(2026, 11, 22, 4, 23)


def new(name: str = "study", directions: tuple[str, ...] = ("maximize",)) -> optuna.Study:
    return optuna.create_study(study_name=name, directions=list(directions))


def opened(study: optuna.Study) -> StudyView:
    return StudyView(study, "sqlite:///outputs/studies.db")


def grid(count: int = 12, name: str = "grid") -> StudyView:
    """Trials of init x activation, three seeds each, that end one minute after another."""
    study = new(name)
    study.set_user_attr("sweepstack.identity", {"objectives": ["val_accuracy"]})
    asked = {
        "arguments": ["+sweeps=init_activation_grid", "data.root=/a b"],
        "application": {"name": "sweepstack", "config_dir": None, "config_name": "config"},
        "sampler": {"name": "tpe", "seed": 0},
        "pruner": {"name": "none"},
    }
    study.set_user_attr("sweepstack.sweep", asked)
    found = {"versions": {"python": "3.11.7", "torch": "2.15.0"}, "git": None}
    study.set_user_attr("sweepstack.environment.b5b597f0", found)
    inits, activations = (
        CategoricalDistribution(["he", "xavier"]),
        CategoricalDistribution(["relu", "tanh"]),
    )
    distributions = {"init": inits, "model.activation": activations}
    distributions["training.seed"] = IntDistribution(0, 10**6)
    for index in range(count):
        cell = index % 4
        labels = {
            "init": inits.choices[cell // 2],
            "model.activation": activations.choices[cell % 2],
        }
        begin = BEGIN + timedelta(minutes=index)
        trial = create_trial(
            value=0.5 + 0.1 * cell + 0.01 * (index // 4),
            params={**labels, "training.seed": index // 4},
            distributions=distributions,
            user_attrs={"test_accuracy": 0.4, "seconds": 1.5, "device": "cpu"},
        )
        trial.datetime_start, trial.datetime_complete = begin, begin + timedelta(seconds=30)
        study.add_trial(trial)
    return opened(study)


def published_grid(count: int) -> StudyView:
    """Trials with the keys of the published table, and some attributes of real ones."""
    study = new("mlp_mnist_200_steps")
    study.set_user_attr("sweepstack.identity", {"objectives": ["val_accuracy"]})
    distributions = {key: CategoricalDistribution(labels) for key, labels in GRID.items()}
    trials = []
    for index in range(count):
        bits = [(index >> place) & 1 for place in range(len(GRID))]
        labels = {key: values[bit] for (key, values), bit in zip(GRID.items(), bits, strict=True)}
        trials.append(
            create_trial(
                value=0.9 - index / 1e6 / 7,
                params=labels,
                distributions=distributions,
                user_attrs={
                    "train_loss": index / 7,
                    "val_loss": index / 11,
                    "test_loss": index / 13,
                    "test_accuracy": 0.8 - index / 1e6 / 3,
                    "sweepstack.worker": f"host/{index % 2}",
                    "device": "cpu",
                },
            )
        )
    for trial in trials:
        trial.datetime_start = trial.datetime_complete = BEGIN
    study.add_trials(trials)
    return opened(study)


def hostile() -> StudyView:
    """A study whose every text is HTML, with names and labels that would end a script."""
    study = new(HOSTILE)
    study.set_user_attr("sweepstack.identity", {"objectives": [f"value {HOSTILE}"], "space": 3})
    study.set_user_attr(
        "sweepstack.sweep", {"arguments": [HOSTILE, 3], "application": {"name": HOSTILE}}
    )
    study.set_user_attr(
        "sweepstack.environment.0", {"versions": {HOSTILE: HOSTILE}, "git": HOSTILE}
    )
    labels = CategoricalDistribution([HOSTILE, None, True])
    for index, label in enumerate([HOSTILE, None, True, HOSTILE]):
        study.add_trial(
            create_trial(
                value=float("inf") if index == 3 else index,
                params={HOSTILE: label},
                distributions={HOSTILE: labels},
                user_attrs={
                    HOSTILE: HOSTILE,
                    "seconds": HOSTILE,
                    "test_accuracy": [HOSTILE],
                    "error": f"{index}{HOSTILE}",
                    "device": {"a": HOSTILE},
                },
            )
        )
    return opened(study)


def empty() -> StudyView:
    return opened(new("empty"))


def failed() -> StudyView:
    study = new("failed")
    for _ in range(3):
        state = TrialState.FAIL
        study.add_trial(create_trial(state=state, user_attrs={"error": "loss is nan <b>"}))
    return opened(study)


def several() -> StudyView:
    """Two objectives, of another program."""
    study = new("several", ("maximize", "minimize"))
    lr = FloatDistribution(1e-4, 1.0, log=True)
    for index in range(6):
        study.add_trial(
            create_trial(
                values=[index, abs(index - 3)],
                params={"lr": 10.0**-index if index < 4 else 1e-4},
                distributions={"lr": lr},
            )
        )
    return opened(study)


def plots(_: StudyView | None = None, hostile_text: str = "") -> list[Any]:
    """A plot with a legend and one with labels."""
    text = f"Made up {hostile_text}"
    line = go.Scatter(x=[1, 2, 3], y=[1, 3, 2], name=text)
    figures = {
        "history": go.Figure([line, line], layout={"title": text, "xaxis": {"title": text}}),
        "heatmap": go.Figure(go.Heatmap(z=[[1, 2], [3, 4]], x=[text, "b"], y=["c", "d"])),
    }
    return [
        SimpleNamespace(key=key, title=f"{key} {text}", says=text, figure=figure)
        for key, figure in figures.items()
    ]


def data_of(page: str, name: str) -> Any:
    """What is packed into a page under a name."""
    found = re.search(
        rf'<script type="application/octet-stream" id="{name}">([^<]*)</script>', page
    )
    assert found, name
    return json.loads(gzip.decompress(base64.b64decode(found[1])))
