"""The points at which a space is checked: every value, every end, every combination of groups."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from space_support import MOMENTUM, SGD_OR_ADAM

from sweepstack.sweep.space import points
from sweepstack.sweep.space.space import parse


def checked(*arguments, params=None, conditions=None):
    return list(points.to_check(parse(arguments, params, conditions)))


def test_the_first_point_has_the_first_values():
    assert checked("init=he,xavier", "optimizer.lr=interval(0.1,1)")[0] == [
        "init=he",
        "optimizer.lr=0.1",
    ]


def test_a_space_of_one_point_has_that_point():
    assert checked("optimizer.lr=0.1") == [[]]


def test_every_choice_is_checked_beside_first_values_of_the_others():
    found = checked("optimizer.lr=1,2,3", "batch.size=64,128")

    assert found == [
        ["optimizer.lr=1", "batch.size=64"],
        ["optimizer.lr=2", "batch.size=64"],
        ["optimizer.lr=3", "batch.size=64"],
        ["optimizer.lr=1", "batch.size=128"],
    ]


def test_of_a_range_both_ends_are_checked_in_their_type():
    assert checked("a.b=tag(log,interval(1e-4,1))") == [["a.b=0.0001"], ["a.b=1.0"]]
    assert checked("a.b=range(0,10,3)") == [["a.b=0"], ["a.b=9"]]
    assert checked("a.b=int(interval(1,5))") == [["a.b=1"], ["a.b=5"]]


def test_all_combinations_of_groups_are_checked():
    found = checked("init=he,xavier", "model=mlp,convnet", "optimizer=sgd,adam")

    assert sorted(map(tuple, found)) == sorted(
        (f"init={i}", f"model={m}", f"optimizer={o}")
        for i in ("he", "xavier")
        for m in ("mlp", "convnet")
        for o in ("sgd", "adam")
    )


def test_many_combinations_are_cut_short_but_every_choice_stays():
    choices = ",".join(f"c{number}" for number in range(20))
    found = checked(*(f"{group}={choices}" for group in "abc"))

    assert len(found) < points.MOST_COMBINATIONS + 60
    assert {word for words in found for word in words} == {
        f"{group}=c{number}" for group in "abc" for number in range(20)
    }


def test_no_point_twice():
    found = [tuple(words) for words in checked("init=he,xavier", "model=mlp,convnet", "a.b=1,2")]

    assert len(found) == len(set(found))


def test_a_value_with_conditions_is_checked_where_it_exists():
    found = checked(params=SGD_OR_ADAM, conditions=MOMENTUM)

    assert ["optimizer=sgd", "optimizer.lr=1.0", "optimizer.momentum=0"] in found
    assert ["optimizer=sgd", "optimizer.lr=0.001", "optimizer.momentum=0.9"] in found
    assert ["optimizer=adam", "optimizer.lr=0.01"] in found
    assert ["optimizer=adamw", "optimizer.lr=1e-05"] in found
    assert not any("optimizer=adam" in words and len(words) > 2 for words in found)


def test_a_condition_on_a_condition_is_followed():
    found = checked("a=x,y", "b=u,v", "c.d=1,2", conditions={"b": {"a": "y"}, "c.d": {"b": "v"}})

    assert ["a=y", "b=v", "c.d=2"] in found
    assert all("b=v" in words for words in found for word in words if word.startswith("c.d"))


NAMES = st.sampled_from(["a", "b", "c.d", "e.f"])
VALUES = st.lists(st.integers(0, 9), min_size=2, max_size=5, unique=True)


@given(st.dictionaries(NAMES, VALUES, min_size=1))
def test_every_value_of_every_parameter_is_in_some_point(space):
    found = checked(*(f"{key}={','.join(map(str, values))}" for key, values in space.items()))

    wanted = {f"{key}={value}" for key, values in space.items() for value in values}
    assert {word for words in found for word in words} == wanted
    assert all(len(words) == len(space) for words in found)
