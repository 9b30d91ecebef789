"""One measurement of throughput.py's `--ablate`: the workload with one fast path taken away.

    python benchmarks/ablation.py --without recording --root FOLDER_WITH_MNIST

Prints one line of JSON: the engine's own seconds per trial, and the width. A process of its own for
each, since what is recorded or compared stays for a process's life.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

from variants import PATHS

import sweepstack
from sweepstack.engine import executors
from sweepstack.engine.executors import recorded
from sweepstack.engine.kernels import fused
from sweepstack.engine.program import Program
from sweepstack.engine.train import train
from sweepstack.engine.width import Widths
from sweepstack.training.spec import TrialSpec


def take_away(path: str) -> None:
    """Do without a fast path."""
    if path in ("recording", "all three"):
        executors._recorded = lambda: None  # type: ignore[assignment]
    if path in ("fused update", "all three"):
        fused.works = lambda name: False  # type: ignore[assignment]
    if path in ("parts", "all three"):
        recorded.MAX_PARTS = 1


def trials(given: argparse.Namespace) -> list[TrialSpec]:
    """Trials of the workload, one seed each."""
    words = [
        *("data=mnist", f"data.root={Path(given.root).resolve()}", "model=mlp"),
        *("model.hidden=[100]", "init=he", "optimizer=adam", "batch.size=64"),
        *(f"training.max_steps={given.steps}", f"training.eval_every={given.steps}"),
        *("training.device=cpu", *given.overrides),
    ]
    return [sweepstack.compose(*words, f"training.seed={n}") for n in range(given.trials)]


def main() -> None:
    """Train the trials and say what each took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--without", choices=PATHS, default="nothing")
    parser.add_argument("--root", default="data", help="folder that holds MNIST/")
    parser.add_argument("--trials", type=int, default=64)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("overrides", nargs="*", help="after --")
    given = parser.parse_args()
    take_away(given.without)
    specs = trials(given)
    widths = Widths("auto", most=len(specs))
    width = widths.of(Program.of(specs[0]))
    seconds = [result.seconds for result in train(specs, width=widths)]
    print(json.dumps({"seconds": statistics.mean(seconds), "width": width}))


if __name__ == "__main__":
    main()
