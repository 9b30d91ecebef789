"""Imports point one way: what a trial is made of and the engine know neither Hydra nor Optuna."""

from __future__ import annotations

import ast
import re

import pytest
from support import REPOSITORY

PACKAGE = REPOSITORY / "src" / "iolaus"
ABOVE = {"hydra", "omegaconf", "optuna", "optuna_dashboard", "pandas", "plotly"}
KNOW_HYDRA = {"app", "compat", "config", "overrides", "preflight"}
KNOW_SWEEP = {"app", "preflight"}
TRAINS = {"rerun.py"}
KNOW_BOOKS = {"delete.py"}  # which workers live, and how a study is held
BOOKS = ("iolaus.sweep.processes", "iolaus.sweep.records")
MAY_KNOW = {
    "analysis": {"optuna", "optuna_dashboard", "pandas", "plotly"},
    "storage": {"optuna"},
    "__init__": {"pandas"},
}
LIGHT = {"spec.py", "monitor.py", "seeds.py", "__init__.py"}
TRAINING = {"init", "optim", "schedule", "regularization", "task", "augment", "early_stopping"}
NO_TORCH = {"errors", "check", "files", "schema", "effect"}


def imported(path):
    """Names of all modules that a file imports anywhere."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


FILES = sorted(
    path for path in PACKAGE.rglob("*.py") if "sweep" not in path.relative_to(PACKAGE).parts
)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_imports_nothing_from_above(path):
    room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    names = set(imported(path))
    tops = {name.partition(".")[0] for name in names}
    if room not in KNOW_HYDRA:
        assert not tops & (ABOVE - MAY_KNOW.get(room, set()))
    if room in NO_TORCH or (path.parent.name == "engine" and path.name in LIGHT):
        assert "torch" not in tops
    if room not in KNOW_SWEEP:
        known = ("iolaus.sweep", *BOOKS) if path.name in KNOW_BOOKS else ()
        others = {name for name in names if name.startswith("iolaus.sweep")} - set(known)
        assert all(name.startswith(BOOKS) and known for name in others)
    if room == "analysis" and path.name not in TRAINS:
        assert "torch" not in tops
        assert not {
            name for name in names if name.startswith(("iolaus.engine.train", "iolaus.app"))
        }
    if room in {"data", "models", *TRAINING}:  # the streams of random numbers alone
        engine = {name.split(".")[2] for name in names if name.startswith("iolaus.engine.")}
        assert engine <= {"streams"}
    if room == "engine" and "executors" not in path.parts:  # who runs a step is chosen in one place
        assert not {name for name in names if name.startswith("iolaus.engine.executors.")} - {
            "iolaus.engine.executors.executor",
            "iolaus.engine.executors.executor.Executor",
        }


def test_what_torch_keeps_to_itself_is_used_in_two_tested_files():
    private = re.compile(r"torch(\.\w+)*\._[a-z]|from torch\S* import _|\._schema|\"_op\"|_fused_")
    found = {
        str(path.relative_to(PACKAGE))
        for path in (PACKAGE / "engine").rglob("*.py")
        if private.search(path.read_text("utf-8"))
    }
    assert found == {"engine/executors/operations.py", "engine/kernels/fused.py"}
