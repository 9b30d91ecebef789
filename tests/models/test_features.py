"""Features of frozen layers are computed once and give the numbers of the whole model."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from engine_support import by_number, one, save, varied
from support import make_spec
from torch import nn

from sweepstack.engine.program import Program
from sweepstack.engine.train import train
from sweepstack.models import features

CONV = ("model=convnet", "model.width=8", "model.hidden=[32]", "batch.size=32")


@pytest.mark.parametrize(
    "words",
    [
        CONV,
        (*CONV, "regularization.dropout=0.3"),
        ("model=resnet", "model.width=4"),
        ("model.hidden=[16,16]", "regularization.batch_norm=true", "regularization.dropout=0.3"),
    ],
)
def test_kept_features_give_the_numbers_of_the_whole_model(words, tmp_path):
    words = (*words, "training.max_steps=8", "training.eval_every=4", "data.subset=200")
    save(tmp_path / "run", one(*words))
    frozen = "[convs,head.hidden]" if "model=convnet" in words else "backbone"
    frozen = (f"model.freeze={frozen}", f"model.weights={tmp_path / 'run'}", "init=xavier")
    sides = []
    for cached in ("true", "false"):
        base = make_spec(*words, *frozen, f"model.cache_features={cached}").config
        specs = [
            varied(base, n, training={"seed": n}, optimizer={"lr": 0.01 / (1 + n)})
            for n in range(3)
        ]
        sides.append(by_number(train(specs, width=3)))
        alone = by_number(train(specs))
        for number, result in alone.items():
            for row, other in zip(result.history, sides[-1][number].history, strict=True):
                assert row == pytest.approx(other, rel=1e-3)
    kept, whole = (
        Program(make_spec(*words, *frozen, f"model.cache_features={c}")) for c in ("true", "false")
    )
    assert kept.data.input_shape != whole.data.input_shape == kept.seen.input_shape
    assert kept.inputs == whole.inputs or str(kept.inputs) == str(whole.inputs)
    for number, mine in sides[0].items():
        other = sides[1][number]
        for row, reference_row in zip(mine.history, other.history, strict=True):
            assert row == pytest.approx(reference_row, rel=1e-3)
        assert mine.best_state.keys() == other.best_state.keys()
        assert mine.num_parameters == other.num_parameters


def test_features_of_another_cut_are_not_taken_for_these(tmp_path):
    words = ("model.hidden=[8,8]", "data.subset=200", "batch.size=16")
    net = Program.of(make_spec(*words)).module
    torch.save({n: torch.rand(t.shape) - 0.5 for n, t in net.state_dict().items()}, tmp_path / "w")
    words += (f"model.weights={tmp_path / 'w'}", "model.freeze=backbone")
    for dropout in ("0", "0.3"):  # behind the first hidden layer, which is then the last fixed one
        program = Program(make_spec(*words, f"regularization.dropout={dropout}"))
        assert program.module is not program.whole
        with torch.no_grad():
            mine = program.module.eval()(next(program.sources["val"].chunks(9))[0])
            whole = program.whole.eval()(program.seen.val.gather(torch.arange(9))[0])
        torch.testing.assert_close(mine, whole, rtol=1e-4, atol=1e-5)


def test_files_that_change_are_read_again(tmp_path):
    words = ("data=arrays", f"data.train={tmp_path / 'a.npz'}", "model.hidden=[4]", "batch.size=8")
    weights = (f"model.weights={tmp_path / 'w.pt'}", "model.freeze=backbone")

    def written(seed):
        torch.manual_seed(seed)
        x = torch.rand(60, 5)
        np.savez(tmp_path / "a.npz", x=x, y=x[:, 0] > 0.5)
        net = Program.of(make_spec(*words)).module
        torch.save({name: torch.rand(t.shape) for name, t in net.state_dict().items()}, file)

    def kept():
        program = Program.of(make_spec(*words, *weights))
        return program.shared["hidden.0.weight"], next(program.sources["train"].chunks(9))[0]

    file = tmp_path / "w.pt"
    written(0)
    before = kept()
    saved = file.read_bytes()
    written(1)
    file.write_bytes(saved)  # other data, the same weights
    others = kept()
    written(1)
    after = kept()
    assert torch.equal(before[0], others[0])
    assert not torch.equal(before[1], others[1])
    assert not torch.equal(others[0], after[0])
    assert not torch.equal(others[1], after[1])


def test_what_cannot_be_kept_trains_all_the_same(caplog, tmp_path):
    save(tmp_path / "run", one("training.max_steps=2"))
    words = (f"model.weights={tmp_path / 'run'}", "model.freeze=backbone", "training.max_steps=2")
    caplog.set_level(logging.INFO)
    one(*words, "regularization.cutout=2")
    assert "features of frozen layers are not kept: cutout changes the samples" in caplog.text
    with pytest.raises(features.Uncuttable, match="one layer"):
        features.cut(nn.Linear(2, 2), ["weight", "bias"])
