"""What a study shows in optuna-dashboard: notes and plots, written once and kept current; of which
studies and trials."""

from __future__ import annotations

import json

import optuna
import pytest
from decorate_support import (
    add,
    connected,
    contents,
    decorated,
    new,
    note,
    quick_report,
    rows,
    where,
)
from optuna.trial import TrialState, create_trial
from optuna_dashboard import get_note, save_note, save_plotly_graph_object
from optuna_dashboard._note import get_note_from_system_attrs
from optuna_dashboard.artifact._backend import list_trial_artifacts
from sqlalchemy import Engine, event

from sweepstack import storage
from sweepstack.analysis import doctor
from sweepstack.analysis.doctor import Finding
from sweepstack.reporting import dashboard as server
from sweepstack.reporting.dashboard import decorate
from sweepstack.study.view import StudyView, open_study

FIXTURES = (quick_report, where)
EVIL = "x=```\n````<img src=x onerror=alert(1)>\n```` \n[a](javascript:alert(1))"


def test_a_note_says_what_a_trial_was_and_how_to_run_it_again(where):
    study = new(where, name="my study")
    add(study, 0.75)
    add(study, user_attrs={"equals": 0})
    add(study, None, state=TrialState.FAIL, user_attrs={"error": "loss is nan at step 7"})
    assert decorated(where, "my study")
    complete = note(study, 0)
    assert "init=he\noptimizer.lr=0.1" in complete
    assert "val_accuracy  0.7500\nval_loss      1.250" in complete
    assert "sweepstack-study rerun 'my study' 0" in complete
    assert "duplicate of trial 0" in note(study, 1)
    assert "loss is nan at step 7" in note(study, 2)
    assert "val_accuracy" not in note(study, 2)
    of_study = get_note(study)
    assert "sweepstack -m init=he,xavier 'optimizer.lr=tag(log, interval(1e-4,1))'" in of_study
    assert "sweepstack-study report 'my study'" in of_study


def test_the_note_of_a_study_has_what_the_doctor_finds(where, monkeypatch):
    found = [Finding("edge", "problem", "lr lies at an edge ```", "optimizer.lr=1")]
    monkeypatch.setattr(doctor, "examine", lambda _: found)
    study = new(where)
    add(study, 0.75)
    decorated(where)
    says = get_note(study)
    assert "### Findings" in says
    assert "````text\nproblem: lr lies at an edge ```\n    optimizer.lr=1\n````" in says


def test_notes_are_kept_as_the_dashboards_own_function_keeps_them(where):
    study, other = new(where), new(where, "other")
    for words in ([], ["x" * 5000, "y" * 300]):
        add(study, user_attrs={"sweepstack.overrides": words, "error": "z" * len("".join(words))})
        add(other)
    assert decorated(where)
    save_note(other, get_note(study))
    for number in range(2):
        trial = optuna.Trial(other, other.trials[number]._trial_id)
        save_note(trial, note(study, number))

    def kept(one: optuna.Study) -> dict[str, object]:
        """The notes' attributes; a trial's row is told by its number."""
        names = {f":{trial._trial_id}:": f":#{trial.number}:" for trial in one.trials}
        found = {key: value for key, value in rows(one).items() if "note_" in key}
        for old, new_name in names.items():
            found = {key.replace(old, new_name): value for key, value in found.items()}
        return found

    assert kept(study) == kept(other)
    assert "dashboard:#1:note_str:1" in kept(study)  # one of them is of several parts


def test_a_heatmap_is_kept_as_the_dashboards_own_function_keeps_it(where):
    from sweepstack.analysis.plots.tables import heatmap

    study, other = new(where), new(where, "other")
    for index in range(8):
        add(study, index / 10)
    assert decorated(where)
    plot = heatmap(open_study("s", where), ["init", "model.activation"])
    drawn = json.loads(next(iter(dashboards_plots(study).values())))
    save_plotly_graph_object(other, plot.figure, graph_object_id="heatmap")
    expected = json.loads(dashboards_plots(other)["heatmap"])
    assert list(dashboards_plots(study)) == ["heatmap"]
    assert drawn["data"] == expected["data"]
    assert "val_accuracy" in drawn["layout"]["title"]["text"]


