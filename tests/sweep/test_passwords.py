"""The password of a storage goes into nothing that is written, whoever carries the workers."""

from __future__ import annotations

import os
from pathlib import Path
from textwrap import dedent

import pytest
from app_support import App
from sweep_support import QUICK, states

from sweepstack.storage import url as storage_url

SECRET = "s3Cr3t"
SWEPT = "optimizer.lr=0.1,0.2,0.3"


def written(folder: Path) -> list[str]:
    """The files below a folder that hold the password, plain or pickled."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert files
    return [str(path) for path in files if SECRET.encode() in path.read_bytes()]


@pytest.mark.parametrize(
    ("whole", "bare"),
    [
        (f"postgresql://me:{SECRET}@db:5432/x", "postgresql://me@db:5432/x"),
        (f"postgresql://me@db/x?password={SECRET}", "postgresql://me@db/x"),
        (
            f"mysql+pymysql://me:{SECRET}@db/x?charset=utf8&ssl_key_password={SECRET}",
            "mysql+pymysql://me@db/x?charset=utf8",
        ),
        (f"postgresql://me:{SECRET}%40@db/x", "postgresql://me@db/x"),
        ("postgresql://me@db/x", "postgresql://me@db/x"),
        ("sqlite:///outputs/studies.db", "sqlite:///outputs/studies.db"),
        ("journal:///a.journal", "journal:///a.journal"),
        ("no url", "no url"),
    ],
)
def test_a_url_is_taken_without_its_password_and_the_environment_gives_it_back(
    monkeypatch, whole, bare
):
    monkeypatch.setenv(storage_url.VARIABLE, "postgresql://other:word@db/x")

    assert storage_url.take_password(whole) == bare
    assert storage_url.with_password(bare) == whole
    assert storage_url.with_password("postgresql://me@elsewhere/x") == "postgresql://me@elsewhere/x"
    assert storage_url.with_password("postgresql://other@db/x") == "postgresql://other:word@db/x"


# A SQLite file takes no password: what is wrong with the way of one is seen without a server.
STORAGE = "hydra.sweeper.storage={url}?password=" + SECRET


@pytest.fixture
def named(tmp_path):
    return STORAGE.format(url=f"sqlite:///{tmp_path}/outputs/studies.db")


# In this process: what joblib's own get is pickled as Hydra's settings are.
JOBLIB = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=1", "hydra.sweeper.n_jobs=2")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # a job's log
@pytest.mark.parametrize("launcher", [(), JOBLIB])
def test_a_sweep_writes_no_password(main, tmp_path, named, launcher):
    if launcher:
        pytest.importorskip("hydra_plugins.hydra_joblib_launcher")

    ended = main("-m", *QUICK, SWEPT, *launcher, named)

    assert ended.code == 0, ended.err
    assert SECRET not in ended.out + ended.err
    assert len(states(tmp_path)) == 3
    assert written(tmp_path) == []
    if launcher:  # Hydra has written what its jobs are
        files = list(tmp_path.rglob("hydra.yaml"))
        assert len(files) == 2
        assert all(f"sqlite:///{tmp_path}/outputs/studies.db" in f.read_text() for f in files)


def test_a_storage_that_a_file_names_is_left_out_of_what_is_written_too(
    main, sweepstack, tmp_path, named
):
    (tmp_path / "mine" / "sweeps").mkdir(parents=True)
    text = f"""
        # @package _global_
        hydra: {{sweeper: {{storage: "{named.partition("=")[2]}"}}}}
        """
    (tmp_path / "mine" / "sweeps" / "mine.yaml").write_text(dedent(text).lstrip())
    mine = ("--config-dir", "mine", "+sweeps=mine")

    assert main("-m", *mine, *QUICK, SWEPT).code == 0
    assert main("--cfg", "hydra", *mine).out.count("password=***") == 1
    assert sweepstack(*mine, *QUICK[:-1]).returncode == 0
    assert written(tmp_path / "outputs") == []
    assert list(tmp_path.glob("outputs/runs/*/.hydra/hydra.yaml"))


def test_a_single_run_leaves_it_out(sweepstack, tmp_path, named):
    assert sweepstack(*QUICK[:-1], named).returncode == 0
    assert written(tmp_path) == []


@pytest.mark.parametrize("host", [f"me:a@{SECRET}@db", f"db:{SECRET}"])
@pytest.mark.parametrize("many", [(), ("-m", SWEPT)])
def test_where_the_password_begins_must_be_clear(main, tmp_path, host, many):
    ended = main(*many, *QUICK, f"hydra.sweeper.storage=postgresql://{host}/x")

    assert (ended.code, list(tmp_path.iterdir())) == (2, [])
    assert len(ended.lines) == 1
    assert SECRET not in ended.out + ended.err


def test_a_url_without_quotes_is_understood(main, tmp_path):
    """Hydra's grammar knows no second '=' without quotes; it would echo what it does not know."""
    ended = main("-m", *QUICK, SWEPT, f"hydra.sweeper.storage=sqlite:///x.db?password={SECRET}")

    assert ended.code == 0, ended.err
    assert (tmp_path / "x.db").is_file()
    assert SECRET not in ended.out + ended.err


def test_another_override_around_it_is_refused(main, tmp_path, named):
    ended = main(*QUICK[:-1], "hydra.sweeper={storage: '" + named.partition("=")[2] + "'}")

    assert (ended.code, list(tmp_path.iterdir())) == (2, [])
    assert ended.lines == [
        "sweepstack: hydra.sweeper.storage must be given by itself where it holds a password, got "
        "it inside another override"
    ]


TASK = """
    import hydra

    @hydra.main(version_base=None, config_path="conf", config_name="config")
    def app(cfg):
        return cfg.x

    if __name__ == "__main__":
        app()
"""
CONFIG = f"""
    defaults: [override hydra/sweeper: sweepstack]
    hydra:
      sweeper: {{study_name: toy, storage: "sqlite:///studies.db?password={SECRET}"}}
      sweep: {{dir: sweep}}
    x: 1
"""


def test_another_application_s_trials_have_none_in_their_hydra_yaml(tmp_path):
    app = App(tmp_path, TASK, CONFIG)

    app.sweep("x=1,2")

    assert len(list(tmp_path.glob("sweep/*/.hydra/hydra.yaml"))) == 2
    assert written(tmp_path / "sweep") == []
    assert SECRET.encode() not in (tmp_path / "studies.db").read_bytes()
    assert storage_url.VARIABLE not in os.environ or SECRET not in os.environ[storage_url.VARIABLE]


@pytest.mark.parametrize("many", [(), ("-m", SWEPT)])
def test_a_password_of_mlflow_is_refused(main, tmp_path, many):
    server = f"logger.tracking_uri='http://me:{SECRET}@host:5000'"
    ended = main(*many, *QUICK, "logger=mlflow", server)

    assert (ended.code, list(tmp_path.iterdir())) == (2, [])
    assert len(ended.lines) == 1
    assert "MLFLOW_TRACKING_URI" in ended.lines[0]
    assert SECRET not in ended.out + ended.err
