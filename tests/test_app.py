"""The command line as a person uses it, each command in an empty folder of its own."""

from __future__ import annotations

import json
import os
import re
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
    done = iolaus(*SHORT, cold=True)
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
    lines = complaint(iolaus("optimizer.lr=-1", "batch.sise=3", "model=mpl", cold=True), 2)
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
    words = ("training.max_steps=4000", "training.eval_every=400", "training.device=cpu")
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
    again = iolaus("--resume", "killed", cold=True)
    assert again.returncode == 0
    assert "this very run is finished already" in again.stdout


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
    assert process.stdout.readline().startswith("training")
    assert process.stdout.readline().startswith("step 100/")
    os.kill(process.pid, number)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == code
    assert re.fullmatch(
        r"iolaus: interrupted at step \d+; go on with: iolaus --resume run\n", stderr
    )
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


def test_several_seeds_count_as_one_run_by_their_mean(iolaus, tmp_path):
    done = iolaus("training.seeds=2", "training.seed=4", "hydra.run.dir=run", *SHORT)
    assert done.returncode == 0, done.stderr
    both = json.loads((tmp_path / "run" / "metrics.json").read_text())
    each = [json.loads((tmp_path / f"run/seed_{n}/metrics.json").read_text()) for n in (4, 5)]
    values = [one["val_accuracy"] for one in each]
    assert both["values"] == values
    assert both["val_accuracy"] == sum(values) / 2
    assert both["std"] == pytest.approx(abs(values[0] - values[1]) / 2**0.5)
    assert both["steps"] == 2 * each[0]["steps"]
    alone = iolaus("training.seed=5", "hydra.run.dir=alone", *SHORT)
    assert alone.returncode == 0, alone.stderr
    metrics = json.loads((tmp_path / "alone" / "metrics.json").read_text())
    assert metrics["val_loss"] == each[1]["val_loss"]


BASIC = "hydra/sweeper=basic"


def test_hydras_own_sweeper_can_be_chosen(iolaus, tmp_path):
    done = iolaus("-m", BASIC, "init=he,zeros", *SHORT)
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
    done = iolaus(*words, "trust=[mynet]", env={"PYTHONPATH": str(tmp_path)}, cold=True)
    assert done.returncode == 0, done.stderr
    metrics = json.loads((only_run(tmp_path) / "metrics.json").read_text())
    assert metrics["val_accuracy"] > 0.5


def test_a_sweep_with_mistakes_starts_nothing(iolaus, tmp_path):
    for words in ((), (BASIC,)):
        lines = complaint(iolaus("-m", "optimizer.lr=0.1,-1", "init=he,xavir", *words), 2)
        assert len(lines) == 2
        missing = ("init=he,xavier", "data=mnist", "data.root=nope")
        (line,) = complaint(iolaus("-m", *missing, *words), 3)
        assert "nope/MNIST" in line
    assert files(tmp_path) == []


def test_a_job_of_a_sweep_that_fails_is_named_and_the_sweep_goes_on(iolaus, tmp_path):
    words = ("data=quadratic", "optimizer=sgd", "training.max_steps=30")
    done = iolaus("-m", BASIC, "optimizer.lr=0.01,1e4,0.02", *words)
    assert done.returncode == 0, done.stderr
    assert "iolaus: job 1: the run failed: " in done.stderr
    assert "Traceback" not in done.stderr
    found = sorted((tmp_path / "outputs" / "multiruns").glob("*/*/metrics.json"))
    states = [json.loads(path.read_text())["state"] for path in found]
    assert states == ["complete", "failed", "complete"]
    again = iolaus("--resume", str(found[0].parent))
    assert again.returncode == 0, again.stderr
    assert "finished already" in again.stdout


def test_a_job_of_a_sweep_file_is_resumed_alone(iolaus, tmp_path):
    words = ("init=he", "model.activation=relu", "training.seed=0,1", "training.max_steps=3")
    assert iolaus("-m", BASIC, "+sweeps=init_activation_grid", *words).returncode == 0
    (first, _) = sorted(tmp_path.glob("outputs/multiruns/*/*/metrics.json"))
    before = json.loads(first.read_text())
    first.unlink()
    done = iolaus("--resume", str(first.parent))
    assert done.returncode == 0, done.stderr
    assert json.loads(first.read_text())["val_loss"] == before["val_loss"]
    assert len(list(tmp_path.glob("outputs/multiruns/*"))) == 1


def test_resume_takes_no_trust_from_the_folder(iolaus, tmp_path):
    """A manifest may come from anywhere: it must not make us import or run anything."""
    run = tmp_path / "evil"
    run.mkdir()
    words = ["trust=[subprocess]", "model=custom", "model._target_=subprocess.getoutput"]
    words += ["+model.cmd='touch canary'", "hydra.callbacks.x._target_=subprocess.Popen"]
    (run / "manifest.json").write_text(json.dumps({"arguments": words}))
    (line,) = complaint(iolaus("--resume", "evil"), 2)
    assert line.startswith("model._target_ must name something in")
    assert not (tmp_path / "canary").exists()
    (run / "manifest.json").write_text(json.dumps({"arguments": ["--config-dir", "/evil"]}))
    (line,) = complaint(iolaus("--resume", "evil"), 2)
    assert "--config-dir: give it again" in line
    (run / "manifest.json").write_text("{")
    (line,) = complaint(iolaus("--resume=evil"), 3)
    assert line.startswith("cannot read evil/manifest.json")


def test_options_may_stand_anywhere(iolaus, tmp_path):
    (tmp_path / "groups" / "init").mkdir(parents=True)
    (tmp_path / "groups" / "init" / "mine.yaml").write_text("defaults: [he]\ngain: 1.0\n")
    done = iolaus("init=mine", *SHORT, "--config-dir", "groups", "training.seed=3")
    assert done.returncode == 0, done.stderr
    manifest = json.loads((only_run(tmp_path) / "manifest.json").read_text())
    assert manifest["config"]["init"] == {"scheme": "he", "gain": 1.0}
    (line,) = complaint(iolaus("--lr", "0.1"), 2)
    assert line.startswith("there is no option --lr: values are written KEY=VALUE")
    assert iolaus("--version").stdout.startswith("iolaus ")
    (line,) = complaint(iolaus("--cfg", "job", "optimizer.lrr=1"), 2)
    assert line == "unknown key 'optimizer.lrr'; did you mean 'optimizer.lr'?"


def test_a_reader_that_goes_away_does_not_end_the_run(tmp_path):
    command = f"{sys.executable} -m iolaus {' '.join(SHORT)} | head -n 1"
    done = subprocess.run(command, shell=True, cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.startswith("training mlp on digits")
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("outputs/runs/*/metrics.json")):
        assert time.monotonic() < deadline, done.stderr
        time.sleep(0.05)


def test_a_trained_model_is_loaded_with_its_normalization(iolaus, tmp_path):
    import torch

    import iolaus as package
    from iolaus import data
    from iolaus.errors import EnvironmentFault

    done = iolaus(*SHORT, "data.normalization=minmax", "data.minmax_range=[-1,1]", "model=resnet")
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
    assert "# fp32 | tf32 (CUDA) | bf16 (autocast)" in done.stdout
