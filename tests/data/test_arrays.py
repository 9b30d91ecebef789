"""data=arrays and data=custom: files and datasets of one's own."""

import json
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import sweepstack
from sweepstack import data
from sweepstack.config.effect import effect
from sweepstack.config.errors import EnvironmentFault, InputError
from sweepstack.data import arrays
from sweepstack.data.targets import Targets
from sweepstack.sweep.worker.trainer import effect_on_data

RNG = np.random.default_rng(0)
X = RNG.normal(size=(40, 3))
Y = np.arange(40) % 4


@pytest.fixture
def own(configure):
    return lambda path, **changes: configure("arrays", train=str(path), **changes)


def npz(path, x=X, y=Y):
    np.savez(path, x=x, y=y)
    return path


def test_an_npz_is_split_and_normalized_by_its_training_rows(own, tmp_path):
    config = own(npz(tmp_path / "a.npz"), test=0.25, validation=10.0)
    found = data.load(config)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0)).numpy()
    test, val, train = order[:10], order[10:20], order[20:]
    mean, std = X[train].astype("f4").mean(0), X[train].astype("f4").std(0)
    for split, rows in ((found.train, train), (found.val, val), (found.test, test)):
        torch.testing.assert_close(split.x, torch.from_numpy((X[rows] - mean) / std).float())
        assert split.y.tolist() == Y[rows].tolist()
    assert (found.task, found.classes, found.outputs) == ("multiclass", tuple("0123"), 4)


@pytest.mark.parametrize("kind", [".npz", ".npy", ".pt", ".safetensors"])
def test_every_kind_of_file_gives_the_same(own, tmp_path, kind):
    place = tmp_path / f"x_train{kind}"
    x, y = torch.from_numpy(X), torch.from_numpy(Y)
    if kind == ".npz":
        npz(place)
    elif kind == ".npy":
        np.save(place, X)
        np.save(tmp_path / "y_train.npy", Y)
    elif kind == ".pt":
        torch.save({"x": x, "y": y}, place)
    else:
        pytest.importorskip("safetensors.torch").save_file({"x": x, "y": y}, place)
    found = data.load(own(place, normalization="none")).train
    expected = data.load(own(npz(tmp_path / "other.npz"), normalization="none")).train
    assert torch.equal(found.x, expected.x)
    assert torch.equal(found.y, expected.y)


def test_safetensors_needs_its_package(own, tmp_path, monkeypatch):
    (tmp_path / "a.safetensors").touch()
    monkeypatch.setattr(arrays, "find_spec", lambda name: None)
    with pytest.raises(EnvironmentFault, match="pip install safetensors"):
        data.load(own(tmp_path / "a.safetensors"))


@pytest.mark.parametrize(
    ("shape", "dtype", "expected"),
    [
        ((40, 6, 5), np.uint8, (1, 6, 5)),
        ((40, 6, 5, 3), np.uint8, (3, 6, 5)),
        ((40, 6, 5, 4), np.uint8, (4, 6, 5)),
        ((40, 6, 5, 3), np.int64, (3, 6, 5)),
        ((40, 6, 6, 3), np.float64, (3, 6, 6)),
        ((40, 6, 5, 3), np.float64, (6, 5, 3)),
        ((40, 3, 6, 5), np.uint8, (3, 6, 5)),
        ((40, 1, 6, 5), np.int64, (1, 6, 5)),
        ((40, 2, 6, 5), np.float64, (2, 6, 5)),
        ((40, 6, 5), np.float32, (6, 5)),
        ((40,), np.int32, (1,)),
    ],
)
def test_samples_of_any_shape(own, tmp_path, shape, dtype, expected):
    x = RNG.integers(0, 256, shape).astype(dtype)
    config = own(npz(tmp_path / "a.npz", x), normalization="none")
    found = data.load(config)
    assert found.input_shape == expected
    scale = 255 if len(expected) == 3 and dtype != np.float64 else 1
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    first = torch.tensor(x[order[10]].astype("f4")).div(scale)
    if len(shape) == 4 and expected != shape[1:]:
        first = first.permute(2, 0, 1)
    assert torch.equal(found.train.x[0], first.reshape(expected))


