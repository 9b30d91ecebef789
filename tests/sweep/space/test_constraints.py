"""What `hydra.sweeper.constraints` says, and how far a trial is from keeping it."""

from __future__ import annotations

import math

import pytest

from sweepstack.config.errors import InputError
from sweepstack.sweep.space import constraints
from sweepstack.sweep.space.constraints import Constraint


@pytest.mark.parametrize(
    ("text", "relation", "bound"),
    [
        ("<= 100000", "<=", 100000.0),
        (">=0.9", ">=", 0.9),
        ("  <=  -1e-3 ", "<=", -1e-3),
        (">= +2E2", ">=", 200.0),
    ],
)
def test_a_bound_is_read(text, relation, bound):
    assert constraints.read({"steps": text}) == (Constraint("steps", relation, bound),)


def test_no_constraints_are_none():
    assert constraints.read({}) == ()


@pytest.mark.parametrize("text", ["< 5", "<=", "<= ten", "5", 5, None, "<= nan", "<= 1e", "== 3"])
def test_anything_else_is_refused_with_an_example(text):
    with pytest.raises(InputError) as caught:
        constraints.read({"steps": text, "seconds": "<= 1"})

    [line] = caught.value.mistakes
    assert line.startswith('hydra.sweeper.constraints.steps must look like "<= 100000" or ">= 0.9"')
    assert line.endswith(f"got {text!r}")


def test_all_mistakes_are_said_together():
    with pytest.raises(InputError) as caught:
        constraints.read({"steps": "few", "seconds": "<= 1", "val_loss": "low"})

    assert [line.split()[0].rpartition(".")[2] for line in caught.value.mistakes] == [
        "steps",
        "val_loss",
    ]


@pytest.mark.parametrize("given", [5, "<= 5", ["<= 5"]])
def test_what_is_no_mapping_is_refused(given):
    with pytest.raises(InputError, match=r"constraints must look like \{num_parameters:"):
        constraints.read(given)


@pytest.mark.parametrize(
    ("relation", "value", "violation"),
    [("<=", 3.0, -2.0), ("<=", 5.0, 0.0), ("<=", 6.5, 1.5), (">=", 3.0, 2.0), (">=", 6.5, -1.5)],
)
def test_the_violation_is_above_zero_on_the_wrong_side(relation, value, violation):
    assert Constraint("x", relation, 5.0).violation({"x": value, "y": 0.0}) == violation


@pytest.mark.parametrize("numbers", [{}, {"x": math.nan}])
def test_a_number_that_a_trial_has_not_has_no_violation(numbers):
    assert Constraint("x", "<=", 5.0).violation(numbers) is None
