"""Which of several studies is better, and what won: numbers against their definitions."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from plots_support import add
from plots_support import new as new_study
from report_support import data_of
from scipy import stats

from sweepstack.cli.best import winner
from sweepstack.config import composition
from sweepstack.config import reading as config
from sweepstack.config.errors import InputError
from sweepstack.reporting import comparison, overview
from sweepstack.study.view import StudyView, open_study
from sweepstack.training.spec import TrialSpec


class Named(StudyView):
    @property
    def name(self):
        return self.study.__dict__["study_name"]


def viewed(called, values, objective="val_accuracy", **fixed):
    """A study of two inits times seeds, with these values in their order."""
    study = new_study("minimize" if objective == "val_loss" else "maximize", objective)
    study.set_user_attr(
        "sweepstack.identity", {"objectives": [objective], "config": {"optimizer": fixed}}
    )
    grid = itertools.product(("xavier", "he"), range(len(values) // 2))
    for value, (init, seed) in zip(values, grid, strict=True):
        params = {"init": init, "training.seed": seed}
        add(study, value, params, steps=10, seconds=1.0)
    study.__dict__["study_name"] = called
    return Named(study, "memory")


ONE, TWO = [0.5, 0.6, 0.7, 0.8], [0.6, 0.65, 0.9, 0.85]


def test_trials_with_equal_keys_and_seeds_are_paired():
    found = comparison.paired(viewed("a", ONE), viewed("b", TWO))
    d = np.array(TWO) - np.array(ONE)
    expected = stats.ttest_1samp(d, 0)
    low, high = expected.confidence_interval(0.95)
    assert (found.n, found.wins) == (4, 1.0)
    assert (found.mean, found.low, found.high) == pytest.approx((d.mean(), low, high))
    above = stats.ttest_1samp(d, 0, alternative="greater").pvalue
    assert found.probability == pytest.approx(1 - above)


def test_numbers_of_another_type_and_values_that_one_study_did_not_sweep_are_paired():
    one = viewed("a", ONE)
    config = {"optimizer": {"lr": 1, "nesterov": False}, "init": {"scheme": "he"}}
    one.study.set_user_attr("sweepstack.identity", {"config": config})
    swept = {"optimizer.lr": 1.0, "optimizer.nesterov": False, "init": "he", "model.width": None}
    for key, value in swept.items():
        assert comparison._same(value) == comparison._fixed(one, key)
    width = pd.Series([16, 32, None])  # floats, as one trial has none
    assert width.map(comparison._same).tolist() == ["16", "32", comparison._same(None)]
    assert comparison._same(0.12345678) != comparison._same(0.12345679)


def test_smaller_is_better_where_the_objective_is_minimized():
    found = comparison.paired(viewed("a", ONE, "val_loss"), viewed("b", TWO, "val_loss"))
    assert found.wins == 0
    assert found.probability < 0.05
    other = comparison.superiority(viewed("a", ONE, "val_loss"), viewed("b", TWO, "val_loss"))
    pairs = [(b < a) + (a == b) / 2 for a in ONE for b in TWO]
    assert other == pytest.approx(np.mean(pairs))


def test_the_expected_best_is_the_mean_over_all_draws():
    view = viewed("a", ONE)
    for n in (1, 2, 3):
        draws = [max(draw) for draw in itertools.product(ONE, repeat=n)]
        assert comparison.expected_best(view, [n]) == pytest.approx([np.mean(draws)])
    down = viewed("a", ONE, "val_loss")
    draws = [min(draw) for draw in itertools.product(ONE, repeat=2)]
    assert comparison.expected_best(down, [2]) == pytest.approx([np.mean(draws)])


def test_it_says_what_differs_and_who_is_better():
    said = list(comparison.lines([viewed("a", ONE, name="adam"), viewed("b", TWO, name="sgd")]))
    assert said[0] == "val_accuracy (maximize) of a, b"
    assert "  optimizer.name: adam | sgd" in said
    assert not [line for line in said if line.startswith("  init")]
    (verdict,) = [line for line in said if line.startswith("b - a")]
    assert "0.1000, 95 % interval" in verdict
    assert "n=4 pairs" in verdict


def test_of_a_group_that_was_swept_the_option_differs_and_not_its_settings():
    def asked(name, init, *arguments, lr=0.1, scheme="he"):
        view = viewed(name, ONE if init else [])
        node = {"init": {"scheme": scheme}, "optimizer": {"lr": lr}, "seeds": None}
        view.study.set_user_attr("sweepstack.identity", {"config": node})
        view.study.set_user_attr("sweepstack.sweep", {"arguments": list(arguments)})
        return view

    swept = asked("a", True, "init=xavier,he", "optimizer.lr=0.1", scheme="xavier")
    other = asked("b", True, "init=he,xavier", "+init.gain=2", lr=True)
    assert comparison.differing([swept, other]) == {"optimizer.lr": ["0.1", "true"]}
    fixed = asked("c", False, "init=zeros", scheme="zeros")
    assert comparison.differing([swept, fixed]) == {
        "init": ["{xavier, he}", "zeros"],
        "training.seed": ["{0, 1}", "-"],
    }


def test_a_number_is_the_same_whether_a_column_has_gaps_or_not():
    one, other = new_study("maximize"), new_study("maximize")
    for seed in (1, 2):
        add(one, 0.5, {"training.seed": seed})
        add(other, 0.5, {"training.seed": seed})
    add(other, 0.5, {"init": "he"})  # floats, as one trial has none
    found = comparison.differing([StudyView(each, "memory") for each in (one, other)])
    assert "training.seed" not in found


def test_a_single_pair_has_no_interval_and_equal_differences_have_no_width():
    one = comparison.statistics(np.array([0.1]), 1)
    assert (one.n, one.mean) == (1, 0.1)
    assert math.isnan(one.low)
    same = comparison.statistics(np.array([0.1, 0.1]), 1)
    assert (same.low, same.high, same.probability) == (0.1, 0.1, 1.0)
    assert comparison.statistics(np.zeros(3), 1).probability == 0.5


def test_what_cannot_be_compared_is_said_in_one_line():
    one = viewed("a", ONE)
    with pytest.raises(InputError, match="two or more different studies, got a, a"):
        comparison.check([one, one])
    with pytest.raises(InputError, match="one and the same objective, got a: val_accuracy; b"):
        comparison.check([one, viewed("b", TWO, "val_loss")])
    theirs = viewed("theirs", ONE)
    theirs.study.set_user_attr("sweepstack.sweep", {"application": {"name": "sphere"}})
    with pytest.raises(InputError, match=r"another program's \(sphere\), and best -o writes only"):
        winner(theirs, Path("nowhere"))
    empty = viewed("c", [])
    with pytest.raises(InputError, match="study c has none"):
        comparison.check([one, empty])


def test_the_page_holds_text_and_figures_and_runs_nothing_of_a_name():
    page = comparison.page([viewed("<b>a</b>", ONE), viewed("b", TWO)])
    assert "<b>a</b>" not in page.partition("<script")[0]
    assert "default-src &#39;none&#39;" in page
    figures = json.dumps(data_of(page, "figures"))
    assert "by seconds of training" in figures
    assert "expected, by trials drawn" in figures
    for part in ("Comparison", "Studies", "Expected best", "pairs of equal configurations"):
        assert part in page


def test_the_winner_is_a_config_that_composes_to_what_was_trained(main, capsys):
    words = ("init=he,zeros", "optimizer=sgd", "optimizer.lr=0.1", "training.max_steps=20")
    assert main("-m", *words, "model.hidden=[8]", "hydra.sweeper.study_name=s").code == 0
    view = open_study("s")
    capsys.readouterr()
    assert winner(view, Path("won")) == 0
    said = capsys.readouterr().out.splitlines()
    (best,) = view.best_rows().head(1).to_dict("records")
    assert f"trial {best['number']}: val_accuracy {best['val_accuracy']:.4f}, " in said[2]
    assert f"test_accuracy {best['test_accuracy']:.4f}" in said[2]
    assert said[3] == f"model: outputs/studies/s/{best['number']}/best.pt"
    written = yaml.safe_load(Path("won/experiment/winner.yaml").read_text())
    assert written["init"]["scheme"] == "he"
    again = config.read(composition.compose(["+experiment=winner"], "won"))
    (best,) = [t for t in view.trials if t.number == view.best_rows().iloc[0]["number"]]
    assert TrialSpec(again).config_hash == best.user_attrs["config_hash"]
    with pytest.raises(InputError, match="exists: name another folder"):
        winner(view, Path("won"))


def test_a_winner_trusts_no_package_and_the_command_that_says_so_is_quoted(main, capsys):
    words = ("init=he,zeros", "training.max_steps=2", "model.hidden=[8]", "trust=mynet")
    assert main("-m", *words, "logger=csv", "hydra.sweeper.study_name=s").code == 0
    capsys.readouterr()
    assert winner(open_study("s"), Path("my winner")) == 0
    written = yaml.safe_load(Path("my winner/experiment/winner.yaml").read_text())
    assert {"trust", "logger"}.isdisjoint(written)
    said = capsys.readouterr().out.splitlines()[-1]
    assert said == ("next: sweepstack --config-dir 'my winner' +experiment=winner 'trust=[mynet]'")
    for file in Path("outputs/studies/s").glob("*/config.yaml"):
        file.write_text("a: &a [1]\nb: *a\n")
    with pytest.raises(InputError, match=r"has no config\.yaml here that can be read"):
        winner(open_study("s"), Path("another"))


def test_a_study_and_a_list_for_programs_are_json(main, capsys):
    words = ("init=he,zeros", "training.max_steps=5", "model.hidden=[8]")
    assert main("-m", *words, "hydra.sweeper.study_name=s").code == 0
    capsys.readouterr()
    assert overview.show_json("s", "outputs/studies.db") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["objectives"] == {"val_accuracy": "maximize"}
    assert found["trials"]["complete"] == 2
    assert {row["values"]["init"] for row in found["best"]} == {"he", "zeros"}
    assert all(row["std"] is None for row in found["best"])
