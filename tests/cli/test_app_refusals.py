"""What cannot be run is said in a line, and nothing is written."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from command_support import SHORT, complaint, files
from support import SHARED_DATA, needs_mnist

from sweepstack.cli import preflight

MODELS = "convnet, custom, hub, mlp, resnet, torchvision"
BAD_INPUT = [
    (["optimizer.lrr=1"], "unknown key 'optimizer.lrr'; did you mean 'optimizer.lr'?"),
    (["optimizer.lr=fast"], "optimizer.lr must be a number, got 'fast'"),
    (["optimizer.lr=-1"], "optimizer.lr must be > 0, got -1"),
    (["regularization.dropout=1.5"], "regularization.dropout must be < 1, got 1.5"),
    (["model=cnovnet"], f"model must be one of {MODELS}, got 'cnovnet'"),
    (["batch.size=5000"], "batch.size must be <= the 1222 training samples of digits, got 5000"),
    (["objective=val_mse"], "objective must be one of val_loss, val_accuracy, train_loss"),
    (["model=custom", "model._target_=os.system"], "model._target_ must name a layer of torch.nn"),
    (["schedule=cosine", "schedule.warmup_steps=9999"], "schedule.warmup_steps must be <"),
    (["model.hidden=[]", "init=he,xavier"], "init=he,xavier names several values: add -m"),
    (["--resume", "nowhere"], "--resume must name the folder of a run, got 'nowhere'"),
    (["--config-dir", "nowhere"], "--config-dir must be a folder, got 'nowhere'"),
    (["--hydra-help", "--config-dir", "nowhere"], "--config-dir must be a folder, got 'nowhere'"),
    (["--package", "x"], "--package must come with --cfg job, hydra or all"),
    (["--resolve"], "--resolve must come with --cfg job, hydra or all"),
    (["--cfg", "job", "-p", "nope"], "--package must be a key of the config, got 'nope'"),
    (["--cfg", "job", "--config-path", "/tmp"], "--config-path is not supported"),
    (["--cfg", "nope"], "argument --cfg/-c: invalid choice: 'nope'"),
    (["--experimental-rerun", "x.pickle"], "--experimental-rerun is not supported"),
    (["--run", "-m", "init=he,xavier"], "only one of --run, --multirun must be given"),
    (["--info", "config", "model=mpl"], f"model must be one of {MODELS}"),
    (["--shell-completion"], "--shell-completion must come with one of install=, uninstall="),
    (["model.hidden=[100000,100000]"], "model mlp of 10,007,600,010 parameters at batch.size=64"),
    (["model=resnet", "model.depth=100000"], "model.depth must be <= 1000, got 100000"),
    (["regularization.cutout=1000"], "regularization.cutout must be <= 8, the shorter side of"),
]


@pytest.mark.parametrize(("words", "message"), BAD_INPUT)
def test_bad_input_is_one_line_and_nothing_is_written(sweepstack, tmp_path, words, message):
    (line,) = complaint(sweepstack(*words), 2)
    assert line.startswith(message)
    assert files(tmp_path) == []


def test_several_mistakes_are_all_listed(sweepstack, tmp_path):
    lines = complaint(sweepstack("optimizer.lr=-1", "batch.sise=3", "model=mpl"), 2)
    assert len(lines) == 3
    assert files(tmp_path) == []


def test_a_missing_dataset_says_where_and_how(sweepstack, tmp_path):
    (line,) = complaint(sweepstack("data=mnist", "data.root=here"), 3)
    assert "here/MNIST" in line
    assert "data.download=true" in line
    assert files(tmp_path) == []


@needs_mnist
def test_a_truncated_dataset_is_named(sweepstack, tmp_path):
    root = tmp_path / "data"
    shutil.copytree(SHARED_DATA / "MNIST", root / "MNIST")
    cut = root / "MNIST" / "raw" / "train-images-idx3-ubyte"
    cut.chmod(0o644)
    with open(cut, "r+b") as file:
        file.truncate(1_000_000)
    (line,) = complaint(sweepstack("data=mnist"), 3)
    assert "MNIST" in line
    assert not (tmp_path / "outputs").exists()


def test_a_missing_device_is_exit_3(sweepstack, tmp_path):
    (line,) = complaint(sweepstack("training.device=cuda:99"), 3)
    assert "training.device=cuda:99 needs 100 CUDA device(s)" in line
    assert files(tmp_path) == []


def test_no_space_on_disk(tmp_path):
    """A real full file system where this machine lets us mount one; see also test_checkpoint."""
    script = (
        f"mount -t tmpfs -o size=64k none {tmp_path} && cd {tmp_path} && "
        f"{sys.executable} -m sweepstack {' '.join(SHORT)}; code=$?; "
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


def test_an_unwritable_folder(sweepstack, tmp_path):
    (tmp_path / "outputs").write_text("a file where a folder should be")
    (line,) = complaint(sweepstack(*SHORT), 3)
    assert line.startswith("cannot make outputs/runs/")


def test_settings_that_hydra_itself_cannot_use_leave_no_folder(sweepstack, tmp_path):
    (tmp_path / "outputs").mkdir()
    bad = "++hydra.job_logging.handlers.console.stream=ext://sys.nothing"
    (line,) = complaint(sweepstack(*SHORT, bad), 2)
    assert line == "Hydra cannot start: Unable to configure handler 'console'"
    (line,) = complaint(sweepstack(*SHORT, bad, "hydra.run.dir=here/and/there"), 2)
    assert [path.name for path in tmp_path.rglob("*")] == ["outputs"]


@pytest.mark.parametrize("name", ["default", "disabled", "stdout"])
def test_hydra_s_own_logging_may_be_chosen(sweepstack, tmp_path, name):
    done = sweepstack(*SHORT, f"hydra/job_logging={name}")
    assert (done.returncode, done.stderr) == (0, "")


ODD = [
    (["model=[null]"], 1),
    (["--cfg", "x"], 1),
    (["--cfg", "job", "-p", "no.such"], 1),
    (["--cfg", "job", "-m"], 1),
    (["--resolve"], 1),
    (["hydra.mode=${nothing}"], 1),
    (["--config-name"], 1),
    (["-model=mlp"], 1),
    (["training.eval_every=" + "1" * 5000], 1),
    (["optimizer.lr=" + "[" * 3000], 1),
    (["-m", "training.eval_every=" + "1" * 5000], 1),
    (["-m", "optimizer.lr=0.1,0.2", "hydra.launcher=a"], 1),
    (["-m", "optimizer.lr=0.1,0.2", "hydra.verbose={a:1}"], 1),
    (["-m", "training.seed=shuffle(range(0,10000000))"], 1),
    (["\x1b[31mred\n=1"], 1),
    (["optimizer." + "lr" * 5000 + "=1"], 1),
]


@pytest.mark.parametrize(("words", "count"), ODD)
def test_odd_words_are_refused_in_printable_lines(sweepstack, tmp_path, words, count):
    lines = complaint(sweepstack(*words), 2)
    assert len(lines) == count
    assert all(line.isprintable() and len(line) < 1600 for line in lines)
    assert files(tmp_path) == []


# --- what begins beside Hydra on a machine with a GPU ---------------------------------------------


class Driver:
    """In place of libcuda; of the GPU with ordinal n the handle is 40 + n."""

    def __init__(self, calls, refuses, no_such_gpu=0):
        self.calls, self.refuses, self.no_such_gpu = calls, refuses, no_such_gpu

    def cuInit(self, flags):
        self.calls.append("init")
        return self.refuses

    def cuDeviceGet(self, handle, ordinal):
        handle._obj.value = 40 + ordinal
        return self.no_such_gpu

    def cuDevicePrimaryCtxRetain(self, context, handle):
        self.calls.append(handle.value)


@pytest.fixture
def driver(monkeypatch, tmp_path):
    """A machine that seems to have a GPU; what its driver is asked."""
    calls = []
    (tmp_path / "nvidia0").touch()
    monkeypatch.setattr(preflight, "GPUS", str(tmp_path / "nvidia[0-9]*"))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr("ctypes.CDLL", lambda name: Driver(calls, 0))
    monkeypatch.setattr("torch.ones", lambda *size, device: calls.append(device))
    monkeypatch.setattr("torch.mm", lambda *given: calls.append("blas"))
    return calls


@pytest.mark.parametrize(("name", "place"), [("auto", 0), ("cuda", 0), ("cuda:3", 3)])
@pytest.mark.parametrize("with_blas", [False, True])
def test_cuda_begins_in_a_thread(driver, name, place, with_blas):
    preflight.begin_cuda(name, with_blas=with_blas).join()
    assert driver == ["init", 40 + place, f"cuda:{place}", *["blas"] * with_blas]


@pytest.mark.parametrize("name", ["cpu", "gpu", "cuda:x", "", "None"])
def test_cuda_does_not_begin_where_it_is_not_asked_for(driver, name):
    assert preflight.begin_cuda(name, with_blas=True) is None
    assert driver == []


def test_cuda_does_not_begin_where_no_gpu_is_seen(driver, monkeypatch):
    monkeypatch.setattr(preflight, "GPUS", "/nowhere/nvidia[0-9]*")
    assert preflight.begin_cuda("auto", with_blas=True) is None
    monkeypatch.undo()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert preflight.begin_cuda("auto", with_blas=True) is None


@pytest.mark.parametrize(("name", "begins"), [("auto", False), ("cuda", False), ("cuda:1", True)])
def test_of_several_gpus_the_worker_takes_one_before_cuda_begins(driver, monkeypatch, name, begins):
    """Once it has begun, it no longer heeds CUDA_VISIBLE_DEVICES."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    begun = preflight.begin_cuda(name, with_blas=True)
    assert (begun is not None) is begins
    if begun is not None:
        begun.join()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    preflight.begin_cuda(name, with_blas=True).join()


