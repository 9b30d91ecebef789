"""A search space: its grid, its trials, what a resume must keep."""

from __future__ import annotations

import json
from itertools import product

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from space_support import MOMENTUM, SGD_OR_ADAM, UNEVEN, Trial, grid_overrides, hydra_value

from sweepstack.config.errors import InputError
from sweepstack.config.space import grammar
from sweepstack.config.space.declare import parse
from sweepstack.config.space.points import labels_of


def test_the_first_declared_varies_slowest():
    space = parse(["seed=0,1"], {"init": "he,xavier"})
    assert [list(point.values()) for point in space.grid()] == [
        ["he", 0],
        ["he", 1],
        ["xavier", 0],
        ["xavier", 1],
    ]


def test_a_continuous_parameter_has_no_grid():
    space = parse(["init=he,xavier", "optimizer.lr=interval(0,1)"])
    assert not space.is_finite
    for ask in (lambda: space.grid_size, lambda: next(space.grid())):
        with pytest.raises(InputError, match=r"optimizer\.lr is continuous.*n_trials"):
            ask()


def test_the_size_of_a_huge_grid_is_counted_without_walking_it():
    space = parse(["a=range(0,1000000)", "b=range(0,1000000)"])
    assert space.grid_size == 10**12


names = st.sampled_from(["a", "b.c", "group", "d"])
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**6), 10**6),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=8),
    st.sampled_from(["null", "1", "true", "nan", "a b", "a,b", "it's", "\\", "\\'", "${a}", "$x"]),
)
values = st.one_of(scalars, st.lists(scalars, max_size=3))
choices = st.lists(values, min_size=1, max_size=4, unique_by=grammar.text_of)


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(names, choices, min_size=1, max_size=3))
def test_the_grid_is_the_product_exactly_once(declared):
    space = parse([], {k: {"type": "categorical", "choices": v} for k, v in declared.items()})
    got = [tuple(lines) for lines in grid_overrides(space)]
    texts = [[f"{k}={grammar.text_of(v)}" for v in vs] for k, vs in declared.items()]
    assert got == list(product(*texts))
    assert space.grid_size == len(got) == len(set(got))


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(names, choices, min_size=1, max_size=3), st.integers())
def test_hydra_reads_a_suggested_choice_back_as_it_was_given(declared, seed):
    space = parse([], {k: {"type": "categorical", "choices": v} for k, v in declared.items()})
    point = space.suggest(Trial(seed))
    lines = space.overrides(point)
    for line, offered in zip(lines, declared.values(), strict=True):
        read = hydra_value(line)
        assert any(read == v and type(read) is type(v) for v in offered)
    assert labels_of(space, lines) == point
    assert json.loads(json.dumps(point)) == point


@settings(max_examples=60, deadline=None)
@given(st.floats(-1e6, 1e6), st.floats(1e-9, 1e6), st.integers(-100, 100), st.integers(1, 9))
def test_hydra_reads_a_suggested_number_back_as_it_was_given(low, width, first, step):
    space = parse(
        [
            f"a=interval({low},{low + width})",
            f"b=range({first},{first + 10 * step},{step})",
            f"c=range({first / 10},{first / 10 + step},0.1)",
        ]
    )
    point = space.suggest(Trial(step))
    lines = space.overrides(point)
    assert [hydra_value(line) for line in lines] == list(point.values())
    assert labels_of(space, lines) == point
    stepped = parse([f"c=range({first / 10},{first / 10 + step},0.1)"])
    assert {"c": point["c"]} in list(stepped.grid())


def test_optuna_itself_accepts_every_kind_of_label():
    space = parse(["a='1',1,true,null", "b=range(0,1,0.1)", "c=[1],[1,2]"], {"d": UNEVEN})
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(0))
    for _ in range(30):
        trial = study.ask()
        point = space.suggest(trial)
        study.tell(trial, 0.0)
        assert space.overrides(study.trials[-1].params) == space.overrides(point)
        assert point in list(space.grid())


@pytest.mark.parametrize(
    ("point", "words"),
    [
        ({"init": "zeros"}, "init must be one of he, xavier, got 'zeros'"),
        ({"inti": "he"}, "inti is not in the search space; did you mean 'init'"),
        ({"lr": "he"}, "lr must be a number"),
    ],
)
def test_a_point_of_another_space_is_refused(point, words):
    with pytest.raises(InputError, match=words):
        parse(["init=he,xavier", "lr=interval(0,1)"]).overrides(point)


def test_the_preview_names_every_parameter_with_its_values():
    parameters = parse([], SGD_OR_ADAM, MOMENTUM).parameters
    assert [(p.name, p.description) for p in parameters] == [
        ("optimizer", "sgd, adam, adamw"),
        (
            "optimizer.lr[optimizer=sgd]",
            "a float from 0.001 to 1.0, log (only with optimizer=sgd)",
        ),
        (
            "optimizer.lr[optimizer=adam|adamw]",
            "a float from 1e-05 to 0.01, log (only with optimizer=adam|adamw)",
        ),
        ("optimizer.momentum", "0, 0.9 (only with optimizer=sgd)"),
    ]


def test_a_signature_survives_json_and_ignores_the_way_of_writing():
    written = parse(["a=1,2", "b=[1],null", "c=tag(log,interval(1e-3,1))"], SGD_OR_ADAM, MOMENTUM)
    signature = written.signature()
    assert json.loads(json.dumps(signature)) == signature
    again = parse(["+b=choice(a,'c')", "x=range(0,4)"]).signature()
    assert again == parse(["x=int(interval(0,3))", "b=a,c"]).signature()


@pytest.mark.parametrize(
    "new",
    [
        ["a=2,1", "lr=interval(0,1)"],
        ["a=1,2,3", "lr=interval(0,1)"],
        ["a='1',2", "lr=interval(0,1)"],
        ["a=1,2", "lr=interval(0,2)"],
        ["a=1,2", "lr=0,1"],
        ["a=1,2"],
        ["a=1,2", "lr=interval(0,1)", "b=1,2"],
    ],
)
def test_another_space_has_another_signature(new):
    assert parse(["a=1,2", "lr=interval(0,1)"]).signature() != parse(new).signature()
