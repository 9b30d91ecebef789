"""The update rules against torch.optim: float64, 50 steps, several trials in one stack."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from sweepstack.config import schema
from sweepstack.training import optimizer as optim

LR = [0.1, 0.01, 0.003]


OWN = {
    "sgd": {"dampening": 0.0},
    "rmsprop": {"alpha": 0.99, "eps": 1e-8},
    "adagrad": {"lr_decay": 0.0, "initial_accumulator_value": 0.0, "eps": 1e-10},
    "lion": {"betas": (0.9, 0.99)},
    "nadam": {"betas": (0.9, 0.999), "eps": 1e-8, "momentum_decay": 0.004},
}
ADAM = {"betas": (0.9, 0.999), "eps": 1e-8}


def configs(name, **settings):
    """One optimizer config per slot; a list gives each slot its own value."""
    common = {"momentum": 0.0, "nesterov": False, **OWN.get(name, ADAM), **settings}

    def value(key, slot):
        return common[key][slot] if isinstance(common[key], list) else common[key]

    make = schema.OPTIONS["optimizer"][name]
    return [
        make(name=name, lr=lr, **{key: value(key, slot) for key in common})
        for slot, lr in enumerate(LR)
    ]


class Lion(torch.optim.Optimizer):
    """The program of Chen et al. 2023, as they print it."""

    def __init__(self, params, lr, betas, weight_decay):
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for p in group["params"]:
                m = self.state[p].setdefault("m", torch.zeros_like(p))
                update = beta1 * m + (1 - beta1) * p.grad
                p -= group["lr"] * (update.sign() + group["weight_decay"] * p)
                m.copy_(beta2 * m + (1 - beta2) * p.grad)


NAMES = {
    **{"adam": "Adam", "adamw": "AdamW", "rmsprop": "RMSprop", "nadam": "NAdam"},
    **{"radam": "RAdam", "adagrad": "Adagrad", "sgd": "SGD"},
}


def theirs(config, parameters, weight_decay):
    given = {
        key: value
        for key, value in vars(config).items()
        if key not in ("name", "backbone_lr_factor")
    }
    if config.name not in ("sgd", "rmsprop"):
        del given["momentum"]
    if config.name != "sgd":
        del given["nesterov"]
    else:
        given["nesterov"] = config.nesterov and config.momentum > 0
    kind = Lion if config.name == "lion" else getattr(torch.optim, NAMES[config.name])
    return kind(parameters, **given, weight_decay=weight_decay)


BETAS = [(0.9, 0.999), (0.5, 0.9), (0.0, 0.99)]
CASES = [
    ("sgd", {}),
    ("sgd", {"momentum": [0.0, 0.9, 0.5]}),
    ("sgd", {"momentum": [0.9, 0.9, 0.0], "nesterov": [True, False, True]}),
    ("sgd", {"momentum": [0.9, 0.9, 0.5], "dampening": [0.1, 0.5, 0.9]}),
    ("adam", {}),
    ("adam", {"betas": BETAS}),
    ("adamw", {}),
    ("rmsprop", {}),
    ("rmsprop", {"momentum": [0.0, 0.9, 0.5], "alpha": 0.9}),
    ("nadam", {}),
    ("nadam", {"betas": BETAS, "momentum_decay": [0.0, 0.004, 0.5]}),
    ("radam", {}),
    ("radam", {"betas": BETAS}),
    ("adagrad", {}),
    ("adagrad", {"lr_decay": [0.0, 0.1, 1.0], "initial_accumulator_value": [0.5, 0.0, 0.1]}),
    ("lion", {}),
    ("lion", {"betas": BETAS}),
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
    rule = optim.rule_of(slots[0], weight_decay > 0)
    names = rule.hyper(slots[0])
    hyper = {
        key: torch.tensor([rule.hyper(c)[key] for c in slots], dtype=torch.float64) for key in names
    }
    hyper["weight_decay"] = torch.full((3,), weight_decay, dtype=torch.float64)
    moments = {key: [torch.zeros_like(p) for p in ours] for key in rule.moments}
    lr = torch.tensor(LR, dtype=torch.float64)
    close = {"rtol": 1e-10, "atol": 1e-12}
    if name == "nadam":  # torch keeps its product of momenta in float32
        close = {"rtol": 1e-6, "atol": 1e-8}
    for step in range(1, 51):
        grads = [torch.randn(p.shape, generator=generator, dtype=torch.float64) for p in ours]
        for slot in range(3):
            for parameter, grad in zip(reference[slot], grads, strict=True):
                parameter.grad = grad[slot].clone()
            torch_optimizers[slot].step()
        rule.update(ours, grads, moments, hyper, lr, torch.full((3,), step))
        for slot in range(3):
            for mine, other in zip(ours, reference[slot], strict=True):
                torch.testing.assert_close(mine[slot], other.detach(), **close)


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
    batch = schema.Batch(size=128, accumulate=2, lr_scaling=scaling, base_size=64)
    assert optim.scaled_lr(configs("sgd")[0], batch) == pytest.approx(0.1 * factor)


def test_every_optimizer_of_the_schema_has_a_rule():
    assert optim.RULES.keys() == schema.OPTIONS["optimizer"].keys()


# --- Muon: torch's computes in bfloat16, the formula here in float64 ------------------------------


def orthogonal(g):
    """Keller Jordan's iteration, from his page."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = g.T if g.shape[0] > g.shape[1] else g
    x = x / (x.norm() + 1e-7)
    for _ in range(5):
        first = x @ x.T
        x = a * x + (b * first + c * first @ first) @ x
    return x.T if g.shape[0] > g.shape[1] else x


