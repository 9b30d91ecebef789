"""Transfer learning: weights of a file or a run, what is frozen or learns slower."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from engine_support import by_number, save, varied
from PIL import Image
from sklearn.datasets import load_digits
from support import make_spec
from torch import nn

from sweepstack.cli import preflight
from sweepstack.config.errors import EnvironmentFault, InputError
from sweepstack.data import streams
from sweepstack.engine.program import Program
from sweepstack.engine.train import Interrupted, train
from sweepstack.models import pretrained
from sweepstack.runs import prediction
from sweepstack.training.spec import Monitor

CONV = ("model=convnet", "model.width=8", "model.hidden=[32]", "batch.size=32")
RESNET = ("model=resnet", "model.width=8", "batch.size=32")
FROZEN = (*CONV, "model.freeze=backbone")


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


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "module._orig_mod."])
def test_prefixes_of_wrappers_are_no_part_of_a_name(prefix, tmp_path):
    """As DataParallel, torch.compile and Lightning write them."""
    words = ("model.hidden=[4]", f"model.weights={tmp_path}/w.pt")
    tensors = {
        name: torch.ones_like(t)
        for name, t in Program(make_spec(words[0])).module.state_dict().items()
    }
    saved = {prefix + name: tensor for name, tensor in tensors.items()}
    torch.save({"model_state_dict": saved, "epoch": 3}, tmp_path / "w.pt")
    spec = make_spec(*words)
    assert bool((Program.of(spec).initial(spec)["hidden.0.weight"] == 1).all())


@pytest.mark.parametrize("kind", ["nan", "overflow", "complex"])
def test_tensors_that_are_no_numbers_are_refused(kind, tmp_path):
    wrong = {
        "nan": lambda t: t * float("nan"),
        "overflow": lambda t: torch.full_like(t, 1e300, dtype=torch.float64),
        "complex": lambda t: t.to(torch.complex64),
    }[kind]
    state = Program(make_spec("model.hidden=[4]")).module.state_dict()
    torch.save({name: wrong(tensor) for name, tensor in state.items()}, tmp_path / "w.pt")
    with pytest.raises(InputError, match=r"'hidden\.0\.weight' must be real and finite"):
        Program(make_spec("model.hidden=[4]", f"model.weights={tmp_path}/w.pt"))


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
