"""A study as a notebook has it: frames, tables, figures, and what it shows of itself."""

from __future__ import annotations

import optuna
import pandas as pd
import pytest
from plots_support import add, new

import sweepstack
from sweepstack.config.errors import InputError
from sweepstack.reporting.notebook import Study
from sweepstack.study.view import StudyView, joined


@pytest.fixture
def study():
    found = new()
    for place, init in enumerate(("xavier", "he")):
        for activation in ("relu", "tanh"):
            for seed in (0, 1):
                value = 0.5 + place / 10 + seed / 50
                params = {"init": init, "model.activation": activation, "training.seed": seed}
                add(found, value, params, reports={1: value / 2, 2: value})
    add(found, None, {"init": "he"}, state="failed")
    return Study(StudyView(found, "memory"))


def test_it_has_trials_history_best_and_pivots(study):
    assert len(study.trials) == 9
    assert set(study.history["step"]) == {1, 2}
    best = study.best.iloc[0]
    assert (best["init"], best["n"], best["trials"]) == ("he", 2, [4, 5])
    assert best["val_accuracy"] == pytest.approx(0.61)
    means = study.pivot("init", "model.activation")["mean"]
    assert means.loc["xavier", "tanh"] == pytest.approx(0.51)


def test_it_shows_itself_in_a_notebook_harmlessly(study):
    assert repr(study) == (
        "Study('made-up': 8 complete, 1 failed; best val_accuracy 0.62 (trial 5))"
    )
    shown = study._repr_html_()
    assert "<table" in shown
    assert "&#x27;made-up&#x27;" in shown
    hostile = new()
    add(hostile, 1.0)
    view = StudyView(hostile, "memory")
    page = Study(view)
    page.name = "<script>"
    assert "<script>" not in page._repr_html_()


def test_its_plots_are_figures_and_say_what_is_wrong(study):
    named = study.plot.curves(by=["init", "model.activation"])
    assert {found.name for found in named.data if found.showlegend is not False} == {
        "xavier (n=2)",
        "he (n=2)",
    }
    by_one = study.plot.curves(by="init")
    assert by_one.layout.title.text == "Mean curves by init"
    for figure in (study.plot.curves(), study.plot.heatmap(), study.plot.optimization()):
        assert figure.layout.title.text
        assert len(figure.data)
    with pytest.raises(InputError, match="no key 'inti' was swept; did you mean 'init'"):
        study.plot.heatmap(by=["inti", "model.activation"])
    said = "metric must be among val_accuracy, got 'val_acuracy'; did you mean 'val_accuracy'"
    with pytest.raises(InputError, match=said):
        study.plot.curves(by="init", metric="val_acuracy")
    with pytest.raises(InputError, match="too little for this plot"):
        study.plot.pareto()


def test_several_studies_are_one_frame(study):
    other = new()
    add(other, 0.9, {"optimizer": "sgd"})
    other_view = StudyView(other, "memory")
    view = study._view
    with pytest.raises(InputError, match="named once each, got made-up, made-up"):
        joined([view, other_view])
    renamed = StudyView(other, "memory")
    object.__setattr__(renamed, "study", _Renamed(other))
    frame = joined([view, renamed])
    assert frame["study"].value_counts().to_dict() == {"made-up": 9, "other": 1}
    assert frame.columns[0] == "study"
    assert pd.isna(frame.iloc[-1]["init"])
    assert frame.attrs["objectives"] == {"val_accuracy": "maximize"}


class _Renamed:
    """A study by another name."""

    study_name = "other"

    def __init__(self, study):
        self._study = study

    def __getattr__(self, name):
        return getattr(self._study, name)


def test_the_function_and_the_package_of_its_name_are_the_same_thing(tmp_path):
    """Importing the package sets its name above it, where the function stood."""
    place = f"sqlite:///{tmp_path}/x.db"
    optuna.create_study(study_name="mine", storage=place)
    assert sweepstack.study("mine", place).name == "mine"
    assert sweepstack.study.view is not None
    assert sweepstack.study("mine", storage=place).name == "mine"
