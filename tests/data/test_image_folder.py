"""Folders of pictures: what is read, from where, and what is said when that cannot be."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from sweepstack import data
from sweepstack.config.errors import EnvironmentFault, InputError
from sweepstack.data import image_folder
from sweepstack.data.dataset import LazySplit, TensorSplit


@pytest.fixture
def folder(configure, pictures):
    """`folder(**changes)`: the config of the folder `pictures`, with its val/ folder."""
    defaults = {"root": str(pictures), "val_folder": "val"}
    return lambda **changes: configure("image_folder", **{**defaults, **changes})


def _add_class(root, name, like="cat"):
    for split in ("train", "val"):
        shutil.copytree(root / split / like, root / split / name)


# --- what is read -------------------------------------------------------------------------------


def test_two_class_folders_make_a_binary_task(folder):
    dataset = data.load(folder())
    assert (dataset.task, dataset.outputs, dataset.classes) == ("binary", 1, ("cat", "dog"))
    assert dataset.input_shape == (3, 4, 6)
    assert (len(dataset.train), len(dataset.val), dataset.test) == (10, 6, None)
    val = dataset.val.tensor()
    assert val.y.dtype == torch.float32
    assert val.y.tolist() == [0, 0, 0, 1, 1, 1]


def test_three_class_folders_make_a_multiclass_task_in_sorted_order(folder, pictures):
    _add_class(pictures, "ant")
    dataset = data.load(folder())
    assert (dataset.task, dataset.outputs) == ("multiclass", 3)
    assert dataset.classes == ("ant", "cat", "dog")
    y = dataset.val.tensor().y
    assert (y.dtype, y.tolist()) == (torch.int64, [0] * 3 + [1] * 3 + [2] * 3)


def test_every_picture_keeps_its_pixels_and_class(folder, pictures):
    train = data.load(folder(normalization="none")).train.tensor()
    label = {}
    for number, name in enumerate(("cat", "dog")):
        for path in (pictures / "train" / name).iterdir():
            pixels = torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1) / 255
            label[pixels.contiguous().numpy().tobytes()] = number
    assert [label[x.numpy().tobytes()] for x in train.x] == train.y.tolist()
    assert len(label) == len(train)


def test_without_a_val_folder_validation_is_held_out_of_training(folder):
    dataset = data.load(folder(val_folder=None, validation=0.3, test_folder="val"))
    assert [len(split) for split in (dataset.train, dataset.val, dataset.test)] == [7, 3, 6]
    held = {x.numpy().tobytes() for x in dataset.val.tensor().x}
    assert not held & {x.numpy().tobytes() for x in dataset.train.tensor().x}


def test_a_subset_is_drawn_from_all_classes_and_keeps_the_validation_folder(folder, pictures):
    for split in ("train", "val"):
        for i in range(10, 40):
            for name in ("cat", "dog"):
                place = pictures / split / name
                shutil.copy(place / "0.png", place / f"{i}.png")
    dataset = data.load(folder(subset=20))
    assert (len(dataset.train), len(dataset.val)) == (20, 66)
    assert set(dataset.train.tensor().y.tolist()) == {0.0, 1.0}


@pytest.mark.parametrize(("image_size", "expected"), [(None, (4, 6)), (5, (5, 5)), (16, (16, 16))])
def test_pictures_are_brought_to_one_size(folder, pictures, image_size, expected):
    Image.new("RGB", (31, 17)).save(pictures / "train" / "dog" / "large.png")
    dataset = data.load(folder(image_size=image_size))
    assert dataset.input_shape == (3, *expected)
    assert dataset.train.tensor().x.shape == (11, 3, *expected)


@pytest.mark.parametrize(("gray", "channels"), [(("cat", "dog"), 1), (("cat",), 3)])
def test_one_channel_when_the_first_picture_of_every_class_is_gray(
    folder, pictures, gray, channels
):
    for name in gray:
        Image.new("L", (6, 4), 51).save(pictures / "train" / name / "0.png")
    dataset = data.load(folder(normalization="none"))
    assert dataset.input_shape == (channels, 4, 6)
    train = dataset.train.tensor()
    assert any((x == 0.2).all() for x in train.x)


def test_hidden_files_are_no_pictures(folder, pictures):
    (pictures / "train" / ".cache").mkdir()
    (pictures / "train" / "cat" / ".DS_Store").write_bytes(b"")
    assert len(data.load(folder()).train) == 10


# --- decoded at once or when asked for ------------------------------------------------------------


@pytest.mark.parametrize("normalization", ["standardize", "minmax", "none"])
def test_streaming_changes_no_number(folder, normalization):
    held = data.load(folder(normalization=normalization))
    lazy = data.load(folder(normalization=normalization, placement="stream"))
    assert isinstance(held.train, TensorSplit)
    assert isinstance(lazy.train, LazySplit)
    for one, other in ((held.train, lazy.train), (held.val, lazy.val)):
        assert (len(one), one.nbytes) == (len(other), other.nbytes)
        index = torch.tensor([3, 0, 5, 3])
        for a, b in zip(one.gather(index), other.gather(index), strict=True):
            assert a.equal(b)
        assert one.tensor().x.equal(other.tensor().x)


def test_a_folder_too_large_to_hold_is_decoded_when_asked_for(folder, monkeypatch):
    monkeypatch.setattr(image_folder, "HELD_BYTES", 100)
    assert isinstance(data.load(folder(placement="device")).train, LazySplit)


@pytest.mark.parametrize(
    ("held_bytes", "at_most", "values"),
    [(0, 10, {-1.0, 1.0}), (0, 1, {0.0, 1.0}), (2**30, 1, {-1.0, 1.0})],
)
@pytest.mark.parametrize("placement", ["device", "stream"])
def test_statistics_of_a_large_folder_come_from_some_of_its_pictures(
    folder, pictures, monkeypatch, held_bytes, at_most, values, placement
):
    for value, name in ((0, "cat"), (255, "dog")):
        for path in (pictures / "train" / name).iterdir():
            Image.new("RGB", (6, 4), (value,) * 3).save(path)
    monkeypatch.setattr(image_folder, "HELD_BYTES", held_bytes)
    monkeypatch.setattr(image_folder, "STATISTICS_AT_MOST", at_most)
    train = data.load(folder(placement=placement)).train.tensor()
    seen = set(train.x.flatten().tolist())
    assert seen in (values, {-value for value in values})


def test_the_cifar10_folder_loads(configure, shared):
    root = shared("cifar10_folder") / "cifar10_folder"
    dataset = data.load(
        configure("image_folder", root=str(root), val_folder="test", subset=200, validation=0.1)
    )
    assert (len(dataset.train), len(dataset.val)) == (200, 1000)
    assert (dataset.outputs, dataset.input_shape) == (10, (3, 32, 32))


# --- what is missing, damaged or contradicts itself -----------------------------------------------


def _remove(*parts):
    return lambda root: shutil.rmtree(root.joinpath(*parts))


def _write(*parts, content=b"no picture"):
    return lambda root: root.joinpath(*parts).write_bytes(content)


def _empty(*parts):
    def act(root):
        for path in root.joinpath(*parts).iterdir():
            path.unlink()

    return act


def _truncate(root):
    path = root / "train" / "cat" / "2.png"
    path.write_bytes(path.read_bytes()[:-40])


def _deep(root):
    pixels = np.zeros((4, 6), dtype=np.uint16)
    Image.fromarray(pixels).save(root / "train" / "cat" / "2.png")


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n%%EOF\n"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_remove("train"), r"needs pictures at .*train/CLASS/\*, there is no such folder: set "),
        (_remove("val"), r"needs pictures at .*val/CLASS/\*.*, or set data.val_folder=null"),
        (_remove("val", "dog"), "val must have the class folders of the training.*it lacks dog"),
        (_remove("train", "dog"), "train must hold two or more class folders .*got only cat"),
        (_empty("train", "dog"), "train/dog must hold at least one picture, it has none"),
        (_empty("val", "cat"), "val/cat must hold at least one picture, it has none"),
        (_write("train", "cat", "x.png", content=b"-"), "train/cat/x.png cannot be .*remove it"),
        (_write("train", "cat", "0.png", content=b""), "train/cat/0.png cannot be read"),
        (_truncate, "train/cat/2.png cannot be read"),
        (_write("train", "cat", "0.png", content=EPS), "cannot be read .cannot identify image"),
        (_deep, "train/cat/2.png cannot be read .*8 bits a channel"),
        (lambda root: (root / "val" / "zebra").mkdir(), "it has zebra besides"),
    ],
)
def test_a_broken_folder_names_what_is_wrong(folder, pictures, damage, message):
    damage(pictures)
    with pytest.raises(EnvironmentFault, match=message) as caught:
        data.load(folder())
    assert "\n" not in str(caught.value)


def test_a_folder_without_class_folders_is_told(folder, pictures):
    _remove("train", "cat")(pictures)
    _remove("train", "dog")(pictures)
    with pytest.raises(EnvironmentFault, match=r"train/CLASS/\*\), got none"):
        data.load(folder())


@pytest.mark.parametrize("test_folder", ["val", "train/", "train/../val"])
def test_no_two_splits_may_share_a_folder(folder, test_folder):
    with pytest.raises(InputError, match=f"must differ .*test_folder={test_folder}"):
        data.load(folder(test_folder=test_folder))


def test_files_that_are_no_pictures_are_passed_over(folder, pictures):
    before = len(data.load(folder()).train)
    (pictures / "train" / "cat" / "Thumbs.db").write_bytes(b"-")
    (pictures / "train" / "cat" / "notes.txt").write_text("-")
    data._load.cache_clear()
    assert len(data.load(folder()).train) == before


def test_a_picture_is_read_as_a_viewer_shows_it(folder, pictures):
    turned, pixels = Image.Exif(), np.random.default_rng(0).integers(0, 256, (6, 4, 3), np.uint8)
    turned[0x112] = 6  # a quarter to the right
    for path in (pictures / "train" / "cat").iterdir():
        Image.fromarray(pixels).save(path, exif=turned)
    found = data.load(folder(normalization="none"))
    shown = torch.from_numpy(np.rot90(pixels, -1).copy()).permute(2, 0, 1) / 255
    assert found.input_shape == (3, 4, 6)
    assert sum(bool(x.equal(shown)) for x in found.train.tensor().x) == 5


def test_pictures_in_folders_of_a_class_are_warned_of(folder, pictures, caplog):
    shutil.copytree(pictures / "train" / "cat", pictures / "train" / "cat" / "more")
    assert len(data.load(folder()).train) == 10
    assert "pictures in its folders are not read: more" in caplog.text
