"""`sweepstack-study best --retrain`: fresh seeds, a study of its own, and what was luck."""

from __future__ import annotations

import contextlib
import math
from pathlib import Path

import numpy as np
import pytest
from plots_support import add
from plots_support import new as new_study
from scipy import stats
from sweep_support import QUICK

from sweepstack.analysis.terminal import number
from sweepstack.cli.best import luck, read
from sweepstack.cli.study import run
from sweepstack.config.errors import InputError
from sweepstack.study.view import StudyView, open_study

FRESH = [0.80, 0.82, 0.84]


def viewed(best, second, direction="maximize"):
    study = new_study(direction, "val_accuracy")
    study.set_user_attr("sweepstack.identity", {"objectives": ["val_accuracy"]})
    add(study, second, {"init": "xavier"})
    add(study, best, {"init": "he"})
    return StudyView(study, "memory")


def test_fresh_seeds_are_compared_with_their_own_spread():
    first, sweep, second = luck(viewed(0.85, 0.84), FRESH, [])
    low, high = stats.t.interval(0.95, 2, np.mean(FRESH), stats.sem(FRESH))
    assert first == (
        f"fresh seeds: val_accuracy 0.8200 ± 0.0200, n=3, 95 % interval of the mean "
        f"{low:.4f} to {high:.4f}"
    )
    spread = stats.t.ppf(0.975, 2) * np.std(FRESH, ddof=1) * math.sqrt(1 + 1 / 3)
    assert sweep == (
        f"in the sweep it had 0.8500 (n=1), 0.0300 better: luck, as much as seeds differ "
        f"(± {spread:.4f})"
    )
    noise = stats.t.ppf(0.975, 2) * np.std(FRESH, ddof=1) * math.sqrt(2)
    assert second == (
        f"second best in the sweep: trial 0, 0.0100 behind, seeds differ by ± {noise:.4f}: it "
        "could be as good"
    )


@pytest.mark.parametrize(
    ("best", "second", "direction", "changes", "said"),
    [
        (0.82, 0.81, "maximize", [], "no luck, fresh seeds are as good"),
        (0.99, 0.60, "maximize", [], "0.1700 better, more than seeds differ"),
        (0.60, 0.95, "minimize", [], "0.2200 better, more than seeds differ"),
        (0.83, 0.95, "minimize", [], "no luck, fresh seeds are as good"),
        (0.80, 0.70, "maximize", ["x=1"], "that of x=1 and of luck together"),
    ],
)
def test_what_was_luck_is_said_in_words(best, second, direction, changes, said):
    _, sweep, _ = luck(viewed(best, second, direction), FRESH, changes)
    assert said in sweep
    _, _, last = luck(viewed(best, second, direction), FRESH, changes)
    assert ("more than luck" in last) == (abs(best - second) > 0.13)


def test_one_seed_says_nothing_of_luck():
    assert list(luck(viewed(0.9, 0.8), [0.8], [])) == [
        "fresh seeds: val_accuracy 0.8000, n=1; in the sweep it had 0.9000; luck needs two seeds"
    ]


def test_the_budget_that_is_asked_for_is_the_one_that_counts():
    given = ["seeds=7", "training.max_epochs=3"]
    assert read(given) == (7, ["training.max_epochs=3", "training.max_steps=null"])
    assert read([]) == (5, [])


def test_all_that_is_wrong_is_said_before_anything_is_read():
    with pytest.raises(InputError) as error:
        run(["best", "none", "--retrain", "seeds=0", "x", "training.seed=1", "hydra.job.name=x"])
    assert error.value.mistakes == [
        "seeds must be 1 to 1000, got 0",
        "--retrain takes seeds=N and KEY=VALUE, got x",
        "--retrain chooses fresh seeds itself: seeds=N, got training.seed=1",
        "--retrain takes no settings of Hydra, got hydra.job.name=x",
    ]


def test_the_winner_is_trained_with_fresh_seeds_in_a_study_that_is_resumed(
    main, capsys, monkeypatch
):
    monkeypatch.setattr("sweepstack.reporting.dashboard.decorate.write_report", lambda view: None)
    done = main("-m", *QUICK, "optimizer.lr=0.1,0.01", "training.seed=0,1")
    assert done.code == 0
    best = open_study("s").configurations.iloc[0]
    with pytest.raises(InputError, match=r"did you mean 'optimizer\.lr'"):
        run(["best", "s", "-o", "won", "--retrain", "optimizer.lrr=1"])
    assert not Path("outputs/winners").exists()
    assert not Path("won").exists()
    Path("below").mkdir()
    for place in ("below", "."):
        with contextlib.chdir(place):
            assert run(["best", "s", "--retrain", "seeds=3", "training.max_steps=16"]) == 0
    assert not list(Path("below").iterdir())
    said = capsys.readouterr().out
    assert "3 trials, 3 of them done before" in said
    (name,) = [path.name for path in Path("outputs/winners").iterdir()]
    again = open_study(name)
    assert sorted(again.frame["training.seed"]) == [2, 3, 4]
    assert set(again.frame["steps"]) == {16}
    config = again.identity["config"]
    assert config["optimizer"]["lr"] == best["optimizer.lr"]
    assert config["model"]["hidden"] == [4]
    values = again.good["val_mse"]
    assert f"fresh seeds: val_mse {number(values.mean())}" in said
    assert "that of training.max_steps=16 and of luck together" in said
