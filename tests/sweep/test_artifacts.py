"""`hydra.sweeper.artifacts`: trials' files on all machines, whatever happens between."""

from __future__ import annotations

import os
import shutil
import socket
import zipfile
from pathlib import Path

import optuna
import pytest
from sweep_support import QUICK

from sweepstack import storage
from sweepstack.cli import predict
from sweepstack.cli.study import run
from sweepstack.config.errors import EnvironmentFault, InputError
from sweepstack.storage import artifacts, uploads
from sweepstack.storage.artifacts import Store
from sweepstack.storage.uploads import Uploads
from sweepstack.study import view
from sweepstack.study.attributes import ARTIFACTS
from sweepstack.sweep.sweep import sweep
from sweepstack.sweep.worker.training_app import TrainingApp
from sweepstack.sweep.worker.trial_folder import over

WORDS = [*(w for w in QUICK if "hydra" not in w), "optimizer.lr=interval(0.01,0.1)"]


class Hosts:
    """Machines by name: each with a folder, all with one database and one artifact folder."""

    def __init__(self, root, patch):
        self.root, self.patch = root, patch
        self.url, self.shared = f"sqlite:///{root}/shared.db", root / "artifacts"

    def on(self, host):
        folder = self.root / host
        folder.mkdir(exist_ok=True)
        self.patch.setattr(socket, "gethostname", lambda: host)
        self.patch.chdir(folder)
        artifacts._told.clear()

    def sweep(self, host, total, place=None, **settings):
        self.on(host)
        node = {"study_name": "s", "storage": self.url, "n_trials": total, "report": False}
        node |= {
            "sampler": {"name": "random", "seed": 0},
            "artifacts": place and str(place),
            **settings,
        }
        sweep(node, WORDS, TrainingApp())

    def view(self, name="s"):
        return view.open_study(name, self.url)

    @property
    def study(self):
        return optuna.load_study(study_name="s", storage=storage.connect(self.url))

    def run(self, host, *words):
        self.on(host)
        return run([*words, "--storage", self.url])

    def names(self):
        return sorted(path.name for path in self.shared.glob("*/*"))

    def local(self, host, study="s"):
        found = self.root.glob(f"{host}/outputs/studies/{study}/*/metrics.json")
        return sorted(int(path.parent.name) for path in found)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Three trials of host a and three of b."""
    with pytest.MonkeyPatch.context() as patch:
        hosts = Hosts(tmp_path_factory.mktemp("made"), patch)
        hosts.sweep("a", 3, hosts.shared)
        hosts.sweep("b", 6)  # the study knows the place
        assert hosts.local("b") == list(range(6))  # what its ending says is of all trials
        for number in range(3):
            shutil.rmtree(hosts.root / f"b/outputs/studies/s/{number}")
        return hosts.root


@pytest.fixture
def hosts(made, tmp_path, monkeypatch):
    shutil.copytree(made, root := tmp_path / "hosts")
    copied = Hosts(root, monkeypatch)
    key = next(copied.shared.iterdir()).name
    copied.study.set_user_attr(ARTIFACTS, {"where": str(copied.shared), "key": key})
    copied.on("a")
    return copied


@pytest.fixture
def fresh(tmp_path, monkeypatch):
    return Hosts(tmp_path, monkeypatch)


def test_report_and_rerun_from_either_host(hosts, capfd):
    assert (hosts.local("a"), hosts.local("b")) == ([0, 1, 2], [3, 4, 5])
    assert hosts.run("a", "rerun", "s", "4") == 0  # trained on b
    assert hosts.run("b", "rerun", "s", "1") == 0
    assert (hosts.local("a"), hosts.local("b")) == ([0, 1, 2, 4], [1, 3, 4, 5])
    assert hosts.run("a", "report", "s") == 0
    for host in ("a", "b"):
        hosts.on(host)
        history = hosts.view().history
        assert hosts.local(host) == [0, 1, 2, 3, 4, 5]
        assert len(history) == 12
        assert history["lr"].notna().all()  # of history.csv alone, no database has it
    assert "other hosts" not in capfd.readouterr().err


def test_the_best_models_are_there_and_nothing_else(hosts, capsys):
    best = int(hosts.view().best_rows()["number"].iloc[0])
    assert [name for name in hosts.names() if ".models" in name] == [f"{best}.models.zip"]
    assert hosts.run("c", "pull", "s") == 0
    assert f"files of 6 trials taken from {hosts.shared}; models: {best}" in capsys.readouterr().out
    here = hosts.root / "c/outputs/studies/s"
    assert [path.parent.name for path in here.glob("*/best.pt")] == [str(best)]
    for host in ("a", "b"):
        there = hosts.root / host / "outputs/studies/s"
        for path in there.glob("[0-9]*/*"):
            if path.name in artifacts.SMALL:
                assert path.read_bytes() == (here / path.relative_to(there)).read_bytes()


def test_the_model_of_another_host_is_exported(hosts):
    best = int(hosts.view().best_rows()["number"].iloc[0])
    hosts.on("c")
    predict.run(["export", "s", str(best), "-o", "model.pt", "--storage", hosts.url])
    assert Path("model.pt").is_file()
    assert hosts.local("c") == [best]


def test_a_kill_between_end_and_upload_loses_nothing(fresh, monkeypatch):
    """The end is written first; the next start on the same machine puts the files there."""

    def die(self, name, file):
        assert fresh.view().trials[0].state.is_finished()
        raise EnvironmentFault("killed")

    with monkeypatch.context() as killed:
        killed.setattr(Store, "write", die)
        fresh.sweep("a", 2, fresh.shared)
    assert fresh.names() == []
    with pytest.raises(EnvironmentFault, match=r"2 of 2 trials are not in .*: 0, 1; the machines"):
        fresh.run("b", "pull", "s")
    fresh.sweep("a", 2)  # complete: nothing is trained
    assert fresh.run("b", "pull", "s") == 0
    assert fresh.local("b") == [0, 1]


def test_a_worker_puts_there_what_one_before_it_left(hosts):
    for path in hosts.shared.glob("*/*"):
        path.unlink()
    whole = hosts.root / "a/outputs/studies/s/9"  # of a trial whose end was not acknowledged
    whole.mkdir()
    (whole / "metrics.json").write_text("{}")
    folder = hosts.root / "a/outputs/studies/s"
    with Uploads(hosts.view().store, folder, lambda: over(hosts.view().trials)) as waiting:
        waiting.add(77)  # refused before it had a folder
    assert [name for name in hosts.names() if "models" not in name] == ["0-2.zip"]


def test_a_store_that_fails_later_is_said_once_and_the_sweep_goes_on(fresh, monkeypatch, caplog):
    def full(self, name, file):
        raise EnvironmentFault("No space left on device")

    monkeypatch.setattr(uploads, "RETRY_S", 0.0)
    monkeypatch.setattr(Store, "write", full)
    fresh.sweep("a", 4, fresh.shared)
    said = [record.getMessage() for record in caplog.records]
    assert sum("No space left" in line for line in said) == 1
    assert "the files of 4 trials are on this machine alone" in said[-1]
    assert [trial.state.name for trial in fresh.view().trials] == ["COMPLETE"] * 4


def test_without_a_store_one_line_says_where_the_files_are(hosts, caplog):
    hosts.study.set_user_attr(ARTIFACTS, None)
    hosts.on("b")
    for _ in range(2):
        assert len(hosts.view().history) == 12
    said = [line for line in caplog.messages if "other hosts" in line]
    assert len(said) == 1
    assert "the files of 3 of 6 trials of s are on other hosts; with hydra.sweeper" in said[0]
    with pytest.raises(InputError, match="has no artifacts"):
        hosts.run("b", "pull", "s")
    for number in range(3):
        (hosts.root / f"b/outputs/studies/s/{number}").mkdir()
        (hosts.root / f"b/outputs/studies/s/{number}/metrics.json").write_text("{}")
    artifacts._told.clear()
    assert hosts.view().files() is not None  # one file system for all hosts: nothing to say
    assert len([line for line in caplog.messages if "other hosts" in line]) == 1


def test_a_place_that_moved_is_named_anew(hosts, caplog):
    moved = hosts.root / "moved"
    shutil.move(hosts.shared, moved)
    with pytest.raises(EnvironmentFault, match="is not here: mount it"):
        hosts.sweep("b", 7)
    with pytest.raises(EnvironmentFault, match="cannot list: No such file"):
        hosts.run("b", "pull", "s")
    assert len(hosts.view().history) == 12
    assert "sweepstack-study pull s --from PLACE names another" in caplog.messages[-1]
    assert hosts.run("b", "pull", "s", "--from", str(moved)) == 0
    with pytest.raises(InputError, match="has none of them"):
        hosts.sweep("b", 7, hosts.root / "other")
    assert not (hosts.root / "other").exists()
    hosts.sweep("b", 7, moved)
    assert hosts.run("a", "pull", "s") == 0
    assert hosts.local("a") == list(range(7))


# --- housekeeping ------------------------------------------------------------------------------


def test_copies_have_artifacts_of_their_own_and_a_renamed_study_keeps_its(hosts):
    assert hosts.run("b", "copy", "s", "t") == 0
    assert hosts.view("t").store.key != hosts.view("s").store.key
    assert hosts.run("b", "rename", "s", "u") == 0
    assert hosts.run("b", "merge", "t", "u", "-n", "both") == 0
    assert len(hosts.view("both").store.sizes()) == 2  # six trials, the best one's model
    before = hosts.view("u").store
    assert hosts.run("b", "delete", "u", "--yes") == 0
    assert not Path(before.where, before.key).exists()
    for name in ("t", "both"):
        assert hosts.run("c", "pull", name) == 0
        assert hosts.local("c", name) == list(range(6))


def test_models_that_are_not_kept_go_from_the_store_too(hosts, tmp_path, capsys):
    store = hosts.view().store
    for number in range(6):
        store.write(f"{number}.models.zip", archive(tmp_path / "m.zip", {f"{number}/best.pt": "x"}))
    assert hosts.run("c", "prune-files", "s", "--keep", "2", "--dry-run") == 0
    assert hosts.run("c", "prune-files", "s", "--keep", "2", "--yes") == 0
    assert f"files of 4 archives in {hosts.shared}); the best 2" in capsys.readouterr().out
    best = sorted(int(n) for n in hosts.view().best_rows()["number"][:2])
    assert [name for name in hosts.names() if "models" in name] == [
        f"{number}.models.zip" for number in best
    ]


def test_deleting_removes_no_file_of_others(hosts):
    """The study, which names its place, may come from anyone."""
    home = hosts.root / "home"
    (home / "Documents").mkdir(parents=True)
    (home / "Documents" / "thesis.txt").write_text("")
    (home / "Documents" / "1.zip").write_text("")
    hosts.study.set_user_attr(ARTIFACTS, {"where": str(home), "key": "Documents"})
    assert hosts.run("a", "delete", "s", "--yes") == 0
    assert [path.name for path in home.glob("*/*")] == ["thesis.txt"]


def test_a_study_is_deleted_though_its_store_is_gone(hosts, capsys):
    shutil.rmtree(hosts.shared)
    assert hosts.run("a", "delete", "s", "--yes") == 0
    assert "the artifacts of the study stay: " in capsys.readouterr().out


# --- what is refused ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("s3://key:secret@bucket/x", "without credentials, got 's3://key:***@bucket/x'"),
        ("s4://bucket/x", "did you mean 's3'"),
        ("s3:/bucket/x", "must be a folder, s3://"),
        ("s3://Bucket", "must be a folder, s3://"),
        ("gs://bucket/a/../b", "must be a folder, s3://"),
        ("s3://bucket/x?token=1", "must be a folder, s3://"),
        ("", "must be a folder, s3://"),
    ],
)
def test_what_is_no_place_is_refused(given, said):
    with pytest.raises(InputError) as error:
        artifacts.place(given)
    assert said in str(error.value)
    assert "secret" not in str(error.value)


def test_a_refused_place_leaves_nothing(main, tmp_path):
    words = ("-m", *QUICK, "optimizer.lr=0.1,0.2")
    (tmp_path / "file").write_text("")
    for place, code, said in (
        ("'s3://key:secret@bucket/x'", 2, "got 's3://key:***@bucket/x'"),
        ("7", 2, "must be a string or null, got 7"),
        ("file/shared", 3, "file is no folder"),
        ("/proc/shared", 3, "cannot write /proc: "),
    ):
        ended = main(*words, f"hydra.sweeper.artifacts={place}")
        assert (ended.code, said in ended.lines[-1]) == (code, True), ended.err
    ended = main(*words, "hydra.sweeper.storage=null", "hydra.sweeper.artifacts=x")
    assert (ended.code, "which is null" in ended.err) == (2, True)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_missing_package_is_named_with_its_extra(monkeypatch):
    monkeypatch.setattr(artifacts, "_is_installed", lambda module: False)
    for place, extra in (("s3://bucket", "s3"), ("gs://bucket/x", "gcs")):
        with pytest.raises(EnvironmentFault, match=rf"pip install 'sweepstack\[{extra}\]'$"):
            artifacts.check(place)


# --- archives from anyone ----------------------------------------------------------------------


def test_names_say_which_trials_an_archive_holds():
    for numbers in ({0}, {3, 4, 5}, {0, 1, 7, 9, 10}, set(range(0, 64, 2))):
        assert artifacts.held_in(artifacts.name_of(numbers)) == (numbers, False)
        assert artifacts.held_in(artifacts.name_of(numbers, models=True)) == (numbers, True)
    assert artifacts.name_of({0, 1, 2, 5}) == "0-2_5.zip"
    most = artifacts.name_of(set(range(900_000, 900_000 + 2 * artifacts.MAX_BATCH, 2)))
    assert len(f".{most}.4194304.tmp") <= 255
    for name in ("0-999999999.zip", "x.zip", "1.zip.exe", "../1.zip", "-1.zip", "9" * 30 + ".zip"):
        assert artifacts.held_in(name)[0] == set()


def archive(path, members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as made:
        for name, content in members.items():
            made.writestr(name, content)
    return path


def test_nothing_is_written_outside_of_the_trials_asked_for(tmp_path):
    study = tmp_path / "study"
    link = zipfile.ZipInfo("0/config.yaml")
    link.external_attr = 0o120777 << 16  # a symbolic link
    with zipfile.ZipFile(tmp_path / "0.zip", "w") as made:
        made.writestr(link, "/etc/passwd")
        for name in (
            "../evil",
            "/tmp/evil",
            "0/../../evil",
            "0/evil.py",
            "1/metrics.json",
            "0/sub/x",
        ):
            made.writestr(name, "evil")
        made.writestr("0/metrics.json", "{}")
    assert artifacts.unpack(tmp_path / "0.zip", study, {0}) == {0}
    found = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*"))
    assert found == ["0.zip", "study", "study/0", "study/0/config.yaml", "study/0/metrics.json"]
    assert not (study / "0/config.yaml").is_symlink()


def test_what_is_too_large_or_damaged_is_refused(tmp_path, monkeypatch):
    study = tmp_path / "study"
    bomb = archive(tmp_path / "0.zip", {"0/history.csv": b"0" * 3_000_000, "0/metrics.json": "{}"})
    monkeypatch.setattr(artifacts, "MAX_SMALL", 1_000_000)
    with pytest.raises(EnvironmentFault, match="too large"):
        artifacts.unpack(bomb, study, {0})
    many = archive(tmp_path / "2.zip", {f"2/{n}": "" for n in range(700)})
    with pytest.raises(EnvironmentFault, match="holds 700 files"):
        artifacts.unpack(many, study, {2})
    whole = archive(tmp_path / "1.zip", {"1/history.csv": "a" * 999, "1/metrics.json": "{}"})
    content = whole.read_bytes()
    for torn in (content[:-30], content[:40] + b"!!!!" + content[44:], b"", b"PK"):
        whole.write_bytes(torn)
        with pytest.raises(EnvironmentFault, match=r"1\.zip"):
            artifacts.unpack(whole, study, {1})
    assert not list(study.rglob("*.*"))


def test_a_link_in_place_of_a_trials_folder_is_not_followed(tmp_path):
    (tmp_path / "study").mkdir()
    (tmp_path / "elsewhere").mkdir()
    os.symlink(tmp_path / "elsewhere", tmp_path / "study" / "0")
    made = archive(tmp_path / "0.zip", {"0/metrics.json": "{}"})
    with pytest.raises(EnvironmentFault, match="symbolic link"):
        artifacts.unpack(made, tmp_path / "study", {0})
    assert not list((tmp_path / "elsewhere").iterdir())


def test_a_damaged_archive_is_named_and_the_others_are_taken(hosts, caplog):
    path = next(path for path in hosts.shared.glob("*/*") if artifacts.held_in(path.name)[0] & {1})
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(EnvironmentFault, match=r" of 6 trials are not in .*1"):
        hosts.run("c", "pull", "s")
    assert f"{path.name} is damaged" in caplog.text
    assert set(hosts.local("c")) >= {3, 4, 5}


@pytest.mark.parametrize(
    "kept",
    [
        *(None, "s3://bucket/x", {"where": "relative", "key": "k"}, {"where": "/x"}),
        *({"where": "/x", "key": "../y"}, {"where": "s3://a:b@c/d", "key": "k"}),
        *({"where": ["/x"], "key": "k"}, {"where": "/x", "key": ""}, {"where": "", "key": "k"}),
    ],
)
def test_a_study_from_anyone_names_a_place_or_none(kept):
    assert Store.of(kept) is None
