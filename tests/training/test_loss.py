"""Losses against those of torch and torchvision; a class is picked by index or by a sum."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.utils.class_weight import compute_class_weight
from torch.func import grad, vmap
from torchvision.ops import sigmoid_focal_loss

from sweepstack.config import schema
from sweepstack.data.dataset import Dataset, TensorSplit
from sweepstack.training.loss import Task, _weights, picked


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


def given(**numbers):
    return {name: torch.tensor(value) for name, value in numbers.items()}


@pytest.fixture
def logits():
    return torch.randn(40, 4, generator=torch.Generator().manual_seed(0))


CLASSES = torch.arange(40) % 4
BITS = (torch.randn(40, 4, generator=torch.Generator().manual_seed(2)) > 0.3).float()


def task_of(name, loss, y, weights=None, outputs=4):
    """A task with class weights as a config would give them, for these training targets."""
    split = TensorSplit(torch.zeros(len(y), 1), y)
    data = Dataset("mine", split, split, None, name, ("a", "b", "c", "d")[:outputs])
    config = schema.Weighted(name=loss, class_weights=weights)
    made, mistakes = _weights(config, name, data)
    assert not mistakes
    return Task(name, loss, outputs, weights=made)


@pytest.mark.parametrize("smoothing", [None, 0.2])
def test_weights_of_classes_are_those_of_torch(logits, smoothing):
    """Over the whole training set, where the mean is torch's weighted mean."""
    y, weights = CLASSES.clamp_max(2), (1.0, 2.0, 5.0, 7.0)
    task = task_of("multiclass", "cross_entropy", y, weights)
    mine = task.losses(
        task.scores(logits), y, {} if smoothing is None else given(label_smoothing=smoothing)
    )
    theirs = F.cross_entropy(logits, y, torch.tensor(weights), label_smoothing=smoothing or 0.0)
    torch.testing.assert_close(mine.mean(), theirs)


def test_balanced_weights_are_those_of_scikit_learn():
    y = torch.tensor([0] * 5 + [1] * 20 + [2] * 10 + [3] * 5)
    found = task_of("multiclass", "cross_entropy", y, "balanced").weights
    theirs = compute_class_weight("balanced", classes=np.arange(4), y=y.numpy())
    torch.testing.assert_close(found, torch.tensor(theirs).float())
    bits = (y == 0).float()
    found = task_of("binary", "bce", bits, "balanced", 1).weights
    theirs = compute_class_weight("balanced", classes=np.arange(2), y=bits.numpy())
    torch.testing.assert_close(found, torch.tensor(theirs).float())


def test_weights_of_labels_are_those_of_torch(logits):
    task = task_of("multilabel", "bce", BITS, (1.0, 2.0, 0.5, 3.0))
    theirs = F.binary_cross_entropy_with_logits(logits, BITS, pos_weight=task.weights)
    torch.testing.assert_close(task.losses(logits, BITS).mean(), theirs)
    soft = BITS * 0.8 + 0.1
    theirs = F.binary_cross_entropy_with_logits(logits, soft, pos_weight=task.weights)
    mine = task.losses(logits, BITS, given(label_smoothing=0.2)).mean()
    torch.testing.assert_close(mine, theirs)
    ones = BITS.sum(0)
    balanced = task_of("multilabel", "bce", BITS, "balanced").weights
    torch.testing.assert_close(balanced, (40 - ones) / ones)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_focal_loss_is_that_of_torchvision(logits, gamma):
    theirs = sigmoid_focal_loss(logits, BITS, alpha=-1, gamma=gamma).mean(-1)
    mine = task_of("multilabel", "focal", BITS).losses(logits, BITS, given(gamma=gamma))
    torch.testing.assert_close(mine, theirs)
    one = task_of("binary", "focal", BITS[:, 0], outputs=1)
    theirs = sigmoid_focal_loss(logits[:, 0], BITS[:, 0], alpha=-1, gamma=gamma)
    torch.testing.assert_close(one.losses(logits[:, :1], BITS[:, 0], given(gamma=gamma)), theirs)
    task = task_of("multiclass", "focal", CLASSES)
    p = logits.softmax(-1)[torch.arange(40), CLASSES]
    torch.testing.assert_close(
        task.losses(task.scores(logits), CLASSES, given(gamma=gamma)), -((1 - p) ** gamma) * p.log()
    )


def test_focal_loss_of_a_certain_sample_has_a_finite_gradient():
    outputs = torch.tensor([[200.0, 0.0]], requires_grad=True)
    task = Task("multiclass", "focal", 2)
    task.losses(task.scores(outputs), torch.tensor([0]), given(gamma=0.5)).sum().backward()
    assert outputs.grad.isfinite().all()


@pytest.mark.parametrize("delta", [0.3, 1.0])
def test_huber_and_nll_are_those_of_torch(logits, delta):
    y = torch.randn(40, 4, generator=torch.Generator().manual_seed(3))
    theirs = F.huber_loss(logits, y, delta=delta, reduction="none").mean(-1)
    found = task_of("regression", "huber", y).losses(logits, y, given(delta=delta))
    torch.testing.assert_close(found, theirs)
    one = task_of("regression", "huber", y[:, 0], outputs=1)
    theirs = F.huber_loss(logits[:, 0], y[:, 0], delta=delta, reduction="none")
    torch.testing.assert_close(one.losses(logits[:, :1], y[:, 0], given(delta=delta)), theirs)
    log_p, nll = logits.log_softmax(-1), Task("multiclass", "nll", 4)
    mine = nll.losses(nll.scores(log_p), CLASSES)
    torch.testing.assert_close(mine, F.nll_loss(log_p, CLASSES, reduction="none"))


def test_right_predictions_are_counted_for_many_steps_at_once(logits):
    plain, weighted = (
        Task("multiclass", "cross_entropy", 4),
        task_of("multiclass", "cross_entropy", CLASSES, (1.0, 2.0, 3.0, 4.0)),
    )
    right = int((logits.argmax(-1) == CLASSES).sum())
    for task in (plain, weighted):
        scores = task.scores(logits)
        told = task.tells(scores, CLASSES, task.losses(scores, CLASSES), plain=True)
        assert int(task.counted(told)) == right
    equal = torch.zeros(4, 4)  # nothing is learnt yet: none is right
    scores = plain.scores(equal)
    told = plain.tells(scores, CLASSES[:4], plain.losses(scores, CLASSES[:4]), plain=True)
    assert int(plain.counted(told)) == 0
