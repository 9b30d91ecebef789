"""Transfer learning: weights of a file or a run, what is frozen, whose features are kept."""

from __future__ import annotations

import copy
import dataclasses
import json
import logging

import numpy as np
import pytest
import torch
import torchvision
from engine_support import by_number, varied
from PIL import Image
from sklearn.datasets import load_digits
from support import make_spec
from torch import nn

from sweepstack import models
from sweepstack.cli import preflight
from sweepstack.config import reading
from sweepstack.config.errors import EnvironmentFault, InputError
from sweepstack.config.schema import TorchvisionModel
from sweepstack.data import streams
from sweepstack.engine.program import Program
from sweepstack.engine.train import Interrupted, train
from sweepstack.models import features, layers, pretrained
from sweepstack.runs import prediction
from sweepstack.runs.folder import write_model
from sweepstack.runs.rerun.restore import as_typed
from sweepstack.training.spec import Monitor

CONV = ("model=convnet", "model.width=8", "model.hidden=[32]", "batch.size=32")
RESNET = ("model=resnet", "model.width=8", "batch.size=32")
FROZEN = (*CONV, "model.freeze=backbone")
HUB = """
import torch
from torch import nn

def net(width=8, pretrained=False):
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.Tanh(), nn.Linear(width, 3))
    if pretrained:
        nn.init.constant_(model[1].weight, 0.25)
    return model
"""


