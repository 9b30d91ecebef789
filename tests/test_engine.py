"""Engines at work: memory that runs out, trials that raise, turns, refilling, empty slots."""

from __future__ import annotations

import gc
import logging
import weakref

import pytest
import torch
from support import make_spec
from torch import nn

from iolaus import engine as engine_module
from iolaus import graph
from iolaus.engine import Engine
from iolaus.monitor import Monitor
from iolaus.stack import Stack
from iolaus.step import Step
from iolaus.train import Interrupted, train
from iolaus.width import Widths

HERE = __name__
SHORT = ("data=quadratic", "model.hidden=[8]", "training.max_steps=12", "training.eval_every=4")
ADAMW = (*SHORT, "optimizer=adamw")
DECAY = "regularization.weight_decay="


def specs(count, *words, folder=None):
    """Trials of unequal seed, lr and length."""
    return [
        make_spec(
            *(*SHORT, *words, f"training.seed={number}", f"optimizer.lr={0.01 / (1 + number)}"),
            f"training.max_steps={(12, 20, 9)[number % 3]}",
            number=number,
            folder=None if folder is None else folder / str(number),
        )
        for number in range(count)
    ]


def by_number(results):
    """Results by their trial's number; each trial has exactly one."""
    found = {}
    for result in results:
        assert result.spec.number not in found
        found[result.spec.number] = result
    return found


def assert_same(mine, other):
    assert mine.keys() == other.keys()
    for number, result in mine.items():
        assert (result.state, result.error) == (other[number].state, other[number].error)
        rows, references = result.history, other[number].history
        assert [row["step"] for row in rows] == [row["step"] for row in references]
        for row, reference in zip(rows, references, strict=True):
            assert row == pytest.approx(reference, rel=1e-4), number


@pytest.fixture
def widths_seen(monkeypatch):
    """The width of the stack at every step, those aside that try whether the model stacks."""
    seen = []
    monkeypatch.setattr("iolaus.width.why_not_stacked", lambda program: None)
    original = Step.__call__

    def spy(self, stack, *arguments):
        seen.append(stack.width)
        return original(self, stack, *arguments)

    monkeypatch.setattr(Step, "__call__", spy)
    return seen


@pytest.fixture
def little_memory(monkeypatch):
    """Steps of stacks with more than `most` slots have no memory: `little_memory(most)`."""

    def set_most(most):
        original = Step.__call__

        def short(self, stack, *arguments):
            if stack.width > most:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return original(self, stack, *arguments)

        monkeypatch.setattr(Step, "__call__", short)

    return set_most


# --- memory ---------------------------------------------------------------------------------------


def test_out_of_memory_halves_the_width_and_all_trials_end_the_same(
    little_memory, widths_seen, caplog
):
    trials = specs(14)
    alone = by_number(train(trials))
    widths_seen.clear()
    little_memory(3)
    stacked = by_number(train(trials, width=6))
    assert_same(stacked, alone)
    assert {result.state for result in stacked.values()} == {"complete"}
    assert max(widths_seen) == 3
    lines = [record.message for record in caplog.records if record.levelno >= logging.WARNING]
    assert lines == ["no memory for 6 trials at once: going on with 3"]


def test_the_width_is_halved_again_and_stays_so_for_the_next_stream(
    little_memory, widths_seen, caplog
):
    little_memory(2)
    widths = Widths(7)
    assert len(by_number(train(specs(8), width=widths))) == 8
    assert max(widths_seen) == 1  # 7, 3, 1
    assert sum(record.levelno >= logging.WARNING for record in caplog.records) == 2
    caplog.clear()
    assert len(by_number(train(specs(3), width=widths))) == 3
    assert caplog.records == []


