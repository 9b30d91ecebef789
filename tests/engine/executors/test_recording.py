"""Recorded functions: the same numbers from the operations alone, and what is never recorded."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from engine_support import KINDS, SMALL_MODELS
from support import make_spec
from torch.func import vmap

from sweepstack.engine.executors.recorded import _recorders
from sweepstack.engine.executors.recording import Recorder, recorded
from sweepstack.engine.program import Program
from sweepstack.engine.train import train

W, X = torch.arange(6.0).view(2, 3), torch.tensor([1.0, -2.0, 0.5])


def replayed(function, persistent, *calls, apart=False):
    """Record a function in two calls, and replay it on the inputs of the last one."""
    recorder = Recorder()
    for inputs in calls[:2]:
        recorder.record(
            lambda inputs=inputs: function(*persistent, *inputs), persistent, inputs, apart=apart
        )
    assert recorder.recording is not None, recorder.reason
    return recorder.recording.bind(persistent)(*calls[-1])


def reason(function, *inputs):
    """Why a function is never recorded."""
    recorder = Recorder()
    while recorder.open:
        recorder.record(lambda: function(*inputs), [], inputs)
    assert recorder.recording is None
    return recorder.reason


def squared(w, x):
    loss = (w @ x).relu().square().sum()
    return [loss.detach(), *torch.autograd.grad(loss, [w])]


def test_a_replay_gives_what_the_function_gives_on_other_inputs():
    w, other = W.clone().requires_grad_(), torch.tensor([0.3, 0.1, -0.7])
    found = replayed(squared, [w], [X], [X + 1], [other])
    for one, expected in zip(found, squared(w, other), strict=True):
        assert torch.equal(one, expected)


def test_a_recording_holds_what_vmap_made_and_not_vmap():
    batch = torch.rand(4, 3)
    (found,) = replayed(
        lambda w, x: [vmap(lambda row: w @ row)(x)], [W], [batch], [batch], [batch + 1]
    )
    assert torch.equal(found, vmap(lambda row: W @ row)(batch + 1))


def test_a_recording_is_bound_to_any_tensors_of_the_same_shapes():
    recorder = Recorder()
    for _ in range(2):
        recorder.record(lambda: [W.t().relu() @ torch.ones(2) + X], [W], [X])
    assert recorder.recording is not None
    run = recorder.recording.bind([2 * W])
    assert torch.equal(run(X)[0], 2 * W.t() @ torch.ones(2) + X)


def test_persistent_tensors_may_change_between_runs():
    """As parameters do, of which views were made once."""
    w = W.clone()
    recorder = Recorder()
    for _ in range(2):
        recorder.record(lambda: [w.t()[0] * X[:2]], [w], [X])
    assert recorder.recording is not None
    run = recorder.recording.bind([w])
    w.mul_(10)
    assert torch.equal(run(X)[0], w[:, 0] * X[:2])


def test_a_first_call_that_fills_a_cache_is_no_hindrance():
    kept = {}

    def function(x):
        if "one" not in kept:
            kept["one"] = torch.arange(3) + 1
        return [x * kept["one"]]

    recorder = Recorder()
    for _ in range(3):
        recorder.record(lambda: function(X), [], [X])
    assert recorder.recording is not None
    assert torch.equal(recorder.recording.bind([])(X + 1)[0], (X + 1) * torch.tensor([1, 2, 3]))


def test_changes_in_place_are_made_again():
    statistics = torch.zeros(3)

    def function(statistics, x):
        statistics.mul_(0.5).add_(x)
        halves = torch.empty(3)
        halves.copy_(x).div_(2)
        return [halves]

    (found,) = replayed(function, [statistics], [X], [X], [4 * X])
    assert torch.equal(found, 2 * X)
    assert torch.equal(statistics, 0.25 * X + 0.5 * X + 4 * X)


def test_what_only_puts_tensors_together_may_come_in_parts():
    def function(w, x):
        rows = torch.stack([w[0] * x, w[1] * x])
        kept = torch.stack([w[0], x])
        return [rows, kept, kept.sum()]

    rows, kept, total = replayed(function, [W], [X], [X], [X + 1], apart=True)
    assert isinstance(rows, list)
    assert torch.equal(torch.stack(rows), W * (X + 1))
    assert torch.equal(kept, torch.stack([W[0], X + 1]))
    assert torch.equal(total, kept.sum())


def test_parts_that_change_after_they_were_put_together_stay_as_they_were():
    def function(x):
        first, second = x * 2, x * 3
        rows = torch.stack([first, second])
        first.zero_()
        return [rows, first + second]

    rows, total = replayed(function, [], [X], [X], [X + 1], apart=True)
    assert torch.equal(rows, torch.stack([2 * (X + 1), 3 * (X + 1)]))
    assert torch.equal(total, 3 * (X + 1))


def test_an_operation_that_leaves_out_a_result_is_recorded():
    layer = torch.nn.Conv1d(1, 2, 2)
    x = torch.rand(4, 1, 3)

    def function(weight, x):
        y = torch.nn.functional.conv1d(x, weight, layer.bias).sum()
        return torch.autograd.grad(y, [weight])

    found = replayed(function, [layer.weight], [x], [x], [x + 1])
    assert torch.equal(found[0], function(layer.weight, x + 1)[0])


# --- what is never recorded -----------------------------------------------------------------------


def test_what_reads_a_number_is_not_recorded():
    assert "reads a number" in reason(lambda x: [x * 2 if x.sum() > 0 else x], X)


@pytest.mark.parametrize(
    "read",
    [
        lambda x: x.tolist()[0],
        lambda x: x.numpy()[0],
        lambda x: float(np.asarray(x)[0]),
        lambda x: float(np.from_dlpack(x)[0]),
    ],
)
def test_what_python_or_numpy_reads_is_not_recorded(read):
    """They are no operations: the branch of the first two steps was replayed for good."""
    assert "reads a number" in reason(lambda x: [x * 2 if read(x) > 0 else x], X)


def test_results_of_constants_belong_to_the_caller():
    """The gradient of an unused parameter is zeros, into which an update writes weight decay."""
    recorder = Recorder()
    while recorder.open:
        (zeros,) = recorder.record(lambda: [torch.zeros_like(X)[:2]], [], [X])
        zeros.add_(1)
    assert recorder.recording is not None, recorder.reason
    replay = recorder.recording.bind([])
    for _ in range(2):
        (zeros,) = replay(X)
        assert not zeros.any()
        zeros.add_(1)


def test_what_draws_from_torchs_generator_is_not_recorded():
    assert "draws" in reason(lambda x: [torch.nn.functional.dropout(x)], X)


def test_a_result_whose_shape_depends_on_numbers_is_not_recorded():
    assert "shape" in reason(lambda x: [x[x > 0].sum()], X)


def test_what_changes_from_call_to_call_is_not_recorded():
    calls = iter(range(99))
    assert reason(lambda x: [x * next(calls)], X) == "what it does changes from call to call"
    assert reason(lambda x: [x + torch.tensor(next(calls))], X) is not None
    assert reason(lambda x: [x.sin() if next(calls) % 2 else x.cos()], X) is not None


def test_a_number_that_is_added_up_starts_anew_in_each_run():
    """A replay would go on with the number that is left."""

    def function(x):
        total = torch.tensor(0.0)
        for value in x:
            total += value
        return [total]

    assert "changes a tensor" in reason(function, X)


def test_an_operation_that_does_something_else_without_gradients_is_not_recorded():
    """Every torch.nn.LSTM failed on a CPU: without gradients it keeps nothing for its backward."""
    lstm = torch.nn.LSTM(3, 2)

    def function(x):
        return torch.autograd.grad(lstm(x)[0].sum(), list(lstm.parameters()))

    if torch.backends.mkldnn.is_available():
        assert "a replay raises" in reason(function, torch.rand(4, 2, 3))


def test_a_function_that_raises_only_while_it_is_recorded_gives_its_result():
    def function():
        if torch.utils._python_dispatch._get_current_dispatch_mode() is not None:
            raise RuntimeError("not while you\nlook")
        return [X]

    outputs, found = recorded(function, [], [])
    assert outputs[0] is X
    assert found == "not while you look"


def test_what_a_function_raises_is_raised():
    def singular():
        raise ValueError("singular")

    with pytest.raises(ValueError, match="singular"):
        recorded(singular, [], [])


# --- the steps of every model ---------------------------------------------------------------------

PICTURES = ("data=digits", "data.subset=64", "batch.size=16", "training.max_steps=4")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("model", SMALL_MODELS)
@pytest.mark.parametrize("width", [1, 3])
def test_steps_of_every_model_are_recorded(model, kind, width):
    words = (*PICTURES, *SMALL_MODELS[model], *KINDS[kind])
    specs = [make_spec(*words, f"training.seed={n}", number=n) for n in range(width)]
    assert all(result.state == "complete" for result in train(specs, width=width))
    recorders = _recorders[Program.of(specs[0])]
    assert recorders
    for recorder in recorders.values():
        assert recorder.recording is not None, recorder.reason
