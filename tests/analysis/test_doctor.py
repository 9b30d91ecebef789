"""The doctor as a whole: healthy studies, studies of others, what it proposes, hostile text."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import numpy as np
import optuna
import pytest
from doctor_support import CONFIG, loud, made
from optuna.trial import TrialState, create_trial

from sweepstack.analysis.doctor import Finding, examine, next_command
from sweepstack.config.space import declare
from sweepstack.config.space.points import labels_of
from sweepstack.study.view import StudyView, open_study
from sweepstack.sweep import plan

LR = "optimizer.lr=tag(log,interval(0.0001,1.0))"
DROPOUT = "regularization.dropout=interval(0,0.5)"
STEPS = range(10, 101, 10)


def healthy(seed=0, n=60, **settings):
    """Two keys with their best inside, curves that settle, three seeds, some trials pruned."""
    rng = np.random.default_rng(seed)
    trials = []
    for number in range(n):
        lr, dropout = float(10 ** rng.uniform(-4, 0)), float(rng.uniform(0, 0.5))
        top = 0.95 - 0.1 * abs(np.log10(lr / 0.01)) - (dropout - 0.2) ** 2 + rng.normal(0, 0.001)
        steps = STEPS
        found = {"params": {"optimizer.lr": lr, "regularization.dropout": dropout}}
        found["curve"] = {
            step: float(top - 0.5 * np.exp(-step / 15) + rng.normal(0, 0.001)) for step in steps
        }
        if number > 10 and top < 0.85:
            found["curve"] = {step: found["curve"][step] for step in (10, 20, 30)}
            found |= {"state": TrialState.PRUNED, "attrs": {"steps": 30}}
        else:
            found["value"] = max(found["curve"].values())
            found["attrs"] = {"steps": 100, "seeds": 3, "std": 0.00005}
        trials.append(found)
    return made([LR, DROPOUT], trials, asked={"pruner": {"name": "median"}}, **settings)


@pytest.mark.parametrize("seed", range(8))
def test_a_healthy_study_has_facts_only(seed):
    opened = healthy(seed)
    assert not loud(opened)
    assert {finding.kind for finding in examine(opened)} == {"pruning", "seed-noise"}
    assert next_command(opened, examine(opened)) is None


def foreign(direction="minimize", n=30):
    """Plain Optuna, as others use it."""
    study = optuna.create_study(direction=direction)

    def objective(trial):
        x = trial.suggest_float("x", -1, 1)
        trial.suggest_categorical("kind", [None, True, "a", 1.5])
        trial.suggest_int("n", 1, 8)
        trial.report(x, 1)
        if trial.number % 7 == 3:
            raise ValueError("no\x1b[31m luck\n at all")
        if trial.number % 7 == 4:
            raise optuna.TrialPruned
        return float("inf") if trial.number % 7 == 5 else x**2

    sampler = optuna.samplers.RandomSampler(seed=0)
    study.sampler = sampler
    study.optimize(objective, n, catch=(ValueError,))
    return StudyView(study, "memory")


def test_other_programs_studies_are_read_and_get_no_command():
    opened = foreign()
    found = examine(opened)
    assert "diverged" in {f.kind for f in found} or "failed" in {f.kind for f in found}
    assert next_command(opened, found) is None
    assert all(finding.command is None for finding in found)


def test_empty_failed_only_waiting_and_several_objectives_are_read():
    empty = StudyView(optuna.create_study(), "memory")
    assert examine(empty) == []
    assert next_command(empty, []) is None
    failed = optuna.create_study()
    failed.add_trials([create_trial(state=TrialState.FAIL)] * 3)
    [finding] = examine(StudyView(failed, "memory"))
    assert (finding.level, finding.text) == ("problem", "all 3 trials failed")
    failed.enqueue_trial({"x": 1})
    assert examine(StudyView(failed, "memory"))[0].text == "all 3 trials failed"
    several = optuna.create_study(directions=["minimize", "maximize"])
    several.optimize(lambda t: (t.suggest_float("x", 0, 1), t.suggest_int("n", 1, 3)), 30)
    assert examine(StudyView(several, "memory")) == []
    pruned = optuna.create_study()
    pruned.add_trials([create_trial(state=TrialState.PRUNED, intermediate_values={1: 0.5})] * 3)
    assert examine(StudyView(pruned, "memory"))[0].level == "problem"
    one = optuna.create_study()
    one.optimize(lambda t: t.suggest_float("x", 0, 1), 1)
    assert {f.level for f in examine(StudyView(one, "memory"))} <= {"fact"}


def test_no_warning_where_all_values_are_equal_or_missing():
    trials = [{"params": {"optimizer.lr": 0.01}, "value": 0.5}] * 60
    assert not loud(made([LR], trials))
    same = [
        {"params": {"optimizer.lr": float(lr)}, "value": 0.5, "curve": dict.fromkeys(STEPS, 0.5)}
        for lr in np.geomspace(1e-4, 1, 60)
    ]
    assert [f.kind for f in loud(made([LR], same))] in ([], ["saturated"])


SEEDED = {"seeds": 3, "std": 0.00005}


def at_the_edge(arguments=(LR,), attrs=SEEDED, **settings):
    """Best at the upper end of the learning rates."""
    trials = [
        {"params": {"optimizer.lr": float(lr)}, "value": 0.5 + 0.1 * np.log10(lr), "attrs": attrs}
        for lr in np.random.default_rng(0).permutation(np.geomspace(1e-4, 1, 40))
    ]
    return made(list(arguments), trials, **settings)


def words_of(opened):
    command = next_command(opened, examine(opened))
    assert "\n" not in command
    return shlex.split(command)


def test_the_next_command_is_the_same_sweep_with_a_wider_range():
    asked = {"pruner": {"name": "asha", "reduction_factor": 2}, "n_trials": 40}
    opened = at_the_edge(["data=digits", LR, "training.max_steps=100"], asked=asked)
    words = words_of(opened)
    assert words[:5] == [
        *("sweepstack", "-m", "data=digits"),
        *("optimizer.lr=tag(log,interval(0.0001,10.0))", "training.max_steps=100"),
    ]
    assert words[5:] == [
        *("hydra/sweeper/pruner=asha", "hydra.sweeper.pruner.reduction_factor=2"),
        *("hydra.sweeper.n_trials=40", "hydra.sweeper.study_name=made_2"),
    ]


def test_a_study_without_a_name_of_its_own_gets_none():
    arguments = ["data=digits", LR]
    named = at_the_edge(arguments, name=plan.name_of("sweepstack", arguments))
    assert not [word for word in words_of(named) if "study_name" in word]
    assert words_of(at_the_edge(arguments, name="x_2"))[-1] == "hydra.sweeper.study_name=x_3"


def test_a_name_that_is_taken_is_not_proposed(tmp_path):
    url = f"sqlite:///{tmp_path}/studies.db"
    for name in ("made_2", "made_3"):
        optuna.create_study(storage=url, study_name=name)
    assert words_of(at_the_edge(storage=url))[-1] == "hydra.sweeper.study_name=made_4"


def test_keys_that_only_the_sweeper_was_told_of_are_said_again():
    opened = at_the_edge([LR])
    opened.study.set_user_attr("sweepstack.sweep", {**opened.asked, "arguments": ["data=digits"]})
    again = StudyView(opened.study, "memory")
    found = [Finding("improving", "hint", "", "training.max_steps=200")]
    assert LR in shlex.split(next_command(again, found))


def test_while_a_sweep_is_at_work_nothing_is_proposed():
    opened = at_the_edge()
    opened.study.enqueue_trial({"optimizer.lr": 0.1})
    assert next_command(opened, examine(opened)) is None


def test_where_the_noise_is_unknown_the_best_are_run_again_with_seeds():
    opened = healthy()
    fresh = made([LR, DROPOUT], [], asked={"n_trials": 60})
    trials = opened.study.get_trials()
    for trial in trials:
        trial.user_attrs = {}
    fresh.study.add_trials(trials)
    words = words_of(fresh)
    assert "training.seeds=5" in words
    [enqueue] = [word for word in words if word.startswith("hydra.sweeper.enqueue=")]
    from hydra.core.override_parser.overrides_parser import OverridesParser

    points = OverridesParser.create().parse_override(enqueue).value()
    best = max((t for t in trials if t.value), key=lambda t: t.value)
    assert len(points) == 5
    known = labels_of(declare.parse([LR, DROPOUT]), list(map(str, points[0])))
    assert known == best.params


def test_what_is_unknown_is_asked_before_more_trials_of_one_seed():
    opened = at_the_edge(attrs={})
    found = examine(opened)
    assert {"edge", "seed-noise"} <= {finding.kind for finding in found}
    found.append(Finding("curves", "fact", "", "training.eval_every=10"))
    words = shlex.split(next_command(opened, found))
    assert {"training.seeds=5", "training.eval_every=10", "hydra.sweeper.n_trials=5"} <= {*words}
    assert LR in words  # no wider range
    # What makes results unusable is mended first.
    half = [{"params": {"optimizer.lr": 1.0}, "state": TrialState.FAIL}] * 60
    assert "problem" in {f.level for f in examine(made([LR], half))}
    urgent = [
        Finding("diverged", "problem", ""),
        Finding("diverged", "hint", "", "schedule.warmup_steps=10"),
        *found,
    ]
    command = shlex.split(next_command(opened, urgent))
    assert "schedule.warmup_steps=10" in command
    assert "training.seeds=5" not in command


def test_text_of_a_study_stays_one_plain_line():
    evil = "'; touch canary #\n\x1b[31m$(touch canary)`touch canary`"
    opened = at_the_edge(name=f"x{evil}")
    asked = {**opened.asked, "arguments": [f"data={evil}", LR]}
    opened.study.set_user_attr("sweepstack.sweep", asked)
    opened = StudyView(opened.study, "memory")
    errors = [create_trial(state=TrialState.FAIL, user_attrs={"error": evil})] * 3
    opened.study.add_trials(errors)
    found = examine(opened)
    assert all(finding.text.isprintable() for finding in found)
    command = next_command(opened, found)
    assert command.isprintable()
    words = shlex.split(command)
    assert words[:2] == ["sweepstack", "-m"]
    assert [word for word in words if "touch" in word] == [words[2], words[-1]]


def dry(sweepstack, words):
    result = sweepstack(*words[1:], "hydra.sweeper.dry_run=true")
    assert result.returncode == 0, result.stderr
    assert "nothing was run" in result.stdout
    return result.stdout


def run(sweepstack, *words):
    result = sweepstack("-m", *words)
    assert result.returncode == 0, result.stderr


@pytest.mark.slow
def test_the_sweeper_takes_what_is_proposed_for_real_sweeps(sweepstack, tmp_path, monkeypatch):
    run(
        sweepstack,
        *("data=quadratic", "optimizer=sgd", "optimizer.lr=tag(log,interval(1e-5,1e-2))"),
        *("training.max_steps=40", "training.eval_every=4", "hydra.sweeper.n_trials=24"),
        "training.seeds=2",
        *("hydra.sweeper.study_name=low", "hydra/sweeper/sampler=random"),
    )
    run(sweepstack, *("data=digits", "init=he,xavier", "training.max_steps=20"))
    monkeypatch.chdir(tmp_path)
    low = open_study("low", "sqlite:///outputs/studies.db")
    text = dry(sweepstack, words_of(low))
    assert "a float from 1e-05 to 0." in text
    assert "low_2" in text
    assert "random" in text
    [name] = [n for n in optuna.get_all_study_names("sqlite:///outputs/studies.db") if n != "low"]
    digits = open_study(name, "sqlite:///outputs/studies.db")
    found = [
        *(Finding("improving", "hint", "", "training.max_steps=40"),),
        *(Finding("edge", "hint", "", "init=he,xavier,orthogonal"),),
    ]
    assert "xavier, orthogonal" in dry(sweepstack, shlex.split(next_command(digits, found)))
    unknown = [Finding("seed-noise", "fact", "", "training.seeds=5")]
    assert "tried first" in dry(sweepstack, shlex.split(next_command(digits, unknown)))


@pytest.mark.slow
def test_the_sweeper_takes_a_wider_case(sweepstack, tmp_path, monkeypatch):
    run(
        sweepstack,
        *("+sweeps=regularization_tpe", "training.max_steps=4", "training.eval_every=2"),
        *("hydra.sweeper.n_trials=4", "hydra.sweeper.study_name=cased"),
    )
    monkeypatch.chdir(tmp_path)
    from sweepstack.analysis.doctor import overrides

    opened = open_study("cased", "sqlite:///outputs/studies.db")
    found = [
        Finding("edge", "hint", "", shlex.quote(overrides.widened(opened, case, True)))
        for case in opened.parameters
        if case.name in ("optimizer.lr[optimizer=sgd]", "regularization.weight_decay")
    ]
    assert len(found) == 2
    text = dry(sweepstack, shlex.split(next_command(opened, found)))
    assert "0.001 to 10.0" in text
    assert "0.0001 to 0.1" in text
    assert "1e-06 to 0.1" in text
    assert "asha" in text


def test_config_of_the_made_up_studies_has_the_keys_of_real_ones():
    from sweepstack.config import composition

    composed = composition.compose(with_hydra=True)
    for group, keys in CONFIG.items():
        assert set(keys) <= set(composed[group])


def test_the_package_is_light():
    assert Path(sys.modules["sweepstack.analysis.doctor"].__file__).stat().st_size < 4000
