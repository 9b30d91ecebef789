"""Hyperparameter sweeps for PyTorch: Hydra composes a run, one function trains it."""