@pytest.fixture(scope="module")
def halves(tmp_path_factory):
    """Digits as pictures: 0 to 4 in one folder, 5 to 9 in the other, and a convnet trained on the
    first."""
    place = tmp_path_factory.mktemp("halves")
    digits = load_digits()
    for number, (picture, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        split = "val" if number % 5 == 0 else "train"
        folder = place / ("low" if label < 5 else "high") / split / str(label)
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray((picture * 15.9).astype("uint8")).save(folder / f"{number}.png")
    result = run(*CONV, *pictures(place / "low"), "training.max_steps=150", "optimizer.lr=0.003")
    assert result.metrics["val_accuracy"] > 0.95
    save(place / "run", result)
    save(place / "resnet", run(*RESNET, *pictures(place / "low"), "training.max_steps=100"))
    return place


def pictures(folder):
    return ("data=image_folder", f"data.root={folder}")


def run(*words, **settings):
    (result,) = train([make_spec(*words, **settings)])
    assert result.error is None
    return result


def save(folder, result):
    folder.mkdir()
    write_model(folder, result)


# --- what must hold ---------------------------------------------------------------------------


def test_a_transferred_trunk_gives_a_better_head_than_a_random_one(halves):
    words = (*RESNET, *pictures(halves / "high"), "training.max_steps=20", "optimizer.lr=0.03")
    words += ("model.freeze=backbone",)
    base = make_spec(*words).config
    known = make_spec(*words, f"model.weights={halves / 'resnet'}").config
    specs = [
        varied(config, 5 * group + seed, training={"seed": seed})
        for group, config in enumerate((base, known))
        for seed in range(5)
    ]
    found = by_number(train(specs, width=5))
    random, transferred = ([found[5 * k + n].value for n in range(5)] for k in (0, 1))
    print(random, transferred)
    assert all(mine > other for mine, other in zip(transferred, random, strict=True))
    assert sum(transferred) / 5 > sum(random) / 5 + 0.1
    trained = torch.load(halves / "resnet/best.pt", weights_only=True)["model"]
    for number in range(5, 10):
        state = found[number].best_state
        assert state.keys() == trained.keys()
        equal = {name for name in state if torch.equal(state[name], trained[name])}
        assert equal == {name for name in state if not name.startswith("output.")}


@pytest.mark.slow
def test_vgg19_with_five_classes_takes_a_step_on_small_pictures(halves):
    result = run(
        *("model=torchvision", "model.arch=vgg19", "data.image_size=32", "data.subset=16"),
        *(*pictures(halves / "high"), "batch.size=4", "training.max_steps=1", "optimizer=sgd"),
        *("training.eval_every=1", "optimizer.lr=0.001"),
    )
    assert result.steps == 1
    assert result.best_state["classifier.6.weight"].shape == (5, 4096)


# --- continuing, files ---------------------------------------------------------------------------


def test_a_run_on_the_same_classes_is_continued(halves):
    words = (*CONV, *pictures(halves / "low"), f"model.weights={halves / 'run'}")
    spec = make_spec(*words, "init=zeros")
    program, saved = Program.of(spec), torch.load(halves / "run/best.pt", weights_only=True)
    initial = program.initial(spec)
    assert program.init_summary.startswith("init draws nothing; kept as loaded: ")
    assert all(torch.equal(initial[name], tensor) for name, tensor in saved["model"].items())
    other = Program.of(make_spec(*words[:-3], *pictures(halves / "high"), words[-1], "init=zeros"))
    assert not other.initial(other.spec)["head.output.weight"].any()


@pytest.mark.parametrize("nested", [False, True])
def test_a_file_of_tensors_is_read(halves, tmp_path, nested):
    tensors = torch.load(halves / "run/best.pt", weights_only=True)["model"]
    torch.save({"state_dict": tensors, "epoch": 3} if nested else tensors, tmp_path / "w.pt")
    spec = make_spec(*CONV, *pictures(halves / "low"), f"model.weights={tmp_path}/w.pt", "init=he")
    initial = Program.of(spec).initial(spec)
    equal = {n for n in tensors if torch.equal(initial[n], tensors[n])}
    assert equal == {n for n in tensors if not n.startswith("head.output.")}


def test_safetensors_are_read_or_refused(halves, tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    tensors = torch.load(halves / "run/best.pt", weights_only=True)["model"]
    safetensors.save_file(tensors, tmp_path / "w.safetensors")
    found = pretrained.read(f"{tmp_path}/w.safetensors", None)
    assert all(torch.equal(found.tensors[name], tensors[name]) for name in tensors)


class Code:
    def __reduce__(self):
        return (print, ("code of a stranger",))


def test_weights_that_cannot_be_used(halves, tmp_path, monkeypatch, capsys):
    def refused(kind, *words):
        with pytest.raises(kind) as caught:
            Program(make_spec(*words))
        (line,) = str(caught.value).splitlines()
        return line

    torch.save({"x": Code()}, tmp_path / "code.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    (tmp_path / "text.pt").write_text("weights")
    (tmp_path / "w.safetensors").write_text("weights")
    monkeypatch.setitem(__import__("sys").modules, "safetensors.torch", None)
    for name, said in {
        "code.pt": "is no file of tensors (torch.load with weights_only=True)",
        "text.pt": "is no file of tensors",
        "list.pt": "must hold tensors by name, a state_dict",
        "w.safetensors": "needs safetensors: pip install 'sweepstack[safetensors]'",
        "none.pt": "there is no file",
    }.items():
        assert said in refused(EnvironmentFault, f"model.weights={tmp_path / name}")
    assert "code of a stranger" not in capsys.readouterr().out
    assert "only model=torchvision has DEFAULT" in refused(
        EnvironmentFault, "model.weights=DEFAULT"
    )
    assert refused(InputError, f"model.weights={halves / 'run'}").startswith(
        f"model.weights={halves / 'run'} does not fit model mlp: it lacks 'hidden.0.weight'"
    )
    line = refused(InputError, *CONV[:1], "model.width=4", f"model.weights={halves / 'run'}")
    assert "'convs.0.weight' is (8, 1, 5, 5) there, (4, 1, 5, 5) here" in line
    assert refused(InputError, "model=torchvision", "model.arch=resnet81").endswith(
        "got 'resnet81'; did you mean 'resnet18'?"
    )
    assert "needs pictures" in refused(InputError, "model=torchvision", "data=quadratic")
    assert "indivisible by patch size" in refused(
        InputError, "model=torchvision", "model.arch=vit_b_16", "data.image_size=30"
    )
    line = refused(InputError, "model.freeze=[hiden]")
    assert line.endswith("got 'hiden'; did you mean 'hidden'?")
    assert "at least one parameter to train" in refused(InputError, "model.freeze=['*']")
    assert "frozen layers are drawn from each trial's seed" in refused(
        InputError, "model.freeze=backbone", "model.cache_features=true"
    )
    assert "cutout changes the samples" in refused(
        InputError,
        *("model.freeze=backbone", "model.cache_features=true"),
        "regularization.cutout=1",
    )


def test_without_a_network_default_weights_are_one_line(monkeypatch):
    def fail(*arguments, **settings):
        raise OSError("no network")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", fail)
    with pytest.raises(EnvironmentFault, match=r"cannot be downloaded.*no network.*FILE"):
        Program(make_spec("model=torchvision", "model.weights=DEFAULT", "data.image_size=8"))


# --- torchvision and hub --------------------------------------------------------------------------

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
    result = run(*words, f"trust=[{repo}]", "model.freeze=['1']", "training.max_steps=5")
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


def test_a_custom_model_may_have_an_argument_called_name():
    words = ("model=custom", "model._target_=torchvision.models.get_model", "+model.name=resnet18")
    spec = make_spec(*words, "trust=[torchvision]")
    assert json.loads(spec.config.model.arguments) == {"name": "resnet18"}
    again = reading.read_plain(as_typed(dataclasses.asdict(spec.config)))
    assert again.model == spec.config.model
    with pytest.raises(InputError, match=r"did you mean model=torchvision model\.arch=NAME"):
        Program(make_spec(*words))


# --- freezing and groups --------------------------------------------------------------------------


def reference(spec, steps, factor, unfreeze_at):
    """The steps of a trial by a plain loop with torch.optim."""
    program = Program.of(spec)
    module = copy.deepcopy(program.whole)
    module.load_state_dict(program.initial(spec), strict=False)
    for parameter in module.parameters():
        parameter.requires_grad_(True)
    last = (
        set(module.head.output.parameters())
        if hasattr(module, "head")
        else set(module.output.parameters())
    )
    trunk = [p for p in module.parameters() if p not in last]
    lr = spec.config.optimizer.lr
    kinds = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}
    groups = [{"params": trunk, "lr": lr * factor}, {"params": list(last), "lr": lr}]
    more = {"momentum": 0.9} if spec.config.optimizer.name == "sgd" else {}
    decay = spec.config.regularization.weight_decay
    optimizer = kinds[spec.config.optimizer.name](groups, weight_decay=decay, **more)
    order = streams.permutation(
        streams.derive(program.order_key(spec), 0), len(program.data.train), program.order_device
    )
    size = program.batch_size
    for step in range(steps):
        x, y = program.seen.train.gather(order[step * size : (step + 1) * size])
        optimizer.zero_grad(set_to_none=True)
        nn.functional.cross_entropy(module(x), y).backward()
        if step < unfreeze_at:
            for parameter in trunk:
                parameter.grad = None
        if spec.config.regularization.clip_norm:
            given = [p for p in module.parameters() if p.grad is not None]
            nn.utils.clip_grad_norm_(given, spec.config.regularization.clip_norm)
        optimizer.step()
    return module.state_dict()


@pytest.mark.parametrize(
    "words",
    [
        ("optimizer=adam",),
        ("optimizer=adamw", "regularization.weight_decay=0.1", "regularization.clip_norm=0.3"),
        ("optimizer=sgd", "optimizer.momentum=0.9", "optimizer.lr=0.05"),
        ("optimizer=sgd", "optimizer.momentum=0.9", "regularization.weight_decay=0.1"),
    ],
)
@pytest.mark.parametrize(("factor", "late"), [(0.1, 0), (1.0, 7), (0.1, 7)])
def test_backbone_lr_and_unfreezing_are_those_of_torch_optim(words, factor, late):
    base = ("model.hidden=[16]", "batch.size=32", *words, "training.eval_every=12")
    base += (f"optimizer.backbone_lr_factor={factor}", "training.max_steps=12")
    base += (f"training.unfreeze_at={late}", "model.freeze=backbone") if late else ()
    spec = make_spec(*base)
    others = [varied(spec.config, n, training={"seed": n}) for n in range(3)]
    found = by_number(train(others, width=3))
    for one in (run(*base), found[0]):
        wanted = reference(spec, 12, factor, late)
        for name, value in one.best_state.items():
            torch.testing.assert_close(value, wanted[name], rtol=2e-3, atol=2e-5)


def test_moments_are_untouched_before_unfreezing_and_all_resumes(tmp_path):
    words = ("model.hidden=[16]", "regularization.weight_decay=0.1", "optimizer=adamw")
    words += ("model.freeze=backbone", "training.unfreeze_at=8", "training.max_steps=16")
    words += ("training.eval_every=4", "regularization.l1=0.01", "training.checkpoint_every=4")

    class Stop(Monitor):
        def stepped(self, steps, specs):
            self.taken = getattr(self, "taken", 0) + steps

        def interrupted(self):
            return 130 if self.taken >= self.at else None

    whole = run(*words, folder=tmp_path / "whole")
    for at in (4, 12):
        spec, stop = make_spec(*words, folder=tmp_path / str(at)), Stop()
        stop.at = at
        with pytest.raises(Exception, match="interrupted"):
            list(train([spec], stop))
        (saved,) = (tmp_path / str(at)).glob(f"checkpoints/*{at}.pt")
        tensors = torch.load(saved, weights_only=True)["tensors"]
        started = Program.of(spec).initial(spec)
        moved = at > 8
        for name in ("hidden.0.weight", "hidden.0.bias"):
            assert torch.equal(tensors["params"][name], started[name]) != moved
            assert bool(tensors["moment.first"][name].any()) == moved
        (resumed,) = train([spec])
        for row, other in zip(resumed.history, whole.history, strict=True):
            assert row == pytest.approx(other, rel=1e-6)


def test_frozen_batch_norms_stay(halves, tmp_path):
    words = ("model=resnet", "model.width=4", "data.subset=200", "training.max_steps=6")
    first = run(*words)
    save(tmp_path / "run", first)
    words += (f"model.weights={tmp_path / 'run'}", "model.freeze=[stem,stem_norm,'blocks.0.*']")
    second = run(*words, "optimizer=adamw", "regularization.weight_decay=0.5")
    for name, tensor in second.best_state.items():
        held = name.startswith(("stem", "blocks.0."))
        assert torch.equal(tensor, first.best_state[name]) == held, name
    late = run(*words, "training.unfreeze_at=2")
    for name, tensor in late.best_state.items():
        statistics = name.startswith(("stem", "blocks.0.")) and "running" in name
        assert torch.equal(tensor, first.best_state[name]) == statistics, name


# --- features that are kept -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        CONV,
        (*CONV, "regularization.dropout=0.3"),
        ("model=resnet", "model.width=4"),
        ("model.hidden=[16,16]", "regularization.batch_norm=true", "regularization.dropout=0.3"),
    ],
)
def test_kept_features_give_the_numbers_of_the_whole_model(words, tmp_path):
    words = (*words, "training.max_steps=8", "training.eval_every=4", "data.subset=200")
    save(tmp_path / "run", run(*words))
    frozen = "[convs,head.hidden]" if "model=convnet" in words else "backbone"
    frozen = (f"model.freeze={frozen}", f"model.weights={tmp_path / 'run'}", "init=xavier")
    sides = []
    for cached in ("true", "false"):
        base = make_spec(*words, *frozen, f"model.cache_features={cached}").config
        specs = [
            varied(base, n, training={"seed": n}, optimizer={"lr": 0.01 / (1 + n)})
            for n in range(3)
        ]
        sides.append(by_number(train(specs, width=3)))
        alone = by_number(train(specs))
        for number, result in alone.items():
            for row, other in zip(result.history, sides[-1][number].history, strict=True):
                assert row == pytest.approx(other, rel=1e-3)
    kept, whole = (
        Program(make_spec(*words, *frozen, f"model.cache_features={c}")) for c in ("true", "false")
    )
    assert kept.data.input_shape != whole.data.input_shape == kept.seen.input_shape
    assert kept.inputs == whole.inputs or str(kept.inputs) == str(whole.inputs)
    for number, mine in sides[0].items():
        other = sides[1][number]
        for row, reference_row in zip(mine.history, other.history, strict=True):
            assert row == pytest.approx(reference_row, rel=1e-3)
        assert mine.best_state.keys() == other.best_state.keys()
        assert mine.num_parameters == other.num_parameters


