"""Who goes to which split, and how samples are normalized there."""

import math

import pytest
import torch

from sweepstack import data
from sweepstack.config.errors import InputError
from sweepstack.data import splits
from sweepstack.data.dataset import ResizedSplit, TensorSplit
from sweepstack.data.splits import normalize, partition


@pytest.mark.parametrize(
    ("test", "validation", "sizes"),
    [(0.2, 0.25, [60, 20, 20]), (10.0, 30.0, [60, 10, 30]), (0.5, 1.0, [49, 50, 1])],
)
def test_shares_and_counts_hold_out_disjoint_samples(configure, test, validation, sizes):
    held_out = {"test": test, "validation": validation}
    parts = partition(configure("digits"), 100, held_out)
    assert [len(part) for part in parts] == sizes
    assert sorted(torch.cat(parts).tolist()) == list(range(100))


def test_the_seed_alone_decides_who_is_held_out(configure):
    first, again, other = (
        partition(configure("digits", split_seed=seed), 100, {"test": 0.3})[1] for seed in (7, 7, 8)
    )
    assert first.equal(again)
    assert set(first.tolist()) != set(other.tolist())


def test_a_subset_keeps_part_of_the_training_samples_and_leaves_the_others_alone(configure):
    held_out = {"test": 0.2, "validation": 0.25}
    train, test, val = partition(configure("digits"), 100, held_out)
    few, same_test, same_val = partition(configure("digits", subset=9), 100, held_out)
    assert len(few) == 9
    assert set(few.tolist()) < set(train.tolist())
    assert test.equal(same_test)
    assert val.equal(same_val)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"validation": 5000.0}, "data.validation must leave at least one training sample, got 50"),
        (
            {"validation": 0.9999},
            "data.validation must leave at least one training .*got 0.9999 of",
        ),
        ({"test": 0.0001}, "data.test must hold out at least one sample, got 0.0001 of 1797"),
        ({"subset": 1079}, "data.subset must be <= the 1078 training samples, got 1079"),
        ({"test": 2.5}, "data.test must be a share between 0 and 1 or a whole number.*got 2.5"),
        ({"validation": math.nan}, "data.validation must be a share .*got nan"),
        ({"normalization": "minmax", "minmax_range": (1.0, 1.0)}, r"minmax_range.*got \[1, 1\]"),
        ({"normalization": "minmax", "minmax_range": (0.0,)}, r"two numbers.*got \[0\]"),
        ({"normalization": "minmax", "minmax_range": (0.0, math.inf)}, r"got \[0, inf\]"),
        ({"normalization": "fixed", "std": (1.0,)}, "data.mean must be a number.*got null"),
        ({"normalization": "fixed", "mean": (0.0,), "std": ()}, r"data.std must be.*got \[\]"),
        (
            {"normalization": "fixed", "mean": (0.0, 1.0), "std": (1.0,)},
            "data.mean must have 1 number or 1, one for each channel of digits, got 2",
        ),
    ],
)
def test_a_split_that_cannot_be_made_is_the_users_mistake(configure, changes, message):
    with pytest.raises(InputError, match=message):
        data.load(configure("digits", **changes))


def test_mistakes_that_need_no_data_are_told_together(configure):
    config = configure(
        "mnist", root="nowhere", validation=1.5, normalization="minmax", minmax_range=(2.0, 1.0)
    )
    with pytest.raises(InputError) as caught:
        data.load(config)
    assert len(caught.value.mistakes) == 2


def test_the_largest_subset_is_all_that_is_left(configure):
    assert len(data.load(configure("digits", subset=1078)).train) == 1078


# --- normalization ------------------------------------------------------------------------------


def _pictures(generator: torch.Generator, samples: int) -> TensorSplit:
    """Three channels of very different brightness; the last one is the same everywhere."""
    x = (
        torch.rand(samples, 3, 5, 4, generator=generator)
        * torch.tensor([1.0, 0.01, 0.0])[:, None, None]
        + torch.tensor([0.0, 0.7, 0.3])[:, None, None]
    )
    return TensorSplit(x, torch.zeros(samples, dtype=torch.int64))


@pytest.fixture
def two() -> tuple[TensorSplit, TensorSplit]:
    generator = torch.Generator().manual_seed(0)
    return _pictures(generator, 50), _pictures(generator, 20)


