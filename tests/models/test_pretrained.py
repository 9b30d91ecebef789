"""Models of torchvision and of a hub repository, with their own weights."""

from __future__ import annotations

import pytest
import torch
import torchvision
from engine_support import one, save
from support import make_spec
from torch import nn

from sweepstack import models
from sweepstack.config.errors import EnvironmentFault, InputError
from sweepstack.config.schema import TorchvisionModel
from sweepstack.engine.program import Program
from sweepstack.models import layers, pretrained
from sweepstack.runs import prediction

HUB = """
import torch
from torch import nn

def net(width=8, pretrained=False):
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.Tanh(), nn.Linear(width, 3))
    if pretrained:
        nn.init.constant_(model[1].weight, 0.25)
    return model
"""
ARCHES = (
    *("resnet18", "vgg11", "mobilenet_v2", "mobilenet_v3_small", "efficientnet_b0", "densenet121"),
    *("convnext_tiny", "vit_b_16", "squeezenet1_0", "googlenet", "inception_v3", "alexnet"),
    *("shufflenet_v2_x1_0", "mnasnet0_5", "swin_t", "maxvit_t"),
)


@pytest.mark.parametrize("arch", ARCHES)
def test_the_last_layer_of_a_model_of_torchvision_gives_the_classes(arch):
    size = 224 if arch in ("vit_b_16", "maxvit_t", "swin_t") else 64
    with torch.device("meta"):
        module = models.pretrained.build(of(arch), (3, size, size), 7)
    last = module.get_submodule(pretrained.head(module))
    assert (last.out_features if isinstance(last, nn.Linear) else last.out_channels) == 7
    reference = (
        torchvision.models.get_model(arch, weights=None, init_weights=False)
        if arch in ("googlenet", "inception_v3")
        else None
    )
    assert reference is None or pretrained.head(module) == "fc"


def of(arch, weights=None, **settings):
    return TorchvisionModel(name="torchvision", arch=arch, weights=weights, **settings)


def test_weights_of_torchvision_give_its_own_outputs(tmp_path):
    torch.manual_seed(0)
    own = torchvision.models.resnet18(num_classes=9).eval()
    torch.save(own.state_dict(), tmp_path / "w.pt")
    x = torch.rand(2, 1, 32, 32)
    for channels in (3, 1):
        module = pretrained.build(of("resnet18"), (channels, 32, 32), 4).eval()
        loaded = pretrained.load(module, of("resnet18", f"{tmp_path}/w.pt"), "abcd")
        assert module.state_dict().keys() - loaded == {"fc.weight", "fc.bias"}
        module.fc = own.fc
        with torch.no_grad():
            torch.testing.assert_close(
                module(x.expand(2, channels, 32, 32)), own(x.expand(2, 3, 32, 32))
            )


def test_pictures_come_as_named_weights_ask(monkeypatch):
    data = make_spec().config.data
    asked = pretrained.as_weights_ask(of("resnet18", "DEFAULT"), data, 3)
    assert (asked.image_size, asked.normalization) == (224, "fixed")
    assert asked.mean == (0.485, 0.456, 0.406)
    gray = pretrained.as_weights_ask(of("resnet18", "IMAGENET1K_V1"), data, 1)
    assert gray.mean == (pytest.approx(0.449),)
    assert pretrained.as_weights_ask(of("resnet18", "w.pt"), data, 3) is data
    own = torchvision.models.mobilenet_v3_small().state_dict()
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", lambda *a, **k: own)
    words = (
        "model.arch=mobilenet_v3_small",
        "model.weights=DEFAULT",
        "data.image_size=16",
        "batch.size=8",
    )
    program = Program(
        make_spec("model=torchvision", *words, "model.freeze=backbone", "data.subset=40")
    )
    assert program.seen.input_shape == (1, 16, 16)
    assert float(program.inputs["shift"]) == pytest.approx(0.449)
    assert program.data.input_shape == (1024,)  # up to the first dropout


def test_stochastic_depth_draws_from_the_trials_seed():
    depth = layers.adapt(nn.Sequential(torchvision.ops.StochasticDepth(0.5, "row")))
    assert len(layers.dropouts(depth)) == 1
    x = torch.ones(64, 3, 2, 2)
    first, again, other = (
        torch.func.functional_call(depth, {"0.key": torch.tensor(key)}, (x,)) for key in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert all(row.unique().numel() == 1 for row in first)
    assert set(first.unique().tolist()) == {0.0, 2.0}
    layers.restore(depth, 0.1)
    assert isinstance(depth[0], torchvision.ops.StochasticDepth)
    assert (depth[0].p, depth[0].mode) == (0.5, "row")


@pytest.fixture
def repo(tmp_path):
    (tmp_path / "repo").mkdir()
    (tmp_path / "repo/hubconf.py").write_text(HUB)
    return tmp_path / "repo"


def test_a_hub_entry_is_built_where_its_repository_is_trusted(repo, tmp_path):
    words = ("model=hub", f"model.repo={repo}", "model.entry=net", "+model.pretrained=true")
    with pytest.raises(InputError, match="must be named in trust, for its code is run"):
        Program(make_spec(*words))
    spec = make_spec(*words, f"trust=[{repo}]", "model.freeze=['1']", "training.max_steps=5")
    assert spec.config.model.arguments == '{"pretrained": true}'
    result = one(*words, f"trust=[{repo}]", "model.freeze=['1']", "training.max_steps=5")
    assert result.best_state["3.weight"].shape == (10, 8)
    assert (result.best_state["1.weight"] == 0.25).all()
    save(tmp_path / "run", result)
    with pytest.raises(InputError, match="must be named in trust"):
        prediction.load(tmp_path / "run")
    model = prediction.load(tmp_path / "run", trust=[str(repo)])
    assert model(torch.rand(2, 1, 8, 8)).shape == (2, 10)
    with pytest.raises(
        InputError, match=r"must be a function of hubconf.py .*, got 'nat'; did you mean 'net'"
    ):
        Program(make_spec(*words, f"trust=[{repo}]", "model.entry=nat"))
    with pytest.raises(EnvironmentFault, match="there is no folder"):
        Program(make_spec(*words, f"model.repo={repo}s", f"trust=[{repo}s]"))
