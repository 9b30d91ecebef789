"""The digits, the quadratic, MNIST, Fashion-MNIST and CIFAR-10: what is read, and what is said when
that cannot be."""

import hashlib
import math
import pickle
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torchvision import datasets

from sweepstack import data
from sweepstack.config.errors import EnvironmentFault, InputError
from sweepstack.data import builtin

RAW = "MNIST/raw"


def test_digits_are_gray_pictures_of_ten_classes(configure):
    digits = data.load(configure("digits", validation=0.15))
    assert [len(split) for split in (digits.train, digits.val, digits.test)] == [1222, 216, 359]
    assert (digits.task, digits.outputs, digits.input_shape) == ("multiclass", 10, (1, 8, 8))
    assert digits.classes == tuple("0123456789")
    assert digits.is_image
    for split in (digits.train, digits.val, digits.test):
        x, y = split.gather(torch.arange(len(split)))
        assert (x.dtype, y.dtype) == (torch.float32, torch.int64)
        assert set(y.tolist()) == set(range(10))


def test_every_digit_keeps_its_label_and_is_in_one_split_only(configure):
    digits = data.load(configure("digits", normalization="none"))
    splits = [split.tensor() for split in (digits.train, digits.val, digits.test)]
    seen = sorted(
        (*(x.flatten() * 16).tolist(), int(y))
        for split in splits
        for x, y in zip(split.x, split.y, strict=True)
    )
    bunch = load_digits()
    rows = zip(bunch.data.tolist(), bunch.target.tolist(), strict=True)
    assert seen == sorted((*x, y) for x, y in rows)


def test_a_sweep_loads_its_data_once(configure):
    first = data.load(configure("digits"))
    assert data.load(configure("digits", order_seed=3, workers=4)) is first
    assert data.load(configure("digits", split_seed=1)) is not first


def test_where_the_file_lies_elsewhere_scikit_learn_is_asked(configure, monkeypatch):
    quick = builtin.load_digits(configure("digits"))
    monkeypatch.setattr(builtin, "FILE", "datasets/elsewhere/digits.csv.gz")
    slow = builtin.load_digits(configure("digits"))
    for one, other in ((quick.train, slow.train), (quick.val, slow.val), (quick.test, slow.test)):
        assert torch.equal(one.tensor().x, other.tensor().x)
        assert torch.equal(one.tensor().y, other.tensor().y)


def test_loading_them_does_not_import_scikit_learn(tmp_path):
    read = "from sweepstack.data.builtin import _read_digits as read; read()"
    code = f"{read}; import sys; sys.exit('sklearn' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=tmp_path).returncode == 0


def _all(dataset):
    splits = [split.tensor() for split in (dataset.train, dataset.val, dataset.test)]
    return torch.cat([s.x for s in splits]), torch.cat([s.y for s in splits])


def test_it_is_a_regression_on_one_feature(configure):
    dataset = data.load(configure("quadratic"))
    assert (dataset.task, dataset.outputs, dataset.input_shape) == ("regression", 1, (1,))
    assert dataset.classes == ()
    assert not dataset.is_image
    assert [len(split) for split in (dataset.train, dataset.val, dataset.test)] == [240, 80, 80]
    x, y = dataset.train.gather(torch.tensor([0, 1, 2]))
    assert (x.shape, y.shape, y.dtype) == ((3, 1), (3,), torch.float32)


@pytest.mark.parametrize("noise_std", [0.0, 0.5])
def test_targets_are_x_squared_with_noise_in_proportion_to_x(configure, noise_std):
    config = configure("quadratic", normalization="none", noise_std=noise_std, samples=20_000)
    x, y = _all(data.load(config))
    x = x.squeeze(1)
    assert -1 <= float(x.min()) < -0.99
    assert 0.99 < float(x.max()) <= 1
    noise = ((y - x**2) / x)[x.abs() > 0.01]
    assert float(noise.mean()) == pytest.approx(0, abs=0.02)
    assert float(noise.std()) == pytest.approx(noise_std, abs=0.02)


def test_additive_noise_does_not_depend_on_x_and_validation_may_be_clean(configure):
    given = {"normalization": "none", "samples": 20_000, "noise_std": 0.5, "range": (2.0, 5.0)}
    dataset = data.load(configure("quadratic", noise="additive", clean_validation=True, **given))
    for split, std in ((dataset.train, 0.5), (dataset.val, 0.0), (dataset.test, 0.0)):
        x = split.tensor().x.squeeze(1)
        assert 2 <= float(x.min()) < 2.01
        assert 4.99 < float(x.max()) <= 5
        noise = split.y - x**2
        assert float(noise.std()) == pytest.approx(std, abs=0.02)
        assert float(noise[x > 4].std()) == pytest.approx(std, abs=0.03)
    noisy = data.load(configure("quadratic", noise="additive", **given))
    assert noisy.val.tensor().x.equal(dataset.val.tensor().x)
    assert noisy.train.y.equal(dataset.train.y)
    assert float((noisy.val.y - dataset.val.y).std()) == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("bounds", [(1.0, 1.0), (2.0, 1.0), (0.0, math.inf)])
