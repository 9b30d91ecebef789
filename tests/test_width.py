"""How wide a stack may be: a number, what memory and the model allow, and what was measured."""

from __future__ import annotations

import json
import logging
import types

import pytest
import torch
from support import make_spec
from torch import nn

from iolaus import width as module
from iolaus.program import Program
from iolaus.train import train
from iolaus.width import Widths

HERE = __name__
SHORT = ("data=quadratic", "model.hidden=[8]", "training.max_steps=12", "training.eval_every=4")


class Branching(nn.Module):
    """Looks at its numbers to decide what to compute, which vmap cannot."""

    def __init__(self, input_shape, outputs):
        super().__init__()
        self.linear = nn.Linear(input_shape[0], outputs)

    def forward(self, x):
        y = self.linear(x)
        if x.sum() > 0:
            y = y * 2
        return y


def custom(target, *words, **settings):
    name = f"model._target_={HERE}.{target.__name__}"
    short = ("data=quadratic", *SHORT[2:])
    return make_spec(*short, "model=custom", name, f"trust=[{HERE}]", *words, **settings)


@pytest.fixture
def program():
    return Program.of(make_spec(*SHORT))


@pytest.fixture
def measured(monkeypatch):
    """Give the microseconds per trial and step that widths take; returns what widths are tried."""
    tried = []

    def give(times, otherwise=None):
        def take(program, width):
            tried.append(width)
            taken = times.get(width, otherwise)
            if taken is None:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return 1e-6 * taken

        monkeypatch.setattr(module, "_time", take)
        return tried

    return give


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
    measured({1: 100, 2: 60, 4: 40, 8: 30, 16: 20, 32: 19.2, 64: 19.1})
    assert Widths("auto").of(program) == 16


def test_auto_is_one_where_stacking_loses(program, measured):
    tried = measured({1: 100, 2: 150, 4: 160}, otherwise=170)
    assert Widths("auto").of(program) == 1
    assert max(tried) == 16


def test_auto_is_one_where_a_gain_is_within_the_margin(program, measured):
    measured({1: 100, 2: 99, 4: 98}, otherwise=97)
    assert Widths("auto").of(program) == 1


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
    tried = measured({1: 64, 2: 32, 4: 16, 8: 8})
    assert Widths("auto", most=5).of(program) == 4
    assert max(tried) == 4


def test_auto_never_tries_wider_than_the_widest(program, measured):
    tried = measured({2**n: 2.0**-n for n in range(20)})
    assert Widths("auto").of(program) == module.TRIED["cpu"][-1] == max(tried)


def test_it_is_measured_once(program, measured):
    tried = measured({1: 4, 2: 2}, otherwise=2)
    widths = Widths("auto")
    assert widths.of(program) == widths.of(program) == 2
    assert tried.count(1) == 1


def test_memory_that_runs_out_while_measuring_bounds_the_width(program, measured):
    measured({1: 100, 2: 60, 4: 40})
    assert Widths("auto").of(program) == 4


def test_no_memory_for_even_one_trial_while_measuring_is_width_one(program, measured, tmp_path):
    measured({})
    assert Widths("auto", file=tmp_path / "widths.json").of(program) == 1
    assert not (tmp_path / "widths.json").exists()  # there may be more the next time


def test_measuring_really_times_steps_and_trains_the_same(program, monkeypatch):
    monkeypatch.setattr(module, "SAMPLE_S", 0.001)
    trials = [make_spec(*SHORT, f"training.seed={n}", number=n) for n in range(3)]
    alone = {result.spec.number: result for result in train(trials)}
    widths = Widths("auto", most=4)
    assert widths.of(program) in (1, 2, 4)
    for result in train(trials, width=widths):
        expected = alone[result.spec.number].metrics
        assert result.metrics == pytest.approx(expected, rel=1e-4)


# --- unlucky timings ------------------------------------------------------------------------------


@pytest.fixture
def unlucky(monkeypatch):
    """As `measured`, of a machine with other work: `late` says how many times too long the first
    timings of a width are."""

    def give(times, late, *, limit=64):
        tried, left = [], {width: list(factors) for width, factors in late.items()}

        def take(program, width):
            tried.append(width)
            if width > limit:
                raise torch.OutOfMemoryError("CUDA out of memory")
            factors = left.get(width)
            return 1e-6 * times[width] * (factors.pop(0) if factors else 1.0)

        monkeypatch.setattr(module, "_time", take)
        return tried

    return give


TIMES = {1: 100, 2: 60, 4: 40, 8: 32, 16: 26, 32: 23, 64: 22.5}


@pytest.mark.parametrize(
    "late",
    [
        {},
        {32: [1.3]},
        {32: [1.3, 1.3]},
        {64: [1.3]},
        {16: [1.2], 32: [1.2]},
        {32: [1.25], 64: [1.25]},
        {16: [1.3, 1.1], 32: [1.2, 1.3], 64: [1.3, 1.3]},
    ],
)
def test_a_busy_moment_does_not_change_the_width(program, unlucky, late):
    unlucky(TIMES, late)
    assert Widths("auto").of(program) == 32


