"""What bookkeeping in bulk costs: a worker whose engine trains nothing, 64 trials at a time.

    uv run python benchmarks/bulk.py 10000

The points of a grid shaped like sweeps/mlp_mnist_200_steps.yaml (nine parameters) go through the
worker as in a sweep: claimed, composed, read, their folders made, one report each, ended. Only the
training is left out: each result is there at once. Prints one line: trials, milliseconds per trial
of the database, of composing and reading, of the folders and of everything, and the peak memory
above that before the first trial. Called by `overhead.py --bulk`.
"""

from __future__ import annotations

import os
import resource
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import wraps
from itertools import islice
from pathlib import Path
from typing import Any

import sweepstack.engine.train
from sweepstack import storage
from sweepstack.study.book.bulk import BulkBook
from sweepstack.sweep import plan as plans
from sweepstack.sweep import studies
from sweepstack.sweep.worker import Stop, training_app, worker
from sweepstack.sweep.worker.trial_folder import TrialFolder
from sweepstack.training.spec import TrialResult

WIDTH = 64
SPACE = {
    "optimizer": "sgd,adam",
    "batch.size": "4,8",
    "model.hidden": "[50],[100],[50,50],[100,100],[50,50,50],[100,100,100]",
    "model.activation": "relu,tanh,sigmoid",
    "init": "xavier,he,normal,uniform,zeros,ones",
    "optimizer.lr": "0.1,0.01,0.001",
    "optimizer.momentum": "0.0,0.9",
    "optimizer.nesterov": "false,true",
}
SIZE = 5184
SPENT: dict[str, float] = defaultdict(float)


def timed(owner: Any, name: str, part: str) -> None:
    """Let the seconds spent in a method count for a part."""
    method: Callable[..., Any] = getattr(owner, name)

    @wraps(method)
    def measured(*given: Any, **named: Any) -> Any:
        began = time.perf_counter()
        try:
            return method(*given, **named)
        finally:
            SPENT[part] += time.perf_counter() - began

    setattr(owner, name, measured)


def at_once(specs: Iterator[Any], monitor: Any, **_: Any) -> Iterator[TrialResult]:
    """An engine that trains nothing: `train` as the worker sees it."""
    while True:
        monitor.room(WIDTH)
        stack = list(islice(specs, WIDTH))
        if not stack:
            return
        for spec in stack:
            monitor.started(spec, 0, 200, [])
            began = time.perf_counter()
            hash((spec.static, spec.config_hash))
            SPENT["compose, read"] += time.perf_counter() - began
        monitor.stepped(200, stack)
        row = {"step": 200, "epoch": 1.0, "lr": 0.1, "train_loss": 1.0, "val_loss": 1.0}
        row |= {"val_mse": 1.0, "val_mae": 1.0}
        for spec in stack:
            monitor.report(spec, row)
        for spec in stack:
            monitor.should_stop(spec)
        metrics = {name: row[name] for name in ("train_loss", "val_loss", "val_mse", "val_mae")}
        for spec in stack:
            yield TrialResult(
                spec=spec,
                state="complete",
                metrics=metrics,
                history=[row],
                steps=200,
                best_step=200,
                seconds=0.1,
                num_parameters=100,
                samples_per_s=1e4,
                device="cpu",
                objective="val_mse",
            )


def memory() -> float:
    """The most that this process ever had, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Run `N` trials and print their cost."""
    trials = int(sys.argv[1])
    seeds = f"training.seed=range(0,{max(2, -(-trials // SIZE))})"
    words = ["data=quadratic", "training.device=cpu", seeds]
    node = {"params": SPACE, "sampler": "grid", "n_trials": trials, "storage": None}
    sweepstack.engine.train.train = at_once  # type: ignore[assignment]
    for method in ("claim", "counts", "recover", "others_at_work", "beat", "begin", "write"):
        timed(BulkBook, method, "database")
    timed(training_app.TrainingApp, "read", "compose, read")
    for method in ("begin", "end", "equal"):
        timed(TrialFolder, method, "folder")
    with tempfile.TemporaryDirectory() as name:
        os.chdir(name)
        app = training_app.TrainingApp()
        plan, question = app.prepare(plans.read(node, words, "sweepstack", app.check))
        opened = storage.connect(f"sqlite:///{name}/studies.db")
        study = studies.open_study(opened, plan.study, plan.directions, question)
        book = studies.open_book(plan, study, opened, lambda number: 0)
        runner = worker.Worker(plan, app, book, Path(name) / "trials", Stop())
        SPENT.clear()
        before, began = memory(), time.perf_counter()
        runner.work()
        spent = {**SPENT, "all": time.perf_counter() - began}
        peak = memory() - before
        done = book.counts()["done"]
        assert done == trials, f"{done} of {trials} trials are complete"
        os.chdir("/")
    parts = (spent[part] for part in ("database", "compose, read", "folder", "all"))
    print(trials, *(f"{1e3 * seconds / trials:.3f}" for seconds in parts), f"{peak:.1f}")


if __name__ == "__main__":
    main()
