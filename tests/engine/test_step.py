"""The step's gradients, by hand; and what may not leak between slots."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from engine_support import SMALL_MODELS, filled, make_steps, one, varied
from support import make_spec

from sweepstack.engine.program import Program
from sweepstack.engine.step import Step
from sweepstack.training.stack import Stack

COURSE = {
    "hidden.0.weight": [[1.0], [-1.0]],
    "hidden.0.bias": [1.0, 2.0],
    "output.weight": [[1.0, 2.0]],
    "output.bias": [-1.0],
}


def course_stack(spec, width: int) -> tuple[Program, Stack]:
    trial = spec("data=quadratic", "model.hidden=[2]", "model.activation=sigmoid")
    program = Program.of(trial)
    stack = program.stack(width)
    for slot in range(width):
        given = {name: torch.tensor(value) for name, value in COURSE.items()}
        stack.insert([slot], [given], [program.numbers(trial)])
    return program, stack


@pytest.mark.parametrize("width", [1, 3])
def test_gradients_of_the_course_network(spec, width):
    """One input, two sigmoid hidden units, x = 1, y = 3, squared error."""
    program, stack = course_stack(spec, width)
    x, y = torch.ones(width, 1, 1), torch.full((width, 1), 3.0)
    _, grads = Step(program).gradients(stack, x, y, {})
    rows = torch.cat([grad.reshape(width, -1) for grad in grads], dim=1)
    sizes = [view[0].numel() for view in stack.params.views.values()]
    named = dict(zip(stack.params.views, rows.split(sizes, dim=1), strict=True))
    expected = {
        "output.bias": [-3.3142],
        "output.weight": [-2.9191, -2.4229],
        "hidden.0.weight": [-0.3480, -1.3032],
        "hidden.0.bias": [-0.3480, -1.3032],
    }
    assert named.keys() == expected.keys()
    for name, values in expected.items():
        for slot in range(width):
            torch.testing.assert_close(
                named[name][slot], torch.tensor(values), atol=5e-5, rtol=0, msg=name
            )


@pytest.mark.parametrize("slots", [[1, 2, 3], [4, 0, 2]])
def test_trials_inserted_together_are_those_inserted_one_by_one(spec, slots):
    words = ("model=resnet", "training.ema_decay=0.9", "regularization.mixup=0.2")
    base = spec("data=digits", *words, "model.width=4", "model.depth=1")
    specs = [varied(base.config, n, training={"seed": n}) for n in range(3)]
    program = Program.of(base)
    rows = [program.initial(each) for each in specs]
    numbers = [program.numbers(each) for each in specs]
    together, single = program.stack(5), program.stack(5)
    for stack in (together, single):
        stack.insert(range(5), [program.initial(base)] * 5, [program.numbers(base)] * 5)
        for bank in stack.banks.values():
            for view in bank.views.values():
                view += 1  # as if trained
    together.insert(slots, rows, numbers)
    for slot, row, given in zip(slots, rows, numbers, strict=True):
        single.insert([slot], [row], [given])

    for name, bank in together.banks.items():
        for key, view in bank.views.items():
            torch.testing.assert_close(view, single.banks[name].views[key], rtol=0, atol=0)
    first = together.params.row(slots[1])
    assert all(torch.equal(first[name], rows[1][name]) for name in first)
    for kind in ("optimizer", "strengths", "keys"):
        for key, row in getattr(together, kind).items():
            assert torch.equal(row, getattr(single, kind)[key])
    assert torch.equal(together.mixup, single.mixup)


def test_a_broken_slot_leaves_its_neighbours_alone(spec):
    program, stack = course_stack(spec, 2)
    x, y = torch.ones(2, 1, 1), torch.tensor([[float("nan")], [3.0]])
    (losses,), grads = Step(program).gradients(stack, x, y, {})
    assert not losses[0].isfinite()
    assert losses[1].isfinite()
    assert all(grad[1].isfinite().all() for grad in grads)


DIGITS = ("data=digits", "data.subset=200", "training.max_steps=12", "training.eval_every=4")


@pytest.mark.parametrize(
    "words",
    [
        ("optimizer=adam",),
        ("model=convnet", "model.width=2", "model.hidden=[8]", "regularization.clip_norm=0.1"),
        ("regularization.mixup=0.4", "regularization.rotation=20", "regularization.l1=0.01"),
        ("batch.lr_scaling=linear", "batch.base_size=16", "schedule=cosine"),
    ],
)
def test_accumulated_batches_are_one_large_batch(words):
    small = one(*DIGITS, *words, "batch.size=10", "batch.accumulate=4")
    large = one(*DIGITS, *words, "batch.size=40")
    assert len(small.history) == 3
    for mine, other in zip(small.history, large.history, strict=True):
        assert mine == pytest.approx(other, rel=1e-4)
    assert one(*DIGITS, *words, "batch.size=10").history[0] != pytest.approx(
        large.history[0], rel=1e-2
    )


def test_a_batch_norm_sees_each_of_the_accumulated_batches():
    spec = make_spec(*DIGITS, *SMALL_MODELS["batch norm"], "batch.size=10", "batch.accumulate=2")
    program = Program.of(spec)
    for count in (1, 2):
        stack = filled(program, [spec] * count)
        (batch,) = make_steps(program, stack, 1)
        module = program.module.train()
        name = next(n for n in stack.buffers.views if n.endswith("running_mean"))
        expected = torch.zeros_like(stack.buffers.views[name])
        weight = stack.params.row(0)["hidden.0.weight"].clone()
        for half in batch.x.flatten(2).split(10, dim=1):  # momentum 0.1
            expected = 0.9 * expected + 0.1 * (half @ weight.T).mean(1)
        Step(program)(stack, batch)
        torch.testing.assert_close(stack.buffers.views[name], expected)
        assert module.training


def test_accumulated_batches_draw_their_own_dropout_masks():
    words = (*DIGITS, "model.hidden=[64]", "regularization.dropout=0.5", "batch.size=10")
    spec = make_spec(*words, "batch.accumulate=2")
    program = Program.of(spec)
    stack = filled(program, [spec])
    (batch,) = make_steps(program, stack, 1)
    x, y = batch.x[:, :10].repeat(1, 2, 1, 1, 1), batch.y[:, :10].repeat(1, 2)
    (both, *_), _ = Step(program).gradients(stack, x, y, batch.keys)
    alone = Program.of(make_spec(*words))
    half = x[:, :10], y[:, :10]
    (single, *_), _ = Step(alone).gradients(filled(alone, [spec]), *half, batch.keys)
    assert both != pytest.approx(single, rel=1e-3)


@pytest.mark.parametrize("optimizer", ["adam", "muon"])
@pytest.mark.parametrize("count", [1, 3])
def test_averages_of_the_weights(optimizer, count):
    """d = min(ema_decay, (1+t)/(10+t)), of parameters and batch norms' statistics."""
    words = (*DIGITS, *SMALL_MODELS["batch norm"], f"optimizer={optimizer}", "batch.size=10")
    base = make_spec(*words, "training.ema_decay=0.5").config
    decays = [0.15, 0.3, 0.9][:count]
    trials = [varied(base, n, training={"ema_decay": d, "seed": n}) for n, d in enumerate(decays)]
    program = Program.of(trials[0])
    stack, step = filled(program, trials), Step(program)
    means = [
        {
            name: view.clone()
            for name, view in {**stack.params.row(n), **stack.buffers.row(n)}.items()
        }
        for n in range(count)
    ]
    for number, batch in enumerate(make_steps(program, stack, 12), 1):
        step(stack, batch)
        for n, decay in enumerate(decays):
            d = min(decay, (1 + number) / (10 + number))
            for name, view in {**stack.params.row(n), **stack.buffers.row(n)}.items():
                means[n][name] = d * means[n][name] + (1 - d) * view
    for n in range(count):
        stack.keep_best([n])
        found = stack.best([n], {})[0].settle()
        assert found.keys() == means[n].keys()
        for name, mean in means[n].items():
            torch.testing.assert_close(found[name], mean)
    assert not torch.equal(stack.params.row(0)["hidden.0.weight"], found["hidden.0.weight"])


