"""Sweeps of sweepstack itself: known points first, budgets, several objectives, hooks, dry runs."""

from __future__ import annotations

import sqlite3

import pytest
from sweep_support import QUICK, params, states, study, trial_folder, without

pytestmark = pytest.mark.slow

INTERVAL = "optimizer.lr=interval(0.001,0.02)"
KNOWN = "hydra.sweeper.enqueue=[{optimizer.lr: 0.015}]"


def test_known_points_are_tried_first_and_once(main, tmp_path):
    for total in (2, 3):
        ended = main("-m", *QUICK, INTERVAL, KNOWN, f"hydra.sweeper.n_trials={total}")
        assert ended.code == 0, ended.err

    values = params(tmp_path)
    assert len(values) == 3
    assert values[0] == 0.015
    assert values.count(0.015) == 1


def test_known_points_of_a_grid_are_tried_first_and_once(main, tmp_path):
    for _ in range(2):
        ended = main("-m", *QUICK, "optimizer.lr=0.005,0.01,0.015", KNOWN)
        assert ended.code == 0, ended.err

    assert params(tmp_path) == [0.015, 0.005, 0.01]


def test_a_known_point_may_leave_open_what_the_sampler_then_chooses(main, tmp_path):
    swept = [INTERVAL, "optimizer.momentum=0,0.5"]
    assert main("-m", *QUICK, *swept, KNOWN, "hydra.sweeper.n_trials=1").code == 0

    [trial] = study(tmp_path).trials
    assert trial.params["optimizer.lr"] == 0.015
    assert trial.params["optimizer.momentum"] in (0, 0.5)


def test_no_trial_begins_once_the_steps_are_spent(main, tmp_path):
    budget = "hydra.sweeper.max_steps_total=20"  # of 8 each
    assert main("-m", *QUICK, INTERVAL, budget).code == 0
    assert states(tmp_path) == ["COMPLETE"] * 3

    assert main("-m", *QUICK, INTERVAL, budget).code == 0
    assert states(tmp_path) == ["COMPLETE"] * 3


def test_no_trial_begins_after_the_time_is_over(main, tmp_path):
    ended = main("-m", *QUICK, "optimizer.lr=0.01,0.02", "hydra.sweeper.timeout_s=1e-6")
    assert ended.code == 4
    [line] = ended.lines
    assert line.startswith("sweepstack: no trial of study s completed")
    assert states(tmp_path) == []

    ended = main("-m", *QUICK, "optimizer.lr=0.01,0.02", "hydra.sweeper.timeout_s=3600")
    assert ended.code == 0, ended.err
    assert states(tmp_path) == ["COMPLETE", "COMPLETE"]


def test_several_objectives(main, tmp_path):
    ended = main(
        *("-m", *without("model.hidden"), "data=digits", "model.hidden=[2],[16]"),
        "hydra.sweeper.objectives=[val_accuracy,num_parameters]",
        "hydra.sweeper.directions=[maximize,minimize]",
    )

    assert ended.code == 0, ended.err
    found = study(tmp_path)
    assert [way.name for way in found.directions] == ["MAXIMIZE", "MINIMIZE"]
    assert found.metric_names == ["val_accuracy", "num_parameters"]
    for trial in found.trials:
        attributes = trial.user_attrs
        assert trial.values == [attributes["val_accuracy"], attributes["num_parameters"]]
    small, large = (trial.values for trial in found.trials)
    assert (small[1], large[1]) == (64 * 2 + 2 + 2 * 10 + 10, 64 * 16 + 16 + 16 * 10 + 10)
    assert "2 of 2 on the Pareto front" in ended.out


def test_the_direction_of_a_metric_is_its_own(main, tmp_path):
    ended = main(
        *("-m", *QUICK, "data=digits", "optimizer.lr=0.01,0.1"),
        "hydra.sweeper.objectives=[val_loss]",
    )

    assert ended.code == 0, ended.err
    found = study(tmp_path)
    assert found.direction.name == "MINIMIZE"
    assert [trial.value for trial in found.trials] == [
        trial.user_attrs["val_loss"] for trial in found.trials
    ]


