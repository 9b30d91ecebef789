"""Optuna meets Hydra: a sweep from the command line to its last trial.

`sweep` reads a `plan`, opens its study, and launches the `worker/`s, which ask `samplers` for the
next point of the space and `pruners` whether a trial continues.
"""
