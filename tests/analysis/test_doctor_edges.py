"""The doctor names edges of the space near which the best lie, and what widens them."""

from __future__ import annotations

import math
import shlex

import numpy as np
import pytest
from doctor_support import made, said
from optuna.trial import TrialState

from sweepstack.config.space import declare

LR = "optimizer.lr=tag(log,interval(0.0001,1.0))"


def trials(key, values, value_of, **more):
    return [{"params": {key: float(v)}, "value": value_of(v), **more} for v in values]


def peak(at):
    """Best where lr is `at`, worse by its distance in decades."""
    return lambda lr: 0.9 - 0.1 * abs(math.log10(lr / at))


def spread(n=40, low=1e-4, high=1.0):
    return np.random.default_rng(0).permutation(np.geomspace(low, high, n))


def range_of(command, arguments=()):
    """The parameter that a finding's command declares, as the sweeper reads it."""
    [override] = shlex.split(command)
    [found] = declare.parse([*arguments, override]).parameters
    return found


def test_an_optimum_beyond_a_range_is_an_edge():
    [finding] = said(made([LR], trials("optimizer.lr", spread(), peak(10))), "edge")
    assert "upper 10 %" in finding.text
    assert "0.0001 to 1" in finding.text or "1e-4 to 1" in finding.text
    wider = range_of(finding.command)
    assert (wider.low, wider.high, wider.log) == (0.0001, 10.0, True)
    [finding] = said(made([LR], trials("optimizer.lr", spread(), peak(1e-6))), "edge")
    assert range_of(finding.command).low == pytest.approx(1e-5)


def test_what_is_minimized_has_its_edge_where_it_is_least():
    found = trials("optimizer.lr", spread(), lambda lr: -peak(10)(lr))
    [finding] = said(made([LR], found, direction="minimize"), "edge")
    assert "upper" in finding.text


@pytest.mark.parametrize("at", [0.01, 0.1, 0.3])
def test_an_optimum_inside_is_none(at):
    assert not said(made([LR], trials("optimizer.lr", spread(), peak(at))), "edge")


def test_a_key_that_does_nothing_has_no_edge():
    rng = np.random.default_rng(1)
    values = [*rng.uniform(0.9, 1.0, 30), *rng.uniform(0.1, 1.0, 30)]  # a sampler's gathering
    found = trials("optimizer.lr", values, lambda lr: rng.normal(0.9, 0.01))
    assert not said(made([LR], found), "edge")


def test_too_few_trials_are_said_to_be_too_few():
    opened = made([LR], trials("optimizer.lr", spread(8), peak(10)))
    assert not said(opened, "edge")
    assert "unknown" in said(opened, "edge", "fact")[0].text


def test_pruned_trials_were_tried_and_were_worse():
    values = spread(40)
    found = [
        {"params": {"optimizer.lr": float(lr)}, "value": peak(10)(lr)}
        if lr > 0.1
        else {"params": {"optimizer.lr": float(lr)}, "state": TrialState.PRUNED}
        for lr in values
    ]
    assert sum("value" in trial for trial in found) < 15
    assert said(made([LR], found), "edge")


def test_each_case_of_a_key_has_its_own_edge():
    cases = [
        {"when": {"optimizer": "sgd"}, "values": "tag(log,interval(0.01,1.0))"},
        {"when": {"optimizer": "[adam,adamw]"}, "values": "tag(log,interval(0.0001,0.01))"},
    ]
    cases[1]["when"]["optimizer"] = ["adam", "adamw"]
    params = {"optimizer": "sgd,adam,adamw", "optimizer.lr": cases}
    sgd, adam = "optimizer.lr[optimizer=sgd]", "optimizer.lr[optimizer=adam|adamw]"
    found = [
        {"params": {"optimizer": "sgd", sgd: float(lr)}, "value": peak(10)(lr)}
        for lr in spread(40, 0.01, 1.0)
    ]
    found += [
        {"params": {"optimizer": "adam", adam: float(lr)}, "value": peak(0.001)(lr)}
        for lr in spread(40, 1e-4, 1e-2)
    ]
    arguments = ["+sweeps=mine"]
    [finding] = said(made(arguments, found, params=params), "edge")
    assert "with optimizer=sgd" in finding.text
    [word] = shlex.split(finding.command)
    key, _, text = word.partition("=")
    assert key == "hydra.sweeper.params"
    from hydra.core.override_parser.overrides_parser import OverridesParser

    merged = {**params, **OverridesParser.create().parse_override(word).value()}
    wider = {p.name: p for p in declare.parse([], merged).parameters}
    assert wider[sgd].high == 10.0
    assert (wider[adam].low, wider[adam].high) == (0.0001, 0.01)
    assert text.startswith("{optimizer.lr:")