class Muon(torch.optim.Optimizer):
    def __init__(self, params, lr, momentum, nesterov, weight_decay):
        given = {"lr": lr, "momentum": momentum, "nesterov": nesterov}
        super().__init__(params, given | {"weight_decay": weight_decay})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                b = self.state[p].setdefault("b", torch.zeros_like(p))
                b.lerp_(p.grad, 1 - group["momentum"])
                g = p.grad.lerp(b, group["momentum"]) if group["nesterov"] else b
                g = g.reshape(len(g), -1)
                rate = group["lr"] * 0.2 * max(g.shape) ** 0.5
                p *= 1 - group["lr"] * group["weight_decay"]
                p -= rate * orthogonal(g).view_as(p)


def muon_net():
    layers = [nn.Conv2d(1, 3, 2), nn.Flatten(), nn.Linear(12, 5), nn.Tanh(), nn.Linear(5, 4)]
    return nn.Sequential(nn.BatchNorm2d(1), *layers).double()


MATRICES = {"1.weight", "3.weight"}  # not the output layer's


@pytest.mark.parametrize("weight_decay", [0.0, 0.05])
def test_muon_takes_hidden_matrices_and_adamw_the_rest(weight_decay):
    torch.manual_seed(0)
    slots = configs("muon", momentum=[0.95, 0.9, 0.0], nesterov=[True, False, True], betas=BETAS)
    nets = [muon_net() for _ in slots]
    names = [name for name, _ in nets[0].named_parameters()]
    ours = [torch.stack([dict(n.named_parameters())[k].detach() for n in nets]) for k in names]
    pairs = []
    for config, net in zip(slots, nets, strict=True):
        named = dict(net.named_parameters())
        common = {"lr": config.lr, "weight_decay": weight_decay}
        given = {"momentum": config.momentum, "nesterov": config.nesterov, **common}
        others = [named[name] for name in names if name not in MATRICES]
        adamw = torch.optim.AdamW(others, betas=config.betas, eps=config.eps, **common)
        pairs.append((Muon([named[name] for name in names if name in MATRICES], **given), adamw))
    rule = optim.rule_of(slots[0], weight_decay > 0).suited(
        nets[0], dict(nets[0].named_parameters())
    )
    hyper = {
        key: torch.tensor([rule.hyper(c)[key] for c in slots], dtype=torch.float64)
        for key in rule.hyper(slots[0])
    }
    hyper["weight_decay"] = torch.full((3,), weight_decay, dtype=torch.float64)
    moments = {key: [torch.zeros_like(p) for p in ours] for key in rule.moments}
    lr = torch.tensor(LR, dtype=torch.float64)
    for step in range(1, 11):
        grads = [torch.randn(p.shape, dtype=torch.float64) for p in ours]
        for slot, net in enumerate(nets):
            for parameter, grad in zip(net.parameters(), grads, strict=True):
                parameter.grad = grad[slot].clone()
            for optimizer in pairs[slot]:
                optimizer.step()
        rule.update(ours, grads, moments, hyper, lr, torch.full((3,), step))
        for slot, net in enumerate(nets):
            for mine, other in zip(ours, net.parameters(), strict=True):
                torch.testing.assert_close(mine[slot], other.detach(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(6, 4), (4, 6)])
def test_muon_is_torchs_but_for_its_bfloat16(shape):
    (config, *_) = configs("muon", momentum=0.95, nesterov=True)
    start, generator = torch.zeros(shape), torch.Generator().manual_seed(0)
    other = start.clone().requires_grad_()
    given = {"lr": 0.1, "weight_decay": 0.1, "momentum": 0.95, "adjust_lr_fn": "match_rms_adamw"}
    reference = torch.optim.Muon([other], **given)
    rule = replace(optim.rule_of(config, True), matrices=(0,))
    hyper = {k: torch.full((1,), v, dtype=torch.float64) for k, v in rule.hyper(config).items()}
    hyper["weight_decay"] = torch.full((1,), 0.1, dtype=torch.float64)
    mine, lr = start.unsqueeze(0).clone(), torch.tensor([0.1], dtype=torch.float64)
    moments = {name: [torch.zeros_like(mine)] for name in rule.moments}
    for step in range(1, 6):
        grad = torch.randn(shape, generator=generator)
        other.grad = grad.clone()
        reference.step()
        rule.update([mine], [grad.unsqueeze(0)], moments, hyper, lr, torch.tensor([step]))
    assert (mine[0] - other.detach()).norm() / other.detach().norm() < 0.05


def test_muon_leaves_embeddings_and_the_output_layer_to_adamw():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.norm = nn.Embedding(9, 4), nn.LayerNorm(4)
            self.hidden, self.out = nn.Linear(4, 4), nn.Linear(4, 2)

    rule = optim.RULES["muon"](False).suited(net := Net(), dict(net.named_parameters()))
    names = [name for name, _ in Net().named_parameters()]
    assert [names[place] for place in rule.matrices] == ["hidden.weight"]
    trained = ["out.weight", "hidden.weight"]  # a group that begins late comes first
    rule = optim.RULES["muon"](False).suited(net, dict.fromkeys(trained, torch.ones(1)))
    assert [trained[place] for place in rule.matrices] == ["hidden.weight"]
    rule = optim.RULES["muon"](False).suited(net, {"hidden.weight": net.hidden.weight})
    assert rule.matrices == (0,)  # the output layer is frozen
    linear = nn.Linear(4, 2)
    only = optim.RULES["muon"](False).suited(linear, dict(linear.named_parameters()))
    assert only.matrices == ()
