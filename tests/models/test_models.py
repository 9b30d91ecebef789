"""Every built-in model: shapes, names, batching over trials, and what is refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.func import functional_call, vmap

from sweepstack import models
from sweepstack.config.errors import InputError
from sweepstack.config.schema import Init
from sweepstack.models.layers import BatchNorm, batch_norms, dropouts
from sweepstack.models.networks import Mlp
from sweepstack.training import init

MODELS = {
    "mlp": ["model=mlp", "model.hidden=[12,9]", "model.activation=tanh"],
    "linear": ["model=mlp", "model.hidden=[]"],
    "convnet": ["model=convnet", "model.width=3", "model.kernel_size=3", "model.hidden=[11]"],
    "resnet": ["model=resnet", "model.width=3", "model.depth=4"],
}
PICTURE, CLASSES = (2, 8, 8), 4


@pytest.fixture(params=MODELS)
def build(request, spec):
    """Build one of the models, with further overrides."""

    def make(*overrides, seed=0):
        config = spec(*MODELS[request.param], *overrides).config
        return models.build(config, PICTURE, CLASSES, seed)

    make.name = request.param
    return make


DROPOUT, BATCH_NORM = "regularization.dropout=0.3", "regularization.batch_norm=true"


def test_outputs_have_one_row_per_sample(build):
    assert build()(torch.randn(5, *PICTURE)).shape == (5, CLASSES)


def test_names_of_the_state_do_not_depend_on_dropout_or_activation(build):
    names = list(build().state_dict())
    assert list(build(DROPOUT).state_dict()) == names
    if build.name != "linear":
        assert list(build("model.activation=selu").state_dict()) == names
        assert dropouts(build(DROPOUT))
    assert not dropouts(build())


def test_batch_norm_only_adds_its_own_names(build):
    off, on = build("regularization.batch_norm=false"), build(BATCH_NORM)
    norms = {name for name, _ in batch_norms(on)}
    added = {name.rpartition(".")[0] for name in set(on.state_dict()) - set(off.state_dict())}
    assert added == norms
    assert bool(norms) == (build.name != "linear")
    assert not batch_norms(off)
    assert bool(batch_norms(build())) == (build.name == "resnet")  # auto


def _loss(module, tensors, keys, p, x):
    """One trial's loss and new running statistics."""
    for index, (name, _) in enumerate(dropouts(module)):
        tensors = {**tensors, f"{name}.key": keys[index], f"{name}.p": p}
    loss = (functional_call(module, tensors, (x,)) ** 2).mean()
    return loss, [layer.updated for _, layer in batch_norms(module)]


def test_a_stack_trains_each_trial_as_if_alone(build):
    """Losses, gradients and running statistics under vmap against a loop, in float64."""
    module, slots = build(DROPOUT, BATCH_NORM).double(), 3
    drawn = [
        init.draw(
            module, Init(scheme="he", gain=None, fan=None, linear=None, conv=None), "relu", seed
        )
        for seed in range(slots)
    ]
    params = {
        name: torch.stack([row[name].double() for row in drawn]).requires_grad_()
        for name in drawn[0]
    }
    buffers = {
        name: torch.stack([buffer + slot for slot in range(slots)])
        for name, buffer in module.named_buffers()
        if "running" in name
    }
    keys = torch.arange(slots * 8).view(slots, 8)
    p = torch.tensor([0.1, 0.4, 0.7])
    x = torch.randn(slots, 6, *PICTURE, dtype=torch.float64)

    def run(tensors, keys, p, x):
        return _loss(module, tensors, keys, p, x)

    losses, updated = vmap(run)({**params, **buffers}, keys, p, x)
    grads = torch.autograd.grad(losses.sum(), list(params.values()))
    for slot in range(slots):
        own = {name: value[slot].detach().requires_grad_() for name, value in params.items()}
        statistics = {name: value[slot] for name, value in buffers.items()}
        loss, alone = run({**own, **statistics}, keys[slot], p[slot], x[slot])
        torch.testing.assert_close(losses[slot], loss)
        expected = torch.autograd.grad(loss, list(own.values()))
        torch.testing.assert_close([grad[slot] for grad in grads], list(expected))
        mine = [(mean[slot], var[slot]) for mean, var in updated]
        torch.testing.assert_close(mine, alone)


