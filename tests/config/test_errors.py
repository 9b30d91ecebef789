"""Messages are one line of printable text, whatever an exception says."""

from __future__ import annotations

import shlex
import sys

import pytest

from sweepstack.config import commands
from sweepstack.config.errors import InputError, TrainingFailed, one_line, printable

RAW = "\x1b[1;31mno\x1b[0m \x1b]0;title\x07luck\n\tat \x1b]8;;http://x\x1b\\all\x1b]8;;\x1b\\\x08\x9b2J!"


def test_escape_sequences_and_control_characters_are_stripped():
    assert one_line(RAW) == "no luck at all!"
    assert printable("a\x07b\x1b[2Jc") == "a?bc"
    assert printable("ünï 数 ± ✓") == "ünï 数 ± ✓"
    assert one_line("\x1b]never ended: the reason") == "never ended: the reason"
    assert str(TrainingFailed(f"a{RAW}\nb")).splitlines()[-1] == "b"
    assert InputError(["\x1b[31mone", "two"]).mistakes == ["one", "two"]


@pytest.mark.parametrize("error", [InputError(RAW), TrainingFailed(RAW)])
def test_an_error_holds_only_printable_lines(error):
    assert all(line.isprintable() for line in str(error).split("\n"))


def test_printed_commands_are_quoted_for_a_shell(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ("sweepstack", "--resume", "out puts/$(x)", "a\x1b[31m'b")
    assert commands.shell() == ""
    assert shlex.split(commands.shell(*words)) == ["sweepstack", "--resume", "out puts/$(x)", "a'b"]
    default = f"sqlite:///{tmp_path}/outputs/studies.db"
    assert commands.study("rerun", "s", 3, where=default) == "sweepstack-study rerun s 3"
    assert commands.study("dashboard", where="sqlite:///outputs/studies.db").endswith("dashboard")
    for where, shown in (
        (f"sqlite:///{tmp_path}/my studies.db", "sqlite:///my studies.db"),
        ("my journal.log", "my journal.log"),
        ("postgresql://u:secret@h/x", "postgresql://u:***@h/x"),
    ):
        found = shlex.split(commands.study("rerun", "my study", 3, where=where))
        assert found == ["sweepstack-study", "rerun", "my study", "3", "--storage", shown]


@pytest.mark.parametrize("loaded", [None, "onnx", "triton", "jaxlib"])
def test_a_command_ends_without_looking_for_garbage(monkeypatch, loaded):
    """Unless something is loaded that would complain of what it takes for leaks."""
    frozen = []
    monkeypatch.setattr(commands.gc, "freeze", lambda: frozen.append(True))
    for name in ("onnx", "triton", "jaxlib"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    if loaded is not None:
        monkeypatch.setitem(sys.modules, loaded, commands)
    commands._pass_over_garbage()
    assert bool(frozen) == (loaded is None)
