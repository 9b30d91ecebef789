"""Which share of the trials asynchronous successive halving keeps, and at which steps."""

from __future__ import annotations

import math

import numpy as np
import pytest
from pruner_support import pruned, study_of

from sweepstack.sweep.pruners import AshaPruner


@pytest.mark.parametrize("factor", [2, 3, 4])
@pytest.mark.parametrize("n", [1, 2, 3, 7, 27, 40])
def test_asha_keeps_the_top_share_of_each_rung(n, factor):
    rng = np.random.default_rng(n)
    slope, start = rng.permutation(n), rng.permutation(n)  # curves that cross, without ties
    rungs = [1, factor, factor**2]
    pruner, study, alive = AshaPruner(1, factor), study_of([{}] * n, "maximize"), set(range(n))
    for step in range(1, factor**2 + 2):
        values = {i: float(slope[i] * step + start[i] * math.pi) for i in alive}
        for number, value in values.items():
            study._storage.set_trial_intermediate_value(number, step, value)

        gone = pruned(pruner, study)

        goes_on = len(alive) // factor if step in rungs and len(alive) >= factor else len(alive)
        assert len(alive - gone) <= math.ceil(len(alive) / factor) or goes_on == len(alive)
        assert alive - gone == set(sorted(alive, key=values.__getitem__)[-goes_on:])
        alive -= gone


def test_asha_judges_by_those_that_came_so_far():
    study = study_of([{1: 5.0}, {}, {}, {}])
    pruner, verdicts = AshaPruner(1), []
    for number, value in enumerate([5.0, 4.0, 6.0, 3.0]):
        study._storage.set_trial_intermediate_value(number, 1, value)
        verdicts.append(pruner.prune(study, study.trials[number]))

    assert verdicts == [False, False, True, False]


@pytest.mark.parametrize(
    ("pruner", "steps", "judged"),
    [
        (AshaPruner(10), [9], False),
        (AshaPruner(10), [9, 12], True),  # off cadence, the first report after the rung at 10
        (AshaPruner(10), [9, 12, 29], False),
        (AshaPruner(10), [9, 12, 29, 40], True),  # the rung at 30
        (AshaPruner(10, min_early_stopping_rate=1), [10], False),
        (AshaPruner(10, min_early_stopping_rate=1), [10, 30], True),
        (AshaPruner(10, max_resource=90), [60, 90], False),  # finished, not judged
        (AshaPruner(10, max_resource=91), [60, 90], True),
        (AshaPruner("auto"), [8], True),  # the others report from step 8 on
        (AshaPruner("auto"), [8, 23], False),
        (AshaPruner("auto"), [8, 24], True),
        (AshaPruner("auto"), [0], False),
    ],
)
def test_asha_judges_once_at_each_rung(pruner, steps, judged):
    good = {0: 1.0} | dict.fromkeys(range(8, 200, 8), 1.0)
    study = study_of([dict.fromkeys(steps, 9.0), good, good])

    assert pruner.prune(study, study.trials[0]) == judged


def test_asha_compares_first_reports_at_or_after_the_rung():
    late = [{15: 2.0, 20: 0.0}, {11: 3.0, 20: 0.0}]

    good, bad = study_of([{10: 1.0}, *late]), study_of([{10: 2.5}, *late])

    assert not AshaPruner(10).prune(good, good.trials[0])
    assert AshaPruner(10).prune(bad, bad.trials[0])


def test_asha_judges_at_every_rung_that_a_report_jumps_over():
    # Nobody else has come to the rung at 3, but at the rung at 1 the trial is the last of three.
    study = study_of([{4: 9.0}, {1: 1.0}, {1: 2.0}])

    assert AshaPruner(1).prune(study, study.trials[0])
