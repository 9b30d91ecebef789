"""The doctor on learning curves."""

from __future__ import annotations

import numpy as np
import pytest
from doctor_support import made, said, with_histories

from sweepstack.study.view import StudyView

LR = "optimizer.lr=tag(log,interval(0.0001,1.0))"
STEPS = np.arange(10, 101, 10)


def study(curve_of, n=20, steps=STEPS, noise=0.002):
    """`n` trials whose learning rate does little; `curve_of(steps)` and noise."""
    rng = np.random.default_rng(0)
    trials = []
    for lr in np.geomspace(1e-3, 0.1, n):
        curve = curve_of(steps) - 0.1 * np.log10(lr / 0.01) ** 2 + rng.normal(0, noise, len(steps))
        found = {int(s): float(v) for s, v in zip(steps, curve, strict=True)}
        value = float(curve.max())
        trials.append({"params": {"optimizer.lr": float(lr)}, "value": value, "curve": found})
    return made([LR], trials)


def settled(steps):
    return 0.9 - 0.6 * np.exp(-steps / 15)


KINDS = ("improving", "saturated", "overfitting", "noisy")


def test_curves_that_settle_say_nothing():
    assert not [kind for kind in KINDS if said(study(settled), kind)]


def test_curves_that_rise_until_the_end_are_still_improving():
    [finding] = said(study(lambda steps: 0.3 + 0.006 * steps), "improving")
    assert finding.text.startswith("5 of the 5 best trials (20 of 20 trials)")
    assert finding.command == "training.max_steps=200"
    [finding] = said(study(lambda steps: 0.3 + 0.006 * steps, n=4), "improving")
    assert finding.text.startswith("4 of 4 trials are still improving")


def test_a_flat_noisy_curve_is_not_improving():
    opened = study(lambda steps: np.full(len(steps), 0.5), noise=0.02)
    assert not said(opened, "improving")


def test_what_a_decaying_rate_improves_is_no_reason_for_more_steps(tmp_path):
    opened = study(lambda steps: 0.3 + 0.006 * steps)
    rows = {
        trial.number: [
            {"step": step, "lr": 0.1 * (1.0001 - step / 100), "value": value}
            for step, value in trial.intermediate_values.items()
        ]
        for trial in opened.study.trials
    }
    opened.study.set_user_attr("sweepstack.identity", {})  # the objective is called value
    assert not said(with_histories(opened, tmp_path, rows), "improving")
    constant = {n: [{**row, "lr": 0.1} for row in found] for n, found in rows.items()}
    assert said(with_histories(opened, tmp_path / "constant", constant), "improving")


def test_curves_that_are_flat_from_the_start_are_saturated():
    [finding] = said(study(lambda steps: 0.9 - 0.6 * np.exp(-steps / 3)), "saturated")
    assert "by step 20 of 100" in finding.text
    assert finding.command == "training.max_steps=50"


def losses(opened, folder, rise, falling):
    """Histories with a validation loss that rises by `rise` from step 40 on."""
    rows = {
        trial.number: [
            {
                "step": step,
                "train_loss": 1.0 - 0.009 * step if falling else 0.4,
                "val_loss": 0.6 - 0.005 * min(step, 40) + rise * max(step - 40, 0),
                "val_accuracy": value,
            }
            for step, value in trial.intermediate_values.items()
        ]
        for trial in opened.study.trials
    }
    return with_histories(opened, folder, rows)


def test_a_validation_loss_that_rises_while_the_training_loss_falls_is_overfitting(tmp_path):
    [finding] = said(losses(study(settled), tmp_path, 0.004, True), "overfitting")
    assert finding.text.startswith("5 of the 5 best trials")
    assert finding.command == "regularization.dropout=0.0,0.2,0.4"


def test_a_small_rise_or_a_training_loss_that_stands_still_is_none(tmp_path):
    assert not said(losses(study(settled), tmp_path / "a", 0.0001, True), "overfitting")
    assert not said(losses(study(settled), tmp_path / "b", 0.004, False), "overfitting")


def test_a_late_noise_larger_than_all_differences_is_noisy():
    [finding] = said(study(settled, noise=0.2), "noisy")
    assert finding.command == "schedule=cosine"


def test_with_few_evaluations_curves_are_unknown():
    opened = study(settled, steps=np.array([50, 100]))
    assert not [kind for kind in KINDS if said(opened, kind)]
    [finding] = said(opened, "curves", "fact")
    assert "cannot be judged" in finding.text
    assert finding.command == "training.eval_every=10"


def test_curves_that_stopped_early_are_unknown_for_another_reason():
    opened = study(settled)
    for trial in opened.study.get_trials(deepcopy=False)[:16]:
        opened.study._storage._get_trial(trial._trial_id).user_attrs["stopped"] = "no better"
    [finding] = said(StudyView(opened.study, "memory"), "curves", "fact")
    assert "stopped early" in finding.text
    assert "evaluations" not in finding.text
    assert finding.command is None


@pytest.mark.parametrize("direction", ["maximize", "minimize"])
def test_an_infinite_evaluation_is_no_part_of_a_curve(direction):
    sign, rng, trials = 1 if direction == "maximize" else -1, np.random.default_rng(0), []
    for index, lr in enumerate(np.geomspace(1e-3, 0.1, 20)):
        values = sign * (settled(STEPS) - 0.1 * np.log10(lr / 0.01) ** 2)
        values += rng.normal(0, 0.002, len(STEPS))
        found = {int(s): float(v) for s, v in zip(STEPS, values, strict=True)}
        found[10] = float("inf") if index % 2 else -float("inf")
        settings = {"optimizer.lr": float(lr)}
        trials.append({"params": settings, "value": found[100], "curve": found})
    opened = made([LR], trials, direction=direction)
    assert not [kind for kind in KINDS if said(opened, kind)]
    assert not said(opened, "curves", "fact")
