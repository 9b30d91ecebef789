"""Metrics against scikit-learn, from sums over chunks; and names that are refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn import metrics as sk

from sweepstack.training import metrics
from sweepstack.training.loss import LOSSES, Task, direction_of

N = 60


def measured(task, names, outputs, targets):
    """The metrics of a split that comes in three chunks."""
    extra, mistakes = metrics.asked(tuple(names), task, ("loss",), outputs.shape[1])
    assert not mistakes
    made = Task(task, LOSSES[task][0], outputs.shape[1], tuple(extra))
    chunks = zip(outputs.split(25), targets.split(25), strict=True)
    sums = sum(made.sums(*chunk) for chunk in chunks).tolist()
    whole = [metric.whole(outputs, targets) for metric in made.whole]
    return dict(made.means([*sums, *whole], len(targets), "val"))


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_of_classes():
    outputs, y = drawn(N, 7).round(decimals=1), torch.arange(N) % 5  # 5 and 6 never occur, ties do
    names = ["balanced_accuracy", "f1_macro", "precision_macro", "recall_macro"]
    found = measured("multiclass", [*names, "log_loss", "auroc"], outputs, y)
    said, p = outputs.argmax(1), outputs.double().softmax(1)
    some = {"average": "macro", "zero_division": 0}
    areas = [sk.roc_auc_score(y == c, p[:, c]) for c in range(5)]
    with pytest.warns(UserWarning, match="y_pred contains classes not in y_true"):
        balanced = sk.balanced_accuracy_score(y, said)
    assert found == pytest.approx(
        {
            "val_loss": sk.log_loss(y, p, labels=range(7)),
            "val_accuracy": sk.accuracy_score(y, said),
            "val_balanced_accuracy": balanced,
            "val_f1_macro": sk.f1_score(y, said, **some),
            "val_precision_macro": sk.precision_score(y, said, **some),
            "val_recall_macro": sk.recall_score(y, said, **some),
            "val_log_loss": sk.log_loss(y, p, labels=range(7)),
            "val_auroc": np.mean(areas),
        },
        rel=1e-6,
    )
    outputs = drawn(N, 7)  # no ties at the third place
    found = measured("multiclass", ["top3_accuracy"], outputs, y)["val_top3_accuracy"]
    assert found == sk.top_k_accuracy_score(y, outputs, k=3, labels=range(7))


def test_of_two_classes():
    outputs, y = drawn(N, 1).round(decimals=1), (drawn(N, seed=1) > 0.4).float()
    names = ["f1", "precision", "recall", "f1_macro", "balanced_accuracy", "auroc"]
    found = measured("binary", names, outputs, y)
    said = (outputs[:, 0] > 0).float()
    assert found == pytest.approx(
        {
            "val_loss": sk.log_loss(y, outputs[:, 0].double().sigmoid()),
            "val_accuracy": sk.accuracy_score(y, said),
            "val_f1": sk.f1_score(y, said),
            "val_precision": sk.precision_score(y, said),
            "val_recall": sk.recall_score(y, said),
            "val_f1_macro": sk.f1_score(y, said, average="macro"),
            "val_balanced_accuracy": sk.balanced_accuracy_score(y, said),
            "val_auroc": sk.roc_auc_score(y, outputs[:, 0]),
        },
        rel=1e-6,
    )


def test_a_label_that_never_occurs_counts_as_zero():
    outputs, y = drawn(N, 3) - torch.tensor([0, 0, 99]), torch.ones(N, 3)
    y[:, 2] = 0
    found = measured("multilabel", ["f1_macro"], outputs, y)
    expected = sk.f1_score(y, outputs > 0, average="macro", zero_division=0)
    assert found["val_f1_macro"] == pytest.approx(expected)


def test_of_labels():
    outputs, y = drawn(N, 3), (drawn(N, 3, seed=1) > 0.4).float()
    names = ["subset_accuracy", "f1_macro", "precision_macro", "recall_macro", "auroc"]
    found = measured("multilabel", names, outputs, y)
    said = (outputs > 0).float()
    assert found["val_accuracy"] == pytest.approx(1 - sk.hamming_loss(y, said))
    assert found["val_subset_accuracy"] == pytest.approx(sk.accuracy_score(y, said))
    for name, of in (("f1", sk.f1_score), ("precision", sk.precision_score)):
        assert found[f"val_{name}_macro"] == pytest.approx(of(y, said, average="macro"))
    assert found["val_recall_macro"] == pytest.approx(sk.recall_score(y, said, average="macro"))
    assert found["val_auroc"] == pytest.approx(sk.roc_auc_score(y, outputs, average="macro"))


@pytest.mark.parametrize("numbers", [1, 3])
def test_of_numbers(numbers):
    outputs, y = drawn(N, numbers), 1000 + drawn(N, numbers, seed=1)
    outputs += 1000 + 0.5 * (y - 1000)
    given = y[:, 0] if numbers == 1 else y
    found = measured("regression", ["r2", "rmse"], outputs, given)
    y, outputs = y.double(), outputs.double()
    assert found["val_mse"] == pytest.approx(sk.mean_squared_error(y, outputs), rel=1e-5)
    assert found["val_mae"] == pytest.approx(sk.mean_absolute_error(y, outputs), rel=1e-5)
    assert found["val_r2"] == pytest.approx(sk.r2_score(y, outputs), rel=1e-5)
    assert found["val_rmse"] == pytest.approx(sk.root_mean_squared_error(y, outputs), rel=1e-5)


def test_r2_of_constant_targets():
    y = torch.full((N,), 3.0)
    assert measured("regression", ["r2"], y[:, None], y)["val_r2"] == 1
    assert measured("regression", ["r2"], y[:, None] + 1, y)["val_r2"] == 0


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["f1_macr"], "did you mean 'f1_macro'?"),
        (["f1"], "for multiclass, or a function of yours"),
        (["mine.kappa"], "mine.kappa:maximize or mine.kappa:minimize"),
        (["mine.kappa:up"], "must say which way is better"),
        (["mine.auroc:maximize", "auroc"], "metrics must have different names, got auroc twice"),
        (["top10_accuracy"], "top10_accuracy must name fewer than the 10 classes"),
    ],
)
def test_what_is_no_metric_is_refused(names, said):
    _, (line,) = metrics.asked(tuple(names), "multiclass", ("loss", "accuracy"), 10)
    assert said in line


def test_every_metric_knows_which_way_is_better():
    less = {name for name in metrics.KNOWN if direction_of(f"val_{name}") == "minimize"}
    assert less == {"rmse", "log_loss"}
    assert direction_of("val_top5_accuracy") == direction_of("train_accuracy") == "maximize"
    assert direction_of("val_mae") == direction_of("train_loss") == "minimize"
    own = metrics.find("mine.gap:minimize")
    assert Task("binary", "bce", 1, (own,)).direction_of("val_gap") == "minimize"
