"""The README's commands, each run as it stands, only shorter."""

from __future__ import annotations

import re
import shlex
import shutil

import pytest
from support import REPOSITORY, SHARED_DATA

import sweepstack as package
from sweepstack.cli import study as cli

README = (REPOSITORY / "README.md").read_text("utf-8")
COMMANDS = re.findall(r"^    uv run sweepstack (.+)$", README, re.MULTILINE)
STUDY_COMMANDS = re.findall(r"^    uv run sweepstack-study (.+)$", README, re.MULTILINE)
PYTHON = re.findall(r"^    (df = .+|sweepstack\.pivot.+)$", README, re.MULTILINE)

NET = """
from torch import nn
class Net(nn.Sequential):
    def __init__(self, outputs, width):
        super().__init__(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, outputs))
"""


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_readme_runs(sweepstack, tmp_path, command):
    words = shlex.split(command)
    if "../shared/data" in command and not (SHARED_DATA / "MNIST").is_dir():
        pytest.skip("MNIST is not at ../shared/data/MNIST")
    words = [word.replace("../shared/data", str(SHARED_DATA)) for word in words]
    (tmp_path / "mynet.py").write_text(NET)
    if "data.root=mydata" in words:
        copy_pictures(tmp_path / "mydata")
    if "--resume" in words:
        assert (
            sweepstack("training.max_steps=2", "hydra.run.dir=outputs/runs/DATE_TIME").returncode
            == 0
        )
    else:
        words.append("training.max_steps=2")
    done = sweepstack(*words)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_what_the_readme_does_with_results_runs(sweepstack, tmp_path, monkeypatch, capsys):
    words = ("-m", "+sweeps=init_activation_grid", "training.max_steps=2", "training.eval_every=2")
    done = sweepstack(*words, "hydra.sweeper.study_name=init_activation_grid")
    assert done.returncode == 0, done.stderr
    monkeypatch.chdir(tmp_path)
    for command in STUDY_COMMANDS:
        assert cli.run(shlex.split(command)) == 0, capsys.readouterr()
    assert len((tmp_path / "trials.csv").read_text().splitlines()) == 91
    assert (tmp_path / "outputs/reports/init_activation_grid.html").exists()
    known: dict[str, object] = {"sweepstack": package}
    exec("\n".join(PYTHON), known)
    assert len(known["df"]) == 90


def copy_pictures(folder):
    source = SHARED_DATA / "cifar10_folder"
    if not source.is_dir():
        pytest.skip("pictures are not at ../shared/data/cifar10_folder")
    for split, theirs in (("train", "train"), ("val", "test")):
        for kind in sorted((source / theirs).iterdir())[:2]:
            place = folder / split / kind.name
            place.mkdir(parents=True)
            for picture in sorted(kind.iterdir())[:40]:
                shutil.copy(picture, place)


def test_the_readme_has_commands_and_is_short():
    assert len(COMMANDS) >= 6
    assert {command.split()[0] for command in STUDY_COMMANDS} >= {"list", "show", "report", "rerun"}
    assert len(PYTHON) == 2
    assert len(README.splitlines()) <= 150


def test_what_the_readme_links_to_is_there():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (REPOSITORY / target).exists(), target
