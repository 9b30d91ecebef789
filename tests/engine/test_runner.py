"""Runners: turns, refilling, interruptions, empty slots."""

from __future__ import annotations

import logging

import pytest
import torch
from engine_support import (
    DECAY,
    SHORT,
    assert_same,
    by_number,
    specs,
)
from support import make_spec
from torch import nn

from sweepstack.engine import executors
from sweepstack.engine.executors import Executor, cuda_graph
from sweepstack.engine.program import Program
from sweepstack.engine.runner import Runner
from sweepstack.engine.train import Expected, Interrupted, train
from sweepstack.engine.width import Widths
from sweepstack.training.spec import Monitor

HERE = __name__

# --- turns ----------------------------------------------------------------------------------------


def alternating(count):
    kinds = ("optimizer=adam", "optimizer=rmsprop")
    return [make_spec(*SHORT, kinds[n % 2], f"training.seed={n}", number=n) for n in range(count)]


@pytest.fixture
def loads(monkeypatch):
    """At every block of steps: how many trials of which optimizer are live."""
    live, seen = {}, []
    start, ends = Runner._start, Runner._ends

    def on_start(self, place, slot):
        start(self, place, slot)
        live[slot.spec.number] = slot.spec.config.optimizer.name

    def on_ends(self, places):
        results = ends(self, places)
        for result in results:
            del live[result.spec.number]
        return results

    block = Runner._block

    def on_block(self):
        seen.append(sorted(live.values()))
        return block(self)

    monkeypatch.setattr(Runner, "_start", on_start)
    monkeypatch.setattr(Runner, "_ends", on_ends)
    monkeypatch.setattr(Runner, "_block", on_block)
    return seen


def test_stacks_of_two_static_parts_take_turns_within_one_full_stack(loads):
    trials = alternating(11)
    alone = by_number(train(trials))
    loads.clear()
    assert_same(by_number(train(trials, width=4)), alone)
    assert max(len(live) for live in loads) == 4
    assert any(len(set(live)) == 2 for live in loads)


def test_seeds_go_on_together_where_the_width_is_one(loads, widths_seen):
    members = specs(6)
    results = list(train(members, width=1, together=3))
    assert set(widths_seen) == {1}
    assert max(len(live) for live in loads) == 3
    assert len(loads[0]) == 3
    assert len(by_number(results)) == 6


class Asks(Monitor):
    """Counts the specs that are pulled between two announcements of room."""

    def __init__(self, trials):
        self.trials, self.announced, self.pulled = trials, [], []

    def room(self, slots):
        self.announced.append(slots)
        self.pulled.append(0)

    def stream(self):
        for spec in self.trials:
            self.pulled[-1] += 1
            yield spec


@pytest.mark.parametrize("width", [1, 4])
def test_room_is_announced_before_specs_are_pulled(width):
    monitor = Asks(specs(9))
    assert len(list(train(monitor.stream(), monitor, width=width))) == 9
    assert sum(monitor.pulled) == 9
    over = monitor.pulled.index(0)  # the stream has no more
    assert not any(monitor.pulled[over:])
    begun = list(zip(monitor.announced[:over], monitor.pulled[:over], strict=True))
    assert all(1 <= said <= took for said, took in begun), begun
    # Of the first stack one, by which its width is found, and then the others.
    assert max(took for _, took in begun) == max(1, width - 1)


def test_specs_are_pulled_only_when_there_is_room():
    pulled = []

    def stream():
        for spec in specs(9):
            pulled.append(spec.number)
            yield spec

    results = train(stream(), width=3)
    for ended, _ in enumerate(results, start=1):
        assert len(pulled) <= 3 + ended + 2  # one more stack at the most has begun since
    assert pulled == list(range(9))
    pulled.clear()
    next(train(stream(), width=3))
    assert len(pulled) == 3


@pytest.mark.parametrize("width", [1, 4])
def test_an_interrupt_checkpoints_the_trials_of_all_stacks(tmp_path, width):
    class Signal(Monitor):
        steps = 0

        def stepped(self, steps, specs):
            self.steps += steps

        def interrupted(self):
            return 143 if self.steps >= 12 else None

    trials = alternating(4)
    whole = by_number(train(trials, width=width, together=4))
    placed = [type(s)(s.config, s.number, tmp_path / str(s.number)) for s in trials]
    with pytest.raises(Interrupted) as caught:
        list(train(placed, Signal(), width=width, together=4))
    assert caught.value.exit_code == 143
    assert caught.value.step > 0
    begun = {path.parent.parent.name for path in tmp_path.glob("*/checkpoints/*.pt")}
    assert len(begun) >= 3 if width == 1 else begun == {"0", "1", "2", "3"}

    class Resumed(Monitor):
        def __init__(self):
            self.steps = {}

        def started(self, spec, step, total_steps, history):
            self.steps[spec.number] = step

    resumed = Resumed()
    assert_same(by_number(train(placed, resumed, width=width, together=4)), whole)
    assert all(resumed.steps[int(number)] > 0 for number in begun)


