"""Files that a study shows in optuna-dashboard: those of its best trials, and its report."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import optuna
import pytest
from decorate_support import add, contents, decorated, new, quick_report, rows, where, whole_report
from optuna.exceptions import StorageInternalError
from optuna.storages.journal import JournalFileBackend
from optuna.trial import create_trial
from optuna_dashboard.artifact._backend import list_trial_artifacts

from sweepstack.config.errors import EnvironmentFault
from sweepstack.reporting import report
from sweepstack.reporting.dashboard import decorate
from sweepstack.study.view import StudyView, open_study

FIXTURES = (quick_report, where, whole_report)


def keep(folder: Path, number: int) -> Path:
    """The folder of a trial of the study s, with its history."""
    place = folder / "outputs" / "studies" / "s" / str(number)
    place.mkdir(parents=True)
    (place / "history.csv").write_bytes(history(number))
    return place


def history(number: int) -> bytes:
    return f"step,val_loss\n1,{number}\n".encode()


def artifacts(study: optuna.Study, trial, folder: Path):
    """Names and contents of a trial's artifacts, as the dashboard finds them."""
    for meta in list_trial_artifacts(rows(study), {}, trial):
        yield meta["filename"], (folder / "outputs/artifacts" / meta["artifact_id"]).read_bytes()


def test_a_study_carries_its_report(where, tmp_path, whole_report):
    study = new(where)
    add(study)
    assert decorated(where)
    [page] = contents(tmp_path).values()
    assert b"<html" in page


def test_the_best_trials_keep_their_files(where, tmp_path):
    study = new(where, folder="s")
    for index in range(8):
        add(study, index / 10)
        folder = keep(tmp_path, index)
        if index == 7:
            (folder / "best.pt").write_bytes(b"weights")
        if index == 6:
            (folder / "best.pt").symlink_to(tmp_path / "outputs" / "studies" / "s")
    assert decorated(where)
    shown = {t.number: dict(artifacts(study, t, tmp_path)) for t in study.trials}
    assert {number for number, files in shown.items() if files} == {3, 4, 5, 6, 7}
    assert shown[7] == {"history.csv": history(7), "best.pt": b"weights"}
    assert set(shown[6]) == {"history.csv"}
    add(study, 0.1)
    assert decorated(where)
    assert {t.number: dict(artifacts(study, t, tmp_path)) for t in study.trials[:8]} == shown


def test_the_report_that_a_sweep_has_written_is_taken(where, tmp_path):
    study = new(where)
    add(study)
    (tmp_path / "s.html").write_text("<p>here")
    assert decorated(where, written=tmp_path / "s.html")
    assert list(contents(tmp_path).values()) == [b"<p>here"]
    [meta] = [json.loads(v) for k, v in rows(study).items() if k.startswith("artifacts:")]
    assert (meta["filename"], meta["mimetype"]) == ("report.html", "text/html")


def test_trials_that_started_at_once_keep_each_its_own_files(where, tmp_path):
    study, start = new(where, folder="s"), datetime(2026, 1, 1)
    for index in range(2):  # as the trials of a stack
        trial = create_trial(value=index / 10, params={}, distributions={})
        trial.datetime_start = trial.datetime_complete = start
        study.add_trial(trial)
        keep(tmp_path, index)
    assert decorated(where)
    for trial in study.trials:
        assert dict(artifacts(study, trial, tmp_path)) == {"history.csv": history(trial.number)}


def test_one_report_is_kept_whichever_trial_ends_first(where, tmp_path):
    study = new(where)
    first = study.ask()
    add(study)
    assert decorated(where)
    study.tell(first, 0.1)
    assert decorated(where)
    assert len([key for key in rows(study) if key.startswith("artifacts:")]) == 1
    assert list(contents(tmp_path).values()) == [b"2 trials"]


def test_a_file_that_a_person_deleted_is_not_copied_again(where, tmp_path):
    study = new(where, folder="s")
    add(study)
    keep(tmp_path, 0)
    assert decorated(where)
    for path in (tmp_path / "outputs/artifacts").iterdir():
        path.unlink()
    for key in rows(study):
        if "artifacts:" in key:  # as the dashboard deletes
            study._storage.set_study_system_attr(study._study_id, key, "null")
    add(study)
    assert decorated(where)
    assert contents(tmp_path) == {}


def test_a_copy_that_broke_off_is_made_again(where, tmp_path, monkeypatch):
    study = new(where, folder="s")
    add(study)
    keep(tmp_path, 0)

    def half(source, target, *_):
        target.write(source.read(5))
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as full:
        full.setattr("shutil.copyfileobj", half)
        with pytest.raises(EnvironmentFault, match=r"cannot copy .*: No space left on device"):
            decorated(where)
    assert decorated(where)
    assert dict(artifacts(study, study.trials[0], tmp_path)) == {"history.csv": history(0)}


def test_a_journal_that_cannot_be_written_is_said(tmp_path, monkeypatch):
    where = str(tmp_path / "studies.log")
    study = new(where)
    study.ask()

    def refuse(*_):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(JournalFileBackend, "append_logs", refuse)
    with pytest.raises(EnvironmentFault, match=r"studies.log failed: .*Read-only file system"):
        decorated(where)


def test_of_two_commands_that_end_together_one_writes_the_report(where, tmp_path, monkeypatch):
    study = new(where)
    add(study)
    view = open_study(study.study_name, where)
    file, written = report.place_of(view), []

    def write(view: StudyView, path: Path) -> None:
        written.append(path)
        path.write_text("<p>here")

    monkeypatch.setattr(report, "write", write)
    decorate.write_report(view)
    decorate.write_report(view)  # later, a command of its own
    assert written == [file, file]

    read = time.time()
    monkeypatch.setattr(decorate.time, "time", lambda: read - 60)
    monkeypatch.setattr(decorate, "held", lambda lock: waited(read))

    @contextlib.contextmanager
    def waited(at: float) -> Iterator[None]:
        file.write_text("<p>theirs")  # meanwhile
        os.utime(file, (at, at))
        yield

    decorate.write_report(view)
    assert written == [file, file]
    read -= 3600  # before the last trial ended
    decorate.write_report(view)
    assert written == [file, file, file]


def test_the_report_is_written_where_no_file_can_be_locked(where, monkeypatch):
    study = new(where)
    add(study)
    view = open_study(study.study_name, where)

    def refuse(lock: Path) -> None:
        raise StorageInternalError(f"cannot lock {lock}: disk I/O error")

    monkeypatch.setattr(decorate, "held", refuse)
    monkeypatch.setattr(report, "write", lambda view, path: path.write_text("<p>here"))
    decorate.write_report(view)
    assert report.place_of(view).is_file()