def test_the_constructor_draws_from_the_seed_and_leaves_the_process_alone(build):
    before = torch.get_rng_state()
    first, again, other = (build(seed=seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


# --- the models themselves ------------------------------------------------------------------------


def test_mlp_is_linear_norm_activation_dropout():
    module = Mlp((2, 3), 1, (5, 4), "sigmoid", dropout=False, batch_norm=True)
    h, o = module.hidden, module.output
    chain = nn.Sequential(
        *(nn.Flatten(), h[0], nn.BatchNorm1d(5), nn.Sigmoid()),
        *(h[1], nn.BatchNorm1d(4), nn.Sigmoid(), o),
    )
    x = torch.randn(7, 2, 3)
    torch.testing.assert_close(module(x), chain(x))
    assert module(x).shape == (7, 1)


def test_mlp_without_hidden_layers_is_a_linear_model():
    module = Mlp((3,), 2, (), "relu", dropout=True, batch_norm=True)
    assert list(module.state_dict()) == ["output.weight", "output.bias"]


def test_convnet_doubles_channels_and_halves_the_picture(spec):
    config = spec("model=convnet", "model.width=3", "model.depth=3", "model.kernel_size=5").config
    module = models.build(config, (1, 28, 20), 10)
    assert [conv.weight.shape[:2] for conv in module.convs] == [(3, 1), (6, 3), (12, 6)]
    assert module.head.hidden[0].in_features == 12 * 3 * 2


def test_convnet_takes_the_channels_of_each_convolution(spec):
    config = spec("model=convnet", "model.channels=[16,8]", "model.hidden=[]").config
    module = models.build(config, (1, 8, 8), 10)
    shapes = [tuple(conv.weight.shape) for conv in module.convs]
    assert shapes == [(16, 1, 5, 5), (8, 16, 5, 5)]
    assert module(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
    doubled = spec("model=convnet", "model.channels=[3,6]").config
    same = spec("model=convnet", "model.width=3").config
    x = torch.rand(2, 1, 8, 8)
    assert torch.equal(*(models.build(c, (1, 8, 8), 10)(x) for c in (doubled, same)))


@pytest.mark.parametrize(
    ("depth", "channels"),
    [(1, [4]), (2, [4, 8]), (3, [4, 8, 16]), (5, [4, 4, 8, 8, 16])],
)
def test_resnet_spreads_its_blocks_over_stages(spec, depth, channels):
    module = models.build(
        spec("model=resnet", "model.width=4", f"model.depth={depth}").config, (3, 9, 9), 10
    )
    assert [block.conv2.out_channels for block in module.blocks] == channels
    starts = [i for i in range(1, depth) if channels[i] != channels[i - 1]]
    assert [i for i, block in enumerate(module.blocks) if block.conv1.stride == (2, 2)] == starts
    with_shortcut = [i for i, b in enumerate(module.blocks) if isinstance(b.shortcut, nn.Conv2d)]
    assert with_shortcut == starts


def test_a_residual_block_with_zero_convolutions_passes_its_input(spec):
    config = spec("model=resnet", "model.depth=1", "regularization.batch_norm=false").config
    block = models.build(config, (1, 8, 8), 2).blocks[0]
    for parameter in block.parameters():
        nn.init.zeros_(parameter)
    x = torch.rand(2, 16, 8, 8)
    assert torch.equal(block(x), x)


def test_resnet_convolutions_have_biases_only_without_batch_norm(spec):
    for on in (True, False):
        config = spec("model=resnet", f"regularization.batch_norm={on}").config
        module = models.build(config, (1, 8, 8), 2)
        convs = [layer for layer in module.modules() if isinstance(layer, nn.Conv2d)]
        assert all((conv.bias is None) == on for conv in convs)
        assert any(isinstance(layer, BatchNorm) for layer in module.modules()) == on


# --- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "shape", "said"),
    [
        (
            ["model=convnet", "model.depth=5"],
            (1, 8, 8),
            ["model.depth must be <= 3 for pictures of 8x8, got 5"],
        ),
        (
            ["model=convnet", "model.channels=[4,4,4,4]"],
            (1, 8, 8),
            ["model.channels must have <= 3 numbers for pictures of 8x8, got 4"],
        ),
        (
            ["model=convnet", "model.channels=[]"],
            (1, 8, 8),
            ["model.channels must have at least one number, or be null, got []"],
        ),
        (
            ["model=convnet", "model.kernel_size=4", "model.depth=4"],
            (1, 32, 10),
            [
                "model.kernel_size must be odd, got 4",
                "model.depth must be <= 3 for pictures of 32x10, got 4",
            ],
        ),
        (
            ["model=convnet"],
            (7,),
            [
                "model=convnet needs pictures (channels, height, width), got samples of shape "
                "(7,); model=mlp takes any shape"
            ],
        ),
        (
            ["model=resnet"],
            (7,),
            [
                "model=resnet needs pictures (channels, height, width), got samples of shape "
                "(7,); model=mlp takes any shape"
            ],
        ),
    ],
)
def test_a_model_that_does_not_fit_the_data_is_refused(spec, overrides, shape, said):
    with pytest.raises(InputError) as caught:
        models.build(spec(*overrides).config, shape, 10)
    assert caught.value.mistakes == said


def test_the_deepest_convnet_allowed_runs(spec):
    module = models.build(spec("model=convnet", "model.depth=3").config, (1, 8, 15), 10)
    assert module(torch.randn(2, 1, 8, 15)).shape == (2, 10)