@pytest.mark.parametrize(
    ("listed", "at", "added"),
    [
        ("0.001,0.01,0.1", 10, [1.0, 10.0]),
        ("0.1,0.01,0.001", 1e-6, [0.0001, 0.00001]),
        ("0.001,0.003,0.005", 10, [0.007, 0.009]),
    ],
)
def test_a_list_ends_at_its_first_and_last_value(listed, at, added):
    argument = f"optimizer.lr={listed}"
    values = [float(v) for v in listed.split(",")] * 8
    found = [
        {"params": {"optimizer.lr": v, "model.width": i}, "value": peak(at)(v) - 0.001 * i}
        for i, v in enumerate(values)
    ]
    [finding] = said(made([argument, "model.width=range(0,24)"], found), "edge")
    new = range_of(finding.command)
    assert [float(v) for v in new.choices] == pytest.approx(
        [*map(float, listed.split(",")), *added]
    )


def test_a_list_of_two_has_no_inside_and_so_no_edge():
    found = [
        {"params": {"optimizer.lr": v, "model.width": i}, "value": peak(10)(v)}
        for i, v in enumerate([0.01, 0.1] * 10)
    ]
    assert not said(made(["optimizer.lr=0.01,0.1", "model.width=range(0,20)"], found), "edge")


@pytest.mark.parametrize(
    "argument",
    [
        "regularization.dropout=interval(0,0.6)",
        "optimizer.momentum=interval(0,0.99)",
        "regularization.weight_decay=interval(0,0.1)",
    ],
)
def test_zero_and_shares_near_one_are_natural(argument):
    key, _, text = argument.partition("=")
    high = float(text.split(",")[1].rstrip(")"))
    values = np.random.default_rng(0).permutation(np.linspace(0, high, 40))
    upwards = key == "optimizer.momentum"
    found = trials(key, values, lambda v: v if upwards else -v)
    assert not said(made([argument], found), "edge")


def test_a_share_is_widened_half_of_the_way_to_its_limit():
    argument = "regularization.dropout=interval(0,0.6)"
    found = trials("regularization.dropout", np.linspace(0, 0.6, 40), lambda v: v)
    [finding] = said(made([argument], found), "edge")
    assert range_of(finding.command).high == pytest.approx(0.8)


@pytest.mark.parametrize(
    ("argument", "high"),
    [
        ("batch.size=int(interval(16,56))", 96),
        ("batch.size=tag(log,int(interval(16,56)))", 112),
        ("batch.size=range(16,57,4)", 96),
    ],
)
def test_whole_numbers_stay_whole_and_on_their_steps(argument, high):
    values = list(range(16, 57, 4)) * 2
    found = [
        {"params": {"batch.size": v, "init.gain": 0.1 * (i + 1)}, "value": v - i * 0.01}
        for i, v in enumerate(values)
    ]
    [finding] = said(made([argument, "init.gain=interval(0,9)"], found), "edge")
    wider = range_of(finding.command)
    assert (wider.kind, wider.low, wider.high) == ("int", 16, high)


def test_seeds_have_no_edge():
    found = [
        {"params": {"optimizer.lr": float(lr), "training.seed": s}, "value": peak(0.01)(lr) + s}
        for lr in spread(20)
        for s in range(5)
    ]
    assert not said(made([LR, "training.seed=range(0,5)"], found), "edge")
