"""What a sweep prints after its table: findings in short, the winner, the next commands."""

from __future__ import annotations

import shlex

from rich.console import Console
from sweep_support import QUICK

from sweepstack.analysis import doctor, terminal
from sweepstack.analysis.doctor.finding import Finding
from sweepstack.study.view import open_study

NAME = 'it is "mine"'


def commands(out):
    return [line.removeprefix("next: ") for line in out.splitlines() if line.startswith("next: ")]


def test_a_sweep_ends_with_the_winner_and_commands_that_a_shell_takes(main, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    swept = ("init=he,xavier", "optimizer.lr=0.1,0.01", f"hydra.sweeper.study_name='{NAME}'")
    done = main("-m", *QUICK[:-1], *swept)
    assert done.code == 0
    lines = done.out.splitlines()
    best = open_study(NAME).best_rows().iloc[0]
    (winner,) = [line for line in lines if line.startswith("winner: ")]
    value = terminal.number(best["val_mse"])
    assert winner == f"winner: trial {best['number']}, val_mse {value}, n=1"
    place = lines.index(winner)
    assert lines[place + 1] == f"  init={best['init']}  optimizer.lr={best['optimizer.lr']}"
    assert lines[place + 2] == "  as YAML: sweepstack-study best 'it is \"mine\"' -o winner"
    words = [shlex.split(command) for command in commands(done.out)]
    assert words == [
        ["sweepstack-study", "report", NAME],
        ["sweepstack-study", "dashboard"],
        ["sweepstack-study", "rerun", NAME, str(best["number"])],
    ]
    assert lines[-3:] == [f"next: {command}" for command in commands(done.out)]


def test_printed_commands_work_where_they_are_printed(main, monkeypatch):
    assert main("-m", *QUICK, "init=he,xavier").code == 0
    view, console = open_study("s"), Console(record=True)
    number = str(view.winner)
    found = terminal.show_ending(view, console, "", "", report=True)  # which is written already
    assert found == ["sweepstack-study dashboard", f"sweepstack-study rerun s {number}"]
    monkeypatch.setenv("UV_RUN_RECURSION_DEPTH", "1")  # `uv run`: no environment is activated
    found = terminal.show_ending(view, console, "python app.py", "")
    assert found[:2] == ["uv run sweepstack-study report s", "uv run sweepstack-study dashboard"]


def test_the_storage_is_said_only_where_it_is_another_and_kept(main):
    url = "sqlite:///my studies.db"
    done = main("-m", *QUICK, "init=he,xavier", f"hydra.sweeper.storage='{url}'")
    assert all(shlex.split(line)[-2:] == ["--storage", url] for line in commands(done.out))
    done = main("-m", *QUICK, "init=he,xavier", "hydra.sweeper.storage=null")
    assert (done.code, commands(done.out)) == (0, [])
    assert "winner: " in done.out
    assert "as YAML" not in done.out


def test_of_several_objectives_the_first_of_the_front_is_shown(main):
    goals = "hydra.sweeper.objectives=[val_mse,num_parameters]"
    ways = "hydra.sweeper.directions=[minimize,minimize]"
    done = main("-m", *QUICK, "optimizer.lr=0.1,0.01", goals, ways)
    assert done.code == 0, done.err
    assert "first of the Pareto front: trial " in done.out
    assert len(commands(done.out)) == 3


def test_without_a_complete_trial_it_says_where_all_errors_are(main):
    done = main("-m", *QUICK, "optimizer.lr=1e30,1e35")
    assert done.code == 4
    assert commands(done.out) == []
    assert done.lines[-1].endswith("; all of them: sweepstack-study report s")


def test_the_doctor_has_three_lines_and_a_terminal_breaks_them_between_words(main, monkeypatch):
    assert main("-m", *QUICK, "init=he,xavier").code == 0
    found = [Finding("x", "hint", f"{n} " + "some-long-name " * 8) for n in range(4)]
    monkeypatch.setattr(doctor, "examine", lambda view: found)
    view = open_study("s")
    plain = Console(width=80, record=True, force_terminal=False)
    terminal.show_ending(view, plain, "", "")
    lines = plain.export_text().splitlines()
    assert [line[:7] for line in lines[:2]] == ["hint: 0", "hint: 1"]
    assert lines[2] == "2 more findings: sweepstack-study show s"
    tty = Console(width=80, record=True, force_terminal=True)
    terminal.show_ending(view, tty, "", "")
    text = tty.export_text()
    assert max(map(len, text.splitlines())) <= 80
    assert text.count("some-long-name") == 16
    words = ["a" * 50, "b" * 40, "c" * 20]
    assert terminal.packed(words, 78) == [words[0], f"{words[1]}  {words[2]}"]
