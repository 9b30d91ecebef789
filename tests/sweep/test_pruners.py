"""Who is pruned at a rung, on hand-made studies; and what the pruner config refuses."""

from __future__ import annotations

import math
import pickle
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna import Study
from optuna.pruners import BasePruner
from optuna.trial import TrialState, create_trial

from iolaus.errors import InputError
from iolaus.sweep import pruners
from iolaus.sweep.pruners import AshaPruner, MedianPruner, PercentilePruner

optuna.logging.set_verbosity(optuna.logging.WARNING)

RUNNING, COMPLETE, PRUNED = TrialState.RUNNING, TrialState.COMPLETE, TrialState.PRUNED
EAGER = {"n_startup_trials": 0, "n_min_trials": 1}
Reports = Mapping[int, float]


def study_of(
    curves: Iterable[Reports],
    direction: str = "minimize",
    states: Sequence[TrialState] | None = None,
) -> Study:
    """A study with one trial per curve, RUNNING unless `states` says otherwise."""
    study = optuna.create_study(direction=direction)
    for number, reports in enumerate(curves):
        state = states[number] if states else RUNNING
        value = 0.0 if state == COMPLETE else None
        study.add_trial(create_trial(state=state, value=value, intermediate_values=dict(reports)))
    return study


def at_step(values: Iterable[float], step: int = 1) -> list[Reports]:
    return [{step: value} for value in values]


def pruned(pruner: BasePruner, study: Study, order: Iterable[int] | None = None) -> set[int]:
    """Ask about every running trial, telling the study of each verdict before the next question."""
    running = [trial.number for trial in study.trials if trial.state == RUNNING]
    gone = set()
    for number in running if order is None else order:
        if pruner.prune(study, study.trials[number]):
            gone.add(number)
            study.tell(number, state=PRUNED)
    return gone


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
def test_a_stack_asked_at_once_gets_the_verdicts_of_one_by_one(make, values):
    study = study_of(at_step(values))

    verdicts = make().verdicts(study, study.trials)

    assert verdicts == [make().prune(study, trial) for trial in study.trials]


def test_a_stack_reads_the_study_once_and_between_rungs_not_at_all(monkeypatch):
    reads = []
    study = study_of([dict.fromkeys(range(1, 5), value) for value in range(8)])
    trials, read = study.trials, study.get_trials
    monkeypatch.setattr(study, "get_trials", lambda **how: reads.append(how) or read(**how))

    AshaPruner(4).verdicts(study, trials)
    assert len(reads) == 1

    AshaPruner(3).verdicts(study, trials)
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

    verdicts = [pruner.prune(study, study.trials[5]) for study in (bad_last, good_last, bad_last)]

    assert verdicts == [True, False, True]


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


# Percentile


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


# ASHA


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


# build


@pytest.mark.parametrize(
    ("name", "given", "expected"),
    [
        ("none", {}, optuna.pruners.NopPruner),
        ("median", {"n_warmup_steps": 3}, MedianPruner),
        ("percentile", {"percentile": 25}, PercentilePruner),
        ("asha", {"min_resource": "auto", "max_resource": None}, AshaPruner),
        ("hyperband", {"max_resource": 100}, optuna.pruners.HyperbandPruner),
        ("patient", {"patience": 2, "min_delta": 0.1}, optuna.pruners.PatientPruner),
        ("patient", {"patience": 2, "wrapped": "median"}, optuna.pruners.PatientPruner),
        ("threshold", {"lower": None, "upper": 2}, optuna.pruners.ThresholdPruner),
        ("wilcoxon", {"p_threshold": 0.2}, optuna.pruners.WilcoxonPruner),
    ],
)
def test_build_knows_every_pruner(name, given, expected):
    assert type(pruners.build(name, given, "minimize")) is expected


def test_build_passes_the_settings_on():
    study = study_of(at_step([1, 2, 3, 9]))

    strict = pruners.build("percentile", {"percentile": 0, **EAGER}, "minimize")
    lenient = pruners.build("percentile", {"percentile": 99, **EAGER}, "minimize")

    assert strict.prune(study, study.trials[1])
    assert not lenient.prune(study, study.trials[1])


