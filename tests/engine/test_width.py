"""How wide a stack may be: a number, what memory and the model allow, and what was measured."""

from __future__ import annotations

import json
import logging
from collections import Counter

import pytest
import torch
from engine_support import SHORT
from support import make_spec
from torch import nn

from sweepstack.engine import width as module
from sweepstack.engine.executors.recorded import Recorded
from sweepstack.engine.program import Program
from sweepstack.engine.train import train
from sweepstack.engine.width import Widths

HERE = __name__


class Branching(nn.Module):
    """Looks at its numbers to decide what to compute, which vmap cannot, if there are enough."""

    def __init__(self, input_shape, outputs, samples=0):
        super().__init__()
        self.linear, self.samples = nn.Linear(input_shape[0], outputs), samples

    def forward(self, x):
        y = self.linear(x)
        if len(x) > self.samples and x.sum() > 0:
            y = y * 2
        return y


def custom(target, *words, **settings):
    name = f"model._target_={HERE}.{target.__name__}"
    short = ("data=quadratic", *SHORT[2:])
    return make_spec(*short, "model=custom", name, f"trust=[{HERE}]", *words, **settings)


# --- numbers --------------------------------------------------------------------------------------


def test_a_number_is_taken_but_never_more_than_most(program, measured):
    tried = measured({})
    assert Widths(1).of(program) == 1
    assert Widths(7).of(program) == 7
    assert Widths(7, most=3).of(program) == 3
    assert Widths("auto", most=1).of(program) == 1
    assert tried == []


def test_a_width_that_did_not_fit_stays_lower_for_its_static_part_alone(program):
    other = Program.of(make_spec(*SHORT, "optimizer=sgd"))
    widths = Widths(8)
    assert (widths.of(program), widths.of(other)) == (8, 8)
    widths.lower(program, 4)
    assert (widths.of(program), widths.of(other)) == (4, 8)
    widths.lower(program, 0)
    assert widths.of(program) == 1


# --- auto -----------------------------------------------------------------------------------------


def test_auto_takes_the_smallest_width_whose_time_is_within_the_margin(program, measured):
    measured({1: 100, 2: 60, 4: 40, 8: 30, 16: 19.6, 32: 19.2, 64: 19.1})
    assert Widths("auto").of(program) == 16


def test_auto_is_one_where_stacking_loses(program, measured):
    tried = measured({1: 100, 2: 150, 4: 160}, otherwise=170)
    assert Widths("auto").of(program) == 1
    assert max(tried) == 16


@pytest.mark.parametrize(("stacked", "width"), [(98, 2), (101, 2), (107, 1)])
def test_a_trial_alone_takes_a_little_more_than_its_steps(program, measured, stacked, width):
    measured({1: 100}, otherwise=stacked)
    assert Widths("auto").of(program) == width


def test_auto_stops_soon_after_its_best(program, measured):
    tried = measured({1: 100, 2: 60, 4: 45, 8: 30, 16: 45, 32: 50}, otherwise=1)
    assert Widths("auto").of(program) == 8
    assert tried == [1, 2, 4, 8, 16, 32]


def test_auto_goes_on_where_a_gain_may_yet_come(program, measured):
    measured({1: 100, 2: 120, 4: 110, 8: 60, 16: 40}, otherwise=40)
    assert Widths("auto").of(program) == 16


def test_auto_gives_up_at_once_where_steps_are_long(program, measured):
    tried = measured({1: 1e5, 2: 2e5}, otherwise=1)
    assert Widths("auto").of(program) == 1
    assert tried == [1, 2]


def test_auto_never_tries_more_than_the_trials_there_are(program, measured):
    tried = measured({1: 64, 2: 32, 4: 16, 5: 14, 8: 8})
    assert Widths("auto", most=5).of(program) == 5
    assert max(tried) == 5


def test_auto_never_tries_wider_than_the_widest(program, measured):
    tried = measured({2**n: 2.0**-n for n in range(20)})
    assert Widths("auto").of(program) == module.TRIED["cpu"][-1] == max(tried)


@pytest.mark.parametrize(("half", "width"), [(20.8, 16), (21.2, 32)])
def test_all_trials_in_one_stack_must_be_worth_it(program, measured, half, width):
    """Or a worker that joins gets nothing: two rounds may take 5 % longer, no more."""
    measured({1: 100, 2: 60, 4: 40, 8: 30, 16: half, 32: 20, 64: 19.9})
    assert Widths("auto", most=32).of(program) == width


def test_it_is_measured_once(program, measured):
    tried = measured({1: 4, 2: 2}, otherwise=2)
    widths = Widths("auto")
    assert widths.of(program) == widths.of(program) == 2
    assert tried.count(1) == 1


def test_memory_that_runs_out_while_measuring_bounds_the_width(program, measured):
    measured({1: 100, 2: 60, 4: 40})
    assert Widths("auto").of(program) == 4


def test_a_limit_of_wide_stacks_bounds_the_width(program, monkeypatch):
    def take(program, width, **_):
        if width > 4:
            raise RuntimeError("too many groups")
        return 1 / width

    monkeypatch.setattr("sweepstack.engine.width._time", take)
    assert Widths("auto").of(program) == 4


def test_what_fails_at_width_one_is_no_limit(program, monkeypatch):
    def take(program, width, **_):
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr("sweepstack.engine.width._time", take)
    with pytest.raises(RuntimeError, match="shapes"):
        Widths("auto").of(program)


def test_no_memory_for_even_one_trial_while_measuring_is_width_one(program, measured, tmp_path):
    measured({})
    assert Widths("auto", file=tmp_path / "widths.json").of(program) == 1
    assert not (tmp_path / "widths.json").exists()  # there may be more the next time


