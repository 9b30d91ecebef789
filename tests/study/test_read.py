"""Reading a study's trials at once, against Optuna's own way."""

from __future__ import annotations

from pathlib import Path

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages._rdb import models
from optuna.trial import TrialState

from sweepstack.study.read import trials_of

SPACE = {
    "x": FloatDistribution(0.1, 10, log=True),
    "n": IntDistribution(1, 9),
    "c": CategoricalDistribution(["a", None, 3]),
}


@pytest.fixture
def study(tmp_path: Path) -> optuna.Study:
    """Trials in every state, with all that a trial can have, beside another study's."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    url = f"sqlite:///{tmp_path / 'studies.db'}"
    other = optuna.create_study(storage=url, study_name="other")
    other.tell(other.ask(SPACE), 1.0)
    made = optuna.create_study(storage=url, study_name="s", directions=["minimize", "maximize"])
    for values in ([0.5, float("inf")], [-1.0, 2.0]):
        trial = made.ask(SPACE)
        trial.set_user_attr("words", ["a", {"b": None}])
        trial.set_constraint("small", -0.5)
        made.tell(trial, values)
    made.tell(made.ask(SPACE), state=TrialState.FAIL)
    made.ask({"x": SPACE["x"]})
    made.enqueue_trial({"n": 3})
    return made


def test_it_is_what_optuna_reads(study: optuna.Study) -> None:
    fresh = optuna.load_study(study_name="s", storage=study._storage)
    assert len(trials_of(study)) == 5
    assert trials_of(study) == fresh.get_trials()


def test_reports_too(tmp_path: Path) -> None:
    study = optuna.create_study(storage=f"sqlite:///{tmp_path / 'studies.db'}")
    trial = study.ask()
    for step, value in ((3, 0.5), (1, float("nan")), (2, float("-inf"))):
        trial.report(value, step)
    study.tell(trial, 1.0)
    (mine,), (other,) = trials_of(study), study.get_trials()
    reports = [sorted(each.intermediate_values.items()) for each in (mine, other)]
    assert repr(reports[0]) == repr(reports[1])


def test_other_storages_and_tables_are_read_by_optuna(
    study: optuna.Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = optuna.create_study()
    memory.tell(memory.ask(SPACE), 2.0)
    assert trials_of(memory) == memory.get_trials()
    monkeypatch.delattr(models.TrialValueModel, "stored_repr_to_value")
    kept = [[1.0, 2.0]]  # what Optuna cannot read now either, it has in its cache
    monkeypatch.setattr(study, "get_trials", lambda deepcopy: kept)
    assert trials_of(study) == kept
