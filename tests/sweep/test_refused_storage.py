"""Storages and studies that a sweep cannot go on with stay as they were."""

from __future__ import annotations

import re
import sqlite3
import subprocess
import sys

import optuna
import pytest
from optuna.storages import RDBStorage
from sweep_support import study

from sweepstack import storage

pytestmark = pytest.mark.slow

QUICK = ("data=quadratic", "optimizer=sgd", "training.max_steps=4", "training.device=cpu")
NAMED = (*QUICK, "hydra.sweeper.study_name=mine")
SWEPT = "optimizer.lr=0.01,0.02"


def rows(folder):
    """Everything that the database says."""
    connection = sqlite3.connect(folder / "outputs" / "studies.db")
    try:
        return list(connection.iterdump())
    finally:
        connection.close()


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_what_is_no_database_stays_as_it_was(main, tmp_path):
    notes = tmp_path / "notes.txt"
    notes.write_text("lr 0.1 was too high\n" * 100)

    ended = main("-m", *QUICK, SWEPT, "hydra.sweeper.storage=sqlite:///notes.txt")

    assert (ended.code, ended.out) == (3, "")
    [line] = ended.lines
    assert line.startswith("sweepstack: storage sqlite:///")
    assert "notes.txt is not a database: the file holds something else" in line
    assert notes.read_text() == "lr 0.1 was too high\n" * 100
    assert files(tmp_path) == ["notes.txt"]


def test_the_schema_of_an_older_optuna_stays_as_it_was(main, tmp_path):
    old = tmp_path / "old.db"
    RDBStorage(f"sqlite:///{old}").engine.dispose()
    connection = sqlite3.connect(old)
    connection.execute("UPDATE alembic_version SET version_num = 'v3.0.0.a'")
    connection.commit()
    connection.close()
    before = old.read_bytes()

    ended = main("-m", *QUICK, SWEPT, "hydra.sweeper.storage=sqlite:///old.db")

    assert (ended.code, ended.out) == (3, "")
    [line] = ended.lines
    assert "was written by an older Optuna (schema v3.0.0.a" in line
    assert "optuna storage upgrade" in line
    assert old.read_bytes() == before
    assert files(tmp_path) == ["old.db"]


OTHERS = {
    "space": (["optimizer.lr=0.01,0.03"], "space.optimizer.lr", "0.03"),
    "order of choices": (["optimizer.lr=0.02,0.01"], "space.optimizer.lr", "[0.02, 0.01]"),
    "another parameter": (
        [SWEPT, "optimizer.momentum=0,0.9"],
        "space.optimizer.momentum: not in the study",
        "",
    ),
    "objective": ([SWEPT, "objective=val_mae"], "objectives", "val_mae"),
    "fixed value": ([SWEPT, "batch.size=32"], "config.batch.size: ", "now 32"),
    "points sampled, not a grid": ([SWEPT, "hydra.sweeper.n_trials=5"], "grid: true", "now false"),
}


def test_a_study_of_another_sweep_is_refused_with_the_difference(main, tmp_path):
    assert main("-m", *NAMED, SWEPT).code == 0
    there, left = rows(tmp_path), files(tmp_path)

    for what, (arguments, first, second) in OTHERS.items():
        ended = main("-m", *NAMED, *arguments)

        assert (ended.code, ended.out) == (2, ""), what
        assert ended.lines[0].startswith("sweepstack: study 'mine' has trials of another sweep;")
        assert "hydra.sweeper.on_mismatch=new" in ended.lines[0]
        assert any(first in line and second in line for line in ended.lines[1:]), ended.err
        assert all(line.startswith("sweepstack: ") for line in ended.lines)
    assert rows(tmp_path) == there
    assert files(tmp_path) == left

    other = [*NAMED, "optimizer.lr=0.01,0.03", "hydra.sweeper.on_mismatch=new"]
    for _ in range(2):  # the second goes on with the new one, which is complete
        ended = main("-m", *other)
        assert ended.code == 0, ended.err
        assert "study mine_2: 2 trials" in ended.out
    assert [trial.params["optimizer.lr"] for trial in study(tmp_path, "mine_2").trials] == [
        0.01,
        0.03,
    ]
    assert len(study(tmp_path, "mine").trials) == 2
    assert (tmp_path / "outputs" / "studies" / "mine_2" / "1" / "metrics.json").exists()


