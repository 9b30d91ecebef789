"""The doctor on failures, seeds, idle keys and pruning."""

from __future__ import annotations

import math
import shlex

import numpy as np
import pytest
from doctor_support import made, said
from optuna.trial import TrialState

LR = "optimizer.lr=tag(log,interval(0.0001,1.0))"
DROPOUT = "regularization.dropout=interval(0,0.5)"
NAN = {"error": "train_loss became nan at step 12 of 200"}


def failed(**params):
    return {"params": params, "state": TrialState.FAIL, "attrs": NAN}


def good(value, **params):
    return {"params": params, "value": value}


def by_lr(lr, value):
    return good(value, **{"optimizer.lr": lr})


def test_a_tenth_of_failed_trials_is_a_hint_and_half_a_problem():
    rates = [float(lr) for lr in np.random.default_rng(0).permutation(np.geomspace(1e-4, 1, 40))]
    for n, level in ((2, "fact"), (6, "hint"), (20, "problem")):
        trials = [
            failed(**{"optimizer.lr": lr}) if i < n else by_lr(lr, 0.9 - 0.001 * i)
            for i, lr in enumerate(rates)
        ]
        [finding] = said(made([LR], trials), "diverged", level)
        assert f"{n} of 40 trials failed" in finding.text
        assert "train_loss became nan" in finding.text


def test_other_errors_are_no_divergence():
    trials = [{**failed(**{"optimizer.lr": 0.1}), "attrs": {"error": "disk full"}}] * 5
    assert said(made([LR], trials + [by_lr(0.1, 0.5)] * 5), "failed", "problem")


def test_an_infinite_loss_counts_as_diverged():
    trials = [by_lr(0.1, math.inf)] * 6 + [by_lr(0.01, 0.5)] * 4
    [finding] = said(made([LR], trials, direction="minimize"), "diverged")
    assert "6 of 10" in finding.text


def lr_study(best_at, fails_from, n=60):
    trials = []
    for lr in np.random.default_rng(0).permutation(np.geomspace(1e-4, 1, n)):
        lr = float(lr)
        value = 0.9 - 0.1 * abs(math.log10(lr / best_at))
        trials.append(failed(**{"optimizer.lr": lr}) if lr >= fails_from else by_lr(lr, value))
    return made([LR], trials)


def test_the_best_next_to_failures_borders_on_them():
    [finding] = [f for f in said(lr_study(0.25, 0.4), "diverged") if "borders" in f.text]
    assert "from 0.4" in finding.text
    assert finding.command == "schedule.warmup_steps=10"
    for best_at, fails_from in ((0.01, 0.4), (0.03, 0.15)):
        found = said(lr_study(best_at, fails_from), "diverged")
        assert not [finding for finding in found if "borders" in finding.text]


def seeded(values, std):
    """Trials that are means over 3 seeds each."""
    return [
        {**by_lr(lr, v), "attrs": {"seeds": 3, "std": std}}
        for lr, v in zip(np.geomspace(1e-3, 0.1, len(values)).tolist(), values, strict=True)
    ]


def test_the_best_that_differ_by_less_than_seed_noise_are_counted():
    values = [0.9, 0.899, 0.898, 0.8, 0.79, 0.7, 0.6, 0.5]
    [finding] = said(made([LR], seeded(values, 0.01)), "seed-noise")
    assert "the best 3 of 8 configurations" in finding.text
    assert "0.005774 over 3 seeds" in finding.text
    assert finding.command == "training.seeds=5"
    opened = made([LR], seeded(values, 0.0001))
    assert not said(opened, "seed-noise")
    assert "leads by more than seed noise" in said(opened, "seed-noise", "fact")[0].text


def test_a_swept_seed_tells_the_noise():
    arguments = ["init=he,xavier,normal", "training.seed=range(0,3)"]

    def grid(gap):
        return made(
            arguments,
            [
                good(0.9 - gap * i + 0.01 * seed, **{"init": init, "training.seed": seed})
                for i, init in enumerate(("he", "xavier", "normal"))
                for seed in range(3)
            ],
        )

    [finding] = said(grid(0.001), "seed-noise", "hint", "fact")
    assert "the best 3 of 3" in finding.text
    [finding] = said(grid(0.1), "seed-noise", "hint", "fact")
    assert "leads by more" in finding.text


def test_with_one_seed_the_noise_is_unknown():
    opened = made([LR], [by_lr(0.01 * i, 0.9 - 0.01 * i) for i in range(1, 9)])
    assert not said(opened, "seed-noise")
    assert said(opened, "seed-noise", "fact")[0].text.endswith("each was trained with one seed")
    pairs = [(init, seed) for init in ("he", "xavier") for seed in range(2)]
    opened = made(
        ["init=he,xavier", "training.seed=range(0,2)"],
        [good(0.9 + 0.01 * s, **{"init": init, "training.seed": s}) for init, s in pairs],
    )
    [finding] = said(opened, "seed-noise", "fact")
    assert finding.text.endswith("each was trained with at most 2 seeds")


def two_keys(effect, n=80, noise=0.005, seed=0):
    rng = np.random.default_rng(seed)
    trials = []
    for _ in range(n):
        lr, dropout = float(10 ** rng.uniform(-4, 0)), float(rng.uniform(0, 0.5))
        value = 0.9 - 0.1 * abs(math.log10(lr / 0.01)) + effect(lr, dropout)
        value += rng.normal(0, noise)
        trials.append(good(value, **{"optimizer.lr": lr, "regularization.dropout": dropout}))
    return made([LR, DROPOUT], trials)


