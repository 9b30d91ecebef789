"""Weights that a module brings: frozen ones never change, loaded ones are where training begins."""

from __future__ import annotations

import pytest
import torch
from frozen_support import Net
from support import make_spec

from sweepstack.engine.program import Program
from sweepstack.engine.train import train
from sweepstack.runs import prediction as saved
from sweepstack.runs.folder import write_model

ALL = (
    *("optimizer=adamw", "regularization.weight_decay=0.5", "regularization.l1=0.1"),
    *("regularization.clip_norm=0.5", "training.max_steps=6", "batch.size=16"),
)


def frozen_spec(*words, net="Net", **settings):
    target = ("model=custom", f"model._target_=frozen_support.{net}", "trust=[frozen_support]")
    return make_spec(*target, *ALL, *words, **settings)


@pytest.mark.parametrize("net", ["Net", "OwnEval"])
@pytest.mark.parametrize("width", [1, 3])
def test_what_is_frozen_stays_and_the_rest_trains(width, net):
    specs = [frozen_spec(f"training.seed={n}", net=net, number=n) for n in range(width)]
    own = Net(10).state_dict()
    for result in train(specs, width=width):
        assert result.error is None
        for name, value in result.best_state.items():
            if name.startswith("trunk."):
                assert torch.equal(value, own[name]), name
            elif name != "shift":
                assert not torch.equal(value, own[name]), name


def test_loaded_weights_are_where_training_begins():
    spec, other = frozen_spec("init=zeros"), frozen_spec("init=he", "training.seed=1")
    program, own = Program.of(spec), Net(10).state_dict()
    zeros, he = program.initial(spec), program.initial(other)
    for name in own.keys() - {"shift"} & he.keys():
        drawn = name in ("middle.bias", "head.weight", "head.bias")
        assert torch.equal(he[name], own[name]) != drawn, name
    assert not zeros["head.weight"].any()
    assert not torch.equal(zeros["shift"], he["shift"])  # what the constructor draws is the trial's
    assert program.init_summary == (
        "init draws middle.bias, head.weight, head.bias; kept as constructed: trunk.1.weight, "
        "trunk.1.bias, trunk.2.weight, trunk.2.bias, middle.weight, norm.weight and 1 more"
    )


@pytest.mark.parametrize("model", [("model=mlp",), ("model=convnet", "model.width=4")])
def test_keep_starts_as_constructed_under_the_trials_seed(model):
    specs = [make_spec(*model, "init=keep", f"training.seed={seed}") for seed in (0, 0, 1)]
    first, again, other = (Program.of(spec).initial(spec) for spec in specs)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first)
    assert all(value.any() for value in first.values())


def test_a_saved_model_has_its_frozen_part(tmp_path):
    (result,) = train([frozen_spec(folder=tmp_path)])
    write_model(tmp_path, result)
    loaded = saved.load(tmp_path, trust=["frozen_support"]).model.state_dict()
    assert all(torch.equal(value, loaded[name]) for name, value in result.best_state.items())
