"""What holds for every pruner that judges all trials of a rung together."""

from __future__ import annotations

import math
import pickle

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.trial import TrialState
from pruner_support import COMPLETE, EAGER, PRUNED, RUNNING, at_step, pruned, study_of

from sweepstack.sweep.pruners import AshaPruner, MedianPruner, PercentilePruner

PRUNERS = {
    "median": lambda: MedianPruner(**EAGER),
    "percentile": lambda: PercentilePruner(30, **EAGER),
    "asha": lambda: AshaPruner(1),
}
VALUES = st.one_of(st.sampled_from([0.0, 1.0, math.nan, math.inf]), st.floats(-5, 5))


@pytest.mark.parametrize("make", PRUNERS.values(), ids=PRUNERS)
@given(data=st.data())
def test_order_of_the_questions_changes_nothing(make, data):
    values = data.draw(st.lists(VALUES, min_size=1, max_size=12))
    order = data.draw(st.permutations(range(len(values))))
    steps = data.draw(st.lists(st.integers(0, 3), min_size=len(values), max_size=len(values)))
    curves = [{step: value} for step, value in zip(steps, values, strict=True)]

    in_order = pruned(make(), study_of(curves))

    assert pruned(make(), study_of(curves), order) == in_order


@pytest.mark.parametrize("make", PRUNERS.values(), ids=PRUNERS)
@given(values=st.lists(VALUES, max_size=12))
def test_a_stack_asked_at_once_gets_the_decisions_of_one_by_one(make, values):
    study = study_of(at_step(values))

    decisions = make().decisions(study, study.trials)

    assert decisions == [make().prune(study, trial) for trial in study.trials]


def test_a_stack_reads_the_study_once_and_between_rungs_not_at_all(monkeypatch):
    reads = []
    study = study_of([dict.fromkeys(range(1, 5), value) for value in range(8)])
    trials, read = study.trials, study.get_trials
    monkeypatch.setattr(study, "get_trials", lambda **how: reads.append(how) or read(**how))

    AshaPruner(4).decisions(study, trials)
    assert len(reads) == 1

    AshaPruner(3).decisions(study, trials)
    assert len(reads) == 1


@pytest.mark.parametrize("make", PRUNERS.values(), ids=PRUNERS)
@given(values=st.lists(VALUES, min_size=1, max_size=12))
def test_maximizing_is_minimizing_the_negative(make, values):
    down = pruned(make(), study_of(at_step(values)))
    up = pruned(make(), study_of(at_step([-value for value in values]), "maximize"))

    assert up == down


@pytest.mark.parametrize("make", PRUNERS.values(), ids=PRUNERS)
@given(values=st.lists(VALUES, min_size=1, max_size=12))
def test_the_best_always_goes_on_and_what_reported_no_number_never(make, values):
    gone = pruned(make(), study_of(at_step(values)))

    finite = [value for value in values if math.isfinite(value)]
    assert all(i in gone for i, value in enumerate(values) if not math.isfinite(value))
    assert not any(values[i] == min(finite) for i in gone if finite)


@pytest.mark.parametrize("state", [RUNNING, COMPLETE, PRUNED])
@pytest.mark.parametrize("make", PRUNERS.values(), ids=PRUNERS)
def test_trials_of_every_state_are_compared(make, state):
    study = study_of(at_step([1, 2, 3, 9]), states=[state] * 3 + [RUNNING])

    assert make().prune(study, study.trials[3])


@pytest.mark.parametrize("state", [TrialState.FAIL, TrialState.WAITING])
@pytest.mark.parametrize("make", PRUNERS.values(), ids=PRUNERS)
def test_failed_and_waiting_trials_are_not_compared(make, state):
    study = study_of(at_step([1, 2, 3, 9]), states=[state] * 3 + [RUNNING])

    assert not make().prune(study, study.trials[3])


@pytest.mark.parametrize("make", PRUNERS.values(), ids=PRUNERS)
def test_ties_go_on(make):
    assert pruned(make(), study_of(at_step([2] * 6))) == set()


