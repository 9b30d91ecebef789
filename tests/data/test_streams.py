"""The random streams against SplitMix64's published outputs, and what users of them rely on."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sweepstack.data import streams

KEYS = st.integers(-(2**63), 2**63 - 1)
REFERENCE = [6457827717110365317, 3203168211198807973, 9817491932198370423]
"""The first outputs of SplitMix64 with the seed 1234567."""


def test_derive_gives_the_published_outputs():
    assert [streams.derive(1234567, i) % 2**64 for i in range(3)] == REFERENCE


def test_uniform_takes_the_top_bits_of_the_published_outputs():
    drawn = streams.uniform(torch.tensor(1234567), 3)
    assert drawn.tolist() == [(output >> 40) / 2**24 for output in REFERENCE]


@settings(deadline=None)
@given(KEYS, st.lists(st.integers(0, 2**31), max_size=4))
def test_split_follows_derive_with_tensor_and_int_indices(key, path):
    by_tensor = by_int = torch.tensor([key])
    for index in path:
        by_tensor = streams.split(by_tensor, torch.tensor([index]))
        by_int = streams.split(by_int, index)
    assert by_tensor.item() == by_int.item() == streams.derive(key, *path)


@settings(deadline=None)
@given(KEYS, st.integers(0, 1000), st.integers(0, 1000))
def test_derive_separates_streams(key, a, b):
    assert (streams.derive(key, a) == streams.derive(key, b)) == (a == b)
    assert streams.derive(key, a, b) == streams.derive(streams.derive(key, a), b)


def test_split_broadcasts_keys_against_indices():
    keys, index = torch.tensor([[3], [-7]]), torch.arange(4)
    expected = [[streams.derive(key, i) for i in range(4)] for key in (3, -7)]
    assert streams.split(keys, index).tolist() == expected


def test_uniform_fills_the_unit_interval_evenly():
    drawn = streams.uniform(torch.arange(100), 10_000)
    assert drawn.shape == (100, 10_000)
    assert 0 <= drawn.min() < 1e-5
    assert 1 - 1e-5 < drawn.max() < 1
    counts = torch.histc(drawn, bins=100, min=0, max=1).double()
    # χ² with 99 degrees of freedom: 160 is exceeded once in 10,000 good generators.
    assert ((counts - 10_000) ** 2 / 10_000).sum() < 160
    assert drawn.double().mean().item() == pytest.approx(0.5, abs=5 * (1 / 12 / 1e6) ** 0.5)


def test_numbers_of_neighbouring_keys_streams_and_counters_are_uncorrelated():
    """Keys 0, 1, 2, ... are what users take as seeds; 5 standard errors are allowed."""
    n = 100_000
    seeds = streams.uniform(torch.arange(3), n)
    derived = streams.uniform(streams.split(torch.tensor(0), torch.arange(3)), n)
    lagged = torch.stack((seeds[0], seeds[0].roll(1)))
    rows = torch.cat((seeds, derived, lagged[1:])).double()
    correlation = torch.corrcoef(rows) - torch.eye(len(rows))
    assert correlation.abs().max() < 5 / n**0.5


def test_uniform_is_the_same_alone_and_among_others():
    keys = torch.tensor([5, -1, 2**62])
    together = streams.uniform(keys, 17)
    for key, row in zip(keys, together, strict=True):
        assert torch.equal(streams.uniform(key, 17), row)
        assert torch.equal(streams.uniform(key, streams.counters(40, "cpu"))[:17], row)


@settings(deadline=None)
@given(KEYS, st.integers(0, 300))
def test_permutation_is_one_and_a_function_of_its_key(key, n):
    order = streams.permutation(key, n)
    assert sorted(order.tolist()) == list(range(n))
    assert torch.equal(order, streams.permutation(key, n))


@pytest.mark.parametrize("place", ["cpu", *["cuda"] * torch.cuda.is_available()])
def test_permutations_are_the_same_alone_and_together(place, monkeypatch):
    monkeypatch.setattr(streams, "_SORTED", 100)  # two at once
    keys = [5, -1, 2**62]
    together = streams.permutations(keys, 40, place)
    for key, order in zip(keys, together, strict=True):
        assert order.tolist() == streams.permutation(key, 40).tolist()


def test_permutation_differs_between_keys_and_is_even():
    """Each of the 24 orders of 4 things comes up about equally often."""
    orders = [tuple(streams.permutation(key, 4).tolist()) for key in range(4800)]
    counts = torch.tensor([orders.count(order) for order in set(orders)]).double()
    assert len(counts) == 24
    # χ² with 23 degrees of freedom: 58 is exceeded once in 10,000 good generators.
    assert ((counts - 200) ** 2 / 200).sum() < 58
