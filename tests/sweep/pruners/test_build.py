"""What the pruner config makes, and what it refuses."""

from __future__ import annotations

import math

import optuna
import pytest
from pruner_support import EAGER, at_step, study_of

from sweepstack.config.errors import InputError
from sweepstack.sweep import pruners
from sweepstack.sweep.pruners import AshaPruner, MedianPruner, PercentilePruner


@pytest.mark.parametrize(
    ("name", "given", "expected"),
    [
        ("none", {}, optuna.pruners.NopPruner),
        ("median", {"n_warmup_steps": 3}, MedianPruner),
        ("percentile", {"percentile": 25}, PercentilePruner),
        ("asha", {"min_resource": "auto", "max_resource": None}, AshaPruner),
        ("hyperband", {"max_resource": 100}, optuna.pruners.HyperbandPruner),
        ("patient", {"patience": 2, "min_delta": 0.1}, optuna.pruners.PatientPruner),
        ("patient", {"patience": 2, "wrapped": "median"}, optuna.pruners.PatientPruner),
        ("threshold", {"lower": None, "upper": 2}, optuna.pruners.ThresholdPruner),
        ("wilcoxon", {"p_threshold": 0.2}, optuna.pruners.WilcoxonPruner),
    ],
)
def test_build_knows_every_pruner(name, given, expected):
    assert type(pruners.build(name, given, "minimize")) is expected


def test_build_passes_the_settings_on():
    study = study_of(at_step([1, 2, 3, 9]))

    strict = pruners.build("percentile", {"percentile": 0, **EAGER}, "minimize")
    lenient = pruners.build("percentile", {"percentile": 99, **EAGER}, "minimize")

    assert strict.prune(study, study.trials[1])
    assert not lenient.prune(study, study.trials[1])


@pytest.mark.parametrize(("bar", "judged"), [(99, False), (0, True)])
def test_patient_asks_the_wrapped_pruner_once_patience_has_run_out(bar, judged):
    wrapped = {"name": "percentile", "percentile": bar, **EAGER}
    pruner = pruners.build("patient", {"patience": 1, "wrapped": wrapped}, "minimize")
    stuck = {1: 4.0, 2: 5.0, 3: 5.0}
    study = study_of([stuck, *(dict.fromkeys((1, 2, 3), v) for v in (1.0, 9.0, 9.0))])

    assert pruner.prune(study, study.trials[0]) == judged


WHERE = "hydra.sweeper.pruner"


@pytest.mark.parametrize(
    ("name", "given", "lines"),
    [
        (
            "medain",
            {},
            [
                f"{WHERE} must be one of none, median, percentile, asha, hyperband, patient, "
                "threshold, wilcoxon, got 'medain'; did you mean 'median'?"
            ],
        ),
        (
            "median",
            {"n_warmup_step": 1},
            [
                f"unknown key '{WHERE}.n_warmup_step', it has n_startup_trials, n_warmup_steps, "
                "interval_steps, n_min_trials; did you mean 'n_warmup_steps'?"
            ],
        ),
        (
            "median",
            {"interval_steps": 0, "n_warmup_steps": "x"},
            [
                f"{WHERE}.interval_steps must be >= 1, got 0",
                f"{WHERE}.n_warmup_steps must be a whole number, got 'x'",
            ],
        ),
        ("none", {"percentile": 3}, [f"unknown key '{WHERE}.percentile', it has no settings"]),
        ("percentile", {}, [f"{WHERE}.percentile is missing"]),
        ("percentile", {"percentile": 101}, [f"{WHERE}.percentile must be <= 100, got 101"]),
        (
            "asha",
            {"min_resource": "atuo"},
            [
                f"{WHERE}.min_resource must be a whole number or auto, got 'atuo'; "
                "did you mean 'auto'?"
            ],
        ),
        ("asha", {"reduction_factor": 1}, [f"{WHERE}.reduction_factor must be >= 2, got 1"]),
        (
            "asha",
            {"min_resource": 10, "min_early_stopping_rate": 2, "max_resource": 90},
            [f"{WHERE}: max_resource must be > 90, the first rung, got 90"],
        ),
        (
            "hyperband",
            {"min_resource": 9, "max_resource": 3},
            [f"{WHERE}: max_resource must be >= 9, min_resource, got 3"],
        ),
        ("patient", {}, [f"{WHERE}.patience is missing"]),
        (
            "patient",
            {"patience": 1, "wrapped": "patient"},
            [
                f"{WHERE}.wrapped must be one of median, percentile, asha, hyperband, threshold, "
                "wilcoxon, got 'patient'"
            ],
        ),
        (
            "patient",
            {"patience": 1, "wrapped": {"name": "percentile", "percentile": -1}},
            [f"{WHERE}.wrapped.percentile must be >= 0, got -1"],
        ),
        ("threshold", {}, [f"{WHERE}: Either lower or upper must be specified."]),
        ("threshold", {"lower": math.nan}, [f"{WHERE}.lower must be a finite number, got nan"]),
        ("wilcoxon", {"p_threshold": 2.0}, [f"{WHERE}.p_threshold must be <= 1, got 2.0"]),
    ],
)
def test_build_says_what_is_wrong(name, given, lines):
    with pytest.raises(InputError) as caught:
        pruners.build(name, given, "minimize")

    assert caught.value.mistakes == lines


def test_several_objectives_allow_no_pruner():
    with pytest.raises(InputError, match="must be none with 2 objectives, got 'asha'"):
        pruners.build("asha", {}, ["minimize", "maximize"])

    assert pruners.build("none", {}, ["minimize", "maximize"])
    assert pruners.build("asha", {}, ["minimize"])


def test_constructors_check_their_settings():
    with pytest.raises(ValueError, match="max_resource must be > 3, the first rung, got 2"):
        AshaPruner(3, max_resource=2)
    with pytest.raises(InputError, match=r"MedianPruner.interval_steps must be >= 1, got 0"):
        MedianPruner(interval_steps=0)
