"""Contract: a trial's numbers never depend on its slot, its neighbours, pruning, or a resume.

Every model x optimizer, and every regularizer, trained in a stack of mixed neighbours where one
trial is pruned midway and its slot refilled, and some in a stack of all that narrows as trials end,
in turns with another optimizer's stack, and with batches that all of them share, against the same
trials alone. Initial weights, batches and dropout masks must be equal to the last bit. Metrics may
differ by rounding: a batched product adds in another order than a single one, and Adam divides by
square roots of small numbers, so that after 12 float32 steps the losses agree to about 1e-5; the
tolerance is 1e-3, far below what a wrong seed, learning rate or mask does (see
`test_the_comparison_can_fail`).
"""

from __future__ import annotations

import threading

import pytest
import support
import torch
from engine_support import filled, varied
from support import make_spec

from sweepstack.data import streams
from sweepstack.engine.executors.cuda_graph import CudaGraph
from sweepstack.engine.executors.recorded import _Part
from sweepstack.engine.program import Program
from sweepstack.engine.slot import Slot
from sweepstack.engine.step import Step
from sweepstack.engine.train import train
from sweepstack.training.spec import Monitor

pytestmark = pytest.mark.slow
no_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")

TOLERANCE = 1e-3
PRUNED = 1
COMMON = ("training.eval_every=4", "batch.size=16", "data.subset=100")

MODELS = {
    "mlp": ("model=mlp", "model.hidden=[16,8]"),
    # Without normalization, pixels that are always 0 stay 0. As another constant, batch norm would
    # leave their weights a gradient of pure rounding noise, which Adam blows up to full steps.
    "mlp_batch_norm": (
        *("model=mlp", "model.hidden=[16]", "regularization.batch_norm=true"),
        "data.normalization=none",
    ),
    "convnet": ("model=convnet", "model.width=4", "model.hidden=[16]"),
    "resnet": ("model=resnet", "model.width=4"),
    "custom": ("model=custom", "model._target_=frozen_support.Net", "trust=[frozen_support]"),
}
OPTIMIZERS = {
    "sgd": ("optimizer=sgd", "optimizer.nesterov=true", "optimizer.momentum=0.9"),
    "adam": ("optimizer=adam",),
    "adamw": ("optimizer=adamw", "regularization.weight_decay=0.1"),
    "rmsprop": ("optimizer=rmsprop",),
    "dampened": ("optimizer=sgd", "optimizer.momentum=0.9", "optimizer.dampening=0.5"),
    "nadam": ("optimizer=nadam",),
    "radam": ("optimizer=radam",),
    "adagrad": ("optimizer=adagrad",),
    "lion": ("optimizer=lion", "regularization.weight_decay=0.1"),
    "muon": ("optimizer=muon", "regularization.weight_decay=0.1"),
}
FEW = ("sgd", "adam", "adamw", "rmsprop", "muon")
"""Optimizers that are tried with every model, not with one alone."""
REGULARIZERS = {
    "weight_decay": ("regularization.weight_decay=0.01",),
    "l1": ("regularization.l1=0.001",),
    "label_smoothing": ("regularization.label_smoothing=0.1",),
    "clip_norm": ("regularization.clip_norm=0.5",),
    "clip_value": ("regularization.clip_value=0.01",),
    "mixup": ("regularization.mixup=0.4",),
    "cutout": ("regularization.cutout=3",),
    "crop": ("regularization.crop_padding=1",),
    "flip": ("regularization.horizontal_flip=true",),
    "rotation": ("regularization.rotation=20",),
    "translation": ("regularization.translation=0.2",),
    "resized_crop": ("regularization.random_resized_crop=0.3", "regularization.random_erasing=0.5"),
    "color": ("regularization.brightness=0.4", "regularization.rand_augment=9"),
    "fixed": ("data.normalization=fixed", "data.mean=0.3", "data.std=0.4", "data.image_size=12"),
    "order_seed": ("data.order_seed=3",),
    "schedules": ("schedule=one_cycle",),
    "backbone_lr": ("optimizer.backbone_lr_factor=0.1",),
    "frozen": ("model.freeze=backbone",),
    "unfreeze": (
        *("model.freeze=backbone", "training.unfreeze_at=5", "optimizer.backbone_lr_factor=0.5"),
        "regularization.clip_norm=0.5",
    ),
}


