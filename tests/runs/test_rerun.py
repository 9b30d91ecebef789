"""A trial is trained again alone, from what its study keeps, and agrees with it: trials of all
kinds, and those that cannot be run again."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
from pathlib import Path

import optuna
import pytest
from fault_support import finish
from optuna.distributions import CategoricalDistribution, FloatDistribution
from rerun_support import (
    FIT,
    STACK,
    edit,
    execute,
    forget_folders,
    metrics,
    reruns,
    study,
    words_of,
)
from support import SHARED_DATA, needs_mnist

from sweepstack import storage
from sweepstack.analysis import doctor
from sweepstack.reporting.report import content
from sweepstack.runs import folder
from sweepstack.study import view
from sweepstack.study.attributes import SWEEP

pytestmark = pytest.mark.slow


def test_trials_of_a_stack_agree_and_are_kept_in_folders_of_their_own(stacked, again):
    for number in range(4):
        said = again("s", str(number))
        assert said.code == 0, said.out
        assert said.verdict.startswith("agrees: ")
        assert "changed: torch" not in said.out
        assert "val_mse at step" in said.out
    assert again("s", "2").code == 0
    assert reruns() == ["s-0", "s-1", "s-2", "s-2_2", "s-3"]
    left = {path.name for path in Path("outputs/reruns/s-2").iterdir()}
    assert left >= {"manifest.json", "metrics.json", "history.csv", "best.pt", "rerun.json"}
    kept = json.loads(Path("outputs/reruns/s-2/rerun.json").read_text())
    assert kept["agrees"] is True
    assert sum(row["metric"] == "val_mse" for row in kept["numbers"]) >= 6
    assert again("s", "1", "-o", "mine").code == 0
    assert Path("mine/metrics.json").exists()


def test_the_database_alone_suffices(stacked, again):
    forget_folders()
    said = again("s", "3")
    assert said.code == 0, said.out
    assert metrics("s-3")["val_mse"] == pytest.approx(study().trials[3].value, rel=1e-5)
    assert "val_mse at step" in said.out


def test_a_pruned_trial_is_trained_to_where_it_was_cut(main, again):
    words = ("hydra/sweeper/pruner=threshold", "hydra.sweeper.pruner.upper=1e-9")
    assert main("-m", *FIT, "optimizer.lr=0.01", "training.seeds=2", *words).code == 4
    assert study().trials[0].state.name == "PRUNED"
    said = again("s", "0")
    assert said.code == 0, said.out
    assert metrics()["state"] == "pruned"
    assert metrics()["steps"] == study().trials[0].user_attrs["steps"] == 8
    kept = json.loads(Path("outputs/reruns/s-0/rerun.json").read_text())["numbers"]
    assert {(row["step"], row["seed"]) for row in kept if row["metric"] == "val_loss"} >= {
        (4, 0),
        (4, 1),
    }
    forget_folders()
    assert again("s", "0").code == 0


def test_a_trial_whose_loss_broke_breaks_again_at_the_same_step(main, again):
    assert main("-m", *FIT, "optimizer.lr=1e4,0.01").code == 0
    error = study().trials[0].user_attrs["error"]
    said = again("s", "0")
    assert said.code == 0, said.out
    assert said.verdict.startswith("agrees: ")
    assert metrics()["error"] == error

    edit(0, error=error.replace("at step ", "at step 1"))
    assert "now it does at step" in again("s", "0").verdict
    edit(1, error="train_loss became nan at step 9 of 24")
    execute("UPDATE trials SET state = 'FAIL' WHERE number = 1")
    said = again("s", "1")
    assert said.code == 5
    assert said.verdict.startswith("differs: it failed at step 9, now it does not")
    edit(1, error="RuntimeError: the machine was on fire")
    said = again("s", "1")
    assert said.code == 5
    assert "the machine was on fire', now it does not fail" in said.verdict


def test_all_seeds_of_a_trial_are_trained(main, again):
    assert main("-m", *FIT, "optimizer.lr=0.01", "training.seeds=3", "training.seed=5").code == 0
    said = again("s", "0")
    assert said.code == 0, said.out
    for seed in (5, 6, 7):
        assert f"val_mse of seed {seed}" in said.out
    assert {"seed_5", "seed_6", "seed_7"} <= {p.name for p in Path("outputs/reruns/s-0").iterdir()}
    forget_folders()
    assert again("s", "0").code == 0
    values = study().trials[0].user_attrs["values"]
    edit(0, values=[values[0], values[1] * 1.01, values[2]])
    assert "val_mse of seed 6" in again("s", "0").verdict


def test_one_of_several_seeds_that_failed(main, again):
    assert main("-m", *FIT, "optimizer.lr=1e4,0.01", "training.seeds=2").code == 0
    said = again("s", "0")
    assert said.code == 0, said.out


def test_a_trial_that_has_the_numbers_of_its_twin(main, again):
    words = [word for word in FIT if word != "optimizer=sgd"]
    assert main("-m", *words, "optimizer=adam", "optimizer.nesterov=false,true").code == 0
    [twin] = [t.number for t in study().trials if "equals" in t.user_attrs]
    said = again("s", str(twin))
    assert said.code == 0, said.out
    manifest = json.loads(Path(f"outputs/reruns/s-{twin}/manifest.json").read_text())
    assert manifest["config"]["optimizer"]["nesterov"] is True


def test_trials_of_several_workers(main, again, tmp_path):
    drawn = ("optimizer.lr=interval(0.01,0.04)", "hydra/sweeper/sampler=random", "training.width=2")
    assert main("-m", *FIT, *drawn, "hydra.sweeper.n_trials=2").code == 0
    finish(["-m", *FIT, *drawn, "hydra.sweeper.n_trials=4"], tmp_path)  # in another process
    assert len({trial.user_attrs["sweepstack.worker"] for trial in study().trials}) == 2
    for number in range(4):
        assert again("s", str(number)).code == 0


def test_trials_that_were_interrupted_and_gone_on_with(main, again, monkeypatch):
    told = []

    def interrupted(self):
        step = max((training.live.step for training in self._training.values()), default=0)
        told.append(step)
        return 143 if step >= 8 and len(told) < 20 else None

    words = (*FIT, *STACK, "hydra.sweeper.n_jobs=1")
    with monkeypatch.context() as signal:
        signal.setattr("sweepstack.sweep.worker.trainer.Trainer.interrupted", interrupted)
        assert main("-m", *words).code != 0
    assert [trial.state.name for trial in study().trials].count("COMPLETE") == 0
    assert main("-m", *words).code == 0
    went_on = [t for t in study().trials if "sweepstack.continues" in t.user_attrs]
    assert len(went_on) == 4
    logs = [Path(f"outputs/studies/s/{t.number}/sweepstack.log").read_text() for t in went_on]
    assert all("step 8 of 24" in log for log in logs)
    for trial in went_on:
        said = again("s", str(trial.number))
        assert said.code == 0, said.out


def test_several_objectives(main, again):
    words = ("hydra.sweeper.objectives=[val_mse,num_parameters]", "optimizer.lr=0.01,0.02")
    words += ("hydra.sweeper.directions=[minimize,minimize]",)
    assert main("-m", *FIT, *words).code == 0
    assert again("s", "1").code == 0
    forget_folders()
    assert again("s", "1").code == 0


def test_configs_of_one_s_own(main, again, tmp_path):
    (tmp_path / "mine" / "init").mkdir(parents=True)
    (tmp_path / "mine" / "init" / "gentle.yaml").write_text("scheme: normal\ngain: 0.5\n")
    assert main("--config-dir", "mine", "-m", *FIT, "init=gentle,he").code == 0
    assert again("s", "0").code == 0
    forget_folders()
    said = again("s", "0")
    assert said.code == 2
    assert "--config-dir" in said.line
    assert again("s", "0", "--config-dir", "mine").code == 0


def test_a_trial_that_cannot_be_run_again(stacked, again):
    for number in ("4", "-1"):
        said = again("s", "--", number)
        assert (said.code, "0 to 3" in said.line) == (2, True)
    opened = study()
    opened.enqueue_trial({"optimizer.lr": 0.01})
    opened.ask()
    assert "trial 4 is running" in again("s", "4").line
    edit(0, sweepstack__overrides=None)
    assert "it has no attribute sweepstack.overrides" in again("s", "0").line
    edit(0, sweepstack__retried=True)
    assert "run again under another number" in again("s", "0").line
    none = optuna.create_study(study_name="none", storage=opened._storage)
    none.set_user_attr(SWEEP, {"application": {"name": "sweepstack"}})
    assert "the study is empty" in again("none", "0").line
    assert reruns() == []


@needs_mnist
def test_twenty_trials_of_a_stacked_mnist_sweep(main, again):
    words = (
        "data=mnist",
        f"data.root={SHARED_DATA}",
        "training.max_steps=60",
        "training.device=cpu",
    )
    words += ("training.eval_every=20", "training.width=10", "hydra.sweeper.study_name=s")
    grid = ("init=xavier,he,normal,uniform,ones", "model.activation=relu,tanh", "training.seed=0,1")
    assert main("-m", *words, *grid).code == 0
    verdicts = {n: again("s", str(n)) for n in range(0, 20, 3)}  # of either stack and seed
    assert [n for n, said in verdicts.items() if said.code] == []
    init = [trial.params["init"] for trial in study().trials]
    forget_folders()
    for number in (init.index("xavier"), init.index("he")):
        before, seed = words_of(number), study().trials[number].params["training.seed"]
        edit(number, sweepstack__overrides=[*before, "optimizer.lr=0.00101"], config_hash=None)
        assert again("s", str(number)).code == 5
        edit(number, sweepstack__overrides=[*before, f"training.seed={seed + 1}"], seed=seed + 1)
        assert again("s", str(number)).code == 5


def test_a_study_of_another_program_is_called_that(again, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    opened = storage.connect(storage.DEFAULT)
    optuna.create_study(storage=opened, study_name="theirs").add_trial(
        optuna.trial.create_trial(
            value=1.0,
            params={"lr": 0.1, "note": "two words"},
            distributions={
                "lr": FloatDistribution(0, 1),
                "note": CategoricalDistribution(["two words"]),
            },
        )
    )
    mine = optuna.create_study(storage=opened, study_name="sphere")
    mine.set_user_attr(SWEEP, {"application": {"name": "sphere"}})
    said = again("theirs", "0")
    assert (said.code, said.line) == (
        2,
        "sweepstack-study: study theirs is another program's, and rerun trains only what "
        "sweepstack trained: run that program with the parameters of trial 0: lr=0.1 "
        "'note=two words'",
    )
    assert "another program's (sphere), and rerun" in again("sphere", "7").line
    assert reruns() == []


def test_from_a_folder_below_a_trial_is_found_and_left_beside_its_study(stacked, again):
    here = Path.cwd()
    Path("below").mkdir()
    os.chdir("below")
    try:
        said = again("s", "0")
    finally:
        os.chdir(here)
    assert said.code == 0, said.out
    assert reruns() == ["s-0"]
    assert not list(Path("below").iterdir())


def test_changed_files_are_tracked_ones_and_new_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    who = ["-c", "user.name=t", "-c", "user.email=t"]

    def dirty() -> bool:
        found = folder._git()
        assert found is not None
        return found["dirty"]

    subprocess.run(["git", "init", "-q"], check=True)
    Path("net.py").write_text("x = 1")
    subprocess.run(["git", "add", "net.py"], check=True)
    subprocess.run(["git", *who, "commit", "-qm", "one"], check=True)
    Path("outputs/studies").mkdir(parents=True)
    Path("outputs/studies/config.yaml").write_text("x: 1")
    assert not dirty()
    Path("layers.py").write_text("x = 2")
    assert dirty()
    Path("layers.py").unlink()
    Path("net.py").write_text("x = 3")
    assert dirty()


def test_a_probe_says_how_far_rounding_grows_and_the_study_is_marked(stacked, again):
    assert view.open_study("s").probed == {}
    said = again("s", "0", "--probe")
    assert said.code == 0
    assert re.search(r"; rounding grows to \d\.\de-0\d of its losses$", said.verdict)
    again("s", "1")  # agrees, hence without probes
    again("s", "2", "--probe", "optimizer.lr=0.03", "-o", "outputs/reruns/changed")
    [(trial, (most, begins))] = view.open_study("s").probed.items()
    assert (trial, begins) == (0, None)
    assert 0 < most < 1e-4
    fact = f"rounding grows to {most:.1e} of the losses of 1 probed trial"
    assert [f.text for f in doctor.examine(view.open_study("s")) if f.kind == "chaotic"] == [fact]
    note = Path("outputs/reruns/s-0/rerun.json")
    marked = json.loads(note.read_text())
    note.write_text(json.dumps({**marked, "started": "earlier"}))  # of a study deleted since
    assert view.open_study("s").probed == {}
    strange = [{"trial": []}, {"chaotic_from": math.inf}, {"grows_to": 10**400}, {"trial": 99}]
    for known in ("not JSON", "[1]", *(json.dumps({**marked, **each}) for each in strange)):
        note.write_text(known)
        assert view.open_study("s").probed == {}


@pytest.mark.parametrize(("trial", "level"), [("best", "problem"), ("worst", "hint")])
def test_a_chaotic_trial_is_marked_by_the_doctor_and_the_report(stacked, again, trial, level):
    ordered = view.open_study("s").best_rows()["number"].tolist()
    number = ordered[0 if trial == "best" else -1]
    again("s", str(number), "--probe")
    note = Path(f"outputs/reruns/s-{number}/rerun.json")
    marked = json.loads(note.read_text()) | {"grows_to": 0.2, "chaotic_from": 8}
    note.write_text(json.dumps(marked))
    opened = view.open_study("s")
    [found] = [f for f in doctor.examine(opened) if f.kind == "chaotic"]
    assert found.level == level
    assert found.text.startswith(
        f"1 of 1 probed trial is chaotic (trial {number}{', the best' * (trial == 'best')}): "
        "rounding grows to 20 % of the losses"
    )
    assert f"; chaotic: trial {number}" in content.best_table(opened).caption
