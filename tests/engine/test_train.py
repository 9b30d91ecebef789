"""The training function as its callers see it: what is learnt, measured, and the same again."""

from __future__ import annotations

import pickle

import pytest
import torch
from engine_support import filled, one
from support import SHARED_DATA, make_spec, needs_mnist, needs_pictures

from sweepstack.config.errors import InputError
from sweepstack.engine.program import Program
from sweepstack.engine.train import train
from sweepstack.training.spec import Kept

SHORT = ("training.max_steps=40", "training.eval_every=10", "batch.size=32")


def test_digits_with_defaults_ends_above_95_percent():
    result = one()
    assert result.state == "complete"
    assert result.metrics["val_accuracy"] > 0.95
    assert result.metrics["test_accuracy"] > 0.92
    assert result.value == result.metrics["val_accuracy"]
    assert result.steps == 30 * (len(Program.of(result.spec).data.train) // 64)


@needs_mnist
def test_mnist_in_200_steps():
    words = [f"data.root={SHARED_DATA}", "optimizer.lr=0.01", "training.max_steps=200"]
    specs = [make_spec("data=mnist", *words, f"training.seed={seed}") for seed in range(5)]
    accuracies = [result.metrics["val_accuracy"] for result in train(specs)]
    assert len(Program.of(specs[0]).data.val) == 5000
    assert sum(accuracies) / 5 >= 0.92
    chance = one("data=mnist", "init=zeros", *words)
    assert chance.metrics["val_accuracy"] < 0.13


@needs_pictures
@pytest.mark.slow
def test_convnet_learns_a_folder_of_pictures():
    result = one(
        *("data=image_folder", f"data.root={SHARED_DATA / 'cifar10_folder'}"),
        *("data.val_folder=test", "model=convnet", "training.max_epochs=5"),
    )
    assert result.state == "complete", result.error
    assert result.metrics["val_accuracy"] > 0.3  # chance is 0.1


def test_regression_and_its_metrics():
    result = one("data=quadratic", "training.max_epochs=40", "optimizer.lr=0.01")
    assert result.objective == "val_mse"
    assert result.metrics["val_mse"] == result.metrics["val_loss"]
    assert result.metrics["val_mse"] < 0.02  # the targets' variance is about 0.09
    assert {"val_mae", "test_mse", "test_mae", "train_loss"} <= result.metrics.keys()


def test_history_has_a_row_per_evaluation_and_the_best_is_reported():
    result = one(*SHORT)
    assert [row["step"] for row in result.history] == [10, 20, 30, 40]
    best = max(result.history, key=lambda row: row["val_accuracy"])
    assert result.best_step == best["step"]
    assert result.metrics["val_accuracy"] == best["val_accuracy"]


def test_metrics_are_means_over_samples_with_a_short_last_batch(monkeypatch):
    whole = one(*SHORT)
    monkeypatch.setattr("sweepstack.engine.step.EVALUATION_CHUNK", {"cpu": 7})
    pieces = one(*SHORT)
    for name in ("val_loss", "val_accuracy", "test_loss"):
        assert pieces.metrics[name] == pytest.approx(whole.metrics[name], rel=1e-6)


def test_best_state_is_the_state_of_the_best_step():
    words = ("optimizer=sgd", "optimizer.lr=0.5", "training.eval_every=10", "batch.size=32")
    result = one(*words, "training.max_steps=60")
    again = one(*words, f"training.max_steps={result.best_step}")
    for name, tensor in result.best_state.items():
        assert torch.equal(tensor, again.best_state[name])


def test_best_states_for_which_the_device_has_no_room_are_the_same(monkeypatch):
    program = Program.of(make_spec(*SHORT))
    full = filled(program, [make_spec(*SHORT, f"training.seed={seed}") for seed in range(3)])
    (expected,) = full.best([2], {})
    original, tried = torch.Tensor.index_select, []

    def index_select(self, *given):
        tried.append(1)
        if len(tried) == 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(self, *given)

    monkeypatch.setattr(torch.Tensor, "index_select", index_select)
    (found,) = full.best([2], {})
    assert len(tried) == 2 + 4
    for name, tensor in expected.settle().items():
        assert torch.equal(found.settle()[name], tensor)


@pytest.mark.parametrize("width", [1, 3])
def test_best_states_leave_the_device_when_they_are_asked_for_or_kept(monkeypatch, width):
    """And not those of trials that nobody keeps."""
    copied, original = [], Kept.settle
    monkeypatch.setattr(
        Kept, "settle", lambda self: (copied.append(1) if self._rows else None, original(self))[1]
    )
    specs = [make_spec(*SHORT, f"training.seed={seed}") for seed in range(3)]
    for result in train(specs, width=width):
        assert result.kept is not None
    assert len(copied) == (3 if width == 1 else 1)  # `result` is still there
    results = list(train(specs, width=width))
    assert len(copied) == (6 if width == 1 else 4)
    for result in results:
        (alone,) = train([result.spec])
        assert result.best_state.keys() == alone.best_state.keys()
        for name, tensor in alone.best_state.items():
            torch.testing.assert_close(result.best_state[name], tensor)
            own = result.best_state[name].untyped_storage().nbytes()
            assert own == tensor.nbytes  # and no neighbour's
    again = pickle.loads(pickle.dumps(results[0]))
    assert again.best_state.keys() == results[0].best_state.keys()


def test_test_data_is_measured_once_at_the_best_state(monkeypatch):
    from sweepstack.engine import runner as module

    asked = []
    original = module.Runner._measure

    def spy(self, split, places, *, best):
        asked.append((split, best))
        return original(self, split, places, best=best)

    monkeypatch.setattr(module.Runner, "_measure", spy)
    one(*SHORT)
    assert asked == [("val", False)] * 4 + [("test", True)]


def test_specs_are_pulled_lazily():
    pulled = []

    def stream():
        for seed in range(3):
            pulled.append(seed)
            yield make_spec(*SHORT, f"training.seed={seed}")

    results = train(stream())
    next(results)
    assert pulled == [0]
    assert [result.spec.config.training.seed for result in results] == [1, 2]


def test_deterministic_runs_are_bit_equal():
    words = (*SHORT, "training.deterministic=true", "regularization.dropout=0.2", "model=resnet")
    first, second = one(*words), one(*words)
    assert first.history == second.history


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    "words",
    [
        ("optimizer=adam", "model.activation=silu", "regularization.clip_norm=1"),
        ("model=convnet", "regularization.dropout=0.2", "training.max_steps=4"),
    ],
)
def test_deterministic_numbers_depend_on_no_width_neighbour_or_number_of_threads(words, threads):
    def first(width, count):
        threads(count)
        each = ("training.seed={0}", "optimizer.lr=0.0{0}1", "training.deterministic=true")
        specs = [
            make_spec(*SHORT, "training.eval_every=4", *words, *(w.format(n) for w in each))
            for n in range(width)
        ]
        found = {r.spec.config.training.seed: r for r in train(specs, width=width)}
        assert torch.get_num_threads() == count  # a caller's own work is not slowed
        return found[0].history, found[0].best_state

    history, state = first(1, 1)
    for width, count in ((2, 1), (3, 2), (5, 1), (1, 2)):
        again, other = first(width, count)
        assert again == history
        assert all(torch.equal(state[name], other[name]) for name in state)


