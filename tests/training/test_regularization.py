"""L1, clipping and mixup of a stack: each slot against torch or its formula, and no slot's numbers
in another's."""

import math

import pytest
import torch
from scipy import stats
from torch.nn.utils import clip_grad_norm_, clip_grad_value_

from sweepstack.data import streams
from sweepstack.training import regularization as reg

SHAPES = [(4, 3), (4,), (2, 3, 3, 3), ()]
INF = math.inf


@pytest.fixture
def tensors():
    """Parameters or gradients of a stack of `slots` with the shapes above."""

    def make(slots, seed, scale=1.0):
        generator = torch.Generator().manual_seed(seed)
        return [scale * torch.randn(slots, *shape, generator=generator) for shape in SHAPES]

    return make


def copies(tensors):
    return [tensor.clone() for tensor in tensors]


def slot_of(tensors, slot):
    return [tensor[slot].clone() for tensor in tensors]


def as_torch_parameters(grads):
    parameters = [torch.nn.Parameter(torch.zeros_like(grad)) for grad in grads]
    for parameter, grad in zip(parameters, grads, strict=True):
        parameter.grad = grad
    return parameters


# --- l1 -------------------------------------------------------------------------------------------


def test_l1_adds_the_gradient_of_the_penalty_in_each_slot(tensors):
    params, grads = tensors(3, seed=0), tensors(3, seed=1)
    params[0][1, 0, 0] = 0.0
    l1 = torch.tensor([0.1, 0.0, 2.0], dtype=torch.float64)
    leaves = [param.clone().requires_grad_() for param in params]
    sum((l1.float() * leaf.abs().reshape(3, -1).sum(1)).sum() for leaf in leaves).backward()
    expected = [grad + leaf.grad for grad, leaf in zip(grads, leaves, strict=True)]
    before = copies(grads)
    reg.add_l1(grads, params, l1)
    torch.testing.assert_close(grads, expected)
    assert all(torch.equal(a[1], b[1]) for a, b in zip(grads, before, strict=True))


# --- clipping -------------------------------------------------------------------------------------


def test_clip_by_norm_is_torchs_in_each_slot(tensors):
    grads = tensors(4, seed=2, scale=3.0)
    bounds = torch.tensor([0.01, 1.0, 1e9, INF], dtype=torch.float64)
    before = copies(grads)
    reg.clip_by_norm(grads, bounds)
    for slot, bound in enumerate(bounds.tolist()):
        expected = slot_of(before, slot)
        clip_grad_norm_(as_torch_parameters(expected), bound)
        torch.testing.assert_close(slot_of(grads, slot), expected, rtol=1e-6, atol=0)
    unclipped = [(a[2:], b[2:]) for a, b in zip(grads, before, strict=True)]
    assert all(torch.equal(a, b) for a, b in unclipped)


def test_clip_by_value_is_torchs_in_each_slot(tensors):
    grads = tensors(3, seed=3, scale=3.0)
    bounds = torch.tensor([0.01, 1.0, INF])
    before = copies(grads)
    reg.clip_by_value(grads, bounds)
    for slot, bound in enumerate(bounds.tolist()):
        expected = slot_of(before, slot)
        clip_grad_value_(as_torch_parameters(expected), bound)
        assert all(map(torch.equal, slot_of(grads, slot), expected))


@pytest.mark.parametrize("bad", [math.nan, INF, -INF])
@pytest.mark.parametrize(
    "change",
    [
        lambda grads: reg.clip_by_norm(grads, torch.tensor([1.0, 1.0, 1.0])),
        lambda grads: reg.clip_by_value(grads, torch.tensor([1.0, 1.0, 1.0])),
        lambda grads: reg.add_l1(grads, copies(grads), torch.tensor([1.0, 1.0, 1.0])),
    ],
)
def test_a_broken_slot_does_not_touch_its_neighbours(tensors, change, bad):
    healthy, broken = tensors(3, seed=4), tensors(3, seed=4)
    broken[2][1] = bad
    change(healthy)
    change(broken)
    for a, b in zip(healthy, broken, strict=True):
        assert torch.equal(a[[0, 2]], b[[0, 2]])


