"""Engines in trouble: memory that runs out, trials that raise or become NaN."""

from __future__ import annotations

import errno
import gc
import logging
import os
import weakref
from pathlib import Path

import pytest
import torch
from engine_support import (
    ADAMW,
    DECAY,
    SHORT,
    assert_same,
    by_number,
    specs,
)
from support import make_spec

from iolaus import checkpoint, program
from iolaus.engine import Engine
from iolaus.errors import EnvironmentFault
from iolaus.monitor import Monitor
from iolaus.stack import Stack
from iolaus.step import Step
from iolaus.train import Interrupted, train
from iolaus.width import Widths

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
    original = Step.update

    def short(self, stack, *arguments):
        if (stack.optimizer["weight_decay"] == 0.5).any():
            raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2 GiB")
        return original(self, stack, *arguments)

    monkeypatch.setattr(Step, "update", short)
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
    original, step = Stack.__init__, Step.update

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
    monkeypatch.setattr(Step, "update", short)
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
    original = Step.update

    def raising(self, stack, *arguments):
        if (stack.optimizer["weight_decay"] == 0.5).any():
            raised.append(stack.width)
            raise ValueError("singular\n matrix")
        return original(self, stack, *arguments)

    monkeypatch.setattr(Step, "update", raising)
    program._programs.cache_clear()  # a stack is tried with the values of a program's first trial
    yield raised
    program._programs.cache_clear()


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


# --- monitors that raise --------------------------------------------------------------------------


@pytest.mark.parametrize("width", [1, 3])
@pytest.mark.parametrize("where", ["started", "stepped", "report", "should_stop"])
def test_what_a_monitor_raises_is_no_trial_s_failure(where, width):
    class Gone(Monitor):
        """Its database is gone from the second time on."""

        asked = 0

    def fail(self, *arguments):
        self.asked += 1
        if self.asked == 2:
            raise TimeoutError("no answer")

    setattr(Gone, where, fail)
    ended = []
    with pytest.raises(TimeoutError, match="no answer"):
        ended.extend(train(specs(4), Gone(), width=width))
    assert {result.state for result in ended} <= {"complete"}


# --- checkpoints that cannot be read --------------------------------------------------------------


def interrupted(folder):
    """A trial that was stopped at step 8 of 12, and its result without that."""
    (spec,) = specs(1, folder=folder)

    class Stop(Monitor):
        rows = 0

        def report(self, spec, row):
            self.rows += 1

        def interrupted(self):
            return 130 if self.rows == 2 else None

    (whole,) = train(specs(1))
    with pytest.raises(Interrupted):
        list(train([spec], Stop()))
    (file,) = (spec.folder / "checkpoints").glob("*.pt")
    return spec, whole, file


class Begins(Monitor):
    step = None

    def started(self, spec, step, total_steps, history):
        self.step = step


def other_slot(file):
    saved = checkpoint.load(file)
    del saved["slot"]["history"]
    checkpoint.save(file, saved)


def other_tensors(file):
    saved = checkpoint.load(file)
    saved["tensors"] = {"params": {}}
    checkpoint.save(file, saved)


def other_shapes(file):
    saved = checkpoint.load(file)
    params = saved["tensors"]["params"]
    saved["tensors"]["params"] = {name: torch.zeros(9, 9, 9) for name in params}
    checkpoint.save(file, saved)


def cut(file):
    file.write_bytes(file.read_bytes()[:40])


@pytest.mark.parametrize("damage", [other_slot, other_tensors, other_shapes, cut])
def test_a_checkpoint_that_cannot_be_read_lets_the_trial_begin_anew(tmp_path, caplog, damage):
    spec, whole, file = interrupted(tmp_path)
    damage(file)
    monitor = Begins()
    (result,) = train([spec], monitor)
    assert (result.state, monitor.step) == ("complete", 0)
    assert result.history == whole.history
    lines = [record.message for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(lines) == 1
    assert "begins anew" in lines[0] or "none is left" in lines[0]
    assert "\n" not in lines[0]


def test_a_damaged_checkpoint_that_cannot_be_renamed_does_not_end_the_sweep(
    tmp_path, monkeypatch, caplog
):
    spec, whole, file = interrupted(tmp_path)
    cut(file)

    def refuse(self, target):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(Path, "rename", refuse)
    (result,) = train([spec])
    assert result.history == whole.history
    assert len(caplog.messages) == 1


def test_a_folder_of_checkpoints_that_cannot_be_read_does_not_end_the_sweep(tmp_path, monkeypatch):
    spec, whole, _ = interrupted(tmp_path)

    def refuse(folder):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(checkpoint, "_found", refuse)
    (result,) = train([spec])
    assert result.history == whole.history


@pytest.mark.parametrize("call", ["mkdir", "unlink"])
def test_a_disk_that_cannot_be_written_ends_the_sweep_with_one_line(tmp_path, monkeypatch, call):
    def refuse(self, *arguments, **settings):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    trials = specs(1, "training.checkpoint_every=2", folder=tmp_path)
    monkeypatch.setattr(Path, call, refuse)
    with pytest.raises(EnvironmentFault, match="Read-only file system") as caught:
        list(train(trials))
    assert "\n" not in str(caught.value)
