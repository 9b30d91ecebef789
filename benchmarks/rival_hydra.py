"""The workload of throughput.py as an application of hydra-optuna-sweeper.

    python rival_hydra.py -m +root=FOLDER +device=cpu +test=false '+lr=interval(1e-4, 1e-1)' ...

Trains as rival_eager.py does, DataLoader included; a process reads MNIST once, not at every trial.
"""

from __future__ import annotations

import hydra
import rival_eager
from omegaconf import DictConfig


@hydra.main(version_base=None, config_path=None, config_name=None)
def app(cfg: DictConfig) -> float:
    """One trial; returns the validation accuracy."""
    return rival_eager.train(cfg.lr, cfg.root, cfg.device, cfg.test)


if __name__ == "__main__":
    app()
