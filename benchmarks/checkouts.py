"""Two checkouts of this repository beside each other: has a change made it slower?

    python benchmarks/checkouts.py OLD NEW --root FOLDER_WITH_MNIST [--rounds 3] [--trials 100]

Each of OLD and NEW is a folder with the repository and its own `.venv`. In every round both run
their own benchmarks/throughput.py (rows e and f: training, after start-up and whole) and
benchmarks/overhead.py (another application's trial, and our bookkeeping), in turn, and who begins
changes with the round. Printed are milliseconds per trial, the least and the median of the rounds,
and the ratio new / old of both: below 1 means that the new one is faster.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
from pathlib import Path


def output(checkout: Path, script: str, *arguments: str) -> list[list[str]]:
    """The lines that a benchmark prints, in words.

    Raises:
        SystemExit: it failed.
    """
    command = [".venv/bin/python", f"benchmarks/{script}", *arguments]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    done = subprocess.run(command, cwd=checkout, capture_output=True, text=True, env=environment)
    if done.returncode:
        sys.exit(f"{checkout}: {script}: {done.stderr[-2000:]}")
    return [line.split() for line in done.stdout.splitlines()]


def measure(checkout: Path, root: str, trials: int) -> dict[str, float]:
    """Milliseconds per trial, by what was measured."""
    found = {}
    lines = output(checkout, "throughput.py", "--root", root, "--rounds=1", f"--trials={trials}")
    for line in lines:
        if line[:1] in (["(e)"], ["(f)"]) and len(line) == 9:
            for kind, value in zip(("training", "after start-up", "whole"), line[3:6], strict=True):
                found[f"{line[0]} {kind}"] = float(value)
    row = output(checkout, "overhead.py", "--trials", str(2 * trials))[-1]
    found["another application"], found["bookkeeping"] = float(row[1]), float(row[-2])
    return found


def main() -> None:
    """Print a row for each measurement."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--root", required=True, help="folder that holds MNIST/")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--trials", type=int, default=100)
    given = parser.parse_args()
    checkouts, root = [given.old.resolve(), given.new.resolve()], str(Path(given.root).resolve())
    found: dict[Path, list[dict[str, float]]] = {checkout: [] for checkout in checkouts}
    for turn in range(given.rounds):
        for checkout in checkouts[:: -1 if turn % 2 else 1]:
            found[checkout].append(measure(checkout, root, given.trials))
        print(f"round {turn + 1} of {given.rounds}: {os.getloadavg()[0]:.1f} load", flush=True)
    print(
        f"{'ms per trial':24s}{'old least':>11}{'median':>9}{'new least':>11}{'median':>9}  ratios"
    )
    for kind in found[checkouts[0]][0]:
        old, new = ([each[kind] for each in found[checkout]] for checkout in checkouts)
        numbers = [f(values) for values in (old, new) for f in (min, statistics.median)]
        least, middle = numbers[2] / numbers[0], numbers[3] / numbers[1]
        print(
            f"{kind:24s}{numbers[0]:11.1f}{numbers[1]:9.1f}{numbers[2]:11.1f}{numbers[3]:9.1f}"
            f"  {least:.2f} {middle:.2f}"
        )


if __name__ == "__main__":
    main()