@pytest.mark.parametrize(("bar", "judged"), [(99, False), (0, True)])
def test_patient_asks_the_wrapped_pruner_once_patience_has_run_out(bar, judged):
    wrapped = {"name": "percentile", "percentile": bar, **EAGER}
    pruner = pruners.build("patient", {"patience": 1, "wrapped": wrapped}, "minimize")
    stuck = {1: 4.0, 2: 5.0, 3: 5.0}
    study = study_of([stuck, *(dict.fromkeys((1, 2, 3), v) for v in (1.0, 9.0, 9.0))])

    assert pruner.prune(study, study.trials[0]) == judged


WHERE = "hydra.sweeper.pruner"


@pytest.mark.parametrize(
    ("name", "given", "lines"),
    [
        (
            "medain",
            {},
            [
                f"{WHERE} must be one of none, median, percentile, asha, hyperband, patient, "
                "threshold, wilcoxon, got 'medain'; did you mean 'median'?"
            ],
        ),
        (
            "median",
            {"n_warmup_step": 1},
            [
                f"unknown key '{WHERE}.n_warmup_step', it has n_startup_trials, n_warmup_steps, "
                "interval_steps, n_min_trials; did you mean 'n_warmup_steps'?"
            ],
        ),
        (
            "median",
            {"interval_steps": 0, "n_warmup_steps": "x"},
            [
                f"{WHERE}.interval_steps must be >= 1, got 0",
                f"{WHERE}.n_warmup_steps must be a whole number, got 'x'",
            ],
        ),
        ("none", {"percentile": 3}, [f"unknown key '{WHERE}.percentile', it has no settings"]),
        ("percentile", {}, [f"{WHERE}.percentile is missing"]),
        ("percentile", {"percentile": 101}, [f"{WHERE}.percentile must be <= 100, got 101"]),
        (
            "asha",
            {"min_resource": "atuo"},
            [
                f"{WHERE}.min_resource must be a whole number or auto, got 'atuo'; "
                "did you mean 'auto'?"
            ],
        ),
        ("asha", {"reduction_factor": 1}, [f"{WHERE}.reduction_factor must be >= 2, got 1"]),
        (
            "asha",
            {"min_resource": 10, "min_early_stopping_rate": 2, "max_resource": 90},
            [f"{WHERE}: max_resource must be > 90, the first rung, got 90"],
        ),
        (
            "hyperband",
            {"min_resource": 9, "max_resource": 3},
            [f"{WHERE}: max_resource must be >= 9, min_resource, got 3"],
        ),
        ("patient", {}, [f"{WHERE}.patience is missing"]),
        (
            "patient",
            {"patience": 1, "wrapped": "patient"},
            [
                f"{WHERE}.wrapped must be one of median, percentile, asha, hyperband, threshold, "
                "wilcoxon, got 'patient'"
            ],
        ),
        (
            "patient",
            {"patience": 1, "wrapped": {"name": "percentile", "percentile": -1}},
            [f"{WHERE}.wrapped.percentile must be >= 0, got -1"],
        ),
        ("threshold", {}, [f"{WHERE}: Either lower or upper must be specified."]),
        ("threshold", {"lower": math.nan}, [f"{WHERE}.lower must be a finite number, got nan"]),
        ("wilcoxon", {"p_threshold": 2.0}, [f"{WHERE}.p_threshold must be <= 1, got 2.0"]),
    ],
)
def test_build_says_what_is_wrong(name, given, lines):
    with pytest.raises(InputError) as caught:
        pruners.build(name, given, "minimize")

    assert caught.value.mistakes == lines


def test_several_objectives_allow_no_pruner():
    with pytest.raises(InputError, match="must be none with 2 objectives, got 'asha'"):
        pruners.build("asha", {}, ["minimize", "maximize"])

    assert pruners.build("none", {}, ["minimize", "maximize"])
    assert pruners.build("asha", {}, ["minimize"])


def test_constructors_check_their_settings():
    with pytest.raises(ValueError, match="max_resource must be > 3, the first rung, got 2"):
        AshaPruner(3, max_resource=2)
    with pytest.raises(InputError, match=r"MedianPruner.interval_steps must be >= 1, got 0"):
        MedianPruner(interval_steps=0)
