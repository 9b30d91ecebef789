"""`sweepstack-study delete`: what goes, what stays, and when it is refused."""

from __future__ import annotations

import sqlite3
import sys

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from sweepstack import storage
from sweepstack.cli.study import run
from sweepstack.config.errors import EnvironmentFault, InputError
from sweepstack.study.attributes import FOLDER, WORKER
from sweepstack.study.book import processes
from sweepstack.study.book.bulk import BulkBook

pytestmark = pytest.mark.slow

ARTIFACT = "0" * 8 + "-0000-0000-0000-" + "0" * 12


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with the studies `old` and `kept`, each with trials, files and a report."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    for name in ("old", "kept"):
        made = study(name)
        made.set_user_attr(FOLDER, name)
        for value in (1.0, 2.0):
            trial = made.ask()
            trial.suggest_float("lr", 0, 1)
            trial.report(value, 1)
            trial.set_user_attr("steps", 5)
            made.tell(trial, value)
        write(tmp_path / "outputs" / "studies" / name / "0" / "metrics.json")
        write(tmp_path / "outputs" / "reports" / f"{name}.html")
    write(tmp_path / "outputs" / "artifacts" / ARTIFACT)
    old = study("old")
    for key in (f"dashboard:artifacts:1:{ARTIFACT}", "artifacts:../reports/kept.html"):
        old._storage.set_study_system_attr(old._study_id, key, "{}")
    return tmp_path


def study(name):
    return optuna.create_study(storage=storage.connect(), study_name=name, load_if_exists=True)


def write(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("{}")


def files(folder):
    found = (str(path.relative_to(folder / "outputs")) for path in folder.glob("outputs/*/**/*"))
    return sorted(name for name in found if "." in name and "studies.db" not in name)


def rows(folder):
    """Rows by table."""
    connection = sqlite3.connect(folder / "outputs" / "studies.db")
    tables = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
    return {
        name: connection.execute(f"SELECT count(*) FROM {name}").fetchone()[0] for [name] in tables
    }


def answering(monkeypatch, answer):
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    asked = []

    def reply(question):
        asked.append(question)
        if answer is None:
            raise EOFError
        return answer

    monkeypatch.setattr("builtins.input", reply)
    return asked


def test_all_that_is_of_a_study_goes_and_nothing_else(folder, capsys):
    before = rows(folder)
    assert run(["delete", "old", "--yes"]) == 0
    assert "deleted study old: 2 trials, outputs/studies/old, outputs/reports/old.html" in (
        capsys.readouterr().out
    )
    assert files(folder) == ["reports/kept.html", "studies/kept/0/metrics.json"]
    assert not (folder / "outputs" / "studies" / "old").exists()
    assert not (folder / "outputs" / "artifacts" / ARTIFACT).exists()
    assert optuna.get_all_study_names(storage.connect()) == ["kept"]
    assert len(study("kept").trials) == 2
    after = rows(folder)
    for name in ("studies", "trials", "trial_params", "trial_values", "trial_user_attributes"):
        assert (before[name], after[name]) == (before[name], before[name] // 2), name
    assert after["study_system_attributes"] == 0


@pytest.mark.parametrize(
    ("answer", "code"), [("y", 0), ("YES ", 0), ("", 1), ("n", 1), ("old", 1), (None, 1)]
)
def test_a_person_is_asked(folder, monkeypatch, answer, code):
    asked, there = answering(monkeypatch, answer), files(folder)
    assert run(["delete", "old"]) == code
    assert asked == [
        "delete study old (2 trials, outputs/studies/old, outputs/reports/old.html)? [y/N] "
    ]
    assert optuna.get_all_study_names(storage.connect()) == (["old"] * code + ["kept"])
    assert (files(folder) == there) == bool(code)


def test_where_nobody_can_be_asked_it_wants_yes(folder, monkeypatch):
    monkeypatch.setattr(sys.stdin, "isatty", lambda: False, raising=False)
    there = files(folder), rows(folder)
    with pytest.raises(InputError, match="add --yes"):
        run(["delete", "old"])
    assert (files(folder), rows(folder)) == there


def test_an_unknown_study_is_refused_with_the_nearest(folder):
    with pytest.raises(InputError, match="did you mean 'kept'"):
        run(["delete", "kep", "--yes"])


def test_a_study_that_a_living_worker_runs_is_kept(folder):
    old = study("old")
    (trial,) = BulkBook(old, storage.connect(), 3).claim()
    there = files(folder), rows(folder)
    with pytest.raises(EnvironmentFault, match=r"at work: 1 trials run.* stop the sweep first"):
        run(["delete", "old", "--yes"])
    assert (files(folder), rows(folder)) == there

    gone = processes.this_process().rpartition(":")[0] + ":1"  # an earlier process of this number
    old._storage.set_trial_user_attr(trial._trial_id, WORKER, gone)
    assert run(["delete", "old", "--yes"]) == 0
    assert optuna.get_all_study_names(storage.connect()) == ["kept"]


def test_a_worker_that_is_silent_is_not_waited_for(folder):
    old = study("old")
    (trial,) = BulkBook(old, storage.connect(), 3).claim()
    old._storage.set_trial_user_attr(trial._trial_id, WORKER, "elsewhere/1:7:7")
    with pytest.raises(EnvironmentFault, match="process 7 on elsewhere"):
        run(["delete", "old", "--yes"])
    with sqlite3.connect("outputs/studies.db") as connection:
        connection.execute("UPDATE trial_heartbeats SET heartbeat = '2020-01-01 00:00:00'")
    assert run(["delete", "old", "--yes"]) == 0


def test_a_folder_that_another_study_names_is_kept_and_a_link_is_not_followed(folder):
    study("old").set_user_attr(FOLDER, "kept")
    assert run(["delete", "old", "--yes"]) == 0
    assert (folder / "outputs" / "studies" / "kept" / "0" / "metrics.json").exists()

    elsewhere = folder / "elsewhere" / "0" / "metrics.json"
    write(elsewhere)
    linked = study("linked")
    linked.set_user_attr(FOLDER, "linked")
    (folder / "outputs" / "studies" / "linked").symlink_to(folder / "elsewhere")
    assert run(["delete", "linked", "--yes"]) == 0
    assert elsewhere.exists()
    assert not (folder / "outputs" / "studies" / "linked").is_symlink()


def test_where_a_file_cannot_be_removed_the_rows_stay(folder, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("shutil.rmtree", refuse)
    with pytest.raises(EnvironmentFault, match=r"cannot remove .*studies/old: Permission denied"):
        run(["delete", "old", "--yes"])
    assert len(study("old").trials) == 2


def test_a_study_of_a_journal_goes_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    journal = JournalStorage(JournalFileBackend("journal.log"))
    optuna.create_study(storage=journal, study_name="old")
    assert run(["delete", "old", "--yes", "--storage", "journal.log"]) == 0
    assert optuna.get_all_study_names(JournalStorage(JournalFileBackend("journal.log"))) == []
