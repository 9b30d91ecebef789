"""Hydra's own sweeper, chosen in the place of ours: every job of a sweep is a run with a folder."""

from __future__ import annotations

import json

from command_support import SHORT, complaint, files

BASIC = "hydra/sweeper=basic"


def test_hydras_own_sweeper_can_be_chosen(sweepstack, tmp_path):
    done = sweepstack("-m", BASIC, "init=he,zeros", *SHORT)
    assert done.returncode == 0, done.stderr
    found = sorted((tmp_path / "outputs" / "multiruns").glob("*/*/metrics.json"))
    assert [path.parent.name for path in found] == ["0", "1"]
    he, zeros = (json.loads(path.read_text())["val_accuracy"] for path in found)
    assert he > 0.5 > zeros


def test_a_sweep_with_mistakes_starts_nothing(sweepstack, tmp_path):
    for words in ((), (BASIC,)):
        lines = complaint(sweepstack("-m", "optimizer.lr=0.1,-1", "init=he,xavir", *words), 2)
        assert len(lines) == 2
        missing = ("init=he,xavier", "data=mnist", "data.root=nope")
        (line,) = complaint(sweepstack("-m", *missing, *words), 3)
        assert "nope/MNIST" in line
    assert files(tmp_path) == []


def test_a_job_of_a_sweep_that_fails_is_named_and_the_sweep_goes_on(sweepstack, tmp_path):
    words = ("data=quadratic", "optimizer=sgd", "training.max_steps=30")
    done = sweepstack("-m", BASIC, "optimizer.lr=0.01,1e4,0.02", *words)
    assert done.returncode == 0, done.stderr
    assert "sweepstack: job 1: the run failed: " in done.stderr
    assert "Traceback" not in done.stderr
    found = sorted((tmp_path / "outputs" / "multiruns").glob("*/*/metrics.json"))
    states = [json.loads(path.read_text())["state"] for path in found]
    assert states == ["complete", "failed", "complete"]
    again = sweepstack("--resume", str(found[0].parent))
    assert again.returncode == 0, again.stderr
    assert "this run has already finished" in again.stdout


def test_a_job_of_a_sweep_file_is_resumed_alone(sweepstack, tmp_path):
    words = ("init=he", "model.activation=relu", "training.seed=0,1", "training.max_steps=3")
    assert sweepstack("-m", BASIC, "+sweeps=init_activation_grid", *words).returncode == 0
    (first, _) = sorted(tmp_path.glob("outputs/multiruns/*/*/metrics.json"))
    before = json.loads(first.read_text())
    first.unlink()
    done = sweepstack("--resume", str(first.parent))
    assert done.returncode == 0, done.stderr
    assert json.loads(first.read_text())["val_loss"] == before["val_loss"]
    assert len(list(tmp_path.glob("outputs/multiruns/*"))) == 1
