"""Loggers: every evaluation once, of runs, of seeds, of all trials of a sweep, while they train."""

from __future__ import annotations

import csv
import importlib.util
import json
import logging
import math
import struct
import time

import pandas as pd
import pytest
import warm
import yaml
from support import make_spec

from sweepstack.config import reading as config
from sweepstack.config import schema
from sweepstack.config.errors import EnvironmentFault, InputError
from sweepstack.engine.train import Interrupted, train
from sweepstack.runs import log_writer, logger
from sweepstack.runs.log_writer import Csv, Mlflow, Sink, Wandb
from sweepstack.runs.logger import Ending, Logged, Update, run_of
from sweepstack.runs.tensorboard import TensorBoard
from sweepstack.training.spec import Monitor


def needs(package):
    missing = importlib.util.find_spec(package) is None
    return pytest.mark.skipif(missing, reason=f"{package} is not installed")


needs_tensorboard = needs("tensorboard")
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


@pytest.fixture
def run(tmp_path):
    """`run(number, *words, continues=())`: a run of the study `s` in the test's folder."""

    def make(number, *words, seeds=1, continues=()):
        spec = make_spec(*words, number=number)
        return run_of(spec, words, tmp_path, study="s", seeds=seeds, continues=continues)

    return make


def rows(*steps, **numbers):
    found = {"train_loss": 1.0, "val_loss": 0.5, **numbers}
    return [{"step": step, **found, "at": 1.7e9 + step} for step in steps]


def ending(state="complete", **facts):
    return Ending(state, {"val_loss": 0.25, "test_loss": 0.3}, 4, facts, 1.7e9 + 9)


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


# --- backends ------------------------------------------------------------------------------------


@needs_tensorboard
def test_tensorboard_names_runs_by_what_varies_and_resumes_in_a_new_file(run, tmp_path):
    board = TensorBoard()
    first = run(0, "init=he")
    board.write(first, Update("0", first, rows(2, 4)))
    again = run(3, "init=he", continues=[0])
    board.write(again, Update("3", again, rows(2), end=ending()))
    assert [path.name for path in (tmp_path / "tensorboard").iterdir()] == ["3 init=he"]
    kinds = [event.WhichOneof("what") for event in events(tmp_path / "tensorboard" / "3 init=he")]
    assert kinds[:3] == ["file_version", "session_log", "summary"]
    found = scalars(tmp_path / "tensorboard" / "3 init=he")
    assert found["val_loss"] == [(2, 0.5)]
    assert found["best/val_loss"] == [(4, 0.25)]


@needs_tensorboard
def test_hparams_are_read_by_tensorboard(run, tmp_path):
    from tensorboard.backend.event_processing.event_multiplexer import EventMultiplexer
    from tensorboard.plugins.hparams import metadata

    board = TensorBoard()
    for number, (init, rate) in enumerate([("he", 0.1), ("xavier", 0.01)]):
        made = run(number, f"init={init}", f"optimizer.lr={rate}", "optimizer.nesterov=true")
        board.write(made, Update(made.key, made, rows(2), end=ending("pruned")))
    read = EventMultiplexer().AddRunsFromDirectory(str(tmp_path)).Reload()
    found = read.PluginRunToTagToContent("hparams")
    assert sorted(found) == [
        "tensorboard/0 init=he lr=0.1 nesterov=true",
        "tensorboard/1 init=xavier lr=0.01 nesterov=true",
    ]
    content = found["tensorboard/1 init=xavier lr=0.01 nesterov=true"]
    session = metadata.parse_session_start_info_plugin_data(
        content[metadata.SESSION_START_INFO_TAG]
    )
    assert session.hparams["init"].string_value == "xavier"
    assert session.hparams["optimizer.lr"].number_value == 0.01
    assert session.hparams["optimizer.nesterov"].bool_value is True
    end = metadata.parse_session_end_info_plugin_data(content[metadata.SESSION_END_INFO_TAG])
    assert end.status == 1  # success


def test_csv_is_one_table_of_all_trials(run, tmp_path):
    table = Csv()
    one, two = run(0, "init=he"), run(1, "init=xavier", "optimizer.lr=0.1")
    table.write(one, Update("0", one, rows(2)))
    table.write(two, Update("1", two, rows(2, 4)))
    Csv().write(one, Update("0", rows=rows(4)))  # another process, or another time
    table.write(one, Update("0", end=ending()))
    read = pd.read_csv(tmp_path / "log.csv")
    assert list(zip(read["trial"], read["step"], strict=True)) == [(0, 2), (1, 2), (1, 4), (0, 4)]
    assert read["init"].tolist() == ["he", "xavier", "xavier", "he"]
    assert read["optimizer.lr"].fillna(0).tolist() == [0, 0.1, 0.1, 0]
    assert read["run"].tolist()[1] == "1 init=xavier lr=0.1"
    assert "at" not in read


