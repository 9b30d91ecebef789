"""The trust rule against targets that try to get out of the allowed packages."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import socket
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sweepstack.config import trust
from sweepstack.config.errors import InputError, one_line

OUTSIDE = r"must name a layer of torch\.nn, .* trust=\[\.\.\.\], got "
LEADS = r"must name a layer of .* leads to "


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package `heads` in `sys.path` that defines some things and imports others."""
    folder = tmp_path / "heads"
    (folder / "inner").mkdir(parents=True)
    (folder / "__init__.py").write_text(
        "import os\nfrom os import system\nfrom subprocess import Popen\n"
        "import heads.net as alias\n"
        "from torch.nn import Linear\nvalue = 3\ncall = lambda: None\n"
        "class Net:\n    class Small: pass\n    shell = os\n"
        "def __getattr__(name):\n"
        "    if name == 'lazy': raise RuntimeError('needs another package')\n"
        "    raise AttributeError(name)\n"
    )
    (folder / "net.py").write_text("class Deep: pass\ndef make(): pass\n")
    (folder / "inner" / "__init__.py").write_text("")
    (folder / "raises.py").write_text("raise ValueError('not today')\n")
    (folder / "missing.py").write_text("import nowhere_to_be_found\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield "heads"
    for name in [name for name in sys.modules if name.split(".")[0] == "heads"]:
        del sys.modules[name]


@pytest.mark.parametrize(
    "target",
    [
        "torch.nn.Linear",
        "torch.nn.modules.linear.Linear",
        "torchvision.models.resnet18",
        "torchvision.models.resnet.resnet18",
        "sweepstack.models.networks.Mlp",
    ],
)
def test_the_table_is_found(target):
    assert trust.locate(target).__name__ == target.rpartition(".")[2]


@pytest.mark.parametrize(
    "name", ["Net", "net.Deep", "net.make", "alias.Deep", "Net.Small", "Linear"]
)
def test_a_trusted_package_is_found(package, name):
    assert trust.locate(f"heads.{name}", ["heads"]).__qualname__ == name.removeprefix(
        "net."
    ).removeprefix("alias.")


@pytest.mark.parametrize(
    "target",
    [
        *("", ".", "os", "os.system", "builtins.eval", "subprocess.Popen", "heads.Net"),
        *(
            "torch",
            "torch.load",
            "torch.hub.load",
            "torch.nnx.Linear",
            "torch.nn_x",
            "sweepstackx.Net",
        ),
        *("optuna.storages.RDBStorage", "optuna", "Torch.nn.Linear", " torch.nn.Linear"),
        *(
            "torch.nn.",
            "torch.nn..Linear",
            ".torch.nn.Linear",
            "torch.nn/Linear",
            "torch.nn:Linear",
        ),
        *("torch.nn.Linear()", "torch.nn.os;import os", "torch.nn.\nos", "torch.nn.Linear "),
        *(
            "torch.nn.__builtins__.eval",
            "torch.nn.Linear.__init__.__globals__",
            "torch.nn.__main__",
        ),
        *("torch.nn.Module.__subclasses__", "torch.nn.Module.__class__", "sweepstack.__main__"),
    ],
)
def test_text_outside_the_table_is_refused(target):
    with pytest.raises(InputError, match=OUTSIDE) as caught:
        trust.locate(target)
    assert one_line(target) in str(caught.value)


@pytest.mark.parametrize(
    "target",
    [
        "torch.nn.modules.torch.os.system",
        "torch.nn.functional.torch.hub.load",
        "torch.nn.functional.torch.nn.Linear",
        "torch.nn.functional.importlib.import_module",
        "torch.nn.modules.module.warnings.os.system",
        "torch.nn.parallel.distributed.os.system",
        "torch.optim.optimizer.functools.partial",
        "torchvision.os.system",
        "torchvision.torch.load",
        "torchvision.datasets.utils.urllib.request.urlopen",
        "torchvision.datasets.folder.os",
        "torchvision.datasets.mnist.shutil.rmtree",
        "sweepstack.config.reading.OmegaConf",
        "sweepstack.training.device.os.execv",
        "sweepstack.config.trust.importlib.import_module",
        "optuna.samplers.optuna.storages.RDBStorage",
        "torchvision.datasets.utils.Any",
        "torchvision.datasets.folder.Path",
    ],
)
def test_a_way_out_through_imported_names_is_refused(target):
    with pytest.raises(InputError, match=f"{LEADS}|has no|is of type |itself") as caught:
        trust.locate(
            target, ["torch.nn", "torch.optim", "torchvision", "sweepstack", "optuna.samplers"]
        )
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    "name", ["os.system", "system", "Popen", "os", "Net.shell.system", "alias.os"]
)
def test_trust_ends_at_the_package(package, name):
    with pytest.raises(InputError, match=f"{LEADS}|has no 'os'|is of type builtin"):
        trust.locate(f"heads.{name}", ["heads"])