@pytest.mark.parametrize("bad", [math.nan, INF])
def test_a_slot_without_clipping_keeps_even_broken_gradients(tensors, bad):
    grads = tensors(2, seed=5)
    grads[0][1, 0, 0] = bad
    before = copies(grads)
    reg.clip_by_norm(grads, torch.tensor([1.0, INF]))
    reg.clip_by_value(grads, torch.tensor([1.0, INF]))
    for a, b in zip(grads, before, strict=True):
        torch.testing.assert_close(a[1], b[1], rtol=0, atol=0, equal_nan=True)


# --- mixup ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [0.05, 0.2, 1.0, 8.0])
def test_mixup_draws_lambda_from_the_beta_distribution(alpha):
    n = 20_000
    keys = streams.split(torch.tensor(7), torch.arange(n))
    drawn = reg.mixup_lambda(keys, reg.beta_table(alpha).expand(n, -1))
    assert 0 <= drawn.min() <= drawn.max() <= 1
    # Not at 0 and 1 themselves: float32 rounds much of Beta(0.05, 0.05) to them.
    at = torch.linspace(1e-4, 1 - 1e-4, 999, dtype=torch.float64)
    share = torch.searchsorted(drawn.double().sort().values, at, right=True) / n
    expected = torch.from_numpy(stats.beta.cdf(at.numpy(), alpha, alpha))
    # The table's error and that of n draws, which exceeds 1.95 / √n once in a thousand samples.
    assert (share - expected).abs().max() < 1 / 1024 + 1.95 / n**0.5


@pytest.mark.parametrize("alpha", [1e-300, 1e-3, 0.2, 1e6])
def test_beta_tables_rise_from_0_to_1_and_are_symmetric(alpha):
    table = reg.beta_table(alpha)
    assert table.shape == (1025,)
    assert (table[0], table[-1]) == (0, 1)
    assert (table.diff() >= 0).all()
    torch.testing.assert_close(table + table.flip(0), torch.ones(1025))


@pytest.mark.parametrize("points", [2, 3, 1025])
def test_lambda_is_read_between_the_points_of_a_table(points):
    """The table of a uniform distribution gives the uniform number itself."""
    keys = torch.arange(1000)
    drawn = reg.mixup_lambda(keys, torch.linspace(0, 1, points).expand(1000, -1))
    torch.testing.assert_close(drawn, streams.uniform(keys, 1).squeeze(1), atol=1e-6, rtol=0)


def test_lambda_of_a_slot_depends_on_its_key_and_alpha_alone():
    keys = streams.split(torch.arange(4), torch.tensor(11))
    tables = torch.stack([reg.beta_table(alpha) for alpha in (0.2, 0.0, 1.0, 0.2)])
    together = reg.mixup_lambda(keys, tables)
    alone = [reg.mixup_lambda(keys[[s]], tables[[s]]) for s in range(4)]
    assert torch.equal(together, torch.cat(alone))
    assert together[1] == 1
    assert together[0] != together[3]


def test_each_sample_is_mixed_with_the_next():
    inputs = torch.tensor([[[0.0, 10.0], [1.0, 20.0], [2.0, 30.0]]])
    mixed = reg.mix_inputs(inputs, torch.tensor([0.75]))
    assert mixed.tolist() == [[[0.25, 12.5], [1.25, 22.5], [1.5, 25.0]]]
    assert reg.partners(torch.tensor([[5, 6, 7]])).tolist() == [[6, 7, 5]]


@pytest.mark.parametrize("shape", [(1,), (3, 5, 7)])
def test_mixing_a_slot_is_the_same_alone_and_lambda_1_changes_nothing(shape):
    inputs = torch.randn(4, 9, *shape, generator=torch.Generator().manual_seed(6))
    before, lam = inputs.clone(), torch.tensor([0.3, 1.0, 0.0, 0.9])
    mixed = reg.mix_inputs(inputs, lam)
    for slot in range(4):
        alone = reg.mix_inputs(inputs[[slot]], lam[[slot]])
        assert torch.equal(mixed[[slot]], alone)
    assert torch.equal(mixed[1], inputs[1])
    assert torch.equal(mixed[2], reg.partners(inputs)[2])
    assert torch.equal(inputs, before)
