"""Trials whose checkpoints cannot be read begin anew; where none can be written the sweep ends."""

from __future__ import annotations

import errno
import logging
import os
import re
from pathlib import Path

import pytest
import torch
from engine_support import specs

from sweepstack.config.errors import EnvironmentFault
from sweepstack.engine.train import Interrupted, train
from sweepstack.training import checkpoint
from sweepstack.training.spec import Monitor


def interrupted(folder):
    """A trial that was stopped at step 8 of 12, and its result without that."""
    (spec,) = specs(1, folder=folder)

    class Stop(Monitor):
        rows = 0

        def report(self, spec, row):
            self.rows += 1

        def interrupted(self):
            return 130 if self.rows == 2 else None

    (whole,) = train(specs(1))
    with pytest.raises(Interrupted):
        list(train([spec], Stop()))
    (file,) = (spec.folder / "checkpoints").glob("*.pt")
    return spec, whole, file


class Begins(Monitor):
    step = None

    def started(self, spec, step, total_steps, history):
        self.step = step


def other_slot(file):
    saved = checkpoint.load(file)
    del saved["slot"]["history"]
    checkpoint.save(file, saved)


def other_tensors(file):
    saved = checkpoint.load(file)
    saved["tensors"] = {"params": {}}
    checkpoint.save(file, saved)


def other_shapes(file):
    saved = checkpoint.load(file)
    params = saved["tensors"]["params"]
    saved["tensors"]["params"] = {name: torch.zeros(9, 9, 9) for name in params}
    checkpoint.save(file, saved)


def cut(file):
    file.write_bytes(file.read_bytes()[:40])


def anew(why):
    return "cannot resume from {folder}: " + why + "; starting the trial again"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (other_slot, anew("'history'")),
        (other_tensors, anew(r"'hidden\.0\.weight'")),
        (other_shapes, anew(r".*\bsize\b.*")),  # in torch's words
        (cut, r"{file} is damaged: its SHA-256 is not that of {name}\.sha256; none is left"),
    ],
)
def test_a_checkpoint_that_cannot_be_read_lets_the_trial_begin_anew(
    tmp_path, caplog, damage, message
):
    spec, whole, file = interrupted(tmp_path)
    damage(file)
    monitor = Begins()
    (result,) = train([spec], monitor)
    assert (result.state, monitor.step) == ("complete", 0)
    assert result.history == whole.history
    lines = [record.message for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(lines) == 1
    names = {"folder": str(file.parent), "file": str(file), "name": file.name}
    wanted = message.format(**{key: re.escape(name) for key, name in names.items()})
    assert re.fullmatch(wanted, lines[0]), lines[0]  # one line: a dot stands for no line break
    assert not file.exists()
    assert file.with_name(f"{file.name}.damaged").exists()


def test_a_damaged_checkpoint_that_cannot_be_renamed_does_not_end_the_sweep(
    tmp_path, monkeypatch, caplog
):
    spec, whole, file = interrupted(tmp_path)
    cut(file)

    def refuse(self, target):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(Path, "rename", refuse)
    (result,) = train([spec])
    assert result.history == whole.history
    assert len(caplog.messages) == 1


def test_a_folder_of_checkpoints_that_cannot_be_read_does_not_end_the_sweep(tmp_path, monkeypatch):
    spec, whole, _ = interrupted(tmp_path)

    def refuse(folder):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(checkpoint, "_found", refuse)
    (result,) = train([spec])
    assert result.history == whole.history


@pytest.mark.parametrize("call", ["mkdir", "unlink"])
def test_a_disk_that_cannot_be_written_ends_the_sweep_with_one_line(tmp_path, monkeypatch, call):
    def refuse(self, *arguments, **settings):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    trials = specs(1, "training.checkpoint_every=2", folder=tmp_path)
    monkeypatch.setattr(Path, call, refuse)
    with pytest.raises(EnvironmentFault, match="Read-only file system") as caught:
        list(train(trials))
    assert "\n" not in str(caught.value)
