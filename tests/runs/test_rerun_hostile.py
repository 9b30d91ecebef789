"""A study from anyone: whatever it holds, a rerun writes nothing but its folder and runs nothing.

Each attack would leave a file called canary in the working folder.
"""

from __future__ import annotations

import pickle
import re
from datetime import date
from pathlib import Path

import pytest
import yaml
from rerun_support import (
    FIT,
    edit,
    edit_study,
    execute,
    forget_folders,
    reruns,
    study,
    sweep,
    words_of,
)

EVIL = """
import pathlib
pathlib.Path("canary").touch()
import torch
class Net(torch.nn.Linear):
    def __init__(self, outputs):
        super().__init__(1, outputs)
"""


@pytest.fixture
def hostile(main, tmp_path):
    """A trial whose record is about to be changed by someone."""
    sweep(main, *FIT, "optimizer.lr=0.01")
    (tmp_path / "evil.py").write_text(EVIL)
    yield
    assert not list(tmp_path.rglob("canary"))


def in_config(**changes):
    """Change the trial's config.yaml, and the hash as if it had been so."""
    file = Path("outputs/studies/s/0/config.yaml")
    plain = yaml.safe_load(file.read_text())
    for key, value in changes.items():
        plain[key] = value
    file.write_text(yaml.safe_dump(plain, sort_keys=False))
    from sweepstack.config import reading as config
    from sweepstack.training.spec import TrialSpec

    edit(0, config_hash=TrialSpec(config.read_plain(plain)).config_hash)


TARGETS = (
    "os.system",
    "evil.Net",
    "torch.os.system",
    "torchvision.os.system",
    "torch.nn.modules.module.torch.os.system",
    "torch.nn.Module.__init__.__globals__",
    "torchvision.datasets.utils.download_url",
    "torch.nn.parallel.data_parallel.torch.hub.load",
    "sweepstack.config.errors.write_bytes",
    "sweepstack.runs.folder.claim",
    "sweepstack.runs.folder.subprocess.run",
)


@pytest.mark.parametrize("kept", ["in the folder", "in the database"])
@pytest.mark.parametrize("target", TARGETS)
def test_a_target_that_runs_something(hostile, again, target, kept):
    arguments = {"command": "touch canary", "wanted": "canary", "path": "canary"}
    if kept == "in the folder":
        in_config(model={"name": "custom", "_target_": target, **arguments}, trust=["os", "evil"])
    else:
        words = [word for word in words_of(0) if not word.startswith("model")]
        words += ["model=custom", f"model._target_={target}", "trust=[os,evil,torch,posix]"]
        words += [f"+model.{key}='{value}'" for key, value in arguments.items()]
        edit(0, sweepstack__overrides=words, config_hash=None)
    said = again("s", "0")
    assert said.code == 2
    assert "model._target_" in said.line
    if target in ("os.system", "evil.Net"):
        assert "--trust PACKAGE" in said.line
    assert reruns() == []


@pytest.mark.parametrize("target", ["os.system", "torch.nn.Linear", "torch.optim.Optimizer"])
def test_an_optimizer_that_is_none(hostile, again, target):
    words = [word for word in words_of(0) if not word.startswith("optimizer")]
    words += ["optimizer=custom", f"optimizer._target_={target}", "trust=[os,torch]"]
    edit(0, sweepstack__overrides=words, config_hash=None)
    said = again("s", "0")
    assert said.code == 2
    assert "optimizer._target_ must name an optimizer of torch.optim" in said.line
    assert reruns() == []


def test_a_torch_optimizer_is_run_again(main, again):
    words = [word for word in FIT if not word.startswith("optimizer")]
    words += ["optimizer=custom", "optimizer._target_=torch.optim.Adamax", "+optimizer.eps=1e-7"]
    assert main("-m", *words, "optimizer.lr=0.01").code == 0
    said = again("s", "0")
    assert said.code == 0, said.out
    assert "another config" not in said.out


def test_a_package_that_the_user_trusts_is_built(main, again, tmp_path):
    (tmp_path / "mynet.py").write_text(EVIL.replace('"canary"', '"imported"'))
    words = [word for word in FIT if not word.startswith("model")]
    words += ["model=custom", "model._target_=mynet.Net", "trust=[mynet]"]
    assert main("-m", *words, "optimizer.lr=0.01").code == 0
    refused = again("s", "0")
    assert refused.code == 2
    assert "--trust PACKAGE" in refused.line
    said = again("s", "0", "--trust", "mynet")
    assert said.code == 0, said.out
    assert "another config" not in said.out


OVERRIDES = {
    "hydra.run.dir=canary": 0,
    "hydra/launcher=joblib": 0,
    "+hydra.callbacks.x._target_=evil.Net": 0,
    "hydra.searchpath=[file://evil]": 0,
    "+sweeps@hydra=init_activation_grid": 0,
    "hydra.output_subdir=canary": 0,
    "~hydra.job_logging": 0,
    "--config-dir=evil": 2,
    "--config-dir": 2,
    " hydra.run.dir=canary": 2,
    "init=../../evil": 2,
    "init=/etc/passwd": 2,
    "init=file://evil": 2,
    "logger=[csv,../evil]": 2,
    "logger=[csv,/etc/passwd]": 2,
    "+../evil=x": 2,
    "training.device=${oc.env:HOME}": 2,
    "objective=${oc.env:HOME}": 2,
    "optimizer.lr=${now:%f}": 2,
    "optimizer.lr=${a${oc.env:HOME}}": 2,
    "optimizer.lr=0.01\x1b[2J": 2,
}


