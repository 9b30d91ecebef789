"""A launcher of others carries the workers of a sweep, and what stops it is said in a line."""

from __future__ import annotations

from textwrap import dedent

import yaml
from app_support import App, complaint

TOY_LAUNCHER = """
    import os
    from hydra._internal.core_plugins.basic_launcher import BasicLauncher
    from hydra.core.config_store import ConfigStore

    class ToyLauncher(BasicLauncher):
        def launch(self, job_overrides, initial_job_idx):
            print(f"toy carries {len(job_overrides)} jobs")
            if os.environ.get("TOY_BREAKS"):
                raise OSError("no node is free")
            return super().launch(job_overrides, initial_job_idx)

    node = {"_target_": "hydra_plugins.toy.ToyLauncher"}
    ConfigStore.instance().store(group="hydra/launcher", name="toy", node=node)
"""
TOY = """
    import hydra

    @hydra.main(version_base=None, config_path="conf", config_name="config")
    def app(cfg):
        return cfg.x + cfg.y

    if __name__ == "__main__":
        app()
"""
TOY_CONFIG = """
    defaults: [override hydra/sweeper: sweepstack, override hydra/launcher: toy]
    hydra:
      sweeper: {study_name: toy, storage: "sqlite:///studies.db", n_jobs: 2}
      sweep: {dir: sweep}
    x: 1
    y: 1
"""


def test_another_launcher_carries_the_workers(tmp_path):
    app = App(tmp_path, TOY, TOY_CONFIG)
    (tmp_path / "hydra_plugins").mkdir()
    (tmp_path / "hydra_plugins" / "toy.py").write_text(dedent(TOY_LAUNCHER))
    broken = app("-m", "x=1,2,3", "y=10", TOY_BREAKS="1")
    assert broken.returncode == 3
    assert "ToyLauncher" in complaint(broken)
    assert "OSError: no node is free" in complaint(broken)

    done = app.sweep("x=1,2,3", "y=10")
    assert "toy carries 2 jobs" in done.stdout
    trials = app.trials("toy")
    assert [trial.value for trial in trials] == [11, 12, 13]
    for trial in trials:  # and not the worker with that number
        words = tmp_path / "sweep" / str(trial.number) / ".hydra" / "overrides.yaml"
        assert yaml.safe_load(words.read_text()) == ["y=10", f"x={trial.params['x']}"]
