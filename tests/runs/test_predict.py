"""`sample`, `sweepstack predict` and `export`, and model.pt."""

from __future__ import annotations

import csv
import sys
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from support import make_spec
from torch import nn

import sweepstack
from sweepstack.cli import predict as command
from sweepstack.config.errors import EnvironmentFault, InputError
from sweepstack.engine.train import train
from sweepstack.runs import prediction
from sweepstack.runs.folder import write_model

SHORT = ("training.max_steps=8", "training.eval_every=4", "batch.size=16", "training.device=cpu")
MODULE = """
from torch import nn

class Net(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.ReLU(),
                         nn.Dropout(0.3), nn.Linear(8, 10))
"""


def trained(folder, *words, trust=()):
    (result,) = train([make_spec(*SHORT, *words)])
    assert result.state == "complete", result.error
    folder.mkdir(exist_ok=True)
    write_model(folder, result)
    return sweepstack.load(folder, trust)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with runs on pictures, on tables and on a module of one's own, and their files."""
    place = tmp_path_factory.mktemp("runs")
    draw = np.random.default_rng(0)
    rows = pd.DataFrame({"a": draw.normal(3, 2, 90), "b": draw.choice(["u", "v"], 90)})
    rows["kind"] = np.where(rows["a"] > 3, "high", "low")
    rows.to_csv(place / "rows.csv", index=False)
    table = ("data=table", f"data.train={place / 'rows.csv'}")
    trained(place / "digits", "data=digits", "regularization.dropout=0.4")
    trained(place / "table", *table, "data.target=kind")
    trained(place / "numbers", *table, "data.target=a", "regularization.dropout=0.2")
    (place / "own_predicted.py").write_text(MODULE)
    sys.path.insert(0, str(place))
    own = ("model=custom", "model._target_=own_predicted.Net", "trust=[own_predicted]")
    trained(place / "own", *own, trust=["own_predicted"])
    yield place
    sys.path.remove(str(place))


def test_sample_is_the_mean_and_deviation_of_predictions_with_dropout(place):
    model, x = sweepstack.load(place / "digits"), torch.rand(6, 1, 8, 8)
    plain = model(x)
    torch.manual_seed(0)
    mean, std = model.sample(x, n=20)
    torch.manual_seed(0)
    for layer in model.modules():
        if isinstance(layer, nn.Dropout):
            layer.train()
    drawn = torch.stack([model(x).softmax(-1) for _ in range(20)])
    torch.testing.assert_close(mean, drawn.mean(0))
    torch.testing.assert_close(std, drawn.std(0))
    assert std.min() > 0
    model.eval()
    assert torch.equal(model(x), plain)
    model.sample(x)
    assert not any(layer.training for layer in model.modules())


def test_sample_inside_a_module_of_ones_own(place):
    model = sweepstack.load(place / "own", ["own_predicted"])
    assert model.sample(torch.rand(2, 1, 8, 8), n=5)[1].min() > 0


def test_sample_needs_dropout(place):
    model, x = sweepstack.load(place / "table"), torch.rand(2, 3)
    with pytest.raises(InputError, match="no dropout layers"):
        model.sample(x)
    with pytest.raises(InputError, match="n must be >= 2"):
        model.sample(x, n=1)


def test_model_pt_loads_into_the_users_own_module(place):
    import own_predicted

    net = own_predicted.Net()
    net.load_state_dict(torch.load(place / "own" / "model.pt"))  # strictly
    model, x = sweepstack.load(place / "own", ["own_predicted"]), torch.rand(4, 1, 8, 8)
    torch.testing.assert_close(net.eval()((x - model.shift) / model.scale), model(x))
    assert type(model.model[2]) is nn.BatchNorm1d
    model.model.load_state_dict(torch.load(place / "own" / "model.pt"))
    built_in = sweepstack.load(place / "digits")
    built_in.model.load_state_dict(torch.load(place / "digits" / "model.pt"))


def told(place, *words):
    command.run(["predict", *map(str, words), "-o", str(place / "out.csv")])
    with (place / "out.csv").open() as file:
        return list(csv.DictReader(file))


