"""Plots of studies of every kind: large, hostile, empty, failed, odd; light and narrow pages."""

from __future__ import annotations

import json
import math
import subprocess
import sys

import numpy as np
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState, create_trial
from plots_support import add, drawn, new, spent

HOSTILE = "<i>&lt;%{q}"


def large(count=4_000):
    """A study with every plot, of a kind that no one waits for: given to the storage at once."""
    study = new()
    random = np.random.default_rng(1)
    for index, params in enumerate(spent(count)):
        state = "failed" if index % 50 == 0 else "pruned" if index % 3 == 0 else "complete"
        value = float(random.uniform())
        add(
            study,
            value,
            params,
            state,
            time=(index, index + 1.5),
            reports={step: value * step for step in (1, 2)},
            steps=10,
            val_loss=value,
        )
    return study


@pytest.fixture(scope="module")
def large_study():
    return large()


@pytest.fixture(scope="module")
def every(large_study):
    return drawn(large_study)


def test_all_plots_are_there_in_reading_order(every):
    assert list(every) == [
        "heatmap",
        "optimization",
        "mean-curves",
        "learning-curves",
        "intermediate",
        "learning-rate",
        "importance",
        "isolation",
        "slices",
        "contour",
        "parallel",
        "timeline",
    ]


def test_a_large_study_is_thinned_to_what_a_page_can_hold_and_says_so(every):
    assert sum(len(plot.figure.to_json()) for plot in every.values()) < 1_500_000
    for plot in every.values():
        longest = max(len(found.x) for found in plot.figure.data if found.x is not None)
        assert longest < 12_000, plot.key
    points = every["optimization"].figure.data[0]
    complete = sum(index % 50 != 0 and index % 3 != 0 for index in range(4_000))
    assert len(points.x) == 2_000
    assert f"Drawn are 2,000 of {complete:,} trials" in every["optimization"].says
    best = max(every["optimization"].figure.data[1].y)
    assert best in points.y  # what matters most is among them
    assert sorted(points.customdata) == list(points.customdata)


def test_the_same_study_is_drawn_the_same_twice(large_study, every):
    again = drawn(large_study)
    assert [plot.key for plot in again.values()] == list(every)
    for key, plot in every.items():
        assert plot.figure.to_json() == again[key].figure.to_json()


def test_figures_take_any_width_and_leave_the_page_its_colours(every):
    for plot in every.values():
        layout = plot.figure.layout
        assert layout.width is None
        assert layout.autosize
        assert layout.paper_bgcolor == layout.plot_bgcolor == "rgba(0,0,0,0)"
        assert layout.font.color is None
        for axis in (*plot.figure.select_xaxes(), *plot.figure.select_yaxes()):
            assert axis.gridcolor is None
            assert axis.automargin or axis.visible is False
        assert layout.legend.orientation == "h"
        assert plot.title
        assert plot.says.endswith(".")


def texts(value):
    """All strings of a figure but keys."""
    if isinstance(value, dict):
        for inner in value.values():
            yield from texts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from texts(inner)
    elif isinstance(value, str):
        yield value


