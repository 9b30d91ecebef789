"""Files from anyone: whatever stands in a best.pt or a manifest, nothing of it runs or lands
elsewhere, and the refusal is one line. Each attack would leave a file called canary."""

from __future__ import annotations

import hashlib
import io
import json
import pickle
from pathlib import Path

import pytest
import torch
from command_support import SHORT, complaint, contents
from support import make_spec

import sweepstack as product
from sweepstack.config.errors import SweepstackError
from sweepstack.engine.train import train


class Touch:
    """Leaves the canary when it is unpickled."""

    def __reduce__(self):
        return Path.touch, (Path("canary"),)


@pytest.fixture(scope="module")
def good():
    """What a best.pt holds."""
    from sweepstack.runs import folder as run_folder

    spec = make_spec("model.hidden=[4]", "training.max_steps=2", "training.device=cpu")
    [result] = train([spec])
    return {
        "model": dict(result.best_state),
        "config": run_folder._plain(spec),
        "inputs": dict(result.inputs),
        "step": result.best_step,
        "metrics": result.metrics,
    }


def put(folder, content):
    """A best.pt of these bytes, or of this value, with the checksum that fits."""
    if not isinstance(content, bytes):
        data = io.BytesIO()
        torch.save(content, data)
        content = data.getvalue()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "best.pt").write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    (folder / "best.pt.sha256").write_text(f"{digest}  best.pt\n")


def refused(folder="gift", **arguments):
    with pytest.raises(SweepstackError) as caught:
        product.load(folder, **arguments)
    assert len(str(caught.value).splitlines()) == 1
    assert not Path("canary").exists()
    return str(caught.value)


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    assert not list(tmp_path.rglob("canary*"))


SHELL = {"_target_": "subprocess.getoutput", "cmd": "touch canary"}
MODELS = {
    "shell": SHELL,
    "nested": {
        "_target_": "sweepstack.runs.prediction.load",
        "folder": "inner",
        "trust": ["subprocess"],
    },
    "nested api": {"_target_": "sweepstack.load", "folder": "inner", "trust": ["subprocess"]},
    "argument": {"_target_": "torch.nn.Sequential", "args": SHELL},
    "list": {"_target_": "torch.nn.Linear", "in_features": [SHELL], "out_features": 10},
    "hydra": {"_target_": "hydra.utils.instantiate", "config": SHELL},
    "hub": {"_target_": "torch.hub.load", "repo_or_dir": "inner", "source": "local", "model": "x"},
    "jit": {"_target_": "torch.jit.load", "f": "inner/best.pt"},
    "pickle": {"_target_": "torch.load", "f": "inner/best.pt", "weights_only": False},
    "download": {"_target_": "torchvision.datasets.MNIST", "root": "canary", "download": True},
    "weights": {"_target_": "torchvision.models.alexnet", "weights": "DEFAULT"},
    "pretrained": {"_target_": "torchvision.models.alexnet", "pretrained": True},
    "get_model": {"_target_": "torchvision.models.get_model", "name": "alexnet", "weights": "x"},
    "write": {"_target_": "torchvision.io.write_file", "filename": "canary", "data": [1]},
    "dunder": {"_target_": "torch.nn.Module.__init__.__globals__"},
    "text": {"_target_": ["os.system"]},
    "newline": {"_target_": "torch.nn.Linear\nos.system"},
}


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_a_model_that_runs_something(good, place, model):
    put(place / "gift" / "inner", good | {"config": {**good["config"], "model": dict(SHELL)}})
    put(place / "inner", good | {"config": {**good["config"], "model": dict(SHELL)}})
    config = {**good["config"], "model": {"name": "custom", **model}, "trust": ["subprocess", "os"]}
    put(place / "gift", good | {"config": config})
    assert refused().startswith("gift/best.pt: ")
    refused(trust=["sweepstack", "torchvision.ops"])


BROKEN = {
    "no file": b"",
    "text": b"<script>touch canary</script>",
    "pickle": pickle.dumps(Touch()),
    "zip": b"PK\x03\x04" + bytes(40),
    "list": [1],
    "tensor": torch.zeros(2),
    "nothing": None,
    "empty": {},
    "class": {"config": Touch(), "inputs": {}, "model": {}},
}


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
def test_a_broken_file(place, content):
    put(place / "gift", content)
    assert "gift/best.pt is not" in refused()