def dashboards_plots(study: optuna.Study) -> dict[str, str]:
    from optuna_dashboard._custom_plot_data import get_plotly_graph_objects

    return get_plotly_graph_objects(rows(study))


def test_decorating_again_changes_nothing_until_the_study_has_grown(where, tmp_path):
    study = new(where)
    for index in range(4):
        add(study, index / 10)
    assert decorated(where)
    before, files = rows(study), contents(tmp_path)
    assert not decorated(where)
    assert rows(study) == before
    add(study, 0.9)
    assert decorated(where)
    after = rows(study)
    assert [key for key in before if key not in after] == []
    # That of the study has what the doctor finds now.
    of_trials = [key for key in before if ":note_" in key.removeprefix("dashboard")[1:]]
    assert of_trials
    assert [after[key] for key in of_trials] == [before[key] for key in of_trials]
    assert "init=he" in note(study, 4)
    assert dashboards_plots(study)["heatmap"] != ""
    assert contents(tmp_path).keys() == files.keys()  # one report, written anew
    assert contents(tmp_path) != files


def test_what_a_person_wrote_or_deleted_stays(where):
    study = new(where)
    add(study)
    add(study)
    assert decorated(where)
    trial = optuna.Trial(study, study.trials[0]._trial_id)
    save_note(trial, "mine\n" + note(study, 0))
    save_note(study, "")
    report = next(key for key in rows(study) if key.startswith("artifacts:"))
    study._storage.set_study_system_attr(study._study_id, report, "null")
    add(study)
    assert decorated(where)
    assert note(study, 0).startswith("mine\n")
    assert get_note(study) == ""
    assert rows(study)[report] == "null"
    assert "init" in note(study, 2)


def test_a_note_that_is_out_of_date_is_written_anew_with_the_next_version(where, monkeypatch):
    study = new(where)
    add(study)
    long = "w" * 5000
    monkeypatch.setattr(decorate, "trial_note", lambda *_: decorate.signed(long))
    assert decorated(where)
    monkeypatch.undo()
    add(study)
    assert decorated(where)
    assert "init=he" in note(study, 0)
    assert "www" not in note(study, 0)
    trial_id = study.trials[0]._trial_id
    assert get_note_from_system_attrs(rows(study), trial_id)["version"] == 2


def test_text_of_a_study_cannot_leave_its_code_block(where):
    study = new(where, name="a`b```c")
    add(study, user_attrs={"sweepstack.overrides": [EVIL], "error": EVIL, "device": EVIL})
    assert decorated(where, "a`b```c")
    outside, fence = [], ""
    for line in note(study, 0).splitlines():
        ticks = line[: len(line) - len(line.lstrip("`"))]
        if not fence and len(ticks) >= 3:
            fence = ticks
        elif fence and len(ticks) >= len(fence) and not line.strip("` "):
            fence = ""
        elif not fence:
            outside.append(line)
    assert not fence
    assert not [line for line in outside if any(c in line for c in "<`") or "javascript" in line]


def test_of_a_large_study_the_best_trials_have_notes_and_the_others_on_demand(where):
    study = new(where)
    for index in range(6):
        add(study, index / 10)
    assert decorated(where, max_notes=2)
    assert [bool(note(study, number)) for number in range(6)] == [False] * 4 + [True] * 2
    assert not decorated(where, max_notes=2)
    assert decorated(where, max_notes=None)
    assert all(note(study, number) for number in range(6))
    assert not decorated(where, max_notes=2)


@pytest.mark.parametrize("kind", ["other", "several", "empty", "failed", "running", "odd"])
def test_studies_of_any_kind_are_decorated_or_left_alone(where, kind):
    directions = ["maximize"] * (2 if kind == "several" else 1)
    study = optuna.create_study(storage=connected(where), study_name="s", directions=directions)
    if kind != "other":
        study.set_user_attr("sweepstack.sweep", {"arguments": "odd"} if kind == "odd" else {})
    if kind == "failed":
        add(study, None, state=TrialState.FAIL)
    elif kind == "running":
        study.ask()
    elif kind == "odd":
        add(study, float("inf"), user_attrs={"sweepstack.overrides": {"a": 1}, "equals": "0"})
    elif kind != "empty":
        study.add_trial(create_trial(values=[1.0] * len(directions), params={}, distributions={}))
    before = rows(study)
    assert decorated(where) == (kind != "other")
    assert (rows(study) == before) == (kind == "other")