def test_predict_a_folder_of_pictures(place, tmp_path):
    pictures = np.random.default_rng(0).integers(0, 256, (3, 8, 8), dtype=np.uint8)
    for folder in ("sub", "folder.png", ".cache"):
        (tmp_path / folder).mkdir()
    for junk in ("notes.txt", "._a.png", ".cache/a.png"):
        (tmp_path / junk).touch()
    for name, picture in zip(("a.png", "b.png", "sub/c.png"), pictures, strict=True):
        Image.fromarray(picture).save(tmp_path / name)
    rows = told(place, place / "digits", tmp_path, "--samples", 0)
    p = sweepstack.load(place / "digits")(torch.from_numpy(pictures)[:, None]).softmax(-1)
    assert [row["file"] for row in rows] == ["a.png", "b.png", "sub/c.png"]
    assert [row["class"] for row in rows] == [str(int(k)) for k in p.argmax(-1)]
    assert [float(row["probability"]) for row in rows] == pytest.approx(p.amax(-1).tolist(), 1e-4)
    assert {row["std"] for row in rows} == {""}
    (one,) = told(place, place / "digits", tmp_path / "b.png", "--samples", 0)
    assert one["class"] == rows[1]["class"]


def test_predict_arrays_with_the_deviation(place, tmp_path):
    x = np.random.default_rng(0).random((300, 8, 8))
    np.savez(tmp_path / "x.npz", x=x)
    rows = told(place, place / "digits", tmp_path / "x.npz")
    assert rows == told(place, place / "digits", tmp_path / "x.npz")  # the same masks
    model = sweepstack.load(place / "digits")
    torch.manual_seed(0)
    mean, std = model.sample(torch.from_numpy(x[:256])[:, None], 50)
    best = mean.argmax(-1)
    assert [row["row"] for row in rows] == [str(i) for i in range(300)]
    assert [row["class"] for row in rows[:256]] == [str(int(k)) for k in best]
    expected = std.gather(1, best[:, None])[:, 0].tolist()
    assert [float(row["std"]) for row in rows[:256]] == pytest.approx(expected, 1e-4)


def test_predict_a_raw_table_with_other_columns(place, tmp_path):
    rows = pd.read_csv(place / "rows.csv")
    other = rows.drop(columns="kind").assign(more=1)[["b", "more", "a"]]
    other.to_csv(tmp_path / "new.csv", index=False)
    found = told(place, place / "table", tmp_path / "new.csv")
    x = np.stack([rows["a"], rows["b"] == "u", rows["b"] == "v"], axis=1)
    p = sweepstack.load(place / "table")(x).sigmoid()[:, 0]
    assert [row["class"] for row in found] == [("high", "low")[int(v > 0.5)] for v in p]
    certain = torch.maximum(p, 1 - p).tolist()
    assert [float(row["probability"]) for row in found] == pytest.approx(certain, 1e-4)
    numbers = told(place, place / "numbers", place / "rows.csv")
    assert list(numbers[0]) == ["row", "prediction", "std"]
    assert min(float(row["std"]) for row in numbers) > 0


def test_a_trial_is_named_by_study_and_number(place, monkeypatch, capsys):
    from sweepstack.study import view

    (place / "3").mkdir(exist_ok=True)
    for file in (place / "table").iterdir():
        (place / "3" / file.name).write_bytes(file.read_bytes())
    study = SimpleNamespace(name="s", trials=[None] * 4, files=lambda *numbers, **models: place)
    monkeypatch.setattr(view, "open_study", lambda name, storage: study)
    command.run(["predict", "s", "3", str(place / "rows.csv")])
    assert capsys.readouterr().out.startswith("row,class,probability,std\n0,")
    with pytest.raises(InputError, match="the trials of s are 0 to 3, got 4"):
        command.run(["predict", "s", "4", str(place / "rows.csv")])


