"""What a sweep loads, loaded once for all commands that `warm.py` forks."""

import gc
import os
from importlib import import_module
from pathlib import Path

os.setsid()  # without a terminal; each command is a process group of this session
os.environ["OMP_NUM_THREADS"] = "1"  # on a machine that others use too, threads wait for each other

for name in (
    *("alembic.command", "optuna.artifacts", "optuna.samplers", "optuna.storages"),
    *("plotly.io", "plotly.subplots", "sklearn.datasets", "torch", "torchvision"),
    *("sqlalchemy.dialects.sqlite", "sqlalchemy.orm", "hydra_plugins.sweepstack_sweeper._impl"),
    *("sweepstack.cli.app", "sweepstack.cli.study", "sweepstack.engine.executors.recorded"),
    *("sweepstack.engine.train", "sweepstack.reporting.dashboard.decorate"),
    *("sweepstack.reporting.overview", "sweepstack.reporting.report.page"),
    *("sweepstack.study.book.bulk", "sweepstack.sweep.sweep"),
    "sweepstack.sweep.worker.training_app",
):
    import_module(name)

import_module("optuna").storages.RDBStorage("sqlite://").engine.dispose()  # maps its tables

import_module("hydra.core.plugins").Plugins.instance()  # finds all of Hydra's plugins
import_module("yaml_once").remember(*Path(__file__).parents[1].glob("conf/**/*.yaml"))

gc.freeze()  # garbage collections of the forks look at their own objects only: twice as fast