def test_a_fixed_value_inside_of_a_swept_group_counts(main, tmp_path):
    quick = [word for word in NAMED if word != "optimizer=sgd"]
    words = ("-m", *quick, "optimizer=sgd,adam")
    assert main(*words, "optimizer.lr=0.01").code == 0
    there = rows(tmp_path)

    ended = main(*words, "optimizer.lr=0.02")

    assert ended.code == 2
    assert ended.lines[1:] == ["sweepstack: config.optimizer.lr: 0.01 in the study, now 0.02"]
    assert rows(tmp_path) == there


def test_a_flipped_direction_is_refused(main, tmp_path):
    words = ("-m", *NAMED, SWEPT, "hydra.sweeper.objectives=[num_parameters]")
    assert main(*words, "hydra.sweeper.direction=minimize").code == 0

    ended = main(*words, "hydra.sweeper.direction=maximize")

    assert ended.code == 2
    assert 'directions: ["minimize"] in the study, now ["maximize"]' in ended.lines[-1]


def test_a_study_of_the_dashboard_s_is_taken_only_if_it_is_empty(main, tmp_path):
    (tmp_path / "outputs").mkdir()
    url = f"sqlite:///{tmp_path}/outputs/studies.db"
    foreign = optuna.create_study(storage=storage.connect(url), study_name="mine")
    foreign.add_trial(optuna.create_trial(value=1.0))
    there = rows(tmp_path)

    ended = main("-m", *NAMED, SWEPT)

    assert ended.code == 2
    assert "it was not made by a sweep of sweepstack" in ended.lines[-1]
    assert rows(tmp_path) == there


@pytest.mark.parametrize("place", ["training.device=cpu", "data.workers=1", "trust=[math]"])
def test_where_it_runs_makes_no_other_study(main, place):
    quick = [word for word in NAMED if not word.startswith("training.device")]
    assert main("-m", *quick, "optimizer.lr=0.01").code == 0

    ended = main("-m", *quick, "optimizer.lr=0.01", place)

    assert ended.code == 0, ended.err
    assert "1 of them done before" in ended.out


OTHER_TABLES = """
import sys
from optuna.storages._rdb import models

del models.TrialHeartbeatModel

from sweepstack.cli import app

app.main()
"""


def test_an_optuna_with_other_tables_is_used_by_its_public_api(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(OTHER_TABLES)
    ended = subprocess.run(
        [sys.executable, "script.py", "-m", *QUICK, SWEPT],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )

    assert ended.returncode == 0, ended.stderr
    (line,) = ended.stderr.splitlines()
    assert f"Optuna {optuna.__version__} has no TrialHeartbeatModel.trial_id" in line
    assert line.endswith("using its public API, which is slower")


@pytest.mark.parametrize(
    ("url", "code"),
    [
        ("postgresql://u:s3cret@h/x", 3),
        ("postgresql://u:s3cret@h:port/x?password=s3cret", 2),
        ("postgresql://u:s3{cret@h/x", 3),
        ("'postgresql://u:s3#cret@h:port/x'", 2),
        ("mysql://h/x?passwd=s3cret", 3),
        ("nosuch://u:s3cret@h/x", 2),
    ],
)
def test_a_server_s_password_is_never_printed(main, tmp_path, url, code):
    ended = main("-m", *QUICK, SWEPT, f"hydra.sweeper.storage={url}")

    assert (ended.code, ended.out) == (code, "")
    assert len(ended.lines) == 1
    assert not re.search("s3|cret", ended.err)
    assert not list(tmp_path.iterdir())


def test_a_place_without_the_study_s_artifacts_is_refused_and_nothing_written(main, tmp_path):
    words = ("-m", *NAMED, "optimizer.lr=0.1")
    assert main(*words, f"hydra.sweeper.artifacts={tmp_path}/here").code == 0
    before = rows(tmp_path)
    other = (f"hydra.sweeper.artifacts={tmp_path}/there", "hydra.sweeper.keep_models=all")
    ended = main(*words, *other)
    assert ended.code == 2
    assert ended.lines[-1].startswith("sweepstack: study mine has its artifacts in ")
    assert rows(tmp_path) == before