def test_a_range_needs_the_lower_number_first(configure, bounds):
    with pytest.raises(InputError, match=r"data.range must be two numbers, the lower first, got"):
        data.load(configure("quadratic", range=bounds))


def test_samples_follow_from_the_seed(configure):
    first, again, other = (
        _all(data.load(configure("quadratic", split_seed=seed, subset=subset)))
        for seed, subset in ((3, 240), (3, None), (4, None))
    )
    assert all(a.equal(b) for a, b in zip(first, again, strict=True))
    assert not first[1].equal(other[1])


# --- torchvision ---------------------------------------------------------------------------------


@pytest.fixture
def cifar10(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """ROOT with a made-up CIFAR-10 of 5 x 10 training and 10 test pictures."""
    place = tmp_path / "cifar-10-batches-py"
    place.mkdir()
    rng = np.random.default_rng(0)

    def write(name: str, content: dict[str, object]) -> list[str]:
        (place / name).write_bytes(pickle.dumps(content, protocol=2))
        return [name, hashlib.md5((place / name).read_bytes()).hexdigest()]

    def batch(name: str) -> list[str]:
        x = rng.integers(0, 256, (10, 3 * 32 * 32), dtype=np.uint8)
        return write(name, {"data": x, "labels": list(range(10))})

    meta = write("batches.meta", {"label_names": [f"class {i}" for i in range(10)]})
    monkeypatch.setattr(
        datasets.CIFAR10, "train_list", [batch(f"data_batch_{i}") for i in range(1, 6)]
    )
    monkeypatch.setattr(datasets.CIFAR10, "test_list", [batch("test_batch")])
    monkeypatch.setitem(datasets.CIFAR10.meta, "md5", meta[1])
    return tmp_path


def _message(config) -> str:
    with pytest.raises(EnvironmentFault) as caught:
        data.load(config)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- what is read -------------------------------------------------------------------------------


def test_mnist_is_split_as_asked(configure, shared):
    config = configure("mnist", root=str(shared("MNIST")), validation=5000.0)
    mnist = data.load(config)
    assert [len(split) for split in (mnist.train, mnist.val, mnist.test)] == [55000, 5000, 10000]
    assert (mnist.outputs, mnist.input_shape) == (10, (1, 28, 28))
    assert abs(float(mnist.train.tensor().x.double().mean())) < 1e-5


def test_mnist_is_read_as_torchvision_reads_it(configure, mnist):
    config = configure("mnist", root=str(mnist), normalization="none")
    read, reference = data.load(config), datasets.MNIST(mnist, train=False)
    test = read.test.tensor()
    assert test.y.equal(reference.targets)
    assert test.x.equal(reference.data[:, None] / 255)
    train, reference = read.train.tensor(), datasets.MNIST(mnist, train=True)
    assert len(train) == 30
    pairs = zip(reference.data / 255, reference.targets, strict=True)
    rows = {row.numpy().tobytes(): int(y) for row, y in pairs}
    assert [rows[x.numpy().tobytes()] for x in train.x] == train.y.tolist()


def test_fashion_mnist_lies_in_a_folder_of_its_own(configure, mnist):
    (mnist / "MNIST").rename(mnist / "FashionMNIST")
    fashion = data.load(configure("fashion_mnist", root=str(mnist)))
    assert (len(fashion.test), fashion.classes[9]) == (20, "ankle boot")


def test_cifar10_has_three_channels_before_height_and_width(configure, cifar10):
    read = data.load(configure("cifar10", root=str(cifar10), normalization="none", validation=10.0))
    assert [len(split) for split in (read.train, read.val, read.test)] == [40, 10, 10]
    assert (read.outputs, read.input_shape) == (10, (3, 32, 32))
    test, reference = read.test.tensor(), datasets.CIFAR10(cifar10, train=False)
    picture = torch.from_numpy(np.array(reference[7][0])).permute(2, 0, 1) / 255
    assert test.x[7].equal(picture)
    assert test.y.tolist() == reference.targets


def test_a_tilde_in_root_is_the_home_folder(configure, mnist, monkeypatch):
    monkeypatch.setenv("HOME", str(mnist))
    assert len(data.load(configure("mnist", root="~")).test) == 20


def test_reading_mnist_does_not_import_torchvision(configure, mnist):
    # It takes seconds, more than a short run.
    config = asdict(configure("mnist", root=str(mnist), download=True))
    program = (
        "import sys; from sweepstack import data; from sweepstack.config import schema;"
        f"data.load(schema.Torchvision(**{config!r}));"
        "sys.exit('torchvision' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


# --- what is missing or damaged -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "place", "top"),
    [
        ("mnist", "MNIST/raw", "MNIST"),
        ("fashion_mnist", "FashionMNIST/raw", "FashionMNIST"),
        ("cifar10", "cifar-10-batches-py", "cifar-10-batches-py"),
    ],
)
def test_a_missing_dataset_says_where_it_should_be_and_how_to_get_it(configure, name, place, top):
    assert _message(configure(name, root="nowhere")) == (
        f"{name} is not at nowhere/{place}: fetch it with data.download=true, "
        f"or set data.root to the folder that holds {top}/"
    )


def test_a_single_missing_file_is_named(configure, mnist):
    (mnist / RAW / "t10k-labels-idx1-ubyte").unlink()
    message = _message(configure("mnist", root=str(mnist)))
    assert f"is not at {mnist / RAW} (t10k-labels-idx1-ubyte is missing): fetch it" in message


def _rewrite(name, change):
    def damage(raw):
        content = (raw / name).read_bytes()
        (raw / name).write_bytes(change(content))

    return damage


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (
            _rewrite("train-images-idx3-ubyte", lambda c: c[:-1]),
            "has 31375 bytes, by its header 31",
        ),
        (_rewrite("train-images-idx3-ubyte", lambda c: c + b"x"), "has 31377 bytes"),
        (_rewrite("train-images-idx3-ubyte", lambda c: c[:7]), "does not start like an IDX file"),
        (_rewrite("t10k-images-idx3-ubyte", lambda c: b""), "does not start like an IDX file"),
        (_rewrite("t10k-labels-idx1-ubyte", lambda c: b"<html>" * 9), "does not start like"),
        (_rewrite("train-labels-idx1-ubyte", lambda c: c[:-1] + b"\x0a"), "labels must be 0 to 9"),
        (
            lambda raw: shutil.copy(
                raw / "train-labels-idx1-ubyte", raw / "train-images-idx3-ubyte"
            ),
            "train-images-idx3-ubyte does not start like an IDX file with 3 axes",
        ),
        (
            lambda raw: shutil.copy(
                raw / "t10k-labels-idx1-ubyte", raw / "train-labels-idx1-ubyte"
            ),
            "40 pictures but 20 labels",
        ),
    ],
)
def test_a_damaged_mnist_says_what_is_wrong_and_what_helps(configure, mnist, damage, reason):
    damage(mnist / RAW)
    message = _message(configure("mnist", root=str(mnist)))
    assert message.startswith(f"mnist at {mnist / RAW} is damaged (")
    assert reason in message
    assert message.endswith("): delete it and fetch it again with data.download=true")