# --- empty slots ----------------------------------------------------------------------------------


class Eager(cuda_graph.CudaGraph):
    """What is captured where there is a GPU runs eagerly."""

    def __init__(self, *given):
        super().__init__(*given)
        self._eager = True


@pytest.mark.parametrize("width", [1, 2])
def test_a_stack_whose_trials_end_together_takes_the_next_ones(monkeypatch, width):
    """What was captured or recorded for it counts on; another program's begins anew."""
    made, original = [], Runner.__init__

    def init(self, program, *rest):
        made.append(program.config.model.hidden)
        original(self, program, *rest)

    monkeypatch.setattr(Runner, "__init__", init)
    short = [s for s in specs(10, "optimizer=adam") if s.config.training.max_steps == 12]
    other = make_spec(*SHORT, "model.hidden=[4]")
    given = [*short[:4], other, *short[:2]]
    found = [result.metrics for result in train(given, width=width)]
    assert made == [(8,), (4,), (8,)]
    for result, again in zip(found[:4], found[4 + 1 :], strict=False):
        assert result == pytest.approx(again, rel=1e-5)


def test_empty_slots_change_nothing(monkeypatch, widths_seen):
    words = ("data=digits", "model.hidden=[8]", "batch.size=16", "data.subset=100")
    words = (*words, "regularization.dropout=0.2", "regularization.clip_norm=1")
    trials = specs(7, *words, "optimizer=rmsprop")
    alone = by_number(train(trials))
    monkeypatch.setattr(executors, "captures", lambda device: True)
    monkeypatch.setattr(cuda_graph, "CudaGraph", Eager)
    widths_seen.clear()
    stacked = by_number(train(trials, width=7))
    assert_same(stacked, alone)
    assert widths_seen[0] == 7
    assert set(widths_seen) <= {7, 4, 2, 1}
    widths_seen.clear()
    assert_same(by_number(train(trials[:5], width=16)), {n: alone[n] for n in range(5)})
    assert max(widths_seen) == 5
    assert set(widths_seen) <= {5, 4, 2, 1}


# --- gradients that are not apart -----------------------------------------------------------------


class Aliased(nn.Module):
    """autograd gives the same tensor as the gradient of `first` and of `second`."""

    def __init__(self, input_shape=(1,), outputs=1):
        super().__init__()
        self.first, self.second = (nn.Parameter(torch.ones(outputs)) for _ in range(2))
        self.linear = nn.Linear(input_shape[0], outputs)

    def forward(self, x):
        return self.linear(x) + (self.first + self.second)


class Summed(Aliased):
    """The gradient of `many` is one number seen many times."""

    def __init__(self, input_shape=(1,), outputs=1):
        super().__init__(input_shape, outputs)
        self.many = nn.Parameter(torch.full((3,), 0.1))

    def forward(self, x):
        return super().forward(x) + self.many.sum()


@pytest.mark.parametrize("model", [Aliased, Summed])
def test_gradients_that_share_memory_are_changed_once_each(model, widths_seen):
    words = ("model=custom", f"model._target_={HERE}.{model.__name__}", f"trust=[{HERE}]")
    words = ("data=quadratic", *words, "optimizer=rmsprop", f"{DECAY}0.3", "regularization.l1=0.1")
    short = ("training.max_steps=20", "training.eval_every=5")
    trials = [make_spec(*words, *short, f"training.seed={n}", number=n) for n in range(2)]
    alone = by_number(train(trials))
    widths_seen.clear()
    assert_same(by_number(train(trials, width=2)), alone)
    assert set(widths_seen) == {2}


# --- what trials of a sweep have in common --------------------------------------------------------


def test_where_steps_are_captured_a_stack_begins_only_where_half_of_the_places_are_free(
    monkeypatch, loads
):
    monkeypatch.setattr(executors, "captures", lambda place: True)
    monkeypatch.setattr(executors, "choose", executors.Executor)
    words = [(n, "optimizer=adam" if n < 3 else "optimizer=rmsprop") for n in range(6)]
    trials = [make_spec(*SHORT, word, f"training.seed={n}", number=n) for n, word in words]
    assert len(list(train(trials, width=4))) == 6
    assert loads[0] == ["adam"] * 3  # the place that is left is for no other static part
    assert loads[-1] == ["rmsprop"] * 3


