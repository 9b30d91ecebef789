"""The bundled digits."""

import subprocess
import sys

import torch
from sklearn.datasets import load_digits

from sweepstack import data
from sweepstack.data import digits as digits_module


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
    quick = digits_module.load(configure("digits"))
    monkeypatch.setattr(digits_module, "FILE", "datasets/elsewhere/digits.csv.gz")
    slow = digits_module.load(configure("digits"))
    for one, other in ((quick.train, slow.train), (quick.val, slow.val), (quick.test, slow.test)):
        assert torch.equal(one.tensor().x, other.tensor().x)
        assert torch.equal(one.tensor().y, other.tensor().y)


def test_loading_them_does_not_import_scikit_learn(tmp_path):
    code = "import sys, sweepstack.data.digits as d; d._read(); sys.exit('sklearn' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=tmp_path).returncode == 0