@pytest.mark.parametrize(
    "kind", ["pt", "pt2", "safetensors", pytest.param("onnx", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("name", ["digits", "own"])
@pytest.mark.filterwarnings("ignore:The given buffer is not writable")  # torch 2.11 reading .pt2
def test_an_exported_model_gives_the_same(place, tmp_path, kind, name):
    if (kind, name) in (("safetensors", "own"), ("onnx", "own")):
        pytest.skip("slow, and the same as for digits")
    for package in {"safetensors": ["safetensors"], "onnx": ["onnx", "onnxscript"]}.get(kind, ()):
        pytest.importorskip(package)
    path, trust = tmp_path / f"m.{kind}", ["--trust", "own_predicted"]
    command.run(["export", str(place / name), "-o", str(path), *trust])
    model, x = sweepstack.load(place / name, ["own_predicted"]), torch.rand(5, 1, 8, 8)
    expected = model(x).detach()
    if kind == "pt2":
        torch.testing.assert_close(torch.export.load(path).module()(x).detach(), expected)
    elif kind == "onnx":
        runtime = pytest.importorskip("onnxruntime").InferenceSession(path)
        torch.testing.assert_close(
            torch.from_numpy(runtime.run(None, {"x": x.numpy()})[0]), expected
        )
    else:
        load = torch.load if kind == "pt" else __import__("safetensors.torch").torch.load_file
        state = {key: torch.zeros_like(v) for key, v in model.model.state_dict().items()}
        model.model.load_state_dict(state)
        model.model.load_state_dict(load(path))
        torch.testing.assert_close(model(x).detach(), expected)


@pytest.mark.parametrize(
    ("words", "kind", "said"),
    [
        ("predict", InputError, "required: words"),
        ("predict {}/digits", InputError, "needs a run and a FILE or FOLDER"),
        ("predict a b c d", InputError, "by STUDY and NUMBER, got a b c"),
        ("predict {}/none {}/rows.csv", EnvironmentFault, "there is no best.pt"),
        ("predict {}/table {}/none.csv", EnvironmentFault, "does not exist"),
        ("predict {}/digits {}/rows.csv", InputError, "is a table, and the model"),
        ("predict {}/digits {}/digits", EnvironmentFault, "holds no pictures"),
        ("predict {}/table {}/a.png", InputError, r"samples of shape \(3,\), no pictures"),
        ("predict {}/table {}/own_predicted.py", InputError, "a file of arrays must end in"),
        ("predict {}/table {}/rows.csv --samples 1", InputError, "--samples must be 0 or >= 2"),
        ("predict {}/table {}/rows.csv --samples 5", InputError, "no dropout layers"),
        ("predict {}/table {}/rows.csv -o {}/a.txt", InputError, "--output must end with .csv"),
        ("predict {}/table {}/rows.csv -o {}/x/a.csv", EnvironmentFault, "there is no folder"),
        ("predict {}/table {}/rows.csv -o {}/rows.csv", InputError, "not be what is predicted"),
        ("predict {}/own {}/rows.csv", InputError, "model._target_ must name"),
        ("export {}/digits -o {}/a.onx", InputError, "must end with .*did you mean '.onnx'"),
        ("export {}/digits -o {}/digits/best.pt", InputError, "must not be a model that"),
        ("export {}/digits", InputError, "required: -o"),
        ("export {}/digits {}/own -o {}/a.pt", InputError, "by STUDY and NUMBER"),
    ],
)
def test_wrong_words_are_one_line_and_write_nothing(place, words, kind, said):
    Image.new("L", (8, 8)).save(place / "a.png")
    before = sorted(place.rglob("*"))
    with pytest.raises(kind, match=said) as caught:
        command.run([word.format(place) for word in words.split()])
    assert "\n" not in str(caught.value)
    assert sorted(place.rglob("*")) == before


def test_formats_name_the_packages_that_they_need(tmp_path, monkeypatch):
    monkeypatch.setattr(prediction, "find_spec", lambda name: None)
    with pytest.raises(EnvironmentFault, match="needs onnx and onnxscript: pip install"):
        command.run(["export", str(tmp_path), "-o", str(tmp_path / "m.onnx")])