@pytest.mark.parametrize("make", PRUNERS.values(), ids=PRUNERS)
def test_the_best_value_so_far_counts(make):
    once_good = {1: 0.0, 2: 9.0}
    study = study_of([once_good, *({1: 5.0, 2: 5.0} for _ in range(5))])

    assert not make().prune(study, study.trials[0])


@pytest.mark.parametrize("make", PRUNERS.values(), ids=PRUNERS)
def test_reports_may_come_in_any_order(make):
    study = study_of([{3: 9.0, 1: 9.0}, *({3: 5.0, 1: 5.0} for _ in range(5))])

    assert make().prune(study, study.trials[0])


@pytest.mark.parametrize("make", PRUNERS.values(), ids=PRUNERS)
def test_later_reports_of_the_others_do_not_count(make):
    study = study_of([{1: 5.0}, *({1: 6.0, 2: 0.0} for _ in range(5))])

    assert not make().prune(study, study.trials[0])


@pytest.mark.parametrize("make", PRUNERS.values(), ids=PRUNERS)
def test_a_number_before_nan_still_counts(make):
    study = study_of([{1: 1.0, 2: math.nan}, *({1: 5.0, 2: 5.0} for _ in range(5))])

    assert not make().prune(study, study.trials[0])


@pytest.mark.parametrize("make", PRUNERS.values(), ids=PRUNERS)
def test_a_trial_without_reports_goes_on(make):
    assert pruned(make(), study_of([{}, {}])) == set()


@pytest.mark.parametrize("make", PRUNERS.values(), ids=PRUNERS)
def test_a_trial_that_finished_after_a_verdict_is_compared_as_it_finished(make):
    pruner = make()
    study = study_of([*at_step([1, 1, 1]), {}, {}])
    assert not pruner.prune(study, study.trials[0])

    for number in (1, 2):
        study.tell(number, 0.0)
    trial = study.trials[3]
    trial.intermediate_values = {1: 9.0}

    assert pruner.prune(study, trial)


@pytest.mark.parametrize("make", PRUNERS.values(), ids=PRUNERS)
def test_one_pruner_serves_two_studies(make):
    pruner = make()
    states = [COMPLETE] * 5 + [RUNNING]
    bad_last = study_of(at_step([1, 1, 1, 1, 1, 5]), states=states)
    good_last = study_of(at_step([9, 9, 9, 9, 9, 5]), states=states)

    decisions = [pruner.prune(study, study.trials[5]) for study in (bad_last, good_last, bad_last)]

    assert decisions == [True, False, True]


@pytest.mark.parametrize("make", PRUNERS.values(), ids=PRUNERS)
def test_a_pruner_travels_to_another_process(make):
    pruner, study = make(), study_of(at_step([1, 2, 3, 9]), states=[COMPLETE] * 3 + [RUNNING])
    pruner.prune(study, study.trials[3])

    assert pickle.loads(pickle.dumps(pruner)).prune(study, study.trials[3])


@pytest.mark.parametrize("make", PRUNERS.values(), ids=PRUNERS)
def test_several_objectives_raise_as_with_optuna(make):
    study = optuna.create_study(directions=["minimize", "maximize"], pruner=make())
    trial = study.ask()

    with pytest.raises(NotImplementedError, match="multi-objective"):
        trial.should_prune()
    with pytest.raises(RuntimeError, match="multi-objective"):
        make().prune(study, study.trials[0])


def test_pruners_work_through_optimize():
    study = optuna.create_study(pruner=AshaPruner(1, reduction_factor=2))

    def objective(trial: optuna.Trial) -> float:
        trial.report(trial.number, step=1)
        if trial.should_prune():
            raise optuna.TrialPruned
        return trial.number

    study.optimize(objective, n_trials=6)

    assert [t.state for t in study.trials] == [COMPLETE] + [PRUNED] * 5
