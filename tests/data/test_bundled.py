"""Datasets that need no files: the digits and the quadratic."""

import math
import subprocess
import sys

import pytest
import torch
from sklearn.datasets import load_digits

from sweepstack import data
from sweepstack.config.errors import InputError
from sweepstack.data import bundled


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
    quick = bundled.load_digits(configure("digits"))
    monkeypatch.setattr(bundled, "FILE", "datasets/elsewhere/digits.csv.gz")
    slow = bundled.load_digits(configure("digits"))
    for one, other in ((quick.train, slow.train), (quick.val, slow.val), (quick.test, slow.test)):
        assert torch.equal(one.tensor().x, other.tensor().x)
        assert torch.equal(one.tensor().y, other.tensor().y)


def test_loading_them_does_not_import_scikit_learn(tmp_path):
    read = "from sweepstack.data.bundled import _read_digits as read; read()"
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
