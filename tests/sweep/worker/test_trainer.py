"""Sweeps of sweepstack itself: what trials leave, seeds as one value, failures, conditions."""

from __future__ import annotations

from statistics import fmean, stdev

import pytest
import yaml
from sweep_support import QUICK, metrics, params, states, study, trial_folder, without

from sweepstack.study.book import tables
from sweepstack.sweep import studies

pytestmark = pytest.mark.slow


def test_what_a_trial_leaves(main, tmp_path):
    ended = main("-m", *QUICK, "optimizer.lr=0.02,0.01", "training.seed=7")

    assert ended.code == 0, ended.err
    better, worse = study(tmp_path).trials
    assert better.value < worse.value
    assert better.params == {"optimizer.lr": 0.02}
    assert list(better.intermediate_values) == [4, 8]
    assert better.intermediate_values[8] == better.value
    attributes = better.user_attrs
    assert attributes["val_mse"] == better.value
    assert {"train_loss", "val_loss", "val_mae", "test_mse", "test_mae"} <= set(attributes)
    assert (attributes["seed"], attributes["steps"], attributes["num_parameters"]) == (7, 8, 13)
    assert attributes["seconds"] > 0
    assert attributes["samples_per_s"] > 0
    assert {"device", "sweepstack.worker"} <= set(attributes)
    assert len(attributes["config_hash"]) == 16
    assert attributes["config_hash"] != worse.user_attrs["config_hash"]

    left = {path.name for path in trial_folder(tmp_path, 0).iterdir()}
    files = {"overrides.yaml", "config.yaml", "history.csv", "metrics.json", "sweepstack.log"}
    assert left == files | {"best.pt", "best.pt.sha256", "model.pt"}
    assert {path.name for path in trial_folder(tmp_path, 1).iterdir()} == files
    overrides = yaml.safe_load((trial_folder(tmp_path, 0) / "overrides.yaml").read_text())
    assert overrides[-1] == "optimizer.lr=0.02"
    assert "data=quadratic" in overrides
    config = yaml.safe_load((trial_folder(tmp_path, 0) / "config.yaml").read_text())
    assert (config["optimizer"]["lr"], config["training"]["seed"]) == (0.02, 7)
    assert metrics(tmp_path, 0)["val_mse"] == better.value
    assert metrics(tmp_path, 0)["state"] == "complete"
    history = (trial_folder(tmp_path, 0) / "history.csv").read_text().splitlines()
    assert history[0].startswith("step")
    assert len(history) == 3
    assert "0.02" in (tmp_path / "outputs/studies/s/optimization_results.yaml").read_text()


def test_several_seeds_are_one_value_their_mean(main, tmp_path):
    assert main("-m", *QUICK, "optimizer.lr=0.01", "training.seeds=3").code == 0
    [together] = study(tmp_path).trials
    alone = without("hydra.sweeper.study_name")
    assert (
        main(
            *("-m", *alone, "optimizer.lr=0.01", "training.seed=range(0,3)"),
            "hydra.sweeper.study_name=alone",
        ).code
        == 0
    )
    singles = study(tmp_path, "alone").trials

    values = [trial.value for trial in singles]
    assert together.value == pytest.approx(fmean(values), rel=1e-6)
    attributes = together.user_attrs
    assert attributes["values"] == pytest.approx(values, rel=1e-6)
    assert attributes["std"] == pytest.approx(stdev(values), rel=1e-5)
    assert attributes["seeds"] == 3
    assert attributes["steps"] == 24
    for step in (4, 8):
        reports = [trial.intermediate_values[step] for trial in singles]
        assert together.intermediate_values[step] == pytest.approx(fmean(reports), rel=1e-6)
    history = (trial_folder(tmp_path, 0) / "history.csv").read_text().splitlines()
    assert history[0].startswith("seed,step")
    assert len(history) == 1 + 3 * 2


