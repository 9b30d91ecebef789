"""What may be written as values of a key, and what is said when it may not."""

from __future__ import annotations

import re

import pytest
from space_support import UNEVEN, Trial, grid_overrides, hydra_value, mistakes

from sweepstack.config.space.declare import parse


@pytest.mark.parametrize(
    ("written", "values"),
    [
        ("choice(he,xavier)", ["he", "xavier"]),
        ([[50], [50, 50]], [[50], [50, 50]]),
        ("he,xavier", ["he", "xavier"]),
        ("[50],[50,50]", [[50], [50, 50]]),
        ("null,0.1", [None, 0.1]),
        ("'1',1,1.0,true", ["1", 1, 1.0, True]),
        ("choice('null',a)", ["null", "a"]),
        ("'NULL','True','Inf','NaN'", ["NULL", "True", "Inf", "NaN"]),
        ("'a b','c,d',''", ["a b", "c,d", ""]),
        ("'[50]',[50]", ["[50]", [50]]),
        ("{a:1,b:[x,'y z']},{}", [{"a": 1, "b": ["x", "y z"]}, {}]),
        ("010,12:30", ["010", "12:30"]),
        ("range(0,3)", [0, 1, 2]),
        ("range(3)", [0, 1, 2]),
        ("range(1,10,4)", [1, 5, 9]),
        ("range(1,9,4)", [1, 5]),
        ("range(5,0,-2)", [1, 3, 5]),
        ("range(0,1,0.25)", [0.0, 0.25, 0.5, 0.75]),
        ("range(0,0.9,0.3)", [0.0, 0.3, 0.6]),
        ("int(interval(2,4))", [2, 3, 4]),
        ("tag(log,int(interval(2,4)))", [2, 3, 4]),
        ("sort(choice(3,1,2))", [1, 2, 3]),
        ("float(range(1,3))", [1.0, 2.0]),
        (UNEVEN, [2, 5, 8]),
        ({"type": "float", "low": 0, "high": 0.3, "step": 0.1}, [0.0, 0.1, 0.2, 0.3]),
        ({"type": "categorical", "choices": ["null", None, "a b"]}, ["null", None, "a b"]),
    ],
)
def test_every_written_form_becomes_exactly_these_values(written, values):
    space = parse([], {"key": written})
    got = [hydra_value(line) for [line] in grid_overrides(space)]
    assert got == values
    assert [type(value) for value in got] == [type(value) for value in values]
    assert space.is_finite
    assert space.grid_size == len(values)


@pytest.mark.parametrize(
    ("written", "asked"),
    [
        ("interval(0,1)", (0.0, 1.0, False)),
        ("interval(1,5)", (1.0, 5.0, False)),
        ("tag(log, interval(1e-4,1))", (1e-4, 1.0, True)),
        ("tag(log, int(interval(1,32)))", (1, 32, True)),
        ("int(tag(log, interval(1,32)))", (1, 32, True)),
        ("tag(log, range(1,33))", (1, 32, True)),
        ({"type": "float", "low": 1e-4, "high": 1, "log": True}, (1e-4, 1.0, True)),
    ],
)
def test_numbers_are_asked_for_with_their_bounds_and_scale(written, asked):
    trial = Trial()
    label = parse([], {"key": written}).suggest(trial)["key"]
    assert trial.asked == {"key": asked}
    assert [type(n) for n in trial.asked["key"]] == [type(n) for n in asked]
    assert type(label) is type(asked[0])


def test_shuffle_changes_the_order_in_the_same_way_every_time():
    written = f"shuffle({','.join(map(str, range(20)))})"
    first, again = (parse([f"a={written}"]) for _ in range(2))
    order = [point["a"] for point in first.grid()]
    assert order != sorted(order)
    assert sorted(order) == list(range(20))
    assert first == again
    numbers = [point["a"] for point in parse(["a=shuffle(range(0,20))"]).grid()]
    assert numbers != sorted(numbers)
    assert sorted(numbers) == list(range(20))


