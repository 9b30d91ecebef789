"""Private names of other packages stand in few files, and in no more than today."""

from __future__ import annotations

import ast
import re

from support import REPOSITORY

SOURCE = REPOSITORY / "src"
PRIVATE = re.compile(r"_[a-z]\w*")
ALLOWED = {
    "hydra_plugins/sweepstack_sweeper/_impl.py",
    "sweepstack/cli/preflight.py",
    "sweepstack/config/overrides.py",
    "sweepstack/config/reading.py",
    "sweepstack/engine/executors/operations.py",
    "sweepstack/models/layers.py",
    "sweepstack/reporting/dashboard/dashboard.py",
    "sweepstack/reporting/dashboard/dashboard_rows.py",
    "sweepstack/study/read.py",
    "sweepstack/study/storage.py",
    "sweepstack/sweep/book/delete.py",
    "sweepstack/sweep/book/duplicates.py",
    "sweepstack/sweep/book/journal.py",
    "sweepstack/sweep/book/ledger.py",
    "sweepstack/sweep/book/ledger_of.py",
    "sweepstack/sweep/book/live_trial.py",
    "sweepstack/sweep/book/records.py",
    "sweepstack/sweep/book/studies.py",
}
"""Files that use private names of other packages: none may be added, and five is the aim."""
PUBLIC = {"_exit", "_target_", "_version"}
"""Documented by their packages in spite of the underscore, or of a config."""


def _trees() -> dict[str, ast.Module]:
    return {
        str(path.relative_to(SOURCE)): ast.parse(path.read_text("utf-8"))
        for path in SOURCE.rglob("*.py")
    }


def _own_names(trees: dict[str, ast.Module]) -> set[str]:
    """Every name with a leading underscore that our own code binds."""
    names = set()
    for tree in trees.values():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef):
                names.add(node.name)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                names.add(node.id)
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                if isinstance(node.value, ast.Name) and node.value.id == "self":
                    names.add(node.attr)
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                names.add(node.target.id)
    return names


def _is_ours(module: str) -> bool:
    return module.split(".")[0] in {"sweepstack", "hydra_plugins"}


def foreign(tree: ast.Module, own: set[str]) -> set[str]:
    """The private names of other packages that a file uses."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            module = getattr(node, "module", None) or ""
            for alias in node.names:
                name = f"{module}.{alias.name}".lstrip(".")
                if not _is_ours(name) and name.split(".")[0] != "__future__":
                    found |= {p for p in name.split(".") if PRIVATE.fullmatch(p)}
        elif isinstance(node, ast.Attribute) and PRIVATE.fullmatch(node.attr):
            if node.attr not in own | PUBLIC:
                found.add(node.attr)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            if node.func.id in {"getattr", "hasattr", "setattr"} and len(node.args) > 1:
                word = node.args[1]
                name = word.value if isinstance(word, ast.Constant) else None
                if isinstance(name, str) and PRIVATE.fullmatch(name) and name not in own | PUBLIC:
                    found.add(name)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found |= set(re.findall(r"(?<=\.)_(?:internal|rdb)\b", node.value))
    return found


def test_private_names_of_others_stand_in_few_files() -> None:
    trees = _trees()
    own = _own_names(trees)
    used = {path: names for path, tree in trees.items() if (names := foreign(tree, own))}
    assert set(used) <= ALLOWED, {path: used[path] for path in set(used) - ALLOWED}
    assert set(used) >= ALLOWED, "no longer needed"


def test_a_private_name_is_noticed() -> None:
    tree = ast.parse("import torch\nfrom hydra._internal import utils\ntorch._C.x(study._storage)")
    assert foreign(tree, {"_storage"}) == {"_internal"}
    assert foreign(tree, set()) == {"_internal", "_storage"}
