"""hydra/sweeper=sweepstack in other applications: configs of hydra-optuna-sweeper keep working."""

from __future__ import annotations

from pathlib import Path

import yaml
from app_support import App, complaint, states

from sweepstack.analysis import terminal

SPHERE = """
    import hydra

    @hydra.main(version_base=None, config_path="conf", config_name="config")
    def sphere(cfg):
        if cfg.get("error", False):
            raise RuntimeError("cfg.error is True")
        return cfg.x**2 + cfg.y**2

    if __name__ == "__main__":
        sphere()
"""
SPHERE_CONFIG = """
    defaults:
      - override hydra/sweeper: sweepstack
      - override hydra/sweeper/sampler: tpe
    hydra:
      sweeper:
        sampler:
          seed: 123
        direction: minimize
        study_name: sphere
        storage: null
        n_trials: 20
        n_jobs: 1
        max_failure_rate: 0.0
        params:
          x: range(-5.5, 5.5, step=0.5)
          y: choice(-5 ,0 ,5)
    x: 1
    y: 1
    error: false
"""


def test_the_published_example_runs_and_leaves_what_hydra_and_its_sweeper_leave(tmp_path):
    app = App(tmp_path, SPHERE, SPHERE_CONFIG)
    app.sweep("hydra.sweep.dir=sweep")

    results = yaml.safe_load((tmp_path / "sweep" / "optimization_results.yaml").read_text())
    assert list(results) == ["name", "best_params", "best_value"]  # as hydra-optuna-sweeper
    assert results["name"] == "optuna"
    values = []
    for number in range(20):
        job = tmp_path / "sweep" / str(number)
        config = yaml.safe_load((job / ".hydra" / "config.yaml").read_text())
        settings = yaml.safe_load((job / ".hydra" / "hydra.yaml").read_text())
        assert settings["hydra"]["job"]["num"] == number
        assert config["x"] in [half / 2 for half in range(-11, 11)]
        values.append(config["x"] ** 2 + config["y"] ** 2)
    assert results["best_value"] == min(values)
    best = results["best_params"]
    assert best["x"] ** 2 + best["y"] ** 2 == min(values)
    assert {path.name for path in tmp_path.iterdir()} == {"app.py", "conf", "sweep"}  # no storage
    assert len(list((tmp_path / "sweep").iterdir())) == 21


def test_a_trial_that_raises_ends_a_sweep_that_allows_no_failure(tmp_path):
    app = App(tmp_path, SPHERE, SPHERE_CONFIG)
    done = app("-m", "error=true")
    line = complaint(done)

    assert done.returncode == 4
    assert "max_failure_rate=0" in line
    assert "RuntimeError: cfg.error is True" in line


def test_a_grid_with_more_points_than_trials_ends_at_its_total(tmp_path):
    app = App(tmp_path, SPHERE, SPHERE_CONFIG)
    done = app.sweep(
        *("hydra/sweeper/sampler=grid", "hydra.sweeper.n_trials=3", "hydra.sweep.dir=sweep"),
        "hydra.sweeper.storage=sqlite:///studies.db",
    )

    trials = app.trials("sphere")
    assert states(trials) == ["COMPLETE"] * 3
    best = min(trials, key=lambda trial: trial.value)
    assert f"winner: trial {best.number}, value {terminal.number(best.value)}" in done.stdout
    assert "  as YAML: sweep/optimization_results.yaml" in done.stdout
    again = f"next: python app.py x={best.params['x']} y={best.params['y']}"
    assert done.stdout.splitlines()[-1] == again


WORKERS = """
    import os
    import time
    import hydra
    from dataclasses import dataclass
    from hydra.core.config_store import ConfigStore
    from omegaconf import OmegaConf

    @dataclass
    class Schema:
        x: float = 1
        y: float = 1
        twice: float = "${double:${x}}"

    def double(value):
        return 2 * value

    def configure(cfg, trial):
        assert cfg.hydra.job.name == "app"
        trial.suggest_float("y", cfg.y - 1, cfg.y + 1)

    @hydra.main(version_base=None, config_path="conf", config_name="config")
    def app(cfg):
        with open("pids", "a") as file:
            file.write(f"{os.getpid()}\\n")
        end = time.monotonic() + 120  # for a second worker that never comes only
        while len(set(open("pids").read().split())) < 2:
            if time.monotonic() > end:
                raise TimeoutError("the other worker has no trial")
            time.sleep(0.02)
        return -abs(cfg.twice) - abs(cfg.y)

    if __name__ == "__main__":
        OmegaConf.register_new_resolver("double", double)
        ConfigStore.instance().store(name="schema", node=Schema)
        app()
"""
WORKERS_CONFIG = """
    defaults:
      - schema
      - override hydra/sweeper: sweepstack
      - _self_
    hydra:
      sweeper:
        direction: maximize
        study_name: workers
        storage: sqlite:///studies.db
        n_trials: 6
        n_jobs: 2
        max_failure_rate: 0.0
        custom_search_space: __main__.configure
        sampler:  # as it stands in many a template
          _target_: optuna.samplers.TPESampler
          seed: 1234
          consider_prior: true
          prior_weight: 1.0
          consider_magic_clip: true
          consider_endpoints: false
          n_startup_trials: 4
        params:
          x: interval(-1, 1)
          y: 5
"""


