"""TensorBoard's files read back: every evaluation once, of runs, of seeds, of a sweep's best."""

from __future__ import annotations

import csv
import importlib.util
import json

import pytest
import warm
import yaml
from support import make_spec

from sweepstack.config import reading as config
from sweepstack.config.errors import EnvironmentFault
from sweepstack.engine.train import Interrupted, train
from sweepstack.runs import logger
from sweepstack.training.spec import Monitor

needs_tensorboard = pytest.mark.skipif(
    importlib.util.find_spec("tensorboard") is None, reason="tensorboard is not installed"
)
LOGGED = ("logger=tensorboard", "training.device=cpu")
QUICK = (
    *("data=quadratic", "optimizer=sgd", "model.hidden=[4]"),
    *("training.max_steps=8", "training.eval_every=2", *LOGGED),
)


def events(folder):
    """All events of the one file of a folder, in the order of writing."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    (file,) = folder.glob("events.out.tfevents.*")
    return list(EventFileLoader(str(file)).Load())


def scalars(folder):
    """name -> [(step, value)], as they lie in the file: a step that is there twice is seen."""
    found: dict[str, list[tuple[int, float]]] = {}
    for event in events(folder):
        for value in event.summary.value:
            if value.metadata.plugin_data.plugin_name == "scalars":
                number = value.tensor.float_val[0]
                found.setdefault(value.tag, []).append((event.step, number))
    return found


def text(folder):
    """The config that is written as text."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(folder)).Reload()
    (event,) = accumulator.Tensors("config")
    assert accumulator.SummaryMetadata("config").plugin_data.plugin_name == "text"
    (markdown,) = event.tensor_proto.string_val
    return yaml.safe_load(markdown.decode().removeprefix("```yaml\n").removesuffix("```"))


def history(file):
    """name -> [(step, value)] of a history.csv."""
    rows = list(csv.DictReader(file.read_text().splitlines()))
    names = [name for name in rows[0] if name not in ("seed", "step")]
    return {
        name: [(int(row["step"]), pytest.approx(float(row[name]), rel=1e-6)) for row in rows]
        for name in names
    }


def without_test(found):
    return {name: points for name, points in found.items() if not name.startswith("test_")}


@needs_tensorboard
@pytest.mark.slow
def test_a_run_logs_every_evaluation_the_test_and_its_config(sweepstack, tmp_path):
    done = sweepstack(*QUICK, "optimizer.lr=0.02", "hydra.run.dir=run")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""

    found = scalars(tmp_path / "run" / "tensorboard")
    assert without_test(found) == history(tmp_path / "run" / "history.csv")
    assert {"lr", "train_loss", "val_loss", "val_mse", "epoch"} <= found.keys()
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    expected = [(metrics["best_step"], pytest.approx(metrics["test_mse"], rel=1e-6))]
    assert found["test_mse"] == expected
    written = text(tmp_path / "run" / "tensorboard")
    assert (written["optimizer"]["lr"], written["logger"]["name"]) == (0.02, "tensorboard")


@needs_tensorboard
def test_a_resumed_run_has_every_step_once(tmp_path):
    class StopAfter(Monitor):
        def __init__(self, reports):
            self.left = reports

        def report(self, spec, row):
            self.left -= 1

        def interrupted(self):
            return 130 if self.left <= 0 else None

    spec = make_spec(*QUICK, "training.checkpoint_every=2", folder=tmp_path)

    def run(monitor):
        return list(train([spec], logger.follow(spec, tmp_path, monitor)))

    with pytest.raises(Interrupted):
        run(StopAfter(2))
    # What was logged after the last checkpoint, before a kill, must not be there twice.
    logger.Events(tmp_path / "tensorboard").row({"step": 6, "val_loss": 1.0})
    assert [step for step, _ in scalars(tmp_path / "tensorboard")["val_loss"]] == [2, 4, 6]

    results = run(Monitor())
    logger.finish(tmp_path, spec, results)

    found = scalars(tmp_path / "tensorboard")
    rows = results[0].history
    assert [row["step"] for row in rows] == [2, 4, 6, 8]
    for name in ("val_loss", "lr", "train_loss"):
        expected = [(row["step"], pytest.approx(row[name], rel=1e-6)) for row in rows]
        assert found[name] == expected
    assert len(found["test_loss"]) == 1


@needs_tensorboard
def test_what_the_layers_do_is_logged_once_each(tmp_path):
    spec = make_spec(*QUICK, "training.diagnostics=true")
    results = list(train([spec], logger.follow(spec, tmp_path / "live", Monitor())))
    logger.write(tmp_path / "ended", spec.config, results)
    for name in ("live", "ended"):
        found = scalars(tmp_path / name / "tensorboard")
        assert found["gradient_norm/hidden.0"] == [
            (row["step"], pytest.approx(row["gradient_norm"], rel=1e-6))
            for row in results[0].layers
            if row["layer"] == "hidden.0"
        ]
        assert [step for step, _ in found["activation_std/output"]] == [0, 2, 4, 6, 8]
        assert "saturated/output" not in found
        assert len(found["gradient_noise_scale"]) == 4