def test_a_package_is_not_imported_unless_trusted(package):
    for trusted in ([], ["head"], ["heads.net.Deep"], ["heads_"], [""]):
        with pytest.raises(InputError):
            trust.locate("heads.Net", trusted)
    assert "heads" not in sys.modules


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("Nett", "heads has no 'Nett'; did you mean 'Net'?"),
        ("net.Depe", "heads.net has no 'Depe'; did you mean 'Deep'?"),
        ("inner.Net", "heads.inner has no 'Net'"),
        ("net", "must name a class or a function, 'heads.net' is of type module"),
        ("value", "must name a class or a function, 'heads.value' is of type int"),
        ("raises.Net", "'heads.raises.Net' cannot be imported: ValueError: not today"),
        ("missing.Net", "cannot be imported: No module named 'nowhere_to_be_found'"),
        ("lazy.Net", "cannot be imported: RuntimeError: needs another package"),
    ],
)
def test_what_is_not_there_is_told(package, name, said):
    with pytest.raises(InputError) as caught:
        trust.locate(f"heads.{name}", ["heads"])
    assert said in str(caught.value)


def test_a_missing_package_points_to_the_path():
    with pytest.raises(InputError, match=r"No module named 'hydras'; is its folder on PYTHONPATH"):
        trust.locate("hydras.Net", ["hydras"])


@given(st.text(alphabet="abct.ornh_", max_size=20))
def test_names_match_on_dotted_boundaries(name):
    inside = name == "torch.nn" or name.startswith("torch.nn.")
    assert trust.within(name, ["torch.nn"]) == inside