@pytest.fixture(autouse=True, params=["cpu", pytest.param("cuda", marks=no_gpu)])
def place(request, monkeypatch):
    """All of it on the CPU, and on a GPU where there is one."""
    monkeypatch.setattr("support.DEVICE", request.param)
    return request.param


class PruneOne(Monitor):
    def __init__(self):
        self.last = 0.0

    def report(self, spec, row):
        self.last = row["step"]

    def should_stop(self, spec):
        return spec.number == PRUNED and self.last >= 8


def trials(*words):
    """Five trials of unequal lr, dropout, init, seed and length, equal in their static part."""
    settings = [
        (0.01, 0.1, "he", 12),
        (0.003, 0.5, "xavier", 40),
        (0.001, 0.3, "lecun", 16),
        (0.02, 0.2, "uniform", 8),
        (0.005, 0.4, "orthogonal", 10),
    ]
    custom = MODELS["custom"][0] in words
    base = make_spec(*COMMON, *words, *([] if custom else ["regularization.dropout=0.1"])).config

    return [
        varied(
            base,
            number,
            optimizer={"lr": lr},
            regularization={} if custom else {"dropout": dropout},
            init={"scheme": init},
            training={"max_steps": steps, "seed": number},
        )
        for number, (lr, dropout, init, steps) in enumerate(settings)
    ]


_alone = {}  # by device, number and config: many cases train the same trials


def trained_alone(spec):
    key = (support.DEVICE, spec.number, spec.config_hash)
    if key not in _alone:
        _alone[key] = next(iter(train([spec], PruneOne())))
    return _alone[key]


def same(specs, widths=(2, 3)):
    """Compare every trial of refilled stacks of these widths with itself alone."""
    alone = {spec.number: trained_alone(spec) for spec in specs}
    for width in widths:
        stacked = {result.spec.number: result for result in train(specs, PruneOne(), width=width)}
        assert stacked.keys() == alone.keys()
        for number, mine in stacked.items():
            other = alone[number]
            assert mine.state == other.state == ("pruned" if number == PRUNED else "complete")
            assert mine.steps == other.steps
            assert len(mine.history) == len(other.history)
            for row, reference in zip(mine.history, other.history, strict=True):
                for name in ("train_loss", "val_loss", "lr"):
                    assert row[name] == pytest.approx(reference[name], rel=TOLERANCE), (
                        width,
                        number,
                        row["step"],
                        name,
                    )


@pytest.mark.parametrize(
    ("model", "optimizer"),
    [(m, o) for m in MODELS for o in OPTIMIZERS if o in FEW or m == "mlp"],
)
def test_every_model_and_optimizer(model, optimizer):
    specs = trials(*MODELS[model], *OPTIMIZERS[optimizer])
    assert len({spec.static for spec in specs}) == 1
    same(specs, (2, 3) if optimizer == "adam" else (3,))


@pytest.mark.parametrize("regularizer", REGULARIZERS)
def test_every_regularizer(regularizer):
    same(trials(*MODELS["convnet"], *REGULARIZERS[regularizer]), (3,))


@pytest.mark.parametrize("model", ["mlp_batch_norm", "convnet"])
@pytest.mark.parametrize("optimizer", ["adam", "rmsprop"])  # with a fused kernel and without
def test_averages_and_accumulated_gradients(model, optimizer):
    words = (*MODELS[model], *OPTIMIZERS[optimizer], "batch.size=8", "batch.accumulate=2")
    specs = trials(*words, "training.ema_decay=0.5")
    decays = [0.5, 0.9, 0.99, 0.3, 0.6]
    same([varied(s.config, s.number, training={"ema_decay": decays[s.number]}) for s in specs])


def test_regression():
    same(trials("data=quadratic", *MODELS["mlp"]))


