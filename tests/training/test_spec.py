"""What is kept of a config's groups is what the whole config gives; no value passes for another."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, fields, is_dataclass, replace
from itertools import pairwise

import pytest
import yaml
from support import make_spec

from sweepstack.config import reading as config
from sweepstack.config.errors import InputError
from sweepstack.sweep.worker.trial_folder import TrialFolder
from sweepstack.training.spec import TrialSpec

CHANGES = [
    [],
    ["optimizer.lr=0.5"],
    ["optimizer.lr=0.5", "model.hidden=[7,7]"],
    ["optimizer.lr=0.25", "model.hidden=[7,7]", "training.seed=3"],
    ["model=convnet", "data=quadratic", "optimizer=adam"],
    ["objective=val_loss", "trust=[numpy]"],
]
SPECS = [make_spec(*words, number=number) for number, words in enumerate(CHANGES)]


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: str(spec.number))
def test_the_parts_of_a_config_make_up_the_whole(spec, tmp_path):
    whole = asdict(spec.config)
    del whole["training"]["width"]  # how many are trained together changes nothing about one
    del whole["training"]["diagnostics"]  # nor does who looks on
    del whole["logger"]  # nor who writes down what it measures
    for name, group in vars(spec.config).items():
        for item in fields(group) if is_dataclass(group) and name in whole else ():
            if getattr(group, item.name) == item.default:  # what older configs lack
                whole[name].pop(item.name, None)
    text = json.dumps(whole, sort_keys=True, default=str)
    assert spec.config_hash == hashlib.sha256(text.encode()).hexdigest()[:16]

    words = ["a.b=1", "optimizer.lr=1e-05", "model.hidden=[1,2]", "x='y: #z'", "trust=ä", "k=null"]
    TrialFolder(tmp_path).begin(spec, words)
    written = (tmp_path / "config.yaml").read_text("utf-8")
    assert written == yaml.safe_dump(asdict(spec.config), sort_keys=False, allow_unicode=True)
    assert yaml.safe_load((tmp_path / "overrides.yaml").read_text("utf-8")) == words


def test_a_changed_group_is_not_taken_for_the_one_it_was_made_from():
    first = SPECS[0]
    changed = replace(first.config, training=replace(first.config.training, seed=99))
    assert TrialSpec(changed).config_hash != first.config_hash
    assert len({spec.config_hash for spec in SPECS}) == len(SPECS)
    for one, other in pairwise([SPECS[0], SPECS[2], SPECS[4], SPECS[5]]):
        assert one.static != other.static
    assert SPECS[0].static == SPECS[1].static  # a learning rate is each slot's own


def test_equal_groups_are_one_object_and_unequal_ones_are_not():
    one, other = SPECS[1].config, SPECS[2].config
    assert one.optimizer is other.optimizer
    assert one.model is not other.model


def test_what_only_compares_equal_is_still_refused():
    plain = asdict(SPECS[0].config)
    assert is_dataclass(config.read_plain(plain))
    on = {**plain["optimizer"], "nesterov": True}
    assert config.read_plain({**plain, "optimizer": on}).optimizer.nesterov is True
    with pytest.raises(InputError, match=r"optimizer.nesterov must be .* got 1"):
        config.read_plain({**plain, "optimizer": {**on, "nesterov": 1}})
    with pytest.raises(InputError, match=r"training.seed must be .* got True"):
        config.read_plain({**plain, "training": {**plain["training"], "seed": True}})
