"""What a sweep loads, loaded once for all commands that `warm.py` forks."""

import gc
import os

os.environ["OMP_NUM_THREADS"] = "1"  # on a machine that others use too, threads wait for each other

import alembic.command
import optuna.samplers
import sklearn.datasets
import torch
import torchvision

import sweepstack.cli.app
import sweepstack.cli.study
import sweepstack.engine.program
import sweepstack.engine.train
import sweepstack.study.tables
import sweepstack.sweep.sweep
import sweepstack.sweep.worker.trainer
from hydra_plugins.sweepstack_sweeper import _impl

__all__ = ["_impl", "alembic", "optuna", "sklearn", "sweepstack", "torch", "torchvision"]

gc.freeze()  # garbage collections of the forks look at their own objects only: twice as fast
