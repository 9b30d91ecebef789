"""Captured training steps, where there is a GPU: the same numbers as without a graph."""

from __future__ import annotations

import logging

import pytest
import torch
from engine_support import block_of, filled
from support import make_spec
from torch import nn

from sweepstack.engine.executors import Executor, cuda_graph
from sweepstack.engine.executors.cuda_graph import CudaGraph
from sweepstack.engine.program import Program
from sweepstack.engine.step import Step
from sweepstack.engine.train import train

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")

HERE = __name__
WIDTH = 3
WORDS = (
    *("training.device=cuda", "model.hidden=[16]", "batch.size=16", "optimizer=adamw"),
    *("regularization.dropout=0.2", "regularization.weight_decay=0.1"),
    *("regularization.clip_norm=1.0", "training.max_steps=20", "training.eval_every=10"),
)


class Reading(nn.Module):
    """Reads a number back from the device in each forward pass, which no graph can hold."""

    def __init__(self, input_shape, outputs):
        super().__init__()
        self.linear = nn.Linear(input_shape[0], outputs)

    def forward(self, x):
        y = self.linear(x)
        return y * 2 if x.sum().item() > 0 else y


def state(stack):
    return [view.clone() for bank in stack.banks.values() for view in bank.views.values()]


@pytest.mark.parametrize("width", [1, WIDTH])
def test_captured_steps_equal_eager_ones(width):
    specs = [make_spec(*WORDS, f"training.seed={seed}") for seed in range(width)]
    program = Program.of(specs[0])
    eager, captured = filled(program, specs), filled(program, specs)
    step, source = Step(program), program.sources["train"]
    replayed, plain = CudaGraph(step, captured, source), Executor(step, eager, source)
    for first in (0, 1, 8):
        block = block_of(program, eager, 7, first)
        torch.testing.assert_close(replayed.run(block), plain.run(block), rtol=1e-4, atol=1e-5)
    assert len(replayed._captured) == 1
    for mine, other in zip(state(captured), state(eager), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-4)
    # The comparison can fail: the steps did change the parameters.
    pairs = zip(state(eager), state(filled(program, specs)), strict=True)
    assert any(not torch.allclose(mine, before, atol=1e-3) for mine, before in pairs)


def test_capturing_leaves_the_state_as_it_was():
    specs = [make_spec(*WORDS, f"training.seed={seed}") for seed in range(WIDTH)]
    program = Program.of(specs[0])
    stack = filled(program, specs)
    before = state(stack)
    step, source = Step(program), program.sources["train"]
    cuda_graph._Captured(step, stack, source, block_of(program, stack, 1))
    torch.cuda.synchronize()
    for mine, other in zip(state(stack), before, strict=True):
        assert torch.equal(mine, other)


def test_trials_train_in_a_captured_stack_as_alone():
    specs = [make_spec(*WORDS, f"training.seed={seed}", number=seed) for seed in range(5)]
    alone = {result.spec.number: result for result in train(specs)}
    for result in train(specs, width=4):
        assert result.state == "complete", result.error
        expected = alone[result.spec.number].history
        for row, reference in zip(result.history, expected, strict=True):
            for name in ("train_loss", "val_loss"):
                assert row[name] == pytest.approx(reference[name], rel=1e-3)


def test_a_module_that_waits_for_the_device_runs_without_a_graph(caplog):
    words = ("data=quadratic", "training.device=cuda", "model=custom", f"trust=[{HERE}]")
    words = (*words, f"model._target_={HERE}.Reading", "training.max_steps=20")
    (result,) = train([make_spec(*words, "training.eval_every=5")])
    assert result.state == "complete", result.error
    assert len(result.history) == 4
    lines = [record.message for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(lines) == 1
    assert lines[0].startswith("the step cannot be captured as a CUDA graph, running without one: ")
    assert "\n" not in lines[0]
    test_captured_steps_equal_eager_ones(1)  # what was given up leaves nothing behind


@pytest.mark.parametrize("words", [(), ("model=convnet", "model.width=4")])
def test_deterministic_steps_are_captured(words, caplog):
    words = (*WORDS, *words, "training.deterministic=true")
    first, again = (list(train([make_spec(*words)])) for _ in range(2))
    assert first[0].history == again[0].history
    assert "CUDA graph" not in caplog.text
