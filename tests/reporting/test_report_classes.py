"""The best trial's classes in the report; the doctor's generalization gap."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support
from support import make_spec

from sweepstack.analysis.doctor.curves import Curves
from sweepstack.engine.program import Program
from sweepstack.engine.train import train
from sweepstack.reporting.report import content
from sweepstack.runs import folder as run_folder


def view_of(folder):
    best = pd.DataFrame({"number": [3]})
    return SimpleNamespace(
        folder=folder,
        files=lambda *numbers, **models: folder,
        has_one_objective=True,
        best_rows=lambda: best,
    )


def test_classes_are_those_of_scikit_learn(tmp_path):
    (result,) = train([make_spec("training.max_steps=20", "loss.class_weights=balanced")])
    (tmp_path / "3").mkdir()
    run_folder.write_model(tmp_path / "3", result)
    program = Program.of(result.spec)
    module = program.module.eval()
    module.load_state_dict(dict(result.best_state), strict=False)
    said, y = module(program.data.val.x).argmax(1), program.data.val.y
    table, confusion = content.class_tables(view_of(tmp_path))
    shown = [[int(cell.text) for cell in row[1:]] for row in confusion.rows]
    assert shown == confusion_matrix(y, said).tolist()
    theirs = np.array(precision_recall_fscore_support(y, said, zero_division=0)).T
    for row, reference in zip(table.rows, theirs, strict=True):
        assert [float(cell.text) for cell in row[1:5]] == pytest.approx(list(reference), abs=6e-5)


@pytest.mark.parametrize(
    "given",
    [
        "no json",
        "[1]",
        {"classes": ["a", "b"], "confusion": [[1, 2]]},
        {"classes": ["a"], "confusion": [["x"]]},
        {"classes": [], "confusion": []},
        {"classes": ["a"], "labels": [[1], [-1], [1]]},
    ],
)
def test_a_file_that_says_something_else_is_left_out(given, tmp_path):
    assert content.class_tables(view_of(None)) == []
    (tmp_path / "3").mkdir()
    text = given if isinstance(given, str) else json.dumps(given)
    (tmp_path / "3" / "classes.json").write_text(text)
    assert content.class_tables(view_of(tmp_path)) == []


def test_labels_have_no_confusion_matrix(tmp_path):
    (tmp_path / "3").mkdir()
    given = {"classes": ["<b>", "c"], "labels": [[3, 0], [4, 0], [6, 2]]}
    (tmp_path / "3" / "classes.json").write_text(json.dumps(given))
    (table,) = content.class_tables(view_of(tmp_path))
    assert [[cell.text for cell in row] for row in table.rows] == [
        ["<b>", "0.7500", "0.5000", "0.6000", "6", "4"],
        ["c", "0.0000", "0.0000", "0.0000", "2", "0"],
    ]


def test_the_gap_is_that_of_the_best_at_their_end():
    tables = {
        "train_accuracy": pd.DataFrame({10: [0.5, 0.6, 0.1], 20: [0.98, 1.0, 0.2]}),
        "val_accuracy": pd.DataFrame({10: [0.5, 0.6, 0.1], 20: [0.9, np.nan, 0.2]}),
    }
    none = np.zeros(3)
    curves = Curves(none, np.arange(3), none, np.array([True, True, False]), none, none, 3)
    view = SimpleNamespace(curve=lambda name: tables[name])
    assert curves.gap(view) == " (train_accuracy 0.99, val_accuracy 0.75 at the end, median)"
    empty = SimpleNamespace(curve=lambda name: pd.DataFrame())
    assert curves.gap(empty) == ""