def test_out_of_memory_with_one_trial_fails_that_trial_alone(monkeypatch):
    original = Step.__call__

    def short(self, stack, *arguments):
        if (stack.optimizer["weight_decay"] == 0.5).any():
            raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2 GiB")
        return original(self, stack, *arguments)

    monkeypatch.setattr(Step, "__call__", short)
    trials = [make_spec(*ADAMW, f"{DECAY}{d}", number=n) for n, d in enumerate((0.1, 0.5, 0.2))]
    for width in (1, 3):
        results = by_number(train(trials, width=width))
        assert [results[n].state for n in range(3)] == ["complete", "failed", "complete"]
        assert results[1].error == ("OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB")


@pytest.mark.parametrize("what", ["moved", "__init__"])
def test_out_of_memory_while_the_stack_is_resized(monkeypatch, what):
    trials = specs(7)
    alone = by_number(train(trials))
    original = getattr(Stack, what)

    def short(self, *arguments):
        if arguments[-1 if what == "moved" else 4] > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(self, *arguments)

    monkeypatch.setattr(Stack, what, short)
    assert_same(by_number(train(trials, width=4)), alone)


def test_no_memory_for_a_single_stack_fails_its_trials_and_the_stream_goes_on(monkeypatch):
    original = Stack.__init__

    def short(self, params, *arguments):
        if arguments[-2] > 0 and len(params) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        original(self, params, *arguments)

    monkeypatch.setattr(Stack, "__init__", short)
    deep = "model.hidden=[8,8]"
    trials = [make_spec(*SHORT, *words, number=n) for n, words in enumerate(([], [deep], []))]
    results = by_number(train(trials))
    assert [results[n].state for n in range(3)] == ["complete", "failed", "complete"]
    assert results[1].error == "CUDA out of memory"


def test_a_stack_that_ran_out_of_memory_is_gone_before_the_next_begins(monkeypatch):
    stacks, alive = [], []
    original, step = Stack.__init__, Step.__call__

    def remember(self, *arguments):
        gc.collect()
        alive.append(max((stack().width for stack in stacks if stack() is not None), default=0))
        original(self, *arguments)
        stacks.append(weakref.ref(self))

    def short(self, stack, *arguments):
        if stack.width > 2:
            alive.clear()
            raise torch.OutOfMemoryError("CUDA out of memory")
        return step(self, stack, *arguments)

    monkeypatch.setattr(Stack, "__init__", remember)
    monkeypatch.setattr(Step, "__call__", short)
    assert len(by_number(train(specs(4), width=Numbered(4)))) == 4
    assert alive
    assert max(alive) <= 2


class Numbered(Widths):
    """Widths that do not try a stack first."""

    def of(self, program):
        return min(int(self.wanted), *self._lowered.values(), 99)


# --- trials that raise ----------------------------------------------------------------------------


@pytest.fixture
def one_raises(monkeypatch):
    """A step of a stack that holds a weight decay of 0.5 raises; returns how often it did."""
    raised = []
    original = Step.__call__

    def raising(self, stack, *arguments):
        if (stack.optimizer["weight_decay"] == 0.5).any():
            raised.append(stack.width)
            raise ValueError("singular\n matrix")
        return original(self, stack, *arguments)

    monkeypatch.setattr(Step, "__call__", raising)
    return raised


def decays(count, bad):
    values = [0.5 if number in bad else 0.1 + 0.01 * number for number in range(count)]
    return [
        make_spec(*ADAMW, f"{DECAY}{value}", f"training.seed={number}", number=number)
        for number, value in enumerate(values)
    ]


def test_a_raising_trial_of_a_wide_stack_is_found_by_halving(one_raises):
    good = by_number(train([spec for spec in decays(12, {5}) if spec.number != 5]))
    stacked = by_number(train(decays(12, {5}), width=8))
    failed = stacked.pop(5)
    assert (failed.state, failed.error) == ("failed", "ValueError: singular matrix")
    assert one_raises == [8, 4, 2, 1]
    assert_same(stacked, good)


def test_several_raising_trials_are_all_found(one_raises):
    stacked = by_number(train(decays(9, {0, 3, 8}), width=4))
    failed = {number for number, result in stacked.items() if result.state == "failed"}
    assert (len(stacked), failed) == (9, {0, 3, 8})


