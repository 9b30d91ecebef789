"""The quick composition is the full one, whatever is overridden."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from support import REPOSITORY

from sweepstack.config.composition import Composition, compose
from sweepstack.config.errors import InputError

GROUPS = {
    group.name: sorted(file.stem for file in group.glob("*.yaml") if file.stem != "custom")
    for group in (REPOSITORY / "conf").iterdir()
    if group.is_dir()
}
COUNTED = []


def load(overrides):
    COUNTED.append(overrides)
    return compose(overrides)


def full(overrides):
    return OmegaConf.to_container(compose(overrides), resolve=True)


number = st.floats(1e-6, 1e6, allow_nan=False).map(repr) | st.integers(-5, 500).map(str)
word = st.sampled_from(["null", "true", "relu", "'a b'", "'12:30'", "010", "[]", "[1,[a,'2']]"])
value = st.sampled_from(
    [
        *("optimizer.lr", "regularization.dropout", "batch.size", "training.seed", "objective"),
        *("model.activation", "data.subset", "trust", "regularization.clip_norm", "+new.key"),
    ]
).flatmap(lambda key: st.tuples(st.just(key), number | word).map("=".join))
group = st.sampled_from(sorted(GROUPS)).flatmap(
    lambda name: st.sampled_from(GROUPS[name]).map(lambda option: f"{name}={option}")
)
composition = Composition(load, lambda key: key in GROUPS)


@settings(max_examples=20, deadline=None)
@given(
    st.lists(group, max_size=3, unique_by=lambda o: o.split("=")[0]), st.lists(value, max_size=5)
)
def test_equals_a_full_composition(groups, values):
    overrides = [*groups, *values]
    try:
        expected = full(overrides)
    except InputError:
        with pytest.raises(InputError):
            composition(overrides)
        return
    assert composition(overrides) == expected


def test_group_choices_are_composed_once():
    fresh = Composition(load, lambda key: key in GROUPS)
    COUNTED.clear()
    for lr in (0.1, 0.2, 0.3):
        for optimizer in ("adam", "sgd"):
            plain = fresh([f"optimizer={optimizer}", f"optimizer.lr={lr}"])
            assert (plain["optimizer"]["name"], plain["optimizer"]["lr"]) == (optimizer, lr)
    assert COUNTED == [["optimizer=adam"], ["optimizer=sgd"]]


def test_one_trial_does_not_change_the_next():
    fresh = Composition(load, lambda key: key in GROUPS)
    fresh(["model.hidden=[1,2]"])["model"]["hidden"].append(3)
    assert fresh([])["model"]["hidden"] == [100]


def test_a_key_that_is_not_there_is_refused_as_hydra_does():
    with pytest.raises(InputError, match="lrr"):
        composition(["optimizer.lrr=1"])
