"""The update rules against torch.optim: float64, 50 steps, several trials in one stack."""

import pytest
import torch

from sweepstack.config import schema
from sweepstack.training import optimizer as optim

LR = [0.1, 0.01, 0.003]


def configs(name, **settings):
    """One optimizer config per slot; a list gives each slot its own value."""

    def value(key, slot):
        given = settings.get(
            key, {"momentum": 0.0, "nesterov": False, "betas": (0.9, 0.999)}.get(key)
        )
        return given[slot] if isinstance(given, list) else given

    slots = []
    for slot, lr in enumerate(LR):
        common = {"name": name, "lr": lr}
        common |= {key: value(key, slot) for key in ("momentum", "nesterov")}
        if name in ("adam", "adamw"):
            slots.append(schema.Adam(**common, betas=value("betas", slot), eps=1e-8))
        elif name == "rmsprop":
            slots.append(schema.RmsProp(**common, alpha=settings.get("alpha", 0.99), eps=1e-8))
        else:
            slots.append(schema.Sgd(**common))
    return slots


def theirs(config, parameters, weight_decay):
    common = {"lr": config.lr, "weight_decay": weight_decay}
    if config.name == "sgd":
        nesterov = config.nesterov and config.momentum > 0
        return torch.optim.SGD(parameters, momentum=config.momentum, nesterov=nesterov, **common)
    if config.name == "rmsprop":
        extra = {"alpha": config.alpha, "eps": config.eps, "momentum": config.momentum}
        return torch.optim.RMSprop(parameters, **extra, **common)
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[config.name]
    return kind(parameters, betas=config.betas, eps=config.eps, **common)


CASES = [
    ("sgd", {}),
    ("sgd", {"momentum": [0.0, 0.9, 0.5]}),
    ("sgd", {"momentum": [0.9, 0.9, 0.0], "nesterov": [True, False, True]}),
    ("adam", {}),
    ("adam", {"betas": [(0.9, 0.999), (0.5, 0.9), (0.0, 0.99)]}),
    ("adamw", {}),
    ("rmsprop", {}),
    ("rmsprop", {"momentum": [0.0, 0.9, 0.5], "alpha": 0.9}),
]


@pytest.mark.parametrize("weight_decay", [0.0, 0.05])
@pytest.mark.parametrize(("name", "settings"), CASES)
def test_equals_torch_optim_step_for_step(name, settings, weight_decay):
    generator = torch.Generator().manual_seed(0)
    shapes, slots = [(4, 3), (3,)], configs(name, **settings)
    ours = [torch.randn(3, *s, generator=generator, dtype=torch.float64) for s in shapes]
    reference = [[p[slot].clone().requires_grad_() for p in ours] for slot in range(3)]
    torch_optimizers = [
        theirs(config, parameters, weight_decay)
        for config, parameters in zip(slots, reference, strict=True)
    ]
    rule = optim.RULES[name](decays=weight_decay > 0)
    names = rule.hyper(slots[0])
    hyper = {
        key: torch.tensor([rule.hyper(c)[key] for c in slots], dtype=torch.float64) for key in names
    }
    hyper["weight_decay"] = torch.full((3,), weight_decay, dtype=torch.float64)
    moments = {key: [torch.zeros_like(p) for p in ours] for key in rule.moments}
    lr = torch.tensor(LR, dtype=torch.float64)
    for step in range(1, 51):
        grads = [torch.randn(p.shape, generator=generator, dtype=torch.float64) for p in ours]
        for slot in range(3):
            for parameter, grad in zip(reference[slot], grads, strict=True):
                parameter.grad = grad[slot].clone()
            torch_optimizers[slot].step()
        rule.update(ours, grads, moments, hyper, lr, torch.full((3,), step))
        for slot in range(3):
            for mine, other in zip(ours, reference[slot], strict=True):
                torch.testing.assert_close(mine[slot], other.detach(), rtol=1e-10, atol=1e-12)


def test_a_slot_that_is_nan_leaves_the_others_alone():
    (config, *_) = configs("adam")
    rule = optim.RULES["adam"](decays=False)
    hyper = {k: torch.full((2,), v, dtype=torch.float64) for k, v in rule.hyper(config).items()}
    param, grad = torch.ones(2, 3), torch.tensor([[float("nan")] * 3, [1.0, 2.0, 3.0]])
    moments = {name: [torch.zeros(2, 3)] for name in rule.moments}
    lr = torch.tensor([0.1, 0.1], dtype=torch.float64)
    rule.update([param], [grad], moments, hyper, lr, torch.ones(2))
    torch.testing.assert_close(param[1], torch.full((3,), 0.9))


@pytest.mark.parametrize(("scaling", "factor"), [("none", 1.0), ("linear", 4.0), ("sqrt", 2.0)])
def test_lr_scales_with_the_batch(scaling, factor):
    batch = schema.Batch(size=256, lr_scaling=scaling, base_size=64)
    assert optim.scaled_lr(configs("sgd")[0], batch) == pytest.approx(0.1 * factor)


def test_every_optimizer_of_the_schema_has_a_rule():
    assert optim.RULES.keys() == schema.OPTIONS["optimizer"].keys()