@pytest.mark.parametrize(
    ("y", "said"),
    [
        (RNG.normal(size=40), ""),
        (RNG.normal(size=40) + 13, "their mean is 1"),
        (RNG.normal(size=(40, 2)) * [1, 100], "their standard deviation"),
    ],
)
def test_targets_far_from_zero_are_warned_of(own, tmp_path, caplog, y, said):
    data.load(own(npz(tmp_path / "a.npz", y=y)))
    assert said in caplog.text
    assert ("not scaled" in caplog.text) == bool(said)


@pytest.mark.parametrize(
    ("y", "asked", "task", "classes"),
    [
        (np.array([3, 7, 3, 9]), "auto", "multiclass", ("3", "7", "9")),
        (np.array(["b", "a", "b"]), "auto", "binary", ("a", "b")),
        (np.array([True, False]), "auto", "binary", ("False", "True")),
        (np.array([0.5, 2.0]), "auto", "regression", ()),
        (np.array([1.0, 2.0]), "multiclass", "multiclass", ("1", "2")),
        (np.arange(200), "auto", "regression", ()),
        (np.arange(200), "multiclass", "multiclass", tuple(map(str, range(200)))),
        (np.array([1, 2]), "regression", "regression", ()),
        (np.array([[0, 1, 1], [1, 0, 0]]), "auto", "multilabel", ("0", "1", "2")),
        (np.array([[0, 1, 0], [1, 0, 0]]), "auto", "multiclass", ("0", "1", "2")),
        (np.array([[0, 1, 0], [1, 0, 0]]), "multilabel", "multilabel", ("0", "1", "2")),
        (np.array([[0.5, 1], [1, 0]]), "auto", "regression", ()),
    ],
)
def test_the_task_follows_from_the_targets(y, asked, task, classes):
    rule = Targets.of(y, asked, "y")
    assert (rule.task, rule.classes) == (task, classes)
    tensor = rule.tensor(y, "y")
    if task in ("regression", "multilabel"):
        assert tensor.tolist() == y.astype("f4").tolist()
        assert tensor.dtype == torch.float32
    elif y.ndim == 2:
        assert tensor.tolist() == y.argmax(1).tolist()
    else:
        named = [classes[int(number)] for number in tensor]
        expected = [str(v if isinstance(v, str | bool) else int(v)) for v in y.tolist()]
        assert named == expected


@pytest.mark.parametrize(
    ("y", "asked", "said"),
    [
        (np.array(["a", "b"]), "regression", "must have numbers for data.task=regression"),
        (np.array([0, 1, 2]), "binary", "must hold two classes for data.task=binary, got 3"),
        (np.array([1, 1]), "auto", "must hold two or more classes"),
        (np.array([0.5, 1]), "multiclass", "must hold whole numbers or strings"),
        (np.array([0, 1]), "multilabel", r"must have shape \(N, K\)"),
        (np.array([[0, 2], [1, 0]]), "multilabel", "must be of 0 and 1"),
        (np.array([[1, 1], [1, 0]]), "multiclass", "must be with one 1 in each row"),
        (np.array([["a", "b"]]), "auto", "must hold numbers in its 2 columns"),
    ],
)
def test_targets_that_do_not_fit(y, asked, said):
    with pytest.raises(InputError, match=said):
        Targets.of(y, asked, "y")


def test_several_targets_are_kept_as_columns(own, tmp_path):
    y = RNG.normal(size=(40, 3))
    found = data.load(own(npz(tmp_path / "a.npz", y=y)))
    assert (found.task, found.outputs, found.train.y.shape[1]) == ("regression", 3, 3)
    assert found.train.y.dtype == torch.float32


@pytest.mark.parametrize(
    ("x", "y", "said"),
    [
        (X.astype(complex), Y, "must be an array .* of real numbers, got type complex128"),
        (np.where(X > 2, np.nan, X), Y, "must hold finite float32 numbers, [0-9]+ of them"),
        (X * 1e300, Y, "must hold finite float32 numbers, 120 of them"),
        (X[:0], Y[:0], "got shape"),
        (np.arange(80).reshape(40, 2) + 2**40, Y, "column 0 from 1099511627776 to .* too close"),
        (X, np.linspace(1, 2, 40) * 1e300, "must hold finite numbers, 40 of them are not"),
        (X, Y[:-1], "must be of equal length, got 40 and 39"),
        (X, np.where(Y == 2, np.nan, 1.5), "must hold finite numbers, 10 of them are not"),
        (X, np.zeros((40, 2, 2)), "must have shape"),
        (2**60 + np.arange(40), Y, r"from 1.15292150460685e\+18 to .* are too close together"),
        (X, 1.7e9 + np.arange(40) + 0.5, "y of .* from 1700000000.5 to .* are too close together"),
        (X, np.array([b"a", b"\xff"] * 20), "must hold strings in UTF-8"),
        (np.full((40, 1, 4, 4), 256), Y, "whole numbers in 0..255, got 256..256"),
    ],
)
def test_arrays_that_do_not_fit(own, tmp_path, x, y, said):
    with pytest.raises(InputError, match=said):
        data.load(own(npz(tmp_path / "a.npz", x, y)))


