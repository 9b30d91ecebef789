"""What a sweep loads, loaded once for all that are forked: by `warm.py` and `docs_runner.py`."""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # on a machine that others use too, threads wait for each other

import alembic.command
import optuna.samplers
import sklearn.datasets
import torch
import torchvision

import iolaus.analysis.cli
import iolaus.analysis.tables
import iolaus.app
import iolaus.engine.program
import iolaus.engine.train
import iolaus.sweep.own
import iolaus.sweep.sweep
from hydra_plugins.iolaus_sweeper import _impl

__all__ = ["_impl", "alembic", "iolaus", "optuna", "sklearn", "torch", "torchvision"]
