"""What a module does besides tensor operations is said once, where steps are replayed."""

from __future__ import annotations

import pytest
from support import make_spec
from torch import nn

from sweepstack.engine import executors
from sweepstack.engine.executors import recording
from sweepstack.engine.program import Program, _programs
from sweepstack.engine.train import train

HERE = __name__
WORDS = ("data=quadratic", "model=custom", f"trust=[{HERE}]", "training.max_steps=20")


class Quiet(nn.Module):
    def __init__(self, input_shape, outputs):
        super().__init__()
        self.linear = nn.Linear(input_shape[0], outputs)
        self.seen, self.shape = [], None

    def forward(self, x):
        self.shape = tuple(x.shape)
        return self.linear(x)


class Loud(Quiet):
    def forward(self, x):
        print("forward")
        self.seen.append(1)
        return super().forward(x)


class Differing(Quiet):
    """Counts, and the count goes into the numbers."""

    def forward(self, x):
        self.seen.append(1)
        return super().forward(x) * (1 + len(self.seen) * 1e-12)


@pytest.fixture(autouse=True)
def fresh():
    _programs.clear()
    executors._recorded.cache_clear()
    yield
    _programs.clear()
    executors._recorded.cache_clear()


def trials(module, count=2):
    words = (*WORDS, f"model._target_={HERE}.{module.__name__}", "training.eval_every=20")
    return [make_spec(*words, f"training.seed={n}", number=n) for n in range(count)]


def warnings(caplog):
    return [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]


def test_a_forward_that_prints_and_counts_is_warned_of_once(caplog, capsys):
    assert [result.state for result in train(trials(Loud))] == ["complete"] * 2
    (line,) = warnings(caplog)
    assert line.startswith("the model's forward prints, changes seen: this happens in the first")
    # It is tried some 28 times and recorded in a few steps; all 20 of the stack would be more.
    assert 0 < capsys.readouterr().out.count("forward") < 40


def test_a_quiet_forward_is_not(caplog):
    list(train(trials(Quiet)))
    assert warnings(caplog) == []


def test_a_forward_whose_recordings_differ_stays_eager_with_its_side_effects(caplog):
    (spec,) = trials(Differing, 1)
    list(train([spec]))
    assert warnings(caplog) == []
    assert len(Program.of(spec).module.seen) > 20


@pytest.mark.parametrize("fault", ["raises", "other numbers"])
def test_a_torch_that_cannot_be_recorded_trains_eagerly(monkeypatch, caplog, fault):
    (spec,) = trials(Quiet, 1)
    (expected,) = train([spec])
    executors._recorded.cache_clear()
    if fault == "raises":
        monkeypatch.delattr(recording.Listener, "__torch_dispatch__")
    else:
        wrong = property(lambda call: lambda *given: call.operation(*given) * 2)
        monkeypatch.setattr(recording.Call, "function", wrong)
    with caplog.at_level("DEBUG"):
        (result,) = train([spec])
    assert "steps are not recorded" in caplog.text
    assert result.history == expected.history
