"""When each stopper stops, on sequences of metrics that a user can check by hand."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sweepstack.config import schema
from sweepstack.training import early_stopping

NAN, INF = math.nan, math.inf
NONE = schema.NoStopping(name="none")


def patience(evaluations, min_delta=0.0):
    return schema.Patience(name="patience", patience=evaluations, min_delta=min_delta)


def increases(times):
    return schema.ConsecutiveIncreases(name="consecutive_increases", increases=times)


def stops_at(stopper, values, metric):
    """The number of the evaluation, counted from 1, that stopped; None when none did."""
    for number, value in enumerate(values, start=1):
        if stopper.observe({"val_loss": 0.5, "val_accuracy": 0.5, metric: value}):
            return number
    return None


@pytest.mark.parametrize(
    ("config", "values", "expected"),
    [
        (patience(2), [3, 2, 1, 0], None),
        (patience(2), [3, 2, 2, 2], 4),
        (patience(2), [3, 4, 2, 4, 3], 5),
        (patience(2), [3, 4, 2, 2.5, 1], None),
        (patience(1), [3, 3], 2),
        (patience(2, min_delta=0.5), [3, 2.5, 2.4, 1.9, 1.9], 5),
        (patience(2, min_delta=0.5), [3, 2.75, 2.5], 3),
        (patience(2), [NAN, NAN], 2),
        (patience(2), [NAN, 5, NAN, 4, NAN, NAN], 6),
        (patience(2), [INF, INF], 2),
    ],
)
def test_patience(config, values, expected):
    stopper = early_stopping.build(config, "val_loss", "minimize")
    assert stops_at(stopper, values, "val_loss") == expected
    mirrored = early_stopping.build(config, "val_accuracy", "maximize")
    assert stops_at(mirrored, [-value for value in values], "val_accuracy") == expected


@pytest.mark.parametrize(
    ("times", "values", "expected"),
    [
        (1, [1, 1, 0.5, 0.6], 4),
        (3, [1, 2, 3, 4], 4),
        (3, [5, 6, 7, 6, 7, 8, 9], 7),
        (2, [1, 2, 2, 3, 4], 5),
        (2, [9, 1, 2, 1, 2, 1], None),
        (2, [1, NAN, NAN], 3),
        (2, [1, 2, NAN], 3),
        (2, [1, NAN, 5, 6, 7], 5),
        (1, [NAN], 1),
    ],
)
def test_consecutive_increases(times, values, expected):
    # It watches the loss, whatever the objective is.
    stopper = early_stopping.build(increases(times), "val_accuracy", "maximize")
    assert stops_at(stopper, values, "val_loss") == expected


@settings(deadline=None)
@given(st.lists(st.floats(), max_size=30))
def test_none_never_stops(values):
    stopper = early_stopping.build(NONE, "val_accuracy", "maximize")
    assert stops_at(stopper, values, "val_accuracy") is None


@pytest.mark.parametrize("config", [NONE, patience(3, 0.1), increases(3)])
@settings(deadline=None)
@given(values=st.lists(st.floats(0, 1) | st.just(NAN), max_size=20), cut=st.integers(0, 20))
def test_a_restored_stopper_decides_as_the_whole_one(config, values, cut):
    whole = early_stopping.build(config, "val_loss", "minimize")
    decisions = [whole.observe({"val_loss": value}) for value in values]
    first = early_stopping.build(config, "val_loss", "minimize")
    second = early_stopping.build(config, "val_loss", "minimize")
    before = [first.observe({"val_loss": value}) for value in values[:cut]]
    second.restore(first.state())
    after = [second.observe({"val_loss": value}) for value in values[cut:]]
    assert before + after == decisions


@pytest.mark.parametrize(
    ("config", "values", "reason"),
    [
        (
            patience(2, 0.01),
            [0.9, 0.905, 0.8],
            "val_accuracy has not improved by more than 0.01 for 2 evaluations (best 0.9)",
        ),
        (
            patience(1),
            [0.9, 0.9],
            "val_accuracy has not improved by more than 0 for 1 evaluation (best 0.9)",
        ),
        (increases(1), [0.9], "val_loss rose 1 time in a row"),
        (increases(3), [0.9], "val_loss rose 3 times in a row"),
    ],
)
def test_the_reason_is_one_line_for_people(config, values, reason):
    stopper = early_stopping.build(config, "val_accuracy", "maximize")
    stops_at(stopper, values, "val_accuracy")
    assert stopper.reason == reason