def test_features_of_another_cut_are_not_taken_for_these(tmp_path):
    words = ("model.hidden=[8,8]", "data.subset=200", "batch.size=16")
    net = Program.of(make_spec(*words)).module
    torch.save({n: torch.rand(t.shape) - 0.5 for n, t in net.state_dict().items()}, tmp_path / "w")
    words += (f"model.weights={tmp_path / 'w'}", "model.freeze=backbone")
    for dropout in ("0", "0.3"):  # behind the first hidden layer, which is then the last fixed one
        program = Program(make_spec(*words, f"regularization.dropout={dropout}"))
        assert program.module is not program.whole
        with torch.no_grad():
            mine = program.module.eval()(next(program.sources["val"].chunks(9))[0])
            whole = program.whole.eval()(program.seen.val.gather(torch.arange(9))[0])
        torch.testing.assert_close(mine, whole, rtol=1e-4, atol=1e-5)


def test_no_trial_resumes_on_other_frozen_weights(tmp_path):
    words = ("data.subset=100", "model.hidden=[4]", "training.max_steps=4", "training.eval_every=2")
    net = Program.of(make_spec(*words)).module
    weights = (f"model.weights={tmp_path / 'w.pt'}", "model.freeze=backbone", "batch.size=8")
    spec = make_spec(*words, *weights, folder=tmp_path / "run")

    class Stopping(Monitor):
        def interrupted(self):
            return 130

    for number in range(2):
        torch.save({n: t + number for n, t in net.state_dict().items()}, tmp_path / "w.pt")
        if number == 0:
            with pytest.raises(Interrupted):
                list(train([spec], Stopping()))
    (result,) = train([spec])
    assert result.state == "failed"
    assert "another config or other data or weights" in str(result.error)


