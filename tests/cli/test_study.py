"""The command `sweepstack-study` before a study is read: help, mistakes, words for the Tab key."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys

import optuna
import pytest

from sweepstack import storage
from sweepstack.cli import app, study
from sweepstack.config.errors import InputError


def test_help_of_both_commands_begins_with_what_a_newcomer_needs_and_fits_80_columns(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    parser = study.parser()
    for text in (parser.format_help(), app._help([], None)):
        assert max(map(len, text.splitlines())) <= 80
    lines = parser.format_help().splitlines()
    titles = ("Read a study", "Train", "Keep house")
    assert [line for line in lines if line in titles] == list(titles)
    for name in parser.commands:  # each once, below a title that says what it is for
        assert sum(line.startswith(f"  {name} ") for line in lines) == 1
    assert "More" not in lines
    text = app._help([], None)
    assert text.index("Train one network") < text.index("Sweep\n") < text.index("Groups")
    for line in ("  model           mlp, convnet", "  batch           values alone"):
        assert line in text


def test_help_shows_the_keys_of_what_is_named():
    both = app._help(["optimizer", "model=resnet"], None)
    assert "model=resnet   (or convnet" in both
    assert "depth: 3" in both
    assert "betas: [0.9, 0.999]" in both
    assert "top level" not in both
    assert "objective: auto" in app._help(["objective=val_loss"], None)
    with pytest.raises(InputError, match="no group 'optimzer'; did you mean 'optimizer'"):
        app._help(["optimzer"], None)


def test_every_command_and_option_says_what_it_is_for_and_no_command_shows_them(capsys):
    parser = study.parser()
    (kinds,) = (a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    for name, command in kinds.choices.items():
        assert command.description, name
        for option in command._actions:
            assert option.help or option.required, (name, option.dest)
    assert study.run([]) == 2
    assert capsys.readouterr().err == parser.format_help()


def test_a_wrong_command_is_told_the_nearest():
    with pytest.raises(InputError, match=r"one of list, .*, got 'lst'; did you mean 'list'\?"):
        study.run(["lst"])


def test_the_tab_key_completes_studies(tmp_path, monkeypatch):
    pytest.importorskip("argcomplete")
    monkeypatch.chdir(tmp_path)
    options = argparse.Namespace(storage=storage.DEFAULT)
    assert study._names(options) == []
    os.mkdir("outputs")
    for name in ("first", "grid"):
        optuna.create_study(storage=storage.connect(storage.DEFAULT), study_name=name)
    assert set(study._names(options)) == {"first", "grid"}
    line = "sweepstack-study compare grid fi"
    asked = {"_ARGCOMPLETE": "1", "COMP_LINE": line, "COMP_POINT": str(len(line))}
    done = subprocess.run(  # as the function that register-python-argcomplete defines in a shell
        ["bash", "-c", '"$0" -m sweepstack.cli.study 8>&1', sys.executable],
        capture_output=True,
        text=True,
        env={**os.environ, **asked},
    )
    assert (done.returncode, done.stdout) == (0, "first ")
