"""Which trials of a study keep their model: hydra.sweeper.keep_models."""

from __future__ import annotations

import json
import shlex

import optuna
import pytest
from optuna.storages import RDBStorage
from sweep_support import QUICK, study

import sweepstack
from sweepstack.config.errors import EnvironmentFault
from sweepstack.study.read import best_trials
from sweepstack.sweep.worker.trial_folder import remove_models

pytestmark = pytest.mark.slow

RATES = "optimizer.lr=0.001,0.03,0.002,0.02,0.01,0.004"


def kept(folder, name="s"):
    """Numbers of the trials with a model, and with files of one."""
    place = folder / "outputs" / "studies" / name
    found = {path.parent.name for path in place.glob("*/best.pt")}
    assert {path.parent.name for path in place.glob("*/best.pt.sha256")} == found
    return sorted(map(int, found))


def best(folder, n, name="s"):
    return sorted(trial.number for trial in best_trials(study(folder, name))[:n])


@pytest.mark.parametrize("width", ["1", "4"])
def test_only_the_best_is_kept_unless_more_are_asked_for(main, tmp_path, width):
    words = (*QUICK, f"training.width={width}")
    assert main("-m", *words, RATES).code == 0
    assert kept(tmp_path) == best(tmp_path, 1)
    for number, keep in ((3, "3"), (6, "all"), (0, "none")):
        name = f"hydra.sweeper.study_name=s{keep}"
        assert main("-m", *words[:-2], words[-1], RATES, name, f"hydra.sweeper.keep_models={keep}")
        assert kept(tmp_path, f"s{keep}") == best(tmp_path, number, f"s{keep}")


def test_several_workers_keep_the_best_of_the_study(sweepstack, tmp_path):
    keep = ("hydra.sweeper.n_jobs=2", "hydra.sweeper.keep_models=2", "training.width=1")
    done = sweepstack("-m", *QUICK, RATES, *keep)
    assert done.returncode == 0, done.stderr
    assert kept(tmp_path) == best(tmp_path, 2)


def test_a_later_command_removes_none_that_an_earlier_one_asked_for(main, tmp_path):
    random = ("optimizer.lr=interval(0.001,0.03)", "hydra/sweeper/sampler=random")
    keep = "hydra.sweeper.keep_models"
    assert main("-m", *QUICK, *random, "hydra.sweeper.n_trials=4", f"{keep}=2").code == 0
    assert kept(tmp_path) == best(tmp_path, 2)
    assert main("-m", *QUICK, *random, "hydra.sweeper.n_trials=8", f"{keep}=none").code == 0
    assert set(kept(tmp_path)) <= set(best(tmp_path, 2))
    assert kept(tmp_path)


def test_of_several_objectives_the_front_is_kept(main, tmp_path):
    goals = (
        "hydra.sweeper.objectives=[val_mse,num_parameters]",
        "hydra.sweeper.directions=[minimize,minimize]",
    )
    sizes = "model.hidden=[2],[4],[8]"
    words = [word for word in QUICK if not word.startswith("model.hidden")]
    assert main("-m", *words, sizes, *goals).code == 0
    assert kept(tmp_path) == best(tmp_path, 3)


def test_what_keep_models_takes(main, tmp_path):
    for value in ("0", "some", "true"):
        ended = main("-m", *QUICK, RATES, f"hydra.sweeper.keep_models={value}")
        assert ended.code == 2
        assert "hydra.sweeper.keep_models must be" in ended.err
    assert not (tmp_path / "outputs").exists()


def test_a_trial_without_a_model_says_why_and_how_to_train_it_again(main, tmp_path):
    words = [word for word in QUICK if not word.startswith("hydra.sweeper.study_name")]
    where = "sqlite:///outputs/my studies.db"
    main(
        *("-m", *words, RATES, "hydra.sweeper.study_name='my study'"),
        f"hydra.sweeper.storage='{where}'",
    )
    place = tmp_path / "outputs" / "studies" / "my study"
    [number] = [int(path.parent.name) for path in place.glob("*/best.pt")]
    assert sweepstack.load(place / str(number)) is not None
    other = (number + 1) % 6
    with pytest.raises(EnvironmentFault) as raised:
        sweepstack.load(place / str(other))
    line = str(raised.value)
    assert f"hydra.sweeper.keep_models), here {number};" in line
    command = shlex.split(line.partition("train it again: ")[2])
    assert command == ["sweepstack-study", "rerun", "my study", str(other), "--storage", where]
    found = json.loads((place / str(other) / "metrics.json").read_text())
    found["equals"] = number
    (place / str(other) / "metrics.json").write_text(json.dumps(found))
    with pytest.raises(EnvironmentFault, match=f"is a duplicate of trial {number}, which has it"):
        sweepstack.load(place / str(other))
    (tmp_path / "run").mkdir()
    with pytest.raises(EnvironmentFault, match="only a finished run has one"):
        sweepstack.load(tmp_path / "run")


def test_to_remove_models_the_database_is_read_at_once(tmp_path, monkeypatch):
    storage = RDBStorage(f"sqlite:///{tmp_path / 'studies.db'}")
    known = optuna.create_study(storage=storage)
    for number, value in enumerate((2.0, 1.0)):
        known.tell(known.ask(), value)
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "best.pt").touch()
    monkeypatch.setattr(known, "get_trials", None)  # takes seconds for 10,000 trials
    remove_models(known, tmp_path, storage)
    assert [path.parent.name for path in tmp_path.glob("*/best.pt")] == ["1"]


def test_to_resume_a_sweep_optuna_need_not_build_an_object_of_every_trial(main, monkeypatch):
    assert main("-m", *QUICK, RATES).code == 0
    monkeypatch.setattr(optuna.Study, "get_trials", None)  # takes seconds for 10,000 trials
    ended = main("-m", *QUICK, RATES)
    assert ended.code == 0, ended.err
    assert "6 of them done before" in ended.out