def test_deterministic_algorithms_are_asked_for_while_such_a_trial_trains(monkeypatch):
    from sweepstack.engine.step import Step

    seen = []

    def watch(name):
        original = getattr(Step, name)

        def spy(self, *arguments):
            seen.append((name, torch.are_deterministic_algorithms_enabled()))
            return original(self, *arguments)

        monkeypatch.setattr(Step, name, spy)

    watch("update")
    watch("measure")
    short = ("training.max_steps=4", "training.eval_every=2")
    specs = [make_spec(*short, f"training.deterministic={on}") for on in ("true", "false", "true")]
    results = train(specs)
    for spec in specs:
        assert next(results).state == "complete"
        assert not torch.are_deterministic_algorithms_enabled()  # a caller's own work is not slowed
        on = spec.config.training.deterministic
        assert set(seen) == {("update", on), ("measure", on)}
        seen.clear()
    assert list(results) == []


def test_another_seed_gives_other_numbers():
    assert one(*SHORT).history != one(*SHORT, "training.seed=1").history


def test_an_order_seed_fixes_the_batches_of_all_seeds():
    from sweepstack.engine.slot import Slot

    def batches(*words):
        spec = make_spec(*SHORT, *words)
        slot = Slot(Program.of(spec), spec)
        return slot.batches(50)

    assert not torch.equal(batches("training.seed=1"), batches("training.seed=2"))
    fixed = ("data.order_seed=5",)
    assert torch.equal(batches("training.seed=1", *fixed), batches("training.seed=2", *fixed))
    epoch = batches()[: len(Program.of(make_spec(*SHORT)).data.train) // 32]
    assert len(epoch.unique()) == epoch.numel()


def test_streamed_data_gives_the_same_numbers_as_resident():
    resident = one(*SHORT, "data.placement=device")
    streamed = one(*SHORT, "data.placement=stream", "data.workers=0")
    assert streamed.history == resident.history


def test_a_run_from_python():
    import sweepstack
    from sweepstack.config.errors import TrainingFailed

    result = sweepstack.run("training.device=cpu", *SHORT)
    assert list(result.history.columns[:2]) == ["step", "epoch"]
    assert result.history.to_dict("records") == one(*SHORT).history
    assert result.layers.empty
    assert result.value == result.metrics[result.objective]
    with pytest.raises(InputError, match="logger must be none, got csv,mlflow"):
        sweepstack.run("logger=[csv,mlflow]")
    with pytest.raises(InputError, match=r"optimizer\.lr must be > 0"):
        sweepstack.run("optimizer.lr=-1")
    with pytest.raises(InputError, match=r"batch\.size must be <="):
        sweepstack.run("batch.size=5000")
    with pytest.raises(TrainingFailed, match="became"):
        sweepstack.run(
            "data=quadratic", "optimizer=sgd", "optimizer.lr=1e4", "training.max_steps=50"
        )