@pytest.mark.parametrize("word", OVERRIDES)
@pytest.mark.parametrize("folder", ["with its folder", "the database alone"])
def test_an_override_that_is_more_than_a_value(hostile, again, word, folder):
    edit(0, sweepstack__overrides=[*words_of(0), word])
    if folder != "with its folder":
        forget_folders()
    said = again("s", "0")
    assert said.code == OVERRIDES[word], said.err
    if said.code:
        assert said.line.startswith("sweepstack-study: trial 0 is refused: its recorded override '")
        assert said.line.isprintable()
        assert reruns() == []
    else:
        assert "a study may not set Hydra" in said.out


def test_options_of_a_group_in_a_list_are_no_attack_and_no_logger_runs(hostile, again):
    edit(0, sweepstack__overrides=[*words_of(0), "logger=[tensorboard,csv]"])
    said = again("s", "0")
    assert said.code == 0, said.err
    assert not list(Path("outputs").rglob("log.csv"))


def test_a_reference_to_another_key_is_no_resolver(hostile, again):
    edit(0, sweepstack__overrides=[*words_of(0), "training.eval_every=${training.max_steps}"])
    forget_folders()
    said = again("s", "0")
    assert "config_hash" in said.out
    # It means the 24 of the other key: one evaluation, whose train_loss is the mean over 24 steps.
    assert said.code == 5
    assert said.verdict.startswith("differs: largest difference ")
    assert "(train_loss at step 24)" in said.verdict
    assert {int(step) for step in re.findall(r" at step (\d+) ", said.out)} == {24}


def test_a_folder_of_configs_that_the_study_names(hostile, again, tmp_path):
    (tmp_path / "theirs" / "init").mkdir(parents=True)
    (tmp_path / "theirs" / "init" / "he.yaml").write_text("scheme: ones\ngain: null\n")
    asked = study().user_attrs["sweepstack.sweep"]
    place = {
        "name": "sweepstack",
        "config_dir": str(tmp_path / "theirs"),
        "config_name": "../../evil",
    }
    edit_study("sweepstack.sweep", asked | {"application": place})
    assert again("s", "0").code == 0  # from config.yaml, whose hash is known
    forget_folders()
    said = again("s", "0")
    assert said.code == 2
    assert "--config-dir" in said.line


@pytest.mark.parametrize(
    "text",
    [
        "!!python/object/apply:os.system ['touch canary']",
        "data: !!python/object/apply:pathlib.Path.touch [canary]",
        "a: &a [x]\nb: [*a, *a]",
        "data: ${oc.env:HOME}",
        "{" * 5000,
        "\x00",
        "[1]",
        "1: 2",
        "",
        ("optimizer", []),
        ("optimizer", {"name": [1]}),
        ("data", {"name": {"a": 1}}),
        ("training", {"max_steps": 10**400}),
        ("optimizer", {"lr": 10**400}),
        ("model", {"_target_": "torch.nn.Linear", "x": date(2026, 1, 1)}),
        ("model", {"_target_": "torch.nn.Linear", "arguments": "[1]"}),
    ],
)
def test_a_config_file_that_is_no_plain_config(hostile, again, text):
    file = Path("outputs/studies/s/0/config.yaml")
    if not isinstance(text, str):  # a group, or some of its keys
        group, changed = text
        plain = yaml.safe_load(file.read_text())
        plain[group] = {**plain[group], **changed} if changed else changed
        text = yaml.safe_dump(plain)
    file.write_text(text)
    said = again("s", "0")  # from the database
    assert said.code == 0, said.err


def test_checkpoints_beside_it_are_never_read(hostile, again):
    class Evil:
        def __reduce__(self):
            return Path.touch, (Path("canary"),)

    place = Path("outputs/studies/s/0")
    (place / "checkpoints").mkdir()
    for name in ("best.pt", "checkpoints/00000004.pt", "checkpoints/step_4.pt"):
        (place / name).write_bytes(pickle.dumps(Evil()))
    assert again("s", "0").code == 0


@pytest.mark.parametrize("name", ["../canary", "/tmp", "..", "0"])
def test_a_folder_elsewhere(hostile, again, name):
    edit_study("sweepstack.folder", name)
    assert again("s", "0").code == 0


def test_nothing_is_downloaded_because_a_study_says_so(hostile, again, tmp_path):
    words = [word for word in words_of(0) if not word.startswith("data")]
    place = tmp_path / "canary"
    words += ["data=mnist", "data.download=true", f"data.root={place}"]
    edit(0, sweepstack__overrides=words, config_hash=None)
    said = again("s", "0")
    assert said.code == 3
    assert reruns() == []


def test_the_name_of_a_study_is_no_path(hostile, again):
    execute("UPDATE studies SET study_name = '../../canary/x'")
    assert again("../../canary/x", "0").code == 0
    assert reruns() == ["canary-x-0"]


def test_no_file_of_weights_is_read_because_a_study_says_so(hostile, again, tmp_path):
    import torch

    weights = tmp_path / "w.pt"
    torch.save({}, weights)
    in_config(model={"name": "mlp", "hidden": [8], "activation": "relu", "weights": str(weights)})
    said = again("s", "0")
    assert said.code == 2
    assert f"if you trust it, add model.weights={weights} to the command" in said.line
    asked = again("s", "0", f"model.weights={weights}")
    assert asked.code == 2
    assert "does not fit model mlp: it lacks 'hidden.0.weight'" in asked.line
    assert reruns() == []