def test_all_notes_are_one_transaction(tmp_path):
    where = f"sqlite:///{tmp_path}/studies.db"
    study = new(where)
    study.add_trials([create_trial(value=0.1, params={}, distributions={}) for _ in range(3)])
    written = []

    def execute(connection, cursor, statement, *_):
        if statement.startswith(("INSERT INTO study_system", "UPDATE study_system")):
            written.append(statement)

    event.listen(Engine, "before_cursor_execute", execute)
    try:
        assert decorated(where)
    finally:
        event.remove(Engine, "before_cursor_execute", execute)
    assert len(written) == 1
    assert all(note(study, number) for number in range(3))


def test_with_other_tables_the_same_is_written_through_public_methods(tmp_path, monkeypatch):
    texts = []
    for known in (True, False):
        where = f"sqlite:///{tmp_path}/{known}.db"
        study = new(where)
        for index in range(4):
            add(study, index / 10)
        if not known:
            monkeypatch.setattr(decorate, "_has_tables", lambda _: False)
        assert decorated(where)
        assert not decorated(where)
        texts.append([note(study, number).partition("Run it")[0] for number in range(4)])
        assert list(dashboards_plots(study)) == ["heatmap"]
    assert texts[0] == texts[1]
    assert all("init=" in text for text in texts[0])


@pytest.mark.parametrize("table", ["trials", "study_system_attributes"])
def test_tables_of_another_optuna_are_noticed(tmp_path, table):
    target = storage.connect(f"sqlite:///{tmp_path}/studies.db")
    assert decorate._has_tables(target)
    with target.engine.begin() as connection:
        connection.exec_driver_sql(f"ALTER TABLE {table} RENAME COLUMN study_id TO of_study")
    assert not decorate._has_tables(target)
    with target.engine.begin() as connection:
        connection.exec_driver_sql(f"ALTER TABLE {table} RENAME TO others")
    assert not decorate._has_tables(target)
    target.engine.dispose()


def test_optuna_dashboard_answers_the_same_by_trial_as_without(where, tmp_path):
    study = new(where, folder="s")
    for index in range(3):
        add(study, index / 10, user_attrs={"error": "e" * 3000 * index})
        folder = tmp_path / "outputs" / "studies" / "s" / str(index)
        folder.mkdir(parents=True)
        (folder / "history.csv").write_text("step\n1\n")
    assert decorated(where)
    assert server.reads_by_trial()
    known = rows(study)
    deleted = next(key for key in known if key.startswith("dashboard:artifacts:"))
    known[deleted] = "null"
    by_trial = server.ByTrial(known)
    given = {"artifacts:a": '{"artifact_id": "a"}', "artifacts:b": "null", "other": 1}
    for trial in study.trials:
        row = trial._trial_id
        expected = get_note_from_system_attrs(known, row)
        assert get_note_from_system_attrs(by_trial, row) == expected
        artifacts = list_trial_artifacts(known, given, trial)
        assert list_trial_artifacts(by_trial, given, trial) == artifacts
    assert get_note_from_system_attrs(by_trial, None) == get_note_from_system_attrs(known, None)
    assert get_note_from_system_attrs(by_trial, 10**6)["body"] == ""
    assert {**by_trial} == known


def test_an_optuna_dashboard_that_reads_otherwise_is_noticed(monkeypatch):
    monkeypatch.setattr(server.ByTrial, "items", lambda _: {}.items())
    assert not server.reads_by_trial()


def test_opened_is_read_anew(where):
    study = new(where)
    add(study)
    opened = open_study("s", where)
    assert isinstance(opened, StudyView)
    assert len(opened.frame) == 1
    assert decorate.decorate(opened)
    add(study)
    assert decorate.decorate(opened)
    assert note(study, 1)
