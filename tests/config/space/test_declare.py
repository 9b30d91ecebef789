"""Command line, params and conditions: who wins, what exists when, and every mistake at once."""

from __future__ import annotations

import re

import pytest
from space_support import MOMENTUM, SGD_OR_ADAM, Trial, grid_overrides, mistakes

from sweepstack.config.space.declare import parse
from sweepstack.config.space.points import labels_of


def test_the_command_line_wins_and_what_is_no_sweep_is_fixed():
    params = {"init": "he,xavier", "training.seed": "range(0,5)", "model.widths": [50, 50]}
    space = parse(["init=zeros", "training.seed=1,2", "data=mnist", "~schedule"], params)
    assert set(space.fixed) == {"init=zeros", "model.widths=[50,50]", "data=mnist", "~schedule"}
    assert grid_overrides(space) == [["training.seed=1"], ["training.seed=2"]]


def test_a_parameter_exists_only_where_its_condition_holds():
    space = parse([], {"optimizer.momentum": "0,0.9", "optimizer": "sgd,adam"}, MOMENTUM)
    assert grid_overrides(space) == [
        ["optimizer=sgd", "optimizer.momentum=0"],
        ["optimizer=sgd", "optimizer.momentum=0.9"],
        ["optimizer=adam"],
    ]
    assert space.grid_size == 3
    for seed in range(10):
        point = space.suggest(Trial(seed))
        assert ("optimizer.momentum" in point) == (point["optimizer"] == "sgd")


def test_two_ranges_of_one_key_are_two_parameters():
    space = parse([], SGD_OR_ADAM, MOMENTUM)
    seen = set()
    for seed in range(20):
        trial = Trial(seed)
        point = space.suggest(trial)
        name = f"optimizer.lr[optimizer={'sgd' if point['optimizer'] == 'sgd' else 'adam|adamw'}]"
        assert trial.asked[name] == (
            (1e-3, 1.0, True) if point["optimizer"] == "sgd" else (1e-5, 1e-2, True)
        )
        lines = space.overrides(point)
        assert [line.partition("=")[0] for line in lines].count("optimizer.lr") == 1
        assert labels_of(space, lines) == point
        seen.add(point["optimizer"])
    assert seen == {"sgd", "adam", "adamw"}


def test_conditions_chain_and_take_numbers_lists_and_several_parents():
    space = parse(
        ["c=x,y", "b=range(0,1,0.5)", "a=1,2", "d=p,q"],
        conditions={"c": {"b": [0, 0.5], "a": 2}, "b": {"a": 2}, "d": {"c": "x"}},
    )
    with_c = [
        [["a=2", b, "c=x", "d=p"], ["a=2", b, "c=x", "d=q"], ["a=2", b, "c=y"]]
        for b in ("b=0.0", "b=0.5")
    ]
    assert grid_overrides(space) == [["a=1"], *with_c[0], *with_c[1]]
    assert space.grid_size == len(grid_overrides(space))


@pytest.mark.parametrize(
    ("arguments", "fixed", "names"),
    [
        (
            ["optimizer=sgd"],
            ("optimizer=sgd",),
            {"optimizer.lr[optimizer=sgd]", "optimizer.momentum"},
        ),
        (["optimizer=adam"], ("optimizer=adam",), {"optimizer.lr[optimizer=adam|adamw]"}),
        (["optimizer=rmsprop"], ("optimizer=rmsprop",), set()),
        (["optimizer=adam,rmsprop"], (), {"optimizer", "optimizer.lr[optimizer=adam|adamw]"}),
        (
            ["optimizer.lr=0.1"],
            ("optimizer.lr=0.1",),
            {"optimizer", "optimizer.momentum"},
        ),
    ],
)
def test_the_command_line_narrows_a_sweep_with_conditions(arguments, fixed, names):
    space = parse(arguments, SGD_OR_ADAM, MOMENTUM)
    assert space.fixed == fixed
    assert {p.name for p in space.parameters} == names
    if fixed == ("optimizer=sgd",):  # what is left has no condition any more
        assert set(space.suggest(Trial())) == names


def test_a_conditional_key_fixed_on_the_command_line_stays_conditional():
    space = parse(["optimizer.momentum=0.5", "optimizer=sgd,adam"], conditions=MOMENTUM)
    assert grid_overrides(space) == [
        ["optimizer=sgd", "optimizer.momentum=0.5"],
        ["optimizer=adam"],
    ]
    deleted = parse(["~optimizer.momentum", "optimizer=sgd,adam"], conditions=MOMENTUM)
    assert deleted.fixed == ("~optimizer.momentum",)


@pytest.mark.parametrize(
    ("conditions", "words"),
    [
        ({"a": {"optimizr": "sgd"}}, "a depends on optimizr, .*; did you mean 'optimizer'"),
        ({"a": {"schedule": "cosine"}}, "sweep or fix it, for example schedule=cosine"),
        ({"a": {"optimizer": "sdg"}}, "optimizer must be one of sgd, adam; did you mean 'sgd'"),
        ({"a": {"optimizer": ["sgd", "x,y"]}}, "takes a value or a list of values"),
        ({"a": {"optimizer": []}}, "must name at least one value"),
        ({"a": {"lr": 0.5}}, "a depends on lr, which is continuous"),
        ({"aa": {"optimizer": "sgd"}}, "conditions name aa, .*; did you mean 'a'"),
        ({"a": "sgd"}, "must name a parent and its values"),
        ({"cased": {"a": 1}}, "both under params and under conditions"),
        ({"a": {"b": 1}, "b": {"a": 1}}, "in a circle: a -> b -> a"),
        ({"a": {"a": 1}}, "in a circle: a -> a"),
    ],
)
def test_bad_conditions_are_one_line_each(conditions, words):
    params = {
        "optimizer": "sgd,adam",
        "a": "1,2",
        "b": "1,2",
        "lr": "interval(0,1)",
        "cased": {"when": {"optimizer": "sgd"}, "values": "1,2"},
    }
    [mistake] = mistakes(params=params, conditions=conditions)
    assert re.search(words, mistake), mistake


def test_cases_that_hold_together_are_refused():
    cases = [
        {"when": {"optimizer": ["sgd", "adam"]}, "values": "1,2"},
        {"when": {"optimizer": "sgd"}, "values": "3,4"},
    ]
    [mistake] = mistakes(params={"optimizer": "sgd,adam", "a": cases})
    assert mistake == (
        "a has two cases that can hold together: optimizer=sgd|adam and optimizer=sgd"
    )


def test_a_key_swept_twice_on_the_command_line_is_refused():
    assert mistakes("a=1,2", "a=3") == ["a is given 2 times, a swept key only once"]
    assert parse(["+a=1", "a=3"]).fixed == ("+a=1", "a=3")


def test_all_mistakes_come_together_and_none_twice():
    got = mistakes(
        "init=choice()",
        "lr=interval(2,1)",
        params={"depth": "range(3,0)", "width": "1,2"},
        conditions={"width": {"init": "he"}, "depth": {"nothing": 1}},
    )
    assert sorted(line.split()[0] for line in got) == ["depth", "init", "lr"]
