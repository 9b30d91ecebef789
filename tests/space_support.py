"""What the tests of search spaces share: a trial that draws at random, a space with cases."""

from __future__ import annotations

import random

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from sweepstack.config.errors import InputError
from sweepstack.config.space.declare import parse

SGD_OR_ADAM = {
    "optimizer.lr": [
        {"when": {"optimizer": "sgd"}, "values": "tag(log, interval(1e-3,1))"},
        {"when": {"optimizer": ["adam", "adamw"]}, "values": "tag(log, interval(1e-5,1e-2))"},
    ],
    "optimizer": "sgd,adam,adamw",
    "optimizer.momentum": "0,0.9",
}
MOMENTUM = {"optimizer.momentum": {"optimizer": "sgd"}}
UNEVEN = {"type": "int", "low": 2, "high": 9, "step": 3}


class Trial:
    """Draws at random; remembers each question."""

    def __init__(self, seed=0):
        self.random = random.Random(seed)
        self.asked = {}

    def suggest_float(self, name, low, high, *, step=None, log=False):
        assert not (step and log)
        self.asked[name] = (low, high, log)
        if step:
            return low + self.random.randint(0, round((high - low) / step)) * step
        return self.random.uniform(low, high)

    def suggest_int(self, name, low, high, *, step=1, log=False):
        assert step == 1 or not log
        self.asked[name] = (low, high, log)
        return self.random.randrange(low, high + 1, step)

    def suggest_categorical(self, name, choices):
        self.asked[name] = tuple(choices)
        return self.random.choice(choices)


def hydra_value(line):
    return OverridesParser.create().parse_overrides([line])[0].value()


def mistakes(*arguments, params=None, conditions=None):
    with pytest.raises(InputError) as caught:
        parse(arguments, params, conditions)
    return caught.value.mistakes


def grid_overrides(space):
    return [space.overrides(point) for point in space.grid()]
