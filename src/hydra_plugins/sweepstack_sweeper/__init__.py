"""Hydra's plugin `hydra/sweeper=sweepstack`: see `sweepstack_sweeper.py`."""
