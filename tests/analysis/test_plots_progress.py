"""Plots of how a study went: history, curves, pruning, timeline, learning rate."""

from __future__ import annotations

import numpy as np
from plots_support import add, drawn, new, numbers, spent, trace

from sweepstack.analysis.plots import plots
from sweepstack.study.view import StudyView


def slow_and_fast(direction="maximize"):
    """Four trials; the second is the last to end, one is pruned, one equals another."""
    study = new(direction)
    add(study, 0.5, time=(0, 10), steps=100)
    add(study, 0.9, time=(0, 40), steps=300)
    add(study, None, state="pruned", time=(10, 15), steps=50)
    add(study, 0.7, time=(15, 30), steps=150)
    add(study, 0.7, time=(30, 31), steps=150, equals=3)
    return study


def lines(plot):
    return [found for found in plot.figure.data if found.name == "best so far"]


def test_best_so_far_is_against_trials_steps_and_seconds_in_the_order_of_their_ends():
    plot = drawn(slow_and_fast())["optimization"]
    trials, steps, seconds = lines(plot)
    assert (numbers(trials.x), numbers(trials.y)) == ([0, 1, 4], [0.5, 0.9, 0.9])
    # Ended at 10, 15 (pruned), 30, 31 (of an equal trial: no steps), 40.
    assert (numbers(steps.x), numbers(steps.y)) == ([100, 300, 600, 600], [0.5, 0.7, 0.9, 0.9])
    assert (numbers(seconds.x), numbers(seconds.y)) == ([10, 30, 40, 40], [0.5, 0.7, 0.9, 0.9])
    labels = [button.label for button in plot.figure.layout.updatemenus[0].buttons]
    assert labels == ["by trial", "by training steps", "by time"]
    titles = [b.args[1]["xaxis.title.text"] for b in plot.figure.layout.updatemenus[0].buttons]
    assert titles == ["trial", "training steps of all trials", "time since the start (s)"]
    assert numbers(trace(plot, "pruned (1)", 2).x) == [15]
    assert [found.visible for found in lines(plot)] == [True, False, False]


def test_best_so_far_of_a_loss_falls():
    plot = drawn(slow_and_fast("minimize"))["optimization"]
    assert numbers(lines(plot)[0].y) == [0.5, 0.5]
    assert "minimized" in plot.says


def test_what_breaks_a_constraint_is_never_the_best():
    study = new()
    for value, violation in ((0.5, -1.0), (0.9, 2.0), (0.6, -1.0)):
        trial = study.ask()
        trial.set_constraint("size", violation)
        study.tell(trial, value)
    assert numbers(lines(drawn(study)["optimization"])[0].y) == [0.5, 0.6, 0.6]


def test_a_pause_of_the_sweep_takes_no_time():
    study = new()
    add(study, 0.5, time=(0, 10))
    add(study, 0.6, time=(36_000, 36_010))
    found = drawn(study)
    assert numbers(lines(found["optimization"])[1].x) == [10, 20, 20]
    assert "1 pause of over a minute left out" in found["optimization"].says
    bars = trace(found["timeline"], "complete (2)")
    assert numbers(bars.base) == [0, 10]


def test_mean_curves_need_values_that_several_trials_share():
    study, reports = new(), {10: 0.5, 20: 0.6}
    for lr in (0.1, 0.2, 0.3):
        add(study, 0.6, {"optimizer.lr": lr}, reports=reports)
    assert "mean-curves" not in drawn(study)
    add(study, 0.6, {"optimizer.lr": 0.3}, reports=reports)
    assert "0.3 (n=2)" in {line.name for line in drawn(study)["mean-curves"].figure.data}


