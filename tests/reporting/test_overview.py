"""`sweepstack-study show`: tables, findings, the next command, and watching a sweep."""

from __future__ import annotations

import io
import json
from datetime import datetime, timedelta
from functools import partial

import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.trial import TrialState, create_trial
from rich.console import Console

from sweepstack import storage
from sweepstack.cli import study as cli
from sweepstack.reporting import overview
from sweepstack.study.view import StudyView

BEGAN = datetime(2026, 11, 22, 12, 0)


@pytest.fixture
def url(tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    return f"sqlite:///{tmp_path}/studies.db"


def study(url, name="lr", n_trials=None):
    made = optuna.create_study(storage=url, study_name=name)
    if n_trials:
        made.set_user_attr("sweepstack.sweep", {"n_trials": n_trials})
    return made


def add(to, lr=0.1, state=TrialState.COMPLETE, **settings):
    settings.setdefault("value", lr if state == TrialState.COMPLETE else None)
    trial = create_trial(
        state=state,
        params={"lr": lr},
        distributions={"lr": FloatDistribution(1e-4, 1.0, log=True)},
        **settings,
    )
    trial.datetime_start = BEGAN
    if state.is_finished():
        trial.datetime_complete = BEGAN + timedelta(seconds=5)
    to.add_trial(trial)


def shown(capsys, *arguments):
    code = cli.run(["show", *arguments])
    return code, capsys.readouterr().out


def test_findings_stand_below_the_tables_with_their_commands(url, capsys):
    made = study(url)
    for i in range(20):
        add(made, 0.001 * 1.4**i)
    for _ in range(10):
        add(made, 0.9, TrialState.FAIL, user_attrs={"error": "loss became nan"})
    code, out = shown(capsys, "lr", "--storage", url)
    assert code == 0
    lines = out.splitlines()
    assert lines[0].startswith("lr: value (minimize)")
    assert "hint: 10 of 30 trials failed (33 %), most often with: loss became nan" in lines
    assert [line for line in lines if line.startswith("fact: it is unknown")]


@pytest.mark.parametrize(
    ("url", "code"),
    [
        ("postgresql+asyncpg://u:s3cret@h/x", 3),
        ("mysql://u:s3cret@h/x?passwd=s3cret", 3),
        ("nosuch://u:s3cret@h/x", 2),
        ("postgresql://u:s3cret@h:port/x", 2),
        ("u:s3cret@h/x", 3),
    ],
)
@pytest.mark.parametrize(
    "words",
    [
        *("list", "show s", "report s", "export s -o s.csv", "rerun s 1", "delete s --yes"),
        "dashboard",
    ],
)
def test_a_storage_that_cannot_be_opened_is_one_line_without_its_password(
    words, url, code, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        cli.main([*words.split(), "--storage", url])
    said = capsys.readouterr()
    assert (ended.value.code, said.out) == (code, "")
    assert said.err.startswith("sweepstack-study: ")
    assert said.err.count("\n") == 1
    assert "s3cret" not in said.err
    assert not list(tmp_path.iterdir())


def test_an_empty_and_a_failed_study_are_one_line_each(url, capsys):
    study(url, "empty")
    assert shown(capsys, "empty", "--storage", url) == (0, "empty: no trial yet\n")
    made = study(url, "failed")
    for _ in range(3):
        add(made, state=TrialState.FAIL, user_attrs={"error": "loss became nan"})
    code, out = shown(capsys, "failed", "--storage", url)
    assert code == 0
    assert out == (
        "failed: no trial has completed: 3 failed, failed most often with: loss became nan\n"
    )


def test_an_unknown_study_is_an_input_error_that_names_the_nearest(url, capsys):
    study(url, "init_grid")
    with pytest.raises(SystemExit) as ended:
        cli.main(["show", "init_gird", "--storage", url])
    assert ended.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert "did you mean 'init_grid'?" in captured.err


def test_an_error_with_markup_is_printed_as_it_is(url, capsys):
    made = study(url)
    for lr in (0.1, 0.2, 0.3):
        add(made, lr)
    for _ in range(4):
        add(made, 0.9, TrialState.FAIL, user_attrs={"error": "[bold]no[/nothing] \x1b[31m"})
    _, out = shown(capsys, "lr", "--storage", url)
    assert "[bold]no[/nothing]" in out
    assert "\x1b" not in out


class Clock:
    """A clock that only moves when somebody sleeps, and then lets something happen."""

    def __init__(self, *events):
        self.time, self.events, self.slept = BEGAN, list(events), 0

    def now(self):
        return self.time

    def sleep(self, seconds):
        self.slept += 1
        assert self.slept < 100, "it watches for ever"
        self.time += timedelta(seconds=seconds)
        if self.events:
            self.events.pop(0)()


def watch(url, clock):
    return overview.show("lr", url, 2.0, sleep=clock.sleep, now=clock.now)


def test_it_waits_for_the_first_trial_and_ends_with_the_last(url, capsys):
    made = study(url, n_trials=2)

    def nothing():
        pass

    def first():
        add(made, 0.1)

    def running():
        made.enqueue_trial({"lr": 0.2})

    def last():
        trial = made.ask({"lr": FloatDistribution(1e-4, 1.0, log=True)})
        made.tell(trial, 0.2)

    clock = Clock(nothing, nothing, first, nothing, running, nothing, last)
    assert watch(url, clock) == 0
    assert clock.slept == 7  # at once after the last
    out = capsys.readouterr().out
    assert out.startswith("lr: value (minimize)")
    assert "fact: it is unknown" in out


def test_on_a_terminal_each_look_is_printed_once(url, monkeypatch):
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=80, height=40)
    monkeypatch.setattr(overview.progress, "console", lambda: console)
    made = study(url, n_trials=2)
    add(made, 0.1)
    trial = made.ask({"lr": FloatDistribution(1e-4, 1.0, log=True)})
    reports = [partial(trial.report, 0.5, step) for step in (5, 6, 7)]
    clock = Clock(*reports, lambda: made.tell(trial, 0.2))
    assert watch(url, clock) == 0
    looks = 4 + 1  # the live page prints its last one again before it removes it
    assert file.getvalue().count("since the first began") == looks


def test_a_sweep_that_never_begins_is_given_up(url, capsys):
    study(url, n_trials=2)
    clock = Clock()
    assert watch(url, clock) == 0
    assert clock.time - BEGAN > timedelta(seconds=overview.QUIET_S)
    assert capsys.readouterr().out == "lr: no trial yet\n"


def test_between_two_trials_it_goes_on_and_a_dead_sweep_is_given_up(url):
    made = study(url, n_trials=5)
    add(made, 0.1)
    clock = Clock(*[lambda: None] * 3, lambda: add(made, 0.2))
    assert watch(url, clock) == 0
    assert len(made.trials) == 2
    assert clock.slept > 10


def test_an_old_study_is_shown_and_left_at_once(url):
    add(study(url, n_trials=5))
    clock = Clock()
    clock.time += timedelta(days=1)
    assert watch(url, clock) == 0
    assert clock.slept == 0


def test_while_it_runs_the_last_evaluations_are_shown(url, monkeypatch):

    made = study(url, n_trials=10)
    add(made, 0.1)
    for step in (50, 150):
        add(made, 0.2, TrialState.RUNNING, value=None, intermediate_values={50: 0.5, step: 0.25})
    add(made, 0.3, TrialState.RUNNING, value=None)
    console = Console(width=100, record=True, file=io.StringIO())
    now = BEGAN + timedelta(minutes=3)
    overview._print_progress(StudyView(made, url), console, now)
    first, *rest = console.export_text().splitlines()
    assert first == "1 of 10 trials, 1 complete, 3 running, 0:03:00 since the first began"
    assert rest == [
        "trial 1: running, step 50, value 0.2500",
        "trial 2: running, step 150, value 0.2500",
        "trial 3: running, not evaluated yet",
    ]


@pytest.mark.parametrize("is_terminal", [True, False])
def test_no_name_and_no_value_of_the_list_is_broken_at_80_columns(url, is_terminal):
    names = [f"a-name-that-is-{n}" for n in ("x" * 40, "y" * 70)]
    for name in names:
        add(study(url, name), 0.5)
    file = io.StringIO()
    console = Console(width=80, file=file, force_terminal=is_terminal, color_system=None)
    overview.show_list(storage.connect(url), console)
    lines = file.getvalue().splitlines()
    assert [sum(name in line for line in lines) for name in names] == [1, 1]
    assert sum("value 0.5000 (trial 0)" in line for line in lines) == 2
    assert sum("2026-11-22 12:00" in line for line in lines) == 2
    assert len(lines) == (4 if is_terminal else 3)


def test_running_trials_show_their_last_evaluation_the_best_first(url, capsys):
    made = study(url)
    made.set_user_attr("sweepstack.identity", {"config": {"training": {"max_steps": 1000}}})
    add(made, 0.5)
    nan = {3: 0.1, 5: float("nan")}
    for values in ({}, {10: 0.9, 20: 0.4}, {10: 0.3}, *({5: 1.0 + n} for n in range(7)), nan):
        add(made, 0.1, TrialState.RUNNING, intermediate_values=values)
    _, out = shown(capsys, "lr", "--storage", url)
    lines = [line for line in out.splitlines() if "running, " in line or "more that run" in line]
    assert lines[:3] == [
        "trial 3: running, step 10 of 1,000, value 0.3000",
        "trial 2: running, step 20 of 1,000, value 0.4000",
        "trial 4: running, step 5 of 1,000, value 1.0000",
    ]
    mean = (0.4 + 0.3 + sum(1.0 + n for n in range(7))) / 9
    assert lines[8:] == [f"and 3 more that run, mean of all {mean:.3f}"]
    _, out = shown(capsys, "lr", "--storage", url, "--json")
    running = json.loads(out)["running"]
    assert running[0] == {"trial": 3, "step": 10, "value": 0.3}
    assert running[-2] == {"trial": 1, "step": None, "value": None}
