"""Loggers: every evaluation once, of runs, of seeds, of all trials of a sweep, while they train."""

from __future__ import annotations

import csv
import json
import logging

import pandas as pd
import pytest
import warm
import yaml
from logger_support import needs_tensorboard, scalars
from support import make_spec

from sweepstack.config import composition
from sweepstack.config import reading as config
from sweepstack.config.errors import EnvironmentFault, InputError
from sweepstack.engine.train import Interrupted, train
from sweepstack.runs import logger
from sweepstack.runs.logger import Logged, Update, run_of
from sweepstack.training.spec import Monitor

LOGGED = ("logger=tensorboard", "training.device=cpu")
QUICK = (
    *("data=quadratic", "optimizer=sgd", "model.hidden=[4]"),
    *("training.max_steps=8", "training.eval_every=2", *LOGGED),
)


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
    return {n: points for n, points in found.items() if not n.startswith(("test_", "best/"))}


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
    assert (written["optimizer"]["lr"], written["logger"]["tensorboard"]) == (0.02, True)


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
    ],
    ids=["run", "sweep", "basic"],
)
def test_a_missing_package_is_one_line_and_nothing_is_written(tmp_path, words):
    hide = "import sys; sys.modules['tensorboard'] = None\n"
    (tmp_path / "hidden.py").write_text(f"{hide}from sweepstack.cli.app import main\nmain()\n")
    done = warm.run(
        ["hidden.py", *words, "logger=[csv,tensorboard]", "training.max_steps=2"], tmp_path
    )
    assert done.returncode == 3, done.stderr
    assert done.stderr == (
        "sweepstack: logger=tensorboard needs the package tensorboard: "
        "pip install 'sweepstack[tensorboard]'\n"
    )
    assert not (tmp_path / "outputs").exists()


# --- what is told --------------------------------------------------------------------------------


class Told(logger.Writer):
    """A writer that keeps what it is told."""

    def __init__(self):
        self.updates = {}

    def add(self, update):
        self.updates.setdefault(update.key, Update(update.key)).add(update)

    def send(self):
        pass

    def close(self, stopped):
        pass


def told(monkeypatch, specs, describe, monitor=None):
    """What a writer is told of specs that train, and their results."""
    writer = Told()
    monkeypatch.setattr(logger, "Writer", lambda settings: writer)
    logged = Logged(monitor or Monitor(), specs[0].config.logger, describe)
    results = []
    for result in train(specs, logged):
        logged.end(result)
        results.append(result)
    return writer.updates, results


def test_a_stack_is_told_run_by_run_and_a_failed_trial_too(monkeypatch, tmp_path):
    rates = (0.01, 1e30, 0.02)
    specs = [make_spec(*QUICK, f"optimizer.lr={rate}", number=n) for n, rate in enumerate(rates)]

    def describe(spec):
        word = f"optimizer.lr={rates[spec.number]}"
        return run_of(spec, [*QUICK, word], tmp_path, study="s", varied=[word])

    updates, results = told(monkeypatch, specs, describe)
    names = [update.run.name for update in updates.values()]
    assert sorted(names) == ["0 lr=0.01", "1 lr=1e+30", "2 lr=0.02"]
    for result in results:
        update = updates[str(result.spec.number)]
        plain = [{k: v for k, v in row.items() if k != "at"} for row in update.rows]
        assert plain == result.history
        assert update.end.state == result.state
        assert update.end.metrics == result.metrics
    assert updates["1"].end.state == "failed"
    assert "error" in updates["1"].end.facts
    params = updates["2"].run.params
    assert params == {"optimizer.lr": 0.02}
    fixed = updates["2"].run.fixed
    assert fixed["data"] == "quadratic"
    assert "logger" not in fixed


def test_what_the_layers_do_is_told(monkeypatch, tmp_path):
    spec = make_spec(*QUICK, "training.diagnostics=true")
    updates, (result,) = told(monkeypatch, [spec], lambda s: run_of(s, (), tmp_path))
    found = {row["step"]: row for row in updates["0"].layers}
    assert list(found) == [0, 2, 4, 6, 8]
    known = [row for row in result.layers if row["layer"] == "hidden.0"]
    assert [found[row["step"]]["gradient_norm/hidden.0"] for row in known] == [
        row["gradient_norm"] for row in known
    ]
    assert "saturated/output" not in found[2]


def test_a_resumed_trial_tells_what_it_had_before_and_goes_on(monkeypatch, tmp_path):
    class StopAfter(Monitor):
        def __init__(self, reports):
            self.left = reports

        def report(self, spec, row):
            self.left -= 1

        def interrupted(self):
            return 130 if self.left <= 0 else None

    spec = make_spec(*QUICK, "training.checkpoint_every=2", folder=tmp_path)
    with pytest.raises(Interrupted):
        told(monkeypatch, [spec], lambda s: run_of(s, (), tmp_path), StopAfter(2))
    updates, (result,) = told(monkeypatch, [spec], lambda s: run_of(s, (), tmp_path))
    assert [row["step"] for row in updates["0"].rows] == [2, 4, 6, 8]
    assert len(result.history) == 4


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (["init=he", "optimizer.lr=0.0123456"], ["init=he", "lr=0.01235"]),
        (["a.lr=1", "b.lr=2"], ["a.lr=1", "b.lr=2"]),
        (["+model/head=wide", "model.hidden=[50,50]"], ["head=wide", "hidden=[50,50]"]),
        ([], []),
    ],
)
def test_names_say_what_is_varied(words, name):
    assert logger.named(words) == name