@pytest.mark.parametrize(
    ("y", "of_val", "said"),
    [
        (
            np.eye(3)[Y % 3],
            np.eye(4)[Y % 4],
            r"must have shape \(N, 3\) like data.train, got \(N, 4",
        ),
        (np.eye(3)[Y % 3], np.eye(3)[Y % 3] * 0.9, "must have one 1 in each row, like data.train"),
        (RNG.normal(size=(40, 3)), RNG.normal(size=40), r"shape \(N, 3\) like .*, got \(N,\)"),
        (RNG.normal(size=40), RNG.normal(size=(40, 3)), r"shape \(N,\) like .*, got \(N, 3\)"),
        (np.eye(3)[[0, 1, 1, 2] * 10] + [0, 1, 0] > 0, np.ones((40, 2)), r"got \(N, 2\)"),
        (Y % 3, np.eye(3)[Y % 3], r"must have shape \(N,\) like data.train, got \(N, 3\)"),
    ],
)
def test_targets_of_another_split_have_the_shape_of_the_training_targets(
    own, tmp_path, y, of_val, said
):
    val = npz(tmp_path / "val.npz", y=of_val)
    with pytest.raises(InputError, match=said):
        data.load(own(npz(tmp_path / "a.npz", y=y), val=str(val)))


def test_files_that_do_not_fit(own, tmp_path):
    good = npz(tmp_path / "a.npz")
    np.savez(tmp_path / "names.npz", inputs=X, labels=Y)
    np.savez(tmp_path / "objects.npz", x=np.array([{}, None]), y=Y)
    (tmp_path / "broken.npz").write_bytes(good.read_bytes()[:50])
    torch.save({"x": np.float64}, tmp_path / "code.pt")
    torch.save({"x": torch.zeros(4, 1), "y": ["a", None] * 2}, tmp_path / "missing.pt")
    half = npz(tmp_path / "half.npz", y=np.full(40, 0.5))
    other = npz(tmp_path / "wide.npz", RNG.normal(size=(40, 4)))
    strange = npz(tmp_path / "strange.npz", y=np.full(40, 7))
    cases = [
        (InputError, own(tmp_path / "names.npz"), "x and y, it holds inputs, labels"),
        (InputError, own(tmp_path / "objects.npz"), "plain arrays or tensors, it holds Python obj"),
        (EnvironmentFault, own(tmp_path / "broken.npz"), "cannot be read"),
        (InputError, own(tmp_path / "code.pt"), "plain arrays or tensors"),
        (EnvironmentFault, own(tmp_path / "none.npz"), "does not exist"),
        (EnvironmentFault, own(tmp_path), "is not a file"),
        (InputError, own(tmp_path / "a.csv"), "must end in .*data=table reads it"),
        (InputError, own(good, val=str(other)), r"shape of data.train's, \(3,\), got \(4,\)"),
        (InputError, own(good, val=str(good)), "must differ from each other"),
        (InputError, own(good, val=str(strange)), "classes of data.train only, '7' is none"),
        (InputError, own(good, val=str(half)), "classes of data.train only, '0.5' is none"),
        (InputError, own(tmp_path / "missing.pt"), "for each sample, some are missing"),
        (InputError, own(good, image_size=8), "which are no pictures"),
        (InputError, own(good, test=40.0), "data.test must leave"),
        (InputError, own("???"), "data.train must be given"),
    ]
    (tmp_path / "a.csv").touch()
    for kind, config, said in cases:
        with pytest.raises(kind, match=said):
            data.load(config)


def test_a_changed_file_is_read_again_and_has_another_fingerprint(own, tmp_path):
    config = own(npz(tmp_path / "a.npz"))
    first = data.load(config)
    assert data.load(config) is first
    npz(tmp_path / "a.npz", X + 1e-3)
    second = data.load(config)
    assert second.fingerprint != first.fingerprint
    assert len(second.fingerprint) == 16


