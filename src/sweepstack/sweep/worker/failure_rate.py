"""When a sweep has seen too many trials fail: reads `hydra.sweeper.max_failure_rate`."""

from __future__ import annotations

from collections.abc import Mapping

from sweepstack.sweep.plan import Plan


def too_many_failed(plan: Plan, counts: Mapping[str, int], *, ended: bool = False) -> bool:
    """Whether more than `max_failure_rate` of the study's trials failed for good.

    Until a sweep has `ended`, whether that is certain: were all others of its total to complete, it
    would still be so. Without a total nothing is certain; then the finished trials are judged, as
    soon as there are 20.
    """
    finished = counts["done"] + counts["pruned"] + counts["failed"]
    of = finished if ended else max(finished, 20 if plan.total is None else plan.total)
    return counts["failed"] > plan.max_failure_rate * of
