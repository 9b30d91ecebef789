"""What a trial costs besides its training: sweepstack beside hydra-optuna-sweeper.

    uv run python benchmarks/overhead.py [--trials 20 200 2000] [--other PYTHON]
    uv run python benchmarks/overhead.py --bulk [1000 10000]

The first two of three measurements are each a sweep of `n` trials in a process and a study
of its own, on the default SQLite storage:

1. The same Hydra application, whose task returns (x - 2)^2 at once, swept over x with the random
   sampler, by `hydra/sweeper=sweepstack` and by `hydra/sweeper=optuna`. PYTHON is the interpreter
   of an environment that has hydra-optuna-sweeper (`pip install --pre hydra-optuna-sweeper`);
   without it that row is left out. This is Hydra's own cost of a job plus the sweeper's.
2. sweepstack itself: `sweepstack -m data=quadratic`, three swept parameters, five evaluations a
   trial. Its bookkeeping is the sweep's time, from the second trial's start to the last one's end,
   less the seconds that the engine spent training and evaluating (which every trial records).
3. `--bulk`: the bookkeeping of stacks of 64 that train nothing (`bulk.py`), in parts.

Printed are milliseconds per trial, without the first, which warms up; the sweepers alternate.
"""

from __future__ import annotations

import argparse
import os
import platform
import sqlite3
import subprocess
import sys
import tempfile
from contextlib import closing
from pathlib import Path

from measured import run

APP = """
import hydra

@hydra.main(config_path=None, config_name=None, **OPTIONS)
def app(cfg):
    return (float(cfg.x) - 2.0) ** 2

app()
"""
SPAN = """
SELECT (julianday(MAX(datetime_complete)) - julianday(MIN(datetime_start))) * 86400.0, COUNT(*)
FROM trials WHERE state = 'COMPLETE' AND number > 0
"""
SECONDS = """
SELECT SUM(CAST(value_json AS REAL)) FROM trial_user_attributes JOIN trials USING (trial_id)
WHERE key = 'seconds' AND number > 0
"""


def measured(database: Path, trials: int) -> tuple[float, float]:
    """Milliseconds per trial of the whole sweep, and of its training."""
    with closing(sqlite3.connect(database)) as connection:
        span, count = connection.execute(SPAN).fetchone()
        (seconds,) = connection.execute(SECONDS).fetchone()
    assert count == trials - 1, f"{count + 1} of {trials} trials are complete"
    return 1e3 * span / count, 1e3 * (seconds or 0.0) / count


def other_app(python: str, sweeper: str, trials: int) -> float:
    """Milliseconds per trial of the trivial application."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        options = "{}" if sweeper == "optuna" else "{'version_base': '1.3'}"
        (folder / "app.py").write_text(APP.replace("OPTIONS", options))
        words = [
            *("app.py", "-m", f"hydra/sweeper={sweeper}", "hydra/sweeper/sampler=random"),
            *("hydra.sweeper.sampler.seed=0", f"hydra.sweeper.n_trials={trials}"),
            *("hydra.sweeper.n_jobs=1", "hydra.sweeper.storage=sqlite:///studies.db"),
            *("hydra.sweeper.study_name=study", "+x=interval(-5.0,5.0)"),
        ]
        run([python, *words], folder)
        return measured(folder / "studies.db", trials)[0]


def own(trials: int) -> tuple[float, float]:
    """Milliseconds per trial of sweepstack: bookkeeping, and training."""
    with tempfile.TemporaryDirectory() as name:
        words = [
            *("-m", "sweepstack", "-m", "data=quadratic", "optimizer=sgd", "training.max_steps=5"),
            *("training.eval_every=1", "hydra/sweeper/sampler=random"),
            *(f"hydra.sweeper.n_trials={trials}", "optimizer.lr=interval(0.001,0.01)"),
            *("regularization.weight_decay=interval(0.0,0.1)", "init=he,xavier"),
        ]
        run([sys.executable, *words], Path(name))
        whole, training = measured(Path(name) / "outputs" / "studies.db", trials)
        return whole - training, training


def bulk(counts: list[int]) -> None:
    """Print a row for each number of trials of a grid."""
    print("trials   database   compose, read   folder      all   peak memory, MB more")
    for trials in counts:
        script = str(Path(__file__).with_name("bulk.py"))
        done = subprocess.run([sys.executable, script, str(trials)], capture_output=True, text=True)
        if done.returncode:
            sys.exit(done.stderr[-2000:])
        number, database, read, folder, whole, peak = done.stdout.split()
        print(
            f"{number:<6}   {database:>8}   {read:>13}   {folder:>6}   {whole:>6}   {peak:>20}",
            flush=True,
        )


def main() -> None:
    """Print a row for each number of trials."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, nargs="+", default=[20, 200, 2000])
    parser.add_argument("--other", help="python of an environment with hydra-optuna-sweeper")
    parser.add_argument("--bulk", type=int, nargs="*", help="only the third measurement")
    given = parser.parse_args()
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores; ms per trial")
    if given.bulk is not None:
        bulk(given.bulk or [1000, 10000])
        return
    print("trials   app: sweepstack   app: optuna   sweepstack itself: bookkeeping   (training)")
    for trials in given.trials:
        mine = other_app(sys.executable, "sweepstack", trials)
        theirs = f"{other_app(given.other, 'optuna', trials):.1f}" if given.other else "not run"
        bookkeeping, training = own(trials)
        print(
            f"{trials:<6}   {mine:>11.1f}   {theirs:>11}"
            f"   {bookkeeping:>26.1f}   {training:>10.1f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