def test_standardize_takes_mean_and_deviation_of_each_channel_from_training(configure, two):
    _, (train, val) = normalize(configure("digits"), *two)
    axes = (0, 2, 3)
    torch.testing.assert_close(train.x.mean(axes), torch.zeros(3), atol=1e-5, rtol=0)
    deviations = torch.tensor([1.0, 1.0, 0.0])
    torch.testing.assert_close(train.x.std(axes, correction=0), deviations, atol=1e-4, rtol=0)
    # The validation samples are moved by the training samples' numbers, not by their own.
    mean, std = two[0].x.mean(axes), two[0].x.std(axes, correction=0)
    expected = (two[1].x[:, :2] - mean[:2, None, None]) / std[:2, None, None]
    torch.testing.assert_close(val.x[:, :2], expected, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("bounds", [(0.0, 1.0), (-1.0, 1.0), (2.0, 10.0)])
def test_minmax_spreads_each_training_channel_over_the_range(configure, two, bounds):
    config = configure("digits", normalization="minmax", minmax_range=bounds)
    _, (train, _) = normalize(config, *two)
    low, high = torch.full((2,), bounds[0]), torch.full((2,), bounds[1])
    torch.testing.assert_close(train.x.amin((0, 2, 3))[:2], low, atol=1e-4, rtol=0)
    torch.testing.assert_close(train.x.amax((0, 2, 3))[:2], high, atol=1e-4, rtol=0)
    assert torch.allclose(train.x[:, 2], low[0])  # the constant channel


def test_none_leaves_pictures_untouched(configure, two):
    _, (train, val) = normalize(configure("digits", normalization="none"), *two)
    assert train.x.equal(two[0].x)
    assert val.x.equal(two[1].x)


def test_features_that_are_no_pictures_are_standardized_one_by_one(configure):
    x = torch.tensor([[0.0, 100.0], [2.0, 300.0]])
    _, (train,) = normalize(configure("quadratic"), TensorSplit(x, torch.zeros(2)))
    assert train.x.tolist() == [[-1.0, -1.0], [1.0, 1.0]]


def test_a_constant_feature_is_divided_by_one_although_its_mean_is_rounded(configure):
    constant = TensorSplit(torch.full((1000, 1), 0.1), torch.zeros(1000))
    other = TensorSplit(torch.tensor([[0.6]]), torch.zeros(1))
    _, (train, val) = normalize(configure("quadratic"), constant, other)
    assert train.x.abs().max() == 0
    assert float(val.x) == pytest.approx(0.5)


@pytest.mark.parametrize(("mean", "std"), [((0.5,), (0.25,)), ((0.4, 0.5, 0.6), (0.1, 0.2, 0.3))])
def test_fixed_takes_the_numbers_that_are_given(configure, two, mean, std):
    config = configure("digits", normalization="fixed", mean=mean, std=std)
    affine, (train, val) = normalize(config, *two)
    assert affine is not None
    assert affine.shift.shape == affine.scale.shape == (3, 1, 1)
    for split, raw in zip((train, val), two, strict=True):
        expected = (raw.x - torch.tensor(mean).view(-1, 1, 1)) / torch.tensor(std).view(-1, 1, 1)
        torch.testing.assert_close(split.x, expected)


def test_fixed_of_features_has_a_number_for_each_feature(configure):
    x = torch.tensor([[0.0, 100.0], [2.0, 300.0]])
    config = configure("quadratic", normalization="fixed", mean=(1.0, 100.0), std=(2.0, 50.0))
    _, (train,) = normalize(config, TensorSplit(x, torch.zeros(2)))
    assert train.x.tolist() == [[-0.5, 0.0], [0.5, 4.0]]


@pytest.mark.parametrize("shape", [(50, 3, 5, 4), (50, 60)])
def test_global_takes_one_mean_and_deviation_of_all_numbers(configure, two, shape):
    raw = TensorSplit(two[0].x.reshape(shape), two[0].y)
    _, (train,) = normalize(configure("digits", normalization="global"), raw)
    expected = (raw.x - raw.x.mean()) / raw.x.std(correction=0)
    torch.testing.assert_close(train.x, expected, atol=1e-5, rtol=1e-5)


# --- the size of pictures -------------------------------------------------------------------------


@pytest.mark.parametrize("size", [4, 20])
def test_pictures_are_resized_as_torchvision_does(configure, size):
    from torchvision.transforms.v2 import functional as vision

    config = configure("digits", image_size=size, normalization="none")
    found = data.load(config)
    raw = data.load(configure("digits", normalization="none"))
    assert found.input_shape == (1, size, size)
    expected = vision.resize(raw.val.tensor().x, [size, size], antialias=True)
    torch.testing.assert_close(found.val.tensor().x, expected)


def test_pictures_that_are_resized_when_needed_have_the_same_numbers(configure, monkeypatch):
    held = data.load(configure("digits", image_size=11))
    monkeypatch.setattr(splits, "HELD_BYTES", 100)
    data._load.cache_clear()
    lazy = data.load(configure("digits", image_size=11))
    assert isinstance(lazy.train, ResizedSplit)
    assert lazy.train.nbytes == held.train.nbytes
    index = torch.tensor([5, 900, 5, 3])
    for mine, other in zip(lazy.train.gather(index), held.train.gather(index), strict=True):
        assert mine.equal(other)
    assert lazy.train.take(index).tensor().x.equal(held.train.take(index).tensor().x)
    monkeypatch.setattr(splits, "STATISTICS_AT_MOST", 10)
    data._load.cache_clear()
    few = data.load(configure("digits", image_size=11))
    assert float(few.train.take(torch.arange(10)).tensor().x.mean()) == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("normalization", ["standardize", "global", "minmax"])
def test_statistics_do_not_depend_on_how_samples_are_cut(
    configure, two, normalization, monkeypatch
):
    config = configure("digits", normalization=normalization)
    whole = normalize(config, *two)[1][1].x
    monkeypatch.setattr(splits, "_CHUNK", 7 * 60)
    torch.testing.assert_close(normalize(config, *two)[1][1].x, whole, atol=1e-6, rtol=1e-6)


def test_statistics_come_from_the_first_samples_when_there_are_too_many(configure, two):
    _, (few, _) = normalize(configure("digits"), two[0].take(torch.arange(10)), two[1])
    _, (many, _) = normalize(configure("digits"), *two, at_most=10)
    assert many.x[:10].equal(few.x)
    assert len(many) == 50


def test_statistics_come_from_the_subset_alone(configure):
    train = data.load(configure("digits", subset=20)).train.tensor()
    assert abs(float(train.x.mean())) < 1e-6
    assert float(train.x.std(correction=0)) == pytest.approx(1, abs=1e-5)