def test_names_are_short(tmp_path):
    spec = make_spec(*QUICK)
    made = run_of(spec, [f"key{n}=value" for n in range(50)], tmp_path, study="s")
    assert len(made.name) == logger.MAX_NAME


def test_seeds_of_a_long_name_are_runs_of_their_own_and_loggers_are_no_part_of_it(tmp_path):
    words = ["logger=[tensorboard,csv]", *(f"key{n}=value" for n in range(50))]
    specs = [make_spec(*QUICK, f"training.seed={seed}") for seed in (3, 14)]
    names = [run_of(spec, words, tmp_path, study="s", seeds=2).name for spec in specs]
    assert [name.rpartition(" ")[2] for name in names] == ["seed=3", "seed=14"]
    assert {len(name) for name in names} == {logger.MAX_NAME}
    assert names[0].startswith("0 key0=value")


# --- what goes wrong -----------------------------------------------------------------------------


def test_a_folder_that_cannot_be_written_fails_no_run(tmp_path, caplog):
    """Through the process: the warning arrives, the result is there."""
    (tmp_path / "file").write_text("")
    spec = make_spec(*QUICK, "logger=csv")
    describe = run_of(spec, (), tmp_path / "file")
    logged = Logged(Monitor(), spec.config.logger, lambda spec: describe)
    with caplog.at_level(logging.WARNING, logger="sweepstack"):
        (result,) = train([spec], logged)
        logged.end(result)
        logged.close()
    assert result.state == "complete"
    first, last = [record.getMessage() for record in caplog.records]
    assert first.startswith("logger=csv fails, training goes on: ")
    assert "File exists" in first
    assert last == "logger=csv lacks the last of 1 runs"


def test_a_killed_writer_is_one_line(tmp_path, caplog):
    spec = make_spec(*QUICK, "logger=csv")
    logged = Logged(Monitor(), spec.config.logger, lambda s: run_of(s, (), tmp_path))
    logged._writer._process.kill()
    with caplog.at_level(logging.WARNING, logger="sweepstack"):
        (result,) = train([spec], logged)
        logged.end(result)
        logged.close()
    assert result.state == "complete"
    (line,) = [record.getMessage() for record in caplog.records]
    assert line == "logger=csv is incomplete: its process died; results are safe"


def test_wandb_without_an_account_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setattr(logger.importlib.util, "find_spec", lambda name: object())
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    spec = make_spec("logger=wandb")
    with pytest.raises(EnvironmentFault, match="needs an account: run `wandb login`, or set"):
        logger.check(spec.config)
    monkeypatch.setenv("WANDB_MODE", "offline")
    logger.check(spec.config)


@pytest.mark.parametrize("name", ["tensorboard", "mlflow", "wandb"])
def test_a_missing_package_names_its_extra(name, monkeypatch):
    monkeypatch.setitem(logger.sys.modules, name, None)
    spec = make_spec(f"logger=[csv,{name}]")
    with pytest.raises(EnvironmentFault, match=f"package {name}: pip install 'sweepstack.{name}.'"):
        logger.check(spec.config)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["logger=[tensorboard,cvs]"], "got 'cvs'; did you mean 'csv'?"),
        (["logger=tensorbord"], "got 'tensorbord'; did you mean 'tensorboard'?"),
        (["logger=tensorboard,csv"], "several loggers: write logger=[tensorboard,csv]"),
        (["logger=csv", "logger.project=x"], "unknown key 'logger.project'"),
        (["logger=mlflow", "logger.experiment=3"], "logger.experiment must be a string, got 3"),
        (["logger=csv", "logger.csv=maybe"], "logger.csv must be true or false, got 'maybe'"),
    ],
)
def test_wrong_loggers(words, said):
    with pytest.raises(InputError) as caught:
        config.read(composition.compose(words))
    (line,) = caught.value.mistakes
    assert said in line


# --- a sweep -------------------------------------------------------------------------------------


@needs_tensorboard
def test_a_sweep_logs_every_trial(sweepstack, tmp_path):
    """Stacks, a failed trial, a duplicate, and seeds: what the folders say, the loggers say."""
    words = [word for word in QUICK if not word.startswith("logger=")]
    sweep = ("-m", *words, "logger=[tensorboard,csv]", "hydra.sweeper.study_name=s")
    done = sweepstack(*sweep, "optimizer.lr=0.01,1e30,0.001", "optimizer.nesterov=true,false")
    assert done.returncode == 0, done.stderr
    study = tmp_path / "outputs" / "studies" / "s"
    table = pd.read_csv(study / "log.csv")
    for number in range(6):
        summary = json.loads((study / str(number) / "metrics.json").read_text())
        (logged,) = (study / "tensorboard").glob(f"{number} *")
        found = scalars(logged)
        if "equals" in summary:
            assert "val_mse" not in found
            assert number not in set(table["trial"])
        elif summary["state"] == "complete":
            expected = history(study / str(number) / "history.csv")
            own = table[table["trial"] == number]
            assert [(r.step, r.val_mse) for r in own.itertuples()] == expected["val_mse"]
            assert without_test({k: v for k, v in found.items() if k[:5] != "best/"}) == expected
        if summary["state"] == "complete":
            (point,) = found["test_mse"]
            assert point[1] == pytest.approx(summary["test_mse"], rel=1e-6)
    assert len(list((study / "tensorboard").iterdir())) == 6


def test_a_swept_logger_is_refused(sweepstack, tmp_path):
    done = sweepstack("-m", *QUICK[:-2], "logger=none,csv", "optimizer.lr=0.1,0.2")
    assert done.returncode == 2
    assert "logger must be the same in the whole sweep" in done.stderr
    assert "or a list: logger=[" in done.stderr
    assert not (tmp_path / "outputs").exists()
