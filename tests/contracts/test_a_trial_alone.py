"""Contract 2 for sweeps: a trial of a sweep, run again alone, gives the same numbers."""

from __future__ import annotations

import json
import shlex

import pandas
import pytest


@pytest.mark.slow
def test_any_trial_of_a_sweep_runs_again_alone(sweepstack, tmp_path):
    words = ("init=he,uniform", "model.activation=tanh", "training.seed=3,4")
    short = ("training.max_steps=40", "regularization.dropout=0.2")
    done = sweepstack("-m", "+sweeps=init_activation_grid", *words, *short)
    assert done.returncode == 0, done.stderr
    (study,) = (path for path in (tmp_path / "outputs" / "studies").iterdir())
    for number in ("0", "3"):
        lines = (study / number / "sweepstack.log").read_text().splitlines()
        (line,) = (line for line in lines if "as a single run: " in line)
        command = shlex.split(line.partition("as a single run: ")[2])
        assert command[0] == "sweepstack"
        run = sweepstack(*command[1:], f"hydra.run.dir=alone_{number}")
        assert run.returncode == 0, run.stderr
        alone = json.loads((tmp_path / f"alone_{number}" / "metrics.json").read_text())
        swept = json.loads((study / number / "metrics.json").read_text())
        assert swept["state"] == "complete"
        names = [name for name in swept if name.startswith(("train_", "val_", "test_"))]
        assert len(names) == 6
        # Rounding only: a batched product adds in another order than a single one.
        ours = {name: swept[name] for name in names}
        assert ours == pytest.approx({name: alone[name] for name in names}, rel=1e-4)
        history = pandas.read_csv(study / number / "history.csv")
        other = pandas.read_csv(tmp_path / f"alone_{number}" / "history.csv")
        pandas.testing.assert_frame_equal(history, other, rtol=1e-4)
    refused = sweepstack("--resume", str(study / "0"))
    assert refused.returncode == 2
    assert "holds a trial of a sweep" in refused.stderr
