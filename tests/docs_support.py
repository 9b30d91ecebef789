"""The README and the pages of docs/ taken apart: their commands, files and Python, in their order.

The convention of a page: lines of four spaces are commands; where the paragraph before ends with
"Not run here:" (no cluster, no GPUs, no such database) they are only composed. A fenced block of
python or yaml that begins with a comment of a file's name is that file; other Python is run.
"""

from __future__ import annotations

import importlib.util
import re
import shlex
import sys
from dataclasses import dataclass
from functools import cache
from types import ModuleType

from support import REPOSITORY

from sweepstack.sweep.plan import name_of

NOT_RUN = re.compile(r"not run here:$", re.IGNORECASE)
FILE = re.compile(r"# ([\w./]+\.(?:py|yaml))$")
SMALLER = {
    "init_activation_grid": ["training.seed=0"],
    "lr_sensitivity": ["training.seed=0", "optimizer.lr=0.001,0.01,0.1"],
    "depth_width": ["training.seed=0", "model.hidden=[16],[16,16]"],
    "batch_size_scaling": ["training.seed=0", "batch.size=64,128", "training.max_epochs=null"],
    "optimizer_zoo": ["training.seed=0", "optimizer=sgd,lion,muon"],
    "batch_noise": ["training.seed=0", "batch.size=4"],
    "early_stopping_quadratic": ["training.seed=0"],
    "regularization_tpe": ["hydra.sweeper.n_trials=4"],
    "shift_robustness": ["evaluation.shift=1"],
    "dropout_augmentation": ["training.seed=0", "regularization.dropout=0.0,0.5"],
    "momentum": ["training.seed=0"],
    "transfer_frozen": ["training.seed=0", "data.validation=200"],
    "published_rows": ["hydra.sweeper.n_trials=4"],
}
"""Overrides that leave fewer trials of a study."""

SHORTER = {
    "training.max_steps": 2,
    "training.eval_every": 1,
    "training.checkpoint_every": 1,
    "hydra.sweeper.max_steps_total": 4,
}
"""Values that a test uses in place of those of a page."""


@cache
def generator() -> ModuleType:
    """docs/generate.py."""
    spec = importlib.util.spec_from_file_location("generate", REPOSITORY / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["generate"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@dataclass(frozen=True)
class Block:
    """A block of a page: `kind` is commands, composed, python, yaml or another fence's word."""

    kind: str
    lines: tuple[str, ...]

    @property
    def text(self) -> str:
        return "\n".join(self.lines) + "\n"

    @property
    def file(self) -> str | None:
        """The file that the block is, if it names one."""
        found = [FILE.fullmatch(line) for line in self.lines[:2]]  # behind "# @package _global_"
        named = [match[1] for match in found if match]
        return named[0] if named and self.kind in ("python", "yaml") else None


def blocks(page: str) -> list[Block]:
    found: list[Block] = []
    lines, paragraph, at = page.splitlines(), "", 0
    while at < len(lines):
        line, start = lines[at], at
        if line.startswith("```"):
            at = lines.index("```", at + 1)
            found.append(Block(line[3:], tuple(lines[start + 1 : at])))
        elif line.startswith("    "):
            while at + 1 < len(lines) and lines[at + 1].startswith("    "):
                at += 1
            if lines[start - 1].startswith(":::"):  # options of the API's generator
                at += 1
                continue
            kind = "composed" if NOT_RUN.search(paragraph) else "commands"
            found.append(Block(kind, tuple(text.strip() for text in lines[start : at + 1])))
        elif line.strip():
            paragraph = f"{paragraph} {line}" if at and lines[at - 1].strip() else line
        at += 1
    return found


def shortened(words: list[str]) -> list[str]:
    """The arguments of `sweepstack ...` with little to train, and the full command's study name."""
    if "--resume" in words or words[:1] in (["predict"], ["export"]):
        return words
    given = [word for word in words if "=" in word]
    keys = {word.partition("=")[0] for word in given}
    added = []
    for word in words:
        added += SMALLER.get(word.removeprefix("+sweeps="), [])
    if "-m" in words and "hydra.sweeper.study_name" not in keys:
        sweep = [word for word in given if not word.startswith(("hydra.", "hydra/"))]
        added.append(f"hydra.sweeper.study_name={name_of('sweepstack', sweep)!r}")
    if "-m" in words:
        # A report, or measuring how wide stacks are to be, takes longer than two steps.
        added += ["hydra.sweeper.report=false", "training.width=16"]
    added.append("training.max_steps=2")
    short = [_shorter(word) for word in words]
    return [*short, *(word for word in added if word.partition("=")[0] not in keys)]


def _shorter(word: str) -> str:
    key, is_given, value = word.partition("=")
    if is_given and key in SHORTER and value.isdecimal():
        return f"{key}={min(int(value), SHORTER[key])}"
    return word


def composed(line: str) -> list[str] | None:
    """What can be run of a command that cannot: its sweep without what is not here."""
    words = shlex.split(line)
    while "=" in words[0]:  # environment
        del words[0]
    if words[:3] != ["uv", "run", "sweepstack"]:
        return None
    missing = ("hydra/launcher=", "hydra.launcher.", "hydra.sweeper.storage=", "logger")
    kept = [word for word in words[3:] if not word.startswith(missing)]
    return shortened([*kept, "hydra.sweeper.dry_run=true"])
