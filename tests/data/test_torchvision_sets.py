"""MNIST, Fashion-MNIST and CIFAR-10: what is read, and what is said when that cannot be."""

import hashlib
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
from torchvision import datasets

from sweepstack import data
from sweepstack.config.errors import EnvironmentFault

RAW = "MNIST/raw"


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
