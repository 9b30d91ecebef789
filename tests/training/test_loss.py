"""Losses: a class is picked by index or, where that cannot be, by a sum; the same numbers."""

from __future__ import annotations

import pytest
import torch
from torch.func import grad, vmap

from sweepstack.training.loss import picked


@pytest.fixture
def log_p():
    """(3, 5, 4), with a class that cannot be."""
    x = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0))
    x[0, 0, 1] = -torch.inf
    return x.log_softmax(-1)


@pytest.fixture
def targets():
    return torch.randint(0, 4, (3, 5), generator=torch.Generator().manual_seed(1))


def test_a_sum_picks_what_an_index_picks(log_p, targets):
    targets[0, 0] = 1
    by_index = vmap(lambda p, t: picked(p, t, summed=False))(log_p, targets)
    by_sum = vmap(lambda p, t: picked(p, t, summed=True))(log_p, targets)
    assert torch.equal(by_index, by_sum)
    assert by_sum[0, 0] == -torch.inf


def test_so_are_its_gradients(log_p, targets):
    def loss(x, t, summed):
        return -picked(x.log_softmax(-1), t, summed=summed).mean()

    one, other = (vmap(grad(loss), (0, 0, None))(log_p[1:], targets[1:], s) for s in (False, True))
    assert torch.equal(one, other)