def test_a_driver_that_fails_is_left_to_what_needs_it(driver, monkeypatch):
    monkeypatch.setattr("ctypes.CDLL", lambda name: Driver(driver, 100))
    preflight.begin_cuda("auto", with_blas=True).join()
    monkeypatch.setattr("ctypes.CDLL", lambda name: Driver(driver, 0, no_such_gpu=101))
    preflight.begin_cuda("cuda:7", with_blas=True).join()
    assert driver == ["init", "init"]
    monkeypatch.setattr("ctypes.CDLL", lambda name: Path("/nowhere").stat())  # no driver
    preflight.begin_cuda("auto", with_blas=True).join()


@pytest.mark.parametrize(
    ("words", "begins"),
    [
        ([], ("auto", True)),
        (["training.device=cuda:1"], ("cuda:1", True)),
        (["training.deterministic=true"], ("auto", False)),
        (["training.deterministic=false,true"], ("auto", False)),
        (["hydra.sweeper.n_jobs=2"], None),
        (["hydra/launcher=joblib"], None),
    ],
)
def test_cuda_begins_for_a_worker_in_this_process(monkeypatch, words, begins):
    begun = []
    monkeypatch.setattr(
        preflight, "begin_cuda", lambda name, *, with_blas: begun.append((name, with_blas))
    )
    line = ["-m", "data=quadratic", "optimizer.lr=0.1,0.2", *words]
    preflight.check(preflight.parsed(line)[0], line)
    assert begun == ([] if begins is None else [begins])
