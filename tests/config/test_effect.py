"""Configs of equal effect: each line of the table trained both ways, and nothing else left out."""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace

import pytest
import torch
from support import make_spec

from sweepstack.config import effect
from sweepstack.config.effect import RULES
from sweepstack.engine.train import train

SHORT = ("training.max_steps=6", "training.eval_every=2", "model.hidden=[5]")
DIGITS = (*SHORT, "data=digits", "data.subset=200")
QUADRATIC = (*SHORT, "data=quadratic", "data.samples=100", "batch.size=16")
LINEAR = (*DIGITS, "model.hidden=[]")
PICTURES = (*DIGITS[:2], "data=digits", "data.subset=64", "batch.size=16")

EQUAL = {
    "adam: momentum": (*QUADRATIC, "optimizer=adam", ["optimizer.momentum=0.9"]),
    "width": (*QUADRATIC, ["training.width=3"]),
    "diagnostics": (*QUADRATIC, ["training.diagnostics=true"]),
    "logger": (
        *QUADRATIC,
        [
            *("logger=[tensorboard,csv,mlflow,wandb]", "logger.experiment=a"),
            *("logger.project=b", "logger.tracking_uri=c"),
        ],
    ),
    "adam: nesterov": (*QUADRATIC, "optimizer=adam", ["optimizer.nesterov=true"]),
    "adamw": (
        *(*DIGITS, "optimizer=adamw", "regularization.weight_decay=0.1"),
        ["optimizer.momentum=0.9", "optimizer.nesterov=true"],
    ),
    "rmsprop": (
        *DIGITS,
        "optimizer=rmsprop",
        "optimizer.momentum=0.5",
        ["optimizer.nesterov=true"],
    ),
    "sgd": (*DIGITS, "optimizer=sgd", "optimizer.momentum=0", ["optimizer.nesterov=true"]),
    "sgd, regularized": (
        *(*QUADRATIC, "optimizer=sgd", "optimizer.momentum=0", "regularization.weight_decay=0.1"),
        *("regularization.l1=0.01", "regularization.clip_norm=0.5", "model.activation=relu"),
        ["optimizer.nesterov=true"],
    ),
    **{
        name: (
            *QUADRATIC,
            f"optimizer={name}",
            ["optimizer.momentum=0.9", "optimizer.nesterov=true"],
        )
        for name in ("nadam", "radam", "adagrad", "lion")
    },
    "sgd, dampened": (*QUADRATIC, "optimizer=sgd", ["optimizer.dampening=0.5"]),
    "exponential by epochs": (
        *(*QUADRATIC, "schedule=exponential", "schedule.gamma=1"),
        ["schedule.unit=epoch"],
    ),
    "scaled by 1, accumulated": (
        *(*QUADRATIC, "batch.size=8", "batch.accumulate=2", "batch.base_size=16"),
        ["batch.lr_scaling=linear"],
    ),
    "adam or adamw": (*DIGITS, "optimizer=adam", ["optimizer=adamw"]),
    "base size unused": (*QUADRATIC, ["batch.base_size=7"]),
    "scaled by 1": (*QUADRATIC, "batch.base_size=16", ["batch.lr_scaling=linear"]),
    "scaled by the root of 1": (
        *(*QUADRATIC, "batch.base_size=99"),
        ["batch.base_size=16", "batch.lr_scaling=sqrt"],
    ),
    "step": (*QUADRATIC, ["schedule=step", "schedule.gamma=1", "schedule.step_size=2"]),
    "exponential": (
        *(*QUADRATIC, "schedule.warmup_steps=3"),
        ["schedule=exponential", "schedule.gamma=1", "schedule.warmup_steps=3"],
    ),
    "cosine": (*QUADRATIC, ["schedule=cosine", "schedule.min_factor=1"]),
    "epochs": (*QUADRATIC, ["training.max_epochs=1"]),
    "minmax_range": (*DIGITS, ["data.minmax_range=[-3,3]"]),
    "mean and std": (*DIGITS, ["data.mean=0.5", "data.std=[2]"]),
    "gain of he": (*DIGITS, "init=he", "model.activation=relu", ["init.gain=auto"]),
    "gain of he, a number": (*DIGITS, "init=he_uniform", ["init.gain=1.4142135623730951"]),
    "gain of xavier": (*DIGITS, "init=xavier", "model.activation=sigmoid", ["init.gain=auto"]),
    "gain of ones": (*DIGITS, "init=ones", "model.activation=sigmoid", ["init.gain=auto"]),
    "gain of orthogonal": (*DIGITS, "init=orthogonal", ["init.gain=1"]),
    "no crop": (*PICTURES, ["regularization.random_resized_crop_ratio=2"]),
    "no rand_augment": (*PICTURES, ["regularization.rand_augment_operations=3"]),
    "channels": (
        *(*PICTURES, "model=convnet", "model.channels=[2,3]", "model.hidden=[4]"),
        ["model.width=5", "model.depth=1"],
    ),
    "fan of xavier": (*DIGITS, "init=xavier", ["init.fan=average"]),
    "linear as all": (*DIGITS, "init=xavier", ["init.linear=xavier", "init.conv=xavier"]),
    "no convolutions": (*DIGITS, "init=xavier", ["init.conv=zeros"]),
    "batch norm of an mlp": (*DIGITS, ["regularization.batch_norm=false"]),
    "batch norm of a convnet": (
        *(*PICTURES, "model=convnet", "model.width=2", "model.depth=1", "model.hidden=[4]"),
        ["regularization.batch_norm=false"],
    ),
    "batch norm of a resnet": (
        *(*PICTURES, "model=resnet", "model.width=2", "model.depth=1"),
        ["regularization.batch_norm=true"],
    ),
    "linear, batch norm": (*LINEAR, ["regularization.batch_norm=true"]),
    "linear, dropout": (*LINEAR, ["regularization.dropout=0.5"]),
    "linear, activation": (*LINEAR, "model.activation=relu", ["model.activation=tanh"]),
}
"""Overrides, and last what changes nothing."""

