"""The step's gradients, by hand; and what may not leak between slots."""

from __future__ import annotations

import pytest
import torch

from sweepstack.engine.program import Program
from sweepstack.engine.stack import Stack
from sweepstack.engine.step import Step

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
        stack.insert(slot, given, program.numbers(trial))
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


def test_a_broken_slot_leaves_its_neighbours_alone(spec):
    program, stack = course_stack(spec, 2)
    x, y = torch.ones(2, 1, 1), torch.tensor([[float("nan")], [3.0]])
    (losses,), grads = Step(program).gradients(stack, x, y, {})
    assert not losses[0].isfinite()
    assert losses[1].isfinite()
    assert all(grad[1].isfinite().all() for grad in grads)
