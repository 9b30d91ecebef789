"""The Hydra plugin: every Hydra application here imports it, so it may cost next to nothing."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import pytest

from hydra_plugins.sweepstack_sweeper.sweepstack_sweeper import PRUNERS, SAMPLERS, SWEEPER
from sweepstack.sweep import plan, pruners, samplers

HEAVY = """
heavy = {"torch", "optuna", "sweepstack", "sqlalchemy", "pandas"}
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


def test_every_setting_of_the_sweeper_has_a_key_and_the_other_way_round():
    keys = set(SWEEPER) - {"_target_", "_recursive_", "defaults"}

    assert keys | {"sampler", "pruner"} == set(plan._RULES) | plan._NODES


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_a_sampler_of_the_group_can_be_built_and_shows_all_its_settings(name, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda package: package)  # cmaes is optional
    node = {"name": name, "seed": 0, **SAMPLERS[name]}
    arguments = ["x=1,2"]
    chosen = plan.read({"sampler": node, "n_trials": 2, "trusted_storage": True}, arguments, "app")

    assert chosen.sampler.name == name
    assert chosen.seed == 0
    assert set(SAMPLERS[name]) == set(samplers._KINDS[name][1])


@pytest.mark.parametrize("name", PRUNERS)
def test_a_pruner_of_the_group_can_be_built_and_shows_all_its_settings(name):
    needed = {"upper": 1} if name == "threshold" else {}
    node = {"name": name, **PRUNERS[name], **needed}
    chosen = plan.read({"pruner": node}, ["x=1,2"], "app")
    wrapped = {"wrapped"} if name == "patient" else set()

    assert chosen.pruner.name == name
    assert set(PRUNERS[name]) == set(pruners._KINDS[name].rules) | wrapped


def test_every_sampler_and_pruner_has_a_group():
    assert list(SAMPLERS) == list(samplers.NAMES)
    assert list(PRUNERS) == list(pruners.NAMES)
