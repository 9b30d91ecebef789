"""Metrics on shifted, turned and noisy pictures: against plain loops, alone and in a stack."""

from __future__ import annotations

import pytest
import torch
from engine_support import by_number, one, varied
from support import make_spec
from torch.func import functional_call
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as v2

from sweepstack.config import schema
from sweepstack.config.errors import InputError
from sweepstack.engine.program import Program
from sweepstack.engine.train import train
from sweepstack.training.evaluation import changes

SHORT = ("training.max_steps=30", "training.eval_every=15", "data.subset=300", "model.hidden=[20]")
ALL = ("evaluation.shift=2", "evaluation.rotation=20", "evaluation.noise=0.2")


def asked(shift=0, rotation=0.0, noise=0.0):
    return schema.Evaluation(shift=shift, rotation=rotation, noise=noise)


def applied(config, x, name, **given):
    found = changes(config, **{"seed": 0, "scale": None, **given})
    assert list(found) == [name]
    return [change(x, 0) for change in found[name]]


def test_a_shift_rolls_by_whole_pixels_in_four_directions():
    x = torch.rand(5, 3, 8, 6)
    copies = applied(asked(shift=2), x, "shifted")
    moves = [(-2, 3), (2, 3), (-2, 2), (2, 2)]
    assert len(copies) == len(moves)
    for copy, (pixels, axis) in zip(copies, moves, strict=True):
        assert torch.equal(copy, torch.roll(x, pixels, axis))
    assert torch.equal(copies[0][..., :-2], x[..., 2:])
    assert torch.equal(copies[0][..., -2:], x[..., :2])


def test_a_rotation_turns_either_way_as_torchvision_does():
    x = torch.rand(5, 3, 9, 9)
    copies = applied(asked(rotation=15.0), x, "rotated")
    for copy, angle in zip(copies, (-15.0, 15.0), strict=True):  # torchvision's is counterclockwise
        expected = v2.rotate(x, angle, InterpolationMode.BILINEAR)
        torch.testing.assert_close(copy, expected, atol=1e-4, rtol=0)


def test_noise_is_normal_and_depends_on_the_sample_and_the_split_seed_alone():
    x = torch.zeros(400, 1, 20, 20)
    (noisy,) = applied(asked(noise=0.3), x, "noisy")
    assert noisy.mean().item() == pytest.approx(0, abs=5 * 0.3 / 400)
    assert noisy.std().item() == pytest.approx(0.3, rel=0.01)
    inside = (noisy.abs() < 0.3).float().mean().item()
    assert inside == pytest.approx(0.6827, abs=0.005)
    one_by_one = changes(asked(noise=0.3), 0, None)["noisy"][0]
    parts = [one_by_one(x[first : first + 150], first) for first in range(0, 400, 150)]
    assert torch.equal(torch.cat(parts), noisy)
    assert len(noisy.flatten(1).unique(dim=0)) == 400
    assert not torch.equal(applied(asked(noise=0.3), x, "noisy", seed=1)[0], noisy)
    scaled = applied(asked(noise=0.3), x, "noisy", scale=torch.full((1, 1, 1), 0.5))[0]
    torch.testing.assert_close(scaled, 2 * noisy)


def test_metrics_are_the_means_over_the_copies_of_the_best_state():
    words = (*SHORT, *ALL, "objective=val_shifted_accuracy", "optimizer.lr=0.01")
    result, program = one(*words), Program.of(make_spec(*words))
    plain = one(*SHORT, "optimizer.lr=0.01")
    for row, before in zip(result.history, plain.history, strict=True):
        assert {name: row[name] for name in before} == before  # training is the same
    best = {row["step"]: row["val_shifted_accuracy"] for row in result.history}
    assert best[result.best_step] == max(best.values())
    noise = changes(asked(noise=0.2), 0, program.data.affine.scale)["noisy"][0]
    program.module.eval()
    for name, split in (("val", program.data.val), ("test", program.data.test)):
        x, y = split.tensor().x, split.y
        bilinear = InterpolationMode.BILINEAR
        copies = {
            "shifted": [x.roll(p, a) for p in (-2, 2) for a in (2, 3)],
            "rotated": [v2.rotate(x, angle, bilinear) for angle in (-20.0, 20.0)],
            "noisy": [noise(x, 0)],
        }
        for change, pictures in copies.items():
            outputs = [functional_call(program.module, result.best_state, (p,)) for p in pictures]
            right = [(each.argmax(1) == y).float().mean() for each in outputs]
            losses = [torch.nn.functional.cross_entropy(each, y) for each in outputs]
            for measure, values in (("accuracy", right), ("loss", losses)):
                expected = float(torch.stack(values).mean())
                found = result.metrics[f"{name}_{change}_{measure}"]
                assert found == pytest.approx(expected, abs=2e-3), (name, change, measure)
    assert result.metrics["val_shifted_accuracy"] < result.metrics["val_accuracy"]


def test_a_stack_measures_what_each_of_its_trials_measures_alone():
    base = make_spec(*SHORT, *ALL).config
    specs = [
        varied(base, n, optimizer={"lr": 0.01 * (n + 1)}, training={"seed": n}) for n in (0, 1, 2)
    ]
    alone = by_number(next(iter(train([spec]))) for spec in specs)
    stacked = by_number(train(specs, width=3))
    for number, result in stacked.items():
        for row, other in zip(result.history, alone[number].history, strict=True):
            assert row == pytest.approx(other, rel=1e-3)
        changed = [name for name in result.metrics if name.count("_") == 2]
        assert len(changed) == 3 * 4
        assert result.metrics.keys() == alone[number].metrics.keys()
    assert stacked[0].metrics["val_noisy_loss"] != stacked[1].metrics["val_noisy_loss"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["data=quadratic", "evaluation.noise=0.1"],
            "evaluation.noise needs pictures, quadratic has none",
        ),
        (
            ["evaluation.shift=8"],
            "evaluation.shift must be < 8, the shorter side of the pictures of digits, got 8",
        ),
        (
            ["objective=val_shifted_accuracy"],
            "objective must be one of val_loss, val_accuracy, train_loss, train_accuracy for "
            "multiclass on digits, got 'val_shifted_accuracy'; evaluation.shift is 0",
        ),
    ],
)
def test_what_cannot_be_measured_is_said_before_training(words, message):
    with pytest.raises(InputError) as caught:
        Program.of(make_spec(*words))
    assert caught.value.mistakes == [message]
