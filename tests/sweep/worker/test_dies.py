"""Trials that kill their process, fail or print: what a user is left with after several starts."""

from __future__ import annotations

import contextlib
import multiprocessing
import re
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fault_support import APP, SWEEPSTACK, Sweep, rows, states
from sweep_support import QUICK

from sweepstack.config.errors import EnvironmentFault
from sweepstack.runs.register import Entry
from sweepstack.study.attributes import WORKERS
from sweepstack.sweep.worker import Stop, launch

slow = pytest.mark.slow
REPORT = ("hydra.sweeper.report=true",)

MODULE = """
import multiprocessing
import os
from math import prod

import torch


class Net(torch.nn.Module):
    def __init__(self, input_shape, outputs, at=0):
        super().__init__()
        self.at, self.layer = at, torch.nn.Linear(prod(input_shape), outputs)

    def forward(self, x):
        worker = multiprocessing.current_process().name.startswith("sweepstack-worker")
        if self.at == 3 and worker:
            os._exit(139)
        if self.at == 9 and torch.is_grad_enabled() and 1 < x.abs().max() < 50:  # no made-up batch
            raise ZeroDivisionError("no such layer")
        return self.layer(x.flatten(1))
"""
NET = (
    *(word for word in QUICK if not word.startswith("model.hidden")),
    *("model=custom", "model._target_=net.Net", "trust=[net]"),
)


@slow
def test_a_point_that_kills_its_process_blocks_no_other_and_is_given_up(tmp_path: Path) -> None:
    command = [*APP, "-m", "x=1,2,3", "trouble.die=[2]", "hydra.sweep.dir=sweep"]
    command += ["hydra.sweeper.max_restarts=1"]
    for start in range(3):
        sweep = Sweep(command, tmp_path)
        code = sweep.ends()
        if start == 1:  # v=3 comes before another try of v=2
            assert states(tmp_path)["COMPLETE"] == 2
    assert code == 0, sweep.err
    assert states(tmp_path) == {"COMPLETE": 2, "FAIL": 1}
    ran = Counter((tmp_path / "ran.txt").read_text().split())
    assert ran == {"1": 1, "2": 2, "3": 1}  # one restart, in all starts together
    assert (tmp_path / "sweep" / "optimization_results.yaml").exists()
    folders = {place.name for place in (tmp_path / "sweep").iterdir() if place.is_dir()}
    assert len(folders) == 3  # each try in the folder of the first


@slow
def test_a_module_that_kills_its_stack_takes_no_neighbour_with_it(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(MODULE)
    words = [*SWEEPSTACK, "-m", *NET, "+model.at=1,2,3,4,5,6", "hydra.sweeper.n_jobs=2"]
    words += ["hydra.sweeper.max_restarts=1"]
    sweep = Sweep(words, tmp_path)
    assert sweep.ends() == 0, sweep.err
    assert states(tmp_path) == {"COMPLETE": 5, "FAIL": 1}
    (failed,) = (r for r in rows(tmp_path) if r.state == "FAIL" and not r.is_retried)
    assert "max_restarts" in failed.attributes["sweepstack.lost"]
    (study,) = (tmp_path / "outputs" / "studies").iterdir()
    assert len([place for place in study.iterdir() if place.is_dir()]) == 6


def test_a_sweep_with_too_many_failures_shows_what_it_has_and_says_so(main, tmp_path) -> None:
    ended = main("-m", *QUICK, "optimizer.lr=0.01,1e4,1e5,1e6", "training.width=1", *REPORT)
    assert ended.code == 1
    assert "3 of 4 trials failed, more than hydra.sweeper.max_failure_rate=0.5" in ended.err
    assert "optimizer.lr" in ended.out  # the table
    assert "report: " in ended.out
    (report,) = re.findall(r"report: (\S+)", ended.out)
    assert (tmp_path / report).exists()
    assert (tmp_path / "outputs" / "studies" / "s" / "optimization_results.yaml").exists()


def test_a_failure_names_the_log_that_holds_its_traceback(main, tmp_path) -> None:
    (tmp_path / "net.py").write_text(MODULE)
    ended = main("-m", *NET, "+model.at=0,9", "training.width=1")
    (line,) = (line for line in ended.lines if " failed: " in line)
    file = line.partition("traceback: ")[2]
    assert 'raise ZeroDivisionError("no such layer")' in (tmp_path / file).read_text()


@slow
def test_prints_of_workers_carry_their_numbers(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(
        "import hydra\n"
        "@hydra.main(version_base=None, config_path=None, config_name='loud')\n"
        "def main(cfg):\n"
        "    print('x is', cfg.x)\n"
        "    return cfg.x\n"
        "if __name__ == '__main__':\n"
        "    from hydra.core.config_store import ConfigStore\n"
        "    node = {'defaults': [{'override hydra/sweeper': 'sweepstack'}, '_self_'], 'x': 0}\n"
        "    ConfigStore.instance().store(name='loud', node=node)\n"
        "    main()\n"
    )
    sweep = Sweep(["app.py", "-m", "x=1,2,3,4", "hydra.sweeper.n_jobs=2"], tmp_path)
    sweep.succeeds()
    said = re.findall(r"^(.*)x is (\d)$", sweep.out, re.MULTILINE)
    assert sorted(x for _, x in said) == ["1", "2", "3", "4"]
    assert {prefix for prefix, _ in said} <= {"worker 0: ", "worker 1: "}


def test_a_worker_that_dies_before_it_reads_its_arguments_hangs_nothing(monkeypatch):
    """What does not fit into a pipe would be waited for, as long as this process holds its end."""
    book = SimpleNamespace(study=SimpleNamespace(user_attrs={}))
    plan = SimpleNamespace(n_jobs=1)
    crew = SimpleNamespace(name="c", plan=plan, large="x" * 10_000_000)
    given: list[Any] = []

    class Process:
        def __init__(self, *, args: Any, **named: Any):
            given.append(args)

        def start(self) -> None:
            pass  # and is gone

    context = SimpleNamespace(Pipe=multiprocessing.Pipe, Process=Process)
    monkeypatch.setattr(multiprocessing, "get_context", lambda method=None: context)
    board: Any = SimpleNamespace(book=book)
    workers = launch._Processes(crew, board, Stop())  # type: ignore[arg-type]
    workers._start(0)
    assert crew not in given[0]
    with pytest.raises((EOFError, OSError)):
        workers.children[0].messages.recv()
    workers.children[0].messages.close()


@pytest.mark.parametrize("remaining", [0, 2])
def test_workers_of_which_none_has_a_place_are_an_error_unless_all_is_done(monkeypatch, remaining):
    """Each ends with 0, as others of its sweep may have one: the study would be left incomplete."""
    counts, entry = {"remaining": remaining}, asdict(Entry("other/1:11:1", 1, 2, "c", code=3))
    study = SimpleNamespace(user_attrs={f"{WORKERS}.{entry['process']}": entry})
    book = SimpleNamespace(study=study, counts=lambda: counts, total=2)
    crew = SimpleNamespace(name="c", plan=SimpleNamespace(n_jobs=2, workers_per_gpu=1))
    board: Any = contextlib.nullcontext()
    board.book = book
    monkeypatch.setattr(launch._Processes, "_start", lambda self, place: None)
    workers = launch._Processes(crew, board, Stop())  # type: ignore[arg-type]
    with (
        pytest.raises(EnvironmentFault, match="no GPU of this host has a place")
        if remaining
        else (contextlib.nullcontext())
    ):
        assert workers.run() is None
