"""Sweeps with training.diagnostics: layers.csv of trials, duplicates and seeds, read as a frame."""

from __future__ import annotations

import optuna
import pytest
from sweep_support import QUICK, trial_folder, without

import sweepstack
from sweepstack.analysis.plots import layers
from sweepstack.study import frame
from sweepstack.study.view import StudyView, open_study

ON = ("training.diagnostics=true", "training.width=8")
PUBLIC = "hydra.sweeper.storage=journal:///outputs/journal.log"


@pytest.mark.parametrize("storage", [(), (PUBLIC,)], ids=["bulk", "public"])
def test_layers_of_a_sweep_are_a_frame_and_a_plot(main, tmp_path, storage):
    adam = [*without("optimizer"), "optimizer=adam", "optimizer.nesterov=false,true", *storage]
    ended = main("-m", *adam, "init=he,zeros", "model.activation=relu,tanh", *ON)
    assert ended.code == 0, ended.err

    where = "outputs/journal.log" if storage else sweepstack.STORAGE
    df = sweepstack.history("s", where, layers=True)
    assert list(df.columns[:4]) == ["number", "state", "step", "layer"]
    assert len(df) == 8 * 3 * 2
    assert set(df["layer"]) == {"hidden.0", "output"}
    assert sorted(set(df["step"])) == [0, 4, 8]
    results = sweepstack.results("s", where).set_index("number")
    duplicates = results.index[results["equals"].notna()]
    assert len(duplicates) == 4
    for number in duplicates:
        original = int(results["equals"][number])
        ours, theirs = (df[df["number"] == n].drop(columns="number") for n in (number, original))
        assert ours.reset_index(drop=True).equals(theirs.reset_index(drop=True))
    assert "gradient_noise_scale" in sweepstack.history("s", where)
    assert "gradient_noise_scale" not in results

    plot = layers.layers(open_study("s", where))
    assert plot is not None
    shown = {note.text.split()[-1] for note in plot.figure.layout.annotations}
    assert "alike" in shown  # all zeros
    notes = [note.text for note in plot.figure.layout.annotations]
    assert sum(text.endswith(" alike") for text in notes) == 2  # of init=zeros, one an activation
    assert sum(text.startswith("<b>") for text in notes) == 2
    assert "columns from step 0 to 8." in plot.says
    assert "what is wrong at step 0 (alike" in plot.says
    assert [trace.visible for trace in plot.figure.data] == [True, False, False, False, False]


def test_without_diagnostics_there_is_nothing(tmp_path):
    (tmp_path / "0").mkdir()
    (tmp_path / "0" / "history.csv").write_text("step,val_mse\n4,0.5\n")
    study = optuna.create_study()
    study.add_trial(optuna.trial.create_trial(value=0.5))
    df = frame.layers(tmp_path, study.trials)
    assert df.empty
    assert list(df) == ["number", "state", "step", "layer"]
    assert layers.layers(StudyView(study, "")) is None


def test_layers_of_several_seeds_have_their_seed(main, tmp_path):
    assert main("-m", *QUICK, "init=he,zeros", "training.seeds=2", *ON).code == 0
    df = sweepstack.history("s", layers=True)
    assert list(df.columns[:5]) == ["number", "state", "seed", "step", "layer"]
    assert df.groupby(["number", "seed"]).size().tolist() == [6] * 4
    assert not list(trial_folder(tmp_path, 0).glob("seed_*"))


def test_a_file_may_lack_columns_or_hold_anything(tmp_path):
    study = optuna.create_study()
    for number, content in enumerate(
        (b"step,layer,dead\n0,<b>x</b>,0.5\n0,y\nx,z,w\n", b"\xff\xfe", b"")
    ):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "layers.csv").write_bytes(content)
        study.add_trial(optuna.trial.create_trial(value=0.5))
    df = frame.layers(tmp_path, study.trials)
    assert df["layer"].tolist() == ["<b>x</b>", "z"]
    view = StudyView(study, "")
    vars(view)["layers"] = df
    assert layers.layers(view) is None
