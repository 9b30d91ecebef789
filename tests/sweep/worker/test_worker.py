"""When a sweep has seen too many trials fail."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from sweepstack.sweep.worker.worker import too_many_failed


def judged(rate: float, total: int | None, done: int, failed: int, **options: bool) -> bool:
    plan = SimpleNamespace(max_failure_rate=rate, total=total)
    counts = {"done": done, "pruned": 0, "failed": failed}
    return too_many_failed(plan, counts, **options)


@pytest.mark.parametrize(
    ("done", "failed", "early", "late"),
    [
        (0, 2, False, True),  # the other two may yet complete
        (1, 2, False, True),
        (0, 3, True, True),
        (1, 3, True, True),
        (2, 2, False, False),
    ],
)
def test_a_sweep_ends_early_only_when_its_rate_cannot_be_met_any_more(done, failed, early, late):
    assert judged(0.5, 4, done, failed) is early
    assert judged(0.5, 4, done, failed, ended=True) is late


def test_none_may_fail_where_none_may_fail():
    assert judged(0, 100, 0, 1)
    assert not judged(0, 100, 100, 0)


def test_without_a_total_twenty_trials_are_waited_for():
    assert not judged(0.5, None, 0, 10)
    assert judged(0.5, None, 0, 11)
    assert not judged(0.5, None, 41, 41)
