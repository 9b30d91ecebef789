"""Private names of other packages stand in five files at most.

`X._name` is ours where our own source binds `_name` as an attribute of a class: for `self` and
`cls` in that class or in one of ours that it inherits from, for any other X in this file or in a
file that it imports. All else is another package's: `torch._C`, `study._study_id`,
`from hydra._internal import ...`, "optuna.storages._rdb" and `getattr(trial, "_trial_id")`.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from support import REPOSITORY

SOURCE = REPOSITORY / "src"
ALLOWED = {
    "sweepstack/engine/executors/recording.py",
    "sweepstack/training/fused.py",
    "sweepstack/study/book/bulk.py",
    "sweepstack/study/book/tables.py",
}
"""The only files that may use private names of other packages."""

PRIVATE = re.compile(r"_[A-Za-z]\w*")
DOTTED = re.compile(r"(?:[A-Za-z]\w*\.)+(_[A-Za-z]\w*)[\w.]*")
OURS = {"sweepstack", "hydra_plugins"}
PUBLIC = {
    *("_exit", "_getframe"),  # of os and sys, documented
    *("_asdict", "_fields", "_make", "_replace"),  # of named tuples, documented
    *("_target_", "_recursive_", "_partial_", "_args_", "_convert_", "_self_"),  # Hydra's keys
    "_mapping",  # of SQLAlchemy's rows, documented
}
FOREIGN = {
    *("_buffers", "_modules", "_parameters"),  # of torch.nn.Module
    *("_storage", "_study_id", "_trial_id", "_cached_frozen_trial"),  # of Optuna
}
"""Names that belong to others even where a class of ours has one of that name."""


def tree(text: str) -> ast.Module:
    """The code; every node has its `parent`, docstrings are gone."""
    found = ast.parse(text)
    for node in ast.walk(found):
        for child in ast.iter_child_nodes(node):
            child.parent = node
    return found


def parsed(path: Path) -> ast.Module:
    return _parsed(path, path.stat().st_mtime_ns)


@cache
def _parsed(path: Path, time: int) -> ast.Module:
    return tree(path.read_text("utf-8"))


def enclosing(node: ast.AST, kind: type | tuple[type, ...]) -> ast.AST | None:
    while (node := getattr(node, "parent", None)) is not None:
        if isinstance(node, kind):
            return node
    return None


@cache
def bound(cls: ast.ClassDef) -> set[str]:
    """The private attributes that a class binds: methods, fields, `self._x = ...`, slots."""
    names = set()
    for node in cls.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        for target in getattr(node, "targets", [getattr(node, "target", None)]):
            if isinstance(target, ast.Name):
                names.add(target.id)
                if target.id == "__slots__":
                    names |= {c.value for c in ast.walk(node) if isinstance(c, ast.Constant)}
    for node in ast.walk(cls):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and on_self(node):
            names.add(node.attr)
    return {name for name in names if isinstance(name, str) and PRIVATE.fullmatch(name)}


def on_self(node: ast.Attribute) -> bool:
    return isinstance(node.value, ast.Name) and node.value.id in {"self", "cls"}


@cache
def classes(module: ast.Module) -> dict[str, ast.ClassDef]:
    return {node.name: node for node in ast.walk(module) if isinstance(node, ast.ClassDef)}


def imports_of_ours(module: ast.Module) -> Iterator[tuple[str, str]]:
    """The dotted name, and the name by which the file knows it."""
    for node in ast.walk(module):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in OURS:
            for alias in node.names:
                yield f"{node.module}.{alias.name}", alias.asname or alias.name
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] in OURS:
                    yield alias.name, alias.asname or alias.name.split(".")[0]


def near(module: ast.Module) -> dict[str, ast.ClassDef]:
    """Our classes in the file and in those that it imports."""
    found: dict[str, ast.ClassDef] = {}
    for dotted, _ in imports_of_ours(module):
        for name in (dotted, dotted.rpartition(".")[0]):
            place = SOURCE / name.replace(".", "/")
            for path in (place.with_suffix(".py"), place / "__init__.py"):
                if path.is_file():
                    found |= classes(parsed(path))
    return found | classes(module)


def inherited(cls: ast.ClassDef, known: dict[str, ast.ClassDef]) -> set[str]:
    """What a class binds, with those of its bases that are ours."""
    names = bound(cls)
    for base in cls.bases:
        name = getattr(base, "attr", None) or getattr(base, "id", None)
        if name in known and known[name] is not cls:
            names |= inherited(known[name], known)
    return names


def is_docstring(node: ast.Constant) -> bool:
    return isinstance(getattr(node, "parent", None), ast.Expr)


def names_as_text(node: ast.AST) -> Iterator[tuple[ast.AST | None, str]]:
    """The object and the attribute that a string names: getattr(x, "_y"), vars(x)["_y"]."""
    if isinstance(node, ast.Call) and len(node.args) > 1:
        called = getattr(node.func, "id", None) or getattr(node.func, "attr", None)
        if called in {"getattr", "hasattr", "setattr", "delattr", "patch", "object"}:
            yield node.args[0], start_of(node.args[1])
    elif isinstance(node, ast.Subscript):
        owner = node.value
        if isinstance(owner, ast.Call) and getattr(owner.func, "id", None) == "vars" and owner.args:
            yield owner.args[0], start_of(node.slice)
        elif isinstance(owner, ast.Attribute) and owner.attr == "__dict__":
            yield owner.value, start_of(node.slice)


def start_of(node: ast.AST) -> str:
    """A string as far as it is fixed: of f"_fused_{name}_" the start."""
    if isinstance(node, ast.JoinedStr) and node.values:
        node = node.values[0]
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def foreign(module: ast.Module) -> set[str]:
    """The private names of other packages that a file uses."""
    known = near(module)
    everywhere = set().union(*map(bound, known.values())) - FOREIGN
    our_names = {name for _, name in imports_of_ours(module)}

    def is_ours(owner: ast.AST | None, name: str) -> bool:
        if name in PUBLIC:
            return True
        if isinstance(owner, ast.Name) and owner.id in our_names:
            return True
        if isinstance(owner, ast.Name) and owner.id in {"self", "cls"}:
            cls = enclosing(owner, ast.ClassDef)
            return isinstance(cls, ast.ClassDef) and name in inherited(cls, known)
        return name in everywhere

    found = set()
    for node in ast.walk(module):
        if isinstance(node, ast.Import | ast.ImportFrom):
            for alias in node.names:
                name = f"{getattr(node, 'module', None) or ''}.{alias.name}".strip(".")
                if name.split(".")[0] not in OURS | {"__future__"}:
                    found |= {part for part in name.split(".") if PRIVATE.fullmatch(part)}
        elif isinstance(node, ast.Attribute):
            if PRIVATE.fullmatch(node.attr) and not is_ours(node.value, node.attr):
                found.add(node.attr)
        elif isinstance(node, ast.Constant) and not is_docstring(node):
            match = DOTTED.fullmatch(str(node.value))
            if match and match[0].split(".")[0] not in OURS and match[1] not in PUBLIC:
                found.add(match[1])
        for owner, name in names_as_text(node):
            if PRIVATE.fullmatch(name) and not is_ours(owner, name):
                found.add(name)
    return found


def test_private_names_of_others_stand_in_few_files():
    files = {path: parsed(path) for path in SOURCE.rglob("*.py")}
    used = {
        path.relative_to(SOURCE).as_posix(): sorted(names)
        for path, module in files.items()
        if (names := foreign(module))
    }
    assert len(ALLOWED) <= 5
    assert used.keys() >= ALLOWED, f"no longer needed: {ALLOWED - used.keys()}"
    assert used.keys() <= ALLOWED, {
        path: names for path, names in used.items() if path not in ALLOWED
    }


@pytest.mark.parametrize(
    ("code", "names"),
    [
        ("import torch\ntorch._fused_adamw_([])", {"_fused_adamw_"}),
        ("import torch\ngetattr(torch, f'_fused_{name}_')", {"_fused_"}),
        ("import torch\ntorch._C._are_functorch_transforms_active()", {"_C", "_are_functorch_t"}),
        ("study._study_id, trial._trial_id", {"_study_id", "_trial_id"}),
        ("class A:\n  def f(self): self._storage = 1; return study._storage", {"_storage"}),
        ("for child in module._modules.values(): pass", {"_modules"}),
        ("class Net(Module):\n  def f(self): return self._modules", {"_modules"}),
        ("from hydra._internal import utils", {"_internal"}),
        ("import optuna.storages._rdb.models as models", {"_rdb"}),
        ("from optuna.study import _optimize", {"_optimize"}),
        ("x = 'hydra._internal.core_plugins.basic_launcher.BasicLauncher'", {"_internal"}),
        ("import_module('optuna.storages._rdb.models')", {"_rdb"}),
        ("hasattr(trial, '_cached_frozen_trial')", {"_cached_frozen_trial"}),
        ("vars(sampler)['_independent_sampler']", {"_independent_sampler"}),
        ("patch.object(torch, '_dynamo')", {"_dynamo"}),
        ("BaseContainer._resolvers", {"_resolvers"}),
        # Ours, or public.
        ("class A:\n  _x: int\n  def f(self, other): return self._x + other._x", set()),
        ("class A:\n  def f(self): self._x = 1\n  def g(self): return self._x", set()),
        ("class A:\n  def _f(self): pass\nclass B(A):\n  def g(self): self._f()", set()),
        ("from sweepstack.sweep import plan\nplan._read()", set()),
        ("def f():\n  '''See hydra._internal.'''", set()),
        ("os._exit(1), row._mapping, cfg._target_, point._replace(x=1)", set()),
        ("_x = 1\nprint(_x, x.__dict__)", set()),
    ],
)
def test_a_private_name_is_noticed(code, names):
    found = foreign(tree(code))
    assert len(found) == len(names)
    assert all(any(one.startswith(name) for one in found) for name in names)
