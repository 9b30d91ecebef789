"""Odd command lines: no traceback, no hang, and a refused one leaves nothing behind."""

from __future__ import annotations

import os

import pytest
import warm
from fuzz_support import copy_studies, faults, line_of

SEED = 0
PER_PART = 20
PARTS = int(os.environ.get("FUZZ_LINES", "160")) // PER_PART
"""In parts that pytest's workers share. Whoever changes what a command line may say tries more:
FUZZ_LINES=1000 pytest tests/cli/test_fuzz.py"""


@pytest.fixture(scope="module")
def studies(tmp_path_factory):
    """A database with a study `s` of two trials."""
    folder = tmp_path_factory.mktemp("studies")
    words = ["optimizer.lr=0.1,0.01", "training.max_steps=2", "training.device=cpu"]
    words += ["model.hidden=[4]", "hydra.sweeper.study_name=s", "hydra.sweeper.report=false"]
    done = warm.run(["-m", "sweepstack", "-m", *words], folder)
    assert done.returncode == 0, done.stderr
    copy_studies(folder / "outputs" / "studies.db", folder / "copy.db")
    return folder / "copy.db"


def check(seed, numbers, folder, studies):
    found = {}
    for number in numbers:
        line = line_of(seed, number)
        if wrong := faults(line, folder / str(number), studies):
            found[f"{number}: {line}"] = wrong
    told = [f"{line}\n{fault}" for line, wrong in found.items() for fault in wrong]
    assert not found, "\n\n".join(told)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS))
def test_odd_command_lines(part, tmp_path, studies):
    check(SEED, range(part * PER_PART, (part + 1) * PER_PART), tmp_path, studies)


def test_a_few_odd_command_lines(tmp_path, studies):
    check(SEED + 1, range(10), tmp_path, studies)


def test_a_line_is_the_same_every_time():
    assert [line_of(3, n) for n in range(50)] == [line_of(3, n) for n in range(50)]
    assert len({line_of(3, n) for n in range(50)}) > 45
