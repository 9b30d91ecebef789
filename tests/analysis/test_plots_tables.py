"""Plots of what was swept: the heatmap, isolation, importance, slices, parallel, contour."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import optuna
import pytest
from optuna.trial import create_trial
from plots_support import SPACE, add, drawn, new, numbers, spent, trace

from sweepstack.analysis.plots import style, tables
from sweepstack.analysis.plots.parameters import smooth
from sweepstack.study.read import front


def grid(direction: str = "maximize") -> optuna.Study:
    """init x activation x two seeds; zeros with tanh failed, he with tanh has one seed."""
    study = new(direction)
    for i, init in enumerate(SPACE["init"].choices):
        for j, activation in enumerate(SPACE["model.activation"].choices):
            for seed in (0, 1):
                params = {"init": init, "model.activation": activation, "training.seed": seed}
                if (init, activation) == ("zeros", "tanh"):
                    add(study, None, params, "failed")
                elif (init, activation, seed) != ("he", "tanh", 1):
                    add(study, 0.5 + 0.1 * i + 0.01 * j + 0.02 * seed, params)
    return study


def test_the_heatmap_holds_mean_std_and_n_of_each_cell_and_a_failed_one_is_empty():
    plot = drawn(grid())["heatmap"]
    colours, *texts = plot.figure.data
    assert plot.title == "init × model.activation"
    assert plot.figure.layout.yaxis.ticktext == ("xavier", "he", "zeros")
    assert plot.figure.layout.xaxis.ticktext == ("relu", "tanh")
    assert plot.figure.layout.yaxis.range[0] > plot.figure.layout.yaxis.range[1]  # first on top
    assert numbers(colours.z[0]) == [0.51, 0.52]
    assert numbers(colours.z[1]) == [0.61, 0.61]
    assert numbers(colours.z[2][:1]) == [0.71]
    assert np.isnan(colours.z[2][1])
    assert colours.text[0][0] == "0.5100<br>± 0.0141<br>n=2"
    assert colours.text[1][1] == "0.6100<br>n=1"
    assert colours.text[2][1] == "n=0"
    written = {(x, y): text for t in texts for x, y, text in zip(t.x, t.y, t.text, strict=True)}
    assert written == {(x, y): colours.text[y][x] for x in (0, 1) for y in (0, 1, 2)}
    on_dark, on_bright, on_none = texts
    assert (0, 0) in set(zip(on_dark.x, on_dark.y, strict=True))
    assert (0, 2) in set(zip(on_bright.x, on_bright.y, strict=True))
    assert list(zip(on_none.x, on_none.y, strict=True)) == [(1, 2)]
    assert on_none.textfont.color is None


def test_brighter_is_better_whatever_the_direction():
    up, down = (drawn(grid(way))["heatmap"].figure.data for way in ("maximize", "minimize"))
    assert up[0].colorscale[-1][1] == down[0].colorscale[0][1]
    # The lowest mean is the darkest where more is better, and the brightest where less is.
    assert 0 in up[1].y
    assert 0 in down[2].y


@pytest.mark.parametrize("minimized", [False, True])
def test_numbers_can_be_read_on_every_colour(minimized):
    tones = np.linspace(0, 1, 401)[None]
    names = style.scale(SimpleNamespace(minimized=minimized))
    places = np.linspace(0, 1, len(names))
    parts = np.array([[int(name[i : i + 2], 16) for i in (1, 3, 5)] for name in names]) / 255

    def light(rgb):
        linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
        return linear @ [0.2126, 0.7152, 0.0722] + 0.05

    for found in tables._texts([[""] * 401], 1 - tones if minimized else tones):
        if found.textfont.color:  # else there is no colour, but the page
            at = tones[0, list(found.x)]
            ground = light(np.stack([np.interp(at, places, part) for part in parts.T], 1))
            text = light(np.full(3, float(found.textfont.color == "#ffffff")))
            ratio = np.maximum(ground, text) / np.minimum(ground, text)
            assert ratio.min() >= 4.5


def test_with_more_keys_there_is_a_menu_of_pairs_and_the_others_are_averaged():
    study = new()
    for params in spent(40):
        add(study, {"sgd": 0.1, "adam": 0.9}[params["optimizer"]], params)
    plot = drawn(study)["heatmap"]
    buttons = plot.figure.layout.updatemenus[0].buttons
    assert len(buttons) == 3
    assert "optimizer" in buttons[0].label  # it matters, so that it comes first
    assert "averaged" in plot.says
    for index, button in enumerate(buttons):
        assert [place for place, on in enumerate(button.args[0]["visible"]) if on] == [
            *range(4 * index, 4 * index + 4)
        ]


def test_isolation_has_the_best_and_the_median_of_configurations_averaged_over_seeds():
    plot = drawn(grid())["isolation"]
    rows = plot.figure.layout.yaxis.ticktext
    best, median = trace(plot, "best"), trace(plot, "median")
    found = {
        rows[y]: (value, middle, n)
        for y, value, middle, n in zip(
            best.y, numbers(best.x), numbers(median.x), best.customdata, strict=True
        )
    }
    assert found == {
        "xavier (n=2)": (0.52, 0.515, 2),
        "he (n=2)": (0.61, 0.61, 2),
        "zeros (n=1)": (0.71, 0.71, 1),
        "relu (n=3)": (0.71, 0.61, 3),
        "tanh (n=2)": (0.61, 0.565, 2),
    }
    assert {"<b>init</b>", "<b>model.activation</b>"} < set(rows)
    assert "of 5, each the mean over its seeds" in plot.says


def test_isolation_of_a_loss_takes_the_least_and_cuts_ranges_into_parts():
    study = new("minimize", "val_loss")
    for params in spent(60):
        add(study, params["optimizer.lr"], {k: params[k] for k in ("optimizer.lr", "init")})
    plot = drawn(study)["isolation"]
    rows = plot.figure.layout.yaxis.ticktext
    lr = list(rows).index("<b>optimizer.lr</b>")
    best = dict(zip(trace(plot, "best").y, numbers(trace(plot, "best").x, 6), strict=True))
    lows = [best[y] for y in range(lr + 1, lr + 7)]
    assert lows == sorted(lows)
    first = [params["optimizer.lr"] for params in spent(60) if params["init"] == "xavier"]
    assert best[list(rows).index(f"xavier (n={len(first)})")] == round(min(first), 6)
    assert rows[lr + 1] == "0.00015 to 0.00063 (n=9)"
    counts = [int(row.split("n=")[1][:-1]) for row in rows[lr + 1 : lr + 7]]
    assert sum(counts) == 60


def test_importance_finds_what_decides_and_shows_the_seed_beside_it():
    study = new()
    for index, params in enumerate(spent(100)):
        quality = 1 - abs(np.log10(params["optimizer.lr"]) + 2) / 4
        add(study, quality, params | {"training.seed": index % 10})
    plot = drawn(study)["importance"]
    [bars] = plot.figure.data
    assert bars.y[-1] == "optimizer.lr"
    assert bars.x[-1] > 0.8
    assert float(np.sum(bars.x)) == pytest.approx(1, abs=1e-5)
    seed = list(bars.y).index("training.seed")
    assert bars.marker.color[seed] != bars.marker.color[-1]
    assert "best 10% of 100" in plot.says


def test_importance_takes_conditional_and_split_keys_as_one():
    space = {"kind": "float", "low": 1e-4, "high": 1.0, "log": True, "key": "optimizer.lr"}
    study = new()
    study.set_user_attr(
        "sweepstack.identity",
        {
            "objectives": ["val_accuracy"],
            "space": {
                "optimizer": {"key": "optimizer", "kind": "choice", "choices": ["sgd", "adam"]},
                "optimizer.lr[optimizer=sgd]": space,
                "optimizer.lr[optimizer=adam]": space,
                "momentum": {"kind": "float", "low": 0.0, "high": 0.5, "key": "momentum"},
            },
        },
    )
    for params in spent(80):
        kind, lr = params["optimizer"], params["optimizer.lr"]
        own = {"optimizer": kind, f"optimizer.lr[optimizer={kind}]": lr}
        if kind == "sgd":
            own["momentum"] = params["regularization.dropout"]
        known = [SPACE["optimizer"], SPACE["optimizer.lr"], SPACE["regularization.dropout"]]
        distributions = dict(zip(own, known, strict=False))
        value = 1 - abs(np.log10(lr) + 2) / 4
        study.add_trial(create_trial(value=value, params=own, distributions=distributions))
    [bars] = drawn(study)["importance"].figure.data
    assert set(bars.y) == {"optimizer", "optimizer.lr", "momentum"}
    assert bars.y[-1] == "optimizer.lr"


@pytest.mark.parametrize("count", [9, 10])
def test_importance_needs_ten_trials(count):
    study = new()
    for index, params in enumerate(spent(count)):
        add(study, index / 10, params)
    assert ("importance" in drawn(study)) == (count == 10)


def test_slices_have_a_panel_per_key_with_log_axes_and_the_best_marked():
    study = new()
    for index, params in enumerate(spent(30)):
        add(study, index / 30, {k: params[k] for k in ("optimizer.lr", "init")})
    add(study, None, {"optimizer.lr": 0.5, "init": "he"}, "failed")
    plot = drawn(study)["slices"]
    layout = plot.figure.layout
    places = {layout.xaxis.title.text: layout.xaxis, layout.xaxis2.title.text: layout.xaxis2}
    assert places["optimizer.lr"].type == "log"
    assert places["init"].ticktext == ("xavier", "he", "zeros")
    assert numbers(trace(plot, "best").y) == [round(29 / 30, 4)]
    assert list(trace(plot, "best").customdata) == [29]
    assert numbers(trace(plot, "failed").y) == [0.0]  # at the worst
    lr = 0 if layout.xaxis.title.text == "optimizer.lr" else 1
    complete = trace(plot, "complete", lr)
    assert numbers(complete.y) == [round(index / 30, 4) for index in range(29)]
    expected = [params["optimizer.lr"] for params in spent(30)][:29]
    assert np.allclose(complete.x, expected, rtol=1e-6)


def test_parallel_coordinates_have_a_line_per_trial_in_groups_by_the_objective():
    study = new("minimize", "val_loss")
    for index, params in enumerate(spent(40)):
        add(study, index / 10, {k: params[k] for k in ("optimizer.lr", "init")})
    plot = drawn(study)["parallel"]
    groups = {found.name: found for found in plot.figure.data}
    sizes = {name: len(set(found.customdata)) for name, found in groups.items()}
    assert sizes == {"best 10%": 4, "to 25%": 6, "to 50%": 10, "worst 50%": 20}
    assert set(groups["best 10%"].customdata) == {0, 1, 2, 3}
    rows = list(plot.figure.layout.yaxis.ticktext)
    assert set(rows) == {"optimizer.lr", "init", "val_loss"}
    assert rows[-1] == "val_loss"
    texts = [mark.text for mark in plot.figure.layout.annotations]
    assert {"xavier", "he", "zeros", "0", "3.9"} <= set(texts)
    x, y = groups["best 10%"].x, groups["best 10%"].y
    assert np.isnan(x[3])
    assert numbers(y[:3]) == [0, 1, 2]
    assert np.nanmin(x) >= -0.04
    assert np.nanmax(x) <= 1.04


def test_a_contour_is_smooth_log_where_drawn_log_and_empty_far_from_trials():
    study = new()
    for params in spent(60):
        value = 1 - (np.log10(params["optimizer.lr"]) + 2) ** 2 / 4
        keys = ("optimizer.lr", "regularization.dropout")
        add(study, float(value), {key: params[key] for key in keys})
    plot = drawn(study)["contour"]
    surface, dots = plot.figure.data
    names = {axis.title.text.replace("<br>", ""): axis for axis in plot.figure.select_xaxes()}
    names |= {axis.title.text.replace("<br>", ""): axis for axis in plot.figure.select_yaxes()}
    assert names["optimizer.lr"].type == "log"
    assert names["regularization.dropout"].type == "linear"
    assert len(dots.x) == 60
    z = np.asarray(surface.z)
    lr, means = (
        (np.asarray(surface.x), np.nanmean(z, 0))
        if plot.figure.layout.xaxis.type == "log"
        else (np.asarray(surface.y), np.nanmean(z, 1))
    )
    assert 1e-3 < lr[np.nanargmax(means)] < 1e-1


def test_smoothing_reproduces_a_constant_and_leaves_out_what_is_far():
    points = np.array([[0.0, 0.0], [0.1, 0.0], [0.0, 0.1]])
    found = smooth(points, np.full(3, 7.0))
    assert found[0, 0] == pytest.approx(7)
    assert np.isnan(found[-1, -1])
    sides = smooth(np.array([[0.0, 0.5], [1.0, 0.5]]), np.array([0.0, 1.0]), side=3)
    assert sides[1, 0] < 0.1 < 0.9 < sides[1, 2]


def test_several_objectives_have_a_front_and_the_first_is_shown_elsewhere():
    study = optuna.create_study(directions=["maximize", "minimize"], study_name="two")
    values = [(0.1, 1.0), (0.9, 2.0), (0.5, 3.0), (0.9, 2.5), (0.1, 1.0)]
    for index, pair in enumerate(values):
        params = {"optimizer.lr": 10.0**-index, "regularization.dropout": index / 10}
        known = {name: SPACE[name] for name in params}
        study.add_trial(create_trial(values=pair, params=params, distributions=known))
    found = drawn(study)
    best, others = trace(found["pareto"], "front"), trace(found["pareto"], "other trials")
    assert sorted(best.customdata) == [0, 1, 4]
    assert sorted(others.customdata) == [2, 3]
    assert "3 of 5 trials" in found["pareto"].says
    assert not {"optimization", "intermediate"} & set(found)
    assert "first objective, value_0" in found["slices"].says


def test_a_front_is_what_no_other_beats():
    random = np.random.default_rng(0)
    losses = random.integers(0, 6, (60, 3)).astype("float64")
    expected = [
        not any((other <= row).all() and (other < row).any() for other in losses) for row in losses
    ]
    assert front(losses).tolist() == expected