DIFFERENT = {
    "sgd with momentum": (*DIGITS, "optimizer=sgd", "optimizer.momentum=0.5", EQUAL["sgd"][-1]),
    "ratio of a crop": (
        *(*PICTURES, "regularization.random_resized_crop=0.5"),
        ["regularization.random_resized_crop_ratio=2"],
    ),
    "fan of he": (*DIGITS, "init=he", ["init.fan=average"]),
    "linear": (*DIGITS, "init=he", ["init.linear=xavier"]),
    "convolutions": (
        *(*PICTURES, "model=convnet", "model.width=2", "model.depth=1", "model.hidden=[4]"),
        *("init=xavier", ["init.conv=he"]),
    ),
    "gain of two schemes": (*DIGITS, "init=xavier", "init.linear=he", ["init.gain=1"]),
    "momentum of rmsprop": (*DIGITS, "optimizer=rmsprop", ["optimizer.momentum=0.5"]),
    "dampening": (
        *(*DIGITS, "optimizer=sgd", "optimizer.momentum=0.5"),
        ["optimizer.dampening=0.5"],
    ),
    "radam is not adam": (*DIGITS, "optimizer=adam", ["optimizer=radam"]),
    "momentum of muon": (*DIGITS, "optimizer=muon", ["optimizer.momentum=0.5"]),
    "average of the weights": (*QUADRATIC, ["training.ema_decay=0.9"]),
    "accumulated": (*QUADRATIC, ["batch.accumulate=2"]),
    "gamma by epochs": (
        *(*QUADRATIC, "schedule=exponential", "schedule.gamma=0.5"),
        ["schedule.unit=epoch"],
    ),
    "momentum of sgd": (*DIGITS, "optimizer=sgd", ["optimizer.momentum=0.5"]),
    "decoupled decay": (
        *(*DIGITS, "optimizer=adam", "regularization.weight_decay=0.1"),
        ["optimizer=adamw"],
    ),
    "base size": (
        *(*QUADRATIC, "batch.lr_scaling=linear", "batch.base_size=16"),
        ["batch.base_size=7"],
    ),
    "minmax": (*DIGITS, "data.normalization=minmax", ["data.minmax_range=[-3,3]"]),
    "gain of a tanh": (*DIGITS, "init=he", "model.activation=tanh", ["init.gain=auto"]),
    "gain of relu and xavier": (
        *(*DIGITS, "init=xavier", "model.activation=relu"),
        ["init.gain=auto"],
    ),
    "the seed, though weights are zeros": (*DIGITS, "init=zeros", ["training.seed=1"]),
    "batch norm": (*DIGITS, ["regularization.batch_norm=true"]),
    "activation and gain": (
        *(*LINEAR, "init=xavier", "init.gain=auto", "model.activation=relu"),
        ["model.activation=tanh"],
    ),
    "gamma": (*QUADRATIC, ["schedule=step", "schedule.gamma=0.5", "schedule.step_size=2"]),
}
"""The same changes where they change the numbers."""


