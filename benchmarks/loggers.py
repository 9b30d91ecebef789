"""What loggers cost a stack: `python benchmarks/loggers.py --loggers tensorboard,csv`.

Trains the same trials as one stack, in turns without a logger and with each, and prints for each
the ratio of the median times of training, with its smallest and largest pair; the same of the
processor time of the training process, which other load of the machine changes less; and the
median wait for the rest to be written at the end. Each round begins with another variant.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import sweepstack
from sweepstack.engine.train import train
from sweepstack.engine.width import Widths
from sweepstack.runs.logger import Logged, Run, run_of
from sweepstack.training.spec import Monitor, TrialSpec


def trials(given: argparse.Namespace, name: str) -> list[TrialSpec]:
    """Trials of one stack that differ in their learning rates and seeds."""
    words = [
        *("data=digits", "model.hidden=[100]", f"training.max_steps={given.steps}"),
        *(f"training.eval_every={given.every}", f"training.device={given.device}"),
        *(f"logger={name}", *given.overrides),
    ]
    rates = [f"optimizer.lr={0.001 * 1.01**n:.5g}" for n in range(given.trials)]
    composed = [
        sweepstack.compose(*words, rate, f"training.seed={n}") for n, rate in enumerate(rates)
    ]
    return [TrialSpec(spec.config, number=n) for n, spec in enumerate(composed)]


def measured(specs: list[TrialSpec], folder: Path) -> tuple[float, float, float]:
    """Seconds of training, processor seconds of it, and seconds until all is written."""

    def described(spec: TrialSpec) -> Run:
        word = f"optimizer.lr={spec.config.optimizer.lr:.5g}"
        return run_of(spec, [word], folder, study="stack")

    logged = Logged(Monitor(), specs[0].config.logger, described)
    time.sleep(0.5)  # a process that starts is no part of what is measured
    began, spent = time.perf_counter(), time.process_time()
    for result in train(specs, logged, width=Widths(len(specs))):
        assert result.state == "complete"
        logged.end(result)
    trained, spent = time.perf_counter(), time.process_time() - spent
    logged.close()
    return trained - began, spent, time.perf_counter() - trained


def compared(own: Sequence[float], plain: Sequence[float]) -> str:
    """The ratio of medians, and the smallest and largest ratio of a round."""
    pairs = sorted(one / other for one, other in zip(own, plain, strict=True))
    ratio = statistics.median(own) / statistics.median(plain)
    return f"{ratio:.3f} ({pairs[0]:.3f} to {pairs[-1]:.3f})"


def main() -> None:
    """Measure in turns and print a line for each logger."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--loggers", default="tensorboard,csv")
    parser.add_argument("--trials", type=int, default=32)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--every", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=600.0, help="begin no round after these")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("overrides", nargs="*", help="after --")
    given = parser.parse_args()
    os.environ.setdefault("WANDB_MODE", "offline")
    names = ["none", *given.loggers.split(",")]
    make = partial(trials, given)
    specs = {name: make(name) for name in names}
    found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in names}
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as place:
        os.chdir(place)
        measured(specs["none"], Path(place, "warm"))
        for turn in range(given.rounds):
            if turn and time.monotonic() - began > given.seconds:
                break
            at = turn % len(names)
            for name in names[at:] + names[:at]:
                found[name].append(measured(specs[name], Path(place, f"{name}{turn}")))
        os.chdir("/")
    columns = {name: list(zip(*rows, strict=True)) for name, rows in found.items()}
    print(f"none: {statistics.median(columns['none'][0]):.2f} s, n={len(found['none'])}")
    for name in names[1:]:
        wall, spent = (compared(columns[name][at], columns["none"][at]) for at in (0, 1))
        wait = statistics.median(columns[name][2])
        print(f"{name}: {wall}; processor {spent}; then {wait:.2f} s of writing")


if __name__ == "__main__":
    main()
