"""Imports point one way, down the list of packages; the engine knows neither Hydra nor Optuna."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import REPOSITORY

PACKAGE = REPOSITORY / "src" / "sweepstack"
ORDER = (
    *("config", "storage", "study", "data", "models", "training", "engine"),
    *("runs", "analysis", "reporting", "sweep", "cli"),
)
"""Each package may import those before it."""
MAY_KNOW = {
    "config": {"hydra", "omegaconf", "optuna"},
    "data": {"pandas"},
    "storage": {"optuna", "sqlalchemy"},
    "study": {"optuna", "pandas", "sqlalchemy"},
    "runs": {"optuna", "pandas"},
    "analysis": {"optuna", "pandas", "plotly"},
    "reporting": {"optuna", "optuna_dashboard", "pandas", "plotly", "sqlalchemy"},
    "sweep": {"hydra", "omegaconf", "optuna", "sqlalchemy", "pandas"},
    "cli": {"hydra", "omegaconf", "optuna", "pandas", "sqlalchemy"},
    "__init__": {"pandas"},
}
"""Packages of others besides torch that a package may import."""
ABOVE = set().union(*MAY_KNOW.values())
EXCEPT = {"config/trust.py": {"models"}}
"""The table of what a config may name has a built-in model."""
FILES = sorted(PACKAGE.rglob("*.py"))


def imported(path: Path) -> Iterator[str]:
    """Names of all modules that a file imports anywhere."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def test_the_top_of_the_package_is_small():
    entries = {path.name for path in PACKAGE.iterdir()} - {"__pycache__", "py.typed"}
    packages = {name for name in entries if (PACKAGE / name).is_dir()}
    assert packages == set(ORDER)
    assert len(packages) <= 12
    assert entries - packages == {"__init__.py", "__main__.py"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_imports_nothing_from_above(path):
    here, names = room(path), set(imported(path))
    ours = {name.split(".")[1] for name in names if name.startswith("sweepstack.")}
    if here in ORDER:
        later = set(ORDER[ORDER.index(here) + 1 :])
        assert not ours & later - EXCEPT.get(path.relative_to(PACKAGE).as_posix(), set())
    theirs = {name.partition(".")[0] for name in names}
    assert not theirs & (ABOVE - MAY_KNOW.get(here, set()))
    if here in {"config", "study", "analysis", "reporting"}:
        assert "torch" not in {name.partition(".")[0] for name in at_import(path)}
    if here in {"analysis", "reporting"}:
        assert not ours & {"data", "models", "training", "engine"}


def test_modules_import_each_other_in_no_circle():
    known = {
        ".".join(("sweepstack", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(
            ".__init__"
        ): path
        for path in FILES
    }
    edges = {
        name: {
            target if target in known else target.rpartition(".")[0]
            for target in at_import(path)
            if target.startswith("sweepstack.")
        }
        & set(known) - {name}
        for name, path in known.items()
    }
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " -> ".join((*trail[trail.index(name) :], name))
        if name not in done:
            for target in sorted(edges[name]):
                visit(target, (*trail, name))
            done.add(name)

    for name in sorted(known):
        visit(name, ())


def at_import(path: Path) -> Iterator[str]:
    """Names that a file imports when it is imported itself: not inside functions or for types."""
    pending: list[ast.stmt] = list(ast.parse(path.read_text("utf-8")).body)
    while pending:
        node = pending.pop()
        if isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.If) and "TYPE_CHECKING" not in ast.dump(node.test):
            pending += [*node.body, *node.orelse]
        elif isinstance(node, ast.Try | ast.With):
            pending += node.body


def test_a_sweep_loads_what_is_slow_to_import_only_where_it_needs_it(tmp_path):
    """A second of torch's compiler, a quarter of one of pandas or of the clouds' clients."""
    words = [
        *("-m", "data=quadratic", "training.max_steps=5", "optimizer.lr=interval(0.1,0.2)"),
        *("hydra.sweeper.n_trials=2", "hydra/sweeper/sampler=random"),
    ]
    code = (
        f"import gc, sys; sys.argv[:] = {['sweepstack', *words]}\n"
        "from sweepstack.engine.runner import Runner\n"
        "block, seen = Runner._block, []\n"
        "def first(self):\n"
        "    assert gc.isenabled()\n"
        "    seen.append({'pandas', 'torch._dynamo', 'plotly', 'sklearn', 'scipy', 'jinja2',\n"
        "        'optuna_dashboard', 'optuna.artifacts'} & set(sys.modules))\n"
        "    return block(self)\n"
        "Runner._block = first\n"
        "from sweepstack.__main__ import main\n"
        "main()\n"
        "never = {'torch._dynamo', 'sklearn', 'scipy', 'optuna_dashboard', 'optuna.artifacts'}\n"
        "print(seen[0], never & set(sys.modules))\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr
    assert "report: " in ended.stdout
    assert ended.stdout.splitlines()[-1] == "set() set()"


def test_no_comprehension_hides_a_name_of_its_module():
    """In a function that uses both, Python 3.12.3 takes the one for the other: it raised
    UnboundLocalError for a function called `number`."""
    for path in PACKAGE.rglob("*.py"):
        tree = ast.parse(path.read_text("utf-8"))
        known = {n.name for n in tree.body if isinstance(n, ast.FunctionDef | ast.ClassDef)}
        imports = [n for n in tree.body if isinstance(n, ast.Import | ast.ImportFrom)]
        known |= {alias.asname or alias.name.split(".")[0] for n in imports for alias in n.names}
        loops = [n for n in ast.walk(tree) if isinstance(n, ast.comprehension)]
        names = {n.id for loop in loops for n in ast.walk(loop.target) if isinstance(n, ast.Name)}
        assert not names & known, path