@pytest.fixture
def steps_taken(monkeypatch):
    """Of every step of a part, on a GPU of every block of steps: the optimizer, the width, whether
    all slots saw one batch, and the thread that took it."""
    taken = []
    advance, run = _Part.advance, CudaGraph.run

    def note(executor, steps):
        name = executor.step.program.config.optimizer.name
        thread = threading.current_thread().name
        taken.append((name, executor.stack.width, steps.shared, thread))

    both = threading.Barrier(2)

    def advancing(self, batch):
        if threading.current_thread().name.startswith("part"):
            both.wait(60)  # or one thread might take the steps of both parts
        note(self, batch)
        return advance(self, batch)

    def running(self, block):
        note(self, block)
        return run(self, block)

    monkeypatch.setattr(_Part, "advance", advancing)
    monkeypatch.setattr(CudaGraph, "run", running)
    return taken


@pytest.mark.parametrize(
    ("model", "optimizer"),
    [("mlp", "adamw"), ("mlp_batch_norm", "sgd"), ("convnet", "rmsprop"), ("resnet", "adam")],
)
def test_a_stack_of_all_that_narrows(model, optimizer, steps_taken, place):
    same(trials(*MODELS[model], *OPTIMIZERS[optimizer]), [5])
    narrowed = {"cpu": {5, 3, 2, 1}, "cuda": {5, 2, 1}}  # a captured step is worth empty slots
    assert {width for _, width, _, _ in steps_taken} == narrowed[place]


@pytest.mark.parametrize(
    ("model", "optimizer"),
    [
        *[("mlp", "adamw"), ("mlp_batch_norm", "sgd"), ("convnet", "rmsprop"), ("resnet", "adam")],
        ("mlp", "muon"),
    ],
)
def test_a_stack_whose_parts_advance_in_threads(model, optimizer, steps_taken, two_threads, place):
    """Of five slots in parts of two and three, each by a thread, down to one slot in one part."""
    if place != "cpu":
        pytest.skip("a GPU advances all slots at once")
    same(trials(*MODELS[model], *OPTIMIZERS[optimizer]), [5])
    assert {width for _, width, _, _ in steps_taken} == {3, 2, 1}
    assert {thread for _, _, _, thread in steps_taken} == {"MainThread", "part_0", "part_1"}


@pytest.mark.parametrize("model", ["mlp_batch_norm", "convnet"])
def test_stacks_of_two_optimizers_that_take_turns(model, steps_taken, place):
    specs = trials(*MODELS[model], *OPTIMIZERS["sgd"])
    others = trials(*MODELS[model], *OPTIMIZERS["rmsprop"])
    mixed = [others[n] if n % 2 else specs[n] for n in range(5)]
    same(mixed, [3])
    stacks = {(name, width) for name, width, _, _ in steps_taken}
    assert stacks >= {"cpu": {("sgd", 2), ("rmsprop", 1)}, "cuda": {("sgd", 2)}}[place]


@pytest.mark.parametrize("model", ["mlp", "mlp_batch_norm", "convnet"])
def test_seeds_that_share_their_batches(model, steps_taken, place):
    """Twice the same trial, and other seeds, all in one order."""
    words = (*COMMON, *MODELS[model], "data.order_seed=3", "regularization.dropout=0.3")
    specs = [
        make_spec(*words, "training.max_steps=12", f"training.seed={seed}", number=number)
        for number, seed in ((0, 4), (2, 4), (3, 5), (4, 6))
    ]
    same(specs, [4])
    assert any(shared and width == 4 for _, width, shared, _ in steps_taken)
    first, twin, other, _ = sorted(train(specs, width=4), key=lambda result: result.spec.number)
    if place == "cpu":  # a GPU may add in another order each time
        assert first.history == twin.history  # in one stack, to the last bit
    assert first.history != other.history