def test_files_that_change_are_read_again(tmp_path):
    words = ("data=arrays", f"data.train={tmp_path / 'a.npz'}", "model.hidden=[4]", "batch.size=8")
    weights = (f"model.weights={tmp_path / 'w.pt'}", "model.freeze=backbone")

    def written(seed):
        torch.manual_seed(seed)
        x = torch.rand(60, 5)
        np.savez(tmp_path / "a.npz", x=x, y=x[:, 0] > 0.5)
        net = Program.of(make_spec(*words)).module
        torch.save({name: torch.rand(t.shape) for name, t in net.state_dict().items()}, file)

    def kept():
        program = Program.of(make_spec(*words, *weights))
        return program.shared["hidden.0.weight"], next(program.sources["train"].chunks(9))[0]

    file = tmp_path / "w.pt"
    written(0)
    before = kept()
    saved = file.read_bytes()
    written(1)
    file.write_bytes(saved)  # other data, the same weights
    others = kept()
    written(1)
    after = kept()
    assert torch.equal(before[0], others[0])
    assert not torch.equal(before[1], others[1])
    assert not torch.equal(others[0], after[0])
    assert not torch.equal(others[1], after[1])


def test_what_cannot_be_kept_trains_all_the_same(caplog, tmp_path):
    save(tmp_path / "run", run("training.max_steps=2"))
    words = (f"model.weights={tmp_path / 'run'}", "model.freeze=backbone", "training.max_steps=2")
    caplog.set_level(logging.INFO)
    run(*words, "regularization.cutout=2")
    assert "features of frozen layers are not kept: cutout changes the samples" in caplog.text
    with pytest.raises(features.Uncuttable, match="one layer"):
        features.cut(nn.Linear(2, 2), ["weight", "bias"])