def test_a_busy_moment_does_not_end_the_measurement(program, unlucky):
    """16 and 32 seem to gain nothing over 8, where measuring would end."""
    tried = unlucky(TIMES, {16: [1.2], 32: [1.33]})
    assert Widths("auto").of(program) == 32
    assert 64 in tried


def test_widths_that_cannot_be_the_best_are_timed_once(program, unlucky):
    tried = unlucky(TIMES, {})
    Widths("auto").of(program)
    assert [tried.count(width) for width in (1, 2, 4, 8)] == [1, 1, 1, 1]
    assert [tried.count(width) for width in (16, 32, 64)] == [1 + module.ROUNDS] * 3


def test_little_noise_is_settled_where_there_are_few_trials(program, unlucky):
    unlucky(TIMES, {8: [1.3]})
    assert Widths("auto", most=8).of(program) == 8


def test_memory_that_runs_out_later_keeps_what_was_measured(program, unlucky, monkeypatch):
    tried = unlucky(TIMES, {})
    take = module._time

    def short(program, width):
        if tried.count(32) and width == 32:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return take(program, width)

    monkeypatch.setattr(module, "_time", short)
    assert Widths("auto").of(program) == 32


def test_what_compiles_is_timed_once(unlucky):
    tried = unlucky(TIMES, {})
    spec = make_spec(*SHORT, "training.compile=true")
    assert module.measured(Program.of(spec), 128) == (32, True)
    assert len(tried) == len(set(tried))


# --- what is kept ---------------------------------------------------------------------------------


def test_what_was_measured_is_kept_for_the_next_sweep(program, measured, tmp_path):
    file = tmp_path / "widths.json"
    tried = measured({1: 100, 2: 60, 4: 40, 8: 45, 16: 45})
    assert Widths("auto", file=file).of(program) == 4
    tried.clear()
    assert Widths("auto", file=file).of(program) == 4
    assert Widths("auto", most=3, file=file).of(program) == 3
    assert tried == []
    other = Program.of(make_spec(*SHORT, "optimizer=sgd"))
    measured({1: 100, 2: 50}, otherwise=60)
    assert Widths("auto", file=file).of(other) == 2
    assert sorted(json.loads(file.read_text()).values()) == [2, 4]
    again = Widths("auto", file=file)
    assert (again.of(program), again.of(other)) == (4, 2)


@pytest.mark.parametrize("most", [2, 3, 6, 8])
def test_what_a_short_sweep_measured_does_not_bind_a_long_one(program, measured, tmp_path, most):
    file = tmp_path / "widths.json"
    measured({1: 100, 2: 60, 4: 59, 8: 20, 16: 20, 32: 20, 64: 20})
    assert Widths("auto", most=most, file=file).of(program) == (8 if most == 8 else 2)
    assert Widths("auto", file=file).of(program) == 8


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[1, 2]", b"7", b"null"])
def test_a_file_that_is_not_ours_is_ignored(program, measured, tmp_path, content):
    file = tmp_path / "widths.json"
    file.write_bytes(content)
    measured({1: 100, 2: 60}, otherwise=70)
    assert Widths("auto", file=file).of(program) == 2
    assert list(json.loads(file.read_text()).values()) == [2]


@pytest.mark.parametrize("value", [0, -3, 2.5, "8", None, [4], {}])
def test_a_kept_width_that_is_no_width_is_measured_again(program, measured, tmp_path, value):
    file = tmp_path / "widths.json"
    measured({1: 100, 2: 60}, otherwise=70)
    assert Widths("auto", file=file).of(program) == 2
    (key,) = json.loads(file.read_text())
    file.write_text(json.dumps({key: value}))
    assert Widths("auto", file=file).of(program) == 2


def test_a_folder_that_cannot_be_written_is_no_error(program, measured, tmp_path):
    measured({1: 100, 2: 60}, otherwise=70)
    (tmp_path / "file").write_text("")
    assert Widths("auto", file=tmp_path / "file" / "widths.json").of(program) == 2
    assert Widths("auto", file=tmp_path / "missing" / "widths.json").of(program) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


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


def test_the_key_of_a_kept_width_knows_what_it_depends_on(program, monkeypatch):
    def key(*words):
        return module._key(Program.of(make_spec(*SHORT, *words)))

    assert key() == key("optimizer.lr=0.5", "training.seed=3", "training.max_steps=5")
    assert len({key(), key("batch.size=7"), key("model.hidden=[9]"), key("optimizer=sgd")}) == 4
    before = key()
    monkeypatch.setattr(module, "torch", types.SimpleNamespace(__version__="0.0"))
    assert key() != before
