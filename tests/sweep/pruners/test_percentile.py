"""Who is pruned by the percentile of all that have reported at a rung, and by the median."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pruner_support import EAGER, at_step, pruned, study_of

from sweepstack.sweep.pruners import MedianPruner, PercentilePruner


@given(
    st.lists(st.integers(-5, 5), min_size=2, max_size=20), st.sampled_from([0, 10, 25, 50, 90, 100])
)
def test_percentile_cuts_at_the_interpolated_percentile_of_all(values, percentile):
    study = study_of(at_step(values))
    cut = np.percentile(values, percentile)

    gone = pruned(PercentilePruner(percentile, **EAGER), study)

    assert gone == {i for i, value in enumerate(values) if value > cut + 1e-9}


def test_median_is_percentile_50():
    values = [3, 1, 4, 1, 5, 9, 2, 6]

    assert pruned(MedianPruner(), study_of(at_step(values))) == {2, 4, 5, 7}
    assert pruned(PercentilePruner(50), study_of(at_step(values))) == {2, 4, 5, 7}


@pytest.mark.parametrize(("others", "prunes"), [(4, False), (5, True)])
def test_nothing_is_pruned_before_enough_others_have_started(others, prunes):
    study = study_of([*at_step([1.0]), *at_step([1.0] * (others - 1), step=0), {1: 9.0}])

    assert PercentilePruner(50, 5, n_min_trials=1).prune(study, study.trials[-1]) == prunes


@pytest.mark.parametrize(("others", "prunes"), [(2, False), (3, True)])
def test_nothing_is_pruned_at_a_rung_that_few_have_reached(others, prunes):
    study = study_of([*at_step([1.0] * others), *at_step([1.0] * 9, step=0), {1: 9.0}])

    assert PercentilePruner(50, 0, n_min_trials=3).prune(study, study.trials[-1]) == prunes


@pytest.mark.parametrize(
    ("steps", "judged"),
    [
        ([5], False),  # warmup
        ([10], True),  # the first rung
        ([10, 15], False),  # judged in this interval before
        ([10, 31], True),  # off cadence, the first report after the rung at 30
        ([10, 31, 39], False),
    ],
)
def test_every_interval_is_judged_once(steps, judged):
    bad = dict.fromkeys(steps, 9.0)
    good = dict.fromkeys(range(5, 60, 5), 1.0)
    study = study_of([bad, good, good])
    pruner = PercentilePruner(50, 0, n_warmup_steps=10, interval_steps=20, n_min_trials=1)

    assert pruner.prune(study, study.trials[0]) == judged
