"""When a sweep has seen too many trials fail: reads `hydra.sweeper.max_failure_rate`.

Called by `worker.py` after each failure, by `launch.py` for the workers of this machine, and by
`sweep.py`, which says so at the end.
"""

from __future__ import annotations

from iolaus.sweep.plan import Plan


def too_many_failed(plan: Plan, before: dict[str, int], now: dict[str, int]) -> bool:
    """Whether more than `max_failure_rate` of the trials since the start have failed; one of the
    first 20 weighs as a twentieth (or, in a smaller sweep, as one of all).

    A grid's points that had failed before and fail once more are no news: they are judged as what
    they are of the whole study. So a finished grid that runs again ends as it ended before.
    """
    states = ("done", "pruned", "failed")
    since = {state: now[state] - before.get(state, 0) for state in states}
    least = 20 if plan.total is None else min(plan.total, 20)
    news, again = since["failed"] - before.get("again", 0), since["failed"]
    all_finished = sum(now[state] for state in states)
    rate = plan.max_failure_rate
    return news > rate * max(sum(since.values()), least) or again > rate * max(all_finished, least)
