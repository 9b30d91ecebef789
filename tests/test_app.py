"""The command line as a person uses it, each command in an empty folder of its own."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
from support import SHARED_DATA, needs_mnist

SHORT = ("training.max_steps=60", "training.eval_every=20", "training.device=cpu")


def only_run(folder):
    (run,) = (folder / "outputs" / "runs").iterdir()
    return run


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def complaint(done, code):
    """The lines on stderr, each starting with the program's name; nothing on stdout."""
    assert done.returncode == code, done.stderr
    lines = done.stderr.splitlines()
    assert lines, done
    assert all(line.startswith("iolaus: ") for line in lines), done.stderr
    assert "Traceback" not in done.stderr
    return [line.removeprefix("iolaus: ") for line in lines]


def test_a_run_leaves_everything_that_it_promises(iolaus, tmp_path):
    done = iolaus(*SHORT)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "validation" in done.stdout
    assert "step 60/60" in done.stdout
    run = only_run(tmp_path)
    assert str(run.relative_to(tmp_path)) in done.stdout
    assert {path.name for path in run.iterdir()} == {
        *(".hydra", "metrics.json", "history.csv", "best.pt", "best.pt.sha256"),
        *("manifest.json", "iolaus.log"),
    }
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics.keys() >= {
        *("train_loss", "val_loss", "val_accuracy", "test_loss", "test_accuracy", "best_step"),
        *("steps", "num_parameters", "seconds", "samples_per_s", "device", "state", "objective"),
    }
    assert (metrics["state"], metrics["steps"], metrics["num_parameters"]) == ("complete", 60, 7510)
    header, *rows = (run / "history.csv").read_text().splitlines()
    assert header == "step,epoch,lr,train_loss,val_loss,val_accuracy"
    assert [row.split(",")[0] for row in rows] == ["20", "40", "60"]
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["command"] == "iolaus " + " ".join(SHORT)
    assert manifest["seed"] == 0
    assert {"python", "torch", "hydra-core"} <= manifest["versions"].keys()
    assert {"config_hash", "git", "device", "config"} <= manifest.keys()


def test_the_same_command_gives_the_same_numbers_in_a_new_folder(iolaus, tmp_path):
    words = (*SHORT, "training.deterministic=true", "regularization.dropout=0.2")
    assert iolaus(*words).returncode == iolaus(*words).returncode == 0
    first, second = sorted((tmp_path / "outputs" / "runs").iterdir())
    assert (first / "history.csv").read_bytes() == (second / "history.csv").read_bytes()


BAD_INPUT = [
    (["optimizer.lrr=1"], "unknown key 'optimizer.lrr'; did you mean 'optimizer.lr'?"),
    (["optimizer.lr=fast"], "optimizer.lr must be a number, got 'fast'"),
    (["optimizer.lr=-1"], "optimizer.lr must be > 0, got -1"),
    (["regularization.dropout=1.5"], "regularization.dropout must be < 1, got 1.5"),
    (["model=cnovnet"], "model must be one of convnet, custom, mlp, resnet, got 'cnovnet'"),
    (["batch.size=5000"], "batch.size must be <= the 1222 training samples of digits, got 5000"),
    (["objective=val_mse"], "objective must be one of val_loss, val_accuracy, train_loss"),
    (["model=custom", "model._target_=os.system"], "model._target_ must name something in"),
    (["schedule=cosine", "schedule.warmup_steps=9999"], "schedule.warmup_steps must be <"),
    (["model.hidden=[]", "init=he,xavier"], "init=he,xavier names several values: add -m"),
    (["--resume", "nowhere"], "--resume must name the folder of a run, got 'nowhere'"),
    (["--config-dir", "nowhere"], "--config-dir must be a folder, got 'nowhere'"),
]


@pytest.mark.parametrize(("words", "message"), BAD_INPUT)
def test_bad_input_is_one_line_and_nothing_is_written(iolaus, tmp_path, words, message):
    (line,) = complaint(iolaus(*words), 2)
    assert line.startswith(message)
    assert files(tmp_path) == []


def test_several_mistakes_are_all_listed(iolaus, tmp_path):
    lines = complaint(iolaus("optimizer.lr=-1", "batch.sise=3", "model=mpl"), 2)
    assert len(lines) == 3
    assert files(tmp_path) == []


def test_a_missing_dataset_says_where_and_how(iolaus, tmp_path):
    (line,) = complaint(iolaus("data=mnist", "data.root=here"), 3)
    assert "here/MNIST" in line
    assert "data.download=true" in line
    assert files(tmp_path) == []


@needs_mnist
def test_a_truncated_dataset_is_named(iolaus, tmp_path):
    root = tmp_path / "data"
    shutil.copytree(SHARED_DATA / "MNIST", root / "MNIST")
    cut = root / "MNIST" / "raw" / "train-images-idx3-ubyte"
    cut.chmod(0o644)
    with open(cut, "r+b") as file:
        file.truncate(1_000_000)
    (line,) = complaint(iolaus("data=mnist"), 3)
    assert "MNIST" in line
    assert not (tmp_path / "outputs").exists()


def test_a_missing_device_is_exit_3(iolaus, tmp_path):
    (line,) = complaint(iolaus("training.device=cuda:99"), 3)
    assert "training.device=cuda:99 needs 100 CUDA device(s)" in line
    assert files(tmp_path) == []


def test_a_nan_loss_ends_with_a_message_and_keeps_metrics(iolaus, tmp_path):
    words = ("optimizer=sgd", "optimizer.lr=1e4", "init=normal", "training.eval_every=1")
    (line,) = complaint(iolaus(*words, "model.hidden=[100,100]", "data=quadratic"), 1)
    assert line.startswith("the run failed: ")
    assert "became" in line
    run = only_run(tmp_path)
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["state"] == "failed"
    assert "became" in metrics["error"]