def test_local_workers_know_the_main_module_and_a_raised_total_adds_the_difference(tmp_path):
    app = App(tmp_path, WORKERS, WORKERS_CONFIG)
    app.sweep(COLD_WORKERS="1")
    first = app.trials("workers")
    app.sweep("hydra.sweeper.n_trials=9", "hydra.sweeper.n_jobs=1")
    trials = app.trials("workers")

    assert states(trials) == ["COMPLETE"] * 9
    assert len(first) == 6
    assert [t.params for t in trials[:6]] == [t.params for t in first]
    for trial in trials:
        assert 4 <= trial.params["y"] <= 6  # around the fixed value, which the function is told
        assert trial.value == -2 * abs(trial.params["x"]) - trial.params["y"]
    pids = (tmp_path / "pids").read_text().split()
    assert len(pids) == 9
    assert (len(set(pids[:6])), len(set(pids[6:]))) == (2, 1)


TWO_VALUES = """
    import hydra

    @hydra.main(version_base=None, config_path="conf", config_name="config")
    def binh_and_korn(cfg):
        return 4 * cfg.x**2 + 4 * cfg.y**2 + cfg.w, (cfg.x - 5) ** 2 + (cfg.y - 5) ** 2

    def configure(cfg, trial):
        trial.suggest_float("y", trial.params["x"], trial.params["x"] + cfg.most)
        trial.suggest_int("+w", 0, 1)

    if __name__ == "__main__":
        binh_and_korn()
"""
TWO_VALUES_CONFIG = """
    defaults:
      - override hydra/sweeper: sweepstack
      - override hydra/sweeper/sampler: nsgaii
    hydra:
      sweeper:
        sampler:
          seed: 123
          population_size: 100
        direction: [minimize, minimize]
        study_name: two
        storage: null
        n_trials: 8
        n_jobs: 1
        custom_search_space: .my-app.configure
        params:
          x: range(0, 5, step=0.5)
    x: 1
    y: 1
    most: 0.25
"""


def test_several_directions_and_a_search_space_in_python(tmp_path):
    app = App(tmp_path, TWO_VALUES, TWO_VALUES_CONFIG, name="my-app.py")
    app.sweep("hydra.sweep.dir=sweep")

    results = yaml.safe_load((tmp_path / "sweep" / "optimization_results.yaml").read_text())
    assert results["name"] == "optuna"
    front = results["solutions"]
    for one in front:
        x, y, w = (one["params"][name] for name in ("x", "y", "+w"))
        assert x <= y <= x + 0.25
        assert one["values"] == [4 * x**2 + 4 * y**2 + w, (x - 5) ** 2 + (y - 5) ** 2]
    pairs = [tuple(one["values"]) for one in front]
    assert pairs
    assert not [
        (a, b) for a in pairs for b in pairs if a != b and a[0] <= b[0] and a[1] <= b[1]
    ]  # none is as good as another in both


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_mistakes_and_a_dry_run_leave_nothing(tmp_path):
    app = App(tmp_path, SPHERE, SPHERE_CONFIG)
    before = names(tmp_path)

    done = app("-m", "hydra/sweeper/sampler=motpe")  # gone from Optuna; Hydra says what there is
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert {"tpe", "nsgaii", "grid"} <= set(done.stderr.split())

    done = app(
        *("-m", "hydra.sweeper.direction=maximise", "hydra.sweeper.sampler.name=tep", "z=1,2"),
        "hydra.sweeper.custom_search_space=app.configure",
    )
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines() == [
        "sweepstack: hydra.sweeper.sampler must be one of tpe, random, qmc, grid, gp, nsgaii, "
        "nsgaiii, cmaes, brute_force, got 'tep'; did you mean 'tpe'?",
        "sweepstack: hydra.sweeper.direction must be one of minimize, maximize, got 'maximise'; "
        "did you mean 'maximize'?",
        "sweepstack: hydra.sweeper.custom_search_space must name a function (config, trial), such "
        "as mypackage.space.suggest, got 'app.configure': "
        "module 'app' has no attribute 'configure'",
        "sweepstack: Could not override 'z'. To append to your config use +z=1",
    ]

    done = app("-m", "z=1,2")  # no key of the config
    assert done.returncode == 2
    assert "z" in complaint(done)

    done = app.sweep("hydra.sweeper.dry_run=true")
    assert "nothing was run" in done.stdout
    assert names(tmp_path) - {"__pycache__"} == before
