"""The trust rule against targets that try to get out of the allowed packages."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from iolaus import trust
from iolaus.errors import InputError

OUTSIDE = r"model\._target_ must name something in iolaus, torch\.nn, .* trust=\[\.\.\.\], got "
LEADS = r"must name something defined in .* leads to "


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
        "torch.optim.SGD",
        "torchvision.models.resnet18",
        "iolaus.models.mlp.Mlp",
        "optuna.samplers.TPESampler",
        "optuna.pruners.MedianPruner",
    ],
)
def test_the_allow_list_is_found(target):
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
        *("torch", "torch.load", "torch.hub.load", "torch.nnx.Linear", "torch.nn_x", "iolausx.Net"),
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
        *("torch.nn.Module.__subclasses__", "torch.nn.Module.__class__", "iolaus.__main__"),
    ],
)
def test_text_outside_the_allow_list_is_refused(target):
    with pytest.raises(InputError, match=OUTSIDE) as caught:
        trust.locate(target)
    assert repr(target)[1:-1] in repr(str(caught.value))


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
        "iolaus.config.OmegaConf",
        "iolaus.engine.device.os.execv",
        "iolaus.trust.importlib.import_module",
        "optuna.samplers.optuna.storages.RDBStorage",
        "torchvision.datasets.utils.Any",
        "torchvision.datasets.folder.Path",
    ],
)
def test_a_way_out_through_imported_names_is_refused(target):
    with pytest.raises(InputError, match=f"{LEADS}|has no|is of type ") as caught:
        trust.locate(target)
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
        "import sys; from iolaus import trust; trust.check_target('torch.nn.Linear');"
        "trust.check_target('mine.Net', ['mine']); assert not {'torch', 'mine'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_object_itself_is_returned():
    assert trust.locate("torch.nn.Linear") is torch.nn.Linear
