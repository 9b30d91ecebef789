"""Reading a study's trials at once, against Optuna's own way."""

from __future__ import annotations

from pathlib import Path

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import RDBStorage
from optuna.trial import TrialState

from sweepstack.study.read import trials_of

SPACE = {
    "x": FloatDistribution(0.1, 10, log=True),
    "n": IntDistribution(1, 9),
    "c": CategoricalDistribution(["a", None, 3]),
}


@pytest.fixture
def storage(tmp_path: Path) -> RDBStorage:
    return RDBStorage(f"sqlite:///{tmp_path / 'studies.db'}")


@pytest.fixture
def study(storage: RDBStorage) -> optuna.Study:
    """Trials in every state, with all that a trial can have, beside another study's."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    other = optuna.create_study(storage=storage, study_name="other")
    other.tell(other.ask(SPACE), 1.0)
    made = optuna.create_study(storage=storage, study_name="s", directions=["minimize", "maximize"])
    for values in ([0.5, float("inf")], [-1.0, 2.0]):
        trial = made.ask(SPACE)
        trial.set_user_attr("words", ["a", {"b": None}])
        trial.set_constraint("small", -0.5)
        made.tell(trial, values)
    made.tell(made.ask(SPACE), state=TrialState.FAIL)
    made.ask({"x": SPACE["x"]})
    made.enqueue_trial({"n": 3})
    return made


def by_optuna(*_: object, **__: object) -> None:
    raise AssertionError("Optuna was asked")


def test_it_is_what_optuna_reads(
    study: optuna.Study, storage: RDBStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = optuna.load_study(study_name="s", storage=storage).get_trials()
    assert len(expected) == 5
    monkeypatch.setattr(study, "get_trials", by_optuna)
    assert trials_of(study, storage) == expected


def test_reports_too(storage: RDBStorage) -> None:
    study = optuna.create_study(storage=storage)
    trial = study.ask()
    for step, value in ((3, 0.5), (1, float("nan")), (2, float("-inf"))):
        trial.report(value, step)
    study.tell(trial, 1.0)
    (mine,), (other,) = trials_of(study, storage), study.get_trials()
    reports = [sorted(each.intermediate_values.items()) for each in (mine, other)]
    assert repr(reports[0]) == repr(reports[1])


def test_other_storages_and_tables_are_read_by_optuna(
    study: optuna.Study, storage: RDBStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = optuna.create_study()
    memory.tell(memory.ask(SPACE), 2.0)
    assert trials_of(memory) == memory.get_trials()
    expected = study.get_trials()
    with storage.engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE trial_values RENAME COLUMN value TO renamed")
    # What Optuna cannot read now either, it has in its cache.
    monkeypatch.setattr(study, "get_trials", lambda deepcopy: expected)
    assert trials_of(study, storage) == expected
    with storage.engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE trial_values RENAME COLUMN renamed TO value")
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = 'v9.9.9.a'")
    monkeypatch.setattr(study, "get_trials", lambda deepcopy: [])
    assert trials_of(study, storage) == []


def test_an_attribute_that_names_no_trial_changes_nothing(
    study: optuna.Study, storage: RDBStorage
) -> None:
    trial = study.ask()
    trial.set_user_attr("sweepstack.continues", [2])  # a study may come from anyone
    study.tell(trial, [0.0, 0.0])
    assert trials_of(study, storage) == study.get_trials()
