"""Files that survive a crash, a full disk and a flipped bit."""

from __future__ import annotations

import errno
import os
import subprocess

import pytest
import torch

from sweepstack.config.errors import EnvironmentFault, InputError
from sweepstack.training import checkpoint


def trial(step, config_hash="abc"):
    return {"config_hash": config_hash, "slot": {"step": step}, "tensors": torch.arange(step)}


def test_what_is_saved_is_loaded_and_sha256sum_agrees(tmp_path):
    checkpoint.save(tmp_path / "best.pt", {"model": {"w": torch.ones(3)}, "step": 4})
    loaded = checkpoint.load(tmp_path / "best.pt")
    assert torch.equal(loaded["model"]["w"], torch.ones(3))
    command = ["sha256sum", "-c", "best.pt.sha256"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best.pt", "best.pt.sha256"]


def test_the_last_two_are_kept_and_the_newest_is_used(tmp_path):
    for step in (5, 100, 20):
        checkpoint.save_trial(tmp_path, step, trial(step))
    names = sorted(path.name for path in tmp_path.glob("*.pt"))
    assert names == ["step_0000000020.pt", "step_0000000100.pt"]
    assert checkpoint.load_trial(tmp_path, "abc")["slot"]["step"] == 100


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "no checksum", "other content"])
def test_a_damaged_checkpoint_is_passed_over_with_a_warning(tmp_path, caplog, damage):
    for step in (10, 20):
        checkpoint.save_trial(tmp_path, step, trial(step))
    newest = tmp_path / "step_0000000020.pt"
    content = bytearray(newest.read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 1
    newest.write_bytes({"cut": content[:50], "empty": b""}.get(damage, bytes(content)))
    if damage == "other content":
        checkpoint.save(newest, [1, 2])
    if damage == "no checksum":
        newest.with_name(newest.name + ".sha256").unlink()
    assert checkpoint.load_trial(tmp_path, "abc")["slot"]["step"] == 10
    assert "using the checkpoint before it" in caplog.text
    checkpoint.save_trial(tmp_path, 15, trial(15))  # the damaged one does not count as kept
    assert len(list(tmp_path.glob("*.pt"))) == 2


def test_no_checkpoint_is_none_and_another_config_is_refused(tmp_path):
    assert checkpoint.load_trial(tmp_path / "none", "abc") is None
    checkpoint.save_trial(tmp_path, 3, trial(3))
    with pytest.raises(InputError, match="another config"):
        checkpoint.load_trial(tmp_path, "xyz")


def test_code_in_a_checkpoint_is_not_run(tmp_path):
    class Canary:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "canary"),))

    checkpoint.save(tmp_path / "evil.pt", {"x": Canary()})
    with pytest.raises(EnvironmentFault, match="not a checkpoint"):
        checkpoint.load(tmp_path / "evil.pt")
    assert not (tmp_path / "canary").exists()


def test_a_full_disk_is_one_line_and_leaves_the_old_file(tmp_path, monkeypatch):
    checkpoint.save(tmp_path / "best.pt", {"step": 1})

    def full(handle):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(EnvironmentFault, match="No space left on device") as caught:
        checkpoint.save(tmp_path / "best.pt", {"step": 2})
    assert "\n" not in str(caught.value)
    monkeypatch.undo()
    assert checkpoint.load(tmp_path / "best.pt")["step"] == 1
    assert not list(tmp_path.glob(".*.tmp"))


def test_a_finished_trial_leaves_no_checkpoints(tmp_path):
    checkpoint.save_trial(tmp_path / "checkpoints", 3, trial(3))
    checkpoint.clear_trial(tmp_path / "checkpoints")
    assert not (tmp_path / "checkpoints").exists()
