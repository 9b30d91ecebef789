"""What the tests of the training function share: one trial, trained here."""

from __future__ import annotations

from support import make_spec

from iolaus.train import train

SHORT = ("training.max_steps=40", "training.eval_every=10", "batch.size=32")


def one(*overrides, monitor=None, **settings):
    (result,) = train([make_spec(*overrides, **settings)], monitor)
    return result
