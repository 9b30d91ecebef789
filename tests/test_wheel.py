"""The wheel has all that a run needs: conf/ and sweeps/ are found inside the package."""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from importlib.util import find_spec

import pytest
import yaml
from support import REPOSITORY

needs_hatchling = pytest.mark.skipif(
    find_spec("hatchling") is None, reason="the package hatchling is not installed"
)


@pytest.mark.slow
@needs_hatchling
def test_a_wheel_runs_in_an_empty_folder(sweepstack, tmp_path):
    dist = str(tmp_path / "dist")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", dist]
    subprocess.run(build, cwd=REPOSITORY, check=True, capture_output=True)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(tmp_path / "site")
    assert {"sweepstack/conf/config.yaml", "sweepstack/py.typed"} <= set(names)
    assert any(name.endswith("/licenses/LICENSE") for name in names)
    assert any(name.startswith("sweepstack/sweeps/") for name in names)
    assert "hydra_plugins/sweepstack_sweeper/__init__.py" in names
    report = "sweepstack/reporting/report"
    parts = ("report.css", "report.js", "page.py", "templates/report.html")
    assert {f"{report}/{part}" for part in parts} <= set(names)
    empty = tmp_path / "empty"
    empty.mkdir()
    site = {"PYTHONPATH": str(tmp_path / "site")}
    words = ("training.max_steps=3", "training.device=cpu")
    done = sweepstack(*words, cwd=empty, env=site, cold=True)
    assert done.returncode == 0, done.stderr
    assert list(empty.glob("outputs/runs/*/metrics.json"))
    grid = ("-m", "+sweeps=init_activation_grid", "init=he,ones", "model.activation=relu")
    swept = sweepstack(*grid, *words, cwd=empty, env=site, cold=True)
    assert swept.returncode == 0, swept.stderr
    assert "10/10 trials" in swept.stdout
    assert (empty / "outputs" / "studies.db").exists()
    shown = sweepstack("--info", "searchpath", cwd=empty, env=site, cold=True)
    assert str(tmp_path / "site" / "sweepstack" / "conf") in shown.stdout


@pytest.mark.slow
@needs_hatchling
def test_an_sdist_has_what_the_repository_has_and_no_outputs(tmp_path):
    build = [sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", str(tmp_path)]
    subprocess.run(build, cwd=REPOSITORY, check=True, capture_output=True)
    (file,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(file) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert names >= {"LICENSE", "CHANGELOG.md", "CITATION.cff", "conf/config.yaml", "mkdocs.yml"}
    assert {name.partition("/")[0] for name in names if "/" in name} == {
        *("src", "conf", "sweeps", "tests", "benchmarks", "docs"),
    }


def test_one_version_is_named_everywhere():
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text("utf-8"))["project"]
    citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text("utf-8"))
    newest = re.search(r"^## ([\d.]+), ", (REPOSITORY / "CHANGELOG.md").read_text("utf-8"), re.M)
    assert newest is not None
    assert project["version"] == citation["version"] == newest[1]
    assert project["license"] == citation["license"] == "MIT"