def test_a_trial_on_changed_data_is_no_duplicate(tmp_path):
    path = npz(tmp_path / "a.npz")
    words = ("data=arrays", f"data.train={path}")
    before = [effect_on_data(sweepstack.compose(*words).config) for _ in range(2)]
    npz(path, X + 1)
    assert before[0] == before[1] != effect_on_data(sweepstack.compose(*words).config)
    path.unlink()
    assert effect_on_data(sweepstack.compose(*words).config) == effect(
        sweepstack.compose(*words).config
    )


def test_a_run_on_changed_data_is_not_resumed(tmp_path, monkeypatch):
    from sweepstack.engine.train import Interrupted, train

    npz(tmp_path / "a.npz", y=(X[:, 0] > 0).astype(int))
    words = ("data=arrays", f"data.train={tmp_path / 'a.npz'}", "batch.size=8")
    spec = sweepstack.compose(*words, "training.max_steps=6", "training.checkpoint_every=2")
    spec = type(spec)(spec.config, folder=tmp_path / "run")

    class Stop(sweepstack.training.spec.Monitor):
        at = 0

        def stepped(self, steps, *_):
            self.at += steps

        def interrupted(self):
            return 130 if self.at >= 2 else None

    with pytest.raises(Interrupted):
        list(train([spec], Stop()))
    npz(tmp_path / "a.npz", X + 1, y=(X[:, 0] > 0).astype(int))
    again = type(spec)(spec.config, folder=tmp_path / "run")
    (result,) = train([again])
    assert result.state == "failed"
    assert "another config or other data" in result.error


# --- data=custom ----------------------------------------------------------------------------------

MODULE = """
import numpy as np, torch
from PIL import Image
from torch.utils.data import Dataset, IterableDataset

class Rows(Dataset):
    classes = ["down", "up"]
    def __init__(self, split="train", shift=0.0, count=20):
        self.x = torch.arange(count * 2.0).view(count, 2) + shift + 100 * (split == "val")
    def __len__(self):
        return len(self.x)
    def __getitem__(self, i):
        return self.x[i], int(self.x[i, 0]) % 4 // 2

class Pictures(Rows):
    def __getitem__(self, i):
        return Image.fromarray(np.full((4 + i % 2, 6, 3), i, np.uint8)), ("a", "b")[i % 2]

class Random(Rows):
    def __getitem__(self, i):
        return self.x[i] + torch.rand(2), 0

class Ragged(Rows):
    def __getitem__(self, i):
        return self.x[: i + 1], 0

class Single(Rows):
    def __getitem__(self, i):
        return self.x[i]

class Exits(Rows):
    def __getitem__(self, i):
        raise SystemExit(3)

class Stream(IterableDataset):
    def __iter__(self):
        return iter(())
"""


@pytest.fixture
def custom(tmp_path, configure, monkeypatch):
    name = f"owned_{tmp_path.name}".replace("-", "_")
    (tmp_path / f"{name}.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)

    def load(target, trusted=True, changes=None, **arguments):
        called = {"target": f"{name}.{target}", "arguments": json.dumps(arguments)}
        config = configure("custom", **called, **(changes or {}))
        return data.load(config, (name,) if trusted else ())

    yield load
    sys.modules.pop(name, None)


def test_a_dataset_gives_its_samples(custom):
    val = json.dumps({"split": "val"})
    found = custom("Rows", changes={"val": val, "normalization": "none"}, shift=1.0)
    assert (len(found.train), len(found.val), found.test) == (20, 20, None)
    assert (found.task, found.classes) == ("binary", ("down", "up"))
    order = torch.randperm(20, generator=torch.Generator().manual_seed(0))
    assert torch.equal(found.train.x, torch.arange(40.0).view(20, 2)[order] + 1)
    assert torch.equal(found.val.x, torch.arange(40.0).view(20, 2) + 101)
    assert torch.equal(found.val.y, (found.val.x[:, 0] % 4 // 2).floor())


def test_a_dataset_of_pictures(custom):
    found = custom("Pictures", changes={"normalization": "none"})
    assert found.input_shape == (3, 4, 6)
    assert found.classes == ("a", "b")
    both = torch.cat([found.train.x, found.val.x])
    assert float(both.max()) == pytest.approx(19 / 255)


@pytest.mark.parametrize(
    ("target", "arguments", "said"),
    [
        ("Random", {}, "must give the same sample each time"),
        ("Ragged", {}, "must give samples of one shape"),
        ("Single", {}, "must give pairs"),
        ("Exits", {}, "raises: SystemExit: 3"),
        ("Stream", {}, "must be a map-style Dataset"),
        ("Rows", {"shif": 1}, "unknown key 'data.shif'.*did you mean 'shift'"),
        ("Rows", {"count": 0}, "must hold samples, it is empty"),
        ("Rows", {"count": "x"}, "cannot be built: TypeError"),
        ("Row", {}, "data._target_ .*has no 'Row'; did you mean 'Rows'"),
    ],
)
def test_datasets_that_do_not_fit(custom, target, arguments, said):
    with pytest.raises(InputError, match=said):
        custom(target, **arguments)


def test_a_dataset_must_be_trusted(custom):
    with pytest.raises(InputError, match=r"data._target_ must name something defined in a package"):
        custom("Rows", trusted=False)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["data=arrays"], "data.train must be given"),
        (["data=table", "data.train=a.csv"], "data.target must be given"),
        (["data=custom"], "data._target_ must be given, for example data._target_=mypackage.MyD"),
        (["data=custom", "data._target_=a.B", "data.val=x"], "data.val must hold the arguments"),
        (["data=arrays", "data.train=a", "data.test=1.5"], "data.test must be a share between"),
        (["data=arrays", "data.train=a", "data.task=clases"], "data.task must be one of"),
    ],
)
def test_keys_that_do_not_fit(words, said):
    with pytest.raises(InputError, match=said):
        sweepstack.compose(*words)