def test_texts_of_a_study_are_no_markup():
    study = new("minimize", HOSTILE)
    known = {
        HOSTILE: CategoricalDistribution([HOSTILE, "b"]),
        f"{HOSTILE}.lr": FloatDistribution(1e-3, 1.0, log=True),
        "optimizer": CategoricalDistribution([HOSTILE, "c"]),
        "x": FloatDistribution(0, 1),
    }
    for index in range(40):
        params = {
            HOSTILE: known[HOSTILE].choices[index % 2],
            f"{HOSTILE}.lr": 10 ** (-3 * index / 40),
            "optimizer": known["optimizer"].choices[index // 2 % 2],
            "x": index / 40,
        }
        reports = {0: 1.0, 1: float(index)}
        trial = create_trial(
            value=float(index),
            params=params,
            distributions=known,
            intermediate_values=reports,
            user_attrs={"sweepstack.worker": HOSTILE, "error": HOSTILE},
        )
        study.add_trial(trial)
    found = drawn(study)
    assert {"heatmap", "learning-rate", "isolation", "contour", "parallel"} < set(found)
    for plot in found.values():
        for text in texts(json.loads(plot.figure.to_json())):
            assert "<i>" not in text
            assert "%{q}" not in text
        assert not set(plot.says + plot.title) & set('<>&"')
    assert found["heatmap"].figure.layout.xaxis.ticktext[0] == "&lt;i&gt;&amp;lt;%&#123;q}"


def failed():
    study = new()
    for params in spent(12):
        add(study, None, params, "failed")
    return study


def single():
    study = new()
    add(study, 0.5, spent(1)[0], time=(0, 1))
    return study


def constant():
    study = new()
    for _ in range(30):
        add(study, 0.5, spent(1)[0], time=(0, 1))
    return study


def infinite():
    study = new()
    values = [math.inf, -math.inf, 1e308, -1e308, 0.0, 1.0]
    for index, params in enumerate(spent(60)):
        add(study, values[index % 6], params, reports={0: values[index % 6], 3: math.nan})
    return study


def odd():
    known = {
        "k": CategoricalDistribution([None, True, False, 1.5, "text"]),
        "inf": CategoricalDistribution([math.inf, -math.inf, "z"]),
        "n": IntDistribution(0, 10**12),
        "c": CategoricalDistribution([1]),
        "many": CategoricalDistribution([str(index) for index in range(40)]),
    }
    study = new("minimize", "value")
    for index in range(60):
        params = {
            "k": known["k"].choices[index % 5],
            "inf": known["inf"].choices[index % 3],
            "n": index * 10**10,
            "c": 1,
            "many": str(index % 40),
        }
        attributes = {"steps": "many", "val_loss": "x", "worker": 3, "equals": [1], "seeds": {}}
        trial = create_trial(
            value=float(index), params=params, distributions=known, user_attrs=attributes
        )
        study.add_trial(trial)
    return study


def running():
    study = new()
    study.enqueue_trial({"init": "he"})
    study.ask()
    study.ask()
    return study


def moving():
    """Another range in every trial, as Optuna allows."""
    study = new("minimize", "value")
    for index in range(30):
        study.add_trial(
            create_trial(
                value=float(index),
                params={"x": index / 30, "y": 0.5},
                distributions={
                    "x": FloatDistribution(index / 60, 1 + index),
                    "y": FloatDistribution(0, 1 + index),
                },
            )
        )
    return study


@pytest.mark.parametrize(
    ("study", "expected"),
    [
        (new, set()),
        (failed, {"timeline"}),
        (single, {"optimization", "timeline"}),
        (constant, {"optimization", "timeline"}),
        (infinite, {"heatmap", "optimization", "intermediate", "slices", "isolation", "parallel"}),
        (odd, {"heatmap", "optimization", "slices", "isolation", "parallel", "importance"}),
        (running, set()),
        (moving, {"optimization", "slices"}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_any_study_is_drawn_as_far_as_it_goes(study, expected):
    found = drawn(study())
    if study in (new, failed, single, constant, running):
        assert set(found) - {"timeline"} == expected - {"timeline"}
    assert expected - {"timeline"} <= set(found)
    for plot in found.values():
        for value in texts(json.loads(plot.figure.to_json())):
            assert value != "Infinity"
    if study is odd:
        labels = found["slices"].figure.layout
        ticks = [axis.ticktext for axis in found["slices"].figure.select_xaxes() if axis.ticktext]
        assert ("null", "true", "false", "1.5", "text") in ticks, labels


def test_plotly_is_loaded_when_plots_are_drawn_and_not_before():
    code = "import sys; import sweepstack.analysis.plots; print('plotly' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"


def test_a_trial_that_another_replaced_is_in_no_plot():
    study = new()
    add(study, None, {"init": "he"}, "failed", time=(0, 1), sweepstack_retried=True)
    add(study, 0.5, {"init": "he"}, time=(1, 2))
    names = [found.name for found in drawn(study)["timeline"].figure.data]
    assert names == ["complete (1)"]
    assert TrialState.FAIL in [trial.state for trial in study.get_trials(deepcopy=False)]


@pytest.mark.parametrize(
    ("trials", "absent"),
    [
        (
            [{"value": 0.8, "params": {"init": "he"}, "reports": {1: 0.1, 2: 0.8}}],
            ("tick", "band", "±", "pruned", "trials", "dotted", "important"),
        ),
        (
            [
                {"value": i / 9, "params": {"init": name}, "reports": {1: 0.1, 2: 0.8}}
                for i, name in enumerate(("he", "xavier"))
            ],
            ("tick", "band", "±", "pruned", "failed", "important", "each key"),
        ),
        (
            [{"state": "failed", "params": {"init": "he"}}] * 3,
            ("complete", "pruned", "best", "1 of 1"),
        ),
    ],
    ids=["one trial", "one key and one seed", "all failed"],
)
def test_captions_promise_nothing_that_a_plot_lacks(trials, absent):
    study = new()
    for index, trial in enumerate(trials):
        add(study, time=(index, index + 2), **trial)
    found = drawn(study)
    assert found
    for key, plot in found.items():
        for word in absent:
            assert word not in plot.says, (key, plot.says)
