"""Sweeps of sweepstack in which trials do the same: what a user sees of the untrained ones."""

from __future__ import annotations

import random
import time

import pytest
from fault_support import SWEEPSTACK, Sweep, finish, rows, until
from sweep_support import QUICK, metrics, states, study, trial_folder, without

ADAM = [*without("optimizer"), "optimizer=adam", "optimizer.nesterov=false,true"]
SGD = [*without("optimizer"), "optimizer=sgd", "optimizer.momentum=0,0.5"]
OWN = {"seed", "config_hash", "seconds", "equals"}


def shown(trial):
    """What trials of equal effect share of their attributes."""
    attributes = trial.user_attrs.items()
    return {k: v for k, v in attributes if k not in OWN and not k.startswith("sweepstack.")}


def equals(folder, name="s"):
    return [trial.user_attrs.get("equals") for trial in study(folder, name).trials]


def test_a_trial_that_does_what_another_does_has_its_numbers(main, tmp_path):
    ended = main("-m", *ADAM, "optimizer.lr=0.01,0.02")

    assert ended.code == 0, ended.err
    assert "2 of 4 trials were duplicates and not trained again" in ended.out
    trials = study(tmp_path).trials
    assert [trial.params["optimizer.nesterov"] for trial in trials] == [False, False, True, True]
    assert equals(tmp_path) == [None, None, 0, 1]
    for one, other in ((trials[0], trials[2]), (trials[1], trials[3])):
        assert other.state.name == "COMPLETE"
        assert (other.values, other.intermediate_values) == (one.values, one.intermediate_values)
        assert list(other.intermediate_values) == [4, 8]
        assert shown(other) == shown(one)
        assert {"val_mse", "test_mse", "steps", "num_parameters", "best_step"} <= set(shown(other))
        assert other.user_attrs["seconds"] == 0 < one.user_attrs["seconds"]
        assert other.user_attrs["config_hash"] != one.user_attrs["config_hash"]
        assert other.user_attrs["sweepstack.overrides"] != one.user_attrs["sweepstack.overrides"]

    first, duplicate = trial_folder(tmp_path, 0), trial_folder(tmp_path, 2)
    files = {"overrides.yaml", "config.yaml", "history.csv", "metrics.json", "sweepstack.log"}
    assert {path.name for path in duplicate.iterdir()} == files
    assert (duplicate / "history.csv").read_bytes() == (first / "history.csv").read_bytes()
    assert "nesterov: true" in (duplicate / "config.yaml").read_text()
    assert "a duplicate of trial 0, not trained again" in (duplicate / "sweepstack.log").read_text()
    assert metrics(tmp_path, 2)["equals"] == 0
    assert metrics(tmp_path, 2)["val_mse"] == metrics(tmp_path, 0)["val_mse"]


def test_all_are_trained_where_that_is_asked_and_a_later_sweep_knows_them(main, tmp_path):
    ended = main("-m", *ADAM, "hydra.sweeper.duplicates=train")

    assert ended.code == 0, ended.err
    assert "same effect" not in ended.out
    assert equals(tmp_path) == [None, None]
    trials = study(tmp_path).trials
    assert all(trial.user_attrs["seconds"] > 0 for trial in trials)
    assert shown(trials[0])["val_mse"] == shown(trials[1])["val_mse"]

    # The switch is no part of what makes a study: the same study goes on.
    space = "optimizer.lr=tag(log,interval(0.01,0.02))"
    sgd = [*SGD, "hydra/sweeper/sampler=random", "hydra.sweeper.study_name=sgd", space]
    known = "hydra.sweeper.enqueue=[{optimizer.lr: 0.015, optimizer.momentum: 0}]"
    once = main("-m", *sgd, known, "hydra.sweeper.n_trials=1", "hydra.sweeper.duplicates=train")
    assert once.code == 0, once.err
    study(tmp_path, "sgd").enqueue_trial({"optimizer.lr": 0.015, "optimizer.momentum": 0})
    assert main("-m", *sgd, known, "hydra.sweeper.n_trials=2").code == 0
    assert equals(tmp_path, "sgd") == [None, 0]


def test_a_point_that_a_sampler_tries_again_is_not_trained_again(main, tmp_path):
    random = ["hydra/sweeper/sampler=random", "hydra.sweeper.n_trials=9"]
    ended = main("-m", *SGD, *random, "hydra.sweeper.max_steps_total=17")

    assert ended.code == 0, ended.err
    assert states(tmp_path) == ["COMPLETE"] * 9  # two of 8 steps are trained: the rest costs none
    originals = equals(tmp_path)
    assert originals.count(None) == 2
    assert "7 of 9 trials were duplicates" in ended.out
    for trial in study(tmp_path).trials:
        if "equals" in trial.user_attrs:
            original = study(tmp_path).trials[trial.user_attrs["equals"]]
            assert original.params == trial.params
            assert original.values == trial.values


