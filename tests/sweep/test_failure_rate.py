"""When a sweep has seen too many trials fail."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from iolaus.sweep.failure_rate import too_many_failed


def judged(rate, total, before, now):
    """`before` and `now`: done, failed; before also what is tried again."""
    done, failed, *again = before
    first = {"done": done, "pruned": 0, "failed": failed, "again": sum(again)}
    plan = SimpleNamespace(max_failure_rate=rate, total=total)
    return too_many_failed(plan, first, {"done": now[0], "pruned": 0, "failed": now[1]})


@pytest.mark.parametrize(
    ("before", "now", "expected"),
    [
        ((0, 0), (0, 10), False),  # of the first 20
        ((0, 0), (0, 11), True),
        ((0, 0), (40, 41), True),
        ((0, 0), (41, 41), False),
        ((0, 500), (10, 510), False),  # of a sampled sweep: what failed before is past
        ((0, 500), (9, 511), True),
        ((10_346, 0, 22), (10_346, 22), False),  # a finished grid, whose 22 fail again
        ((100, 0, 22), (100, 32), False),  # an unfinished one: these, and 10 new ones
        ((100, 0, 22), (100, 39), False),
        ((100, 0, 22), (100, 45), True),
        ((40, 0, 60), (40, 40), False),  # more than half of it failed before
        ((40, 0, 60), (40, 41), True),
    ],
)
def test_failures_since_the_start_count_and_repeated_ones_as_a_share_of_all(before, now, expected):
    assert judged(0.5, 10_368, before, now) is expected


def test_none_may_fail_where_none_may_fail():
    assert judged(0, 100, (90, 0, 1), (99, 1))
    assert not judged(0, 100, (90, 0, 1), (100, 0))


def test_without_a_total_twenty_trials_are_waited_for():
    assert not judged(0.5, None, (0, 0), (0, 10))
    assert judged(0.5, None, (0, 0), (0, 11))