def pair(words):
    *common, change = words
    return make_spec(*common), make_spec(*common, *change)


def histories(*specs):
    found = []
    for spec in specs:
        (result,) = train([spec])
        assert result.state == "complete", result.error
        history = [
            {name: x for name, x in row.items() if not name.startswith("gradient_noise")}
            for row in result.history  # diagnostics measure more, and change nothing
        ]
        found.append((history, result.metrics, result.best_state))
    return found


@pytest.mark.parametrize("words", EQUAL.values(), ids=EQUAL)
def test_what_is_left_out_changes_no_bit(words):
    one, other = pair(words)
    assert one.config != other.config
    assert effect.effect(one.config) == effect.effect(other.config)

    first, second = histories(one, other)

    assert first[0] == second[0]
    assert first[1] == second[1]
    assert list(first[2]) == list(second[2])
    assert all(torch.equal(first[2][name], second[2][name]) for name in first[2])


@pytest.mark.parametrize("words", DIFFERENT.values(), ids=DIFFERENT)
def test_what_changes_the_numbers_is_another_effect(words):
    one, other = pair(words)
    assert effect.effect(one.config) != effect.effect(other.config)

    first, second = histories(one, other)

    assert first[0] != second[0]


def test_every_line_of_the_table_is_tried():
    """Each rule holds for both configs of some pair, which differ in one of its keys."""
    tried = set()
    for words in EQUAL.values():
        one, other = (spec.config for spec in pair(words))
        for number, rule in enumerate(RULES):
            if rule.holds(one) and rule.holds(other):
                tried |= {
                    (number, key) for key in rule.keys if value(one, key) != value(other, key)
                }
    assert tried == {(number, key) for number, rule in enumerate(RULES) for key in rule.keys}


def test_a_module_of_others_refuses_what_built_in_models_leave_alone():
    config = make_spec("model=torchvision", "model.arch=resnet18").config
    assert "regularization.batch_norm" not in effect.idle(config)


def value(config, key):
    group, _, name = key.partition(".")
    return getattr(getattr(config, group), name, None)


BASES = {
    "sgd": ("optimizer=sgd", "optimizer.momentum=0.5", "schedule=plateau"),
    "adam": ("optimizer=adam", "model=convnet", "schedule=cosine", "early_stopping=patience"),
    "adamw": ("optimizer=adamw", "regularization.weight_decay=0.1", "schedule=one_cycle"),
    "rmsprop": ("optimizer=rmsprop", "model=resnet", "schedule=exponential"),
    "muon": ("optimizer=muon", "batch.accumulate=2"),
    "nadam": ("optimizer=nadam",),
    "adagrad": ("optimizer=adagrad",),
    "lion": ("optimizer=lion",),
    "scaled": ("batch.lr_scaling=sqrt", "batch.base_size=7", "schedule=step"),
    "pictures": ("data=mnist", "early_stopping=consecutive_increases", "training.max_steps=5"),
    "linear": ("model.hidden=[]", "data=quadratic", "data.normalization=minmax"),
    "custom": ("model=custom", "model._target_=torch.nn.Linear", "+model.in_features=64"),
}


@pytest.mark.parametrize("words", BASES.values(), ids=BASES)
def test_every_key_that_is_not_left_out_makes_another_effect(words):
    config = make_spec(*words).config
    idle = set(effect.idle(config))
    seen = {effect.effect(config)}
    count = 1
    for group in fields(config):
        inner = getattr(config, group.name)
        if not is_dataclass(inner):
            changed = replace(config, **{group.name: another(inner)})
            assert effect.effect(changed) not in seen, group.name
            continue
        for item in fields(inner):
            key, new = f"{group.name}.{item.name}", another(getattr(inner, item.name))
            if key in idle or key == "optimizer.name":  # an option's class has one name
                continue
            changed = replace(config, **{group.name: replace(inner, **{item.name: new})})
            found = effect.effect(changed)
            assert found not in seen, key
            seen.add(found)
            count += 1
    assert count > 30


def another(given):
    """A value of the same kind, and of no special meaning."""
    match given:
        case bool():
            return not given
        case int() | float():
            return given + 0.125 if given < 1 or isinstance(given, float) else given + 13
        case str():
            return f"{given} "
        case tuple():
            return (*given, 17)
    return 12345
