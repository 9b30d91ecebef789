"""A trained model that is loaded: what it takes, and its dropout layers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from support import make_spec
from torch import nn

from sweepstack.config.errors import InputError
from sweepstack.engine.train import train
from sweepstack.runs import prediction as saved
from sweepstack.runs.folder import write_model

SHORT = ("training.max_steps=20", "training.eval_every=10", "batch.size=32")


def trained(folder, *words):
    (result,) = train([make_spec(*SHORT, *words)])
    write_model(folder, result)
    return saved.load(folder)


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("digits"))


@pytest.mark.parametrize(
    ("model", "kinds"),
    [
        ("mlp", {nn.Dropout}),
        ("convnet", {nn.Dropout, nn.Dropout2d}),
        ("resnet", {nn.Dropout2d}),
    ],
)
def test_dropout_layers_in_training_mode_draw_anew_with_their_p(tmp_path, model, kinds):
    words = (f"model={model}", "regularization.dropout=0.25", "training.max_steps=2")
    net, x = trained(tmp_path, *words), torch.rand(4, 1, 8, 8)
    before = net(x)
    found = [layer for layer in net.modules() if isinstance(layer, nn.Dropout | nn.Dropout2d)]
    assert {type(layer) for layer in found} == kinds
    assert {layer.p for layer in found} == {0.25}
    assert torch.equal(net(x), before)
    for layer in found:
        layer.train()
    torch.manual_seed(0)
    drawn = [net(x) for _ in range(20)]
    assert torch.stack(drawn).std(0).min() > 0
    torch.manual_seed(0)
    assert torch.equal(net(x), drawn[0])


def test_a_module_of_ones_own_gets_its_dropout_back(tmp_path):
    words = ("model=custom", "model._target_=frozen_support.Net", "trust=[frozen_support]")
    (result,) = train([make_spec(*SHORT, *words)])
    write_model(tmp_path, result)
    net = saved.load(tmp_path, trust=["frozen_support"])
    (layer,) = (layer for layer in net.modules() if isinstance(layer, nn.Dropout))
    assert layer.p == pytest.approx(0.2)
    layer.train()
    x = torch.rand(2, 1, 8, 8)
    assert not torch.equal(net(x), net(x))


def test_pictures_come_as_floats_whole_numbers_arrays_or_pil(digits):
    whole = torch.randint(0, 256, (3, 1, 8, 8), dtype=torch.uint8)
    wanted = digits(whole / 255)
    array = whole.numpy()
    others = (array.astype(">u2"), array[::-1].copy()[::-1], whole.to(torch.uint16))
    for same in (whole, whole.long(), array, array / 255, *others):
        torch.testing.assert_close(digits(same), wanted)
    for mode in ("L", "RGB"):
        picture = Image.fromarray(whole[0, 0].numpy()).convert(mode)
        torch.testing.assert_close(digits(picture), wanted[:1])


@pytest.mark.parametrize(
    ("x", "said"),
    [
        (torch.rand(8, 8), "the model takes samples (B, *shape) = (B, 1, 8, 8), got (8, 8)"),
        (torch.rand(1, 8, 8), "got (1, 8, 8)"),
        (torch.rand(2, 3, 8, 8), "got (2, 3, 8, 8)"),
        (torch.tensor(1.0), "got ()"),
        (np.zeros((8, 8, 1)), "got (8, 8, 1)"),
        (Image.new("L", (9, 8)), "got (1, 1, 8, 9)"),
        (Image.new("F", (8, 8)), "its pixels must have 8 bits a channel, got mode F"),
        (np.array(["a"]), "the model cannot read its input: "),
        ([[0.0]], "a tensor or NumPy array of real numbers, or a PIL image, got list"),
        (torch.zeros(1, 1, 8, 8, dtype=torch.complex64), "got torch.complex64"),
        (torch.full((1, 1, 8, 8), 256), "must be in 0..255, got 256..256"),
    ],
)
def test_what_a_model_cannot_take_is_one_line(digits, x, said):
    with pytest.raises(InputError) as caught:
        digits(x)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_whole_numbers_that_are_no_pictures_are_not_scaled(tmp_path):
    net = trained(tmp_path, "data=quadratic")
    torch.testing.assert_close(net(torch.tensor([[1]])), net(torch.tensor([[1.0]])))
