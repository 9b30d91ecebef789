"""Hydra's plugin `hydra/sweeper=iolaus`: see `iolaus_sweeper.py`."""