def test_a_damaged_cifar10_is_found_by_its_checksum(configure, cifar10):
    path = cifar10 / "cifar-10-batches-py" / "data_batch_3"
    path.write_bytes(path.read_bytes()[:-9])
    message = _message(configure("cifar10", root=str(cifar10)))
    assert "cifar-10-batches-py is damaged (a checksum differs): delete it" in message


# --- fetching -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "module", "place"),
    [("mnist", "mnist", "MNIST/raw"), ("cifar10", "cifar", "cifar-10-batches-py")],
)
def test_a_download_without_network_is_told_in_one_line(
    configure, tmp_path, monkeypatch, name, module, place
):
    def offline(*args, **kwargs):
        raise URLError("no route to host")

    target = f"torchvision.datasets.{module}.download_and_extract_archive"
    monkeypatch.setattr(target, offline)
    message = _message(configure(name, root=str(tmp_path), download=True))
    assert message.startswith(f"{name} could not be fetched into {tmp_path / place} (")
    assert "no route to host" in message
    assert "check the network" in message


def test_what_a_download_brings_is_used_at_once(configure, mnist, tmp_path, monkeypatch):
    store = mnist.parent / f"{mnist.name} store"
    (mnist / "MNIST").rename(store)

    def copy(url, download_root, filename, md5):
        name = filename.removesuffix(".gz")
        shutil.copy(store / "raw" / name, Path(download_root) / name)

    monkeypatch.setattr("torchvision.datasets.mnist.download_and_extract_archive", copy)
    config = configure("mnist", root=str(mnist), download=True)
    assert len(data.load(config).test) == 20


def test_nothing_is_downloaded_when_all_is_there(configure, mnist, monkeypatch):
    def offline(*args, **kwargs):
        raise AssertionError("asked the network")

    monkeypatch.setattr("torchvision.datasets.mnist.download_and_extract_archive", offline)
    assert len(data.load(configure("mnist", root=str(mnist), download=True)).test) == 20
