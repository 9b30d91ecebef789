"""The books of a plan's study: its total, its grid in order, and each trial's own sampler."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import optuna
from optuna.samplers import BaseSampler, RandomSampler

from sweepstack.data import streams
from sweepstack.sweep import samplers
from sweepstack.sweep.book.ledger import Ledger
from sweepstack.sweep.plan import Plan
from sweepstack.sweep.space import points


def ledger_of(plan: Plan, study: optuna.Study, checkpointed: Callable[[int], int | None]) -> Ledger:
    """The books of the plan's study; `checkpointed` as `PutBack` has it."""

    def sampler_of(number: int) -> BaseSampler:
        """Each trial's own, seeded by its number: whoever asks, it draws the same."""
        name, given = plan.sampler.name, plan.sampler.given
        seed = plan.seed
        if seed is not None and name not in samplers.SHARED:
            seed = streams.derive(seed, number) % 2**32
        found = samplers.build_sampler(name, given, seed, trusted_storage=plan.trusted_storage)
        assert found is not None
        return found

    shared: list[BaseSampler] = []

    def sampler(number: int) -> BaseSampler:
        if plan.sampler.name in samplers.SHARED or plan.seed is None:
            if not shared:
                shared.append(sampler_of(0))
            if plan.sampler.name == "cmaes" and plan.seed is not None:
                # What it draws by itself, start-up trials and choices, is each trial's own.
                own: Any = shared[0]
                own._independent_sampler = RandomSampler(streams.derive(plan.seed, number) % 2**32)
            return shared[0]
        return sampler_of(number)

    return Ledger(
        study,
        plan.total,
        plan.max_restarts,
        points=points.arranged(plan.space, plan.order) if plan.grid else None,
        first=plan.enqueue if plan.grid else (),
        sampler_of=None if plan.grid else sampler,
        workers=plan.n_jobs,
        checkpointed=checkpointed,
    )