def test_measuring_really_times_steps_and_trains_the_same(program, monkeypatch):
    monkeypatch.setattr(module, "TIMED_S", 0.0001)
    monkeypatch.setattr(module, "SHORT_S", 0.0)
    trials = [make_spec(*SHORT, f"training.seed={n}", number=n) for n in range(3)]
    alone = {result.spec.number: result for result in train(trials)}
    times, steps = {}, Counter()
    take, run = module._time, Recorded.run

    def timing(program, width, **given):
        times[width] = take(program, width, **given)
        return times[width]

    def counting(self, block):
        steps[self.stack.width] += len(block.lr)
        return run(self, block)

    monkeypatch.setattr(module, "_time", timing)
    monkeypatch.setattr(Recorded, "run", counting)
    widths = Widths("auto", most=4)
    assert widths.of(program) in times
    assert {1, 2} <= times.keys() <= {1, 2, 4}  # not 4 where steps of 2 are long
    assert all(seconds > 0 for seconds in times.values())
    assert steps.keys() == times.keys()
    assert min(steps.values()) >= 6  # three before the timings, of which there are three
    for result in train(trials, width=widths):
        expected = alone[result.spec.number].metrics
        assert result.metrics == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    ("most", "width"), [(2, 2), (20, 20), (35, 35), (40, 20), (60, 30), (100, 25), (200, 25)]
)
def test_few_short_steps_are_not_measured(program, measured, monkeypatch, tmp_path, most, width):
    """All stacks of the trials, of 12 steps each, are about as wide."""
    tried = measured({}, otherwise=100)
    monkeypatch.setattr(module, "SHORT_S", 0.25)  # less than 12 steps of 209 trials take
    file = tmp_path / "widths.json"
    assert Widths("auto", most=most, file=file).of(program) == width
    assert tried == [width]
    assert not file.exists()  # a longer sweep measures


@pytest.mark.parametrize("most", [300, module.MANY])
def test_many_steps_are_measured(program, measured, monkeypatch, most):
    tried = measured({1: 100}, otherwise=150)
    monkeypatch.setattr(module, "SHORT_S", 0.25)
    assert Widths("auto", most=most).of(program) == 1
    assert set(tried) >= {1, 2, 4, 8, 16}


def test_what_does_not_fit_at_the_likely_width_is_measured(program, measured, monkeypatch):
    tried = measured({1: 100, 2: 60, 4: 40})
    monkeypatch.setattr(module, "SHORT_S", 4.0)
    assert Widths("auto", most=20).of(program) == 4
    assert tried[:2] == [20, 1]


def test_short_trials_of_convolutions_are_not_stacked_on_a_cpu(measured, monkeypatch):
    convnet = Program.of(make_spec("model=convnet", "model.width=2", "training.max_steps=4"))
    tried = measured({}, otherwise=1)
    monkeypatch.setattr(module, "SHORT_S", 4.0)
    assert Widths("auto", most=20).of(convnet) == 1
    assert tried == [1]


# --- models that cannot be stacked ----------------------------------------------------------------


@pytest.mark.parametrize("wanted", ["auto", 4])
def test_a_model_that_vmap_cannot_batch_trains_one_by_one(measured, caplog, tmp_path, wanted):
    tried = measured({}, otherwise=1.0)
    trials = [custom(Branching, f"training.seed={n}", number=n) for n in range(3)]
    alone = {result.spec.number: result for result in train(trials)}
    caplog.clear()
    file = tmp_path / "widths.json"
    results = {r.spec.number: r for r in train(trials, width=Widths(wanted, file=file))}
    lines = [record.message for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(lines) == 1
    assert lines[0].startswith("model custom cannot be stacked, its trials train one by one: vmap")
    assert "data-dependent control flow" in lines[0]
    assert "\n" not in lines[0]
    assert tried == []
    assert results.keys() == alone.keys()
    for number, result in results.items():
        assert result.state == "complete", result.error
        assert result.history == alone[number].history


def test_a_model_of_the_user_is_tried_though_a_width_is_known(measured, monkeypatch, tmp_path):
    """Of a program of other sizes, or from before its code was changed."""
    measured({1: 100, 2: 50}, otherwise=60)
    monkeypatch.setattr(module, "_kind", lambda program: "of a GPU")  # elsewhere none are alike
    monkeypatch.setattr(module._Stepper, "evaluate", lambda self: None)  # of more samples
    specs = [custom(Branching, "+model.samples=8", f"batch.size={size}") for size in (8, 9, 7)]
    small, large, smaller = map(Program.of, specs)
    widths = Widths("auto")
    assert [widths.of(each) for each in (small, large, smaller)] == [2, 1, 2]
    file = tmp_path / "widths.json"
    file.write_text(json.dumps({module._key(each): 2 for each in (small, large)}))
    assert [Widths("auto", file=file).of(each) for each in (small, large)] == [2, 1]


def test_two_trials_that_do_not_fit_into_memory_train_one_by_one(program, monkeypatch, caplog):
    def short(self):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(module._Stepper, "once", short)
    assert Widths("auto").of(program) == 1
    (line,) = caplog.messages
    assert line.endswith("train one by one: two trials do not fit into memory")


# --- a width is no part of a trial ----------------------------------------------------------------


@pytest.mark.parametrize("width", ["1", "8"])
def test_the_width_is_no_part_of_what_a_trial_is(width):
    plain, other = make_spec(*SHORT), make_spec(*SHORT, f"training.width={width}")
    assert plain.config.training.width != other.config.training.width
    assert plain.static == other.static
    assert plain.config_hash == other.config_hash
    assert make_spec(*SHORT, "training.seed=1").config_hash != plain.config_hash