def test_pruning_acts_on_the_mean_of_the_seeds(main, tmp_path):
    assert main("-m", *QUICK, "optimizer.lr=0.01", "training.seeds=3").code == 0
    [trial] = study(tmp_path).trials
    values = trial.user_attrs["values"]
    mean = trial.intermediate_values[4]
    assert max(values) > trial.value  # a bar between the mean and the worst seed tells them apart

    for name, bar, expected in (("low", 0.99 * mean, "PRUNED"), ("high", 1.01 * mean, "COMPLETE")):
        ended = main(
            *("-m", *QUICK, "optimizer.lr=0.01", "training.seeds=3"),
            *("hydra/sweeper/pruner=threshold", f"hydra.sweeper.pruner.upper={bar}"),
            f"hydra.sweeper.study_name={name}",
        )

        [judged] = study(tmp_path, name).trials
        assert judged.state.name == expected
        assert ended.code == (4 if expected == "PRUNED" else 0)
        steps = judged.user_attrs["steps"]
        assert steps == (24 if expected == "COMPLETE" else 12)  # all seeds stop at step 4


def test_one_seed_that_fails_fails_the_trial_and_the_sweep_goes_on(main, tmp_path):
    ended = main("-m", *QUICK, "optimizer.lr=1e4,0.01", "training.seeds=2")

    assert ended.code == 0, ended.err
    assert states(tmp_path) == ["FAIL", "COMPLETE"]
    assert study(tmp_path).trials[0].user_attrs["error"].startswith("seed 0: train_loss became inf")
    assert "NaN" not in (trial_folder(tmp_path, 0) / "metrics.json").read_text()


def test_a_trial_that_fails_says_why_and_the_others_go_on(main, tmp_path):
    ended = main("-m", *QUICK, "optimizer.lr=0.01,1e4,0.02")

    assert ended.code == 0, ended.err
    assert states(tmp_path) == ["COMPLETE", "FAIL", "COMPLETE"]
    failed = study(tmp_path).trials[1]
    assert failed.values is None
    assert failed.user_attrs["error"].startswith("train_loss became inf at step")
    assert metrics(tmp_path, 1)["state"] == "failed"
    assert metrics(tmp_path, 1)["error"] == failed.user_attrs["error"]
    assert "1 failed" in ended.out

    again = main("-m", *QUICK, "optimizer.lr=0.01,1e4,0.02")  # a grid runs its failed points again

    assert again.code == 0, again.err
    assert states(tmp_path) == ["COMPLETE", "FAIL", "COMPLETE", "FAIL"]
    assert params(tmp_path) == [0.01, 1e4, 0.02, 1e4]


@pytest.mark.parametrize("rate", ["0.5", "1"])
def test_a_sweep_in_which_all_fail(main, tmp_path, rate):
    rule = f"hydra.sweeper.max_failure_rate={rate}"
    ended = main("-m", *QUICK, "optimizer.lr=1e4,1e5", rule)

    assert ended.code == 4
    [*failures, line] = ended.lines
    assert line.startswith("sweepstack: no trial of study s completed: 0 pruned, 2 failed")
    assert "train_loss became inf" in line
    assert [failure.partition(" failed: ")[0] for failure in failures] == [
        "sweepstack: trial 0",
        "sweepstack: trial 1",
    ]
    assert failures[1].endswith("(optimizer.lr=100000.0)")
    assert set(states(tmp_path)) == {"FAIL"}


def test_too_many_failures_end_a_sweep_early(main, tmp_path):
    rule = "hydra.sweeper.max_failure_rate=0.1"
    values = ["0.01", *(f"1e{n}" for n in range(4, 13))]
    words = ("training.width=1", f"optimizer.lr={','.join(values)}", rule)
    ended = main("-m", *QUICK, *words)

    assert ended.code == 1
    assert "trials failed, more than hydra.sweeper.max_failure_rate=0.1 allows" in ended.err
    assert "max_failure_rate=0.1 ended it early" in ended.err
    assert states(tmp_path).count("FAIL") == 2
    assert "RUNNING" not in states(tmp_path)


CONDITIONS = """
# @package _global_
hydra:
  sweeper:
    params:
      optimizer: sgd,adam
      optimizer.momentum: 0,0.5
      optimizer.lr:
        - {when: {optimizer: sgd}, values: "tag(log, interval(1e-3,1e-2))"}
        - {when: {optimizer: adam}, values: "tag(log, interval(1e-5,1e-4))"}
    conditions:
      optimizer.momentum: {optimizer: sgd}
    n_trials: 8
"""