def test_all_trials_raise(one_raises):
    stacked = by_number(train(decays(5, range(5)), width=5))
    assert [result.state for result in stacked.values()] == ["failed"] * 5


def test_trials_that_cannot_begin_again_do_not_lose_the_others(one_raises, monkeypatch):
    """After a stack broke, a checkpoint of half of its trials cannot be read any more."""
    original = Engine._insert

    def failing(self, place, spec):
        if one_raises and spec.number < 2:
            raise RuntimeError("unreadable")
        original(self, place, spec)

    monkeypatch.setattr(Engine, "_insert", failing)
    stacked = by_number(train(decays(4, {3}), width=4))
    states = {number: result.state for number, result in stacked.items()}
    assert states == {0: "failed", 1: "failed", 2: "complete", 3: "failed"}


def test_a_slot_that_becomes_nan_leaves_its_neighbours_as_they_are():
    words = ("optimizer=sgd", "training.eval_every=4", "training.max_steps=12")

    def stack(lr):
        middle = make_spec(*SHORT, *words, f"optimizer.lr={lr}", "training.seed=1", number=1)
        sides = [make_spec(*SHORT, *words, f"training.seed={n}", number=n) for n in (0, 2)]
        # Longer trials behind, so that the stack keeps its width when a slot is emptied.
        after = [make_spec(*SHORT, *words, f"training.seed={n}", number=n) for n in (3, 4)]
        return by_number(train([sides[0], middle, sides[1], *after], width=3))

    sane, broken = stack(0.01), stack(1e30)
    assert broken[1].state == "failed"
    assert "became" in broken[1].error
    for number in (0, 2):
        losses, others = ([row["train_loss"] for row in r[number].history] for r in (broken, sane))
        assert losses == others
        for name, tensor in sane[number].best_state.items():
            assert torch.equal(tensor, broken[number].best_state[name])


# --- turns ----------------------------------------------------------------------------------------


def alternating(count):
    kinds = ("optimizer=adam", "optimizer=rmsprop")
    return [make_spec(*SHORT, kinds[n % 2], f"training.seed={n}", number=n) for n in range(count)]


@pytest.fixture
def loads(monkeypatch):
    """At every block of steps: how many trials of which optimizer are live."""
    live, seen = {}, []
    insert, ends = Engine._insert, Engine._ends

    def on_insert(self, place, spec):
        insert(self, place, spec)
        live[spec.number] = spec.config.optimizer.name

    def on_ends(self, places):
        results = ends(self, places)
        for result in results:
            del live[result.spec.number]
        return results

    block = Engine._block

    def on_block(self):
        seen.append(sorted(live.values()))
        return block(self)

    monkeypatch.setattr(Engine, "_insert", on_insert)
    monkeypatch.setattr(Engine, "_ends", on_ends)
    monkeypatch.setattr(Engine, "_block", on_block)
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
    assert max(took for _, took in begun) == width


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

        def stepped(self, steps):
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


class Eager(graph.Replayed):
    """What is captured where there is a GPU runs eagerly."""

    def __init__(self, step, stack):
        super().__init__(step, stack)
        self._eager = True


def test_empty_slots_change_nothing(monkeypatch, widths_seen):
    words = ("data=digits", "model.hidden=[8]", "batch.size=16", "data.subset=100")
    words = (*words, "regularization.dropout=0.2", "regularization.clip_norm=1")
    trials = specs(7, *words, "optimizer=rmsprop")
    alone = by_number(train(trials))
    monkeypatch.setattr(engine_module.graph, "captures", lambda device: True)
    monkeypatch.setattr(engine_module.graph, "Replayed", Eager)
    widths_seen.clear()
    stacked = by_number(train(trials, width=7))
    assert_same(stacked, alone)
    assert widths_seen[0] == 7
    assert set(widths_seen) <= {7, 4, 2, 1}
    widths_seen.clear()
    assert_same(by_number(train(trials[:5], width=16)), {n: alone[n] for n in range(5)})
    assert max(widths_seen) == 8
    assert set(widths_seen) <= {8, 4, 2, 1}


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