@pytest.mark.parametrize(
    ("part", "value"),
    [
        *(("config", value) for value in (3, "x", [], {1: 2}, torch.zeros(1))),
        *(("inputs", value) for value in (3, {}, {"input_shape": "ab", "outputs": 10})),
        *(("model", value) for value in (3, {}, {"x": 1}, [], {1: torch.zeros(1)})),
    ],
)
def test_a_part_of_another_type(good, place, part, value):
    put(place / "gift", good | {part: value})
    assert refused().startswith("gift/best.pt")


@pytest.mark.parametrize(
    "change",
    [
        {"input_shape": [10**9, 10**9]},
        {"outputs": "x"},
        {"classes": 3},
        {"classes": ["a"]},
        {"classes": list(range(10))},
        {"shift": torch.zeros(77)},
        {"columns": {"numbers": {"a": "x"}, "flags": [], "values": {}}},
        {"columns": {"numbers": {"a": 1.0}, "flags": ["b"], "values": {}}},
        {"columns": {"numbers": {"a": 1.0}, "flags": [], "values": {}}},
        {"shift": "x"},
        {"scale": [1]},
    ],
)
def test_inputs_of_another_type(good, place, change):
    put(place / "gift", good | {"inputs": {**good["inputs"], **change}})
    assert refused().startswith("gift/best.pt")


def test_a_cut_or_foreign_file_is_damaged(good, place):
    put(place / "gift", good)
    assert product.load("gift")
    whole = (place / "gift" / "best.pt").read_bytes()
    (place / "gift" / "best.pt").write_bytes(whole[:-100])
    assert "is damaged" in refused()
    put(place / "gift", whole[:-100])
    assert "is not a checkpoint" in refused()


WORDS = {
    "trust=[subprocess]": None,
    "+trust=[subprocess]": None,
    "++hydra.callbacks.x._target_=subprocess.Popen": None,
    "+init@hydra.callbacks.x=he": None,
    "hydra/launcher=joblib": None,
    "data.download=true": None,
    "model=../../evil/x": "does not name an option",
    "+x=file:///evil": "does not name an option",
    "init=/etc/passwd": "does not name an option",
    "objective=${oc.env:HOME}": "calls a resolver",
    "model.weights=/evil=null": "give it again",
    "objective='a\x1b[2J'": "KEY=VALUE",
}


@pytest.mark.parametrize("word", WORDS)
def test_an_override_of_a_manifest(word):
    from sweepstack.cli import preflight

    Path("gift").mkdir()
    arguments = ["data=digits", word]
    Path("gift", "manifest.json").write_text(json.dumps({"arguments": arguments}))
    if WORDS[word]:
        with pytest.raises(SweepstackError, match=WORDS[word]) as caught:
            preflight.resumed(["--resume", "gift"])
        assert str(caught.value).isprintable()
        assert "data=digits" in preflight.resumed(["--resume", "gift", word.split("=")[0] + "=x"])
    else:
        told = ["data=digits", "hydra.mode=RUN", "hydra.run.dir='gift'"]
        assert preflight.resumed(["--resume", "gift"]) == told


@pytest.mark.parametrize("arguments", [3, "trust", [3], {"a": 1}, [["x"]]])
def test_arguments_of_another_type(sweepstack, place, arguments):
    (place / "gift").mkdir()
    (place / "gift" / "manifest.json").write_text(json.dumps({"arguments": arguments}))
    (line,) = complaint(sweepstack("--resume", "gift"), 2)
    assert "gift/manifest.json is not what sweepstack writes" in line


@pytest.mark.parametrize("name", ["sweepstack.log", ".hydra", "checkpoints", "metrics.json"])
def test_a_link_out_of_a_folder_is_not_written_through(sweepstack, place, name):
    (place / "gift").mkdir()
    (place / "home").mkdir()
    (place / "home" / "profile").write_text("mine")
    (place / "gift" / name).symlink_to("../home" if "." not in name[1:] else "../home/profile")
    (place / "gift" / "manifest.json").write_text(json.dumps({"arguments": [*SHORT]}))
    before = contents(place)
    (line,) = complaint(sweepstack("--resume", "gift"), 2)
    assert line.startswith(f"gift/{name} is a symbolic link")
    assert contents(place) == before