def test_conditions_in_a_file_of_the_user_s(main, tmp_path):
    (tmp_path / "mine" / "sweeps").mkdir(parents=True)
    (tmp_path / "mine" / "sweeps" / "families.yaml").write_text(CONDITIONS)
    quick = without("optimizer")

    ended = main("-m", "--config-dir", "mine", "+sweeps=families", *quick)

    assert ended.code == 0, ended.err
    trials = study(tmp_path).trials
    assert len(trials) == 8
    for trial in trials:
        sgd = trial.params["optimizer"] == "sgd"
        case = "optimizer.lr[optimizer=sgd]" if sgd else "optimizer.lr[optimizer=adam]"
        wanted = {"optimizer", case, *(["optimizer.momentum"] if sgd else [])}
        assert set(trial.params) == wanted
        config = yaml.safe_load((trial_folder(tmp_path, trial.number) / "config.yaml").read_text())
        assert config["optimizer"]["lr"] == trial.params[case]
        assert (1e-3 <= trial.params[case] <= 1e-2) == sgd
        assert config["optimizer"]["name"] == trial.params["optimizer"]
    assert {trial.params["optimizer"] for trial in trials} == {"sgd", "adam"}


def test_an_optuna_with_other_tables_is_written_to_by_its_public_functions(
    main, tmp_path, monkeypatch
):
    words = [*without("hydra.sweeper.study_name"), "optimizer.lr=0.01,1e4,0.02,0.001"]
    words += ["hydra/sweeper/pruner=threshold", "hydra.sweeper.pruner.upper=0.2"]
    words += ["hydra.sweeper.constraints={num_parameters: '<= 100'}"]
    assert main("-m", *words, "hydra.sweeper.study_name=s").code == 0
    more = tables.NEEDED | {"TrialValueModel": ("value", "colour")}
    monkeypatch.setattr(tables, "NEEDED", more)
    studies.bulk_problem.cache_clear()
    ended = main("-m", *words, "hydra.sweeper.study_name=slow")
    studies.bulk_problem.cache_clear()
    assert ended.code == 0, ended.err

    said = [line for line in ended.lines if "public API" in line]
    assert len(said) == 1
    assert "TrialValueModel.colour" in said[0]

    def what_is_kept(name):
        own = {"seconds", "samples_per_s", "sweepstack.worker"}
        return [
            (
                *(t.state, t.params, t.distributions, t.values, t.intermediate_values),
                *({k: v for k, v in t.user_attrs.items() if k not in own}, t.system_attrs),
            )
            for t in study(tmp_path, name).trials
        ]

    kept = what_is_kept("slow")
    assert {row[0].name for row in kept} == {"COMPLETE", "FAIL", "PRUNED"}
    assert kept == what_is_kept("s")


POINTS = ",".join(["1e4", *(f"0.0{n}" for n in range(1, 8))])


def test_a_finished_grid_ends_again_as_it_ended(main, tmp_path):
    """Its failed points are tried again, and fail again: they are 1 of 8, and not 1 of 1."""
    sweep = ("-m", *QUICK, f"optimizer.lr={POINTS}", "hydra.sweeper.max_failure_rate=0.125")
    for failures in (1, 2, 3):
        ended = main(*sweep)
        assert ended.code == 0, ended.err
        assert states(tmp_path).count("FAIL") == failures
        assert states(tmp_path).count("COMPLETE") == 7


def test_a_finished_grid_with_too_many_failures_ends_again_so(main, tmp_path):
    sweep = ("-m", *QUICK, f"optimizer.lr={POINTS}", "training.width=1")
    assert main(*sweep).code == 0
    for _ in range(2):
        ended = main(*sweep, "hydra.sweeper.max_failure_rate=0.1")
        assert ended.code == 1
        assert "1 of 8 trials failed, more than" in ended.err


def test_foreign_letters_interpolations_and_globs_on_the_command_line(main, tmp_path):
    words = [*without("hydra.sweeper.study_name"), "hydra.sweeper.study_name=ünï 🙂"]
    glob = "init=glob([xavier*,z*],exclude=*_*)"
    ended = main("-m", *words, glob, "hydra.sweep.subdir=j${hydra.job.num}")

    assert ended.code == 0, ended.err
    assert ended.lines[0].startswith("sweepstack: hydra.sweep.subdir has no effect: trials are in")
    found = study(tmp_path, "ünï 🙂")
    assert [t.params["init"] for t in found.trials] == ["xavier", "zeros"]
    assert (tmp_path / "outputs/studies/ünï 🙂/0/metrics.json").is_file()
    assert "hydra.sweep.subdir=j${hydra.job.num}" in found.user_attrs["sweepstack.sweep"]["hydra"]
