"""Points of a space: those that are checked, those that are known, and the order of a grid."""

from __future__ import annotations

from itertools import groupby, product
from math import prod

import pytest
from hypothesis import given
from hypothesis import strategies as st
from space_support import MOMENTUM, SGD_OR_ADAM
from sweep_support import params, states, study, without

from sweepstack.config.errors import InputError
from sweepstack.config.space import points
from sweepstack.config.space.declare import parse


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

    assert len(found) < points.MAX_COMBINATIONS + 60
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


# --- known points --------------------------------------------------------------------------------


def test_a_known_configuration_may_leave_parameters_open_and_repeat_what_is_fixed():
    space = parse(["data=mnist"], SGD_OR_ADAM, MOMENTUM)
    known = ["optimizer=sgd", "optimizer.momentum=0.0", "data=mnist"]
    assert points.labels_of(space, known) == {"optimizer": "sgd", "optimizer.momentum": 0}
    point = points.labels_of(space, ["optimizer=adam", "optimizer.lr=0.01"])
    assert point == {"optimizer": "adam", "optimizer.lr[optimizer=adam|adamw]": 0.01}


@pytest.mark.parametrize(
    ("known", "words"),
    [
        (["optimizer=rmsprop"], "optimizer must be one of sgd, adam, adamw, got rmsprop"),
        (["optimizer=adma"], "did you mean 'adam'"),
        (["optimizer=sgd", "optimizer.lr=2"], "optimizer.lr must be a float from 0.001 to 1.0"),
        (["optimizer=sgd", "optimizer.lr=big"], "optimizer.lr must be a float from 0.001 to 1.0"),
        (["optimizer=adam", "optimizer.momentum=0"], "optimizer.momentum=0 needs optimizer=sgd"),
        (["optimizer.lr=0.1"], "needs optimizer=sgd or optimizer=adam|adamw"),
        (["optimizr=adam"], "optimizr is not in the search space; did you mean 'optimizer'"),
        (["data=digits"], "data is mnist in the whole sweep, got digits"),
        (["optimizer=sgd,adam"], "one value for each key"),
        (["depth=9"], "depth must be an int from 1 to 7 in steps of 2, got 9"),
        (["depth=2"], "depth must be an int from 1 to 7 in steps of 2, got 2"),
        (["depth=true"], "depth must be an int from 1 to 7 in steps of 2, got True"),
    ],
)
def test_a_configuration_outside_the_space_is_refused(known, words):
    space = parse(["data=mnist", "depth=range(1,8,2)"], SGD_OR_ADAM, MOMENTUM)
    with pytest.raises(InputError) as caught:
        points.labels_of(space, known)
    assert words in str(caught.value)
    assert len(caught.value.mistakes) == 1


# --- the order of a grid --------------------------------------------------------------------------


def static_of(*paths):
    """As if these keys decided the static part."""

    def static(words):
        return tuple(word for word in words if word.partition("=")[0] in paths)

    return static


def visited(space, static):
    """The static part and the overrides of each point, in order."""
    ordered = points.arranged(space, points.ranks(space, static))
    return [(static(words), words) for words in map(space.overrides, ordered)]


@given(st.permutations(["a", "b", "c", "d"]), st.sets(st.sampled_from("abcd")))
def test_points_with_an_equal_static_part_follow_each_other(names, deciding):
    sizes = dict(zip(names, (3, 2, 4, 2), strict=True))
    space = parse([f"{name}={','.join(map(str, range(sizes[name])))}" for name in names])
    found = visited(space, static_of(*deciding))

    assert len([static for static, _ in groupby(found, lambda each: each[0])]) == prod(
        sizes[name] for name in deciding
    )
    # Nothing else changes: within a stack, and among stacks, the declared order stays.
    wanted = [
        [f"{n}={v}" for n, v in zip(names, values, strict=True)]
        for values in product(*(range(sizes[name]) for name in names))
    ]
    rank = {tuple(words): place for place, words in enumerate(wanted)}
    assert sorted(rank[tuple(words)] for _, words in found) == list(range(len(wanted)))
    for _, stack in groupby(found, lambda each: each[0]):
        places = [rank[tuple(words)] for _, words in stack]
        assert places == sorted(places)
    statics = list(dict.fromkeys(static for static, _ in found))
    assert statics == sorted(statics)
    alike = points.most_alike(space, points.ranks(space, static_of(*deciding)))
    assert alike == max(len(list(stack)) for _, stack in groupby(found, lambda each: each[0]))