def test_dropout_masks_are_equal_to_the_last_bit(monkeypatch):
    """What both layers draw in a stack of three, at several steps, they draw alone."""
    drawn, original = [], streams.uniform

    def spy(keys, n):
        drawn.append(original(keys, n))
        return drawn[-1]

    class Telling(Step):
        """Gives what its dropout layers draw along with the statistics of its batch norms."""

        def loss(self, *arguments):
            drawn.clear()
            loss, updated = super().loss(*arguments)
            return loss, updated | {f"draw {index}": draw for index, draw in enumerate(drawn)}

    monkeypatch.setattr(streams, "uniform", spy)
    specs = trials("model=mlp", "model.hidden=[8,8]")[2:5]
    program = Program.of(specs[0])
    x = torch.rand(3, program.batch_size, *program.data.input_shape).to(program.device)
    y = torch.zeros(3, program.batch_size, dtype=torch.int64, device=program.device)

    def draws(specs, x, y, number):
        stack, step, count = filled(program, specs), Telling(program), len(specs)
        keys = {"dropout": streams.split(stack.keys["dropout"], number)}
        x, extra = step._prepare(stack, x, y, keys)
        updated = step._differentiated(stack, x, y, extra)[2]
        return [updated[f"draw {layer}"].reshape(count, -1) for layer in range(2)]

    seen = set()
    for number in (0, 7):
        stacked = draws(specs, x, y, number)
        for slot, spec in enumerate(specs):
            alone = draws([spec], x[slot : slot + 1], y[slot : slot + 1], number)
            for mine, other in zip(stacked, alone, strict=True):
                assert torch.equal(mine[slot], other[0])
                seen.add(tuple(other[0].tolist()))
    assert len(seen) == 2 * 3 * 2  # each step, trial and layer has its own


def test_the_comparison_can_fail():
    specs = trials(*MODELS["mlp"])
    alone = next(iter(train([specs[0]])))
    seed = make_spec(*COMMON, *MODELS["mlp"], "training.max_steps=12", "training.seed=9")
    other = next(iter(train([seed])))
    assert other.history[-1]["val_loss"] != pytest.approx(
        alone.history[-1]["val_loss"], rel=10 * TOLERANCE
    )


def test_initial_weights_and_batches_are_equal_to_the_last_bit():
    specs = trials(*MODELS["convnet"])
    program = Program.of(specs[0])
    stack = filled(program, specs[2:5])
    for place, spec in enumerate(specs[2:5]):
        alone = filled(program, [spec])
        for name, tensor in alone.params.row(0).items():
            assert torch.equal(tensor, stack.params.row(place)[name])
        mine, other = Slot(program, spec), Slot(program, spec)
        assert torch.equal(mine.batches(30), other.batches(30))


@pytest.mark.parametrize(
    ("model", "words"),
    [
        *((model, OPTIMIZERS["rmsprop"]) for model in MODELS),
        ("mlp", OPTIMIZERS["nadam"]),
        ("mlp", OPTIMIZERS["muon"]),
        ("mlp_batch_norm", ("training.ema_decay=0.9", "batch.accumulate=2", "batch.size=8")),
    ],
)
def test_a_checkpoint_of_a_stack_goes_on_alone(model, words, tmp_path):
    """Trained in a stack of three, interrupted, continued alone."""
    from sweepstack.engine.train import Interrupted

    class Signal(PruneOne):
        steps = 0

        def stepped(self, steps, specs):
            self.steps += steps

        def interrupted(self):
            return 130 if self.steps >= 8 else None

    specs = trials(*MODELS[model], *words)[:3]
    alone = [trained_alone(spec) for spec in specs]
    specs = [type(spec)(spec.config, spec.number, tmp_path / str(spec.number)) for spec in specs]
    with pytest.raises(Interrupted):
        list(train(specs, Signal(), width=3))
    resumed = list(train([spec for spec in specs if spec.number != PRUNED], PruneOne()))
    assert len(resumed) == 2
    for mine in resumed:
        other = alone[mine.spec.number]
        assert [row["step"] for row in mine.history] == [row["step"] for row in other.history]
        assert mine.metrics["val_loss"] == pytest.approx(other.metrics["val_loss"], rel=TOLERANCE)