def test_trials_of_several_seeds_pruned_and_failed_ones(main, tmp_path):
    seeds = ["training.seeds=2", "optimizer.lr=0.01,1e6"]
    ended = main("-m", *ADAM, "model.hidden=[4]", *seeds)
    assert ended.code == 0, ended.err
    one, _, duplicate, _ = study(tmp_path).trials
    assert duplicate.user_attrs["equals"] == 0
    assert duplicate.user_attrs["values"] == one.user_attrs["values"]
    known = duplicate.user_attrs
    assert (known["seeds"], known["std"]) == (2, one.user_attrs["std"])

    pruned = [*ADAM[:-2], "hydra.sweeper.study_name=p", *ADAM[-2:], "optimizer.lr=0.01"]
    bar = ["hydra/sweeper/pruner=threshold", "hydra.sweeper.pruner.upper=1e-9"]
    assert main("-m", *pruned, *bar).code == 4
    first, second = study(tmp_path, "p").trials
    assert [first.state.name, second.state.name] == ["PRUNED", "PRUNED"]
    assert second.user_attrs["equals"] == 0
    assert second.intermediate_values == first.intermediate_values
    assert list(second.intermediate_values) == [4]

    failing = [*QUICK[:1], *QUICK[2:-1], "optimizer=sgd", "optimizer.nesterov=false,true"]
    failing += ["optimizer.momentum=0", "optimizer.lr=1e4", "hydra.sweeper.study_name=f"]
    failing += ["hydra.sweeper.max_failure_rate=1"]
    assert main("-m", *failing).code == 4
    for trial in study(tmp_path, "f").trials:  # each says itself why
        assert trial.state.name == "FAIL"
        assert trial.user_attrs["error"].startswith("train_loss became inf")
        assert "equals" not in trial.user_attrs


def test_several_objectives_and_constraints_are_the_same(main, tmp_path):
    ended = main(
        *("-m", *ADAM, "optimizer.lr=0.01"),
        "hydra.sweeper.objectives=[val_mse,num_parameters]",
        "hydra.sweeper.directions=[minimize,minimize]",
        "hydra.sweeper.constraints={num_parameters: '<= 5'}",
    )

    assert ended.code == 0, ended.err
    one, duplicate = study(tmp_path).trials
    assert duplicate.user_attrs["equals"] == 0
    assert duplicate.values == one.values
    assert duplicate.constraints == one.constraints
    assert list(duplicate.constraints.values()) == [8.0]
    assert "1 of 2 trials were duplicates and not trained" in ended.out


def test_the_switch_is_checked_and_a_dry_run_counts(main, tmp_path):
    refused = main("-m", *ADAM, "hydra.sweeper.duplicates=never")
    assert refused.code == 2
    [line] = refused.lines
    assert "hydra.sweeper.duplicates must be one of once, train, got 'never'" in line
    assert not (tmp_path / "outputs").exists()

    dry = [*ADAM, "optimizer.lr=0.01,0.02", "hydra.sweeper.dry_run=true"]
    assert "4, 2 of them do what another does" in main("-m", *dry).out
    assert "another does" not in main("-m", *dry, "hydra.sweeper.duplicates=train").out
    assert "another does" not in main("-m", *SGD, "hydra.sweeper.dry_run=true").out
    assert not (tmp_path / "outputs").exists()


GRID = [
    *("-m", "data=quadratic", "training.max_steps=40", "training.eval_every=10"),
    *("optimizer=adam", "training.checkpoint_every=5", "training.device=cpu"),
    *("optimizer.nesterov=false,true", "training.seed=range(0,30)", "hydra.sweeper.n_jobs=2"),
    "training.width=3",
]


@pytest.mark.slow
def test_two_workers_killed_at_random_moments_train_each_effect_once(tmp_path):
    moments, acknowledged = random.Random(5), {}
    for _ in range(2):
        process = Sweep([*SWEEPSTACK, *GRID], tmp_path).process
        wanted = len(acknowledged) + moments.choice([1, 3, 6])
        until(lambda wanted=wanted: len(complete(tmp_path)) >= wanted, "the moment to kill")
        time.sleep(moments.uniform(0, 0.1))
        process.kill()  # its workers see that it is gone
        process.join()
        now = complete(tmp_path)
        assert {number: now.get(number) for number in acknowledged} == acknowledged
        acknowledged = now
    finish(GRID, tmp_path)

    final = complete(tmp_path)
    assert len(final) == 60 == len({row.params for row in final.values()})
    by_seed = {}
    for row in final.values():
        by_seed.setdefault(row.attributes["seed"], []).append(row)
    assert len(by_seed) == 30
    for pair in by_seed.values():
        (trained,) = [row for row in pair if "equals" not in row.attributes]
        (duplicate,) = [row for row in pair if "equals" in row.attributes]
        assert duplicate.attributes["equals"] == trained.number
        assert (duplicate.values, duplicate.reports) == (trained.values, trained.reports)


def complete(folder):
    return {row.number: row for row in rows(folder) if row.state == "COMPLETE"}
