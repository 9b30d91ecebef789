"""The made-up regression set."""

import pytest
import torch

from sweepstack import data


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


def test_samples_follow_from_the_seed(configure):
    first, again, other = (
        _all(data.load(configure("quadratic", split_seed=seed, subset=subset)))
        for seed, subset in ((3, 240), (3, None), (4, None))
    )
    assert all(a.equal(b) for a, b in zip(first, again, strict=True))
    assert not first[1].equal(other[1])