def test_values_that_share_a_stack_are_one():
    """Weight decay on or off is static, its strength is not."""
    space = parse(["decay=0,1e-4,1e-3", "width=1,2"])

    def static(words):
        return (words[0] == "decay=0", words[1])

    assert [words for _, words in visited(space, static)] == [
        ["decay=0", "width=1"],
        ["decay=0", "width=2"],
        ["decay=0.0001", "width=1"],
        ["decay=0.001", "width=1"],
        ["decay=0.0001", "width=2"],
        ["decay=0.001", "width=2"],
    ]


def test_parameters_with_conditions_and_cases():
    cases = {
        "lr": "0.1,0.2",
        "model": "mlp,convnet",
        "width": [
            {"when": {"model": "mlp"}, "values": "5,6"},
            {"when": {"model": "convnet"}, "values": "7,8"},
        ],
    }
    space = parse([], cases)
    found = visited(space, static_of("model", "width"))

    assert [static for static, _ in found] == [
        static
        for static in [
            ("model=mlp", "width=5"),
            ("model=mlp", "width=6"),
            ("model=convnet", "width=7"),
            ("model=convnet", "width=8"),
        ]
        for _ in range(2)
    ]


def test_few_points_are_looked_at():
    looked = []
    space = parse(["a=range(0,1000)", "b=range(0,30)", "c=x,y,z"])

    def static(words):
        looked.append(words)
        return words[0]

    ordered = points.arranged(space, points.ranks(space, static))

    assert len(looked) == 2 + 30 + 3  # of a long range the ends
    assert len(ordered) == 1000 * 30 * 3
    assert [point["a"] for point in ordered[:: 30 * 3]] == list(range(1000))


# --- a whole sweep -------------------------------------------------------------------------------

SHAPES = [*without("model.hidden"), "optimizer.lr=0.02,0.01", "model.hidden=[5],[4]"]
STACKED = [(0.02, "[5]"), (0.01, "[5]"), (0.02, "[4]"), (0.01, "[4]")]


def ran(folder):
    lrs, hidden = params(folder), params(folder, "model.hidden")
    return list(zip(lrs, hidden, strict=True))


def test_a_sweep_trains_shape_by_shape_and_prints_what_was_declared(main, tmp_path):
    seeds = "training.seed=0,1"
    ended = main("-m", *SHAPES, seeds)

    assert ended.code == 0, ended.err
    assert ran(tmp_path) == [point for point in STACKED for _ in range(2)]
    lines = ended.out.splitlines()
    [head] = [line for line in lines if line.startswith("optimizer.lr ")]
    assert head.split() == ["optimizer.lr", "[5]", "[4]"]
    rows = lines[lines.index(head) + 1 :][:2]
    assert [row.split()[0] for row in rows] == ["0.02", "0.01"]


@pytest.mark.parametrize("n_jobs", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_study_that_began_in_another_order_goes_on_to_every_point_once(
    main, tmp_path, monkeypatch, n_jobs
):
    with monkeypatch.context() as patch:
        patch.setattr(points, "arranged", lambda space, by: list(space.grid()))
        first = ["hydra/sweeper/sampler=grid", "hydra.sweeper.n_trials=2"]
        assert main("-m", *SHAPES, *first).code == 0
    assert ran(tmp_path) == [(0.02, "[5]"), (0.02, "[4]")]

    assert main("-m", *SHAPES, f"hydra.sweeper.n_jobs={n_jobs}").code == 0

    assert states(tmp_path) == ["COMPLETE"] * 4
    assert sorted(ran(tmp_path)) == sorted(STACKED)
    again = main("-m", *SHAPES)
    assert "4 of them done before" in again.out
    assert len(study(tmp_path).trials) == 4


def test_known_points_come_before_that_order(main, tmp_path):
    known = "hydra.sweeper.enqueue=[{optimizer.lr: 0.01, model.hidden: '[4]'}]"
    assert main("-m", *SHAPES, known).code == 0

    assert ran(tmp_path) == [STACKED[3], *STACKED[:3]]