def test_a_study_on_a_dataset_of_its_own_is_read_backas_typed():
    from dataclasses import asdict

    from sweepstack.runs.rerun.restore import as_typed

    spec = sweepstack.compose(
        "data=custom", "data._target_=a.B", "+data.w=3", "data.val={split: val}", "data.test=0.2"
    )
    typed = as_typed(asdict(spec.config))
    assert typed["data"]["_target_"] == "a.B"
    from sweepstack.config import reading

    assert reading.read_plain(typed).data == spec.config.data


def test_pictures_are_no_image_files_here(tmp_path, own):
    Image.new("L", (4, 4)).save(tmp_path / "a.png")
    with pytest.raises(InputError, match="must end in"):
        data.load(own(tmp_path / "a.png"))


# --- data=huggingface -----------------------------------------------------------------------------


def test_a_folder_of_the_package_datasets(tmp_path, configure):
    library = pytest.importorskip("datasets")
    kinds = {"image": library.Image(), "label": library.ClassLabel(names=["a", "b", "c"])}
    pixels = RNG.integers(0, 256, (30, 4, 4), dtype=np.uint8)
    made = library.Dataset.from_dict(
        {"image": [Image.fromarray(p) for p in pixels], "label": [i % 3 for i in range(30)]},
        features=library.Features(kinds),
    )
    library.DatasetDict({"train": made, "held": made}).save_to_disk(tmp_path / "saved")
    config = configure("huggingface", path=str(tmp_path / "saved"), val="held", target=None)
    found = data.load(replace(config, normalization="none"))
    assert found.classes == ("a", "b", "c")
    assert torch.equal(found.val.x, torch.from_numpy(pixels)[:, None] / 255)
    with pytest.raises(InputError, match=r"data.val must be one of train, held, got 'vall'"):
        data.load(replace(config, val="vall"))


def test_a_folder_needs_the_package_datasets(tmp_path, configure, monkeypatch):
    config = configure("huggingface", path=str(tmp_path), target=None)
    monkeypatch.setattr(arrays, "find_spec", lambda name: None)
    with pytest.raises(EnvironmentFault, match="pip install datasets"):
        data.load(config)


def test_trials_on_own_data_are_themselves_in_a_stack(tmp_path):
    from sweepstack.engine.train import train

    words = ("data=arrays", f"data.train={npz(tmp_path / 'a.npz')}", "batch.size=8")
    words += ("training.max_steps=6", "training.device=cpu")
    specs = [sweepstack.compose(*words, f"training.seed={seed}") for seed in range(3)]
    specs = [replace(spec, number=number) for number, spec in enumerate(specs)]
    stacked = sorted(train(specs, width=3), key=lambda result: result.spec.number)
    for spec, result in zip(specs, stacked, strict=True):
        (alone,) = train([spec], width=1)
        assert alone.metrics == pytest.approx(result.metrics, rel=1e-5)
    assert len({result.metrics["val_loss"] for result in stacked}) == 3
