"""What each logger writes: TensorBoard, a table, MLflow, W&B; and while its server is gone."""

from __future__ import annotations

import json
import struct
import time

import pandas as pd
import pytest
from logger_support import events, needs, needs_tensorboard, scalars
from support import make_spec

from sweepstack.config import schema
from sweepstack.runs import log_writer
from sweepstack.runs.log_writer import Csv, Mlflow, Sink, Wandb
from sweepstack.runs.logger import Ending, Update, run_of
from sweepstack.runs.tensorboard import TensorBoard


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