def test_the_averages_are_evaluated_and_kept():
    words = (*DIGITS, "optimizer=sgd", "optimizer.lr=0.5", "batch.size=10")
    averaged, plain = one(*words, "training.ema_decay=0.95"), one(*words)
    for mine, other in zip(averaged.history, plain.history, strict=True):
        assert mine["train_loss"] == other["train_loss"]  # of the weights that are trained
        assert mine["val_loss"] != other["val_loss"]
    program = Program.of(averaged.spec)
    row = {name: tensor.unsqueeze(0) for name, tensor in averaged.best_state.items()}
    (sums,) = Step(program).measure(row, {}, {}, program.sources["test"], len(program.data.test))
    found = dict(program.task.means(sums, len(program.data.test), "test"))
    assert found["test_loss"] == pytest.approx(averaged.metrics["test_loss"], rel=1e-5)


def test_a_gpu_evaluates_as_many_samples_at_once_as_its_memory_allows(monkeypatch):
    """A 64th of it for the activations, in chunks of about one size; at least 1,024 samples."""
    card = SimpleNamespace(total_memory=64 * 4 * 100 * 50_000)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda place: card)
    data = SimpleNamespace(input_shape=(0,))
    program = SimpleNamespace(device=torch.device("cuda"), activations=100, data=data)
    step = SimpleNamespace(program=program)
    assert Step.chunk(step, 10, 12_000) == 4000  # and not 5000
    assert Step.chunk(step, 10, 4999) == 4999
    assert Step.chunk(step, 1000, 3000) == 1000
    data.input_shape = (50, 20)  # which all slots share
    assert Step.chunk(step, 10, 12_000) == 2400
    program.device = torch.device("cpu")
    assert Step.chunk(step, 1, 12_000) == 256
