"""The Hydra plugin: every Hydra application here imports it, so it may cost next to nothing."""

from __future__ import annotations

import dataclasses
import importlib.util
import inspect
import subprocess
import sys

import pytest
from docs_support import generator

from hydra_plugins import sweepstack_sweeper as plugin
from sweepstack.config import sweeper
from sweepstack.config.errors import InputError
from sweepstack.sweep import plan, pruners, samplers

NODES = {(group, name): node for group, name, node in plugin.nodes()}
HEAVY = """
heavy = {"torch", "optuna", "sqlalchemy", "pandas", "sweepstack.config.schema", "sweepstack.sweep"}
heavy.add("hydra_plugins.sweepstack_sweeper._impl")
assert not heavy & set(sys.modules), heavy & set(sys.modules)
"""
DISCOVERY = """
import sys
from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper

names = [plugin.__name__ for plugin in Plugins.instance().discover(Sweeper)]
assert "SweepstackSweeper" in names, names
assert "sweepstack.yaml" in ConfigStore.instance().repo["hydra"]["sweeper"]
"""
APP = """
import sys
import hydra

@hydra.main(version_base=None, config_path=None)
def app(cfg):
    print("x is", cfg.x)

app()
"""
REPORTS = """
import sys
import sweepstack

assert sweepstack.report(0.5, 1) is None
assert not {"torch", "optuna"} & set(sys.modules)
"""


@pytest.mark.parametrize(
    ("code", "says"),
    [(DISCOVERY + HEAVY, ""), (APP + HEAVY, "x is 1\n"), (REPORTS, "")],
    ids=["discovery", "app", "report"],
)
def test_without_a_sweep_nothing_heavy_is_imported(tmp_path, code, says):
    script = tmp_path / "script.py"
    script.write_text(code)
    arguments = ["+x=1", "hydra.run.dir=run"] if says else []
    done = subprocess.run(
        [sys.executable, "script.py", *arguments], cwd=tmp_path, capture_output=True, text=True
    )

    assert done.returncode == 0, done.stderr
    assert done.stdout == says


def test_a_new_key_is_declared_in_one_place(monkeypatch):
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class More(sweeper.Sweeper):
        max_coffee: int = sweeper.key(2, "cups of coffee per trial", ge=0)

    monkeypatch.setattr(sweeper, "Sweeper", More)

    assert plan.read({"max_coffee": 3}, ["x=1,2"], "app")
    with pytest.raises(InputError) as caught:
        plan.read({"max_coffee": -1, "max_cofee": 1}, ["x=1,2"], "app")
    assert caught.value.mistakes[0] == "hydra.sweeper.max_coffee must be >= 0, got -1"
    assert caught.value.mistakes[1].endswith("did you mean 'max_coffee'?")
    assert next(plugin.nodes())[2]["max_coffee"] == 2
    row = "| `hydra.sweeper.max_coffee` | `2` | a whole number >= 0 | cups of coffee per trial |"
    assert row in generator().page().splitlines()


def test_a_new_setting_of_a_sampler_is_declared_in_one_place(monkeypatch):
    @dataclasses.dataclass(frozen=True)
    class More(sweeper.Tpe):
        sugar: float = sweeper.key(None, "spoons", ge=0)

    monkeypatch.setattr(sweeper, "SAMPLERS", {**sweeper.SAMPLERS, "tpe": More})
    monkeypatch.setattr(samplers, "SAMPLERS", sweeper.SAMPLERS)
    nodes = {name: node for group, name, node in plugin.nodes() if group.endswith("sampler")}

    assert nodes["tpe"]["sugar"] is None
    with pytest.raises(InputError, match=r"hydra\.sweeper\.sampler\.sugar must be >= 0, got -1"):
        plan.read({"sampler": {"name": "tpe", "sugar": -1}}, ["x=1,2"], "app")
    row = "| `hydra.sweeper.sampler.sugar` (tpe) | `null` | a number >= 0 | spoons |"
    assert row in generator().page().splitlines()


@pytest.mark.parametrize("name", sweeper.SAMPLERS)
@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_a_sampler_of_the_group_can_be_built(name, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda package: package)  # cmaes is optional
    node = {"sampler": NODES["hydra/sweeper/sampler", name], "trusted_storage": True}
    chosen = plan.read({**node, "n_trials": 2}, ["x=1,2"], "app")

    assert chosen.sampler.name == name
    assert chosen.seed == 0


@pytest.mark.parametrize("name", sweeper.SAMPLERS)
@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_every_setting_of_a_sampler_is_one_of_its_class(name):
    if name == "grid":
        return
    keys = set(sweeper.defaults(sweeper.SAMPLERS[name]))
    assert keys <= set(inspect.signature(samplers._MAKE[name]).parameters)


@pytest.mark.parametrize("name", sweeper.PRUNERS)
def test_a_pruner_of_the_group_can_be_built(name):
    needed = {"upper": 1} if name == "threshold" else {}
    node = {**NODES["hydra/sweeper/pruner", name], **needed}
    chosen = plan.read({"pruner": node}, ["x=1,2"], "app")
    parameters = set(inspect.signature(pruners._MAKE[name]).parameters)

    assert chosen.pruner.name == name
    assert set(sweeper.defaults(sweeper.PRUNERS[name])) - {"wrapped"} <= parameters
