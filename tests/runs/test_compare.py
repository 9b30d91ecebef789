"""How far numbers of the same trial may differ, and what is said of it."""

from __future__ import annotations

import math

import pytest

from sweepstack.runs.rerun.compare import FLOOR, Given, Key, Tolerance, compare

AT = Key("val_loss", 100)
ACCURACY = Key("val_accuracy", 100)


def given(*pairs, ended="complete", error=None, best=(100,)):
    return Given(dict(pairs), ended, error, best)


def verdict(recorded, now, probes=(), **settings):
    return compare(recorded, now, Tolerance(FLOOR, {"val": 1000}, **settings), probes)


@pytest.mark.parametrize(
    ("key", "then", "now", "agrees"),
    [
        (AT, 0.5, 0.5 + 4e-7, True),
        (AT, 0.5, 0.5 + 6e-7, False),
        (AT, 1e-9, 5e-9, True),  # at its own size rounding is everything
        (AT, 1e-9, 1e-7, False),
        (ACCURACY, 0.9, 0.902, True),
        (ACCURACY, 0.9, 0.903, False),
        (Key("steps"), 100, 101, False),
        (Key("seed"), 3, 3, True),
        (AT, math.inf, math.inf, True),
        (AT, math.nan, 0.5, False),
        (AT, 0.5, math.nan, False),
        (AT, math.inf, 0.5, False),
    ],
)
def test_what_is_no_more_than_rounding(key, then, now, agrees):
    found = verdict(given((key, then)), given((key, now)))
    assert found.agrees == agrees
    assert found.verdict.startswith("agrees" if agrees else "differs")


def test_a_trial_that_amplifies_may_differ_by_ten_times_what_its_probes_do():
    late = Key("val_loss", 200)
    now = given((AT, 0.5), (late, 0.4))
    probes = [given((AT, 0.5), (late, 0.4 * 1.001)), given((AT, 0.5 * (1 - 1e-5)), (late, 0.4))]
    assert verdict(given((AT, 0.5 * 1.00009), (late, 0.4 * 1.009)), now, probes).agrees
    found = verdict(given((AT, 0.5 * 1.00011), (late, 0.4)), now, probes)  # later ones do not count
    assert not found.agrees
    assert found.verdict.startswith("differs: largest difference 5.5e-05 (val_loss at step 100)")
    assert not verdict(given((AT, 0.5), (late, 0.4 * 1.011)), now, probes).agrees


def test_a_learning_rate_is_set_and_not_measured():
    rate = Key("lr", 100)
    now, probes = given((rate, 0.1), (AT, 0.5)), [given((rate, 0.1000001), (AT, 5.0))]
    assert not verdict(given((rate, 0.101), (AT, 0.5)), now, probes).agrees


def test_a_chaotic_trial_is_said_to_be_one():
    now, probes = given((AT, 0.5)), [given((AT, 0.6))]
    found = verdict(given((AT, 0.7)), now, probes)
    assert found.chaotic_from == 100
    assert found.verdict.endswith(
        "; chaotic from step 100 on: rounding grows to 2.0e-01 of its losses"
    )
    calm = verdict(given((AT, 0.5)), now, [given((AT, 0.50004), (ACCURACY, 0.1))])
    assert calm.chaotic_from is None
    assert calm.verdict.endswith("; rounding grows to 8.0e-05 of its losses")


def test_where_evaluations_tie_another_may_be_the_best():
    test = Key("test_loss")
    recorded, now = given((AT, 0.5), (test, 0.5)), given((AT, 0.5), (test, 0.7), best=(50,))
    assert verdict(recorded, now).agrees
    assert not verdict(recorded, given((AT, 0.5), (test, 0.7))).agrees


BROKE = "train_loss became nan at step 7 of 9"


@pytest.mark.parametrize(
    ("error", "again", "agrees"),
    [
        (BROKE, BROKE, True),
        (BROKE, "train_loss became inf at step 7 of 9", True),
        (BROKE, "train_loss became nan at step 8 of 9", False),
        (f"seed 3: {BROKE}", f"seed 3: {BROKE}", True),
        (BROKE, None, False),
        (BROKE, "RuntimeError: fire", False),
        ("RuntimeError: fire", "RuntimeError: fire", True),
        ("RuntimeError: fire", None, False),
        (None, BROKE, False),
    ],
)
def test_how_a_trial_ended(error, again, agrees):
    ends = [given((AT, 0.5), ended="failed" if e else "complete", error=e) for e in (error, again)]
    assert verdict(*ends).agrees == agrees


def test_a_loss_may_break_where_its_probes_do():
    recorded, now, probe = (
        given(ended="failed", error=f"val_loss became inf at step {step} of 90", best=())
        for step in (12, 10, 15)
    )
    assert not verdict(recorded, now).agrees
    assert verdict(recorded, now, [probe]).agrees


def test_where_nothing_is_recorded_nothing_agrees():
    assert not verdict(given(), given((AT, 0.5))).agrees