def test_checking_a_name_imports_nothing():
    code = (
        "import sys\nfrom sweepstack.config import trust\n"
        "trust.check_target('mine.Net', ['mine'])\n"
        "try: trust.check_target('theirs.Net')\n"
        "except trust.InputError: pass\n"
        "else: raise SystemExit('accepted')\n"
        "assert not {'torch', 'mine', 'theirs'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_object_itself_is_returned():
    assert trust.locate("torch.nn.Linear") is torch.nn.Linear


OLD = ("sweepstack", "torch.nn", "torch.optim", "torchvision", "optuna.samplers", "optuna.pruners")
"""Packages that any config could name once."""


def callables():
    """Every class and function of `OLD`, by each name that leads to it."""
    for package in OLD:
        root = importlib.import_module(package)
        found = pkgutil.walk_packages(root.__path__, f"{package}.", onerror=lambda _: None)
        for name in [package, *(info.name for info in found)]:
            if name.endswith("__main__"):
                continue
            try:
                module = importlib.import_module(name)
            except Exception:  # it needs what is not installed
                continue
            for word, value in vars(module).items():
                if inspect.isclass(value) or inspect.isfunction(value):
                    yield f"{name}.{word}", value


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_every_callable_of_the_libraries_is_in_the_table_or_refused(monkeypatch):
    monkeypatch.setattr(trust, "nearest", lambda *_: "")  # slow for thousands of names
    listed = {**trust.table("torch"), **trust.table("torchvision"), **trust.table("sweepstack")}
    accepted, names = {}, dict(callables())
    for name in names:
        try:
            accepted[name] = trust.locate(name)
        except InputError:
            continue
    assert len(names) > 3000
    assert {"torch.nn.Linear", "torchvision.models.resnet18"} <= accepted.keys() <= listed.keys()
    for name, found in accepted.items():
        assert found is listed[name]
        home = found.__module__
        assert home.startswith(
            ("torch.nn.modules.", "torchvision.models.", "sweepstack.models.")
        ), name
        assert not {"trust", "trusted", "folder", "path", "url"} & {
            *inspect.signature(found).parameters
        }
    for name in (
        "sweepstack.runs.prediction.load",
        "sweepstack.load",
        "sweepstack.runs.prediction.Predictor",
        "sweepstack.models.build",
    ):
        assert name not in accepted
        with pytest.raises(InputError, match="sweepstack itself cannot be trusted"):
            trust.locate(name, ["sweepstack"])
    refused = (
        "datasets",
        "ops",
        "io",
        "transforms",
        "utils",
        "models.detection",
        "models.quantization",
    )
    assert not [
        name for name in accepted if name.startswith(tuple(f"torchvision.{r}" for r in refused))
    ]


@pytest.mark.parametrize(
    "key", ["weights", "pretrained", "weights_backbone", "pretrained_backbone"]
)
@pytest.mark.parametrize("value", ["DEFAULT", True, 1, False, {"a": 1}])
def test_weights_are_downloaded_only_where_torchvision_is_trusted(key, value):
    for name in ("torchvision.models.resnet18", "torchvision.models.vgg11"):
        with pytest.raises(
            InputError, match=rf"model\.{key} of .* must be null.*trust=\[torchvision\]"
        ):
            trust.locate(name, arguments={key: value})
        assert trust.locate(name, arguments={key: None}) is trust.locate(name)
        assert trust.locate(name, ["torchvision"], {key: value}) is trust.locate(name)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_no_model_of_the_table_opens_a_network(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("it left the process")

    for name in trust.table("torchvision"):
        trust.locate(name)
    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(torch, "load", refuse)
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", refuse)
    for init in ("trunc_normal_", "normal_", "uniform_", "kaiming_normal_", "xavier_uniform_"):
        monkeypatch.setattr(torch.nn.init, init, lambda tensor, *_, **__: tensor)
    for name in sorted(trust.table("torchvision")):
        is_regnet = "regnet_" in name  # computes its widths with tensors; they differ in size alone
        if name.count(".") > 2 or (is_regnet and not name.endswith("_400mf")):
            continue
        with torch.device("cpu" if is_regnet else "meta"), torch.no_grad():
            assert isinstance(trust.locate(name)(), torch.nn.Module), name


@pytest.mark.parametrize(
    "arguments",
    [
        {"_target_": "os.system"},
        {"head": {"_target_": "subprocess.getoutput", "cmd": "touch canary"}},
        {"heads": [1, {"x": [{"_target_": "sweepstack.runs.prediction.load"}]}]},
        {"head": {"_target_": ["os.system"]}},
        {"head": {"_target_": "torch.nn.Linear", "x": {"_target_": "torch.load"}}},
    ],
)
def test_targets_inside_of_arguments_follow_the_same_rule(package, arguments):
    with pytest.raises(InputError, match=OUTSIDE):
        trust.locate("heads.Net", ["heads", "sweepstack"], arguments)
    fine = {"head": [{"_target_": "torch.nn.ReLU"}, {"_target_": "heads.Net"}]}
    assert trust.locate("heads.Net", ["heads"], fine).__name__ == "Net"


def test_weights_through_another_package_are_no_others(package, tmp_path):
    file = tmp_path / "heads" / "__init__.py"
    file.write_text("from torchvision.models import resnet18\nfrom sweepstack import load\n")
    assert trust.locate("heads.resnet18", ["heads"]) is trust.locate("torchvision.models.resnet18")
    with pytest.raises(InputError, match=r"must be null"):
        trust.locate("heads.resnet18", ["heads"], {"weights": "DEFAULT"})
    with pytest.raises(InputError, match=LEADS):
        trust.locate("heads.load", ["heads", "sweepstack"])
