"""torch's fused kernels move a stack as the rules do, and are left alone where they do not."""

from __future__ import annotations

import pytest
import torch
from engine_support import ADAMW, DECAY, assert_same, by_number
from support import make_spec

from sweepstack.engine.program import Program
from sweepstack.engine.step import Step
from sweepstack.engine.train import train
from sweepstack.training import fused
from sweepstack.training import optimizer as optim
from sweepstack.training.fused import Bank

HYPER = {
    "sgd": {"momentum": [0.9, 0.9, 0.0], "nesterov": [1.0, 0.0, 0.0]},
    "adam": {"beta1": [0.9, 0.9, 0.5], "beta2": [0.999, 0.999, 0.9], "eps": [1e-8] * 3},
}
HYPER["adamw"] = HYPER["adam"]


@pytest.fixture(autouse=True)
def tried_anew():
    fused.works.cache_clear()
    yield
    fused.works.cache_clear()


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("equal", [False, True])
@pytest.mark.parametrize("name", fused.KERNELS)
def test_fifty_steps_equal_the_rules(name, equal, apart):
    """In float64, of three trials with equal hyperparameters and with their own."""
    generator = torch.Generator().manual_seed(0)
    rule = optim.RULES[name](decays=True)
    columns = {**HYPER[name], "weight_decay": [0.1, 0.0, 0.1], "lr": [0.1, 0.01, 0.1]}
    numbers = {
        key: torch.tensor(values[:1] * 3 if equal else values, dtype=torch.float64)
        for key, values in columns.items()
    }
    lr = numbers.pop("lr")
    like = {n: torch.zeros(s, dtype=torch.float64) for n, s in {"w": (4, 3), "b": (3,)}.items()}
    mine, other = (
        {key: Bank(like, 3, torch.device("cpu")) for key in ("params", *rule.moments)}
        for _ in range(2)
    )
    for step in range(1, 51):
        grads = [
            torch.randn(group.shape, generator=generator, dtype=torch.float64)
            for group in mine["params"].packed
        ]
        given = [list(g.clone().unbind(0)) if apart else g.clone() for g in grads]
        number, moments = torch.full((3,), step), [mine[key] for key in rule.moments]
        fused.update(name, mine["params"], given, moments, numbers, lr, number)
        theirs = {key: other[key].packed for key in rule.moments}
        rule.update(other["params"].packed, grads, theirs, numbers, lr, number)
    for one, two in zip(mine["params"].packed, other["params"].packed, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-12)


def test_this_torch_has_the_kernels():
    assert all(map(fused.works, fused.KERNELS))
    assert not fused.works("rmsprop")


@pytest.mark.parametrize("fault", ["missing", "wrong"])
def test_a_kernel_that_is_missing_or_wrong_is_not_used(monkeypatch, caplog, fault):
    trials = [make_spec(*ADAMW, f"{DECAY}0.1", f"training.seed={n}", number=n) for n in range(3)]
    expected = by_number(train(trials, width=3))
    fused.works.cache_clear()
    if fault == "missing":
        monkeypatch.delattr(torch, "_fused_adamw_")
    else:
        monkeypatch.setattr(torch, "_fused_adamw_", torch._fused_adam_)
    with caplog.at_level("DEBUG"):
        assert_same(by_number(train(trials, width=3)), expected)
    assert "adamw runs without torch's fused kernel" in caplog.text
    assert not Step(Program.of(trials[0])).fused