def test_the_timeline_has_a_bar_per_trial_by_worker_and_lanes_for_those_side_by_side():
    study = new()
    for worker, times in (("a", [(0, 4), (1, 3), (5, 6)]), ("b", [(0, 2)])):
        for time in times:
            add(study, 0.5, time=time, sweepstack_worker=f"host/4026:{worker}:7")
    add(study, None, state="failed", time=(2, 3), sweepstack_worker="host/4026:b:7")
    plot = drawn(study)["timeline"]
    complete, failed = trace(plot, "complete (4)"), trace(plot, "failed (1)")
    begins = dict(zip(complete.customdata, numbers(complete.base), strict=True))
    assert begins == {0: 0, 1: 1, 2: 5, 3: 0}
    at = dict(zip(complete.customdata, numbers(complete.y), strict=True))
    assert at == {0: 0, 1: 1, 2: 0, 3: 3}
    lengths = dict(zip(complete.customdata, numbers(complete.x), strict=True))
    assert lengths == {0: 4, 1: 2, 2: 1, 3: 2}
    assert numbers(failed.y) == [3]
    assert failed.marker.color != complete.marker.color
    assert plot.figure.layout.yaxis.ticktext == ("host a", "host b")


def pruned_study():
    study = new()
    for index in range(6):
        reports = {step: 0.5 + index / 100 + step / 1000 for step in (10, 20, 30)}
        add(study, reports[30], reports=reports)
    for index in range(30):
        end = 10 if index % 3 else 20
        reports = {step: 0.3 + index / 1000 for step in (10, 20) if step <= end}
        add(study, None, state="pruned", reports=reports)
    return study


def test_intermediate_values_mark_what_was_pruned_and_count_when():
    plot = drawn(pruned_study())["intermediate"]
    ends = trace(plot, "pruned", 1)
    assert ends.mode == "markers"
    assert len(ends.x) == 30
    assert dict(zip(ends.customdata, numbers(ends.x), strict=True))[6] == 20
    counts = trace(plot, "pruned here")
    assert dict(zip(numbers(counts.x), counts.y, strict=True)) == {10: 20, 20: 10}
    complete = trace(plot, "complete")
    assert numbers(complete.x[:3]) == [10, 20, 30]
    assert np.isnan(complete.x[3])
    assert "36 trials; 30 were pruned" in plot.says


def test_learning_curves_are_of_the_best_five_and_of_some_pruned_ones():
    plot = drawn(pruned_study())["learning-curves"]
    names = [found.name for found in plot.figure.data if found.name.startswith("trial")]
    assert names == ["trial 5", "trial 4", "trial 3", "trial 2", "trial 1"]
    ends = next(found for found in plot.figure.data if found.mode == "markers")
    assert len(ends.x) == 20
    assert set(numbers(ends.x)) == {10, 20}
    assert "20 of 30 pruned trials" in plot.says
    low, high = plot.figure.layout.yaxis.range
    assert 0.4 < low < 0.5 < 0.58 < high  # the best are not pressed together by the pruned


def test_learning_curves_show_training_beside_validation_as_means_over_seeds(tmp_path):
    study = new("minimize", "val_loss")
    study.set_user_attr("sweepstack.folder", "made-up")
    add(study, 0.3)
    header = ["seed", "step", "train_loss", "val_loss"]
    rows = [[0, 1, 0.5, 0.6], [0, 2, 0.3, 0.4], [1, 1, 0.7, 0.8], [1, 2, 0.1, 0.2]]
    folder = tmp_path / "studies" / "made-up" / "0"
    folder.mkdir(parents=True)
    text = "\n".join(",".join(map(str, row)) for row in [header, *rows])
    (folder / "history.csv").write_text(text)
    opened = StudyView(study, f"sqlite:///{tmp_path}/studies.db")
    [plot] = [plot for plot in plots(opened) if plot.key == "learning-curves"]
    assert plot.figure.layout.yaxis.title.text == "loss"  # of both
    validation, training = plot.figure.data
    assert numbers(validation.y) == [0.7, 0.3]
    assert numbers(training.y) == [0.6, 0.2]
    assert (validation.line.dash, training.line.dash) == ("solid", "dot")


def grid_study(objective="val_accuracy"):
    """Three inits times two activations times two seeds, three evaluations each."""
    study = new("minimize" if objective == "val_loss" else "maximize", objective)
    for place, init in enumerate(("xavier", "he", "zeros")):
        for activation in ("relu", "tanh"):
            for seed in (0, 1):
                reports = {step: place / 10 + seed / 50 + step / 100 for step in (10, 20, 30)}
                params = {"init": init, "model.activation": activation, "training.seed": seed}
                add(study, reports[30], params, reports=reports)
    return study