def test_trials_that_begin_alike_are_drawn_once(monkeypatch):
    drawn, initial = [], Program.initial

    def counted(self, spec):
        drawn.append((spec.config.init.scheme, spec.config.training.seed))
        return initial(self, spec)

    words = [(lr, init, s) for lr in (0.1, 0.01) for init in ("he", "xavier") for s in (0, 1)]
    trials = [
        make_spec(*SHORT, f"optimizer.lr={lr}", f"init={init}", f"training.seed={s}", number=n)
        for n, (lr, init, s) in enumerate(words)
    ]
    alone = by_number(train(trials))
    monkeypatch.setattr(Program, "initial", counted)
    together = by_number(train(trials, width=8))
    _, *drawn = drawn  # by the first one it is found out whether they can be stacked
    assert sorted(drawn) == [("he", 0), ("he", 1), ("xavier", 0), ("xavier", 1)]
    assert_same(together, alone)


# --- before the first trial -----------------------------------------------------------------------


def test_all_that_trials_share_is_ready_before_the_first_is_pulled(measured, monkeypatch):
    measured({1: 100, 2: 60, 4: 40}, otherwise=60)
    made, widths, rooms = [], Widths("auto", most=8), []
    monkeypatch.setattr(Runner, "__init__", _noting(Runner.__init__, made))

    class Rooms(Monitor):
        def room(self, slots):
            rooms.append(slots)

    def pulled():
        assert list(widths._known.values()) == [4]
        assert len(made) == 1
        yield from specs(6)

    expected = Expected(specs(1)[0], 6, in_order=False)
    results = list(train(pulled(), Rooms(), width=widths, expected=expected))
    assert [result.state for result in results] == ["complete"] * 6
    assert len(made) == 1  # the runner that was ready
    assert rooms[0] == 4  # all of its places are claimed at once


@pytest.mark.parametrize("in_order", [False, True])
@pytest.mark.parametrize("count", [1, 3, 8])
def test_a_captured_step_changes_no_trial(monkeypatch, in_order, count):
    """As on a GPU, where a step is captured before the trials come, and trains stand-ins."""
    words = ("regularization.batch_norm=true", "regularization.dropout=0.2", "optimizer=adamw")
    ran = []
    monkeypatch.setattr(executors, "captures", lambda place: True)
    monkeypatch.setattr(Runner, "_executor", lambda self: _Noting(self, ran))
    before = {result.spec.number: result for result in train(specs(3, *words), width=8)}
    ran.clear()
    expected = Expected(specs(1, *words)[0], count, in_order=in_order)
    for result in train(specs(3, *words), width=8, expected=expected):
        rel = 0 if count == 3 else 1e-3  # in another width sums are rounded otherwise
        metrics = before[result.spec.number].metrics
        assert result.metrics == pytest.approx(metrics, rel=rel, abs=rel)
    assert ran[0] == (1, count, in_order or count == 1)


def test_a_captured_step_of_one_slot_mixes_its_own_batch(monkeypatch):
    """Its samples have an axis of slots, as those of the trials that come have."""
    axes, words = [], ("regularization.mixup=0.2",)

    class Noting(Executor):
        def run(self, block):
            axes.append(block.samples.dim())
            return super().run(block)

    def noting(runner):
        return Noting(runner.step, runner.stack, runner.program.sources["train"])

    monkeypatch.setattr(executors, "captures", lambda place: True)
    monkeypatch.setattr(Runner, "_executor", noting)
    expected = Expected(specs(1, *words)[0], 1, in_order=True)
    (result,) = train(specs(1, *words), expected=expected)
    assert result.state == "complete"
    assert set(axes) == {3}


def test_what_cannot_be_prepared_is_said_once_where_a_trial_needs_it(caplog):
    wrong = make_spec(*SHORT, "batch.size=100000")
    (result,) = train([wrong], width=4, expected=Expected(wrong, 1, in_order=False))
    assert result.state == "failed"
    assert "batch.size must be <=" in result.error
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_trials_of_another_static_part_than_expected_train_too():
    expected = Expected(make_spec(*SHORT, "optimizer=sgd"), 4, in_order=False)
    results = list(train(specs(3), width=4, expected=expected))
    assert [result.state for result in results] == ["complete"] * 3
    assert list(train([], width=4, expected=expected)) == []


class _Noting(Executor):
    """Notes its blocks: steps, slots, and whether these share samples."""

    def __init__(self, runner, ran):
        super().__init__(runner.step, runner.stack, runner.program.sources["train"])
        self.ran = ran

    def run(self, block):
        shared = block.shared or self.stack.width == 1
        self.ran.append((len(block.lr), self.stack.width, shared))
        return super().run(block)


def _noting(function, calls):
    def call(self, *given):
        calls.append(given)
        return function(self, *given)

    return call
