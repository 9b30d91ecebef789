"""What a sampler's config may say, and that a seed gives the same trials again."""

from __future__ import annotations

import importlib.util
import inspect
import weakref

import optuna
import pytest
from optuna.samplers import RandomSampler

from sweepstack.config.errors import EnvironmentFault, InputError
from sweepstack.data import streams
from sweepstack.sweep.samplers import PerTrial, SeededByTrial, build_sampler

optuna.logging.set_verbosity(optuna.logging.WARNING)

WHERE = "hydra.sweeper.sampler"
needs_cmaes = pytest.mark.skipif(
    importlib.util.find_spec("cmaes") is None, reason="the package cmaes is not installed"
)


def drawn(name: str, seed: int | None, given: dict | None = None, n: int = 4) -> list[dict]:
    sampler = build_sampler(name, given or {}, seed, trusted_storage=True)
    study = optuna.create_study(sampler=sampler)
    for _ in range(n):
        trial = study.ask()
        x = trial.suggest_float("x", 0, 1, step=0.125)
        trial.suggest_float("y", 0, 1, step=0.125)
        study.tell(trial, x)
    return [trial.params for trial in study.trials]


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("tpe", {"n_startup_trials": 2}),
        ("random", {}),
        ("qmc", {}),
        ("gp", {"n_startup_trials": 10}),
        ("nsgaii", {"population_size": 2, "mutation_prob": None}),
        pytest.param("cmaes", {}, marks=needs_cmaes),
        ("brute_force", {}),
    ],
)
def test_a_seed_gives_the_same_trials_again(name, given):
    assert drawn(name, 1, given) == drawn(name, 1, given)
    assert drawn(name, 1, given) != drawn(name, 2, given)


def test_a_grid_needs_no_sampler():
    assert build_sampler("grid", {}, 0) is None


def test_qmc_workers_share_one_scrambled_sequence():
    # The first trial is drawn at random; the sequence decides the others.
    worker = build_sampler("qmc", {}, None)
    worker.reseed_rng()
    study = optuna.create_study(sampler=worker)
    for _ in range(4):
        trial = study.ask()
        trial.suggest_float("x", 0, 1)
        study.tell(trial, 0.0)
    again = optuna.create_study(sampler=build_sampler("qmc", {}, None))
    plain = optuna.create_study(sampler=build_sampler("qmc", {"scramble": False}, None))
    for each in (again, plain):
        for _ in range(4):
            trial = each.ask()
            trial.suggest_float("x", 0, 1)
            each.tell(trial, 0.0)

    assert [t.params for t in study.trials[1:]] == [t.params for t in again.trials[1:]]
    assert [t.params for t in study.trials[1:]] != [t.params for t in plain.trials[1:]]


def test_tpe_keeps_trials_side_by_side_apart_by_default():
    signature = inspect.signature(optuna.samplers.TPESampler)

    assert signature.parameters["constant_liar"].default is True


@pytest.mark.parametrize(
    ("name", "given", "lines"),
    [
        (
            "tep",
            {},
            [
                f"{WHERE} must be one of tpe, random, qmc, grid, gp, nsgaii, nsgaiii, cmaes, "
                "brute_force, got 'tep'; did you mean 'tpe'?"
            ],
        ),
        (
            "tpe",
            {"n_startup_trial": 5, "group": 1, "n_ei_candidates": 0},
            [
                f"unknown key '{WHERE}.n_startup_trial', it has seed, n_startup_trials, "
                "n_ei_candidates, multivariate, group, constant_liar; "
                "did you mean 'n_startup_trials'?",
                f"{WHERE}.group must be true or false, got 1",
                f"{WHERE}.n_ei_candidates must be >= 1, got 0",
            ],
        ),
        ("random", {"sed": 1}, [f"unknown key '{WHERE}.sed', it has seed; did you mean 'seed'?"]),
        (
            "qmc",
            {"qmc_type": "sobel"},
            [f"{WHERE}.qmc_type must be one of sobol, halton, got 'sobel'; did you mean 'sobol'?"],
        ),
        ("nsgaii", {"crossover_prob": 2}, [f"{WHERE}.crossover_prob must be <= 1, got 2"]),
        (
            "nsgaii",
            {"population_size": 1},
            [f"{WHERE}.population_size must be >= 2, got 1"],
        ),
    ],
)
def test_build_sampler_says_what_is_wrong(name, given, lines):
    with pytest.raises(InputError) as caught:
        build_sampler(name, given, 0)

    assert caught.value.mistakes == lines


def test_settings_that_do_not_go_together():
    with pytest.raises(InputError, match=rf"^{WHERE}: .*group"):
        build_sampler("tpe", {"group": True, "multivariate": False}, 0)


def test_start_up_trials_of_cmaes_are_each_trial_s_own():
    def first_draws(begin: int) -> list[tuple[float, float]]:
        study = optuna.create_study(sampler=SeededByTrial(1))
        for _ in range(begin):
            study.tell(study.ask(), 0.0)
        trials = [study.ask() for _ in range(4 - begin)]
        return [(t.suggest_float("x", 0, 1), t.suggest_float("y", 0, 1)) for t in trials]

    assert first_draws(2) == first_draws(0)[2:]  # whoever asks, and whatever was asked before
    assert len({value for pair in first_draws(0) for value in pair}) == 8


@pytest.mark.parametrize("knows_optuna", [True, False])
def test_random_search_draws_as_a_sampler_of_each_trials_own_seed_does(monkeypatch, knows_optuna):
    if not knows_optuna:
        monkeypatch.delattr("sweepstack.study.book.bulk.reseed")
    study = optuna.create_study(sampler=SeededByTrial(7))
    trials = [study.ask() for _ in range(3)]  # claimed together
    found = [(t.suggest_float("x", 0, 1), t.suggest_int("y", 1, 99)) for t in trials]

    for number, (x, y) in enumerate(found):
        alone = optuna.create_study(sampler=RandomSampler(streams.derive(7, number) % 2**32)).ask()
        assert (alone.suggest_float("x", 0, 1), alone.suggest_int("y", 1, 99)) == (x, y)


def test_cmaes_needs_a_trusted_storage():
    with pytest.raises(InputError, match="unpickles"):
        build_sampler("cmaes", {}, 0)


def test_cmaes_says_when_its_package_is_missing(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)

    with pytest.raises(EnvironmentFault, match="needs the package 'cmaes'"):
        build_sampler("cmaes", {}, 0, trusted_storage=True)


def test_what_a_sampler_has_learnt_is_not_kept_for_every_trial():
    built = []

    def build(seed):
        sampler = build_sampler("random", {}, seed)
        built.append(weakref.ref(sampler))
        return sampler

    study = optuna.create_study(sampler=PerTrial(build, 0, is_shared=False))
    for _ in range(3):
        study.ask().suggest_float("x", 0, 1)
    assert [sampler() is None for sampler in built] == [True, True, False]
