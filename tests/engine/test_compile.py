"""training.compile: the same numbers, however the step is computed."""

from __future__ import annotations

import shutil

import pytest
from support import make_spec

from sweepstack.engine.step import Step
from sweepstack.engine.train import train


@pytest.mark.slow
@pytest.mark.skipif(
    not any(shutil.which(name) for name in ("c++", "g++", "clang++")),
    reason="torch.compile needs a C++ compiler on the CPU",
)
@pytest.mark.filterwarnings("default")  # the compiler's own
def test_compiled_steps_give_the_same_numbers_alone_and_stacked(monkeypatch):
    """Rounding may differ as between widths; see tests/contracts/test_a_trial_is_itself.py."""
    words = ("data=digits", "data.subset=100", "model.hidden=[8]", "batch.size=16")
    words = (*words, "training.max_steps=8", "training.eval_every=4", "regularization.dropout=0.2")

    def trials(compiles):
        last = f"training.compile={compiles}"
        return [make_spec(*words, f"training.seed={n}", last, number=n) for n in range(3)]

    compiled, original = [], Step._compiled_for

    def spy(self, key, function):
        result = original(self, key, function)
        compiled.append(result is not function)
        return result

    monkeypatch.setattr(Step, "_compiled_for", spy)
    plain = {result.spec.number: result for result in train(trials("false"))}
    assert not any(compiled)
    compiled.clear()
    # One compilation less: the try at width two.
    monkeypatch.setattr("sweepstack.engine.width.why_not_stacked", lambda program: None)
    results = [*train(trials("true")[:1]), *train(trials("true"), width=3)]
    assert compiled
    assert all(compiled)
    assert len(results) == 4
    for result in results:
        assert result.state == "complete", result.error
        for row, expected in zip(result.history, plain[result.spec.number].history, strict=True):
            assert row == pytest.approx(expected, rel=1e-3)