def test_a_plus_and_a_package_keep_their_way_of_writing():
    space = parse(["+extra=1,2", "optimizer@other=adam,sgd"])
    assert [p.name for p in space.parameters] == ["extra", "optimizer@other"]
    assert grid_overrides(space)[0] == ["+extra=1", "optimizer@other=adam"]


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("init=choice()", r"init must offer at least one value, got choice\(\)"),
        ("init=chioce(a,b)", "'chioce', known are .*; did you mean 'choice'"),
        ("a=interval(2,1)", r"a must have low <= high, got a=interval\(2,1\)"),
        ("a=interval(0,inf)", "a must have finite bounds"),
        ("a=interval(0)", "cannot be read: .*missing a required argument: 'end'"),
        ("a=tag(log,interval(0,1))", "a must be > 0 to be drawn from its logarithm"),
        ("a=tag(log,range(0.1,1,0.1))", "a can have log or a step, not both"),
        ("a=tag(log,range(1,9,2))", "a can have log or a step, not both"),
        ("a=tag(lgo,interval(1,2))", "the only tag is log, got 'lgo'"),
        ("a=tag(log,choice(1,2))", r"tag\(log, ...\) needs an interval or a range"),
        ("a=range(0,3,0)", "a must have a step other than 0"),
        ("a=range(0,3,4)", "a must have a step that fits into its range"),
        ("a=range(3,0)", r"a must have at least one value, got the empty a=range\(3,0\)"),
        ("a=range(3,3)", "a must have at least one value"),
        ("a=he,xavier,he", "a offers he twice"),
        ("a=he,'he'", "a offers he twice"),
        ("a=choice(null,1)", r"choice\(\) cannot hold null, .* a=null,1"),
        ("a=[interval(0,1)]", "a list cannot hold another sweep"),
        ("a=interval(0,1),2", "a list cannot hold another sweep"),
        ("a=glob(*)", r"glob\(...\) needs a config group, got a=glob"),
        ("a=ü", "'a=ü' cannot be read: it must look like KEY=VALUE"),
        ("a", "'a' cannot be read"),
        ("a=1,2,", "cannot be read"),
    ],
)
def test_bad_values_are_one_line_each(argument, words):
    [mistake] = mistakes(argument)
    if "=" in argument:
        assert mistakes(params=dict([argument.split("=", 1)])) == [mistake]
    assert "\n" not in mistake
    assert re.search(words, mistake), mistake


@pytest.mark.parametrize(
    ("mapping", "words"),
    [
        ({"type": "flaot", "low": 0, "high": 1}, "type must be one of .*; did you mean 'float'"),
        ({"type": "float", "low": 0, "hihg": 1}, "unknown field 'hihg'; did you mean 'high'"),
        ({"type": "float", "low": 0}, "needs numbers of type float"),
        ({"type": "int", "low": 0, "high": 1.5}, "needs numbers of type int"),
        ({"type": "float", "low": 2, "high": 1}, "low <= high"),
        ({"type": "float", "low": 0, "high": 1, "step": 0}, "step > 0"),
        ({"type": "int", "low": 0, "high": 5, "step": -1}, "step > 0"),
        ({"type": "float", "low": 0, "high": 1, "step": 2}, "step that fits"),
        ({"type": "float", "low": 0, "high": 1, "log": True}, "must be > 0"),
        ({"type": "float", "low": 1, "high": 2, "log": "yes"}, "log must be true or false"),
        ({"type": "categorical", "choices": []}, "at least one value"),
        ({"type": "categorical", "choices": ["a", "a"]}, "offers a twice"),
        ({"when": {"b": 1}}, "a case must be"),
        ({"typ": "float", "low": 0, "high": 1}, "must be values, .*in quotes.*did you mean 'type'"),
        ({"low": 0, "high": 1}, "must be values, .*type: float.* in quotes: '{low:0,high:1}'"),
        ({}, "must be values"),
        ({"wen": {"b": 1}, "values": "1,2"}, "did you mean 'when'?"),
        ([{"wen": {"b": 1}, "values": "1,2"}], "a case must be .*; did you mean 'when'?"),
        ([{"when": {}, "values": "1,2"}], "when must name a parent"),
    ],
)
def test_bad_mappings_are_one_line_each(mapping, words):
    [mistake] = mistakes(params={"key": mapping})
    assert re.search(words, mistake), mistake
    assert mistake.startswith("key")
