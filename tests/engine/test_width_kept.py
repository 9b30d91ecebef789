"""A width that was measured is kept in a file for the next sweep, for the same programs alone."""

from __future__ import annotations

import json
import types

import pytest
from engine_support import SHORT
from support import make_spec

from sweepstack.engine import width as module
from sweepstack.engine.program import Program
from sweepstack.engine.width import Widths


def test_what_was_measured_is_kept_for_the_next_sweep(program, measured, tmp_path):
    file = tmp_path / "widths.json"
    tried = measured({1: 100, 2: 60, 4: 40, 8: 45, 16: 45})
    assert Widths("auto", file=file).of(program) == 4
    tried.clear()
    assert Widths("auto", file=file).of(program) == 4
    assert Widths("auto", most=3, file=file).of(program) == 3
    assert tried == []
    other = Program.of(make_spec(*SHORT, "optimizer=sgd"))
    measured({1: 100, 2: 50}, otherwise=60)
    assert Widths("auto", file=file).of(other) == 2
    assert sorted(json.loads(file.read_text()).values()) == [2, 4]
    again = Widths("auto", file=file)
    assert (again.of(program), again.of(other)) == (4, 2)


@pytest.mark.parametrize("most", [2, 3, 6, 8])
def test_what_a_short_sweep_measured_does_not_bind_a_long_one(program, measured, tmp_path, most):
    file = tmp_path / "widths.json"
    times = {1: 100, 2: 60, 3: 60, 4: 59, 6: 59, 8: 20, 16: 20, 32: 20, 64: 20}
    tried = measured(times)
    expected = 8 if most == 8 else 2
    assert Widths("auto", most=most, file=file).of(program) == expected
    tried.clear()
    assert Widths("auto", most=most, file=file).of(program) == expected  # one as short is served
    assert tried == []
    assert Widths("auto", file=file).of(program) == 8


def test_that_stacking_does_not_pay_is_measured_again(program, measured, tmp_path):
    """It may have been an unlucky moment."""
    file = tmp_path / "widths.json"
    measured({1: 100}, otherwise=150)
    assert Widths("auto", file=file).of(program) == 1
    measured({1: 100, 2: 60}, otherwise=70)
    assert Widths("auto", file=file).of(program) == 2
    tried = measured({}, otherwise=1)
    tried.clear()
    assert Widths("auto", file=file).of(program) == 2
    assert tried == []


def test_where_stacking_is_known_to_lose_it_is_not(measured, tmp_path):
    convnet = Program.of(make_spec("model=convnet", "model.width=2", "training.max_steps=4"))
    file = tmp_path / "widths.json"
    measured({1: 100}, otherwise=150)
    assert Widths("auto", file=file).of(convnet) == 1
    tried = measured({}, otherwise=1)
    tried.clear()
    assert Widths("auto", file=file).of(convnet) == 1
    assert tried == []


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\xff\xfe", b"[1, 2]", b"7", b"null", b"[" * 10**5]
)
def test_a_file_that_is_not_ours_is_ignored(program, measured, tmp_path, content):
    file = tmp_path / "widths.json"
    file.write_bytes(content)
    measured({1: 100, 2: 60}, otherwise=70)
    assert Widths("auto", file=file).of(program) == 2
    assert list(json.loads(file.read_text()).values()) == [2]


@pytest.mark.parametrize("value", [0, -3, 2.5, "8", None, [4], {}])
def test_a_kept_width_that_is_no_width_is_measured_again(program, measured, tmp_path, value):
    file = tmp_path / "widths.json"
    measured({1: 100, 2: 60}, otherwise=70)
    assert Widths("auto", file=file).of(program) == 2
    (key,) = json.loads(file.read_text())
    file.write_text(json.dumps({key: value}))
    assert Widths("auto", file=file).of(program) == 2


def test_a_kept_width_stacks_no_optimizer_that_is_stepped_alone(program, measured, tmp_path):
    file = tmp_path / "widths.json"
    own = Program.of(make_spec(*SHORT, "optimizer=custom", "optimizer._target_=torch.optim.Rprop"))
    file.write_text(json.dumps({module._key(own): 8}))
    assert Widths("auto", file=file).of(own) == 1


def test_a_folder_that_cannot_be_written_is_no_error(program, measured, tmp_path):
    measured({1: 100, 2: 60}, otherwise=70)
    (tmp_path / "file").write_text("")
    assert Widths("auto", file=tmp_path / "file" / "widths.json").of(program) == 2
    assert Widths("auto", file=tmp_path / "missing" / "widths.json").of(program) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_the_key_of_a_kept_width_knows_what_it_depends_on(program, monkeypatch):
    def key(*words):
        return module._key(Program.of(make_spec(*SHORT, *words)))

    assert key() == key("optimizer.lr=0.5", "training.seed=3", "training.max_steps=5")
    assert len({key(), key("batch.size=7"), key("model.hidden=[9]"), key("optimizer=sgd")}) == 4
    before = key()
    with monkeypatch.context() as other:
        other.setattr(module, "torch", types.SimpleNamespace(__version__="0.0"))
        assert key() != before
    assert key() == before
    monkeypatch.setattr(module, "_own_version", lambda: "0.0")
    assert key() != before
