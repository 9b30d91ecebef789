"""Runs that are killed or interrupted go on from their folder, and another run may not have it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys

import pytest
from command_support import SHORT, complaint, contents

DIES = """
import os
import signal
from sweepstack.__main__ import main
from sweepstack.training import checkpoint

save, saved = checkpoint.save_trial, []

def save_trial(*given):
    save(*given)
    saved.append(given)
    if len(saved) == 3:
        os.kill(os.getpid(), signal.SIGKILL)

checkpoint.save_trial = save_trial
main()
"""


@pytest.mark.slow
def test_a_killed_run_resumes_and_ends_with_the_same_numbers(sweepstack, tmp_path):
    words = ("training.max_steps=4000", "training.eval_every=400", "training.device=cpu")
    words += ("optimizer=rmsprop", "regularization.dropout=0.3", "training.deterministic=true")
    whole = sweepstack(*words, "hydra.run.dir=whole")
    assert whole.returncode == 0, whole.stderr
    (tmp_path / "dies.py").write_text(DIES)
    words += ("training.checkpoint_every=50", "hydra.run.dir=killed")
    killed = subprocess.run([sys.executable, "dies.py", *words], cwd=tmp_path, capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not (tmp_path / "killed" / "metrics.json").exists()
    resumed = sweepstack("--resume", "killed")
    assert resumed.returncode == 0, resumed.stderr
    assert "resumed at step" in resumed.stdout
    same = [(tmp_path / name / "history.csv").read_bytes() for name in ("whole", "killed")]
    assert same[0] == same[1]
    first, second = (
        json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("whole", "killed")
    )
    for name in ("val_loss", "val_accuracy", "test_loss", "test_accuracy", "best_step", "steps"):
        assert first[name] == second[name]
    assert not (tmp_path / "killed" / "checkpoints").exists()
    again = sweepstack("--resume", "killed")
    assert again.returncode == 0
    assert "this run has already finished" in again.stdout


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.slow
def test_a_signal_checkpoints_and_names_the_command_to_go_on(sweepstack, tmp_path, number, code):
    words = ("training.max_steps=1000000", "training.eval_every=100", "training.device=cpu")
    with subprocess.Popen(
        [sys.executable, "-u", "-m", "sweepstack", *words, "hydra.run.dir=run"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout.readline().startswith("training")
            assert process.stdout.readline().startswith("step 100/")
            os.kill(process.pid, number)
            _, stderr = process.communicate(timeout=60)
        finally:
            process.kill()  # or it would train on, whatever was wrong
    assert process.returncode == code
    assert re.fullmatch(
        r"sweepstack: interrupted at step \d+; resume with: sweepstack --resume run\n", stderr
    )
    assert list(tmp_path.glob("run/checkpoints/step_*.pt"))


def test_a_folder_with_another_run_is_refused(sweepstack, tmp_path):
    assert sweepstack(*SHORT, "hydra.run.dir=run").returncode == 0
    before = contents(tmp_path)
    (line,) = complaint(sweepstack(*SHORT, "hydra.run.dir=run", "optimizer.lr=0.5"), 2)
    assert "optimizer.lr is 0.001 there, 0.5 here" in line
    assert contents(tmp_path) == before


def test_resume_takes_no_trust_from_the_folder(sweepstack, tmp_path):
    """A manifest may come from anywhere: it must not make us import or run anything."""
    run = tmp_path / "evil"
    run.mkdir()
    words = ["trust=[subprocess]", "model=custom", "model._target_=subprocess.getoutput"]
    words += ["+model.cmd='touch canary'", "hydra.callbacks.x._target_=subprocess.Popen"]
    (run / "manifest.json").write_text(json.dumps({"arguments": words}))
    (line,) = complaint(sweepstack("--resume", "evil"), 2)
    assert line.startswith("model._target_ must name a layer of torch.nn")
    assert not (tmp_path / "canary").exists()
    (run / "manifest.json").write_text(json.dumps({"arguments": ["--config-dir", "/evil"]}))
    (line,) = complaint(sweepstack("--resume", "evil"), 2)
    assert "--config-dir: give it again" in line
    (run / "manifest.json").write_text("{")
    (line,) = complaint(sweepstack("--resume=evil"), 3)
    assert line.startswith("cannot read evil/manifest.json")