@needs_tensorboard
def test_a_watcher_of_the_file_forgets_what_a_resumed_run_writes_anew(tmp_path):
    """TensorBoard may have read the file before: the new one says that it starts over."""
    spec = make_spec(*QUICK)
    place = logger.Events(tmp_path)
    place.begin(spec.config, [{"step": 2, "val_loss": 1.0}])
    kinds = [event.WhichOneof("what") for event in events(tmp_path)]
    assert kinds == ["file_version", "session_log", "summary", "summary"]


@needs_tensorboard
@pytest.mark.slow
def test_each_seed_is_a_run_of_tensorboard(sweepstack, tmp_path):
    done = sweepstack(*QUICK, "training.seeds=2", "training.seed=4", "hydra.run.dir=run")
    assert done.returncode == 0, done.stderr
    place = tmp_path / "run" / "tensorboard"
    assert sorted(path.name for path in place.iterdir()) == ["seed_4", "seed_5"]
    for seed in ("seed_4", "seed_5"):
        found = scalars(place / seed)
        assert without_test(found) == history(tmp_path / "run" / seed / "history.csv")


@needs_tensorboard
@pytest.mark.parametrize("seeds", [1, 2])
def test_a_sweep_logs_its_best_trials(sweepstack, tmp_path, seeds):
    words = (f"training.seeds={seeds}", "training.width=1", "hydra.sweeper.study_name=s")
    done = sweepstack("-m", *QUICK, *words, "optimizer.lr=0.01,0.02,0.001")
    assert done.returncode == 0, done.stderr
    trials = tmp_path / "outputs" / "studies" / "s"
    logs = {path.parent.name for path in trials.glob("*/tensorboard")}
    assert logs == {path.parent.name for path in trials.glob("*/best.pt")}
    assert "2" not in logs  # the worst came last
    best = trials / "1" / "tensorboard"
    rows = list(csv.DictReader((trials / "1" / "history.csv").read_text().splitlines()))
    for seed in range(seeds):
        found = scalars(best if seeds == 1 else best / f"seed_{seed}")
        mine = [row for row in rows if int(row.get("seed", 0)) == seed]
        expected = [(int(r["step"]), pytest.approx(float(r["val_mse"]), rel=1e-6)) for r in mine]
        assert found["val_mse"] == expected
        assert len(found["test_mse"]) == 1


@needs_tensorboard
@pytest.mark.slow
def test_a_study_is_gone_on_with_by_another_logger(sweepstack, tmp_path):
    words = [word for word in QUICK if not word.startswith("logger=")]
    sweep = ("-m", *words, "optimizer.lr=tag(log,interval(1e-3,1e-1))")
    first = sweepstack(*sweep, "hydra.sweeper.n_trials=2")
    assert first.returncode == 0, first.stderr
    second = sweepstack(*sweep, "hydra.sweeper.n_trials=4", "logger=tensorboard")
    assert second.returncode == 0, second.stderr
    (study,) = (tmp_path / "outputs" / "studies").iterdir()  # of one name
    assert sum(path.name.isdigit() for path in study.iterdir()) == 4


def test_the_logger_is_no_part_of_what_a_trial_is():
    plain, logged = make_spec(), make_spec("logger=tensorboard")
    assert plain.config != logged.config
    assert plain.config_hash == logged.config_hash
    assert plain.static == logged.static


def test_a_config_from_before_there_were_loggers_is_read():
    from dataclasses import asdict

    plain = asdict(make_spec().config)
    del plain["logger"]
    assert config.read_plain(plain) == make_spec().config


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("-m", "init=he,xavier"),
        ("-m", "hydra/sweeper=basic", "init=he,xavier"),
        ("-m", "logger=none,tensorboard"),
    ],
    ids=["run", "sweep", "basic", "swept"],
)
def test_a_missing_package_is_one_line_and_nothing_is_written(tmp_path, words):
    hide = "import sys; sys.modules['tensorboard'] = None\n"
    (tmp_path / "hidden.py").write_text(f"{hide}from sweepstack.cli.app import main\nmain()\n")
    own = [] if any("logger" in word for word in words) else ["logger=tensorboard"]
    done = warm.run(["hidden.py", *words, *own, "training.max_steps=2"], tmp_path)
    assert done.returncode == 3, done.stderr
    assert done.stderr == (
        "sweepstack: logger=tensorboard needs the package tensorboard: "
        "pip install 'sweepstack[tensorboard]'\n"
    )
    assert not (tmp_path / "outputs").exists()


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    (tmp_path / "file").write_text("")
    with pytest.raises(EnvironmentFault, match=r"cannot write .*file/tensorboard: Not a directory"):
        logger.Events(tmp_path / "file" / "tensorboard").begin(make_spec().config, [])