def test_no_space_on_disk(tmp_path):
    """A real full file system where this machine lets us mount one; see also test_checkpoint."""
    script = (
        f"mount -t tmpfs -o size=64k none {tmp_path} && cd {tmp_path} && "
        f"{sys.executable} -m iolaus {' '.join(SHORT)}; code=$?; "
        f"find {tmp_path} -type f; exit $code"
    )
    probe = f"mount -t tmpfs -o size=64k none {tmp_path}"
    unshare = ["unshare", "--mount", "--map-root-user", "sh", "-c"]
    if shutil.which("unshare") is None or subprocess.run([*unshare, probe]).returncode:
        pytest.skip("this machine does not let a test mount a small file system")
    done = subprocess.run([*unshare, script], capture_output=True, text=True)
    (line,) = complaint(done, 3)
    assert line.startswith("no space on disk: a run needs about")
    assert done.stdout == ""


def test_an_unwritable_folder(iolaus, tmp_path):
    (tmp_path / "outputs").write_text("a file where a folder should be")
    (line,) = complaint(iolaus(*SHORT), 3)
    assert line.startswith("cannot make outputs/runs/")


@pytest.mark.slow
def test_a_killed_run_resumes_and_ends_with_the_same_numbers(iolaus, tmp_path):
    words = ("training.max_steps=3000", "training.eval_every=100", "training.device=cpu")
    words += ("optimizer=rmsprop", "regularization.dropout=0.3", "training.deterministic=true")
    whole = iolaus(*words, "hydra.run.dir=whole")
    assert whole.returncode == 0, whole.stderr
    command = [sys.executable, "-m", "iolaus", *words, "training.checkpoint_every=50"]
    process = subprocess.Popen(
        [*command, "hydra.run.dir=killed"], cwd=tmp_path, stdout=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("killed/checkpoints/step_*.pt")):
        assert time.monotonic() < deadline, "no checkpoint appeared"
        assert process.poll() is None, "the run ended before it could be killed"
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert not (tmp_path / "killed" / "metrics.json").exists()
    resumed = iolaus("--resume", "killed")
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
    again = iolaus("--resume", "killed")
    assert again.returncode == 0
    assert "holds this very run, finished" in again.stdout


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.slow
def test_a_signal_checkpoints_and_names_the_command_to_go_on(iolaus, tmp_path, number, code):
    words = ("training.max_steps=1000000", "training.eval_every=100", "training.device=cpu")
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "iolaus", *words, "hydra.run.dir=run"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert "step" in process.stdout.readline()
    os.kill(process.pid, number)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == code
    assert stderr == "iolaus: interrupted; go on with: iolaus --resume run\n"
    assert list(tmp_path.glob("run/checkpoints/step_*.pt"))


def test_a_folder_with_another_run_is_refused(iolaus, tmp_path):
    assert iolaus(*SHORT, "hydra.run.dir=run").returncode == 0
    before = files(tmp_path)
    (line,) = complaint(iolaus(*SHORT, "hydra.run.dir=run", "optimizer.lr=0.5"), 2)
    assert "optimizer.lr is 0.001 there, 0.5 here" in line
    assert files(tmp_path) == before


def test_keys_without_effect_are_said(iolaus):
    done = iolaus(*SHORT, "optimizer.momentum=0.9")
    assert done.returncode == 0
    assert "optimizer.momentum has no effect with optimizer=adam" in done.stderr


def test_multirun_and_sweep_folders(iolaus, tmp_path):
    done = iolaus("-m", "init=he,zeros", *SHORT)
    assert done.returncode == 0, done.stderr
    found = sorted((tmp_path / "outputs" / "multiruns").glob("*/*/metrics.json"))
    assert [path.parent.name for path in found] == ["0", "1"]
    he, zeros = (json.loads(path.read_text())["val_accuracy"] for path in found)
    assert he > 0.5 > zeros


def test_a_custom_module_and_dataset_folder_of_the_user(iolaus, tmp_path):
    (tmp_path / "mynet.py").write_text(
        "from torch import nn\n"
        "class Net(nn.Module):\n"
        "    def __init__(self, outputs, width):\n"
        "        super().__init__()\n"
        "        self.layers = nn.Sequential(\n"
        "            nn.Flatten(), nn.LazyLinear(width), nn.ReLU(), nn.Dropout(0.1),\n"
        "            nn.BatchNorm1d(width), nn.Linear(width, outputs))\n"
        "        self.layers[1] = nn.Linear(64, width)\n"
        "    def forward(self, x):\n"
        "        return self.layers(x)\n"
    )
    words = ("model=custom", "model._target_=mynet.Net", "+model.width=20", *SHORT)
    (line,) = complaint(iolaus(*words), 2)
    assert "trust" in line
    done = iolaus(*words, "trust=[mynet]", env={"PYTHONPATH": str(tmp_path)})
    assert done.returncode == 0, done.stderr
    metrics = json.loads((only_run(tmp_path) / "metrics.json").read_text())
    assert metrics["val_accuracy"] > 0.5


def test_help_imports_no_torch(iolaus):
    code = (
        "import sys; sys.argv = ['iolaus', '--help']\n"
        "from iolaus.app import main\n"
        "try: main()\n"
        "except SystemExit as end: assert not end.code\n"
        "heavy = {'torch', 'optuna', 'sklearn', 'pandas', 'torchvision'} & sys.modules.keys()\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "iolaus --resume" in done.stdout
