"""The order of a grid: points that can share a stack follow each other."""

from __future__ import annotations

from itertools import groupby, product
from math import prod

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sweep_support import params, states, study, without

from sweepstack.sweep.space import order
from sweepstack.sweep.space.space import parse


def static_of(*paths):
    """As if these keys decided the static part."""

    def static(words):
        return tuple(word for word in words if word.partition("=")[0] in paths)

    return static


def visited(space, static):
    """The static part and the overrides of each point, in order."""
    points = order.arranged(space, order.ranks(space, static))
    return [(static(words), words) for words in map(space.overrides, points)]


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
    alike = order.most_alike(space, order.ranks(space, static_of(*deciding)))
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

    points = order.arranged(space, order.ranks(space, static))

    assert len(looked) == 2 + 30 + 3  # of a long range the ends
    assert len(points) == 1000 * 30 * 3
    assert [point["a"] for point in points[:: 30 * 3]] == list(range(1000))


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
        patch.setattr(order, "arranged", lambda space, by: list(space.grid()))
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
