"""Trials that cannot be composed or suggested: they are told at once, and end a sweep of them."""

from __future__ import annotations

import optuna
import pytest
from sweep_support import QUICK, states, study

SPACE = """
def suggest(config, trial):
    trial.suggest_float("optimizer.lr", -2.0, -1.0)
"""


@pytest.mark.parametrize("limit", ["max_steps_total=80", "n_trials=500"])
def test_a_sweep_whose_trials_are_all_refused_ends_by_its_failure_rate(main, tmp_path, limit):
    (tmp_path / "refused_space.py").write_text(SPACE)
    words = ["optimizer.momentum=0,0.5", "hydra/sweeper/sampler=random"]
    space = "hydra.sweeper.custom_search_space=refused_space.suggest"
    limits = [f"hydra.sweeper.{limit}", "hydra.sweeper.timeout_s=300"]  # or it might never end
    ended = main("-m", *QUICK, *words, space, *limits)

    assert ended.code == 4
    assert "optimizer.lr must be" in ended.err.splitlines()[-1]
    # Where there is a total, it ends as soon as the rate cannot be kept any more.
    assert len(states(tmp_path)) <= (251 if limit.startswith("n_trials") else 100)
    assert set(states(tmp_path)) == {"FAIL"}


def test_a_sampler_that_raises_fails_its_trial_and_not_the_sweep(main, tmp_path, monkeypatch):
    sample = optuna.samplers.RandomSampler.sample_independent

    def raising(self, study, trial, name, distribution):
        if trial.number == 1:
            raise RuntimeError("the matrix is singular")
        return sample(self, study, trial, name, distribution)

    monkeypatch.setattr(optuna.samplers.RandomSampler, "sample_independent", raising)
    words = ["optimizer.lr=interval(0.001,0.02)", "hydra/sweeper/sampler=random"]
    ended = main("-m", *QUICK, *words, "hydra.sweeper.n_trials=4")

    assert ended.code == 0, ended.err
    assert states(tmp_path) == ["COMPLETE", "FAIL", "COMPLETE", "COMPLETE"]
    error = study(tmp_path).trials[1].user_attrs["error"]
    assert error == "the sampler raised RuntimeError: the matrix is singular"