def test_constraints_are_recorded_as_how_far_they_are_broken(main, tmp_path):
    ended = main(
        *("-m", *without("model.hidden"), "model.hidden=[4],[16]"),
        "hydra.sweeper.constraints={num_parameters: '<= 20', steps: '>= 5'}",
    )

    assert ended.code == 0, ended.err
    small, large = study(tmp_path).trials
    assert small.constraints == {"num_parameters": 13 - 20, "steps": 5 - 8}
    assert large.constraints == {"num_parameters": 49 - 20, "steps": 5 - 8}
    assert study(tmp_path).best_trial.number == 0


def test_a_sweep_without_feasible_trials_says_so(main, tmp_path):
    ended = main(
        *("-m", *without("model.hidden"), "model.hidden=[4],[16]"),
        "hydra.sweeper.constraints={num_parameters: '<= 2'}",
    )

    assert (ended.code, ended.err) == (0, "")
    assert "no trial satisfies hydra.sweeper.constraints" in ended.out
    assert states(tmp_path) == ["COMPLETE", "COMPLETE"]


HOOK = """
def suggest(config, trial):
    assert config.data.name == "quadratic"
    trial.suggest_int("batch.size", 8, 9)

def broken(config, trial):
    raise RuntimeError("no idea")
"""


@pytest.fixture
def hook(tmp_path, request):
    module = f"hook_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{module}.py").write_text(HOOK)
    return f"hydra.sweeper.custom_search_space={module}"


def test_a_function_of_the_user_s_may_suggest_more(main, tmp_path, hook):
    quick = ("-m", *QUICK, "optimizer.lr=0.01,0.02", "hydra.sweeper.n_trials=3")
    ended = main(*quick, f"{hook}.suggest")

    assert ended.code == 0, ended.err
    for trial in study(tmp_path).trials:
        size = trial.params["batch.size"]
        assert size in (8, 9)
        assert (
            f"size: {size}\n" in (trial_folder(tmp_path, trial.number) / "config.yaml").read_text()
        )


def test_a_function_that_raises_fails_its_trials(main, tmp_path, hook):
    quick = ("-m", *QUICK, "optimizer.lr=0.01,0.02", "hydra.sweeper.n_trials=3")
    ended = main(*quick, f"{hook}.broken")

    assert ended.code == 4
    assert "custom_search_space raised RuntimeError: no idea" in ended.lines[-1]
    assert set(states(tmp_path)) == {"FAIL"}


def test_a_dry_run_says_what_would_be_done_and_writes_nothing(main, tmp_path):
    dry = "hydra.sweeper.dry_run=true"
    ended = main(
        *("-m", *QUICK, INTERVAL, "init=he,xavier", "batch.size=32", dry),
        *("hydra.sweeper.n_trials=7", "hydra/sweeper/pruner=asha", "hydra.sweeper.n_jobs=2"),
        *("hydra.sweeper.constraints={num_parameters: '<= 20'}", KNOWN),
    )

    assert ended.code == 0, ended.err
    said = "".join(ended.out.split())  # a long path is folded
    for part in (
        "optimizer.lr a float from 0.001 to 0.02",
        "init he, xavier",
        "study s",
        "trials 7",
        "objective minimize val_mse",
        "sampler tpe (seed=0)",
        "pruner asha",
        "studies.db (new)",
        "workers 2",
        "batch.size=32",
        "tried first 1 known points",
        "constraint num_parameters <= 20",
        "nothing was run",
    ):
        assert part.replace(" ", "") in said, part
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_says_how_far_the_study_is(main, tmp_path):
    assert main("-m", *QUICK, "optimizer.lr=0.01,0.02").code == 0

    def everything():
        connection = sqlite3.connect(tmp_path / "outputs" / "studies.db")
        rows = list(connection.iterdump())
        connection.close()
        return rows

    before = everything()
    ended = main("-m", *QUICK, "optimizer.lr=0.01,0.02", "hydra.sweeper.dry_run=true")

    assert ended.code == 0, ended.err
    said = " ".join(ended.out.split())
    assert "(the study has 2 finished trials)" in said
    assert "every point of the grid once" in said
    assert everything() == before


def test_a_dry_run_finds_mistakes_in_every_combination_of_groups(main):
    ended = main("-m", "data=digits,quadratic", "model=mlp,convnet", "hydra.sweeper.dry_run=true")

    assert ended.code == 2
    assert "model=convnet needs pictures" in ended.err