def test_a_writer_that_is_killed_leaves_the_table(run, tmp_path, monkeypatch):
    one = run(0, "init=he")
    Csv().write(one, Update("0", one, rows(2, 4)))
    before = (tmp_path / "log.csv").read_bytes()

    def die(*given):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(log_writer.errors.os, "replace", die)
        with pytest.raises(KeyboardInterrupt):
            Csv().write(one, Update("0", rows=rows(6, val_f1=0.5)))  # a column comes
    assert (tmp_path / "log.csv").read_bytes() == before
    with (tmp_path / "log.csv").open("ab") as file:
        file.write(b'0,0,"0 in')  # half a row, of a kill
    Csv().write(one, Update("0", rows=rows(6, val_f1=0.5)))
    Csv().write(one, Update("0", rows=rows(8)))
    read = pd.read_csv(tmp_path / "log.csv")
    assert read["step"].tolist() == [2, 4, 6, 8]
    assert read["val_f1"].fillna(0).tolist() == [0, 0, 0.5, 0]


def test_csv_gives_a_resumed_trial_its_rows_once(run, tmp_path):
    one, again = run(0, "init=he"), run(5, "init=he", continues=[2, 0])
    Csv().write(one, Update("0", one, rows(2, 4, 6)))
    table = Csv()
    table.write(again, Update("5", again, rows(2, 4)))  # its checkpoint was older
    table.write(again, Update("5", rows=rows(6, 8)))
    read = pd.read_csv(tmp_path / "log.csv")
    assert read["step"].tolist() == [2, 4, 6, 8]
    assert set(read["trial"]) == {5}
    assert set(read["run"]) == {"5 init=he"}


def test_runs_that_have_no_place_yet_wait_and_that_is_said_once(run):
    written, said = [], []

    class Full:
        def write(self, run, update):
            written.extend([run.key] * (update.end is not None))
            return update.end is not None

        def close(self):
            written.append("close")

    sink = Sink("wandb", Full, said.append)
    one, two = run(0, "init=he"), run(1, "init=xavier")
    sink.take([Update("0", one, rows(2)), Update("1", two, rows(2))])
    sink.take([Update("0", rows=rows(4)), Update("1", end=ending())])
    assert written == ["1"]
    (line,) = said
    assert line.startswith("logger=wandb has 50 runs open: others are written")
    sink.take([Update("0", end=ending())])
    sink.close()
    assert written == ["1", "0", "close"]


@pytest.fixture(scope="module")
def tracked(tmp_path_factory):
    """An MLflow of the module's: making its tables takes seconds."""
    pytest.importorskip("mlflow", reason="mlflow is not installed")
    uri = f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'runs.db'}"
    return schema.Logger(mlflow=True, tracking_uri=uri)


def tracked_runs(settings):
    from mlflow.tracking import MlflowClient

    client = MlflowClient(settings.tracking_uri)
    found = client.get_experiment_by_name(settings.experiment)
    return client, client.search_runs([found.experiment_id], order_by=["attributes.start_time"])


