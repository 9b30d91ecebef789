"""The command line as a person uses it, each command in an empty folder of its own."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import optuna
import pytest
import torch
import warm
from command_support import SHORT, complaint, only_run
from PIL import Image


def test_a_run_leaves_everything_that_it_promises(sweepstack, tmp_path):
    done = sweepstack(*SHORT, cold=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "validation" in done.stdout
    assert "step 60/60" in done.stdout
    run = only_run(tmp_path)
    assert str(run.relative_to(tmp_path)) in done.stdout
    assert {path.name for path in run.iterdir()} == {
        *(".hydra", "metrics.json", "history.csv", "best.pt", "best.pt.sha256", "model.pt"),
        *("manifest.json", "sweepstack.log", "classes.json"),
    }
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics.keys() >= {
        *("train_loss", "val_loss", "val_accuracy", "test_loss", "test_accuracy", "best_step"),
        *("steps", "num_parameters", "seconds", "samples_per_s", "device", "state", "objective"),
    }
    assert (metrics["state"], metrics["steps"], metrics["num_parameters"]) == ("complete", 60, 7510)
    header, *rows = (run / "history.csv").read_text().splitlines()
    assert header == "step,epoch,lr,train_loss,train_accuracy,val_loss,val_accuracy"
    assert [row.split(",")[0] for row in rows] == ["20", "40", "60"]
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["command"] == "sweepstack " + " ".join(SHORT)
    assert manifest["seed"] == 0
    assert {"python", "torch", "hydra-core"} <= manifest["versions"].keys()
    assert {"config_hash", "git", "device", "config"} <= manifest.keys()


def test_the_same_command_gives_the_same_numbers_in_a_new_folder(sweepstack, tmp_path):
    words = (*SHORT, "training.deterministic=true", "regularization.dropout=0.2")
    assert sweepstack(*words).returncode == sweepstack(*words).returncode == 0
    first, second = sorted((tmp_path / "outputs" / "runs").iterdir())
    assert (first / "history.csv").read_bytes() == (second / "history.csv").read_bytes()


def test_a_nan_loss_ends_with_a_message_and_keeps_metrics(sweepstack, tmp_path):
    words = ("optimizer=sgd", "optimizer.lr=1e4", "init=normal", "training.eval_every=1")
    (line,) = complaint(sweepstack(*words, "model.hidden=[100,100]", "data=quadratic"), 1)
    assert line.startswith("the run failed: ")
    assert "became" in line
    run = only_run(tmp_path)
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["state"] == "failed"
    assert "became" in metrics["error"]


def test_keys_without_effect_are_said(sweepstack):
    done = sweepstack(*SHORT, "optimizer.momentum=0.9")
    assert done.returncode == 0
    assert "optimizer.momentum has no effect with optimizer=adam" in done.stderr


def test_several_seeds_count_as_one_run_by_their_mean(sweepstack, tmp_path):
    done = sweepstack("training.seeds=2", "training.seed=4", "hydra.run.dir=run", *SHORT)
    assert done.returncode == 0, done.stderr
    both = json.loads((tmp_path / "run" / "metrics.json").read_text())
    each = [json.loads((tmp_path / f"run/seed_{n}/metrics.json").read_text()) for n in (4, 5)]
    values = [one["val_accuracy"] for one in each]
    assert both["values"] == values
    assert both["val_accuracy"] == sum(values) / 2
    assert both["std"] == pytest.approx(abs(values[0] - values[1]) / 2**0.5)
    assert both["steps"] == 2 * each[0]["steps"]
    alone = sweepstack("training.seed=5", "hydra.run.dir=alone", *SHORT)
    assert alone.returncode == 0, alone.stderr
    metrics = json.loads((tmp_path / "alone" / "metrics.json").read_text())
    assert metrics["val_loss"] == each[1]["val_loss"]


def test_a_custom_module_and_dataset_folder_of_the_user(sweepstack, tmp_path):
    (tmp_path / "mynet.py").write_text(
        "from torch import nn\n"
        "class Net(nn.Module):\n"
        "    def __init__(self, outputs, width):\n"
        "        super().__init__()\n"
        "        self.layers = nn.Sequential(\n"
        "            nn.Flatten(), nn.Linear(3 * 8 * 8, width), nn.ReLU(), nn.Dropout(0.1),\n"
        "            nn.BatchNorm1d(width), nn.Linear(width, outputs))\n"
        "    def forward(self, x):\n"
        "        return self.layers(x)\n"
    )
    noise = np.random.default_rng(0)
    for split, count in (("train", 16), ("val", 5)):
        for number, name in enumerate(("red", "green", "blue")):
            (tmp_path / "mine" / split / name).mkdir(parents=True)
            for copy in range(count):
                pixels = noise.integers(0, 150, (8, 8, 3), dtype=np.uint8)
                pixels[..., number] += 100
                Image.fromarray(pixels).save(tmp_path / "mine" / split / name / f"{copy}.png")
    words = ("model=custom", "model._target_=mynet.Net", "+model.width=20", *SHORT)
    words += ("data=image_folder", "data.root=mine", "batch.size=16")
    (line,) = complaint(sweepstack(*words), 2)
    assert "trust" in line
    paths = [str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])]
    env = {"PYTHONPATH": os.pathsep.join(paths)}
    done = sweepstack(*words, "trust=[mynet]", env=env)
    assert done.returncode == 0, done.stderr
    run = only_run(tmp_path)
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["val_accuracy"] > 0.9  # chance is a third
    assert metrics["num_parameters"] == 192 * 20 + 20 + 2 * 20 + 20 * 3 + 3
    assert torch.load(run / "best.pt")["inputs"]["classes"] == ["blue", "green", "red"]


def test_options_may_stand_anywhere(sweepstack, tmp_path):
    (tmp_path / "groups" / "init").mkdir(parents=True)
    (tmp_path / "groups" / "init" / "mine.yaml").write_text("defaults: [he]\ngain: 1.0\n")
    done = sweepstack("init=mine", *SHORT, "--config-dir", "groups", "training.seed=3")
    assert done.returncode == 0, done.stderr
    manifest = json.loads((only_run(tmp_path) / "manifest.json").read_text())
    init = {key: value for key, value in manifest["config"]["init"].items() if value is not None}
    assert init == {"scheme": "he", "gain": 1.0}
    (line,) = complaint(sweepstack("--lr", "0.1"), 2)
    assert line.startswith("there is no option --lr: values are written KEY=VALUE")
    assert sweepstack("--version").stdout.startswith("sweepstack ")
    (line,) = complaint(sweepstack("--cfg", "job", "optimizer.lrr=1"), 2)
    assert line == "unknown key 'optimizer.lrr'; did you mean 'optimizer.lr'?"


@pytest.mark.parametrize("lines", [0, 1])
def test_a_reader_that_goes_away_does_not_end_the_run(tmp_path, lines):
    """As `sweepstack | head -n 1`, whose exit code a shell would not show."""
    # Evaluations that go on for long after the reader has gone.
    words = ("training.max_steps=2000", "training.eval_every=200", "training.device=cpu")
    pipe, err = tmp_path / "pipe", tmp_path / "err"
    os.mkfifo(pipe)
    out = pipe if lines else warm.GONE
    with open(os.open(pipe, os.O_RDONLY | os.O_NONBLOCK), encoding="utf-8") as reader:
        process = warm.start(["-m", "sweepstack", *words], tmp_path, out, err, os.environ)
        try:
            select.select([reader], [], [], 300 * lines)
            os.set_blocking(reader.fileno(), True)
            for _ in range(lines):
                assert reader.readline().startswith("training mlp on digits")
            reader.close()
            process.join(300)
        finally:
            process.kill()
    assert (process.exitcode, err.read_text()) == (0, "")
    run = only_run(tmp_path)
    assert json.loads((run / "metrics.json").read_text())["state"] == "complete"
    assert "step 2000/2000" in (run / "sweepstack.log").read_text()


def test_a_trained_model_is_loaded_with_its_normalization(sweepstack, tmp_path):
    import sweepstack as package
    from sweepstack import data
    from sweepstack.config.errors import EnvironmentFault

    done = sweepstack(
        *SHORT, "data.normalization=minmax", "data.minmax_range=[-1,1]", "model=resnet"
    )
    assert done.returncode == 0, done.stderr
    run = only_run(tmp_path)
    predictor = package.load(run)
    spec = package.compose("data.normalization=none")
    raw = data.load(spec.config.data).test
    hits = predictor(raw.x).argmax(1) == raw.y
    metrics = json.loads((run / "metrics.json").read_text())
    assert hits.double().mean().item() == pytest.approx(metrics["test_accuracy"], abs=1e-9)
    assert predictor.classes == tuple("0123456789")
    assert not predictor.training
    with pytest.raises(EnvironmentFault, match=r"there is no best\.pt"):
        package.load(tmp_path)
    assert isinstance(torch.load(run / "best.pt")["model"], dict)


def test_help_imports_no_torch():
    code = (
        "import sys; sys.argv = ['sweepstack', '--help', 'training']\n"
        "from sweepstack.cli.app import main\n"
        "try: main()\n"
        "except SystemExit as end: assert not end.code\n"
        "heavy = {'torch', 'optuna', 'sklearn', 'pandas', 'torchvision'} & sys.modules.keys()\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "# fp32 | tf32 (CUDA) | bf16 (autocast)" in done.stdout


@pytest.mark.parametrize(
    "words",
    [
        ["sweepstack", "--help"],
        ["sweepstack", "--version"],
        ["sweepstack", "--cfg", "job"],
        ["sweepstack", "--hydra-help"],
        ["sweepstack", "--info", "plugins"],
        ["sweepstack-study", "--help"],
        ["sweepstack-study", "list"],
    ],
)
def test_printing_to_what_cannot_be_written_is_no_traceback(tmp_path, words):
    err = tmp_path / "err"

    def run(out):
        command = [*warm.COMMANDS[words[0]], *words[1:]]
        process = warm.start(command, tmp_path, out, err, os.environ)
        process.join(300)
        return process.exitcode, err.read_text()

    if "list" in words:
        (tmp_path / "outputs").mkdir()
        optuna.create_study(storage=f"sqlite:///{tmp_path}/outputs/studies.db")
    assert run(warm.GONE) == (0, "")
    assert run(warm.CLOSED) == (0, "")
    if Path("/dev/full").exists():
        code, said = run(Path("/dev/full"))
        full = f"{words[0]}: stdout: No space left on device\n"
        assert (code, said) in [(3, full), (0, "")]  # a display ends no command


def test_a_new_interpreter_prints_to_what_cannot_be_written(tmp_path):
    """As the test above, with all that Python itself does at its end."""
    command = [sys.executable, "-m", "sweepstack", "--help"]
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing) as gone:
        for given in ({"stdout": gone}, {"preexec_fn": lambda: os.close(1)}):
            done = subprocess.run(command, cwd=tmp_path, stderr=subprocess.PIPE, **given)
            assert (done.returncode, done.stderr) == (0, b"")


def test_ctrl_c_while_the_command_still_loads_ends_it_without_a_traceback(tmp_path):
    """The signal comes with the first module of Hydra that is imported."""
    (tmp_path / "hydra.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    command = [sys.executable, "-m", "sweepstack"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (-signal.SIGINT, "")
