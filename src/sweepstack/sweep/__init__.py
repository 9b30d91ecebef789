"""Optuna meets Hydra: a sweep from the command line to its last trial."""