def test_a_saved_model_needs_no_file_of_weights(halves, tmp_path):
    (tmp_path / "w.pt").write_bytes((halves / "run/best.pt").read_bytes())
    words = (*FROZEN, *pictures(halves / "low"), "training.max_steps=2", "training.eval_every=2")
    result = run(*words, f"model.weights={tmp_path / 'w.pt'}")
    save(tmp_path / "run", result)
    (tmp_path / "w.pt").unlink()
    loaded = prediction.load(tmp_path / "run").model.state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in result.best_state.items())


def test_no_file_of_weights_is_read_because_a_manifest_says_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["model.weights=w.pt", "training.max_steps=3"]
    (tmp_path / "run").mkdir()
    (tmp_path / "run/manifest.json").write_text(json.dumps({"arguments": words}))
    with pytest.raises(InputError, match=r"was started with 'model\.weights=w\.pt': give it again"):
        preflight.resumed(["--resume", "run"])
    assert "training.max_steps=3" in preflight.resumed(["--resume", "run", "model.weights=w.pt"])
    words = ["logger=[mlflow,csv]", "logger.tracking_uri=http://127.0.0.1:9"]
    (tmp_path / "run/manifest.json").write_text(json.dumps({"arguments": words}))
    with pytest.raises(InputError, match=r"'logger\.tracking_uri=http://127\.0\.0\.1:9': give it"):
        preflight.resumed(["--resume", "run"])
    assert words[0] in preflight.resumed(["--resume", "run", "logger.tracking_uri=null"])