def test_mean_curves_have_a_line_and_a_band_for_each_value_and_a_menu_of_the_second_key():
    plot = drawn(grid_study())["mean-curves"]
    lines = [found for found in plot.figure.data if found.showlegend is not False]
    assert len(lines) == 6
    assert {found.name for found in lines} == {"xavier (n=2)", "he (n=2)", "zeros (n=2)"} or {
        found.name for found in lines
    } == {"relu (n=6)", "tanh (n=6)"}
    (he, *_) = [found for found in lines if found.name == "he (n=2)"]
    assert numbers(he.y) == [0.21, 0.31, 0.41]
    bands = [found for found in plot.figure.data if found.fill == "tonexty"]
    std = 0.02 / 2**0.5
    assert any(numbers(found.y, 3) == [round(y + std, 3) for y in numbers(he.y)] for found in bands)
    (menu,) = plot.figure.layout.updatemenus
    assert len(menu.buttons) == 2


def test_a_curve_is_called_by_what_was_varied():
    plot = drawn(grid_study())["learning-curves"]
    assert plot.figure.data[0].name in ("9: zeros, relu", "11: zeros, tanh")


def test_a_narrowed_logarithmic_axis_has_ticks():
    study = new("minimize", "val_loss")
    for index in range(6):
        add(study, 0.5 + index / 100, reports={1: 0.6 + index / 100, 2: 0.5 + index / 100})
    add(study, None, state="pruned", reports={1: 1e12, 2: 1e12})
    along = drawn(study)["learning-curves"].figure.layout.yaxis
    assert along.type == "log"
    assert along.range[1] - along.range[0] < 1
    assert along.dtick is None  # whole decades: none would be within the range
    assert along.nticks == 5


def test_one_evaluation_per_trial_is_no_curve():
    study = new()
    for index in range(5):
        add(study, index / 5, reports={100: index / 5})
    assert not {"learning-curves", "intermediate"} & set(drawn(study))


def test_the_learning_rate_is_log_by_optimizer_with_lost_trials_at_the_worst():
    study = new()
    for index, params in enumerate(spent(40)):
        own = {key: params[key] for key in ("optimizer", "optimizer.lr")}
        add(study, index / 40, own, val_loss=1 - index / 40)
    own = {"optimizer": "sgd", "optimizer.lr": 0.9}
    add(study, None, own, "failed")
    add(study, None, own, "pruned", val_loss=0.7)
    add(study, 0.5, own, val_loss=float("inf"))
    plot = drawn(study)["learning-rate"]
    assert plot.figure.layout.xaxis.type == "log"
    sgd = sum(params["optimizer"] == "sgd" for params in spent(40))
    assert len(trace(plot, "sgd").x) == sgd + 1  # its accuracy is known
    assert len(trace(plot, "sgd", 1).x) == sgd
    assert trace(plot, "sgd").marker.color != trace(plot, "adam").marker.color
    assert trace(plot, "sgd pruned").marker.symbol == "circle-open"
    accuracy, loss = (trace(plot, "failed or diverged", row) for row in (0, 1))
    assert numbers(accuracy.y) == [0.0]
    assert sorted(loss.customdata) == [40, 42]
    assert numbers(loss.y) == [1.0, 1.0]
    assert "1 pruned" in plot.says


def test_a_learning_rate_that_was_not_swept_has_no_plot():
    study = new()
    for index, params in enumerate(spent(10)):
        add(study, index / 10, {"init": params["init"]})
    assert "learning-rate" not in drawn(study)


def test_a_loss_over_many_decades_has_a_log_axis_and_an_accuracy_has_not():
    for objective, direction, kind in (
        ("val_loss", "minimize", "log"),
        ("val_accuracy", "maximize", None),
    ):
        study = new(direction, objective)
        for index in range(6):
            add(study, 0.1**index)
        axis = drawn(study)["optimization"].figure.layout.yaxis
        assert axis.type == kind
        assert axis.title.text == objective