def of_study(found, run):
    """The runs of a test's own study: the parent, and the others by trial."""
    identity = log_writer._identity(run)
    (parent,) = [each for each in found if each.data.tags["sweepstack.id"] == identity]
    own = [e for e in found if e.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    return parent, {each.data.tags["trial"]: each for each in own}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of its use of SQLAlchemy
def test_mlflow_has_a_run_of_the_study_and_one_of_each_trial(tracked, run):
    backend = Mlflow(tracked)
    one, two = run(0, "init=he", "optimizer.lr=0.1"), run(1, "init=xavier")
    backend.write(one, Update("0", one, rows(2)))
    backend.write(two, Update("1", two, rows(2), end=ending("failed", error="no luck")))
    backend.write(one, Update("0", rows=rows(4, val_loss=0.75), end=ending("pruned")))
    backend.close()
    client, found = tracked_runs(tracked)
    parent, trials = of_study(found, one)
    assert (parent.info.run_name, parent.info.status) == ("s", "FINISHED")
    assert {key: each.info.status for key, each in trials.items()} == {
        "0": "FINISHED",
        "1": "FAILED",
    }
    first = trials["0"]
    assert first.info.run_name == "0 init=he lr=0.1"
    assert first.data.params == {"init": "he", "optimizer.lr": "0.1"}
    assert first.data.metrics["val_loss"] == 0.75
    assert first.data.metrics["best/val_loss"] == 0.25
    assert first.data.tags["state"] == "pruned"
    assert trials["1"].data.tags["error"] == "no luck"
    history = client.get_metric_history(first.info.run_id, "val_loss")
    assert [(point.step, point.value) for point in history] == [(2, 0.5), (4, 0.75)]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of its use of SQLAlchemy
def test_mlflow_goes_on_in_the_run_of_a_resumed_trial(tracked, run):
    one, again = run(0, "init=he"), run(7, "init=he", continues=[0])
    killed = Mlflow(tracked)
    killed.write(one, Update("0", one, rows(2, 4)))
    killed.close()
    backend = Mlflow(tracked)
    backend.write(again, Update("7", again, rows(2)))
    backend.write(again, Update("7", rows=rows(4, 6), end=ending()))
    backend.close()
    client, found = tracked_runs(tracked)
    _, trials = of_study(found, one)
    assert list(trials) == ["7"]
    assert (trials["7"].info.run_name, trials["7"].info.status) == ("7 init=he", "FINISHED")
    history = client.get_metric_history(trials["7"].info.run_id, "val_loss")
    assert [point.step for point in history] == [2, 4, 6]


def offline(file):
    """What a run of W&B has in its file: records in chunks, as LevelDB writes its log."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, place, records, pending = file.read_bytes(), 7, [], b""
    while place + 7 <= len(data):
        if (left := 32768 - place % 32768) < 7:
            place += left
            continue
        _, length, kind = struct.unpack("<IHB", data[place : place + 7])
        pending += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            records.append(Record.FromString(pending))
            pending = b""
    (first, *_) = (record.run for record in records if record.HasField("run"))
    last = [record.run for record in records if record.HasField("run")][-1]
    rows = [record.history for record in records if record.HasField("history")]
    return {
        **{"id": first.run_id, "name": first.display_name, "group": first.run_group},
        "tags": list(last.tags),
        "steps": [row.step.num for row in rows],
        "config": {item.key: json.loads(item.value_json) for item in first.config.update},
    }


@pytest.mark.slow
@needs("wandb")
def test_wandb_offline_groups_trials_and_resumes_them(run, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    one, two = run(0, "init=he"), run(1, "init=xavier")
    backend = Wandb(schema.Logger(wandb=True))
    backend.write(one, Update("0", one, rows(2, 4)))
    backend.write(two, Update("1", two, rows(2), end=ending("pruned")))
    backend.close()
    closed = int(time.time())
    while int(time.time()) == closed:  # W&B names its files by the second
        time.sleep(0.05)
    again = run(2, "init=he", continues=[0])
    backend = Wandb(schema.Logger(wandb=True))
    backend.write(again, Update("2", again, rows(2, 4, 6), end=ending()))
    backend.close()
    found = [offline(file) for file in sorted(tmp_path.glob("wandb/offline-run-*/*.wandb"))]
    assert len(found) == 3
    ids = [each["id"] for each in found]
    assert len(set(ids)) == 2  # the resumed one has its own again
    assert {each["group"] for each in found} == {"s"}
    by_name = {each["name"]: each for each in found}
    assert sorted(by_name) == ["0 init=he", "1 init=xavier", "2 init=he"]
    assert by_name["0 init=he"]["steps"] == [2, 4]
    assert by_name["2 init=he"]["steps"] == [6]
    assert "init=xavier" in by_name["1 init=xavier"]["tags"]
    assert "pruned" in by_name["1 init=xavier"]["tags"]
    assert by_name["1 init=xavier"]["config"]["swept"] == {"init": "xavier"}
    assert by_name["1 init=xavier"]["config"]["optimizer"]["name"] == "adam"


# --- what goes wrong -----------------------------------------------------------------------------


class Flaky:
    """A backend whose server is gone for the first calls."""

    def __init__(self, failures):
        self.left, self.written = failures, []

    def write(self, run, update):
        if self.left:
            self.left -= 1
            raise OSError("no route to host")
        self.written += [(run.key, row["step"]) for row in update.rows]
        return True

    def close(self):
        pass


def test_a_server_that_is_gone_for_a_while_is_one_line_and_loses_nothing(run, monkeypatch):
    monkeypatch.setattr(log_writer, "RETRY_S", 0.0)
    said, backend, one = [], Flaky(2), run(0, "init=he")
    sink = Sink("mlflow", lambda: backend, said.append)
    for step in (2, 4, 6):
        sink.take([Update("0", one if step == 2 else None, rows(step))])
    sink.close()
    assert backend.written == [("0", 2), ("0", 4), ("0", 6)]
    assert said == ["logger=mlflow fails, training goes on: no route to host"]


def test_a_server_that_stays_away_is_said_once_more_at_the_end(run):
    said, one = [], run(0, "init=he")
    sink = Sink("mlflow", lambda: Flaky(99), said.append)
    for step in (2, 4, 6):
        sink.take([Update("0", one if step == 2 else None, rows(step))])
    sink.close()
    assert len(said) == 2
    assert said[1] == "logger=mlflow lacks the last of 1 runs"


@pytest.fixture
def patient(monkeypatch):
    """A writer that takes long to end is no line."""
    monkeypatch.setattr(logger, "NOTICE_S", math.inf)


def test_a_folder_that_cannot_be_written_fails_no_run(tmp_path, caplog, patient):
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


def test_a_killed_writer_is_one_line(tmp_path, caplog, patient):
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
        config.read(config.compose(words))
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