def test_a_key_that_did_nothing_is_named_with_what_fixes_it():
    found = [said(two_keys(lambda *_: 0.0, seed=seed), "idle-parameter") for seed in range(20)]
    assert sum(map(len, found)) >= 12  # chance looks like an effect now and then
    finding = found[0][0]
    assert finding.text.startswith("regularization.dropout did nothing")
    [word] = shlex.split(finding.command)
    key, _, value = word.partition("=")
    assert key == "regularization.dropout"
    assert 0 <= float(value) <= 0.5


@pytest.mark.parametrize(
    "effect",
    [
        lambda lr, dropout: -0.2 * dropout,
        lambda lr, dropout: -0.5 * (dropout - 0.25) ** 2 * 4,
        # Only in good company.
        lambda lr, dropout: -0.4 * dropout if 0.002 < lr < 0.05 else 0.0,
        # Here good and there bad, so that on the whole it seems to do nothing.
        lambda lr, dropout: (0.1 if 0.001 < lr < 0.1 else -0.1) * (dropout - 0.25),
    ],
)
def test_a_key_that_did_something_is_not_named(effect):
    for seed in range(10):
        assert not said(two_keys(effect, seed=seed), "idle-parameter")


def test_where_nothing_explains_the_values_or_trials_are_few_nothing_is_idle():
    assert not said(two_keys(lambda lr, dropout: 0.0, noise=5.0), "idle-parameter")
    assert not said(two_keys(lambda lr, dropout: 0.0, n=30), "idle-parameter")


def test_a_conditional_key_is_judged_where_it_exists():
    params = {"optimizer": "sgd,adam", "optimizer.momentum": "interval(0,0.9)", "optimizer.lr": ""}
    params["optimizer.lr"] = "tag(log,interval(0.0001,1.0))"
    when = [{"when": {"optimizer": "sgd"}, "values": params["optimizer.momentum"]}]
    params["optimizer.momentum"] = when

    def study(effect, seed):
        rng = np.random.default_rng(seed)
        trials = []
        for i in range(120):
            lr, momentum = float(10 ** rng.uniform(-4, 0)), float(rng.uniform(0, 0.9))
            value = 0.9 - 0.1 * abs(math.log10(lr / 0.01)) + rng.normal(0, 0.005)
            found = {"optimizer": "adam", "optimizer.lr": lr}
            if i % 2:
                found |= {"optimizer": "sgd", "optimizer.momentum": momentum}
                value += effect * momentum - 0.05
            trials.append(good(value, **found))
        return made(["+sweeps=mine"], trials, params=params)

    def named(effect):
        found = [f for seed in range(10) for f in said(study(effect, seed), "idle-parameter")]
        return [finding.text.split()[0] for finding in found]

    assert set(named(0.0)) == {"optimizer.momentum"}
    assert len(named(0.0)) >= 5
    assert not named(0.1)


def test_known_duplicates_are_a_fact_and_no_evidence():
    arguments = ["optimizer=sgd,adam", "optimizer.nesterov=false,true"]
    trials = [
        good(0.9, **{"optimizer": "adam", "optimizer.nesterov": False}),
        {**good(0.9, **{"optimizer": "adam", "optimizer.nesterov": True}), "attrs": {"equals": 0}},
        good(0.8, **{"optimizer": "sgd", "optimizer.nesterov": False}),
    ]
    [finding] = said(made(arguments, trials), "duplicates", "fact")
    assert "1 of 3 trials" in finding.text
    assert finding.text.endswith("only in optimizer.nesterov")


def pruned_study(late):
    """10 complete trials that rise to 0.9, 20 pruned at step 40, `late` above the best there."""
    steps = range(10, 101, 10)
    trials = [
        {**by_lr(0.01 + 0.001 * i, 0.9 - 0.001 * i), "attrs": {"steps": 100}}
        | {"curve": {step: 0.9 - 0.001 * i - 0.5 * 0.95**step for step in steps}}
        for i in range(10)
    ]
    for i in range(20):
        height = 0.05 if i < late else -0.2
        curve = {step: 0.9 + height - 0.5 * 0.95**step for step in (10, 20, 30, 40)}
        found = {"params": {"optimizer.lr": 0.3}, "state": TrialState.PRUNED, "curve": curve}
        trials.append({**found, "attrs": {"steps": 40}})
    pruner = {"pruner": {"name": "asha"}, "n_trials": 30, "grid": False}
    return made([LR], trials, asked=pruner)


def test_what_pruning_saved_is_a_fact():
    [finding] = said(pruned_study(0), "pruning", "fact")
    assert "saved 40 %" in finding.text  # 20 x 60 of 3,000
    assert not said(pruned_study(0), "pruning")


def test_trials_pruned_above_the_best_were_pruned_too_early():
    [finding] = said(pruned_study(5), "pruning")
    assert "5 of 20 pruned trials" in finding.text
    assert finding.command == "hydra.sweeper.pruner.min_resource=20"
    assert not said(pruned_study(2), "pruning")


def test_trials_that_catch_up_were_pruned_too_early():
    opened = pruned_study(0)
    rising = {10: 0.3, 20: 0.5, 30: 0.65, 40: 0.78}
    trials = [{"params": {"optimizer.lr": 0.3}, "state": TrialState.PRUNED, "curve": rising}] * 5
    more = made([LR], trials)
    opened.study.add_trials(more.study.get_trials())
    [finding] = said(opened, "pruning")
    assert "5 were catching up" in finding.text
